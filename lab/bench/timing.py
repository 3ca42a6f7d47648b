"""Two ways timed in turn, and the memory that a call takes."""

import os
import resource
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

GIB = 2**30


class Pair(NamedTuple):
    """Medians of both ways' seconds, and how many times as long the direct way takes."""

    ours: float
    direct: float
    times: float


def side_by_side(ours, direct, repeats=5):
    """Run both in turn, after a warm-up of each."""
    seconds = np.array([(timed(ours), timed(direct)) for _ in range(repeats + 1)])[1:]
    median = np.median(seconds, axis=0)
    return Pair(*median, np.median(seconds[:, 1] / seconds[:, 0]))


def timed(function):
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def say(text):
    print(text, flush=True)


def peak(function):
    """GiB that a call takes beyond what was there before, by looking every 2 ms."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / GIB
    seen = [resident()]
    done = threading.Event()

    def watch():
        while not done.wait(0.002):
            seen.append(resident())

    thread = threading.Thread(target=watch)
    thread.start()
    function()
    done.set()
    thread.join()
    return (max(seen) - seen[0]) / GIB


def resident():
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def largest_memory():
    """GiB of this process at its largest, on a GPU of that."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
