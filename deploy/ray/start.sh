#!/bin/sh
# Starts Ray on this machine, with token authentication on: deploy/ray/start.sh --head, or --address HEAD:6379.
# Whatever follows goes to `ray start`. Everything in this shell's environment reaches the runs of this machine;
# docs/deployment.md says what they need.
set -eu
export RAY_AUTH_MODE=token
# Seconds that a run has to close its files when it is terminated; Ray's own 3 are few.
export RAY_JOB_STOP_WAIT_TIME_S="${RAY_JOB_STOP_WAIT_TIME_S:-30}"
exec ray start --disable-usage-stats "$@"
