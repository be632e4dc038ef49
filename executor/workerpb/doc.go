// Package workerpb is what a server and its worker say to each other.
package workerpb
