"""The commands of `boring-assets`: a module for each section of its help, and what they call."""
