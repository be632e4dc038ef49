package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/backup"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// emptyBackup is a backup without rows and files.
func emptyBackup(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := backup.NewWriter(&b, backup.Header{Folder: datafolder.ID{1}.String(), Format: datafolder.Format, Created: time.Unix(1, 0)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A restore whose output folder cannot be opened ends, and leaves its data folder empty.
func TestRestoreReportsAnUnusableOutputFolder(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	broken := func(string) (*outputs.Store, error) { return nil, errors.New("input/output error") }
	ended := make(chan error, 1)
	go func() {
		_, err := restore(bytes.NewReader(emptyBackup(t)), "b", data, false, broken)
		ended <- err
	}()
	if err := testenv.Receive(t, "the end of the restore", ended); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("got %v", err)
	}
	if list, err := os.ReadDir(data); err != nil || len(list) > 0 {
		t.Errorf("it holds %v, %v", list, err)
	}
	if _, err := restore(bytes.NewReader(emptyBackup(t)), "b", data, false, outputs.Open); err != nil {
		t.Errorf("the next restore: %v", err)
	}
}
