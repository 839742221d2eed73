"""Shards as dynamic partitions: how they are named, found and told apart when they change."""
