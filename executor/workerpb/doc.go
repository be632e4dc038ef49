// Package workerpb is what a server and its worker say to each other, and the records of the
// worker's journal. worker.proto defines both and says what each field means; `go generate` makes
// the code of it. Besides that code the package has
//
//   - frame.go, output.go: from orders and reports to messages, frames and bytes, and back,
//   - slots.go: amounts of slots, and what the attempts of partitions take of a node,
//   - grpc.go: the settings of both ends of a connection.
//
// Rules:
//
//  1. Marshal and unmarshal with the methods that end in VT. They take a sixth to a third of the time of
//     package proto, which gives the same bytes (TestCodecAgreesWithProtobuf).
//  2. A frame comes from a pool (ServerFrameFromVTPool, WorkerFrameFromVTPool) and goes back with
//     ReturnToVTPool, when nothing refers to it or its messages any more. So an attempt's start
//     allocates nothing, and its order and end only what is kept.
//  3. The end of an attempt is encoded once (AppendFinished). The journal and each frame that
//     repeats it hold the same bytes.
package workerpb

//go:generate go -C ../../internal/protogen run . ../../executor/workerpb worker.proto
