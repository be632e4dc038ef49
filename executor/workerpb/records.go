package workerpb

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// Protocol is the version of everything in this package, the journal included.
const Protocol = 2

// Hello is how a worker begins.
type Hello struct {
	Version string // of its binary and of its settings
	Name    string // of its folder
	PID     int
}

// Kill is messages.AttemptKey with the grace of executor.Executor's Kill.
type Kill struct {
	Key   messages.AttemptKey
	Grace time.Duration
}

// KeyAt is a key and a time: ns since the epoch, or since boot in the journal.
type KeyAt struct {
	Key messages.AttemptKey
	At  int64
}

// Started says that an attempt's process exists.
type Started struct {
	Key       messages.AttemptKey
	At        int64         // ns since the epoch
	Idle      time.Duration // as in executor.Report
	GrantedAt int64         // as in executor.Report
}

// Amount is slots, in thousandths of a core and of a MB.
type Amount struct{ CPUMillis, MemoryBytes int64 }

// Deferred says that starts have to wait for want of something.
type Deferred struct {
	Reason string // a word, for the metric
	N      uint64 // how many since the last such item
	Text   string // the error
}

// Header begins a journal.
type Header struct {
	Boot  string // the kernel's boot id
	PID   int    // of the worker, which is its session's id too
	Ticks uint64 // when it started: field 22 of /proc/PID/stat
	// Mark is the value of the worker's entry in its environment, which names the data
	// folder that the worker belongs to: a journal may have been copied with its folder.
	Mark string
}

// Born says which process an attempt is.
type Born struct {
	Key messages.AttemptKey
	PID int
	At  int64 // CLOCK_BOOTTIME, ns: that of its intent
}

// LogOpen asks for a log.
type LogOpen struct {
	Key    messages.AttemptKey
	Stream messages.Stream
}

// LogRead asks for up to N bytes from Off, and for what the log is now.
type LogRead struct {
	Off int64
	N   int
}

// LogData answers LogOpen and LogRead.
type LogData struct {
	Size, Kept int64 // Kept is messages.Log's, of LogRead.Off
	Live       bool
	Cut, EOF   bool // of the read
	Data       []byte
}

// LogError answers LogOpen and LogRead.
type LogError struct {
	NotLive bool
	Text    string
}

// AppendHello appends a Hello.
func AppendHello(dst []byte, h Hello) []byte {
	return AppendItem(dst, TypeHello, func(dst []byte) []byte {
		dst = appendString(dst, h.Version)
		dst = appendString(dst, h.Name)
		return binary.AppendUvarint(dst, uint64(h.PID))
	})
}

// ParseHello reads a Hello.
func ParseHello(body []byte) (Hello, error) {
	r := reader{b: body}
	h := Hello{Version: r.string(), Name: r.string(), PID: int(r.uint32())}
	return h, r.err
}

// AppendKill appends a Kill.
func AppendKill(dst []byte, k Kill) []byte {
	return AppendKeyAt(dst, TypeKill, k.Key, int64(k.Grace))
}

// ParseKill reads a Kill.
func ParseKill(body []byte) (Kill, error) {
	k, err := ParseKeyAt(body)
	return Kill{Key: k.Key, Grace: time.Duration(k.At)}, err
}

// ParseKey reads a body that is a key.
func ParseKey(body []byte) (messages.AttemptKey, error) {
	r := reader{b: body}
	k := r.key()
	return k, r.err
}

// ParseKeyAt reads a body that is a key and a time.
func ParseKeyAt(body []byte) (KeyAt, error) {
	r := reader{b: body}
	k := KeyAt{Key: r.key(), At: r.int()}
	return k, r.err
}

// AppendStarted appends a Started.
func AppendStarted(dst []byte, s Started) []byte {
	at := len(dst)
	dst = binary.AppendVarint(appendKey(append(dst, byte(TypeStarted), 0, 0), s.Key), s.At)
	dst = binary.AppendVarint(dst, int64(s.Idle))
	return closeItem(binary.AppendVarint(dst, s.GrantedAt), at)
}

// ParseStarted reads a Started.
func ParseStarted(body []byte) (Started, error) {
	r := reader{b: body}
	s := Started{Key: r.key(), At: r.int(), Idle: time.Duration(r.int()), GrantedAt: r.int()}
	return s, r.err
}

// AppendAmount appends an Amount as Capacity or Usage.
func AppendAmount(dst []byte, t Type, a Amount) []byte {
	return AppendItem(dst, t, func(dst []byte) []byte {
		return binary.AppendVarint(binary.AppendVarint(dst, a.CPUMillis), a.MemoryBytes)
	})
}

