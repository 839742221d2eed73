"""Opens any URI as a filesystem, and explains storage errors."""
