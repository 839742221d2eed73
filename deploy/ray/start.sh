#!/bin/sh
# Starts Ray on this machine, with token authentication on: deploy/ray/start.sh --head, or --address HEAD:6379.
# All options go to `ray start`. The runs on this machine get this shell's environment: see docs/deployment.md for
# what they need.
set -eu
export RAY_AUTH_MODE=token
# Seconds that a terminated run has to close its files; Ray's default is 3.
export RAY_JOB_STOP_WAIT_TIME_S="${RAY_JOB_STOP_WAIT_TIME_S:-30}"
exec ray start --disable-usage-stats "$@"
