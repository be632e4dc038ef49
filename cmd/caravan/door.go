package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/http/access"
)

// door is what a server listens on, and what decides who is let in. As a listener
// it is the first of its entrances.
type door struct {
	net.Listener
	entrances   []net.Listener
	access      http.Access
	certificate *access.Certificate // nil without TLS
	auditLost   prometheus.Counter
	log         *slog.Logger
}

// openDoor listens on all addresses. It refuses to listen beyond this machine when
// nothing is asked of callers there.
func openDoor(c Config, log *slog.Logger) (_ *door, err error) {
	d := &door{log: log, auditLost: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "caravan_audit_lost_total", Help: "Entries that could not be written to the audit log.",
	})}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := apartFromData(c); err != nil {
		return nil, err
	}
	if err := d.readAccess(c); err != nil {
		return nil, usagef("%w", err)
	}
	for _, address := range c.Listen {
		l, err := listen(address)
		if err != nil {
			return nil, err
		}
		e := &http.Entrance{Listener: l}
		d.entrances = append(d.entrances, e)
		if tcp, ok := l.Addr().(*net.TCPAddr); !ok {
			e.Local = true
		} else if err := d.enter(c, e, address, tcp); err != nil {
			return nil, err
		}
	}
	d.Listener = d.entrances[0]
	return d, nil
}

// apartFromData refuses files of the server's that others write or rotate in a data folder: its own,
// which may not exist yet, or any other one.
func apartFromData(c Config) error {
	data, err := resolved(c.Data)
	if err != nil {
		return nil // it cannot be opened either, which says why
	}
	for _, file := range []struct{ option, path string }{{"token-file", c.TokenFile}, {"audit-log", c.AuditLog}} {
		if file.path == "" {
			continue
		}
		if err := cmp.Or(outside(data, file.path), apart(file.path)); err != nil {
			return usagef("--%s: %w", file.option, err)
		}
	}
	return nil
}

// readAccess reads tokens, certificates and the like.
func (d *door) readAccess(c Config) (err error) {
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
		return errors.New("--tls-cert and --tls-key go together")
	case c.TLSClientCA != "" && c.TLSCert == "":
		return errors.New("--tls-client-ca needs --tls-cert and --tls-key")
	case c.TLSCert != "":
		if d.certificate, err = access.OpenCertificate(c.TLSCert, c.TLSKey, c.TLSClientCA, d.log); err != nil {
			return err
		}
	}
	if c.AuditLog != "" {
		d.access.Audit, err = access.OpenAudit(c.AuditLog, d.log, func(n int) { d.auditLost.Add(float64(n)) })
	}
	return err
}

// enter sets up an entrance by TCP.
func (d *door) enter(c Config, e *http.Entrance, address string, tcp *net.TCPAddr) (err error) {
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
		return usagef("%s is beyond the loopback address, and whoever reaches the server can run commands as this user: "+
			"give it --token-file (see caravan token new), or --tls-client-ca, or --insecure to let everybody in", address)
	case d.access.Keys == nil && c.TLSClientCA == "":
		d.log.Warn("INSECURE: everybody who reaches the server can run commands as this user", "address", address)
	case d.certificate == nil:
		d.log.Warn("tokens and data travel unencrypted: --tls-cert and --tls-key turn on TLS", "address", address)
	}
	return nil
}

// Close closes all entrances.
func (d *door) Close() error {
	var errs []error
	for _, l := range d.entrances {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// close ends what Close leaves open: the audit log, which has to outlive service.
func (d *door) close() {
	_ = d.Close()
	if err := d.access.Audit.Close(); err != nil {
		d.log.Error("the audit log cannot be closed", "err", err)
	}
}

// reloads tells whether there is anything to reload.
func (d *door) reloads() bool {
	return d.access.Keys != nil || d.access.Audit != nil || d.certificate != nil
}

// reload reads the token file again and opens the audit log again. What has a mistake
// stays as it was.
func (d *door) reload() {
	if d.access.Keys != nil {
		if err := d.access.Keys.Reload(); err != nil {
			d.log.Error("the token file cannot be used; the former tokens stay in force", "err", err)
		} else {
			d.log.Info("token file read again")
		}
	}
	if d.access.Audit != nil {
		if err := d.access.Audit.Reopen(); err != nil {
			d.log.Error("the audit log cannot be opened again; the old file is used on", "err", err)
		} else {
			d.log.Info("audit log opened again")
		}
	}
	if d.certificate != nil {
		d.certificate.Reload()
	}
}

// announce writes a line for each address, whatever the log's level.
func (d *door) announce(c Config, log *slog.Logger) {
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

const unixPrefix = "unix:"

// listen takes an address; one in use is said plainly.
func listen(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, unixPrefix); ok {
		return listenUnix(path)
	}
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("address %s is in use: another server may be running; choose another one with --listen", address)
	}
	if err != nil {
		return nil, fmt.Errorf("address %s: %w", address, cause(err))
	}
	return l, nil
}

// cause drops what net repeats of the address.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
