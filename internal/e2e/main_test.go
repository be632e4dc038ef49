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

// What the flags of the package doc set.
var (
	seedFlag    = flag.Uint64("seed", 0, "seed of everything random; 0 = from the clock")
	killsFlag   = flag.Int("kills", 20, "kills of the random-moments test")
	ackedFlag   = flag.Int("acked", 1000, "acknowledged submissions of the kill-after-200 test")
	roundsFlag  = flag.Int("rounds", 2, "rounds of the tests that kill server and worker")
	hostileFlag = flag.Int("hostile", 10_000, "malformed requests")
	sizesFlag   = flag.String("sizes", "", "big: the tests in scale_test.go have runs of 1,000,000 tasks, 10,000 processes run at once")
	copiesFlag  = flag.Int("copies", 2, "copies of a data folder that are started beside its own server")
	damagesFlag = flag.Int("damages", 40, "damaged data folders")
	cutsFlag    = flag.Int("cuts", 3, "power cuts")
	pauseFlag   = flag.Duration("pause", 3*time.Second, "how long processes are stopped in pause_test.go")
	soakFlag    = flag.Duration("soak", 10*time.Second, "how long the soak keeps its load up")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(e2etest.Main(m))
}

// random is a generator whose seed the test's log shows.
func random(t *testing.T) *rand.Rand {
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

// rawConn is a connection to the server on which anything can be said.
type rawConn struct {
	*net.TCPConn
	r *bufio.Reader
}

// dial connects to the server at a URL; everything on the connection has to
// happen within Patience.
func dial(url string) (*rawConn, error) {
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

// say writes text as it is.
func (c *rawConn) say(text string) error {
	_, err := io.WriteString(c, text)
	return err
}

// answer reads one response to its end. method is that of the request.
func (c *rawConn) answer(method string) (status int, body []byte, err error) {
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
	c, err := dial(url)
	return submitter{c}, err
}

// submit submits a document and returns the id of its run. An error means that no
// whole answer 200 came.
func (c submitter) submit(doc string) (uint64, error) {
	if err := c.say(request("POST", "/v1/dagrun", doc)); err != nil {
		return 0, err
	}
	return c.readRun()
}

// readRun reads the answer to a submission.
func (c submitter) readRun() (uint64, error) {
	status, body, err := c.answer("POST")
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

// request is a sound request with a body; path and body go in as they are.
func request(method, path, body string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		method, path, len(body), body)
}
