package executor

import (
	"fmt"
	"os/user"
	"strconv"
	"strings"
)

func itoa(v int64) string { return strconv.FormatInt(v, 10) }

// BaseEnvironment is all that a task, and the process that starts it, gets of the
// environment of this one: PATH, HOME, LANG, TMPDIR and USER.
func BaseEnvironment(getenv func(string) string) []string { return cleanEnvironment(getenv) }

// cleanEnvironment is BaseEnvironment.
func cleanEnvironment(getenv func(string) string) []string {
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
func environment(base []string, o *Order) ([]string, error) {
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

// TaskEnvironment is what an order's process gets: the clean set, of which getenv may
// know better values, the attempt's names and the order's own entries, each name
// once. It is for executors that start processes by other means than Process.
func TaskEnvironment(getenv func(string) string, o *Order) ([]string, error) {
	return environment(cleanEnvironment(getenv), o)
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
