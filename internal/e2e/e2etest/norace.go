//go:build !race

package e2etest

// Race reports whether the race detector is on. Tests do less then, because everything takes many
// times longer.
const Race = false
