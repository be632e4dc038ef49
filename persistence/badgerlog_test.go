package persistence

import (
	"log/slog"
	"strings"
	"testing"
)

// TestBadgerLog: the two lines of Badger's log that must not be passed over.
func TestBadgerLog(t *testing.T) {
	var alarms []error
	l := &badgerLog{log: slog.New(slog.DiscardHandler), alarm: func(err error) { alarms = append(alarms, err) }}
	l.Errorf("Received err: %v. Cleaning up...", "x")
	l.Warningf("w %d", 1)
	l.Infof("i")
	l.Debugf("d")
	if len(alarms) != 0 || l.corrupt() != nil {
		t.Errorf("alarms %v, corrupt %v", alarms, l.corrupt())
	}
	l.Errorf("error flushing memtable to disk: %v, retrying", "no space")
	if len(alarms) != 1 || !strings.Contains(alarms[0].Error(), "no space") {
		t.Errorf("alarms: %v", alarms)
	}
	l.Errorf("CHECKSUM_MISMATCH: table %d", 3)
	if err := l.corrupt(); err == nil || !strings.Contains(err.Error(), "table 3") {
		t.Errorf("corrupt: %v", err)
	}
}
