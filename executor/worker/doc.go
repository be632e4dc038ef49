// Package worker is the process that forks tasks and outlives the server.
package worker
