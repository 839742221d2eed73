"""Shards as dynamic partitions: their keys, how they are found, and their versions."""
