// Package journaltest holds what tests of a persistence.Store, and tests that need a Store, share:
//
//	Run       one conformance suite for every implementation
//	Memory    a Store in memory that a test can hold back, fail and crash
//	Failing   a Store around another that fails at the n-th call
package journaltest
