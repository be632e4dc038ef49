package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// listeners is the set of addresses that a server listens on, with its rules of access. As a
// net.Listener it stands for the first of them, except that Close closes all. runServer opens and
// shuts it down; localServer serves it in between. The fields do not change after openListeners has
// returned.
type listeners struct {
	net.Listener
	entrances    []net.Listener      // each an *http.Entrance, in the order of --listen
	access       http.Access         // rules for all of them
	certificate  *access.Certificate // nil without TLS
	auditDropped prometheus.Counter  // entries that the audit log could not take
	log          *slog.Logger
}

// openListeners listens on all addresses. It refuses addresses beyond the loopback interface when
// callers there would need no credentials: a request can make the server run any command as its
// user. Mistakes in the options are usageErrors, an address that cannot be had is not. After an
// error all that was opened is closed. Otherwise the caller calls shutDown in the end.
//
// Files are checked and read before the first address is taken, so that a server with a mistake in
// its token file is never reachable without tokens.
func openListeners(c Config, log *slog.Logger) (_ *listeners, err error) {
	d := &listeners{log: log, auditDropped: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "caravan_audit_lost_total", Help: "Entries that could not be written to the audit log.",
	})}
	defer func() {
		if err != nil {
			d.shutDown()
		}
	}()
	if err := checkOutsideData(c); err != nil {
		return nil, err
	}
	if err := d.loadAccess(c); err != nil {
		return nil, usageErrorf("%w", err)
	}
	for _, address := range c.Listen {
		l, err := listenOn(address)
		if err != nil {
			return nil, err
		}
		e := &http.Entrance{Listener: l}
		d.entrances = append(d.entrances, e)
		if tcp, ok := l.Addr().(*net.TCPAddr); !ok {
			e.Local = true // the kernel tells the user of a unix socket's client, so it needs no token
		} else if err := d.configureTCP(c, e, address, tcp); err != nil {
			return nil, err
		}
	}
	d.Listener = d.entrances[0]
	return d, nil
}

// checkOutsideData refuses a token file, an audit log or a folder of certificates inside a data
// folder, for the reason that checkOutsideDataFolders gives. The server's own data folder may not exist
// yet, so it is compared by its path; other data folders are recognized by their content.
func checkOutsideData(c Config) error {
	data, err := resolveLinks(c.Data)
	if err != nil {
		return nil // opening the data folder reports the cause
	}
	for _, file := range []struct{ option, path string }{{"token-file", c.TokenFile}, {"audit-log", c.AuditLog}, {"tls-dir", c.TLSDir}} {
		if file.path == "" {
			continue
		}
		if err := cmp.Or(checkOutsideFolder(data, file.path), checkOutsideDataFolders(file.path)); err != nil {
			return usageErrorf("--%s: %w", file.option, err)
		}
	}
	return nil
}

// loadAccess reads origins, tokens and certificates, and opens the audit log. After an error d has
// the parts that were opened, for shutDown.
func (d *listeners) loadAccess(c Config) (err error) {
	if len(c.CORSOrigins) > 0 {
		if d.access.Origins, err = access.NewOrigins(c.CORSOrigins...); err != nil {
			return err
		}
	}
	if c.TokenFile != "" {
		if d.access.Keys, err = access.OpenKeys(c.TokenFile); err != nil {
			return err
		}
	}
	switch {
	case (c.TLSCert == "") != (c.TLSKey == ""):
		return errors.New("--tls-cert and --tls-key must be given together")
	case c.TLSClientCA != "" && c.TLSCert == "":
		return errors.New("--tls-client-ca needs --tls-cert and --tls-key")
	case c.TLSCert != "":
		if d.certificate, err = access.OpenCertificate(c.TLSCert, c.TLSKey, c.TLSClientCA, d.log); err != nil {
			return err
		}
	}
	if c.AuditLog != "" {
		d.access.Audit, err = access.OpenAudit(c.AuditLog, d.log, func(n int) { d.auditDropped.Add(float64(n)) })
	}
	return err
}

// configureTCP sets the allowed hosts and TLS of a TCP listener; address is as the user wrote it,
// tcp as the kernel resolved it. Every address is judged by the latter: "localhost" may resolve to
// anything.
//
//	                loopback                             beyond
//	Host header     loopback names, the address itself,  any, or --allow-host
//	                --allow-host
//	credentials     optional                             tokens, client certificates or --insecure
//	without TLS     fine                                 a warning
//
// The check of the Host header on loopback addresses protects the server of a user without tokens
// from web pages in that user's browser (access.Hosts). Beyond them it cannot: names of the server
// are unknown, and credentials protect it.
func (d *listeners) configureTCP(c Config, e *http.Entrance, address string, tcp *net.TCPAddr) (err error) {
	names := c.AllowHosts
	loopback := tcp.IP.IsLoopback()
	if loopback {
		names = append(append(access.LoopbackHosts(), tcp.IP.String()), names...)
		if host, _, err := net.SplitHostPort(address); err == nil && host != "" {
			names = append(names, host)
		}
	}
	if len(names) > 0 {
		if e.Hosts, err = access.NewHosts(names...); err != nil {
			return err
		}
	}
	if d.certificate != nil {
		e.TLS = d.certificate.Config()
	}
	if loopback {
		return nil
	}
	switch {
	case d.access.Keys == nil && c.TLSClientCA == "" && !c.Insecure:
		return usageErrorf("%s is not a loopback address, and every client that reaches it can run commands as this user: "+
			"add --token-file (see `caravan token new`) or --tls-client-ca, or --insecure to allow every client", address)
	case d.access.Keys == nil && c.TLSClientCA == "":
		d.log.Warn("INSECURE: every client that reaches the server can run commands as this user", "address", address)
	case d.certificate == nil:
		d.log.Warn("tokens and data are sent unencrypted; --tls-cert and --tls-key turn on TLS", "address", address)
	}
	return nil
}

