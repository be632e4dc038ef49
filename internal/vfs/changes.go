package vfs

import (
	"os"
	"time"
)

// FileChanges notices new versions of files that a user may replace while a process uses them, such as
// certificates. A version is a time of modification with a size: a change that keeps both is not
// noticed. A FileChanges is not safe for concurrent use.
type FileChanges struct {
	names   []string
	stamps  []fileStamp // of the files when they were last compared
	checked time.Time   // when that was; zero = compare at the next call of Found
}

// fileStamp distinguishes the versions of a file. The zero value stands for a file that cannot be
// found, so its return counts as a change.
type fileStamp struct {
	modified time.Time
	size     int64
}

// minCheckInterval is the shortest time between two looks at the files.
const minCheckInterval = time.Second

// WatchFiles takes the present versions as known. Read the files after it: a file that is replaced
// between the two calls then counts as changed.
func WatchFiles(names ...string) *FileChanges {
	c := &FileChanges{names: names}
	c.stamps = c.readStamps()
	return c
}

// Found reports whether any file has another version than at the last comparison. It looks at the files
// at most once a second of now, and returns false in between. It reports each version once, whether its
// content is valid or not.
func (c *FileChanges) Found(now time.Time) bool {
	if now.Sub(c.checked) < minCheckInterval {
		return false
	}
	c.checked = now
	stamps, former := c.readStamps(), c.stamps
	c.stamps = stamps
	for i := range stamps {
		if stamps[i] != former[i] {
			return true
		}
	}
	return false
}

// Expire makes the next call of Found look at the files, however soon it comes.
func (c *FileChanges) Expire() { c.checked = time.Time{} }

func (c *FileChanges) readStamps() []fileStamp {
	out := make([]fileStamp, len(c.names))
	for i, name := range c.names {
		if info, err := os.Stat(name); err == nil {
			out[i] = fileStamp{info.ModTime(), info.Size()}
		}
	}
	return out
}
