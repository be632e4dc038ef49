package slurm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// logFolder is the folder below Config.Dir with Slurm's messages on jobs.
const logFolder = "log"

// Every task of this user, and every user who shares the folder, can write to these files. So reads
// are bounded by what the files may hold: a few words, or a saved report, whose inline output grows
// by a third in JSON. The files are opened by vfs, which refuses pipes and devices.
const maxNoteBytes = 64 << 10

// maxReportBytes bounds the file verdict: a record with two inline outputs, and texts.
func (s *Slurm) maxReportBytes() int64 { return 1<<20 + 4*int64(s.cfg.InlineMax) }

// folder is an attempt's folder, as an absolute path. See the package doc for its files. Its methods read
// the disk at each call and keep no state. They are called by the reconciler, and by the goroutine that
// collects the attempt.
//
// The modification times of begun and end are when the attempt began and ended. It depends on the file
// system whose clock they show: that of the node or that of the file server.
type folder string

// folder returns the folder of an attempt.
func (s *Slurm) folder(key messages.AttemptKey) folder {
	return folder(filepath.Join(s.cfg.Dir, folderName(key)))
}

// folderName is the attempt's folder below Config.Dir. It consists of digits, '/' and '.'.
func folderName(key messages.AttemptKey) string {
	return fmt.Sprintf("%d/%d.%d", key.Run, key.Task, key.Attempt)
}

// path returns the path of a file of the folder.
func (f folder) path(name string) string { return filepath.Join(string(f), name) }

