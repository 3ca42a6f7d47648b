"""lab.locks"""

import json
import os
import platform
import time
from pathlib import Path

from lab.files import InputError, load_json

HELD = []  # lock files of this process: folders it writes to now


def started(pid):
    """A mark that no later process of the same number has: its start in ticks; "" where the system does not say; None when
    there is none."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else rest[18]  # a zombie has ended
    except OSError:
        pass
    try:
        os.kill(pid, 0) if os.name == "posix" else None  # asks, sends nothing
    except ProcessLookupError:
        return None
    except OSError:
        pass  # another user's
    return ""


def this_process():
    """What tells this process from any other that shares the folder; `pids`: containers count from 1, each its own."""
    space = Path("/proc/self/ns/pid")
    return dict(
        host=platform.node(),
        pids=os.readlink(space) if space.exists() else "",
        pid=os.getpid(),
        started=started(os.getpid()),
    )


def free(path):
    """Remove a lock that a killed process has left, and say so. InputError when its process may still run."""
    lock, me = load_json(path) or {}, this_process()
    if not path.exists():
        return
    if all(lock.get(k) == v for k, v in me.items()):  # of a folder that this process has copied
        return path.unlink()
    pid, since = (
        lock.get("pid"),
        lock.get("since", "an unknown time"),
    )  # of a lock edited by hand anything
    here = (
        all(lock.get(k) == me[k] for k in ("host", "pids"))
        and isinstance(pid, int)
        and 0 < pid < 2**31
    )
    mark, at = started(pid) if here else "", path.stat()
    blank = (
        at.st_size == 0 and time.time() - at.st_mtime > 60
    )  # killed before it wrote who it is    [ours]
    if not blank and (not here or mark in ("", lock.get("started"))):
        raise InputError(
            f"{path.parent}: process {lock.get('pid', '?')} on {lock.get('host', 'an unknown host')} has been "
            f"at work here since {since}: wait for it, or "
            + ("stop it" if here else f"delete {path} if it is dead, which can't be told from here")
        )
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        os.rename(path, aside)  # of several that come, one gets it
    except FileNotFoundError:
        return
    if (load_json(aside) or {}) != lock:  # another was faster: it is theirs
        os.rename(aside, path)
        return free(path)
    aside.unlink()
    print(
        f"{path.parent}: the lock of process {lock.get('pid', '?')}, killed after {since}, is taken over"
    )


def hold(folder, share=(0, 1)):
    """Keep a folder for this process until release(): FOLDER/lock says by whom. InputError where another is at work there.

    share (r, n): this is one of n processes that share the slides; these don't exclude each other. [ours]
    """
    folder, (rank, world) = Path(folder), share
    path = folder / ("lock" if world == 1 else f"lock-{rank}-of-{world}")
    folder.mkdir(parents=True, exist_ok=True)
    while path not in HELD:
        free(path)
        text = json.dumps(dict(this_process(), since=time.strftime("%Y-%m-%d %H:%M:%S")))
        HELD.append(path)  # first: a signal in between gives it back
        try:
            with open(path, "x") as f:
                f.write(text)
        except FileExistsError:  # another was faster
            HELD.remove(path)
    try:
        for other in folder.glob("lock*"):
            if other != path and (world == 1 or not other.name.endswith(f"-of-{world}")):
                free(other)
    except InputError:
        release(folder)
        raise
    if world == 1:
        sweep(folder)  # of several, when all are here: claim_folder


def sweep(folder):
    """Remove the half files of a killed run."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def release(folder=None):
    """Give back a folder, or all that this process holds."""
    for path in [p for p in HELD if folder in (None, p.parent)]:
        HELD.remove(path)
        if (load_json(path) or {}).get("pid") in (
            None,
            os.getpid(),
        ):  # not one that came after a user deleted ours
            path.unlink(missing_ok=True)
