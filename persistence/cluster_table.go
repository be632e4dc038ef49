package persistence

import "fmt"

// Partition 0 of a cluster has a row with the table of the cluster's nodes, which package cluster makes and reads.
// It is a meta row, "cluster".
const clusterTableName = "cluster"

// clusterTableV1 is the version of the row: what follows it is the text of package cluster.
const clusterTableV1 = 1

// ClusterTable returns what the row of the cluster's table has; nil without a row.
func (s *runReader) ClusterTable() ([]byte, error) {
	v, err := s.getRow(metaKey(clusterTableName))
	if err != nil || v == nil {
		return nil, err
	}
	d := newDecoder(v, clusterTableV1)
	text := d.rest()
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("meta row %s: %w", clusterTableName, err)
	}
	return text, nil
}

// SetClusterTable commits the row of the cluster's table, and returns when it is durable. After ErrLost the next
// leader finds this text or the one before.
func (s *RunStore) SetClusterTable(text []byte) error {
	return s.commitRows([]mutation{sealRow(metaKey(clusterTableName), append([]byte{clusterTableV1}, text...))})
}
