"""What `boring-assets` exits with, besides 0, all is done, and 2, click's own for wrong usage."""

ERROR = 1
"""What was committed before it stays."""
FAILED_SHARDS = 3
"""Some shards failed; the others are committed."""
WORK_TO_DO = 4
"""Of `status` and `verify`: something is not done, or wants doing again."""
INTERRUPTED = 130
"""By Ctrl-C; what was committed stays."""
