package main

import (
	"log/slog"

	"golang.org/x/sys/unix"
)

// hide keeps what the server knows (tokens and keys in its environment and memory) from its
// tasks, which are processes of the same user: /proc/PID/environ, mem, fd and others are
// root's from now on, only root can trace the process, and it leaves no core dump.
func hide(log *slog.Logger) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Warn("tasks can read the server's environment and memory", "err", err)
	}
}
