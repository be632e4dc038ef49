package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/caravan-dag/caravan/messages"
)

// A cluster has a feature level. What a program of a former version does not know happens only at a level that such a
// program does not support, so nodes of two versions work together as long as the level is not raised:
//
//	0   the nodes are those that formed the cluster, or took the place of one of them
//	1   nodes may join
//
// A cluster begins at the highest level that all of its first nodes support. Later an operator raises it
// (UpgradeLevel), when all nodes run a newer version. It never falls. The leader of partition 0 asks every node
// whether it supports the next level, makes every node refuse programs that do not (a node notes the level in
// node.json), and then commits the level in the table of the nodes. If that breaks off in between, another call does
// the rest.

// supportedLevel is the highest feature level of this program.
const supportedLevel = 1

// Questions of an upgrade.
const (
	// upgradeInquiry asks the leader of partition 0 to raise the level.
	upgradeInquiry inquiryKind = "upgrade"
	// supportInquiry asks a node for the highest level that it supports.
	supportInquiry inquiryKind = "support"
	// levelInquiry tells a node that the level is about to be inquiry.Level.
	levelInquiry inquiryKind = "level"
)

// supportedLevel returns the highest feature level of the program.
func (c *Config) supportedLevel() int {
	if c.testLevel != nil {
		return *c.testLevel
	}
	return supportedLevel
}

// checkLevel refuses a folder of a level that the program does not support.
func (c *Config) checkLevel(id *identity) error {
	if id.Level > c.supportedLevel() {
		return fmt.Errorf("the cluster has feature level %d, and this program supports levels up to %d: start the version of the other nodes", id.Level, c.supportedLevel())
	}
	return nil
}

// Level returns the feature level of the cluster, as far as this node knows.
func (m *Member) Level() int {
	if t := m.table(); t != nil {
		return t.Level
	}
	return 0
}

// raiseLevel notes, durably, that programs which do not support a level must not open the folder.
func (m *Member) raiseLevel(level int) error {
	if level > m.config.supportedLevel() {
		return refusedBecause("the cluster has feature level %d, and this program supports levels up to %d", level, m.config.supportedLevel())
	}
	if err := m.folder.raiseLevel(level); err != nil {
		return err
	}
	m.introducer.raiseLevel(level)
	return nil
}

// UpgradeLevel raises the feature level to the highest one that all nodes support. It may be called on any node. The
// levels are equal if there is nothing to raise. An error is a *messages.Error; it names the nodes that are not heard
// or too old.
func (m *Member) UpgradeLevel(ctx context.Context) (from, to int, err error) {
	a, err := m.askLeader(ctx, &inquiry{Kind: upgradeInquiry})
	if err != nil {
		return 0, 0, asUnavailable(err)
	}
	return a.FromLevel, a.Level, nil
}

// upgradeHere is the part of the leader of partition 0.
func (m *Member) upgradeHere(ctx context.Context) (from, to int, err error) {
	if !m.servesHere(0) {
		return 0, 0, errNotLeader
	}
	l := m.leadership(0)
	if l == nil {
		return 0, 0, errNotLeader
	}
	err = m.tables.changeTable(func(t *nodeTable) error {
		from = t.Level
		if to, err = m.commonLevel(ctx, t); err != nil || to <= from {
			to = max(to, from)
			return err
		}
		_, errs := m.askNodes(ctx, t, &inquiry{Kind: levelInquiry, Level: to})
		for i, err := range errs {
			if err != nil {
				return refuse(messages.Unavailable, "node %s does not note feature level %d, call again: %v", nameOfID(t.Nodes[i].ID), to, err)
			}
		}
		t.Level = to
		return nil
	})
	if errors.Is(err, errOldTable) {
		err = refuse(messages.Conflict, "this node leads partition 0 and is too old: %v", err)
	}
	return from, to, err
}

// commonLevel returns the highest level that all nodes of the table support, if that is above the table's. It refuses
// to compute it while a node is not heard, or if some nodes alone keep the others from a higher one than the table's.
func (m *Member) commonLevel(ctx context.Context, t *nodeTable) (common int, err error) {
	answers, errs := m.askNodes(ctx, t, &inquiry{Kind: supportInquiry})
	var silent, old []string
	lowest, highest := m.config.supportedLevel(), 0
	for i, err := range errs {
		if err != nil {
			silent = append(silent, nameOfID(t.Nodes[i].ID))
			continue
		}
		lowest, highest = min(lowest, answers[i].Level), max(highest, answers[i].Level)
		if answers[i].Level <= t.Level {
			old = append(old, nameOfID(t.Nodes[i].ID))
		}
	}
	switch {
	case len(silent) > 0:
		return 0, refuse(messages.Conflict, "not heard: %s. All nodes must run to raise the feature level", strings.Join(silent, ", "))
	case lowest <= t.Level && highest > t.Level:
		return 0, refuse(messages.Conflict, "too old for a feature level above %d: %s", t.Level, strings.Join(old, ", "))
	}
	return lowest, nil
}

// askNodes asks all nodes of a table at once. A program that does not know the question answers the zero answer to a
// supportInquiry.
func (m *Member) askNodes(ctx context.Context, t *nodeTable, q *inquiry) (answers []inquiryAnswer, errs []error) {
	answers, errs = make([]inquiryAnswer, len(t.Nodes)), make([]error, len(t.Nodes))
	var wait sync.WaitGroup
	for i, n := range t.Nodes {
		wait.Go(func() {
			if n.ID == m.Self() {
				answers[i] = m.answerOf(ctx, q)
			} else if answers[i], errs[i] = m.askByPort(ctx, n.ID, q); errs[i] != nil {
				return
			}
			switch {
			case answers[i].Error == "":
			case q.Kind == supportInquiry:
				answers[i] = inquiryAnswer{}
			default:
				errs[i] = errors.New(answers[i].Error)
			}
		})
	}
	wait.Wait()
	return answers, errs
}