// ParseAmount reads an Amount.
func ParseAmount(body []byte) (Amount, error) {
	r := reader{b: body}
	a := Amount{CPUMillis: r.int(), MemoryBytes: r.int()}
	return a, r.err
}

// AppendHeader appends a Header.
func AppendHeader(dst []byte, h Header) []byte {
	return AppendItem(dst, TypeHeader, func(dst []byte) []byte {
		dst = binary.AppendUvarint(dst, Protocol)
		dst = appendString(dst, h.Boot)
		dst = binary.AppendUvarint(dst, uint64(h.PID))
		dst = binary.AppendUvarint(dst, h.Ticks)
		return appendString(dst, h.Mark)
	})
}

// ParseHeader reads a Header. One of another Protocol is an error.
func ParseHeader(body []byte) (Header, error) {
	r := reader{b: body}
	if p := r.uint(); r.err == nil && p != Protocol {
		return Header{}, fmt.Errorf("protocol %d, want %d", p, Protocol)
	}
	h := Header{Boot: r.string(), PID: int(r.uint32()), Ticks: r.uint(), Mark: r.string()}
	return h, r.err
}

// AppendDeferred appends a Deferred.
func AppendDeferred(dst []byte, d Deferred) []byte {
	return AppendItem(dst, TypeDeferred, func(dst []byte) []byte {
		return appendString(binary.AppendUvarint(appendString(dst, d.Reason), d.N), d.Text)
	})
}

// ParseDeferred reads a Deferred.
func ParseDeferred(body []byte) (Deferred, error) {
	r := reader{b: body}
	d := Deferred{Reason: r.string(), N: r.uint(), Text: r.string()}
	return d, r.err
}

// AppendBorn appends a Born.
func AppendBorn(dst []byte, b Born) []byte {
	at := len(dst)
	dst = append(dst, byte(TypeBorn), 0, 0)
	dst = appendKey(dst, b.Key)
	dst = binary.AppendUvarint(dst, uint64(b.PID))
	return closeItem(binary.AppendVarint(dst, b.At), at)
}

// ParseBorn reads a Born.
func ParseBorn(body []byte) (Born, error) {
	r := reader{b: body}
	b := Born{Key: r.key(), PID: int(r.uint32()), At: r.int()}
	return b, r.err
}

// AppendLogOpen appends a LogOpen.
func AppendLogOpen(dst []byte, l LogOpen) []byte {
	return AppendItem(dst, TypeLogOpen, func(dst []byte) []byte { return append(appendKey(dst, l.Key), byte(l.Stream)) })
}

// ParseLogOpen reads a LogOpen.
func ParseLogOpen(body []byte) (LogOpen, error) {
	r := reader{b: body}
	l := LogOpen{Key: r.key(), Stream: messages.Stream(r.uint())}
	return l, r.err
}

// AppendLogRead appends a LogRead.
func AppendLogRead(dst []byte, l LogRead) []byte {
	return AppendItem(dst, TypeLogRead, func(dst []byte) []byte {
		return binary.AppendUvarint(binary.AppendVarint(dst, l.Off), uint64(l.N))
	})
}

// ParseLogRead reads a LogRead.
func ParseLogRead(body []byte) (LogRead, error) {
	r := reader{b: body}
	l := LogRead{Off: r.int(), N: int(r.uint32())}
	return l, r.err
}

// AppendLogData appends a LogData.
func AppendLogData(dst []byte, l LogData) []byte {
	return AppendItem(dst, TypeLogData, func(dst []byte) []byte {
		dst = binary.AppendVarint(binary.AppendVarint(dst, l.Size), l.Kept)
		dst = appendBool(appendBool(appendBool(dst, l.Live), l.Cut), l.EOF)
		return appendString(dst, l.Data)
	})
}

// ParseLogData reads a LogData, whose Data aliases the body.
func ParseLogData(body []byte) (LogData, error) {
	r := reader{b: body}
	l := LogData{Size: r.int(), Kept: r.int(), Live: r.bool(), Cut: r.bool(), EOF: r.bool(), Data: r.bytes()}
	return l, r.err
}

// AppendLogError appends a LogError.
func AppendLogError(dst []byte, l LogError) []byte {
	return AppendItem(dst, TypeLogError, func(dst []byte) []byte { return appendString(appendBool(dst, l.NotLive), l.Text) })
}

// ParseLogError reads a LogError.
func ParseLogError(body []byte) (LogError, error) {
	r := reader{b: body}
	l := LogError{NotLive: r.bool(), Text: r.string()}
	return l, r.err
}

