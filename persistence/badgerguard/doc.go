// Package badgerguard proves that a folder of Badger's is whole, without Badger: it reads the
// files as bytes, never writes to them, and never panics on what it finds.
//
// Badger itself does not do it. By default it verifies no checksum of a block; a block
// that cannot be read is the end of the data to an iterator; a table whose checksum is
// wrong is left out; and tables that the manifest does not name are deleted. So this pass
// comes before Badger opens the folder, and its errors name the file and the offset.
//
// What must hold (each error is a *Damage):
//
//  1. MANIFEST is there when anything else is. It parses to its end, but for a torn tail:
//     the beginning of a record that was being written, or zeros.
//  2. Every table that MANIFEST names is there. Its blocks lie back to back from its first
//     byte to its index, index and blocks have the right checksums, and the keys ascend.
//  3. A table that MANIFEST does not name was deleted by it, or may have been in the making.
//  4. KEYREGISTRY, when it is there, is that of a folder without encryption.
//  5. What the inventory says (file INVENTORY, ours, see Inventory): a manifest only
//     grows, until Badger rewrites it whole; a table is never another one.
//
// Of Badger v4.9.6 it relies on: the file names; the layouts drawn in table/builder.go and
// manifest.go; CRC32C for both; blocks in Snappy or plain; no encryption; that a table is
// on the device before the manifest names it, and the manifest before a deleted table goes;
// that it rewrites the manifest only whole, under another name. TestOwnFolders fails when
// a new Badger writes anything else.
package badgerguard
