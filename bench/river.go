package main

func (e *env) peerFans(values map[string]float64, n int) error      { return nil }
func (e *env) peerProcesses(values map[string]float64, n int) error { return nil }
