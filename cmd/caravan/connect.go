package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// serverFlags holds the flags with which a command finds its server and authenticates to it. Each
// value comes from the flag, else from the environment, else it is the default; there is no
// configuration file. addServerFlags makes one for each command, and pflag fills it before the
// command runs.
type serverFlags struct {
	main          *Main
	server        string // URL, host:port or unix:/path
	tokenFile     string // "" = the token is in the environment, or there is none
	ca, cert, key string // PEM files; "" = the system's authorities, no certificate
	insecure      bool
	cmd           *cobra.Command
}

// The environment variables of clients. They differ from those of the options of `caravan serve`,
// so that one environment can have both.
const (
	envServer = "CARAVAN_SERVER"
	envToken  = "CARAVAN_TOKEN"
	envCA     = "CARAVAN_CA"
	envCert   = "CARAVAN_CERT"
	envKey    = "CARAVAN_KEY"
)

// addServerFlags gives cmd the flags for the server's address and the caller's credentials. There
// is no flag for the token itself, because other users can see the command line.
func (m *Main) addServerFlags(cmd *cobra.Command) *serverFlags {
	r := &serverFlags{main: m, cmd: cmd}
	f := cmd.Flags()
	f.StringVar(&r.server, "server", client.DefaultServer, "the server's `URL`, or unix:/path (environment: "+envServer+")")
	f.StringVar(&r.tokenFile, "token-file", "", "`file` that holds the token to send (or the token itself in the environment: "+envToken+")")
	f.StringVar(&r.ca, "ca", "", "authority, PEM `file`, of the server's certificate (environment: "+envCA+")")
	f.StringVar(&r.cert, "cert", "", "the client's certificate, PEM `file` (environment: "+envCert+")")
	f.StringVar(&r.key, "key", "", "key of the client's certificate, PEM `file` (environment: "+envKey+")")
	f.BoolVar(&r.insecure, "insecure", false, "send the token over unencrypted connections too")
	return r
}

// address returns the server's address, and whether the user named one. The difference matters to
// commands that work without a server: validate and version do when the default one is silent, but a
// silent server that the user named is an error.
func (r *serverFlags) address() (server string, named bool) {
	return r.flagOrEnv("server", r.server, envServer)
}

// flagOrEnv returns the value of a flag, else of the environment variable, else the flag's default.
// named tells whether the user set either. An empty variable counts as unset, and an empty flag as
// set, as for options of a server.
func (r *serverFlags) flagOrEnv(flag, value, env string) (v string, named bool) {
	if r.cmd.Flags().Changed(flag) {
		return value, true
	}
	if v, ok := r.main.LookupEnv(env); ok && v != "" {
		return v, true
	}
	return value, false
}

// newClient returns a client of the server that the user named, or of the default one. It does not
// connect. Its errors are usageErrors: a wrong address, a file that cannot be read, or a token that
// would travel unencrypted.
func (r *serverFlags) newClient() (*client.Client, error) { return r.newClientWith(client.Config{}) }

// newClientWith is newClient with further settings, such as the number of retries.
func (r *serverFlags) newClientWith(c client.Config) (*client.Client, error) {
	c.Server, _ = r.address()
	c.UserAgent = "caravan/" + versionInfo().Version
	c.Insecure = r.insecure
	var err error
	if c.Token, err = r.readToken(); err != nil {
		return nil, &usageError{err}
	}
	ca, _ := r.flagOrEnv("ca", r.ca, envCA)
	cert, _ := r.flagOrEnv("cert", r.cert, envCert)
	key, _ := r.flagOrEnv("key", r.key, envKey)
	if c.TLS, err = client.LoadTLS(ca, cert, key); err != nil {
		return nil, &usageError{err}
	}
	out, err := client.New(c)
	if err != nil {
		return nil, &usageError{err}
	}
	return out, nil
}

// readToken returns the token to send, or "". It comes from the file of --token-file, else from
// CARAVAN_TOKEN. A file that others can read is refused, as ssh does with keys: the token may be
// known to them. A pipe, such as /dev/fd/63 of <(pass caravan), has no such mode and is accepted.
// The text is trimmed, since editors and echo end a file with a line break.
func (r *serverFlags) readToken() (string, error) {
	if r.tokenFile == "" {
		v, _ := r.main.LookupEnv(envToken)
		return strings.TrimSpace(v), nil
	}
	f, err := os.Open(r.tokenFile)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	if mode := info.Mode(); mode.IsRegular() && mode.Perm()&0o077 != 0 {
		return "", fmt.Errorf("token file %s: other users can read it (mode %04o); run chmod 600 %s", r.tokenFile, mode.Perm(), r.tokenFile)
	}
	const longest = 4 << 10 // bytes; a token has 51
	text, err := io.ReadAll(io.LimitReader(f, longest))
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", fmt.Errorf("token file %s is empty", r.tokenFile)
	}
	if strings.ContainsAny(token, " \t\n") {
		return "", fmt.Errorf("token file %s: must contain only the token, as `caravan token new` prints it; this is not the token file of a server", r.tokenFile)
	}
	return token, nil
}

// isReachable reports whether the server answers within a second, ready or not. validate decides by it
// whether to do the work without a server, which a user at a terminal notices as a pause. After any
// other answer, or a broken connection, the server counts as unreachable: validate needs none.
func (r *serverFlags) isReachable(ctx context.Context) bool {
	return r.probe(ctx, time.Second) == nil
}

// probe asks the server once, without retries, whether it is ready. It returns nil also for a server
// that is starting or stopping (503): it is there. An error for which isAbsent holds means that no
// server is there. Any other error says why the server cannot be used.
func (r *serverFlags) probe(ctx context.Context, limit time.Duration) error {
	c, err := r.newClientWith(client.Config{Retries: -1})
	if err != nil {
		return err
	}
	defer c.CloseIdle()
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = c.Ready(limited)
	var refused *client.Error
	switch {
	case errors.As(err, &refused) && errors.Is(err, client.ErrUnavailable):
		return nil
	case err != nil && limited.Err() != nil && ctx.Err() == nil:
		return fmt.Errorf("it does not answer within %v: %w", limit, client.ErrUnreachable)
	}
	return err
}

// isAbsent reports whether an error of probe proves that no server is at the address: the connection
// was refused (also by a socket file whose server has ended), or the socket file is missing.
func isAbsent(err error) bool {
	return errors.Is(err, client.ErrNoServer) && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist))
}
