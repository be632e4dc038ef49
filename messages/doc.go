// Package messages holds what actors say to each other and what they hand out:
// identities, attempt records, immutable views of runs, and the closed sets of
// messages between node, shard, run, task and dispatcher. It imports only
// dag and holds no logic.
//
// Whatever is reachable from a message is immutable once it has been sent.
package messages
