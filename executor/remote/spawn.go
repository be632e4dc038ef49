package remote

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/vfs"
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
		// It must be known before anything can run: a folder that is removed is missed then.
		if err := r.registry.note(f.Name(), worker.Identity{}); err != nil {
			return fmt.Errorf("registry of workers: %w", err)
		}
		socket, err := listener.File()
		if err != nil {
			return err
		}
		defer socket.Close()
		log, err := vfs.OpenOwn(f.LogPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer log.Close()
		// What this process has inherited itself is no business of the worker and its tasks.
		closeOnExec()
		p.cmd = &exec.Cmd{
			Path: r.cfg.Binary, Args: append([]string{"caravan"}, append(slices.Clone(r.cfg.Args), "--name", f.Name())...),
			Env: workerEnvironment(worker.MarkValue(r.cfg.Settings.Folder, f.Name())), Dir: "/",
			Stdout: log, Stderr: log, ExtraFiles: []*os.File{f.Lock, socket},
			SysProcAttr: &syscall.SysProcAttr{Setsid: true},
		}
		return p.cmd.Start()
	}()
	if err != nil {
		if serr := r.registry.strike(f.Name()); serr != nil {
			r.log.Warn("registry of workers not written", "err", serr)
		}
		f.Remove()
		return nil, fmt.Errorf("worker not started: %w", err)
	}
	f.Release() // the worker holds it
	if p.process, err = worker.Identify(p.cmd.Process.Pid); err == nil {
		err = r.registry.note(f.Name(), p.process)
	}
	if err != nil {
		r.log.Warn("registry of workers does not have the new one's process", "err", err)
	}
	return p, nil
}

// closeOnExec keeps the descriptors that this process has inherited itself from the
// worker and its tasks. Kernels before 5.11 cannot do it at once.
func closeOnExec() {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	names, _ := os.ReadDir("/proc/self/fd")
	for _, name := range names {
		if fd, err := strconv.Atoi(name.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// workerEnvironment is as clean as that of the tasks, which can read it, and has the
// worker's mark. A worker's heap is small: a little more collecting keeps it so. Its loop keeps
// one of Go's processors, also while it waits; with several idle ones besides, the scheduler looks
// for work in vain, which costs a third of the worker's context switches.
func workerEnvironment(mark string) []string {
	env := executor.BaseEnvironment(os.Getenv)
	return append(env, "GOGC=200", "GOMAXPROCS="+strconv.Itoa(max(2, runtime.NumCPU())),
		worker.Mark+"="+mark)
}
