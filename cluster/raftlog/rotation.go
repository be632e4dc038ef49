package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// Lengths in a segment, as raft-wal's package segment writes it. Integers are little-endian.
//
//	file header (32 bytes), then frames: type (1), zeros (3), length of the payload or CRC-32C (4),
//	payload, zeros up to a multiple of 8
//
// An append writes entry frames and one commit frame, whose sum covers everything since the last commit
// frame. The append that fills the segment writes an index frame before its commit frame.
const (
	fileHeaderLength  = 32
	frameHeaderLength = 8
)

// finishRotation completes the change to a new segment that a crash has interrupted. raft-wal seals a
// full segment with the last append, and enters the next one in the list of segments later. If the
// process is killed in between, raft-wal opens the segment as the one to append to, finds it sealed, and
// refuses every append from then on, after each restart: "segment is sealed". The same happens if the
// last append was torn and its index frame is there.
//
// It must be called before raft-wal opens the log.
func finishRotation(fsys vfs.FS, dir string, segmentBytes int) error {
	list := segmentList{fsys: fsys}
	state, err := list.Load(dir)
	if err != nil || len(state.Segments) == 0 {
		return err
	}
	last := &state.Segments[len(state.Segments)-1]
	if !last.SealTime.IsZero() {
		return nil
	}
	f, err := fsys.OpenFile(filepath.Join(dir, segment.FileName(*last)), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // raft-wal creates it
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	data := make([]byte, info.Size())
	if _, err := f.ReadAt(data, 0); err != nil && err != io.EOF {
		return err
	}
	found := scanSegment(data)
	switch {
	case found.index == 0:
		return nil
	case found.index > found.end: // the append with the index was torn
		if err := f.Truncate(int64(found.end)); err != nil {
			return err
		}
		if err := f.Truncate(info.Size()); err != nil {
			return err
		}
		return f.Sync()
	case found.entries == 0:
		return fmt.Errorf("segment %s: sealed and empty", f.Name())
	}
	last.SealTime, last.IndexStart, last.MaxIndex = time.Now(), uint64(found.index), last.BaseIndex+uint64(found.entries)-1
	base := last.MaxIndex + 1
	state.Segments = append(state.Segments, types.SegmentInfo{ID: state.NextSegmentID, BaseIndex: base, MinIndex: base,
		SizeLimit: uint32(segmentBytes), Codec: last.Codec, CreateTime: time.Now()})
	state.NextSegmentID++
	return list.CommitState(state)
}

// segmentScan is what finishRotation must know of a segment.
type segmentScan struct {
	end     int // of the last append that is whole, in bytes
	entries int // up to there
	index   int // where the numbers of the last index frame begin; 0: no index frame
}

// scanSegment walks over the frames. Like raft-wal it checks the sum of the last append only, and takes
// the ones before it for whole, because they were synced before it began.
func scanSegment(data []byte) (found segmentScan) {
	var before segmentScan // as of the commit frame before the last one
	entries, begin := 0, 0 // begin is where the sum of the next commit frame begins
	lastIsWhole, trailing := true, false
	for at := fileHeaderLength; at+frameHeaderLength <= len(data); {
		kind, value := data[at], binary.LittleEndian.Uint32(data[at+4:])
		length := 0
		switch kind {
		case segment.FrameEntry:
			entries++
			length = int(value)
		case segment.FrameIndex:
			found.index = at + frameHeaderLength
			length = int(value)
		case segment.FrameCommit:
			before.end, before.entries = found.end, found.entries
			found.end, found.entries = at+frameHeaderLength, entries
			lastIsWhole = crc32.Checksum(data[begin:at], castagnoli()) == value
			begin = found.end
		default:
			at = len(data) // the end, or the rest of a torn append
			continue
		}
		trailing = kind != segment.FrameCommit
		at += frameHeaderLength + (length+frameHeaderLength-1)/frameHeaderLength*frameHeaderLength
	}
	// Frames after the last commit frame show that it was synced before they were written.
	if !lastIsWhole && !trailing {
		found.end, found.entries = before.end, before.entries
	}
	return found
}
