package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/persistence"
)

// The table of the nodes (nodeTable) is a row of partition 0:
//
//	leader of partition 0   reads the row when its engine begins. A row that is missing, or of a former cluster that a
//	                        seed has brought, is replaced by what the leader knows. From then on it alone changes
//	                        the row, through the log: when members of groups or addresses change, and for operators
//	every node              announces the version that it has (announcements.go), and fetches a newer one from the
//	                        node that announces it
//
// Each node keeps the newest table that it has seen in nodes.json, which is durable before the table is used. A
// crash between row and file costs nothing: the row counts, and the next leader shares it. A table never takes the
// place of a newer one.

// tableFile is the name of the cached table in a member's folder.
const tableFile = "nodes.json"

// tableInquiry asks for the table that a node has.
const tableInquiry inquiryKind = "table"

// tableLookPause is between two looks of the leader whether the table says what it knows.
const tableLookPause = time.Second

// cachedTable is the content of nodes.json.
type cachedTable struct {
	Format int             `json:"format"`
	Table  json.RawMessage `json:"table"` // nodeTable.encode
}

// tableKeeper has the newest table that a node knows.
type tableKeeper struct {
	member  *Member
	current atomic.Pointer[nodeTable] // nil until one was seen
	// isFetching says that a newer table is being fetched.
	isFetching atomic.Bool
	// adopting is held while a table takes the place of another one, with the writes of files.
	adopting sync.Mutex
}

// errOldTable refuses changes while this program cannot read the row.
var errOldTable = errors.New("the row with the table of the nodes was not understood")

// openTableKeeper reads the cached table. A cache that cannot be read is left: other nodes have the table.
func openTableKeeper(m *Member) *tableKeeper {
	k := &tableKeeper{member: m}
	var cached cachedTable
	err := readJSON(m.config.FS, filepath.Join(m.config.Dir, tableFile), &cached)
	if errors.Is(err, fs.ErrNotExist) {
		return k
	}
	if err == nil && cached.Format != folderFormat {
		err = fmt.Errorf("%s has format %d, this program reads format %d", tableFile, cached.Format, folderFormat)
	}
	var t *nodeTable
	if err == nil {
		t, err = decodeTable(cached.Table)
	}
	if err == nil && t.Cluster != m.identity.Cluster {
		err = fmt.Errorf("%s is of cluster %s, and the folder of %q", tableFile, t.Cluster, m.identity.Cluster)
	}
	if err != nil {
		m.config.Logger.Warn("the cached table of the nodes is not used", "err", err)
		return k
	}
	k.current.Store(t)
	return k
}

// table returns the newest table that this node knows; nil before it has seen one.
func (m *Member) table() *nodeTable {
	if m.tables == nil { // a test makes parts of a member
		return nil
	}
	return m.tables.current.Load()
}

// version returns the version of the present table; 0 without one.
func (k *tableKeeper) version() uint64 {
	if t := k.current.Load(); t != nil {
		return t.Version
	}
	return 0
}

// adopt takes a table of this cluster in place of an older one, once it is durable here. An error is that of a disk,
// which is fatal.
func (k *tableKeeper) adopt(t *nodeTable) error {
	k.adopting.Lock()
	defer k.adopting.Unlock()
	m := k.member
	if t.Cluster != m.cluster.String() || t.Version <= k.version() {
		return nil
	}
	text, err := t.encode()
	if err != nil {
		return err
	}
	// The level comes first: a program that does not know it must not open a folder that has seen its table.
	if err = m.raiseLevel(t.Level); err == nil {
		err = writeJSON(m.config.FS, m.config.Dir, tableFile, cachedTable{folderFormat, text})
	}
	if err != nil {
		err = fmt.Errorf("table of the nodes: %w", err)
		m.config.Fatal(err)
		return err
	}
	k.current.Store(t)
	m.config.Logger.Info("the table of the nodes has changed", "version", t.Version, "level", t.Level, "nodes", len(t.Nodes))
	m.announceChange()
	return nil
}

// noteVersion fetches the table of a node that announces a newer one. It does not wait; one that fails is
// repeated at the next announcement.
func (k *tableKeeper) noteVersion(from raftlog.NodeID, version uint64) {
	if version <= k.version() || !k.isFetching.CompareAndSwap(false, true) {
		return
	}
	m := k.member
	m.background.Go(func() {
		defer k.isFetching.Store(false)
		if err := k.fetch(from); err != nil && m.port.ctx.Err() == nil {
			m.config.Logger.Info("cannot fetch a newer table of the nodes", "from", from, "err", err)
		}
	})
}

