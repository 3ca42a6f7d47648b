"""The fast twins and the direct way: a function a bench."""

import copy
import itertools
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

import he2rna
import histcode
import stats
import tiling
from lab.bench.timing import largest_memory, peak, say, side_by_side, timed
from lab.devices import pick_device
from lab.fast import bank as fast_bank
from lab.fast import networks as fast_networks
from lab.fast.encoder import encode, prepare
from lab.fast.topk import top_k_head
from lab.he2rna.evaluation import write_genes
from lab.weights import load_weights

GENES, TILES, FEATURES = 30839, 8000, 2048  # the paper's


def bench_encoder():
    """Features of 32 tiles: the folded network against the plain one, eager and float32."""
    device = pick_device()
    tiles = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3), np.uint8)
    network = load_weights(4, "random", 0).to(device)
    wanted = tiling.encode(network, tiles)
    for precision in ("float32", "bfloat16"):
        fast = prepare(copy.deepcopy(network), device, precision)
        pair = side_by_side(
            lambda fast=fast: encode(fast, [tiles]), lambda: tiling.encode(network, tiles)
        )
        error = np.abs(encode(fast, [tiles]) - wanted).max() / np.abs(wanted).max()
        say(
            f"encoder, {precision} on {device}: {32 / pair.ours:.1f} tiles/s, plain float32 "
            f"{32 / pair.direct:.1f}: {pair.times:.2f} times; features within {error:.1e}"
        )


def bench_kmeans():
    """The places of 8,000 tiles in 100 clusters, against SciPy's kmeans2."""
    from scipy.cluster.vq import kmeans2

    places = np.stack(np.meshgrid(np.arange(100), np.arange(80)), -1).reshape(-1, 2).astype(float)
    seeds = itertools.count()  # how many iterations it takes depends on the start
    pair = side_by_side(
        lambda: tiling.kmeans(places, 100, next(seeds)),
        lambda: kmeans2(places, 100, minit="++", seed=next(seeds), iter=100),
    )
    say(
        f"kmeans of {len(places):,} places, k = 100: {pair.ours:.2f} s, SciPy's {pair.direct:.2f} s"
    )


def bench_macenko():
    """Tiles of 256 pixels to the reference's colours, against the formula in float64."""
    rng = np.random.default_rng(0)
    stains = np.array([[0.65, 0.70, 0.29], [0.25, 0.85, 0.45]])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    density = rng.uniform(0, 1.2, (16 * 256 * 256, 2)) @ stains
    tiles = (tiling.LIGHT * np.exp(-density) - 1).clip(0, 255).astype(np.uint8)
    top = np.array([1.2, 1.2])

    def formula():
        for tile in tiles.reshape(16, -1, 3):
            od = -np.log((tile.astype(float) + 1) / tiling.LIGHT)
            amounts = np.linalg.lstsq(stains.T, od.T, rcond=None)[0]
            amounts *= (tiling.REFERENCE_TOP / top)[:, None]
            tiling.LIGHT * np.exp(-(amounts.T @ tiling.REFERENCE))

    pictures = tiles.reshape(16, 256, 256, 3)
    pair = side_by_side(lambda: tiling.macenko(pictures, (stains, top)), formula)
    say(
        f"macenko: {pair.ours / 16 * 1e3:.2f} ms a tile of 256 pixels, the formula "
        f"{pair.direct / 16 * 1e3:.2f}: {pair.times:.1f} times"
    )


