"""HE2RNA's training at TCGA's size on a CPU: a step by its parts.

10,514 slides of 100 super-tiles x 2,048, 30,839 genes: 526 steps an epoch on 8 of 10 slides.
"""

import math
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import he2rna
from lab.bench.timing import GIB, largest_memory, say
from lab.fast import products, topk
from lab.he2rna.training import model_of_choices

SLIDES, SUPERTILES, FEATURES, GENES = 10514, 100, 2048, 30839
BATCH = he2rna.BATCH_SLIDES
GATHER_MKL = 1 / 3  # topk.GATHER where products are MKL's: twice as slow, they pay later
PRODUCTS = ("scores", "hidden layers", "gradients by gathering", "gradients by products")
ON_DISK = 64  # slides that are written, and read again and again


class Parts:
    """Processor time of what a step calls, by name. Of calls within calls the outer one counts."""

    def __init__(self):
        self.seconds = {}
        self.inside = False

    def wrap(self, name, function):
        def timed(*argv, **more):
            if self.inside:
                return function(*argv, **more)
            self.inside = True
            start = time.process_time()
            try:
                return function(*argv, **more)
            finally:
                spent = time.process_time() - start
                self.seconds[name] = self.seconds.get(name, 0) + spent
                self.inside = False

        return timed

    def watch(self, *places):
        """(name, object, attribute) of functions -> a context in which they are timed."""
        stack = ExitStack()
        for name, owner, attribute in places:
            timed = self.wrap(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, timed))
        return stack


def bench_tcga(repeats=2):
    """A step for each k of the list: processor time, its parts, its products; memory."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    y = rng.random((ON_DISK, GENES), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "supertiles.npy"
        np.save(path, rng.random((ON_DISK, SUPERTILES, FEATURES), np.float32).astype(np.float16))
        held = np.load(path, mmap_mode="r")

        def bags(rows):
            return he2rna.pad_bags([held[row] for row in rows])

        model = model_of_choices(FEATURES, GENES)
        optimizer = torch.optim.Adam(model.parameters(), he2rna.LEARNING_RATE, fused=True)
        step = partial(one_step, model, optimizer, bags, y)
        step(1)
        say(
            f"training, {BATCH} slides x {SUPERTILES} x {FEATURES:,} -> {GENES:,} genes a step, "
            f"{torch.get_num_threads()} threads; seconds of processor time, the best of {repeats}"
        )
        rows = [say_step(k, step, optimizer, repeats) for k in model.ks]
    seconds, inside, of_mkl = np.mean(rows, 0)
    steps = math.ceil(SLIDES * (1 - 1 / he2rna.FOLDS) / BATCH)
    say(f"  mean over the list {seconds:.2f}, with MKL's products {of_mkl:.2f}")
    say(
        f"  that is {seconds / inside:.2f} times what it spends in products, and in sums of rows "
        "where k is small"
    )
    say(
        f"  an epoch of {steps} steps takes {seconds * steps / 60:.0f} minutes of a core, without "
        "its validation"
    )
    kept = SLIDES * (SUPERTILES * FEATURES * 2 + GENES * 4) / GIB
    say(
        f"  memory {largest_memory():.1f} GiB with {ON_DISK} slides; super-tiles and expression of "
        f"all {SLIDES:,} take {kept:.1f} more"
    )


def one_step(model, optimizer, bags, y, k):
    """A step of he2rna.learn with a given k."""
    rows = torch.randint(ON_DISK, (BATCH,))
    with mock.patch.object(model, "ks", (k,)):
        he2rna.learn(model, optimizer, bags, y, [rows], epoch=1)


def say_step(k, step, optimizer, repeats):
    """-> seconds of a step, which are printed by parts; those in products; all with MKL's."""
    best, best_by_mkl = math.inf, math.inf
    for _ in range(repeats):
        parts = Parts()
        with parts.watch(
            ("scores", topk, "product"),
            ("best tiles", topk, "highest"),
            ("chosen tiles", topk, "numbers"),
            ("chosen tiles", topk, "fill"),
            ("gradients by gathering", topk, "by_gathering"),
            ("gradients by products", topk, "by_products"),
            ("hidden layers", products, "product"),
            ("Adam", optimizer, "step"),
            ("reading", he2rna, "pad_bags"),
            ("once an epoch", torch.Tensor, "isfinite"),
        ):
            seconds = processor_time(step, k)
        once = parts.seconds.pop("once an epoch")
        seconds -= once
        if seconds < best:
            best, shares = seconds, parts.seconds
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(products, "ONEDNN", False))
            stack.enter_context(mock.patch.dict(topk.GATHER, cpu=GATHER_MKL))
            best_by_mkl = min(best_by_mkl, processor_time(step, k) - once)
    shares["other"] = best - sum(shares.values())
    said = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    say(f"  k {k:3d}: {best:.2f} ({said}); with MKL's products {best_by_mkl:.2f}")
    return best, sum(shares.get(name, 0) for name in PRODUCTS), best_by_mkl


def processor_time(function, *argv):
    start = time.process_time()
    function(*argv)
    return time.process_time() - start
