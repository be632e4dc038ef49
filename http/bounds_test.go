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
		"three quarters of the connections, " + thousands(waitLimit(cfg.MaxConns)) + " |",
		"three quarters of its connections, " + thousands(waitLimit(cfg.MaxPerClient)) + " |",
		fmt.Sprintf("| %d MiB; a body of more than %d MiB may not take the last quarter. The first %d KiB of each", bodyMemory>>20, largeBody>>20, freeBody>>10),
		fmt.Sprintf("| those of one client | half of them, %d MiB;", s.bodies.own>>20),
		fmt.Sprintf("| %d KiB, and %d times the content; some 40 KiB at a time |", framingRoom>>10, framingRate),
		fmt.Sprintf("| trailers of a body in chunks | %d KiB |", headerLimit>>10),
		fmt.Sprintf("| bodies of more than %d MiB that are received or wait | %d,", longFrom>>20, maxSpool),
		fmt.Sprintf("| a document, before and after decompression | %d MiB |", cfg.MaxBody>>20),
		fmt.Sprintf("| window of a zstd body | %d MiB |", maxZstd>>20),
		fmt.Sprintf("| a line of many | %d MiB,", maxLine>>20),
		fmt.Sprintf("| time for a line, from its first byte | %.0f s, and 1 s for each %d KiB |", cfg.ReadTimeout.Seconds(), bodyRate>>10),
		"| refused lines of a request | " + thousands(maxBadLines) + " |",
		fmt.Sprintf("| other bodies | %d MiB |", smallBody>>20),
		fmt.Sprintf("| request line and headers | %d KiB |", headerLimit>>10),
		"| `tag` | " + thousands(specjson.MaxTagBytes) + " bytes |",
		fmt.Sprintf("| `tags` | %d, names of %d bytes, values of %s bytes |", specjson.MaxLabels, specjson.MaxLabelNameBytes, thousands(specjson.MaxLabelBytes)),
		"| names of tasks and parameters | " + thousands(specjson.MaxNameBytes) + " bytes |",
		fmt.Sprintf("| a value of a parameter | %d MiB |", specjson.MaxParameterBytes>>20),
		fmt.Sprintf("| any other text, or member of a job that is only kept | %d MiB as JSON |", specjson.MaxValueBytes>>20),
		"| `errors` of one document | " + thousands(maxProblems) + ";",
		"| `warnings` of one document | " + thousands(specjson.MaxWarnings) + ";",
		"| entries of a page | " + thousands(maxPage) + "; " + thousands(defaultPage) + " unless asked |",
		fmt.Sprintf("| `state?wait=` | %.0f s |", maxStateWait.Seconds()),
		fmt.Sprintf("%d KiB of its head and tail in documents", inlineLog>>10),
	} {
		if !strings.Contains(string(page), row) {
			t.Errorf("the page does not say: %s", row)
		}
	}
}
