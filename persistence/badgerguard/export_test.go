package badgerguard

// ParseManifest parses the bytes of a manifest.
func ParseManifest(b []byte) (*Manifest, *Damage) { return parseManifest("MANIFEST", b) }

// DecodeInventory parses the bytes of an inventory.
func DecodeInventory(b []byte) (*Inventory, *Damage) { return decodeInventory("INVENTORY", b) }

// WithHookBetweenReads has fn called between the reads of inventory and manifest.
func WithHookBetweenReads(o VerifyOptions, fn func()) VerifyOptions {
	o.between = fn
	return o
}
