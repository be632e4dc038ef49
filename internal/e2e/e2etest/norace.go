//go:build !race

package e2etest

// Race tells whether the race detector is on: everything takes many times longer,
// so the tests do less of it.
const Race = false
