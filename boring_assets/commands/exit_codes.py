"""Exit codes of `boring-assets`, besides 0 (done) and 2 (wrong usage, by click)."""

ERROR = 1
"""An error; what was committed before stays."""
FAILED_SHARDS = 3
"""Some shards failed; the others are committed."""
WORK_TO_DO = 4
"""Of `status`, `verify` and `prune`: there is work to do."""
INTERRUPTED = 130
"""Interrupted by Ctrl-C; what was committed stays."""
