package executortest

import "io"

// fakeLog reads what the test printed.
type fakeLog struct {
	f     *Fake
	fo    *fakeOrder
	empty bool
}

func (l *fakeLog) text() (s string, live bool) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if l.empty {
		return "", !l.fo.ended
	}
	return l.fo.out, !l.fo.ended
}

func (l *fakeLog) ReadAt(p []byte, off int64) (int, error) {
	s, _ := l.text()
	if off >= int64(len(s)) {
		return 0, io.EOF
	}
	n := copy(p, s[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (l *fakeLog) Size() int64 {
	s, _ := l.text()
	return int64(len(s))
}

func (l *fakeLog) Kept(off int64) int64 { return min(off, l.Size()) }

func (l *fakeLog) Live() bool {
	_, live := l.text()
	return live
}

func (l *fakeLog) Close() error { return nil }
