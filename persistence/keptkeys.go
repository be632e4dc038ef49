package persistence

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// An idempotency key outlives its run. The deletion of the run keeps the key's row, with
// the time until which it stays, and adds a row to an index by that time. Sweeps go along
// the index from its beginning: they look at no key that stays.

// keptKeys is what the store knows of the keys whose runs were deleted.
type keptKeys struct {
	count atomic.Int64 // as the meta row "keys" has it
	from  int64        // no expiry row below this time is left; under purging
}

// expiryKey is the index row of a key that stays until a time (ns) of its caller's clock.
func expiryKey(until int64, hash [32]byte) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{typeExpiry}, uint64(until)), hash[:]...)
}

func parseExpiryKey(key []byte) (until int64, hash [32]byte, err error) {
	if len(key) != 1+8+len(hash) {
		return 0, hash, fmt.Errorf("%w: expiry key of %d bytes", errCorrupt, len(key))
	}
	copy(hash[:], key[9:])
	return int64(binary.BigEndian.Uint64(key[1:])), hash, nil
}

// keyRows are the rows that a run's deletion changes of its idempotency key: none when
// it has none, or when the key belongs to another run by now.
func keyRows(txn *badger.Txn, run messages.RunID, hash [32]byte, until int64) ([]op, error) {
	v, err := getTxn(txn, idempotencyKey(hash))
	if err != nil || v == nil {
		return nil, err
	}
	of, bodyHash, _, err := decodeKeyRow(v)
	switch {
	case err != nil || of != run:
		return nil, err
	case until <= 0:
		return []op{{key: idempotencyKey(hash), del: true}}, nil
	}
	return []op{
		seal(idempotencyKey(hash), appendKeyRow(nil, run, bodyHash, until)),
		seal(expiryKey(until, hash), nil),
	}, nil
}

// countKeys is how many keys rows keep, less those that they remove.
func countKeys(rows []op) (n int64) {
	for i := range rows {
		switch {
		case rows[i].key[0] != typeExpiry:
		case rows[i].del:
			n--
		default:
			n++
		}
	}
	return n
}

// counted appends the row that says how many keys are kept when rows are durable.
func (s *Badger) counted(rows []op) (_ []op, change int64) {
	if change = countKeys(rows); change != 0 {
		rows = append(rows, metaRow("keys", uint64(max(s.kept.count.Load()+change, 0))))
	}
	return rows, change
}

// KeptKeys is how many keys of deleted runs are kept.
func (s *Badger) KeptKeys() int { return int(s.kept.count.Load()) }

// ExpireKeys removes up to limit keys of deleted runs, the oldest first: those that stay
// until now or less, and those beyond the newest most. It returns how many.
func (s *Badger) ExpireKeys(now int64, most, limit int) (int, error) {
	s.purging.Lock()
	defer s.purging.Unlock()
	surplus := s.KeptKeys() - most
	limit = min(limit, deleteRows/2)
	var rows []op
	from, removed := s.kept.from, 0
	err := s.view(func(txn *badger.Txn) error {
		return scanTxn(txn, []byte{typeExpiry}, expiryKey(s.kept.from, [32]byte{}), false, func(key []byte, _ *badger.Item) (bool, error) {
			until, hash, err := parseExpiryKey(key)
			if err != nil || removed == limit || until > now && removed >= surplus {
				return false, err
			}
			from = until
			removed++
			rows = append(rows, op{key: expiryKey(until, hash), del: true})
			v, err := getTxn(txn, idempotencyKey(hash))
			if err != nil || v == nil {
				return err == nil, err
			}
			// A run that was deleted later may have the key, or one that exists.
			_, _, of, err := decodeKeyRow(v)
			if err == nil && of == until {
				rows = append(rows, op{key: idempotencyKey(hash), del: true})
			}
			return err == nil, err
		})
	})
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	rows, change := s.counted(rows)
	if err := s.deleteStep(rows); err != nil {
		return 0, err
	}
	s.kept.count.Add(change)
	s.kept.from = from
	return removed, nil
}

// loadKeptKeys reads how many keys are kept.
func (s *Badger) loadKeptKeys() error {
	n, err := s.metaNumber("keys")
	s.kept.count.Store(int64(n))
	return err
}
