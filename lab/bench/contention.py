"""What threads do on a machine that others use: spinning, waiting politely, and one alone."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import torch

import he2rna
import histcode
from lab.bench.timing import say
from lab.fast.encoder import encode, prepare
from lab.fast.topk import top_k_head
from lab.threads import POLITE, cores
from lab.weights import load_weights

BUSY = (0, 2, 6, 12)  # processes beside
SECONDS, ROUNDS = 3.0, 3  # of each measurement, and how often they come in turn
WAYS = {  # of OpenMP, before torch is imported there; -: not set
    "spinning": {**dict.fromkeys(POLITE, "-"), "OMP_NUM_THREADS": str(max(2, cores()))},
    "polite": {**POLITE, "OMP_NUM_THREADS": str(max(2, cores()))},
    "one": {**POLITE, "OMP_NUM_THREADS": "1"},
}
CHILD = "import torch; from lab.bench.contention import answer; answer()"  # torch before lab


# ----- The work -----------------------------------------------------------------------------------


def training_step(n_features, genes, hidden, tiles):
    """A step of HE2RNA on a batch of 16 slides."""
    model = he2rna.HE2RNA(n_features, genes, hidden, head=top_k_head)
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.rand(16, tiles, n_features)
    mask = torch.ones(16, tiles, dtype=torch.bool)
    y = torch.randn(16, genes)

    def step():
        loss = (model(x, mask, 10) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return 1

    return step


def head_step():
    """A step of gated attention on a slide of 1,000 tiles."""
    model = histcode.GatedAttention(1024, 128)
    h, mask = torch.rand(1, 1000, 1024), torch.ones(1, 1000, dtype=torch.bool)

    def step():
        model.zero_grad()
        model(h, mask)[0].square().mean().backward()
        return 1

    return step


def encoding(n=4):
    network = prepare(load_weights(4, "random", 0), torch.device("cpu"), "float32")
    tiles = np.random.default_rng(0).integers(0, 256, (n, 224, 224, 3), np.uint8)

    def some():
        encode(network, [tiles])
        return n

    return some


WORK = {
    "small steps": lambda: training_step(256, 300, (256,), 50),
    "top-k steps": lambda: training_step(1024, 2000, (512,), 100),
    "heads": head_step,
    "ResNet50 tiles": encoding,
}


def answer():
    """A child's life: for each line of stdin, a kind of work, how much of it a second does."""
    works = {name: make() for name, make in WORK.items()}
    for work in works.values():
        work()
    say("ready")
    for line in sys.stdin:
        work, done, start = works[line.strip()], 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            done += work()
        say(done / (time.perf_counter() - start))


# ----- The table ----------------------------------------------------------------------------------


@contextmanager
def running(n, argv, **how):
    """So many processes meanwhile."""
    processes = [subprocess.Popen([sys.executable, *argv], text=True, **how) for _ in range(n)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def child(settings):
    own = {k: v for k, v in {**os.environ, **settings}.items() if v != "-"}
    return running(1, ["-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=own)


def rate(process, kind):
    print(kind, file=process.stdin, flush=True)
    return float(process.stdout.readline())


def bench_contention():
    """Work per second of each way, in turn, with n busy processes beside it."""
    with (
        child(WAYS["spinning"]) as (spinning,),
        child(WAYS["polite"]) as (polite,),
        child(WAYS["one"]) as (one,),
    ):
        ways = (spinning, polite, one)
        for process in ways:
            process.stdout.readline()
        for n in BUSY:
            with running(n, ["-c", "while True: pass"]):
                for kind in WORK:
                    say(row(n, kind, ways))


def row(n, kind, ways):
    rates = np.array([[rate(process, kind) for process in ways] for _ in range(ROUNDS)])
    spinning, polite, one = np.median(rates, axis=0)
    of_one = np.median(rates[:, 1] / rates[:, 2])
    of_spinning = np.median(rates[:, 1] / rates[:, 0])
    return (
        f"{n:2d} busy beside, {kind} a second: {max(2, cores())} threads spinning {spinning:.2f}, "
        f"polite {polite:.2f}, one thread {one:.2f}: polite is {of_one:.2f} of one, "
        f"{of_spinning:.2f} of spinning"
    )
