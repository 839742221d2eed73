"""Long trials of what must never break: `make torture` runs each module and prints its figures."""
