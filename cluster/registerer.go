package cluster

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// ownedRegisterer passes collectors on, and takes all of them back at the end of their owner: an engine
// that could not start, or whose end was cut short, must not keep the names from the next one.
type ownedRegisterer struct {
	registerer prometheus.Registerer // nil: collectors are dropped

	mu         sync.Mutex // taken before the lock of registerer
	collectors []prometheus.Collector
	isHeld     bool // collectors are not passed on yet
}

var _ prometheus.Registerer = (*ownedRegisterer)(nil)

func newOwnedRegisterer(registerer prometheus.Registerer) *ownedRegisterer {
	return &ownedRegisterer{registerer: registerer}
}

// newHeldRegisterer returns one that keeps collectors back until release: those of an owner that takes
// the place of another one with the same names.
func newHeldRegisterer(registerer prometheus.Registerer) *ownedRegisterer {
	return &ownedRegisterer{registerer: registerer, isHeld: true}
}

// release passes on what was held back. After an error those before it are registered, and the others are
// dropped: their names may be of another owner.
func (o *ownedRegisterer) release() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.isHeld = false
	for i, c := range o.collectors {
		if err := o.registerer.Register(c); err != nil {
			o.collectors = o.collectors[:i]
			return err
		}
	}
	return nil
}

// Register registers a collector.
func (o *ownedRegisterer) Register(c prometheus.Collector) error {
	if o.registerer == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.isHeld {
		if err := o.registerer.Register(c); err != nil {
			return err
		}
	}
	o.collectors = append(o.collectors, c)
	return nil
}

// MustRegister registers collectors, or panics.
func (o *ownedRegisterer) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := o.Register(c); err != nil {
			panic(err)
		}
	}
}

// Unregister takes a collector back. After unregisterAll it has no effect: the names may be those of the
// next owner by then.
func (o *ownedRegisterer) Unregister(c prometheus.Collector) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.isHeld && len(o.collectors) > 0 && o.registerer.Unregister(c)
}

// unregisterAll takes all collectors back.
func (o *ownedRegisterer) unregisterAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.collectors {
		if !o.isHeld {
			o.registerer.Unregister(c)
		}
	}
	o.collectors = nil
}
