"""What long loops say: one line on a terminal, a line a minute in a log; and threads that work
ahead.
"""

import re
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from lab.files import few, one_line, save_csv

MINUTE = 60.0
BLINK = 0.5  # seconds between two states of a line on a terminal


def ordered_map(function, jobs, workers, begun=None):
    """(job, result or exception) in the order of the jobs; `workers` threads work ahead of the
    reader, who is handed the first of `begun` jobs.

    Threads are enough: OpenSlide and Pillow release Python's lock. The order, hence every result,
    does not depend on the number of workers. [ours]
    """
    jobs, ahead = iter(jobs), deque()
    begun = begun or 2 * workers + 2
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            while True:
                while len(ahead) < begun and (job := next(jobs, None)) is not None:
                    ahead.append((job, pool.submit(function, job)))
                if not ahead:
                    return
                job, future = ahead.popleft()
                yield job, future.exception() or future.result()
        finally:
            for _, future in ahead:
                future.cancel()


class Room:
    """So much room, which threads share; who takes more than there is has all of it alone."""

    def __init__(self, size):
        self.size = self.free = size
        self.given_back = threading.Condition()

    @contextmanager
    def taken(self, n):
        n = min(n, self.size)
        with self.given_back:
            self.given_back.wait_for(lambda: n <= self.free)
            self.free -= n
        try:
            yield
        finally:
            with self.given_back:
                self.free += n
                self.given_back.notify_all()


def seldom():
    """A function due(last) for a loop that prints lines: a log gets one a minute and the last."""
    shown = -MINUTE

    def due(last=False):
        nonlocal shown
        terminal = (sys.stdout or sys.__stdout__).isatty()
        if not (last or terminal or time.monotonic() - shown >= MINUTE):
            return False
        shown = time.monotonic()
        return True

    return due


def progress(what, total, unit, end=True):
    """A function tick(n) that shows on stderr how far a loop is; with `end`, its end as well."""
    terminal = sys.stderr.isatty()
    start = time.monotonic()
    shown = 0.0 if terminal else start
    done = 0

    def tick(n=1):
        nonlocal done, shown
        done += n
        now, last = time.monotonic(), done >= total
        due = now - shown > (BLINK if terminal else MINUTE)
        if not due and not (last and n and end):
            return
        shown = now
        rate = done / max(now - start, 1e-9)
        left = 0 if last else (total - done) / max(rate, 1e-9)
        line = f"{what}: {done:,}/{total:,} {unit}, {rate:.1f}/s, {clock(left)} left   "
        stays = (last and end) or not terminal
        print(line, end="\n" if stays else "\r", file=sys.stderr, flush=True)

    return tick


def counted(what, jobs, unit, total=None):
    """The jobs, with the progress of what is done with them; a short loop says nothing."""
    if total is None:
        jobs = list(jobs)
        total = len(jobs)
    tick = progress(what, total, unit, end=False)
    for job in jobs:
        yield job
        tick()


def reading(path):
    """A function tick(n) that shows how much of a file was read: n more bytes; of a short one no
    word.
    """
    show = progress(f"reading {path.name}", path.stat().st_size >> 20, "MiB", end=False)
    seen = 0

    def tick(n):
        nonlocal seen
        before = seen >> 20
        seen += n
        show((seen >> 20) - before)

    return tick


def clock(seconds):
    seconds = int(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def table(header, rows):
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(cell, cells)) + " |" for cells in lines)


def cell(value):
    """A cell of a table of Markdown, in which | would end it and ` begin code."""
    return re.sub(r"\\(?=[!-/:-@[-`{-~])|[`|]", r"\\\g<0>", one_line(value))


def say_left_out(left_out):
    """Print {what: names} that a command leaves out, and hand it on."""
    for what, names in left_out.items():
        if names:
            print(one_line(f"{len(names)} {what}: {few(names)}"))
    return left_out


def report_failures(failed, total, folder=None, share=(0, 1), lacks=None):
    """Say which slides failed and why, also in FOLDER/failed.csv -> exit status, 1 where some did.

    lacks: {slide: what was asked for and not found}, of slides of which all else was done. Each of
    several processes has a file of its own; a file where nothing failed is removed.
    """
    lacks = lacks or {}
    if folder:
        rank, world = share
        path = folder / ("failed.csv" if world == 1 else f"failed-{rank}-of-{world}.csv")
        path.unlink(missing_ok=True)
        if world == 1:
            for old in folder.glob("failed-*-of-*.csv"):
                old.unlink()
        if failed or lacks:
            rows = [(name, one_line(why)) for each in (failed, lacks) for name, why in each.items()]
            save_csv(path, ("slide", "reason"), rows)
    for name, why in failed.items():
        print(one_line(f"failed: {name}: {why}"), file=sys.stderr)
    for name, what in lacks.items():
        print(one_line(f"{name}: {what}"), file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {total} slides failed", file=sys.stderr)
    return 1 if failed or lacks else 0
