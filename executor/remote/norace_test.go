//go:build !race

package remote_test

const race = false
