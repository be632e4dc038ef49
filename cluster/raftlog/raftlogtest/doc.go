// Package raftlogtest has what tests of replicated code need in one process: a network in memory whose
// links a test cuts, and a machine whose rows survive a crash.
package raftlogtest
