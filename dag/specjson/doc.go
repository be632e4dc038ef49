// Package specjson decodes submitted specs and generated sets from JSON: strictly,
// and with all problems of a document at once, each with its JSON pointer.
//
// Reading order:
//
//	decode.go    Decode, DecodeTasks, Check, Plan and their streamed forms; bounds of texts
//	spec.go      the members of a spec, a task, an edge and a job
//	number.go    decimals in thousandths and in nanoseconds
//	reader.go    reads JSON, also after a problem; the part of a document that is in memory
//	warnings.go  members that are allowed but probably mistakes
//
// Rules that hold everywhere in a document:
//
//   - A duplicate member is a problem, and its first value counts. So is invalid
//     UTF-8, also as a lone surrogate in an escape.
//   - A known member of the wrong type is a problem; null is a type of its own; it
//     never stands for a default.
//   - Unknown members are a problem outside of job and jobDefaults, and are kept as
//     they were written inside.
//   - Strings that reach execve (command, commandString, environment, workDir, task
//     names, values of parameters) hold no NUL byte.
//   - Whatever the document: memory is linear in its size, nesting is bounded (10,000),
//     and at most 1,000 problems are reported, and then how many more there are.
//
// All decoded strings share one copy of the document; the caller may reuse the document
// itself. PlanFrom holds no such copy: tasks are packed
// as they are read (dag.TaskList).
package specjson
