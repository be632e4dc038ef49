package clustertest_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// The test binary itself stands in for the server and its worker: `serve` and `worker` are their
// commands. It does what the harness must be able to see.

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "serve":
			serve(os.Args[2:])
		case "worker":
			work()
		}
	}
	testenv.VerifyNoLeaks(cleaningM{m})
}

// cleaningM removes after the tests what they share.
type cleaningM struct{ *testing.M }

// Run runs the tests.
func (m cleaningM) Run() (code int) {
	code = m.M.Run()
	if dir := binaryFolder.Load(); dir != nil {
		os.RemoveAll(*dir)
	}
	return code
}

// binaryFolder is the folder of the binary that buildOnce has built; nil before that.
var binaryFolder atomic.Pointer[string]

// buildOnce builds the real binary for all tests that need it.
var buildOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "caravan-clustertest-")
	if err != nil {
		return "", err
	}
	binaryFolder.Store(&dir)
	return testenv.Build(dir, false)
})

// realBinary returns the path of the binary under test.
func realBinary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("CARAVAN_BINARY"); path != "" {
		return path
	}
	path, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// flagOf returns the value of an argument of `serve`.
func flagOf(args []string, name string) string {
	if i := slices.Index(args, name); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// serve stands in for a node. Its API reads and writes files of the data folder, and greets others.
func serve(args []string) {
	data := flagOf(args, "--data")
	fail := func(err error) {
		if err != nil {
			fmt.Println("stand-in:", err)
			os.Exit(3)
		}
	}
	fail(os.MkdirAll(data, 0o700))
	if len(testenv.Workers(data)) == 0 {
		worker := exec.Command(os.Args[0], "worker", "--data", data)
		worker.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		fail(worker.Start())
	}
	cluster, err := net.Listen("tcp4", flagOf(args, "--cluster-listen"))
	fail(err)
	go func() {
		for {
			conn, err := cluster.Accept()
			fail(err)
			fmt.Fprintln(conn, flagOf(args, "--node"))
			conn.Close()
		}
	}()
	mux := http.NewServeMux()
	mux.HandleFunc("/ready", func(http.ResponseWriter, *http.Request) {})
	answer := func(w http.ResponseWriter, text string, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, text)
	}
	mux.HandleFunc("/write", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		answer(w, "written", write(filepath.Join(data, q.Get("name")), q.Get("text"), q.Has("sync")))
	})
	mux.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) {
		text, err := os.ReadFile(filepath.Join(data, r.URL.Query().Get("name")))
		answer(w, string(text), err)
	})
	mux.HandleFunc("/greet", func(w http.ResponseWriter, r *http.Request) {
		name, err := greet(r.URL.Query().Get("address"))
		answer(w, name, err)
	})
	mux.HandleFunc("/boot", func(w http.ResponseWriter, _ *http.Request) {
		text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		answer(w, string(text), err)
	})
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGTERM)
	api, err := net.Listen("tcp4", flagOf(args, "--listen"))
	fail(err)
	go func() { fail(http.Serve(api, mux)) }()
	fmt.Println("stand-in", flagOf(args, "--node"), "serves", api.Addr())
	<-stopped
	if slices.Contains(args, "--deaf") {
		select {}
	}
	os.Exit(0)
}

// write writes a file; only with sync is it durable before the answer.
func write(path, text string, sync bool) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil || !sync {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// greet connects to the cluster port of another node, and returns the name that it says.
func greet(address string) (string, error) {
	conn, err := net.DialTimeout("tcp4", address, 300*time.Millisecond)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		return "", err
	}
	name, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(name), err
}

// work stands in for the worker: it outlives its server.
func work() {
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGTERM)
	<-stopped
	os.Exit(0)
}

// readAll reads an answer to its end, and returns its text and whether its status is 200.
func readAll(r *http.Response) (string, bool) {
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	return strings.TrimSpace(string(text)), err == nil && r.StatusCode == http.StatusOK
}
