"""What `dagster.yaml` names: where runs are launched, how many at once, and how events are stored."""
