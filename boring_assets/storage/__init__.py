"""Any URI as a filesystem, with errors that name the fix."""
