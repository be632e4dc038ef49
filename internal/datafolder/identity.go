package datafolder

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"
)

// Format is the version of the data folder as a whole. Every change that an older program cannot
// read increments it.
const Format = 3

// ID identifies a data folder by 128 random bits.
type ID [16]byte

// String returns the ID in hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first 8 digits, for names of files.
func (id ID) Short() string { return hex.EncodeToString(id[:4]) }

// ParseID is the inverse of String.
func ParseID(text string) (id ID, err error) {
	if err := id.parse(text); err != nil {
		return id, fmt.Errorf("data folder's ID %q: %w", text, err)
	}
	return id, nil
}

func newID() (id ID) {
	rand.Read(id[:])
	return id
}

// state is the stage in the life of a folder.
type state string

const (
	stateNew     state = "new"     // has not acknowledged anything
	statePartial state = "partial" // a restore or a salvage writes it
	stateUsed    state = "used"
)

// identity is the content of an identity file.
type identity struct {
	revision uint64 // incremented by each write
	id       ID
	origin   ID // of the folder that this one was copied or restored from; zero = none
	created  time.Time
	state    state
	paused   string // why no task is started; "" = not paused
	home     home
}

const (
	magic = "caravan data folder"
	// maxIdentity bounds an identity file, in bytes.
	maxIdentity = 4 << 10
	// maxReason bounds identity.paused, in bytes.
	maxReason = 512
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode returns the text of the file: a line per member, always in the same order, then the
// CRC-32C of the lines before.
func (i *identity) encode() []byte {
	reason := i.paused
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	var b []byte
	b = fmt.Appendf(b, "%s\nformat %d\nrevision %d\nid %s\norigin %s\ncreated %s\nstate %s\npaused %s\n",
		magic, Format, i.revision, i.id, i.origin, i.created.UTC().Format(time.RFC3339Nano), i.state, strconv.QuoteToASCII(reason))
	b = fmt.Appendf(b, "inode %d\nborn %d\ndevice %d\nboot %q\n", i.home.inode, i.home.born, i.home.device, i.home.boot)
	return appendSum(b)
}

func appendSum(body []byte) []byte {
	return fmt.Appendf(body, "crc32c %08x\n", crc32.Checksum(body, castagnoli))
}

// errDamaged means that an identity file differs from what was written.
var errDamaged = errors.New("damaged")

// parseIdentity is the inverse of encode. Its error is errDamaged, or says that the format is
// another one.
func parseIdentity(text []byte) (i identity, err error) {
	damaged := func(what string) (identity, error) { return identity{}, fmt.Errorf("%w: %s", errDamaged, what) }
	if len(text) > maxIdentity {
		return damaged("it is too long")
	}
	at := bytes.LastIndex(text, []byte("\ncrc32c ")) + 1
	if at == 0 {
		return damaged("it has no checksum")
	}
	body := text[:at:at]
	if !bytes.Equal(appendSum(body), text) {
		return damaged("its checksum is wrong")
	}
	lines := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	if len(lines) < 2 || lines[0] != magic {
		return damaged("it is not a data folder's identity")
	}
	if lines[1] != fmt.Sprintf("format %d", Format) {
		return i, fmt.Errorf("%q; this program reads format %d", lines[1], Format)
	}
	names := []string{"revision", "id", "origin", "created", "state", "paused", "inode", "born", "device", "boot"}
	if len(lines) != 2+len(names) {
		return damaged(fmt.Sprintf("it has %d lines", len(lines)))
	}
	for n, name := range names {
		value, ok := strings.CutPrefix(lines[2+n], name+" ")
		if !ok {
			return damaged(fmt.Sprintf("line %d is not %q", 3+n, name))
		}
		if err := i.set(name, value); err != nil {
			return damaged(fmt.Sprintf("%s: %v", name, err))
		}
	}
	return i, nil
}

func (i *identity) set(name, value string) (err error) {
	switch name {
	case "revision":
		i.revision, err = strconv.ParseUint(value, 10, 64)
	case "id":
		err = i.id.parse(value)
	case "origin":
		err = i.origin.parse(value)
	case "created":
		i.created, err = time.Parse(time.RFC3339Nano, value)
	case "state":
		i.state = state(value)
		if i.state != stateNew && i.state != statePartial && i.state != stateUsed {
			err = fmt.Errorf("unknown state %q", value)
		}
	case "paused":
		i.paused, err = strconv.Unquote(value)
	case "inode":
		i.home.inode, err = strconv.ParseUint(value, 10, 64)
	case "born":
		i.home.born, err = strconv.ParseInt(value, 10, 64)
	case "device":
		i.home.device, err = strconv.ParseUint(value, 10, 64)
	case "boot":
		i.home.boot, err = strconv.Unquote(value)
	}
	return err
}

func (id *ID) parse(text string) error {
	b, err := hex.DecodeString(text)
	if err == nil && len(b) != len(id) {
		err = fmt.Errorf("%d bytes", len(b))
	}
	if err == nil {
		copy(id[:], b)
	}
	return err
}
