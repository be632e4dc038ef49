// Package archtest holds the rules of the tree that no compiler checks: which
// package may import which, how long a file may be, and a few habits that are
// easy to break by accident. All its code is in tests, which read the
// module through `go list` and go/parser.
//
// A new package must be entered in the table of imports_test.go: that is the
// moment to ask where it belongs.
package archtest
