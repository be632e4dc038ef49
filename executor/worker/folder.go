package worker

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// Files in a worker's folder. The lock is held as long as the worker lives.
const (
	lockFile        = "lock"
	socketFile      = "sock"
	settingsFile    = "settings"
	journalFileName = "journal"
	logFile         = "log"
)

// prefix begins the names of workers' folders in DATA/worker.
const prefix = "w-"

// Folder is a worker's folder whose lock this process holds.
type Folder struct {
	Path string
	Lock *os.File
}

// Name is the last part of the path.
func (f *Folder) Name() string { return filepath.Base(f.Path) }

// LogPath is where the worker's own output goes.
func (f *Folder) LogPath() string { return filepath.Join(f.Path, logFile) }

// cgroupName is the name of the control groups of a worker: no other one has it, in a copy
// of the data folder either, whose identity is another one.
func cgroupName(data, worker string) string { return strings.ReplaceAll(data, "/", "_") + "-" + worker }

// removeCgroupsLeft removes the empty control groups that former workers of a data folder
// have left. A worker whose folder is there lives, or Bury does it.
func removeCgroupsLeft(dir, data string) error {
	if data == "" {
		return nil
	}
	paths, err := List(dir)
	if err != nil {
		return err
	}
	executor.RemoveStaleCgroups(cgroupName(data, ""), func(worker string) bool {
		return slices.Contains(paths, filepath.Join(dir, worker))
	})
	return nil
}

// SocketPath is where the worker of a folder listens.
func SocketPath(path string) string { return filepath.Join(path, socketFile) }

// Make makes a folder in dir for a worker to come, takes its lock and listens on its
// socket. Both descriptors are to be inherited by the worker.
func Make(dir string, s Settings) (*Folder, *net.UnixListener, error) {
	var token [6]byte
	rand.Read(token[:])
	f := &Folder{Path: filepath.Join(dir, prefix+hex.EncodeToString(token[:]))}
	if err := os.Mkdir(f.Path, 0o700); err != nil {
		return nil, nil, fmt.Errorf("worker's folder: %w", err)
	}
	listener, err := f.fill(s)
	if err != nil {
		f.Remove()
		return nil, nil, fmt.Errorf("worker's folder %s: %w", f.Path, err)
	}
	return f, listener, nil
}

func (f *Folder) fill(s Settings) (*net.UnixListener, error) {
	text, err := json.Marshal(stored{settings(s), []byte(s.Outputs)})
	if err != nil {
		return nil, err
	}
	if f.Lock, err = LockFile(filepath.Join(f.Path, lockFile), os.O_CREATE); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(f.Path, settingsFile), text, 0o600); err != nil {
		return nil, err
	}
	return listen(f.Path)
}

// Remove deletes the folder and gives the lock up.
func (f *Folder) Remove() error {
	err := os.RemoveAll(f.Path)
	f.Release()
	return err
}

// Release gives the lock up.
func (f *Folder) Release() {
	if f.Lock != nil {
		f.Lock.Close()
	}
}

// ErrHeld: another process holds the lock.
var ErrHeld = errors.New("locked by another process")

// Take takes the lock of a folder that was made before. ErrHeld when its worker lives,
// fs.ErrNotExist when there is no such folder. A lock file that is missing is made again:
// so the lock alone does not prove that the worker is dead.
func Take(path string) (*Folder, error) {
	l, err := LockFile(filepath.Join(path, lockFile), os.O_CREATE)
	if err != nil {
		return nil, err
	}
	return &Folder{Path: path, Lock: l}, nil
}

// LockFile opens a file, with os.O_CREATE makes it if need be, and locks it for as long
// as it is open, in this process or in a child that has inherited it. ErrHeld when it is
// locked.
func LockFile(path string, create int) (*os.File, error) {
	f, err := vfs.OpenOwn(path, os.O_RDWR|create, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			err = ErrHeld
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// List returns the paths of the workers' folders in dir, sorted.
func List(dir string) (paths []string, _ error) {
	list, err := os.ReadDir(dir)
	if err != nil && !gone(err) {
		return nil, err
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), prefix) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

func (s *Settings) load(path string) error {
	text, err := vfs.ReadFile(filepath.Join(path, settingsFile))
	if err != nil {
		return err
	}
	var as stored
	if err := json.Unmarshal(text, &as); err != nil {
		return err
	}
	*s = Settings(as.settings)
	s.Outputs = string(as.Outputs)
	return nil
}

// stored is how settings are written: a path may hold bytes that no JSON string can.
type stored struct {
	settings
	Outputs []byte
}

type settings Settings

// short returns a path of the folder's file that fits a socket's address, however
// deep the folder lies. It holds while dir is open.
func short(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}

// listen makes the folder's socket. The folder's mode keeps others out until the
// socket has its own.
func listen(path string) (*net.UnixListener, error) {
	dir, err := vfs.OpenFolder(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: short(dir, socketFile)})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by a path that is no more then, or another's
	if err := os.Chmod(filepath.Join(path, socketFile), 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Dial connects to the worker of a folder. Whoever answers must be of this user.
func Dial(path string) (net.Conn, error) {
	dir, err := vfs.OpenFolder(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: short(dir, socketFile)})
	if err != nil {
		return nil, err
	}
	if err := ofThisUser(c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// ofThisUser looks at who is at the other end, as the kernel knows it.
func ofThisUser(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	return sameUser(int(cred.Uid), os.Geteuid())
}

func sameUser(peer, own int) error {
	if peer != own {
		return fmt.Errorf("worker's socket: user %d at the other end, this is %d", peer, own)
	}
	return nil
}

// gone tells whether the error says that a folder or its worker is no more.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) }
