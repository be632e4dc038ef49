package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// DefaultPartitions is the number of partitions that suits most clusters: each of three nodes leads two, and
// those of a lost one go to both others. More cost processor time at rest and memory.
const DefaultPartitions = 6

// Config describes a member of a cluster. Name, Nodes, Partitions, Dir, Listener, Engine and Fatal are
// required, and Credentials for a listener on a network.
type Config struct {
	Name string // of this node, one of Nodes
	// Nodes lists the first nodes of the cluster, the same on each of them. Later it says where they are:
	// a node may change its address.
	Nodes      []NodeAddress
	Partitions int // fixed when the cluster is formed: see FixedPartitions
	// Replace lets a node with an empty folder take the place of the former node of its name, which has lost
	// its folder and does not run any more. Without an effect on a folder that is in use.
	Replace bool
	// RemovalSilence is how long a node must not have been heard before it is removed: for as long its tasks may go
	// on without it.
	RemovalSilence time.Duration
	// WorkersHeard returns when the workers of a node were heard last, by this node as a leader; the zero time for
	// never. Nil: only the log says.
	WorkersHeard func(node raftlog.NodeID) time.Time
	// WorkerDead tells what leads a partition here in an epoch that a worker without a node is dead (package
	// fleet). isKnown reports whether it may have had attempts. Nil: only nodes have workers.
	WorkerDead func(partition int, epoch uint64, worker string) (isKnown bool, err error)
	Dir        string // made if missing; one process at a time

	// Listener accepts the connections of other nodes. The member closes it, also when Open fails.
	Listener net.Listener
	// Credentials have the node's certificate, which states Name. They may be nil in a test whose listener
	// is in memory.
	Credentials *clustertls.Credentials
	// Dial connects to an address. Nil: by TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// Engine returns the configuration of an engine. The host sets Store, Numbering, Epoch and Registerer.
	// Executors must be of this one engine (executor.Shared).
	Engine func(EngineTerm) actors.Config
	// Storage is the configuration of the rows of each partition. The member sets Dir, Synced, Numbering
	// and Registerer. All partitions share a disk: see HardFreeBytes there.
	Storage persistence.Config
	// Log has the times and sizes of the replicated logs. The zero value means the defaults.
	Log raftlog.Settings
	// Fatal is called when the process has to end: a disk is in doubt, or a part of an engine has broken.
	// It may be called several times, from several goroutines, and must not call the member.
	Fatal func(error)

	FS         vfs.FS                // of all files but the rows, which Storage has; nil: the operating system's
	Clock      actors.Clock          // of the time of day, which the nodes compare; nil: the system's
	Registerer prometheus.Registerer // nil: no metrics
	Logger     *slog.Logger          // nil: discard

	detachLimit time.Duration // 0: the constant of this name
	// damagedLeadPause returns the constant of this name. Nil but in tests.
	damagedLeadPause func() time.Duration
	steadyTime       time.Duration // 0: the constant of this name
	// afterRestoreStep is machine.afterStep of all partitions, and the others are those of machine. Nil but in
	// tests.
	afterRestoreStep func(partition, step int) error
	findDamage       func() error
	testLevel        *int // supportedLevel of an older program; nil but in tests
	// placement returns the names of the first nodes that get a replica of a partition, the same ones on each node.
	// Nil but in tests: all of them.
	placement func(partition int) []string
	loseEntry func(index uint64) bool
}

// EngineTerm is what an engine is for: a partition, for one term.
type EngineTerm struct {
	Partition int
	Epoch     uint64
	Node      raftlog.NodeID // this one
	// Workers are the IDs of the workers, of nodes and without one, that may have attempts of former leaders, and
	// Rows changes who is listed, for as long as the engine lives.
	Workers []string
	Rows    WorkerRows
}

// Member is a node of a cluster: it has replicas of partitions, and runs the engine of those that it leads.
type Member struct {
	config     Config
	identity   *identity // constant once the first group is open
	cluster    ID
	folder     *folder
	port       *port
	introducer *introducer
	mux        *raftlog.Mux
	hosts      []*host // by partition; nil without a replica (replicas.go)
	copySpace  copySpace
	admitter   *admitter
	announcer  *announcer
	tables     *tableKeeper
	balancer   *balancer // nil with one partition
	clocks     *clockComparer
	metrics    *partitionCollector // nil until it is registered
	background sync.WaitGroup      // seekAdmission, answers to inquiries, copies and repairs

	mu       sync.Mutex // a leaf
	changes  chan struct{}
	verdicts map[int]*PartitionVerdict // by partition
	// heldUntil is until when balance leaves partitions on this node (transfer.go).
	heldUntil map[int]time.Time
	repairs   map[int]*repairProgress // by partition; each is constant

	closeOnce sync.Once
	closeErr  error
}

