package dag

import (
	"math/bits"
)

// This file has the two sets of tasks of a run: the bitmap for sets with members anywhere (live
// tasks, changed chunks), and the rangeQueue for ready work, which comes in long ranges.

// bitmap is a set of the numbers 0 … size-1. Bit i of a level is set when word i of the level below
// is not 0, so that iteration in ascending order skips gaps: each of a few members among 10,000,000 is
// found in a few steps. has costs O(1), add, remove and next O(levels), at most 6. The set takes 1.02
// bits per possible member, whatever its members are. A number beyond size panics.
type bitmap struct {
	levels [][]uint64 // levels[0] has a bit for each number; the last one is a single word
	size   int        // possible members
	count  int        // members
}

// grow makes room for the members 0 … n-1 and keeps the present ones. A set that has been used
// grows by a quarter at least: growth copies all levels, and each small generated set asks for it.
func (b *bitmap) grow(n int) {
	if n <= b.size {
		return
	}
	old := *b
	if old.size > 0 {
		n = max(n, old.size+old.size/4)
	}
	*b = bitmap{size: n}
	for words := n; ; {
		words = (words + 63) / 64
		b.levels = append(b.levels, make([]uint64, words))
		if words == 1 {
			break
		}
	}
	old.each(b.add)
}

func (b *bitmap) has(i uint32) bool { return b.levels[0][i>>6]>>(i&63)&1 != 0 }

func (b *bitmap) add(i uint32) {
	if b.has(i) {
		return
	}
	b.count++
	for _, words := range b.levels {
		old := words[i>>6]
		words[i>>6] = old | 1<<(i&63)
		if old != 0 {
			return
		}
		i >>= 6
	}
}

func (b *bitmap) remove(i uint32) {
	if !b.has(i) {
		return
	}
	b.count--
	for _, words := range b.levels {
		words[i>>6] &^= 1 << (i & 63)
		if words[i>>6] != 0 {
			return
		}
		i >>= 6
	}
}

// next returns the smallest member >= i.
func (b *bitmap) next(i uint32) (uint32, bool) {
	for l := 0; l < len(b.levels); l++ {
		word := i >> 6
		if int(word) >= len(b.levels[l]) {
			return 0, false
		}
		if rest := b.levels[l][word] >> (i & 63); rest != 0 {
			i += uint32(bits.TrailingZeros64(rest))
			for l--; l >= 0; l-- {
				i = i<<6 | uint32(bits.TrailingZeros64(b.levels[l][i]))
			}
			return i, true
		}
		i = word + 1
	}
	return 0, false
}

// each yields the members, ascending. While it runs, only the member that was yielded last may be
// removed, and only greater ones may be added.
func (b *bitmap) each(yield func(uint32)) {
	for i, ok := b.next(0); ok; i, ok = b.next(i + 1) {
		yield(i)
	}
}

// members lists the set.
func (b *bitmap) members() []uint32 {
	list := make([]uint32, 0, b.count)
	b.each(func(i uint32) { list = append(list, i) })
	return list
}

// taskRange is a range of n tasks.
type taskRange struct{ first, n uint32 }

// rangeQueue is a queue of tasks as ranges, first in, first out. Neighbours that are pushed one after
// the other become one range, so a template of a million ready tasks takes 8 bytes. The tasks of a
// queue are distinct, as far as they can be granted; killed tasks stay in it.
type rangeQueue struct {
	list []taskRange // list[head:] are queued
	head int
}

// push appends the tasks [first, first+n).
func (q *rangeQueue) push(first, n uint32) {
	if last := len(q.list) - 1; last >= q.head && q.list[last].first+q.list[last].n == first {
		q.list[last].n += n
		return
	}
	q.list = append(q.list, taskRange{first, n})
}

func (q *rangeQueue) empty() bool { return q.head == len(q.list) }

// pop takes the first task of the first range.
func (q *rangeQueue) pop() uint32 {
	s := &q.list[q.head]
	task := s.first
	s.first++
	s.n--
	if s.n == 0 {
		q.head++
		if q.head*2 >= len(q.list) { // moves each range at most once per pop of a range
			q.list = q.list[:copy(q.list, q.list[q.head:])]
			q.head = 0
		}
	}
	return task
}

// removeRange removes the tasks [first, first+n), wherever they are: O(ranges).
func (q *rangeQueue) removeRange(first, n uint32) {
	end := first + n
	kept := make([]taskRange, 0, len(q.list)-q.head)
	for _, s := range q.list[q.head:] {
		if last := s.first + s.n; s.first < first && last > first {
			kept = append(kept, taskRange{s.first, first - s.first})
		}
		if s.first >= end || s.first+s.n <= first {
			kept = append(kept, s)
		}
		if last := s.first + s.n; s.first < end && last > end {
			kept = append(kept, taskRange{end, last - end})
		}
	}
	*q = rangeQueue{list: kept}
}