// AppendOrder appends an order. Resume is not the worker's concern and is left out.
func AppendOrder(dst []byte, o *executor.Order) []byte {
	at := len(dst)
	dst = append(dst, byte(TypeOrder), 0, 0)
	dst = appendKey(dst, o.Key)
	dst = appendString(dst, o.Name)
	dst = binary.AppendUvarint(dst, uint64(len(o.Command)))
	for _, s := range o.Command {
		dst = appendString(dst, s)
	}
	dst = appendString(dst, o.Shell)
	dst = appendBool(dst, o.UseShell)
	dst = binary.AppendUvarint(dst, uint64(len(o.Environment)))
	for _, s := range o.Environment {
		dst = appendString(dst, s)
	}
	dst = appendString(dst, o.Dir)
	dst = binary.AppendVarint(dst, int64(o.Timeout))
	dst = binary.AppendVarint(dst, o.CPUMillis)
	dst = binary.AppendVarint(dst, o.MemoryBytes)
	dst = appendBool(dst, o.Capture)
	return closeItem(binary.AppendVarint(dst, o.GrantedAt), at)
}

// ParseOrder reads an order, which shares nothing with the body.
func ParseOrder(body []byte) (executor.Order, error) {
	r := reader{b: body}
	o := executor.Order{Key: r.key(), Name: r.string(), Command: r.strings(), Shell: r.string(), UseShell: r.bool(),
		Environment: r.strings(), Dir: r.string(), Timeout: time.Duration(r.int()),
		CPUMillis: r.int(), MemoryBytes: r.int(), Capture: r.bool(), GrantedAt: r.int()}
	return o, r.err
}

// AppendFinished appends the end of an attempt.
func AppendFinished(dst []byte, rep *executor.Report) []byte {
	at := len(dst)
	dst = append(dst, byte(TypeFinished), 0, 0)
	dst = appendKey(dst, rep.Key)
	dst = binary.AppendVarint(dst, rep.At)
	rec := &rep.Record
	dst = append(dst, byte(rec.Result))
	for _, v := range [...]int64{int64(rec.RC), rec.Start, rec.Stop, rec.MaxRSSKB, int64(rec.UserCPU), int64(rec.SystemCPU)} {
		dst = binary.AppendVarint(dst, v)
	}
	dst = appendString(dst, rec.ExecutorLog)
	dst = appendString(dst, rec.Node)
	dst = appendOutput(appendOutput(dst, &rec.Stdout), &rec.Stderr)
	dst = appendBool(dst, rep.Stdout != nil)
	dst = appendString(dst, rep.Stdout)
	dst = binary.AppendVarint(dst, rep.GrantedAt)
	return closeItem(dst, at)
}

func appendOutput(dst []byte, o *messages.Output) []byte {
	for _, v := range [...]int64{o.Size, o.Head, o.Tail, o.Offset} {
		dst = binary.AppendVarint(dst, v)
	}
	return appendString(dst, o.Inline)
}

// ParseFinished reads the end of an attempt. Its output aliases the body.
func ParseFinished(body []byte) (executor.Report, error) {
	r := reader{b: body}
	rep := executor.Report{Key: r.key(), Kind: executor.Finished, At: r.int()}
	rec := &rep.Record
	rec.Task, rec.Attempt = rep.Key.Task, rep.Key.Attempt
	result := r.uint()
	if r.err == nil && result > uint64(messages.AttemptRejected) {
		r.err = fmt.Errorf("%v: result %d", rep.Key, result)
	}
	rec.Result, rec.RC = messages.AttemptResult(result), int32(r.int())
	rec.Start, rec.Stop, rec.MaxRSSKB = r.int(), r.int(), r.int()
	rec.UserCPU, rec.SystemCPU = time.Duration(r.int()), time.Duration(r.int())
	rec.ExecutorLog, rec.Node = r.string(), r.string()
	rec.Stdout, rec.Stderr = r.output(), r.output()
	if captured := r.bool(); captured {
		rep.Stdout = append([]byte{}, r.bytes()...)
	} else {
		r.bytes()
	}
	rep.GrantedAt = r.int()
	return rep, r.err
}

func (r *reader) output() messages.Output {
	return messages.Output{Size: r.int(), Head: r.int(), Tail: r.int(), Offset: r.int(), Inline: r.bytes()}
}

// FinishedKey reads only the key of a Finished body.
func FinishedKey(body []byte) (messages.AttemptKey, error) { return ParseKey(body) }
