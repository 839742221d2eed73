"""Classes that `dagster.yaml` names (launchers, run queue), and the Dagster home.

Dagster's private modules (`dagster._...`) are imported in this package only.
"""
