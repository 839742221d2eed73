"""Metrics, logs and alerts of runs."""
