"""What is told of runs outside of Dagster: metrics, logs, alerts."""
