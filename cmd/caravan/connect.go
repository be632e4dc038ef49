package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// serverFlags holds the flags of a command that talks to a server.
type serverFlags struct {
	main          *Main
	server        string
	tokenFile     string
	ca, cert, key string
	insecure      bool
	cmd           *cobra.Command
}

const (
	envServer = "CARAVAN_SERVER"
	envToken  = "CARAVAN_TOKEN"
	envCA     = "CARAVAN_CA"
	envCert   = "CARAVAN_CERT"
	envKey    = "CARAVAN_KEY"
)

// addServerFlags gives cmd the flags that say which server, and who asks. A token is in a file or
// in the environment: the command line is for everybody to see.
func (m *Main) addServerFlags(cmd *cobra.Command) *serverFlags {
	r := &serverFlags{main: m, cmd: cmd}
	f := cmd.Flags()
	f.StringVar(&r.server, "server", client.DefaultServer, "the server's `URL`, or unix:/path (environment: "+envServer+")")
	f.StringVar(&r.tokenFile, "token-file", "", "`file` that holds the token to send (or the token itself in the environment: "+envToken+")")
	f.StringVar(&r.ca, "ca", "", "authority, PEM `file`, of the server's certificate (environment: "+envCA+")")
	f.StringVar(&r.cert, "cert", "", "the client's certificate, PEM `file` (environment: "+envCert+")")
	f.StringVar(&r.key, "key", "", "key of the client's certificate, PEM `file` (environment: "+envKey+")")
	f.BoolVar(&r.insecure, "insecure", false, "send the token also where it travels unencrypted")
	return r
}

// address is the server to talk to, and whether the user named one.
func (r *serverFlags) address() (server string, named bool) {
	return r.flagOrEnv("server", r.server, envServer)
}

// flagOrEnv is that of a flag, else of an environment variable, else the flag's default.
func (r *serverFlags) flagOrEnv(flag, value, env string) (v string, named bool) {
	if r.cmd.Flags().Changed(flag) {
		return value, true
	}
	if v, ok := r.main.LookupEnv(env); ok && v != "" {
		return v, true
	}
	return value, false
}

// newClient connects to the server that the user named.
func (r *serverFlags) newClient() (*client.Client, error) { return r.newClientWith(client.Config{}) }

// newClientWith is client with further settings.
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

// readToken is what is sent to the server; "" = none.
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
		return "", fmt.Errorf("token file %s: others may read it (mode %04o): chmod 600 %s", r.tokenFile, mode.Perm(), r.tokenFile)
	}
	const longest = 4 << 10
	text, err := io.ReadAll(io.LimitReader(f, longest))
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", fmt.Errorf("token file %s is empty", r.tokenFile)
	}
	if strings.ContainsAny(token, " \t\n") {
		return "", fmt.Errorf("token file %s: want the token alone, as caravan token new prints it (the file of a server's tokens is another one)", r.tokenFile)
	}
	return token, nil
}

// isReachable tells whether the server answers within a second, ready or not.
func (r *serverFlags) isReachable(ctx context.Context) bool {
	c, err := r.newClientWith(client.Config{Retries: -1})
	if err != nil {
		return false
	}
	defer c.CloseIdle()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err = c.Ready(ctx)
	var refused *client.Error
	return err == nil || errors.As(err, &refused) && errors.Is(err, client.ErrUnavailable)
}
