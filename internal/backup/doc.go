// Package backup is the form of a backup: the rows of a store as of one moment, and the
// output files of the runs in it, as one stream that proves itself whole.
//
//	"CARAVAN BACKUP 1\n"
//	chunk …      header, then rows by ascending keys, then files, then the trailer
//
//	chunk: byte kind, uint32 length, uint32 CRC-32C of (uint64 number of the chunk, kind,
//	       length, payload), payload; little-endian
//	'H'    JSON: Header
//	'R'    rows: uvarint length, key, uvarint length, value, …
//	'F'    uint64 run, uint64 size: a file begins
//	'D'    the next bytes of that file
//	'Z'    uint64 rows, uint64 files, uint64 bytes of files, SHA-256 of the stream before
//	       this chunk
//
// The number of the chunk is in each checksum, so a chunk that is lost, repeated or
// moved is found. Nothing may follow the trailer. Writer and Read hold one chunk in
// memory, of at most maxChunk bytes, whatever a stream says.
package backup