var _ Directory = (*Member)(nil)

// Open starts a member. The first start waits until all nodes of the list have started and agree on the
// cluster, or ctx ends; later ones do not wait for any other node. The error is a *RefusedError when the
// node cannot be part of the cluster: its folder was lost, or the nodes disagree.
func Open(ctx context.Context, config Config) (_ *Member, err error) {
	m := &Member{config: config, changes: make(chan struct{}), verdicts: map[int]*PartitionVerdict{}, heldUntil: map[int]time.Time{}, repairs: map[int]*repairProgress{}}
	c := &m.config
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.FS == nil {
		c.FS = vfs.OS{}
	}
	c.detachLimit = cmp.Or(c.detachLimit, detachLimit)
	if c.damagedLeadPause == nil {
		c.damagedLeadPause = func() time.Duration { return damagedLeadPause }
	}
	c.Logger = c.Logger.With("node", c.Name)
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if err := c.check(); err != nil {
		return nil, err
	}
	if m.folder, m.identity, err = openFolder(c.FS, c.Dir, c.Name); err != nil {
		return nil, err
	}
	if err := c.checkLevel(m.identity); err != nil {
		return nil, err
	}
	m.tables = openTableKeeper(m)
	m.announcer = newAnnouncer(m)
	if m.port, err = openPort(c); err != nil {
		return nil, err
	}
	if err := m.joinCluster(ctx); err != nil {
		return nil, err
	}
	if err := m.openReplicas(); err != nil {
		return nil, err
	}
	hosts := m.hostsByName
	m.introducer.hosts.Store(&hosts)
	if err := m.checkList(); err != nil {
		return nil, err
	}
	if c.Registerer != nil {
		m.metrics = newPartitionCollector(m)
		if err := c.Registerer.Register(m.metrics); err != nil {
			m.metrics = nil
			return nil, fmt.Errorf("metrics of the partitions: %w", err)
		}
	}
	for h := range m.ownHosts() {
		h.isRunning = true
		go h.run()
	}
	if m.admitter, err = startAdmitter(m); err != nil {
		return nil, err
	}
	m.clocks = startClockComparer(m)
	if err := m.announcer.start(); err != nil {
		return nil, err
	}
	m.background.Go(func() { m.tables.keep(m.port.ctx) })
	if c.Partitions > 1 {
		m.balancer = newBalancer(m, cmp.Or(c.steadyTime, steadyTime))
		m.balancer.start()
	}
	inquiries, err := m.port.openListener(inquiryProtocol)
	if err != nil {
		return nil, err
	}
	m.background.Go(func() { m.answerInquiries(inquiries) }) // the port closes the listener
	copies, err := m.port.openListener(copyProtocol)
	if err != nil {
		return nil, err
	}
	m.background.Go(func() { m.sendCopies(copies) })
	questions, err := m.port.openListener(deletedProtocol)
	if err != nil {
		return nil, err
	}
	m.background.Go(func() { m.answerWorkers(questions) })
	memberships, err := m.port.openListener(membershipProtocol)
	if err != nil {
		return nil, err
	}
	m.background.Go(func() { m.answerMemberships(memberships) })
	if m.identity.IsReplacement && !m.identity.IsAdmitted {
		m.background.Go(func() { m.seekAdmission(); m.watchMembership() })
	} else {
		m.background.Go(m.watchMembership)
	}
	return m, nil
}

func (c *Config) check() error {
	numbering := messages.Numbering{Partitions: uint64(max(c.Partitions, 0))}
	if c.Partitions < 1 || numbering.Check() != nil {
		return fmt.Errorf("%d partitions: must be 1 to %d", c.Partitions, messages.MaxPartitions)
	}
	var names []string
	for _, node := range c.Nodes {
		if err := clustertls.CheckName(node.Name); err != nil {
			return fmt.Errorf("list of nodes: %w", err)
		}
		if slices.Contains(names, node.Name) {
			return fmt.Errorf("node %s is listed twice", node.Name)
		}
		names = append(names, node.Name)
	}
	if c.Listener == nil || c.Engine == nil || c.Fatal == nil {
		return errors.New("a member needs a listener, an engine and someone to tell of fatal errors")
	}
	if self := (clustertls.Identity{Role: clustertls.Node, Name: c.Name}); c.Credentials != nil && c.Credentials.Self() != self {
		return fmt.Errorf("the certificate is that of %v, and this is %v", c.Credentials.Self(), self)
	}
	if !slices.Contains(names, c.Name) {
		return fmt.Errorf("the list of nodes lacks this one, %s: %s", c.Name, nameList(c.Nodes))
	}
	return nil
}

