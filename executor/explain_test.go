package executor_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// A command string is the text of /bin/sh -c, whatever its first bytes and its length.
func TestCommandStringIsPassedUnchanged(t *testing.T) {
	r := newRig(t, nil)
	long := "#" + strings.Repeat("x", 143<<10) + "\n"
	descriptors := `for f in /proc/$$/fd/*; do n=${f##*/}; [ -L $f ] && [ $n -ge 3 ] && [ $n -le 9 ] && echo "open: $n"; done; :`
	for _, c := range []struct {
		name, text  string
		rc          int32
		out, errOut string
	}{
		{"a dash", "-e echo hi", 127, "", "-e: not found"},
		{"a plus", "+x", 127, "", "+x: not found"},
		{"two dashes", "--", 127, "", "--: not found"},
		{"empty", "", 0, "", ""},
		{"comments only", "# nothing\n# else", 0, "", ""},
		{"a space", " echo hi", 0, "hi\n", ""},
		{"long", long + `echo "$0 $# $-"; read -r x || echo no input; exit 7`, 7, "/bin/sh 0 \nno input\n", ""},
		{"long, descriptors", long + descriptors, 0, "", ""},
		{"long, descriptors of a child", long + `exec /bin/sh -c '` + descriptors + `'`, 0, "", ""},
		{"long, in one line", "echo " + strings.Repeat("x", 1<<20) + " | wc -c", 0, "1048577\n", ""},
		{"long, with a dash", "-e echo hi\n" + long, 127, "", "-e: not found"},
		{"long, ended by an error", long + "set -e; false; echo no", 1, "", ""},
		{"long, with a trap", long + "trap 'echo bye' EXIT; exit 3", 3, "bye\n", ""},
	} {
		rec := r.runShell(c.text).Record
		if rec.RC != c.rc || r.readOutput(rec.Stdout) != c.out || !strings.Contains(r.readOutput(rec.Stderr), c.errOut) {
			t.Errorf("%s: rc %d, %q, %q: %s; want rc %d, %q, %q", c.name, rec.RC, r.readOutput(rec.Stdout), r.readOutput(rec.Stderr), rec.ExecutorLog, c.rc, c.out, c.errOut)
		}
	}
}