def bench_topk():
    """Whole training steps and evaluation at full scale, by the fast head and by all scores."""
    device = pick_device()
    for B, T, ks in ((16, 100, he2rna.KS_SUPERTILES), (1, TILES, he2rna.KS_TILES)):
        torch.manual_seed(0)
        model = he2rna.HE2RNA(FEATURES, GENES, ks=ks).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=0)  # its work, and the same step again
        x = torch.rand(B, T, FEATURES, device=device)
        y = torch.randn(B, GENES, device=device)
        mask = torch.ones(B, T, dtype=torch.bool, device=device)

        def step(head, k, model=model, optimizer=optimizer, x=x, y=y, mask=mask):
            torch.manual_seed(1)  # the same dropout
            model.head = head
            model.train().zero_grad()
            loss = (model(x, mask, k) - y).square().mean()
            loss.backward()
            optimizer.step()

        @torch.no_grad()
        def evaluate(head, model=model, x=x, mask=mask):
            model.head = head
            model.eval()(x, mask)

        say(f"top-k of {B} x {T:,} x {FEATURES:,} -> {GENES:,} genes, on {device}")
        shares = []
        half = partial(top_k_head, precision="bfloat16")
        for k in ks:
            pair = side_by_side(partial(step, top_k_head, k), partial(step, None, k), 3)
            rounded = side_by_side(partial(step, half, k), lambda: None, 3)
            memory = [peak(partial(step, head, k)) for head in (top_k_head, None)]
            shares.append((1 / pair.times, rounded.ours / pair.direct))
            say(
                f"  k {k:5d}: {pair.ours:5.2f} s, chosen in bfloat16 {rounded.ours:5.2f} s, direct "
                f"{pair.direct:5.2f} s: {shares[-1][0]:.2f} and {shares[-1][1]:.2f} of its time; "
                f"{memory[0]:.1f} GiB, direct {memory[1]:.1f} GiB"
            )
        mean = np.mean(shares, 0)
        low = np.mean([share for k, share in zip(ks, shares, strict=True) if k <= 200], 0)
        say(f"  mean over the list {mean[0]:.2f} and {mean[1]:.2f}, of k <= 200 {low[0]:.2f}")
        pair = side_by_side(partial(evaluate, top_k_head), partial(evaluate, None), 3)
        say(
            f"  all {len(ks)} k: {pair.ours:.2f} s, direct {pair.direct:.2f} s: "
            f"{1 / pair.times:.2f} of its time"
        )


def bench_memory():
    """Training on 4 slides of 8,000 tiles, float16 and memory-mapped, for all genes."""
    device = pick_device()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.npy" for i in range(4)]
        for path in paths:
            np.save(path, rng.random((TILES, FEATURES), np.float32).astype(np.float16))
        torch.manual_seed(0)
        model = he2rna.HE2RNA(FEATURES, GENES, ks=he2rna.KS_TILES, head=top_k_head).to(device)
        optimizer = torch.optim.Adam(model.parameters())
        for k in (10, 200, 2000, 5000):
            start = time.perf_counter()
            x, mask = he2rna.pad_bags([np.load(path, mmap_mode="r") for path in paths])
            loss = model.train()(x.to(device).float(), mask.to(device), k).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            say(f"  k {k:5d}: loss {loss.item():.4f}, {time.perf_counter() - start:.1f} s")
    size = f"4 x {TILES:,} x {FEATURES:,} -> {GENES:,} genes"
    say(f"memory of training, {size}: {largest_memory():.1f} GiB, everything included, on {device}")


def bench_table():
    """The per-gene table of 28 cancers, 10,500 slides: R, three nulls, corrections, genes.csv."""
    rng = np.random.default_rng(0)
    n = 10500
    y = rng.random((n, GENES), np.float32)
    prediction = rng.random((n, GENES), np.float32)
    projects = np.array([f"P{i % 28:02d}" for i in range(n)])
    null = {p: rng.normal(0, 0.05, (3, GENES)).astype(np.float32) for p in set(projects)}
    start = time.perf_counter()
    results = he2rna.evaluate(prediction, y, np.arange(n) % 5, projects, 5, null, "untrained")
    judged = time.perf_counter() - start
    folder = Path(tempfile.mkdtemp())
    write_genes(folder / "genes.csv", [f"G{i}" for i in range(GENES)], results)
    written = time.perf_counter() - start - judged
    shutil.rmtree(folder)
    say(
        f"table of 28 cancers x {GENES:,} genes, {n:,} slides: {judged:.1f} s, genes.csv "
        f"{written:.1f} s; {largest_memory():.1f} GiB"
    )


