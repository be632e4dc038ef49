package workerpb

// NodeStatus is the state of a node, as its agent tells it.
type NodeStatus struct {
	Capacity Amount
	Draining bool    // the node takes no more orders
	Taken    []Taken // by partition
}

// SetNode sets the state of the node.
func (f *WorkerFrame) SetNode(s NodeStatus) {
	m := &NodeState{Capacity: s.Capacity.message(), Draining: s.Draining}
	for p, taken := range s.Taken {
		if taken != (Taken{}) {
			share := new(Share)
			share.set(uint32(p), taken)
			m.Shares = append(m.Shares, share)
		}
	}
	f.Node = m
}

// Status returns the state of the node. Shares of unknown partitions are left out.
func (m *NodeState) Status(partitions int) NodeStatus {
	s := NodeStatus{Capacity: m.Capacity.Amount(), Draining: m.Draining, Taken: make([]Taken, partitions)}
	for _, share := range m.Shares {
		if int(share.Partition) < partitions {
			s.Taken[share.Partition] = share.Taken()
		}
	}
	return s
}

// Taken is what attempts take of a node.
type Taken struct {
	Amount
	Running, Waiting int // attempts
}

func (m *Share) set(partition uint32, t Taken) {
	m.Partition, m.CpuMillis, m.MemoryBytes = partition, t.CPUMillis, t.MemoryBytes
	m.Running, m.Waiting = uint32(t.Running), uint32(t.Waiting)
}

// Taken returns what the share is about.
func (m *Share) Taken() Taken {
	return Taken{Amount: Amount{CPUMillis: m.CpuMillis, MemoryBytes: m.MemoryBytes}, Running: int(m.Running), Waiting: int(m.Waiting)}
}

// Plus returns the sum.
func (t Taken) Plus(other Taken) Taken {
	return Taken{Amount: t.Amount.Plus(other.Amount), Running: t.Running + other.Running, Waiting: t.Waiting + other.Waiting}
}

// Minus returns the difference.
func (t Taken) Minus(other Taken) Taken {
	return Taken{Amount: t.Amount.Minus(other.Amount), Running: t.Running - other.Running, Waiting: t.Waiting - other.Waiting}
}

// Amount is an amount of slots.
type Amount struct{ CPUMillis, MemoryBytes int64 }

// Plus returns the sum.
func (a Amount) Plus(b Amount) Amount {
	return Amount{CPUMillis: a.CPUMillis + b.CPUMillis, MemoryBytes: a.MemoryBytes + b.MemoryBytes}
}

// Minus returns the difference.
func (a Amount) Minus(b Amount) Amount {
	return Amount{CPUMillis: a.CPUMillis - b.CPUMillis, MemoryBytes: a.MemoryBytes - b.MemoryBytes}
}

// FitsInto reports whether the amount is within another one.
func (a Amount) FitsInto(b Amount) bool {
	return a.CPUMillis <= b.CPUMillis && a.MemoryBytes <= b.MemoryBytes
}

func (a Amount) message() *Resources {
	return &Resources{CpuMillis: a.CPUMillis, MemoryBytes: a.MemoryBytes}
}

// Amount returns the amount; 0 when the message is missing.
func (m *Resources) Amount() Amount {
	return Amount{CPUMillis: m.GetCpuMillis(), MemoryBytes: m.GetMemoryBytes()}
}