// The log names the real cause, which the kernel's errno does not.
func TestStartFailureNamesItsCause(t *testing.T) {
	r := newRig(t, nil)
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(r.dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := filepath.Join(r.dir, "link")
	if err := os.Symlink("/no/where", link); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(r.dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o777); err != nil {
		t.Fatal(err)
	}
	plain := write("plain", "#!/bin/sh\n", 0o644)
	for _, c := range []struct {
		program string
		dir     string
		want    string
	}{
		{write("crlf", "#!/bin/sh\r\necho hi\r\n", 0o755), "", `its interpreter "/bin/sh\r" does not exist: the script has Windows line endings (CR LF)`},
		{write("missing", "#! /opt/no/python3 -u\n", 0o755), "", `its interpreter "/opt/no/python3" does not exist or cannot be reached: no such file or directory: "/opt/no" does not exist`},
		{write("relative", "#!no/shell\n", 0o755), r.dir, `its interpreter "no/shell" does not exist`},
		{write("folder", "#!/etc\n", 0o755), "", `its interpreter "/etc" is a directory`},
		{write("denied", "#!"+plain+"\n", 0o755), "", `its interpreter "` + plain + `" is not executable`},
		{write("nobody", "#!\n", 0o755), "", `its first line #! names no interpreter`},
		{write("text", "echo hi\n", 0o755), "", `exec format error: it is neither a program nor a script that begins with #!`},
		{write("bom", "\xef\xbb\xbf#!/bin/sh\n", 0o755), "", `a byte order mark (UTF-8 BOM) precedes its #! line`},
		{write("empty", "", 0o755), "", `exec format error: the file is empty`},
		{write("windows", "MZ\x90\x00", 0o755), "", `it is a Windows program`},
		{write("foreign", string(elfFor(0xB7)), 0o755), "", `the program is built for aarch64, this machine is`},
		{write("loaderless", string(elfWithLoader(t, "/lib/ld-none.so.1")), 0o755), "", `its loader "/lib/ld-none.so.1" does not exist: the program is built for another system`},
		{plain, "", `permission denied: the file is not executable for user`},
		{"/etc", "", `permission denied: it is a directory, not a program`},
		{fifo, "", `it is not a regular file`},
		{plain + "/x", "", `not a directory: "` + plain + `" is not a directory`},
		{link, "", `it is a symbolic link to "/no/where", which does not exist`},
		{"/bin/true", plain, `working folder "` + plain + `": not a directory: it is a file`},
		{"/bin/true", plain + "/x", `working folder "` + plain + `/x": not a directory: "` + plain + `" is not a directory`},
		{"/bin/true", r.dir + "/a/b", `working folder "` + r.dir + `/a/b": no such file or directory: "` + r.dir + `/a" does not exist`},
		{"/bin/true", link, `working folder "` + link + `": no such file or directory: it is a symbolic link to "/no/where"`},
		{"./gone", r.dir, `start "./gone": no such file or directory`},
		{"echo hi", "", `command is a list of arguments, whose first is the program's name; a line for the shell is a commandString`},
	} {
		key := id(2000 + uint32(marks.Add(1)))
		r.Start(executor.Order{Key: key, Command: []string{c.program}, Dir: c.dir, Environment: []string{r.mark}})
		rec := r.WaitFinal(key).Record
		if rec.Result != messages.AttemptNotStarted || rec.RC != -1 || !strings.Contains(rec.ExecutorLog, c.want) {
			t.Errorf("%s in %q: %q, want %q", c.program, c.dir, rec.ExecutorLog, c.want)
		}
	}
}

// A program that is still being written is tried again for a moment.
func TestBusyProgramIsRetried(t *testing.T) {
	r := newRig(t, nil)
	text, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.dir, "busy")
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	task := uint32(0)
	start := func() messages.AttemptKey {
		task++
		r.Start(executor.Order{Key: id(task), Command: []string{path}, Environment: []string{r.mark}})
		return id(task)
	}
	// The moment is 310 ms, so the last try may come before the writer ends on a busy machine.
	testenv.RepeatWithin(t, testenv.Patience, "a program that is written no more starts", func() bool {
		writer, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer writer.Close()
		if rec := r.WaitFinal(start()).Record; rec.RC != -1 || !strings.Contains(rec.ExecutorLog, "text file busy: the program is open for writing in another process") {
			t.Errorf("%+v", rec)
		}
		key := start()
		writer.Close()
		return r.WaitFinal(key).Record.Result == messages.AttemptSucceeded
	})
}

// The error names the mount. The test needs the right to mount.
func TestNoExecMountIsNamed(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_NOEXEC, ""); err != nil {
		t.Skip("cannot mount here: ", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, nil)
	r.Start(executor.Order{Key: id(1), Command: []string{path}})
	if rec := r.WaitFinal(id(1)).Record; !strings.Contains(rec.ExecutorLog, "the file system that it is on is mounted noexec") {
		t.Errorf("%+v", rec)
	}
}

// elfFor returns the header of a program for a machine (EM_AARCH64 is 0xB7).
func elfFor(machine byte) []byte {
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	b[16], b[18], b[20], b[52], b[54], b[58] = 2, machine, 1, 64, 56, 64
	return b
}

// elfWithLoader returns this machine's /bin/true, with the name of another loader.
func elfWithLoader(t *testing.T, loader string) []byte {
	t.Helper()
	text, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(text, []byte("/lib64/ld-linux"))
	if i < 0 {
		t.Skip("/bin/true has no loader of the usual name")
	}
	end := i + bytes.IndexByte(text[i:], 0)
	if end-i < len(loader) {
		t.Fatalf("%q is too short", text[i:end])
	}
	copy(text[i:end], loader+strings.Repeat("\x00", end-i-len(loader)))
	return text
}
