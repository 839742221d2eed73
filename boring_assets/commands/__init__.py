"""The commands of `boring-assets`, one module each, and what they share."""
