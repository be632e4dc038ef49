// Package slurmtest is a cluster without Slurm: sbatch, squeue, scontrol and scancel as
// far as package slurm uses them, with jobs that are processes of this machine.
//
// The test's own binary serves as all of the commands: its TestMain calls Main first, and New makes
// scripts that call it. One file holds the cluster's state, so that each command is a process of
// its own, as with Slurm. Every job has the same state_reason, so tests cannot tell causes
// apart by it.
package slurmtest
