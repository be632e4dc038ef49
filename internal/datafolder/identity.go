package datafolder

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// Format is the version of the data folder as a whole. Every change that an older program cannot
// read increments it.
//
// Folders and backups carry this number, and no program reads any other: parseIdentity refuses such
// a folder, a restore such a backup. So an increment gives up all folders and backups written
// before. A property of some folders only, such as another storage engine, needs a format of its
// own for these folders, and readers that accept both. To Inspect another format is a problem, which
// check and salvage list before they read on. A backup has rows and no files of the storage
// engine, so its header keeps Format.
const Format = 3

// ID identifies a data folder by 128 random bits. Workers, control groups and jobs of a cluster
// carry it, so that a server touches only those of its own folder. Two folders must never share
// one: this is why a copy gets a new ID before anything else happens in it.
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
	location location
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
	b = fmt.Appendf(b, "inode %d\nborn %d\ndevice %d\nboot %q\n", i.location.inode, i.location.birthTime, i.location.device, i.location.boot)
	return appendChecksum(b)
}

func appendChecksum(body []byte) []byte {
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
	if !bytes.Equal(appendChecksum(body), text) {
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
		if err := i.setField(name, value); err != nil {
			return damaged(fmt.Sprintf("%s: %v", name, err))
		}
	}
	return i, nil
}

func (i *identity) setField(name, value string) (err error) {
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
		i.location.inode, err = strconv.ParseUint(value, 10, 64)
	case "born":
		i.location.birthTime, err = strconv.ParseInt(value, 10, 64)
	case "device":
		i.location.device, err = strconv.ParseUint(value, 10, 64)
	case "boot":
		i.location.boot, err = strconv.Unquote(value)
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

// readIdentity reads both identity files into f.identity. found is false if both are missing. A
// damaged or outdated file is ignored if the other one is valid. Two valid files of the same revision
// that differ cannot come from a crash: somebody has mixed two folders, and a guess could give the
// folder to the wrong server, so that is an error.
func (f *Folder) readIdentity() (found bool, _ error) {
	var errs []error
	var behind bool
	for n, name := range []string{identityName, copyName} {
		text, err := f.readFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			behind = true
			continue
		}
		var i identity
		if err == nil {
			i, err = parseIdentity(text)
		}
		switch {
		case err != nil && !errors.Is(err, errDamaged):
			return false, fmt.Errorf("%s: %w", name, err)
		case err != nil:
			behind = true
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		case found && i.revision == f.identity.revision && i != f.identity:
			return false, fmt.Errorf("%s and %s belong to different folders; remove the wrong one", identityName, copyName)
		default:
			behind = behind || n > 0 && found && i.revision != f.identity.revision
			if i.revision > f.identity.revision {
				f.identity = i
			}
			found = true
		}
	}
	if !found && len(errs) > 0 {
		return false, fmt.Errorf("%w: put one of the two files back, or restore a backup into a new folder", errors.Join(errs...))
	}
	if len(errs) > 0 {
		f.log.Warn("an identity file is damaged; the other one is used", "data", f.path, "err", errs[0])
	}
	f.identityStale = found && behind
	return found, nil
}

func (f *Folder) readFile(name string) ([]byte, error) {
	file, err := f.fs.OpenFile(f.pathOf(name), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.NewSectionReader(file, 0, maxIdentity+1))
}

// writeIdentity stores next in both files, one after the other: at each moment at least one of them
// is whole. After an error f.identity is unchanged, and the next opening repairs the file that is
// behind.
func (f *Folder) writeIdentity(next identity) error {
	next.revision++
	text := next.encode()
	for _, name := range []string{identityName, copyName} {
		if err := vfs.ReplaceFile(f.fs, f.pathOf(name), text); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	f.identity, f.identityStale = next, false
	return nil
}
