"""How threads wait, and how many there are: settled before torch is imported (lab/__init__.py).

OpenMP's threads spin while they wait for each other. As soon as another process wants one of the
cores, all wait for the one that was set aside: two threads are then slower than one, 3 to 13 times.
Threads that sleep at once make small steps a quarter slower on a quiet machine; those that spin for
some 50 µs first are good at both (python -m lab.bench contention). [ours]
"""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
POLITE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}  # the latter is GNU's [ours]


def settle_threads():
    """Tell OpenMP, which reads the environment once; what the user has set there stays."""
    if not os.environ.keys() & POLITE:
        os.environ.update(POLITE)
    if cores() < usable():  # OpenMP knows of the affinity alone
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def cores():
    """Cores that this process can keep busy: by its affinity, and by the quota of its cgroups."""
    return max(1, math.ceil(min(usable(), quota())))


def usable():
    """Cores that the process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity
        return os.cpu_count() or 1


def quota():
    """Cores' worth of time that its cgroups, and those above, allow; infinite without a limit."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return math.inf
    limits = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = CGROUPS / ("cpu" if controllers else "")  # version 2 names no controllers
        inner = mount / path.strip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(mount):
                limits.append(limit_of(folder))
    return min(limits)


def limit_of(folder):
    """Cores' worth of time that one cgroup allows."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((folder / name).read_text() for name in names).split()
            time, period = map(int, words)
        except (OSError, ValueError):  # not of this version; or "max", which is no limit
            continue
        if time > 0 and period > 0:
            return time / period
    return math.inf
