package http

import (
	"bytes"

	"github.com/valyala/fasthttp"
)

// singles are the headers that say one thing of a request as a whole: who sends it, from
// where, to whom, and how its body is to be read. Who is in front of this server, or fasthttp
// itself, may go by the first of two such lines where another goes by the last.
var singles = [...]string{
	fasthttp.HeaderHost, fasthttp.HeaderContentType, fasthttp.HeaderContentLength, fasthttp.HeaderTransferEncoding,
	fasthttp.HeaderAuthorization, fasthttp.HeaderOrigin, "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest",
	fasthttp.HeaderExpect, fasthttp.HeaderRange, fasthttp.HeaderCookie, "Idempotency-Key", "Last-Event-ID",
	fasthttp.HeaderAccessControlRequestMethod,
}

// repeated returns the first of singles that raw header lines hold twice, also with the same
// value; "" when there is none.
func repeated(raw []byte) string {
	seen := 0
	for len(raw) > 0 {
		line := raw
		if end := bytes.IndexByte(raw, '\n'); end >= 0 {
			line, raw = raw[:end], raw[end+1:]
		} else {
			raw = nil
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 0 {
			continue
		}
		for i := range singles {
			name := singles[i]
			if len(name) != colon || line[0]|0x20 != name[0]|0x20 || !bytes.EqualFold(line[:colon], []byte(name)) {
				continue
			}
			if seen&(1<<i) != 0 {
				return name
			}
			seen |= 1 << i
			break
		}
	}
	return ""
}

// refuseRepeated refuses a request that says something twice.
func refuseRepeated(h *fasthttp.RequestHeader) error {
	if name := repeated(h.RawHeaders()); name != "" {
		return &refusal{fasthttp.StatusBadRequest, "the request has the header " + name + " more than once"}
	}
	return nil
}
