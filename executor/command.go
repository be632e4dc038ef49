package executor

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// command is an order in the kernel's terms.
type command struct {
	path       string
	searchPath string // the folders in which the child looks path up; "" = path is not a bare name
	argv       []string
	env        []string
	dir        string
	scriptText string // the text that the shell reads from scriptFD; "" = the text is an argument
}

// scriptFD is the descriptor on which a shell finds a text that is too long for an argument.
const scriptFD = 3

// ShellCommand returns the argv that runs a text by the shell. The text may begin with a dash. If
// sourced is not "", the shell reads the text from this file as if it were its argument, with the
// same $0 and parameters.
func ShellCommand(text, sourced string) []string {
	if sourced != "" {
		text = ". " + sourced
	}
	if text != "" && (text[0] == '-' || text[0] == '+') { // not an option of the shell
		return []string{"/bin/sh", "-c", "--", text}
	}
	return []string{"/bin/sh", "-c", text}
}

// ExceedsArgumentLimit tells whether a text is too long for an argument.
func ExceedsArgumentLimit(text string) bool { return len(text) >= maxArgumentBytes() }

// maxArgumentBytes is the most that one argument may have, including its final NUL.
func maxArgumentBytes() int { return 32 * os.Getpagesize() }

// maxStartBytes is the most that all arguments and the environment may have together, with their
// NULs and pointers. It depends on this process's stack limit.
func maxStartBytes() int {
	const least, most = 128 << 10, 6 << 20
	var stack unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_STACK, &stack) != nil || stack.Cur/4 > most {
		return most
	}
	return max(int(stack.Cur/4), least)
}

// MaxArgumentBytes is the most that the arguments and the environment of an order may have together
// on this machine. The rest is for what every task gets.
func MaxArgumentBytes() int {
	const clean = 16 << 10
	return maxStartBytes() - clean
}

// newCommand resolves the order's environment, argv and program. It does not touch the file system,
// which may hang: the child enters the working folder and finds the program by the task's own PATH.
// The error is a sentence for the user.
func newCommand(base []string, o *Order) (c command, err error) {
	c = command{argv: o.Command, dir: o.Dir}
	if o.UseShell {
		if strings.IndexByte(o.Shell, 0) >= 0 {
			return c, errors.New("the command string holds a NUL byte")
		}
		c.argv = ShellCommand(o.Shell, "")
		if ExceedsArgumentLimit(o.Shell) {
			c.argv, c.scriptText = ShellCommand("", "/proc/self/fd/"+strconv.Itoa(scriptFD)), o.Shell
		}
	}
	if len(c.argv) == 0 || c.argv[0] == "" {
		return c, errors.New("the command is empty")
	}
	if c.env, err = TaskEnvironment(base, o); err != nil {
		return c, err
	}
	for i, s := range c.argv {
		if strings.IndexByte(s, 0) >= 0 {
			return c, fmt.Errorf("argument %d of the command holds a NUL byte", i)
		}
	}
	for _, s := range c.env {
		if strings.IndexByte(s, 0) >= 0 {
			return c, fmt.Errorf("environment: the value of %q holds a NUL byte", variableName(s))
		}
	}
	if strings.IndexByte(c.dir, 0) >= 0 {
		return c, fmt.Errorf("working folder %q holds a NUL byte", c.dir)
	}
	c.path = c.argv[0]
	if strings.IndexByte(c.path, '/') < 0 {
		if c.searchPath = lookupVariable(c.env, "PATH"); c.searchPath == "" {
			_, err = findProgram(c.path, "", c.dir)
		}
	}
	return c, err
}

// BaseEnvironment is the part of this process's environment that a task gets, and the process that
// starts it: PATH, HOME, LANG, TMPDIR and USER. Variables that getenv does not know have defaults.
func BaseEnvironment(getenv func(string) string) []string {
	home, name := "/", "nobody"
	if u, err := user.Current(); err == nil {
		home, name = u.HomeDir, u.Username
	}
	env := make([]string, 0, 5)
	for _, kv := range [][2]string{
		{"PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		{"HOME", home},
		{"LANG", "C.UTF-8"},
		{"TMPDIR", "/tmp"},
		{"USER", name},
	} {
		env = append(env, kv[0]+"="+cmp.Or(getenv(kv[0]), kv[1]))
	}
	return env
}

// TaskEnvironment returns the environment of an order's process: the base, the attempt's names and
// the order's own entries. Each name occurs once, since the kernel would pass on duplicates, of
// which most programs take the first. The error names an entry that is not of the form K=V.
func TaskEnvironment(base []string, o *Order) ([]string, error) {
	env := make([]string, 0, len(base)+4+len(o.Environment))
	env = append(env, base...)
	env = append(env,
		"CARAVAN_RUN_ID="+strconv.FormatUint(uint64(o.Key.Run), 10),
		"CARAVAN_TASK="+o.Name,
		"CARAVAN_ATTEMPT="+strconv.FormatUint(uint64(o.Key.Attempt), 10))
	if len(o.Environment) == 0 {
		return env, nil
	}
	at := make(map[string]int, cap(env))
	for i, kv := range env {
		at[variableName(kv)] = i
	}
	for _, kv := range o.Environment {
		k := variableName(kv)
		if k == "" {
			return nil, fmt.Errorf("environment: %q is not of the form K=V", kv)
		}
		if i, ok := at[k]; ok {
			env[i] = kv
			continue
		}
		at[k] = len(env)
		env = append(env, kv)
	}
	return env, nil
}

// setVariable adds the entry, or replaces the one of the same name.
func setVariable(env []string, entry string) []string {
	name := variableName(entry)
	if i := slices.IndexFunc(env, func(kv string) bool { return variableName(kv) == name }); i >= 0 {
		env[i] = entry
		return env
	}
	return append(env, entry)
}

// variableName is the text before the first '='; "" without a '=' or name.
func variableName(kv string) string { return kv[:max(strings.IndexByte(kv, '='), 0)] }

// lookupVariable returns the value of the variable k.
func lookupVariable(env []string, k string) string {
	for _, kv := range env {
		if len(kv) > len(k) && kv[len(k)] == '=' && kv[:len(k)] == k {
			return kv[len(k)+1:]
		}
	}
	return ""
}