func (k *tableKeeper) fetch(from raftlog.NodeID) error {
	a, err := k.member.ask(k.member.port.ctx, from, &inquiry{Kind: tableInquiry})
	if err != nil {
		return err
	}
	t, err := decodeTable(a.Table)
	if err != nil {
		return err
	}
	return k.adopt(t)
}

// tableHere answers a tableInquiry.
func (m *Member) tableHere() (json.RawMessage, error) {
	t := m.table()
	if t == nil {
		return nil, errors.New("the node has not seen a table of the nodes yet")
	}
	return t.encode()
}

// clusterRow is the row of the table, for the leadership of partition 0 that is the only one to change it.
type clusterRow struct {
	mu sync.Mutex // held over a change
	// table is what the row has; nil while it cannot be read.
	table *nodeTable
}

// openTable reads the row, and makes it say what this leader knows. It runs before the engine begins. An error is
// that of the store.
func (l *leadership) openTable(k *tableKeeper) error {
	text, err := l.store.ClusterTable()
	if err != nil {
		return fmt.Errorf("table of the nodes: %w", err)
	}
	l.row.mu.Lock()
	defer l.row.mu.Unlock()
	m := k.member
	if text != nil {
		if l.row.table, err = decodeTable(text); err != nil {
			// A newer program may have written it. The partition serves all the same.
			l.host.logger.Error("the row of partition 0 with the nodes is not understood", "err", err)
			return nil
		}
	}
	if l.row.table == nil || l.row.table.Cluster != m.cluster.String() {
		l.row.table = nil
		first := &nodeTable{Cluster: m.cluster.String(), Level: m.identity.Level, Hosts: make([][]raftlog.NodeID, m.config.Partitions)}
		for _, id := range m.identity.ids() {
			first.addNode(id)
		}
		for p := range first.Hosts {
			first.setHosts(p, m.firstHosts(p))
		}
		m.updateTable(first)
		return l.writeTable(k, first)
	}
	next := l.row.table.clone()
	m.updateTable(next)
	if next.equals(l.row.table) {
		return k.adopt(l.row.table)
	}
	return l.writeTable(k, next)
}

// updateTable makes a table say what this node knows of groups and addresses. What it knows of a partition that it
// does not lead may be old; a later look puts that right. The members of a partition without a replica here come from
// the announcements of its leader.
func (m *Member) updateTable(t *nodeTable) {
	for p := range t.Hosts {
		if members := m.groupMembers(p); len(members) > 0 {
			t.setHosts(p, members)
		}
	}
	t.setAddresses(m.config.Nodes)
	t.dropFormer()
}

// writeTable commits a table as the next version. The caller holds row.mu.
func (l *leadership) writeTable(k *tableKeeper, next *nodeTable) error {
	next.Version = 1
	if l.row.table != nil {
		next.Version = l.row.table.Version + 1
	}
	text, err := next.encode()
	if err != nil {
		l.host.logger.Error("the table of the nodes is not written", "err", err)
		return nil // the partition serves all the same
	}
	if err := l.store.SetClusterTable(text); err != nil {
		return fmt.Errorf("table of the nodes: %w", err)
	}
	l.row.table = next
	return k.adopt(next)
}

// changeTable changes the table, if this node leads partition 0. It returns when the change is committed and durable
// here, or at once if there is nothing to change. An error of change is returned as it is. After errNotLeader the
// change may be committed or not.
func (k *tableKeeper) changeTable(change func(*nodeTable) error) error {
	l := k.member.leadership(0)
	if l == nil {
		return errNotLeader
	}
	l.row.mu.Lock()
	defer l.row.mu.Unlock()
	if l.row.table == nil {
		return errOldTable
	}
	next := l.row.table.clone()
	if err := change(next); err != nil {
		return err
	}
	if next.equals(l.row.table) {
		return nil
	}
	err := l.writeTable(k, next)
	if errors.Is(err, persistence.ErrLost) || errors.Is(err, persistence.ErrClosed) {
		return fmt.Errorf("%w: %w", errNotLeader, err)
	}
	return err
}

// keep makes the table follow the groups and the list of addresses, while this node leads partition 0.
func (k *tableKeeper) keep(ctx context.Context) {
	ticker := time.NewTicker(tableLookPause)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := k.changeTable(func(t *nodeTable) error { k.member.updateTable(t); return nil })
		if err != nil && !errors.Is(err, errNotLeader) && !errors.Is(err, errOldTable) {
			k.member.config.Logger.Warn("the table of the nodes is not up to date", "err", err)
		}
	}
}
