package servertest

import (
	"os"
	"sync"
	"time"
)

// logBuffer collects the output of a process.
type logBuffer struct {
	mu   sync.Mutex
	text []byte
	end  chan struct{} // closed at the end of the output
}

func newLogBuffer() *logBuffer { return &logBuffer{end: make(chan struct{})} }

// readFrom reads r to its end and closes it.
func (l *logBuffer) readFrom(r *os.File) {
	defer close(l.end)
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

// settle waits a second at most for the rest of the output of a process that has exited. A process
// that it started may keep the pipe open.
func (l *logBuffer) settle() {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-l.end:
	case <-timer.C:
	}
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
