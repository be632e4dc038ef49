package outputs

import (
	"bytes"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// TestTwoStoresAppendToOneFile is two processes as far as the kernel's locks go: each
// store has its own open file.
func TestTwoStoresAppendToOneFile(t *testing.T) {
	dir := t.TempDir()
	type kept struct {
		at   int64
		body []byte
	}
	var mu sync.Mutex
	var all []kept
	var wg sync.WaitGroup
	for writer := range 4 {
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		wg.Go(func() {
			for i := range 20 {
				body := bytes.Repeat([]byte{byte('a' + writer)}, 1000+i*writer)
				at, err := s.Append(one(1).Key, Part{Body: bytes.NewReader(body), Length: int64(len(body))})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				all = append(all, kept{at[0], body})
				mu.Unlock()
				if i%5 == 0 {
					s.Trim()
				}
			}
		})
	}
	wg.Wait()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, k := range all {
		log, err := s.Log(one(1), messages.Output{Size: int64(len(k.body)), Head: int64(len(k.body)), Offset: k.at})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(k.body))
		if _, err := log.ReadAt(got, 0); err != nil && err.Error() != "EOF" || !bytes.Equal(got, k.body) {
			t.Errorf("at %d: %d bytes of %q are not what was written: %v", k.at, len(k.body), k.body[0], err)
		}
		log.Close()
	}
}
