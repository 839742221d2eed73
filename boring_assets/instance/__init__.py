"""What `dagster.yaml` names: the launchers of runs, how many runs go at once, and the Dagster home.

Dagster's private modules (`dagster._...`) are imported in this package only.
"""
