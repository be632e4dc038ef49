package e2e

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// The flags of the package documentation.
var (
	seedFlag    = flag.Uint64("seed", 0, "seed of all random choices; 0 = from the clock")
	killsFlag   = flag.Int("kills", 20, "kills of the random-moments test")
	ackedFlag   = flag.Int("acked", 400, "acknowledged submissions of the kill-after-200 test")
	roundsFlag  = flag.Int("rounds", 2, "rounds of the tests that kill server and worker")
	hostileFlag = flag.Int("hostile", 3000, "malformed requests")
	sizesFlag   = flag.String("sizes", "", "big: runs of 1,000,000 tasks in large_runs_test.go, 10,000 concurrent processes")
	copiesFlag  = flag.Int("copies", 2, "copies of a data folder with servers next to the original")
	damagesFlag = flag.Int("damages", 30, "damaged data folders")
	cutsFlag    = flag.Int("cuts", 3, "power cuts")
	pauseFlag   = flag.Duration("pause", 3*time.Second, "how long worker_test.go stops processes")
	soakFlag    = flag.Duration("soak", 4*time.Second, "how long the soak keeps its load")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(e2etest.Main(m))
}

// seededRandom is a generator whose seed is in the log of the test.
func seededRandom(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// scaled is n, or a tenth of it, at least 1, under the race detector.
func scaled(n int) int {
	if e2etest.Race {
		return max(1, n/10)
	}
	return n
}

// rawConn is a connection to the server that can send any bytes.
type rawConn struct {
	*net.TCPConn
	r *bufio.Reader
}

// dialRaw connects to the server at a URL. Everything on the connection has to happen within
// Patience.
func dialRaw(url string) (*rawConn, error) {
	c, err := net.DialTimeout("tcp", strings.TrimPrefix(url, "http://"), e2etest.Patience)
	if err != nil {
		return nil, err
	}
	tcp := c.(*net.TCPConn)
	if err := tcp.SetDeadline(time.Now().Add(e2etest.Patience)); err != nil {
		return nil, err
	}
	return &rawConn{tcp, bufio.NewReader(tcp)}, nil
}

// send writes text unchanged.
func (c *rawConn) send(text string) error {
	_, err := io.WriteString(c, text)
	return err
}

// readResponse reads one response to its end. method is that of the request.
func (c *rawConn) readResponse(method string) (status int, body []byte, err error) {
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// submitter is a connection for submissions.
type submitter struct{ *rawConn }

func dialSubmitter(url string) (submitter, error) {
	c, err := dialRaw(url)
	return submitter{c}, err
}

// submit submits a document and returns the id of its run. An error means that a complete answer 200
// did not arrive.
func (c submitter) submit(doc string) (uint64, error) {
	if err := c.send(rawRequest("POST", "/v1/dagrun", doc)); err != nil {
		return 0, err
	}
	return c.readRunID()
}

// readRunID reads the answer to a submission.
func (c submitter) readRunID() (uint64, error) {
	status, body, err := c.readResponse("POST")
	if err != nil {
		return 0, err
	}
	var got struct {
		RunID *uint64 `json:"runID"`
	}
	if err := json.Unmarshal(body, &got); err != nil || status != 200 || got.RunID == nil {
		return 0, fmt.Errorf("%d %s", status, body)
	}
	return *got.RunID, nil
}

// rawRequest is a valid request with a body; path and body are used unchanged.
func rawRequest(method, path, body string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		method, path, len(body), body)
}
