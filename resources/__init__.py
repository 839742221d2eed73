"""Dagster resources: the CLIP model, the input, and the IO manager of the output."""
