package servertest

import (
	"os"
	"sync"
)

// logBuffer keeps what a process writes.
type logBuffer struct {
	mu   sync.Mutex
	text []byte
}

func newLogBuffer() *logBuffer { return &logBuffer{} }

// readFrom reads r to its end and closes it.
func (l *logBuffer) readFrom(r *os.File) {
	defer r.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		l.mu.Lock()
		l.text = append(l.text, buf[:n]...)
		l.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
