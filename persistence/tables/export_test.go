package tables

// Rows reads all rows of a table file, and what is damaged in it.
func Rows(path string, e Entry, fn func(Row)) ([]*Damage, error) {
	t := &table{rowFn: func(r Row) error { fn(r); return nil }}
	_, found, err := t.verifyFile(path, 0, e)
	return found, err
}

// ParseManifest parses the bytes of a manifest.
func ParseManifest(b []byte) (*Manifest, *Damage) { return parseManifest("MANIFEST", b) }

// DecodeInventory parses the bytes of an inventory.
func DecodeInventory(b []byte) (*Inventory, *Damage) { return decodeInventory("INVENTORY", b) }