// Close implements net.Listener. It closes all listeners. It may be called again; addresses that are
// closed already are not errors. The audit log stays open.
func (d *listeners) Close() error {
	var errs []error
	for _, l := range d.entrances {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// shutDown closes the listeners and the audit log, which must stay open as long as requests are
// served. It is called once, after localServer has stopped.
func (d *listeners) shutDown() {
	_ = d.Close()
	if err := d.access.Audit.Close(); err != nil {
		d.log.Error("cannot close the audit log", "err", err)
	}
}

// isReloadable reports whether reload would do anything. Otherwise the server does not catch SIGHUP.
func (d *listeners) isReloadable() bool {
	return d.access.Keys != nil || d.access.Audit != nil || d.certificate != nil
}

// reload reads the token file and the certificates again, and reopens the audit log, which
// logrotate may have renamed. A file with a mistake leaves the former content in force: a server
// without tokens would refuse or admit everyone. The three are independent of each other. The
// goroutine of reloadOnHangup calls it.
func (d *listeners) reload() {
	if d.access.Keys != nil {
		if err := d.access.Keys.Reload(); err != nil {
			d.log.Error("cannot reload the token file; the former tokens stay in force", "err", err)
		} else {
			d.log.Info("token file reloaded")
		}
	}
	if d.access.Audit != nil {
		if err := d.access.Audit.Reopen(); err != nil {
			d.log.Error("cannot reopen the audit log; the old file stays in use", "err", err)
		} else {
			d.log.Info("audit log reopened")
		}
	}
	if d.certificate != nil {
		d.certificate.Reload()
	}
}

// logAddresses logs a line for each address, which the caller's logger writes at every log level. The
// address is the one that the kernel has assigned: with port 0 this line is how others learn the port
// (testenv.Server.AwaitReady). The first line also names the data folder and the version.
//
//	level=INFO msg=listening address=127.0.0.1:2503 data=./caravan-data version=v1.2.0
func (d *listeners) logAddresses(c Config, log *slog.Logger) {
	for i, l := range d.entrances {
		address := l.Addr().String()
		if _, ok := l.Addr().(*net.UnixAddr); ok {
			address = unixPrefix + address
		}
		attrs := []any{"address", address}
		if e, ok := l.(*http.Entrance); ok && e.TLS != nil {
			attrs = append(attrs, "tls", true)
		}
		if i == 0 {
			attrs = append(attrs, "data", c.Data, "version", versionInfo().Version)
		}
		log.Info("listening", attrs...)
	}
}

// unixPrefix begins the address of a unix socket, of a server (--listen) as of a client (--server).
const unixPrefix = "unix:"

// listenOn listens on one address, as checkAddress accepts it, and explains why when the address is
// in use: most often another server of the same user has it.
func listenOn(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, unixPrefix); ok {
		return listenUnix(path)
	}
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("address %s is in use: another server may be running; choose another address with --listen", address)
	}
	if err != nil {
		return nil, fmt.Errorf("address %s: %w", address, addressCause(err))
	}
	return l, nil
}

// addressCause strips the address, which the caller names, from an error of package net: "listen tcp
// 192.0.2.1:1: bind: cannot assign requested address" becomes its last part.
func addressCause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// maxSocketPath is the longest path of a unix socket that the kernel accepts, in bytes: sun_path of
// unix(7) has 108 with the zero at the end. Package net's error for a longer one is "invalid
// argument".
const maxSocketPath = 107

// unixListener is a unix socket and the lock that reserves its path. The HTTP server and listeners
// both close it; only the first call acts.
type unixListener struct {
	net.Listener
	lock *os.File // PATH.lock, held until Close
	once sync.Once
}

// listenUnix listens on a unix socket that only this user and root can connect to. The lock beside
// the socket tells a running server from the leftover socket of a killed one: only the holder of
// the lock removes or creates the socket. Connecting to the socket would not tell them apart: a
// running server may have a full queue, and between the question and the removal another one may
// start. flock(2) is released by the kernel when its process ends, however it ends.
//
// A file at path that is not a socket stays: the user may have mistyped the path.
func listenUnix(path string) (_ net.Listener, err error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("address unix:%s: the path is too long: at most %d bytes", path, maxSocketPath)
	}
	lock, err := vfs.OpenNoFollow(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("address unix:%s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	err = vfs.WaitForLock(lock, unix.LOCK_EX) // for up to 2 s: see there
	if errors.Is(err, vfs.ErrLocked) {
		return nil, fmt.Errorf("address unix:%s is in use: another server may be running; choose another address with --listen", path)
	}
	if err != nil {
		return nil, fmt.Errorf("address unix:%s: lock: %w", path, err)
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("address unix:%s: %w", path, err)
	case info.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("address unix:%s: a file with this name exists and is not a socket", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("address unix:%s: remove the socket of a former server: %w", path, err)
		}
	}
	// Linux creates the socket's file with the mode of the descriptor, so the file is never
	// accessible to others.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	l, err := private.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("address unix:%s: %w", path, addressCause(err))
	}
	return &unixListener{Listener: l, lock: lock}, nil
}

// Close removes the socket and then releases the lock. In the other order another server could lock
// the path and create its own socket, which this one would remove. The lock file stays: removing it
// could take the lock away from another server.
func (u *unixListener) Close() (err error) {
	u.once.Do(func() { err = errors.Join(u.Listener.Close(), u.lock.Close()) })
	return err
}