// joinCluster makes the node part of its cluster: the one that its folder names, or a new one.
func (m *Member) joinCluster(ctx context.Context) error {
	c, id := &m.config, m.identity
	if id.isFormed() {
		if err := id.compareConfig(c); err != nil {
			return fmt.Errorf("folder %s: %w", c.Dir, err)
		}
	}
	if !id.isFormed() && id.Seed != "" {
		if err := m.checkSeed(); err != nil {
			return fmt.Errorf("folder %s: %w", c.Dir, err)
		}
	}
	id.Partitions = c.Partitions
	var err error
	if m.introducer, err = startIntroducer(m.port, introduction{identity: *id, Nodes: c.Nodes, Supports: c.supportedLevel()}, c.Logger); err != nil {
		return err
	}
	if !id.isFormed() {
		decide := decideFormation
		if c.Replace {
			decide = decideReplacement
		}
		formed, err := m.introducer.formCluster(ctx, decide)
		if err != nil {
			return err
		}
		if !formed.IsReplacement {
			formed.Replicas = c.firstReplicas(c.Name)
		}
		if err := m.folder.writeIdentity(formed); err != nil {
			return err
		}
		m.identity = formed
		m.introducer.setIdentity(formed)
		c.Logger.Info("the node is part of a cluster", "cluster", formed.Cluster, "members", len(formed.Members), "replacement", formed.IsReplacement)
	}
	if m.cluster, err = m.identity.clusterID(); err != nil {
		return err
	}
	m.port.setIdentity(m.cluster, m.identity.ID)
	if m.identity.Opened {
		return nil
	}
	return m.introducer.askUntil(ctx, isFormedByAll)
}

// compareConfig refuses a configuration that is not that of the cluster.
func (i *identity) compareConfig(c *Config) error {
	if i.Partitions != c.Partitions {
		return fmt.Errorf("cluster %s has %d partitions, not %d: the number is fixed when it is formed", i.Cluster, i.Partitions, c.Partitions)
	}
	if (i.Opened || i.IsReplacement) && i.coversList(c.Nodes) {
		return nil // what it lacks may have been removed: Member.checkList
	}
	return i.compareList(c.Nodes)
}

// coversList reports whether all nodes of a list are known.
func (i *identity) coversList(nodes []NodeAddress) bool {
	return !slices.ContainsFunc(nodes, func(node NodeAddress) bool {
		return !slices.ContainsFunc(i.Members, func(m memberName) bool { return m.Name == node.Name })
	})
}

// compareList refuses a list of nodes that does not name those of the cluster.
func (i *identity) compareList(nodes []NodeAddress) error {
	var members []NodeAddress
	for _, m := range i.Members {
		members = append(members, NodeAddress{Name: m.Name})
	}
	if nameList(members) != nameList(nodes) {
		return fmt.Errorf("cluster %s has the nodes %s, and the list has %s", i.Cluster, nameList(members), nameList(nodes))
	}
	return nil
}

// openReplicas opens the replicas of this node. The first time they are new, and their groups get the list of
// voters.
func (m *Member) openReplicas() error {
	c := &m.config
	isNew := !m.identity.Opened
	if !isNew {
		if err := m.folder.checkReplicas(m.identity); err != nil {
			return err
		}
	}
	listener, err := m.port.openListener(raftlog.Protocol)
	if err != nil {
		return err
	}
	m.mux, err = raftlog.NewMux(raftlog.MuxConfig{
		Listener: listener, Authenticated: true, Logger: c.Logger,
		Resolve: func(id raftlog.NodeID) (string, error) { return string(id), nil },
		Dial: func(ctx context.Context, id string) (net.Conn, error) {
			return m.Dial(ctx, raftlog.NodeID(id), raftlog.Protocol)
		},
	})
	if err != nil {
		return err
	}
	m.hosts = make([]*host, c.Partitions)
	for p := range c.Partitions {
		if !m.identity.hasReplica(p) {
			continue
		}
		if err := m.openReplica(p, isNew); err != nil {
			return fmt.Errorf("partition %d: %w", p, err)
		}
	}
	if !isNew {
		return nil
	}
	opened := *m.identity // groups read the one in memory by now
	opened.Opened = true
	if err := m.folder.writeIdentity(&opened); err != nil {
		return err
	}
	m.introducer.setIdentity(&opened)
	return nil
}

