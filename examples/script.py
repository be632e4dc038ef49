"""The script that seed.json runs: says which job it is and what it finds in its environment."""
import os
import sys

name = "env"
value = os.environ.get(name)
found = "is not found" if value is None else "is found"
print(f"Echoing {' '.join(sys.argv)} {name} {found}, value is >>{value or ''}<< ")
