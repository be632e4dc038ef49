package http

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag/specjson"
)

// TestBoundsOfOperations: the numbers in docs/operations.md are those of the code.
func TestBoundsOfOperations(t *testing.T) {
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	thousands := func(n int) string {
		if n < 1000 {
			return fmt.Sprint(n)
		}
		return fmt.Sprintf("%d,%03d", n/1000, n%1000)
	}
	s := New(Config{Engine: &fakeEngine{}})
	cfg := s.cfg
	for _, row := range []string{
		"| open connections | " + thousands(cfg.MaxConns) + ";",
		"three quarters of the connections, " + thousands(maxWaits(cfg.MaxConns)) + " |",
		"three quarters of its connections, " + thousands(maxWaits(cfg.MaxPerClient)) + " |",
		fmt.Sprintf("| %d MiB; a body of more than %d MiB may not take the last quarter. The first %d KiB of each", totalBodyBytes>>20, largeBodyBytes>>20, uncountedBytes>>10),
		fmt.Sprintf("| those of one client | half of them, %d MiB;", s.bodies.perClient>>20),
		fmt.Sprintf("| %d KiB, and %d times the content; some 40 KiB at a time |", maxFraming>>10, framingPerByte),
		fmt.Sprintf("| trailers of a body in chunks | %d KiB |", maxHeader>>10),
		fmt.Sprintf("| bodies of more than %d MiB that are received or wait | %d,", longBodyBytes>>20, maxLongBodies),
		fmt.Sprintf("| a document, before and after decompression | %d MiB |", cfg.MaxBody>>20),
		fmt.Sprintf("| window of a zstd body | %d MiB |", maxZstdWindow>>20),
		fmt.Sprintf("| a line of many | %d MiB,", maxLineBytes>>20),
		fmt.Sprintf("| time for a line, from its first byte | %.0f s, and 1 s for each %d KiB |", cfg.ReadTimeout.Seconds(), minBodyRate>>10),
		"| refused lines of a request | " + thousands(maxRefusedLines) + " |",
		fmt.Sprintf("| other bodies | %d MiB |", maxOtherBody>>20),
		fmt.Sprintf("| request line and headers | %d KiB |", maxHeader>>10),
		"| `tag` | " + thousands(specjson.MaxTagBytes) + " bytes |",
		fmt.Sprintf("| `tags` | %d, names of %d bytes, values of %s bytes |", specjson.MaxLabels, specjson.MaxLabelNameBytes, thousands(specjson.MaxLabelBytes)),
		"| names of tasks and parameters | " + thousands(specjson.MaxNameBytes) + " bytes |",
		fmt.Sprintf("| a value of a parameter | %d MiB |", specjson.MaxParameterBytes>>20),
		fmt.Sprintf("| any other text, or member of a job that is only kept | %d MiB as JSON |", specjson.MaxValueBytes>>20),
		"| `errors` of one document | " + thousands(maxListedErrors) + ";",
		"| `warnings` of one document | " + thousands(specjson.MaxWarnings) + ";",
		"| entries of a page | " + thousands(maxPageSize) + "; " + thousands(defaultPageSize) + " unless asked |",
		fmt.Sprintf("| `state?wait=` | %.0f s |", maxWaitForState.Seconds()),
		fmt.Sprintf("%d KiB of its head and tail in documents", inlineOutput>>10),
	} {
		if !strings.Contains(string(page), row) {
			t.Errorf("the page does not say: %s", row)
		}
	}
}
