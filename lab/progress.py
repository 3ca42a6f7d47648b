"""lab.progress"""

import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from lab.files import few, one_line


def ordered_map(function, jobs, workers):
    """(job, result or exception) in the order of the jobs; `workers` threads work ahead of the reader.

    Threads are enough: OpenSlide and Pillow release Python's lock.
    The order, hence every result, does not depend on the number of workers. [ours]
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        ahead, jobs = deque(), iter(jobs)
        try:
            while True:
                while len(ahead) < 2 * workers + 2 and (job := next(jobs, None)) is not None:
                    ahead.append((job, pool.submit(function, job)))
                if not ahead:
                    return
                job, future = ahead.popleft()
                yield job, future.exception() or future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def seldom():
    """A function due(last) of a loop that prints lines: a terminal shows all, a log file one a minute and the last."""
    shown = [-60.0]

    def due(last=False):
        if not (
            last or (sys.stdout or sys.__stdout__).isatty() or time.monotonic() - shown[0] >= 60
        ):
            return False
        shown[0] = time.monotonic()
        return True

    return due


def progress(what, total, unit, end=True):
    """A function tick(n) that shows how far a long loop is: one line on a terminal, one a minute in a log file; and at the
    end, unless that is said otherwise."""
    start, done, shown = time.time(), [0], [time.time() if not sys.stderr.isatty() else 0.0]

    def tick(n=1):
        done[0] += n
        now, last = time.time(), done[0] >= total
        if now - shown[0] > (0.5 if sys.stderr.isatty() else 60) or (last and n and end):
            shown[0], rate = now, done[0] / max(now - start, 1e-9)
            line_end = "\n" if last and end or not sys.stderr.isatty() else "\r"
            left = clock(0 if last else (total - done[0]) / max(rate, 1e-9))
            print(
                f"{what}: {done[0]:,}/{total:,} {unit}, {rate:.1f}/s, {left} left   ",
                end=line_end,
                file=sys.stderr,
                flush=True,
            )

    return tick


def counted(what, jobs, unit, total=None):
    """The jobs as they are, with the progress of what is done with them; nothing is said of a loop that is over soon."""
    jobs = list(jobs) if total is None else jobs
    tick = progress(what, len(jobs) if total is None else total, unit, end=False)
    for job in jobs:
        yield job
        tick()


def clock(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def table(header, rows):
    return "\n".join(
        [
            "| " + " | ".join(header) + " |",
            "|" + " --- |" * len(header),
            *("| " + " | ".join(str(v) for v in row) + " |" for row in rows),
        ]
    )


def say_left_out(left_out):
    for what, names in left_out.items():
        if names:
            print(one_line(f"{len(names)} {what}: {few(names)}"))
    return left_out
