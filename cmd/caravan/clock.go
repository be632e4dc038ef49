//go:build !faults

package main

import "github.com/caravan-dag/caravan/actors"

// engineClock is the engine's clock: nil, the machine's.
func engineClock() actors.Clock { return nil }
