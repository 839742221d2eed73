"""Decodes images to uint8 pixels, within limits, in threads or processes."""
