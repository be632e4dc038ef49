package executor

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// explainStart names what could not be started and why. The kernel returns only an errno. Its cause
// may be the working folder, the program, the interpreter that a script names, or a folder on the
// way to any of them. So these files are examined here, after the failure only. The error wraps err.
func (c *command) explainStart(err error) error {
	if e := explainWorkDir(c.dir); e != nil {
		return e
	}
	path, e := findProgram(c.path, c.searchPath, c.dir)
	if e != nil && !errors.Is(err, unix.E2BIG) {
		return e
	}
	if errors.Is(err, unix.E2BIG) {
		err = c.explainSize(err)
	} else {
		err = explainFile(c.resolvePath(path), err, c.resolvePath)
	}
	return fmt.Errorf("start %q: %w", c.argv[0], err)
}

// explainPatience bounds how long files are examined to explain a failure, because their file system
// may hang. maxExplaining is how many explanations may be under way at once.
const (
	explainPatience = 2 * time.Second
	maxExplaining   = 64
)

// explain is explainStart, unless that takes too long or the attempt is being ended: then the error
// is only the kernel's.
func (p *Process) explain(a *attempt, c *command, err error) error {
	plain := fmt.Errorf("start %q: %w", c.argv[0], err)
	select {
	case p.explainSlots <- struct{}{}:
	default:
		return plain
	}
	hurry := make(chan struct{})
	p.mu.Lock()
	if a.cause != causeNone {
		p.mu.Unlock()
		<-p.explainSlots
		return plain
	}
	a.cancelExplain = hurry
	p.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		done <- c.explainStart(err)
		<-p.explainSlots
	}()
	patience := time.NewTimer(explainPatience)
	defer patience.Stop()
	explained := plain
	select {
	case explained = <-done:
	case <-hurry:
	case <-patience.C:
	}
	p.mu.Lock()
	a.cancelExplain = nil
	p.mu.Unlock()
	return explained
}

// explainWorkDir returns what is wrong with a working folder, or nil.
func explainWorkDir(dir string) error {
	if dir == "" {
		return nil
	}
	st, err := os.Stat(dir)
	switch {
	case err != nil:
		return fmt.Errorf("working folder %q: %w", dir, explainPath(dir, kernelError(err)))
	case !st.IsDir():
		return fmt.Errorf("working folder %q: %w", dir, withCause(unix.ENOTDIR, "it is a file"))
	case unix.Access(dir, unix.X_OK) != nil:
		return fmt.Errorf("working folder %q: %w", dir, withCause(unix.EACCES, "user %d may not enter it (mode %04o)", os.Geteuid(), st.Mode().Perm()))
	}
	return nil
}

// resolvePath is where this process finds a path of the task's, which may be relative to the working
// folder.
func (c *command) resolvePath(path string) string {
	if c.dir == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(c.dir, path)
}

// explainFile says why the kernel answered err when it was to execute a file. It returns err itself
// when the file does not tell more. where returns the path of an interpreter.
func explainFile(file string, err error, where func(string) string) error {
	switch {
	case errors.Is(err, unix.ETXTBSY):
		return withCause(err, "the program is open for writing in another process")
	case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOEXEC) &&
		!errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP):
		return err
	}
	st, statErr := os.Stat(file)
	switch {
	case statErr != nil:
		return explainPath(file, err)
	case st.IsDir():
		return withCause(err, "it is a directory, not a program")
	case !st.Mode().IsRegular():
		return withCause(err, "it is not a regular file, so it cannot be executed")
	case errors.Is(err, unix.EACCES) && mountedNoExec(file):
		return withCause(err, "the file system that it is on is mounted noexec")
	case errors.Is(err, unix.EACCES) && unix.Access(file, unix.X_OK) != nil:
		return withCause(err, "the file is not executable for user %d (mode %04o)", os.Geteuid(), st.Mode().Perm())
	}
	head, readErr := readProgramHead(file)
	if readErr != nil {
		return err
	}
	if interpreter, ok := scriptInterpreter(head); ok {
		return explainInterpreter(interpreter, err, where)
	}
	switch {
	case errors.Is(err, unix.ENOEXEC):
		return explainFormat(file, head, err)
	case errors.Is(err, unix.ENOENT):
		if loader := missingLoader(file); loader != "" {
			return withCause(err, "its loader %q does not exist: the program is built for another system", loader)
		}
	}
	return err
}

