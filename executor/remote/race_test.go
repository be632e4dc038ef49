//go:build race

package remote_test

// race: the detector is on, and takes memory of its own.
const race = true
