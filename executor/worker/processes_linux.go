package worker

import (
	"bytes"
	"fmt"
	"iter"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/procfs"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// MarkVariable names the variable that a worker, and every process that it starts, has in its
// environment. The worker's own value is FOLDER/NAME, that of a task FOLDER/NAME/RUN.TASK.ATTEMPT,
// where FOLDER is the identity of the data folder. A copy of a data folder has another identity, so
// its server does not touch the processes of the original.
const MarkVariable = "CARAVAN_WORKER"

// MarkValue returns the value of a worker's own mark.
func MarkValue(dataFolderID, worker string) string { return dataFolderID + "/" + worker }

// taskMark returns the mark of an attempt as an entry of its environment, for instance
//
//	CARAVAN_WORKER=8f14e45f/w-5e0f3c9a71d2/7.0.1
func taskMark(worker string, k messages.AttemptKey) string {
	b := make([]byte, 0, 64)
	b = append(append(append(b, MarkVariable...), '='), worker...)
	b = strconv.AppendUint(append(b, '/'), uint64(k.Run), 10)
	b = strconv.AppendUint(append(b, '.'), uint64(k.Task), 10)
	b = strconv.AppendUint(append(b, '.'), uint64(k.Attempt), 10)
	return string(b)
}

// markValues yields the values of the marks in an environment, as /proc shows it. A program may have
// added a mark to the one that it was started with, so there may be several.
func markValues(environ []byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		for entry := range bytes.SplitSeq(environ, []byte{0}) {
			if value, ok := bytes.CutPrefix(entry, []byte(MarkVariable+"=")); ok && !yield(string(value)) {
				return
			}
		}
	}
}

// findMark finds the mark of a worker in an environment. key is set when the mark is that of an
// attempt.
func findMark(environ []byte, worker string) (key *messages.AttemptKey, has bool) {
	for value := range markValues(environ) {
		attempt, ok := strings.CutPrefix(value, worker)
		if !ok {
			continue
		}
		if attempt == "" {
			return nil, true
		}
		var k messages.AttemptKey
		var rest string
		if n, _ := fmt.Sscanf(attempt+"\n", "/%d.%d.%d%s\n", &k.Run, &k.Task, &k.Attempt, &rest); n == 3 {
			return &k, true
		}
	}
	return nil, false
}

// findWorkerMark finds the mark of a worker of a data folder in an environment, and returns the
// worker's name.
func findWorkerMark(environ []byte, dataFolderID string) (worker string, has bool) {
	for value := range markValues(environ) {
		if name, ok := strings.CutPrefix(value, dataFolderID+"/"); ok {
			worker, _, _ = strings.Cut(name, "/")
			return worker, worker != ""
		}
	}
	return "", false
}

// sinceBoot returns the time since boot, in ns. It also runs while the machine sleeps.
func sinceBoot() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail since Linux 2.6.39
	return ts.Nano()
}

// newJournalHeader returns the header of this process's journal, without the mark.
func newJournalHeader() (*workerpb.JournalHeader, error) {
	boot, err := procfs.BootID()
	if err != nil {
		return nil, fmt.Errorf("worker: boot ID: %w", err)
	}
	own, err := procfs.Read(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("worker: start time: %w", err)
	}
	return &workerpb.JournalHeader{Format: journalFormat, BootId: boot, Pid: int64(own.PID), StartTicks: own.Ticks}, nil
}

// ignoreChildSignals stops the kernel from sending SIGCHLD to this process. Go's runtime handles each
// one on any thread, and so interrupts what that thread waits for, though the worker does not use the
// signal. The default action is set, not SIG_IGN: with SIG_IGN children could not be waited for.
func ignoreChildSignals() {
	var byDefault struct {
		handler, flags, restorer uintptr
		mask                     uint64
	}
	// An error leaves things as they are.
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&byDefault)), 0,
		unsafe.Sizeof(byDefault.mask), 0, 0)
}
