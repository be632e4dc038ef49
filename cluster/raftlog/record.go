package raftlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// A record file holds one small record that is replaced as a whole: the vote, the snapshot's index,
// the list of segments. Its layout is the CRC-32C of the rest (4 bytes), then the record.
//
// After a crash the file holds the old record or the new one. Any other content is an error, and
// never the older record: a replica that forgot a vote could vote again in the same term.
const (
	recordSumLength = 4
	maxRecordLength = 16 << 20 // a damaged file must not exhaust the memory; a record has some kilobytes
)

// writeRecord replaces a record file. The record is durable when it returns nil. After an error the
// file holds the old or the new record, and the next reader finds out which.
func writeRecord(fsys vfs.FS, dir, name string, record []byte) error {
	data := binary.BigEndian.AppendUint32(make([]byte, 0, recordSumLength+len(record)), crc32.Checksum(record, castagnoli()))
	data = append(data, record...)
	return vfs.ReplaceFile(fsys, filepath.Join(dir, name), data)
}

// readRecord returns the record of a file. A missing file is fs.ErrNotExist.
func readRecord(fsys vfs.FS, dir, name string) ([]byte, error) {
	path := filepath.Join(dir, name)
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < recordSumLength || info.Size() > maxRecordLength {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("damaged: it has %d bytes", info.Size())}
	}
	data := make([]byte, info.Size())
	if _, err := f.ReadAt(data, 0); err != nil {
		return nil, err
	}
	if binary.BigEndian.Uint32(data) != crc32.Checksum(data[recordSumLength:], castagnoli()) {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errBadSum}
	}
	return data[recordSumLength:], nil
}

// removeIfThere removes a file that may be missing.
func removeIfThere(fsys vfs.FS, path string) error {
	err := fsys.Remove(path)
	if os.IsNotExist(err) {
		return nil
	}
	return err
}
