package remote

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/worker"
)

// self is this process's program, even when the file was replaced meanwhile.
const self = "/proc/self/exe"

// program returns the path of the worker's program.
func program(binary string) (string, error) {
	own, err := os.Executable()
	if err != nil {
		return "", err
	}
	if binary == "" {
		binary = own
	}
	// A server whose file was replaced starts a worker of its own version still.
	if binary == own {
		there, err := os.Stat(own)
		if running, serr := os.Stat(self); serr == nil && (err != nil || !os.SameFile(there, running)) {
			return self, nil
		}
	}
	return binary, nil
}

// identity is the version with what else makes a worker another one: its program's
// file and its settings.
func identity(binary string, s worker.Settings) (string, error) {
	st, err := os.Stat(binary)
	if err != nil {
		return "", err
	}
	h := fnv.New64a()
	if err := json.NewEncoder(h).Encode(s); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %d-%x %x", s.Version, st.Size(), st.ModTime().UnixNano(), h.Sum64()), nil
}

// spawn starts a worker in a session of its own, with its folder's lock and socket.
func (r *Remote) spawn() (*peer, error) {
	f, listener, err := worker.Make(r.cfg.Dir, r.cfg.Settings)
	if err != nil {
		return nil, err
	}
	p := newPeer(r, f.Path)
	err = func() error {
		defer listener.Close()
		socket, err := listener.File()
		if err != nil {
			return err
		}
		defer socket.Close()
		log, err := os.OpenFile(f.LogPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer log.Close()
		// What this process has inherited itself is no business of the worker and its tasks.
		_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // older kernels cannot
		p.cmd = &exec.Cmd{
			Path: r.cfg.Binary, Args: append([]string{"caravan"}, append(slices.Clone(r.cfg.Args), "--name", f.Name())...),
			Env: workerEnvironment(os.Environ(), f.Name()), Dir: "/",
			Stdout: log, Stderr: log, ExtraFiles: []*os.File{f.Lock, socket},
			SysProcAttr: &syscall.SysProcAttr{Setsid: true},
		}
		return p.cmd.Start()
	}()
	if err != nil {
		f.Remove()
		return nil, fmt.Errorf("worker not started: %w", err)
	}
	f.Release() // the worker holds it
	return p, nil
}

// workerEnvironment is this process's own, from which tasks get their clean set, with
// the worker's mark. A worker's heap is small: a little more collecting keeps it so. Its
// threads hang in the kernel as they fork; with as many again to go on, the runtime's
// monitor sleeps, which otherwise takes their place away from them 10 times a task.
func workerEnvironment(own []string, name string) []string {
	env := slices.DeleteFunc(slices.Clone(own), func(kv string) bool {
		return strings.HasPrefix(kv, worker.Mark+"=")
	})
	set := func(name, value string) {
		if os.Getenv(name) == "" {
			env = append(env, name+"="+value)
		}
	}
	set("GOGC", "200")
	set("GOMAXPROCS", strconv.Itoa(max(2*runtime.NumCPU(), runtime.GOMAXPROCS(0))))
	return append(env, worker.Mark+"="+name)
}

// memorySince reads, or begins, the file that says since when every start is in some
// worker's journal: since ever in this boot of the machine, if it is of this boot.
func memorySince(dir string) (since int64, _ error) {
	boot, err := worker.BootID()
	if err != nil {
		return 0, err
	}
	path := filepath.Join(dir, "since")
	if text, err := os.ReadFile(path); err == nil {
		var then string
		if n, _ := fmt.Sscanf(string(text), "%s %d\n", &then, &since); n == 2 && then == boot {
			return since, nil
		}
	}
	since = time.Now().UnixNano()
	temporary := path + ".new"
	if err := os.WriteFile(temporary, fmt.Appendf(nil, "%s %d\n", boot, since), 0o600); err != nil {
		return 0, err
	}
	return since, os.Rename(temporary, path)
}