// explainInterpreter says why the interpreter in the first line of a script does not start.
func explainInterpreter(interpreter string, err error, where func(string) string) error {
	if interpreter == "" {
		return withCause(err, "its first line #! names no interpreter")
	}
	st, statErr := os.Stat(where(interpreter))
	switch {
	case statErr != nil && strings.HasSuffix(interpreter, "\r"):
		return withCause(err, "its interpreter %q does not exist: the script has Windows line endings (CR LF); save it with LF only", interpreter)
	case statErr != nil:
		return withCause(err, "its interpreter %q does not exist or cannot be reached: %v", interpreter, explainPath(where(interpreter), kernelError(statErr)))
	case st.IsDir():
		return withCause(err, "its interpreter %q is a directory", interpreter)
	case mountedNoExec(where(interpreter)):
		return withCause(err, "the file system of its interpreter %q is mounted noexec", interpreter)
	case unix.Access(where(interpreter), unix.X_OK) != nil:
		return withCause(err, "its interpreter %q is not executable for user %d (mode %04o)", interpreter, os.Geteuid(), st.Mode().Perm())
	}
	if loader := missingLoader(where(interpreter)); loader != "" {
		return withCause(err, "the loader %q of its interpreter %q does not exist", loader, interpreter)
	}
	return withCause(err, "its interpreter %q does not start", interpreter)
}

// explainFormat says what kind of file the kernel could not execute.
func explainFormat(file string, head []byte, err error) error {
	switch {
	case len(head) == 0:
		return withCause(err, "the file is empty")
	case bytes.HasPrefix(head, []byte("\xef\xbb\xbf#!")):
		return withCause(err, "a byte order mark (UTF-8 BOM) precedes its #! line")
	case bytes.HasPrefix(head, []byte("MZ")):
		return withCause(err, "it is a Windows program")
	case !bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		return withCause(err, "it is neither a program nor a script that begins with #!")
	}
	f, openErr := elf.Open(file)
	if openErr != nil {
		return withCause(err, "the program is damaged: %v", openErr)
	}
	defer f.Close()
	machine := strings.ToLower(strings.TrimPrefix(f.Machine.String(), "EM_"))
	return withCause(err, "the program is built for %s, this machine is %s", machine, runtime.GOARCH)
}

// explainSize says which text exceeds the limits of the kernel.
func (c *command) explainSize(err error) error {
	for i, s := range c.argv {
		if len(s) >= maxArgumentBytes() {
			return withCause(err, "argument %d has %d bytes, the kernel takes at most %d in one argument", i, len(s), maxArgumentBytes()-1)
		}
	}
	for _, s := range c.env {
		if len(s) >= maxArgumentBytes() {
			return withCause(err, "the environment's entry %.100q has %d bytes, the kernel takes at most %d in one entry", variableName(s), len(s), maxArgumentBytes()-1)
		}
	}
	return withCause(err, "its arguments and environment have %d bytes, the kernel takes at most %d together (a quarter of the limit on the stack)", c.startBytes(), maxStartBytes())
}

// startBytes is the size of the arguments and the environment, with their NULs and pointers.
func (c *command) startBytes() (n int) {
	for _, list := range [...][]string{c.argv, c.env} {
		for _, s := range list {
			n += len(s) + 9
		}
	}
	return n
}

