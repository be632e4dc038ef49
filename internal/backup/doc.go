// Package backup defines the format of a backup: the rows of a store as of one moment, or those of each
// partition of a cluster, and the output files of their runs, as one stream whose completeness can be
// verified.
//
//	"CARAVAN BACKUP 1\n"
//	chunk …      header, then rows by ascending keys, then files, then the trailer
//
//	"CARAVAN BACKUP 2\n"      of a cluster
//	chunk …      header, then for each partition by number: its begin, rows by ascending keys, its end;
//	             then files, then the trailer
//
//	chunk: byte kind, uint32 length, uint32 CRC-32C of (uint64 number of the chunk, kind,
//	       length, payload), payload; little-endian
//	'H'    JSON: Header
//	'P'    JSON: Partition, without rows and digest: begin of a partition
//	'R'    rows: uvarint length, key, uvarint length, value, …
//	'E'    uint64 rows, digest of the rows (package rowdigest): end of a partition
//	'F'    uint64 run, uint64 size: start of a file
//	'D'    the next bytes of that file
//	'Z'    uint64 rows, uint64 files, uint64 bytes of files, SHA-256 of the stream before
//	       this chunk
//
// A backup without rows and files is the magic, a header and a trailer:
//
//	offset   0   CARAVAN BACKUP 1\n
//	        17   'H'  len  crc  {"folder":"5f…","format":3,…}
//	         …   'Z'  56   crc  0 0 0  SHA-256
//
// Rows and files come from one moment of the store, or from one moment of each partition. Package backup
// does not know that: it proves that a stream is what a Writer wrote, and its users
// (cmd/caravan/backup.go, cmd/caravan/cluster_backup.go) check what it means.
//
// Each checksum includes the number of the chunk, so a lost, repeated or moved chunk is detected.
// The trailer must be the end of the stream, after all partitions that the header announces. Writer and
// Read hold one chunk in memory, of at most maxChunk bytes, whatever the stream claims.
package backup
