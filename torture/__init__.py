"""Long tests of crashes, storage faults, hostile input and memory; `make torture` runs each module."""
