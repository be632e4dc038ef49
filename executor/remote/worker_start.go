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
	"github.com/caravan-dag/caravan/executor/procfs"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// ownExecutable is the program of this process, even after its file was replaced.
const ownExecutable = "/proc/self/exe"

// workerProgram returns the path of the worker's program. binary "" is this process's own. The link
// /proc/self/exe leads to the running program even if its file was replaced or removed by an upgrade.
func workerProgram(binary string) (string, error) {
	own, err := os.Executable()
	if err != nil {
		return "", err
	}
	if binary == "" {
		binary = own
	}
	// A server whose file was replaced still starts workers of its own version.
	if binary == own {
		there, err := os.Stat(own)
		if running, serr := os.Stat(ownExecutable); serr == nil && (err != nil || !os.SameFile(there, running)) {
			return ownExecutable, nil
		}
	}
	return binary, nil
}

// workerVersion returns the version together with the identity of the program's file and a hash of
// the settings: a worker that differs in one of them is drained. For instance
//
//	v1.4.0 3f2a91c 31457280-186b2c9e4d7a1f00 9c1d7e5b2a40f836
//
// with the size and the modification time of the file: a binary that was built again without a new version
// is another one.
func workerVersion(binary string, s worker.Settings) (string, error) {
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

// spawnWorker starts a worker in a session of its own, with its folder's lock and socket as descriptors 3
// and 4 (worker.LockFD, worker.ListenFD), and its output in the file log of the folder. The worker
// inherits the lock from its first moment, so that it is never free while the worker lives. The session
// keeps signals of the server's terminal away, and shows which processes are the worker's.
//
// The socket listens before the worker runs: a connection waits in the kernel's queue. After an error the
// folder and its entry in the registry are gone.
func (r *Remote) spawnWorker() (*peer, error) {
	f, listener, err := worker.CreateFolder(r.cfg.Dir, r.cfg.Settings)
	if err != nil {
		return nil, err
	}
	p := newPeer(r, f.Path)
	err = func() error {
		defer listener.Close()
		// The registry must name the worker before an attempt can run, so that a removed folder shows.
		if err := r.registry.setWorker(f.Name(), procfs.Identity{}); err != nil {
			return fmt.Errorf("registry of workers: %w", err)
		}
		socket, err := listener.File()
		if err != nil {
			return err
		}
		defer socket.Close()
		log, err := vfs.OpenNoFollow(f.LogPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer log.Close()
		closeInheritedOnExec()
		p.cmd = &exec.Cmd{
			Path: r.cfg.Binary, Args: append([]string{"caravan"}, append(slices.Clone(r.cfg.Args), "--name", f.Name())...),
			Env: workerEnvironment(worker.MarkValue(r.cfg.Settings.DataFolderID, f.Name())), Dir: "/",
			Stdout: log, Stderr: log, ExtraFiles: []*os.File{f.Lock, socket},
			SysProcAttr: &syscall.SysProcAttr{Setsid: true},
		}
		return p.cmd.Start()
	}()
	if err != nil {
		if serr := r.registry.removeWorker(f.Name()); serr != nil {
			r.log.Warn("registry of workers not written", "err", serr)
		}
		f.Remove()
		return nil, fmt.Errorf("start worker: %w", err)
	}
	f.Release() // the worker has its own descriptor of it
	started, err := procfs.Read(p.cmd.Process.Pid)
	if p.process = started.Identity; err == nil {
		err = r.registry.setWorker(f.Name(), p.process)
	}
	if err != nil {
		r.log.Warn("the registry of workers lacks the process of the new worker", "err", err)
	}
	return p, nil
}

// closeInheritedOnExec keeps the descriptors that this process has inherited itself from the worker
// and its tasks. Kernels before 5.11 need a call for each descriptor.
func closeInheritedOnExec() {
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

// workerEnvironment returns an environment as clean as that of the tasks, which can read it, with the
// worker's mark. GOGC: a worker's heap is small, so that a larger share of garbage costs little memory.
// GOMAXPROCS: the worker's loop keeps one of Go's processors, also while it waits. With several idle
// ones besides, the scheduler looks for work in vain, which costs a third of the worker's context
// switches.
func workerEnvironment(mark string) []string {
	env := executor.BaseEnvironment(os.Getenv)
	return append(env, "GOGC=200", "GOMAXPROCS="+strconv.Itoa(max(2, runtime.NumCPU())),
		worker.MarkVariable+"="+mark)
}
