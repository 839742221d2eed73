"""Long trials of what must never break; `make torture` runs them, the tests run a short version."""
