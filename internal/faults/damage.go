package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
)

// Damage damages a file as disks do: it flips a bit, zeroes a page, truncates the file, or deletes
// it. It returns a description. An empty file is deleted.
func Damage(rng *rand.Rand, path string) (what string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	size := info.Size()
	kind := rng.IntN(10)
	if size == 0 || kind == 9 {
		return "deleted", os.Remove(path)
	}
	at := rng.Int64N(size)
	if kind == 8 {
		return fmt.Sprintf("cut at %d of %d", at, size), os.Truncate(path, at)
	}
	n := int64(1)
	if kind >= 6 {
		const page = 4096
		at = at / page * page
		n = min(page, size-at)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, at); err != nil {
		return "", err
	}
	if n == 1 {
		bit := rng.IntN(8)
		b[0] ^= 1 << bit
		what = fmt.Sprintf("bit %d flipped at %d of %d", bit, at, size)
	} else {
		clear(b)
		what = fmt.Sprintf("%d bytes zeroed at %d of %d", n, at, size)
	}
	_, err = f.WriteAt(b, at)
	return what, err
}
