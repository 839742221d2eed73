"""CLIP embeddings of image shards, kept up to date by Dagster."""

__version__ = "0.1.0"
