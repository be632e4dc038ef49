// Package workerpb is what a server and its worker say to each other, and the
// records of the worker's journal: flat binary items (items.go, records.go), many of
// them in one message of a bidirectional gRPC stream (service.go).
//
//	item  = type byte, uvarint length, body
//	frame = item*
//
// A body is read field by field; what follows the fields that a reader knows is
// skipped, and so is an item of unknown type: both may be added later. Whatever
// changes a meaning needs a new Protocol, which is part of the stream's name, so that
// two binaries that do not understand each other find out by the first call.
//
// The end of an attempt is encoded once: the bytes that the journal keeps are those
// that go to the server, again and again until it acknowledges them. That, and half
// the cost, is why the items are not protobuf messages.
//
// Attach, the stream of all work. The worker speaks first:
//
//	worker: Hello, Queued*, Started*, Finished*, Usage, Synced   all that it knows and was not told to forget
//	server: Capacity, Order, Kill, Revoke, Ack, Drain, Stop      in batches, as they come
//	worker: Started, Finished, Revoked, Ignored, Usage, Stopped
//
// A new Attach ends the one before it. Log, one stream per open log: the server sends
// LogOpen, then LogRead after LogRead, and gets a LogData or a LogError for each.
package workerpb
