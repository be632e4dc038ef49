// Package browsertest holds tests with a real browser (build tag browser; see
// make test-browser): what web pages can make Chromium send to a server. It has no
// code of its own.
package browsertest
