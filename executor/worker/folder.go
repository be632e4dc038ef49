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

// folderPrefix begins the names of workers' folders in DATA/worker.
const folderPrefix = "w-"

// Folder is a worker's folder whose lock this process holds. The holder of the lock owns the folder: at
// first the server that made it, then the worker until its end, then the server that recovers it.
type Folder struct {
	Path string
	Lock *os.File // nil while the folder is being made
}

// Name returns the last part of the path.
func (f *Folder) Name() string { return filepath.Base(f.Path) }

// LogPath returns where the worker's own output goes.
func (f *Folder) LogPath() string { return filepath.Join(f.Path, logFile) }

// cgroupName returns the name of the control groups of a worker. It is unique, because a copy of the
// data folder has another identity.
func cgroupName(dataFolderID, worker string) string {
	return strings.ReplaceAll(dataFolderID, "/", "_") + "-" + worker
}

// removeStaleCgroups removes the empty control groups of former workers of a data folder. A worker
// whose folder is there lives, or RecoverDeadWorker removes its groups.
func removeStaleCgroups(dir, dataFolderID string) error {
	if dataFolderID == "" {
		return nil
	}
	paths, err := ListFolders(dir)
	if err != nil {
		return err
	}
	executor.RemoveCgroups(cgroupName(dataFolderID, ""), func(worker string) bool {
		return slices.Contains(paths, filepath.Join(dir, worker))
	})
	return nil
}

// SocketPath returns where the worker of a folder listens.
func SocketPath(path string) string { return filepath.Join(path, socketFile) }

// CreateFolder makes a folder in dir for a new worker, locks it and listens on its socket. The worker
// inherits both descriptors. The folder, such as w-5e0f3c9a71d2, is this user's alone (mode 0700): its
// socket takes orders for any command. After an error the folder is gone.
func CreateFolder(dir string, s Settings) (*Folder, *net.UnixListener, error) {
	var token [6]byte
	rand.Read(token[:])
	f := &Folder{Path: filepath.Join(dir, folderPrefix+hex.EncodeToString(token[:]))}
	if err := os.Mkdir(f.Path, 0o700); err != nil {
		return nil, nil, fmt.Errorf("worker folder: %w", err)
	}
	listener, err := f.create(s)
	if err != nil {
		f.Remove()
		return nil, nil, fmt.Errorf("worker folder %s: %w", f.Path, err)
	}
	return f, listener, nil
}

// create writes the files of a new folder. The lock comes first, so that no other server takes the folder
// for that of a dead worker.
func (f *Folder) create(s Settings) (*net.UnixListener, error) {
	text, err := json.Marshal(storedSettings{s, []byte(s.Outputs)})
	if err != nil {
		return nil, err
	}
	if f.Lock, err = vfs.LockFile(filepath.Join(f.Path, lockFile)); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(f.Path, settingsFile), text, 0o600); err != nil {
		return nil, err
	}
	return listenIn(f.Path)
}

// Remove deletes the folder and releases its lock.
func (f *Folder) Remove() error {
	err := os.RemoveAll(f.Path)
	f.Release()
	return err
}

// Release releases the lock, if it was taken.
func (f *Folder) Release() { f.Lock.Close() }

// LockFolder locks a folder that exists. The error wraps vfs.ErrLocked when its worker lives, and
// fs.ErrNotExist when the folder is missing. A missing lock file is made again, so the lock alone does
// not prove that the worker is dead.
func LockFolder(path string) (*Folder, error) {
	l, err := vfs.LockFile(filepath.Join(path, lockFile))
	if err != nil {
		return nil, err
	}
	return &Folder{Path: path, Lock: l}, nil
}

// ListFolders returns the paths of the workers' folders in dir, sorted.
func ListFolders(dir string) (paths []string, _ error) {
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), folderPrefix) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

// loadFrom reads the settings of a folder.
func (s *Settings) loadFrom(path string) error {
	text, err := vfs.ReadFile(filepath.Join(path, settingsFile))
	if err != nil {
		return err
	}
	var as storedSettings
	if err := json.Unmarshal(text, &as); err != nil {
		return err
	}
	*s = as.Settings
	s.Outputs = string(as.Outputs)
	return nil
}

// storedSettings is how settings are written. A path is written as bytes, since it may hold some that
// a JSON string cannot.
type storedSettings struct {
	Settings
	Outputs []byte
}

// shortPath returns a path of the folder's file that fits a socket's address, at any depth of the
// folder. It is valid while dir is open.
func shortPath(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}

// listenIn makes the folder's socket. The mode of the folder keeps others out until the socket has its
// own mode.
func listenIn(path string) (*net.UnixListener, error) {
	dir, err := vfs.OpenFolder(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: shortPath(dir, socketFile)})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // its path is not valid any more then
	if err := os.Chmod(filepath.Join(path, socketFile), 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Dial connects to the worker of a folder. The process at the other end must belong to this user.
func Dial(path string) (net.Conn, error) {
	dir, err := vfs.OpenFolder(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: shortPath(dir, socketFile)})
	if err != nil {
		return nil, err
	}
	if err := checkPeerUser(c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// checkPeerUser asks the kernel for the user of the process at the other end.
func checkPeerUser(c *net.UnixConn) error {
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
	return checkUser(int(cred.Uid), os.Geteuid())
}

// checkUser refuses another user.
func checkUser(peer, own int) error {
	if peer != own {
		return fmt.Errorf("worker socket: the other end belongs to user %d, this process to user %d", peer, own)
	}
	return nil
}
