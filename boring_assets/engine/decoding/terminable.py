"""Resets SIGTERM in the server that decoding processes are forked from, so that they can be terminated.

A broken process pool terminates its processes with SIGTERM and waits for them in a busy loop. The parent may
ignore that signal (Dagster does where SIGINT is ignored), and child processes inherit this. A child that
resets the signal itself could be terminated before it does so.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_DFL)
