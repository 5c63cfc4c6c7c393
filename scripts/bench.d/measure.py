#!/usr/bin/env python3
"""measure.py FILE RUNS SIZE NAME COMMAND…: appends SIZE, NAME, seconds of CPU, seconds and MiB of the cheapest of RUNS runs to FILE.

The memory is the most of any one process. What the command prints is thrown away; a command that fails is an error.
"""
import os
import subprocess
import sys
import tempfile
import time

path, runs, size, name, *command = sys.argv[1:]
stdin = sys.stdin.buffer if os.path.isfile("/proc/self/fd/0") else None
best = None
for _ in range(int(runs)):
    if stdin:
        stdin.seek(0)
    # By time(1): what a child of ours starts with counts as its own, and that is more than some of these ever need.
    with tempfile.NamedTemporaryFile("r") as most:
        begun = time.monotonic()
        timed = ["/usr/bin/time", "-q", "-f", "%M", "-o", most.name, *command]
        child = subprocess.Popen(timed, stdin=stdin, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        if status:
            sys.exit(f"{name}: status {os.waitstatus_to_exitcode(status)}")
        run = (used.ru_utime + used.ru_stime, time.monotonic() - begun, int(most.read()) / 1024)
    best = min(best or run, run)
with open(path, "a") as out:
    print(size, name, *(f"{number:.4f}" for number in best), sep="\t", file=out)