func (m *Member) openReplica(partition int, isNew bool) error {
	c := &m.config
	h := newHost(c, partition, m.identity.ID, m.announceChange)
	storage := c.Storage
	storage.Numbering, storage.Registerer = h.numbering, h.registerer
	if storage.Logger == nil {
		storage.Logger = h.logger
	}
	if partition == 0 {
		h.tables = m.tables
	}
	h.machine = &machine{dir: m.folder.replicaFolder(partition), fsys: c.FS, base: m.identity.Base, config: storage, logger: h.logger, evictEngine: h.evictEngine}
	h.machine.space, h.machine.findDamage, h.machine.loseEntry = &m.copySpace, c.findDamage, c.loseEntry
	if c.afterRestoreStep != nil {
		h.machine.afterStep = func(step int) error { return c.afterRestoreStep(partition, step) }
	}
	if err := openMachine(h.machine, isNew); err != nil {
		return err
	}
	group := raftlog.Config{Group: groupNumber(partition), Node: m.identity.ID, Dir: filepath.Join(h.machine.dir, groupDir),
		Machine: h.machine, Mux: m.mux, FS: c.FS, CheckSpace: h.machine.checkSpace, ReleaseSpace: h.machine.releaseSpace, Settings: c.Log, Logger: h.logger}
	if isNew && !m.identity.IsReplacement {
		group.Bootstrap = m.firstHosts(partition)
		if m.identity.Seed != "" {
			group.Seed = &raftlog.Seed{Term: m.identity.SeedTerm}
		}
	}
	h.machine.comparableFrom.Store(math.MaxUint64) // entries come again from here on
	var err error
	if h.group, err = raftlog.Open(group); err != nil {
		return errors.Join(err, h.machine.close())
	}
	h.machine.comparableFrom.Store(h.group.Status().Last)
	m.hosts[partition] = h
	if s := h.group.Status(); m.identity.mustHaveEntries(partition) && s.Last == 0 && s.Snapshot == 0 {
		return fmt.Errorf("the log in %s is empty, and it had entries: they were lost. Start with an empty folder as a new node", group.Dir)
	}
	return nil
}

// groupNumber returns the group of a partition. Group 0 is left for what all partitions share.
func groupNumber(partition int) uint16 { return uint16(partition + 1) }

// HandOver gives away what the member leads, before a planned stop: for each partition the engine is
// detached, and the leadership goes to the replica that has the most of the log. The member goes on as a
// follower, and knows the leaders. It returns when that is done or ctx ends; Close ends what is left.
func (m *Member) HandOver(ctx context.Context) error {
	if m.announcer != nil {
		m.announcer.isStopping.Store(true)
	}
	hosts := slices.Collect(m.ownHosts())
	errs := make([]error, len(hosts))
	var wait sync.WaitGroup
	for i, h := range hosts {
		wait.Go(func() { errs[i] = h.handOver(ctx) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// Stop is HandOver and Close.
func (m *Member) Stop(ctx context.Context) error { return errors.Join(m.HandOver(ctx), m.Close()) }

// Close ends the member at once, as a crash would, but for the files, which are closed. Others find out by
// themselves that its leaderships are over.
//
// The groups are closed first, so that the last proposals of the engines end; then engines and rows; then
// the port.
func (m *Member) Close() error {
	m.closeOnce.Do(func() { m.closeErr = m.closeParts() })
	return m.closeErr
}

func (m *Member) closeParts() error {
	if m.metrics != nil {
		m.config.Registerer.Unregister(m.metrics)
	}
	if m.balancer != nil {
		m.balancer.close()
	}
	if m.clocks != nil {
		m.clocks.close()
	}
	if m.announcer != nil {
		m.announcer.close()
	}
	hosts := slices.Collect(m.ownHosts())
	errs := make([]error, len(hosts))
	var wait sync.WaitGroup
	for i, h := range hosts {
		wait.Go(func() { errs[i] = h.group.Close() })
	}
	wait.Wait()
	for i, h := range hosts {
		wait.Go(func() {
			h.stop()
			if errs[i] == nil { // else the log may still use the rows
				errs[i] = h.machine.close()
			}
		})
	}
	wait.Wait()
	if m.mux != nil {
		errs = append(errs, m.mux.Close())
	}
	switch {
	case m.port != nil:
		errs = append(errs, m.port.close())
	case m.config.Listener != nil:
		errs = append(errs, m.config.Listener.Close())
	}
	if m.introducer != nil {
		m.introducer.close()
	}
	if m.admitter != nil {
		m.admitter.close()
	}
	m.background.Wait()
	if m.folder != nil {
		errs = append(errs, m.folder.close())
	}
	return errors.Join(errs...)
}

// announceChange wakes those who wait for a leader or an engine.
func (m *Member) announceChange() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changes)
	m.changes = make(chan struct{})
}

// Changed returns a channel that is closed at the next change of a leader or an engine.
func (m *Member) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes
}

// Self returns the ID of this node.
func (m *Member) Self() raftlog.NodeID { return m.identity.ID }

// Cluster returns the ID of the cluster.
func (m *Member) Cluster() ID { return m.cluster }

// Listen returns the listener of a protocol on this member's port.
func (m *Member) Listen(protocol string) (net.Listener, error) { return m.port.openListener(protocol) }
