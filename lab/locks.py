"""One run at a time writes to a folder: FOLDER/lock says which process of which host.

filelock writes it, and takes it over where its process is dead. A process of another host, or of
another container, can't be looked at, so it is believed alive.
"""

import re
import time
from pathlib import Path

from filelock import SoftFileLock, Timeout

from lab.files import InputError, sweep

HELD = {}  # of this process: lock file -> lock
MOMENT = 0.2  # seconds in which filelock looks at a lock, frees a dead one's, and comes again


def hold(folder, share=(0, 1)):
    """Keep a folder for this process until release(). InputError where another is at work there.

    share (r, n): this is one of n processes that share the slides; these don't exclude each other.
    """
    folder, (rank, world) = Path(folder), share
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / ("lock" if world == 1 else f"lock-{rank}-of-{world}")
    take(own)
    for other in sorted(folder.glob("lock*")):
        beside = re.fullmatch(rf"lock-\d+-of-{world}", other.name) and world > 1
        if other != own and not beside and re.fullmatch(r"lock(-\d+-of-\d+)?", other.name):
            try:
                take(other)
            except InputError:
                release(folder)
                raise
            HELD.pop(other).release()
    if world == 1:
        sweep(folder)  # of several, when all are here: claim_folder


def take(path):
    """Hold a lock file; where it was a killed process's, say so."""
    if path in HELD:
        return
    before = owner_of(path)
    HELD[path] = SoftFileLock(path, thread_local=False)  # first: a signal in between gives it back
    try:
        HELD[path].acquire(timeout=MOMENT, poll_interval=MOMENT / 4)
    except Timeout:
        del HELD[path]
        raise InputError(
            f"{path.parent}: {owner_of(path)} has been at work here: wait for it or stop it; if it "
            f"is dead, delete {path}"
        ) from None
    if before:
        print(f"{path.parent}: the lock of {before}, which was killed, is taken over")


def owner_of(path):
    """'process 12 on host since ...' of a lock file; "" where there is none."""
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
        pid, host, *_ = [*path.read_text(errors="replace").split("\n"), "", ""]
    except OSError:
        return ""
    host = host.partition("?pidns-")[0]  # by which filelock tells containers apart
    return f"process {pid or '?'} on {host or 'an unknown host'} since {since}"


def release(folder=None):
    """Give back a folder, or all that this process holds."""
    for path in list(HELD):
        if folder in (None, path.parent):
            HELD.pop(path).release()
