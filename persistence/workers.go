package persistence

import (
	"bytes"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// A partition of a cluster has a row for each worker that may have attempts of its runs: a node, or a worker without
// a node. A leader commits it before its first order to the worker, so the next leader knows whom to wait for. The
// rows are meta rows, "worker/" and the ID of the worker, without content.
const workerPrefix = "worker/"

// workerV1 is the version of a worker's row.
const workerV1 = 1

func workerKey(id string) []byte { return metaKey(workerPrefix + id) }

// Workers returns the IDs of the workers that have a row, by ascending IDs.
func (s *runReader) Workers() (ids []string, err error) {
	prefix := workerKey("")
	err = s.scanRows(prefix, nil, false, func(key []byte, item *badger.Item) (bool, error) {
		ids = append(ids, string(key[len(prefix):]))
		err := itemValue(item, func(v []byte) error { return newDecoder(v, workerV1).end() })
		if err != nil {
			err = fmt.Errorf("row of worker %q: %w", ids[len(ids)-1], err)
		}
		return true, err
	})
	return ids, err
}

// IsWorkerRow reports whether a row, by its key, is that of a worker.
func IsWorkerRow(key []byte) bool { return bytes.HasPrefix(key, workerKey("")) }

// AddWorkers commits the rows of workers in one group, and returns when that is durable.
func (s *RunStore) AddWorkers(ids ...string) error {
	if len(ids) > s.rowsPerCommit() {
		return fmt.Errorf("%d workers at once: at most %d", len(ids), s.rowsPerCommit())
	}
	rows := make([]mutation, len(ids))
	for i, id := range ids {
		rows[i] = sealRow(workerKey(id), []byte{workerV1})
	}
	return s.commitRows(rows)
}

// RemoveWorker removes the row of a worker, and returns when that is durable.
func (s *RunStore) RemoveWorker(id string) error {
	return s.commitRows([]mutation{{Key: workerKey(id), Delete: true}})
}