// create creates the folder, and that of its run. The error wraps fs.ErrExist when the attempt's exists:
// then a former server has accepted the order.
func (f folder) create() (err error) {
	for range 3 { // another attempt may remove the run's folder between the two calls
		if err = os.MkdirAll(filepath.Dir(string(f)), 0o700); err != nil {
			return err
		}
		if err = os.Mkdir(string(f), 0o700); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

// remove deletes the folder, and its run's folder when that is empty.
func (f folder) remove() error {
	err := os.RemoveAll(string(f))
	_ = os.Remove(filepath.Dir(string(f))) // fails while it holds other attempts
	return err
}

// claimUnstarted creates begun, so that the attempt can never begin. It returns false when the
// attempt has begun. The job does the same before it runs the task, and of both only one can create the
// file: open(2) with O_EXCL is atomic on a local file system and over NFS from version 3 on. It may be
// called again: a claim of the server stands.
func (f folder) claimUnstarted() (bool, error) {
	file, err := os.OpenFile(f.path("begun"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		b, ok := f.readStart()
		return ok && b.byServer, nil
	case err != nil:
		return false, err
	}
	_, err = file.WriteString(serverClaim)
	return true, errors.Join(err, file.Close())
}

// serverClaim is what the server writes into begun, in the place of a job and a node.
const serverClaim = "- -\n"

// startNote is the content of begun, such as "1234_0 node7".
type startNote struct {
	byServer bool   // the server has claimed it: the attempt will never begin
	job      string // as squeue prints it; "" when it is not written yet
	node     string // SLURMD_NODENAME
	at       int64  // ns since the epoch; 0 when it cannot be read
}

// readStart reads begun. ok is false while the file is missing, or cannot be read. The file exists for a
// moment before it has content, since the shell creates it first.
func (f folder) readStart() (b startNote, ok bool) {
	text, err := readFileAt(f.path("begun"), 0, maxNoteBytes)
	if err != nil {
		return b, false
	}
	_, _ = fmt.Sscan(string(text), &b.job, &b.node) // an error: they are not all written yet
	b.byServer = b.job == "-"
	if st, err := os.Stat(f.path("begun")); err == nil {
		b.at = st.ModTime().UnixNano()
	}
	return b, true
}

// endNote is the content of end: the exit code, and what the times of sh prints:
//
//	0
//	0m0.003s 0m0.001s
//	0m1.250s 0m0.020s
type endNote struct {
	rc           int32         // as wait of sh gives it: 128 + the signal's number after a signal
	at           int64         // ns since the epoch; 0 when it cannot be read
	user, system time.Duration // CPU time of the script's children, 0 when times was not understood
}

// cpuTimes matches a line of times: minutes and seconds of user and system time.
var cpuTimes = regexp.MustCompile(`(\d+)m([\d.]+)s\s+(\d+)m([\d.]+)s`)

// readEnd reads end. ok is false while the file is missing or lacks the exit code. The script renames the
// file to its name, so it is never half written.
func (f folder) readEnd() (e endNote, ok bool) {
	text, err := readFileAt(f.path("end"), 0, maxNoteBytes)
	if err != nil {
		return e, false
	}
	line, times, _ := strings.Cut(string(text), "\n")
	rc, err := strconv.Atoi(line)
	if err != nil {
		return e, false
	}
	e.rc = int32(rc)
	// The first line of times is of the script itself, the second of its children.
	if m := cpuTimes.FindAllStringSubmatch(times, 2); len(m) == 2 {
		e.user, e.system = cpuTime(m[1][1], m[1][2]), cpuTime(m[1][3], m[1][4])
	}
	if st, err := os.Stat(f.path("end")); err == nil {
		e.at = st.ModTime().UnixNano()
	}
	return e, true
}

// cpuTime returns the duration of a time such as 1m2.345s, given as minutes and seconds.
func cpuTime(minutes, seconds string) time.Duration {
	m, _ := strconv.Atoi(minutes)
	s, _ := strconv.ParseFloat(seconds, 64)
	return time.Duration(m)*time.Minute + time.Duration(s*float64(time.Second))
}

// readWord returns the text of a file without its line end, such as "timed out" for cause; "" when the
// file is missing.
func (f folder) readWord(name string) string {
	text, _ := readFileAt(f.path(name), 0, maxNoteBytes)
	return strings.TrimSpace(string(text))
}

// writeJob notes the job that the attempt is about to be submitted as, in the form of "NAME 0". It
// replaces the note of an earlier submission, whose job then finds another name and exits.
func (f folder) writeJob(name string, index int) error {
	return writeFile(f.path("job"), fmt.Appendf(nil, "%s %d\n", name, index))
}

// readJob reads what writeJob has written. ok is false when the attempt was never submitted.
func (f folder) readJob() (name string, index int, ok bool) {
	words := strings.Fields(f.readWord("job"))
	if len(words) != 2 {
		return "", 0, false
	}
	index, err := strconv.Atoi(words[1])
	return words[0], index, err == nil
}

// savedReport is a final report, kept as JSON until it is acknowledged. It lacks Report.Stdout, which
// repeatReport reads again, and Report.StartDelay, which this executor does not know.
type savedReport struct {
	At     int64
	Record messages.AttemptRecord
}

// saveReport saves a final report before it is made, so that each server reports the same end.
func (f folder) saveReport(r *executor.Report) error {
	text, err := json.Marshal(savedReport{r.At, r.Record})
	if err != nil {
		return err
	}
	return writeFile(f.path("verdict"), text)
}

// readReport reads a saved report of at most that many bytes. A longer one is cut, and so refused as JSON.
func (f folder) readReport(most int64) (v savedReport, ok bool) {
	text, err := readFileAt(f.path("verdict"), 0, most)
	return v, err == nil && json.Unmarshal(text, &v) == nil
}

// readFileAt reads up to n bytes of a file from an offset. A negative offset counts from the end, or from
// the beginning of a file that is shorter.
func readFileAt(path string, offset, n int64) ([]byte, error) {
	file, err := vfs.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if offset < 0 {
		info, err := file.Stat()
		if err != nil {
			return nil, err
		}
		offset = max(info.Size()+offset, 0)
	}
	return io.ReadAll(io.NewSectionReader(file, offset, n))
}

// writeFile writes a file atomically: a reader sees the old content or the new one. It does not sync, so
// a crash of the file server may lose a note that was written shortly before.
func writeFile(path string, text []byte) error {
	f, err := vfs.OpenNoFollow(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// listAttempts lists the attempts of some runs that have a folder. Names that are not those of attempts,
// such as log and lock, are skipped.
func (s *Slurm) listAttempts(of func(messages.RunID) bool) (keys []messages.AttemptKey, err error) {
	runs, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return nil, err
	}
	for _, r := range runs {
		run, err := strconv.ParseUint(r.Name(), 10, 64)
		if err != nil || !of(messages.RunID(run)) {
			continue
		}
		folders, err := os.ReadDir(filepath.Join(s.cfg.Dir, r.Name()))
		if err != nil {
			return nil, err
		}
		for _, f := range folders {
			task, attempt, _ := strings.Cut(f.Name(), ".")
			t, err1 := strconv.ParseUint(task, 10, 32)
			a, err2 := strconv.ParseUint(attempt, 10, 32)
			if err1 == nil && err2 == nil {
				keys = append(keys, messages.AttemptKey{Run: messages.RunID(run), Task: uint32(t), Attempt: uint32(a)})
			}
		}
	}
	return keys, nil
}