def bench_lists(cancers=28, n_lists=10_000, looped=20):
    """Seven signatures against 10,000 random lists, and a loop over lists (timed on 20 of them)."""
    rng = np.random.default_rng(0)
    r = rng.normal(size=(GENES, cancers)).astype(np.float32)
    sizes = (60, 80, 150, 250, 350, 500, 3400)
    members = np.array([rng.permutation(GENES) < size for size in sizes])
    ours = timed(lambda: stats.random_list_test(r, r > 1, members, n_lists, rng))

    def loop():
        for row, c in itertools.product(members, range(cancers)):
            for _ in range(looped):
                chosen = rng.choice(GENES, row.sum(), replace=False)
                r[chosen, c].mean(), (r[chosen, c] > 1).mean()

    direct = timed(loop) * n_lists / looped
    size = f"{len(sizes)} x {cancers} x {n_lists:,}"
    times = direct / ours
    say(f"random lists, {size}: {ours:.1f} s, the loop about {direct:.0f}: {times:.0f} times")


def bench_networks(patients=441, genes=28334):
    """One split of the MSI study at the paper's size, each arm's networks; some one by one."""
    device = pick_device()
    rng = np.random.default_rng(0)
    high = np.arange(patients) % 20 < 3
    x = rng.normal(size=(patients, FEATURES)).astype(np.float32)
    x[:, :40] += high[:, None]
    in_a = he2rna.hospital_a(high, 3 / 4, rng)
    a, b = np.flatnonzero(in_a), np.flatnonzero(~in_a)
    tests = he2rna.folds_in_b(b.astype(str), high[b], [0])
    with fast_networks.threads(device) as pool:
        together = partial(fast_networks.train_networks, pool=pool, device=device)
        hospitals = he2rna.Hospitals(
            x=x,
            y=rng.random((patients, genes), np.float32),
            high=high,
            rows_a=[a[np.arange(len(a)) % 3 != f] for f in range(3)],
            rows_b=[b[~test] for test in tests],
            seed=[0],
            train=together,
        )
        say(f"MSI, {patients} patients, {genes:,} genes, 3/4 of them in A, one split, on {device}")
        for name, arm in he2rna.MSI_ARMS.items():
            say(f"  {name} {timed(partial(arm, hospitals)):.1f} s")
        plain = hospitals._replace(train=he2rna.train_networks)
        seconds = timed(partial(he2rna.direct_arm, plain))
        say(f"  direct, one network after another, {seconds:.1f} s")


def bench_bank(batch=64):
    """The gradient of 65,536 negatives in blocks, against autograd."""
    device = pick_device()
    torch.manual_seed(0)
    bank = torch.randn(histcode.BANK_SIZE, histcode.EMBEDDING, device=device)
    q, k = torch.nn.functional.normalize(torch.randn(2, batch, histcode.EMBEDDING), dim=2).to(
        device
    )

    def blocks():
        return fast_bank.bank_gradient(q, k, bank, 0.12)

    def autograd():
        w = bank.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(histcode.info_nce(q, k, w, 0.12), w)
        return gradient

    memory = [peak(way) * 1024 for way in (blocks, autograd)]
    pair = side_by_side(blocks, autograd)
    error = (blocks() - autograd()).abs().max() / autograd().abs().max()
    say(
        f"bank gradient, {len(bank):,} negatives, batch {batch}, on {device}: "
        f"{pair.ours * 1e3:.0f} ms, autograd {pair.direct * 1e3:.0f} ms: {pair.times:.1f} times; "
        f"{memory[0]:.0f} MiB, autograd {memory[1]:.0f}; within {error:.0e}"
    )
