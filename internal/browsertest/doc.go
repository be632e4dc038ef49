// Package browsertest contains tests with a real browser (build tag browser; see make test-browser):
// which requests web pages can make Chromium send to a server. It has only test files.
package browsertest
