"""Imported first by the server that decoding processes are forked from: they can be terminated.

A broken pool ends its processes by SIGTERM, and waits at full speed for those that still live. Whoever
started the run may ignore that signal, as Dagster does where SIGINT is ignored, and every process after it
inherits that. A process that resets it for itself may be terminated before it comes to do so.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_DFL)
