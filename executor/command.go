package executor

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// command is an order in the kernel's terms.
type command struct {
	path       string
	searchPath string // the folders in which the child looks path up; "" = it is a path already
	argv       []string
	env        []string
	dir        string
	scriptText string // what the shell reads from scriptFD; "" = it has its text as an argument
}

// scriptFD is the descriptor on which a shell finds a text that is too long for an
// argument.
const scriptFD = 3

// ShellCommand returns the argv that runs a text, which may begin with a dash, by the
// shell. sourced, if not "", is a file that holds the text instead: the shell reads it as
// if it were its own text, so that $0 and the parameters are the same.
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

// maxArgument is how many bytes an argument may have, with the NUL at its end.
func maxArgumentBytes() int { return 32 * os.Getpagesize() }

// maxStart is how many bytes all arguments and the environment may have together, with
// their NULs and pointers, if the limit on the stack is this process's own.
func maxStartBytes() int {
	const least, most = 128 << 10, 6 << 20
	var stack unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_STACK, &stack) != nil || stack.Cur/4 > most {
		return most
	}
	return max(int(stack.Cur/4), least)
}

// MaxArgumentBytes is how many bytes the arguments and the environment of an order may have
// together on this machine. The rest is for what every task gets.
func MaxArgumentBytes() int {
	const clean = 16 << 10
	return maxStartBytes() - clean
}

// newCommand resolves the order: its environment, its argv, and where its program is. It
// asks no file system, which may hang: the child enters the folder and finds the program
// by the task's own PATH. The error says what is wrong in a sentence for the user.
func newCommand(base []string, o *Order, dir string) (c command, err error) {
	if o.Dir != "" {
		dir = o.Dir
	}
	c = command{argv: o.Command, dir: dir}
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

// BaseEnvironment is all that a task, and the process that starts it, gets of the
// environment of this one: PATH, HOME, LANG, TMPDIR and USER.
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
		v := getenv(kv[0])
		if v == "" {
			v = kv[1]
		}
		env = append(env, kv[0]+"="+v)
	}
	return env
}

// environment is the clean set, the attempt's names and the order's own entries,
// each name once: the kernel would pass both of two, and most programs take the
// first. The error names an entry that is none.
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

// mark adds the entry, in the place of an order's own of that name.
func setVariable(env []string, entry string) []string {
	name := variableName(entry)
	for i, kv := range env {
		if variableName(kv) == name {
			env[i] = entry
			return env
		}
	}
	return append(env, entry)
}

// key is what stands before the first '='; "" when nothing does.
func variableName(kv string) string { return kv[:max(strings.IndexByte(kv, '='), 0)] }

// lookup returns the value of the last entry named k, as environment leaves one.
func lookupVariable(env []string, k string) string {
	for _, kv := range env {
		if len(kv) > len(k) && kv[len(k)] == '=' && kv[:len(k)] == k {
			return kv[len(k)+1:]
		}
	}
	return ""
}
