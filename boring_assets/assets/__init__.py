"""One module an asset; a module's docstring is its asset's text in the UI."""