// explainPath says which part of a path is missing, is not a directory, or may not be passed. err is
// what the kernel answered for the whole path.
func explainPath(path string, err error) error {
	if !filepath.IsAbs(path) {
		if wd, wdErr := os.Getwd(); wdErr == nil {
			path = filepath.Join(wd, path)
		}
	}
	clean := filepath.Clean(path)
	for i := 1; i < len(clean); i++ {
		if clean[i] != '/' {
			continue
		}
		part := clean[:i]
		st, statErr := os.Stat(part)
		switch {
		case errors.Is(statErr, unix.ENOENT):
			return withCause(err, "%q does not exist", part)
		case statErr != nil:
			return err
		case !st.IsDir():
			return withCause(unix.ENOTDIR, "%q is not a directory", part)
		case unix.Access(part, unix.X_OK) != nil:
			return withCause(unix.EACCES, "user %d may not enter %q (mode %04o)", os.Geteuid(), part, st.Mode().Perm())
		}
	}
	if st, linkErr := os.Lstat(clean); linkErr == nil && st.Mode()&os.ModeSymlink != 0 {
		target, _ := os.Readlink(clean)
		return withCause(err, "it is a symbolic link to %q, which does not exist", target)
	}
	return err
}

// programHeadBytes is how much of a file the kernel reads to recognize its format.
const programHeadBytes = 256

func readProgramHead(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, programHeadBytes))
}

// scriptInterpreter returns the interpreter in a script's first line, as the kernel reads it. ok is
// false when the file is not a script.
func scriptInterpreter(head []byte) (interpreter string, ok bool) {
	line, ok := bytes.CutPrefix(head, []byte("#!"))
	if !ok {
		return "", false
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	line = bytes.TrimLeft(line, " \t")
	if i := bytes.IndexAny(line, " \t\x00"); i >= 0 {
		line = line[:i]
	}
	return string(line), true
}

// missingLoader is the dynamic loader that a program names and that does not exist, or "".
func missingLoader(file string) string {
	f, err := elf.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < unix.PathMax {
			name := make([]byte, p.Filesz)
			if _, err := p.ReadAt(name, 0); err != nil {
				continue
			}
			loader := string(bytes.TrimRight(name, "\x00"))
			if _, err := os.Stat(loader); err != nil {
				return loader
			}
		}
	}
	return ""
}

func mountedNoExec(file string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(file, &fs) == nil && fs.Flags&unix.MS_NOEXEC != 0
}

// withCause returns the kernel's error with its cause.
func withCause(err error, format string, args ...any) error {
	return fmt.Errorf("%w: %s", err, fmt.Sprintf(format, args...))
}

// kernelError returns the kernel's error without the path that package os puts before it.
func kernelError(err error) error {
	if path, ok := errors.AsType[*os.PathError](err); ok {
		return path.Err
	}
	return err
}

// findProgram looks a name without a slash up in path, as the child has done before: relative
// entries are under dir.
func findProgram(name, path, dir string) (string, error) {
	if strings.IndexByte(name, '/') >= 0 {
		return name, nil
	}
	var denied string
	for rest := path; rest != ""; {
		var entry string
		entry, rest, _ = strings.Cut(rest, ":")
		if entry == "" {
			entry = "."
		}
		// The task executes file in dir, but this process looks from its own folder.
		file := entry + "/" + name
		look := file
		if entry[0] != '/' && dir != "" {
			look = dir + "/" + file
		}
		var st unix.Stat_t
		if unix.Stat(look, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		if unix.Access(look, unix.X_OK) != nil {
			denied = look
			continue
		}
		return file, nil
	}
	if denied != "" {
		return "", fmt.Errorf("start %q: %q: %w", name, denied, explainFile(denied, unix.EACCES, nil))
	}
	if strings.ContainsAny(name, " \t\r\n") {
		return "", fmt.Errorf("start %q: not found in PATH %s: command is a list of arguments, whose first is the program's name; a line for the shell is a commandString", name, path)
	}
	return "", fmt.Errorf("start %q: not found in PATH %s", name, path)
}
