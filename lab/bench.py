"""lab.bench"""

import argparse
import copy
import itertools
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import scipy.cluster
import scipy.signal
import scipy.stats
import torch
import torch.nn.functional as F

import he2rna
import histcode
import stats
import tiling
from lab.cohort.make import make_tiles
from lab.cohort.slides import open_slide
from lab.cohort.steps import tiles_of
from lab.devices import pick_device, pick_precision
from lab.encoders import prepare_encoder
from lab.fast import networks
from lab.fast.bank import bank_gradient
from lab.fast.encoder import encode
from lab.fast.topk import top_k_head
from lab.files import save_file
from lab.he2rna.bags import from_disk
from lab.he2rna.evaluation import write_genes
from lab.he2rna.msi import compare_arms
from lab.histcode.heads import train_heads
from lab.histcode.training import draw_model
from lab.progress import ordered_map
from lab.simulation.cohort import simulate_cohort
from lab.tests.helpers import (
    STAIN_PAIRS,
    direct,
    inertia,
    options,
    pictures,
    random_list_loop,
    relative,
    stained,
    tile_cloud,
)
from lab.weights import load_weights


# Benchmarks: the direct way stands here, ours beside it, measured in turn in one run
def pairs(*ways, repeats=5):
    """Median seconds of each way, run in turn after a warm-up, then the median ratios of the last one, the direct, to each."""
    times = np.zeros((repeats + 1, len(ways)))
    for row in times:
        for i, way in enumerate(ways):
            start = time.perf_counter()
            way()
            row[i] = time.perf_counter() - start
    return *np.median(times[1:], 0), *np.median(times[1:, -1:] / times[1:, :-1], 0)


def bench_encoder():
    """Plain eager float32 ResNet50 against the prepared one, on tiles of a simulated slide; and what reading costs."""
    tmp = Path(os.environ.get("TMPDIR", "/tmp")) / f"bench-{os.getpid()}"
    try:
        simulate_cohort(tmp, patients=4)
        path = sorted((tmp / "slides").iterdir())[0]
        o = options()
        make_tiles(tmp, [path.stem], o)
        tiles, _ = tiles_of(tmp, path.stem)
        runs, tile, slide = (
            tiling.tile_runs(tiles["coords"], float(tiles["tile"])),
            float(tiles["tile"]),
            open_slide(path),
        )
        read = lambda run: tiling.read_tiles(slide, tiles["coords"][run[0] : run[1]], tile)
        pixels = np.concatenate([read(r) for r in runs])[:32]
        device = pick_device()
        net = load_weights(4, "random", 0).to(device)
        x = tiling.normalise(torch.from_numpy(pixels)).contiguous().to(device)
        with torch.inference_mode():
            want = net(x).cpu().numpy()
        for precision in ("float32", "bfloat16"):
            fast = prepare_encoder(copy.deepcopy(net), device, precision)

            def plain():
                with torch.inference_mode():
                    return net(x).cpu()

            a, b, ratio = pairs(lambda: encode(fast, [pixels]), plain)
            print(
                f"encoder {precision} on {device}: {len(pixels) / a:.1f} tiles/s, plain eager float32 {len(pixels) / b:.1f}: {ratio:.2f} times; "
                f"features within {relative(encode(fast, [pixels]), want):.1e}"
            )
        waited, total = [0.0], time.perf_counter()

        def chunks():
            ahead = ordered_map(read, runs * 6, os.cpu_count())
            while True:
                start = time.perf_counter()
                item = next(ahead, None)
                waited[0] += time.perf_counter() - start
                if item is None:
                    return
                yield item[1]

        n = len(encode(fast, chunks()))
        total = time.perf_counter() - total
        print(
            f"encoder {precision} from the slide: {n / total:.1f} tiles/s, {waited[0] / total:.1%} of the time waiting for tiles"
        )
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def peak(function):
    """Memory in GiB that a call takes beyond what was there before, and its result."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before, result = torch.cuda.memory_allocated(), function()
        return (torch.cuda.max_memory_allocated() - before) / 2**30, result

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    seen, before, stop = [], resident(), threading.Event()

    def watch():
        while not stop.wait(0.002):
            seen.append(resident())

    thread = threading.Thread(target=watch)
    thread.start()
    result = function()
    stop.set(), thread.join()
    return (max(seen, default=before) - before) / 2**30, result


def bench_topk():
    """Whole steps (hidden layers, loss, backward, Adam) and evaluation, at full scale and on super-tiles, against the direct way."""
    genes, device = 30839, pick_device()
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for B, T, ks in ((16, 100, he2rna.KS_SUPERTILES), (1, 8000, he2rna.KS_TILES)):
        torch.manual_seed(0)
        model = he2rna.HE2RNA(2048, genes, ks=ks, head=top_k_head).to(device)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=0
        )  # all of Adam's work, and the same step each time
        x, y = torch.rand(B, T, 2048, device=device), torch.randn(B, genes, device=device)
        mask = torch.ones(B, T, dtype=torch.bool, device=device)

        def step(predict, k, precision="float32"):
            torch.manual_seed(1)  # the same dropout
            model.head = partial(top_k_head, precision=precision)
            model.train().zero_grad()
            loss = (predict(x, mask, k) - y).square().mean()
            loss.backward()
            optimizer.step()
            synchronize()
            return loss.item()

        @torch.no_grad()
        def evaluate(predict):
            model.eval()
            out = predict()
            synchronize()
            return out

        print(f"top-k of {B} x {T:,} x 2,048 -> {genes:,} genes, on {device}", flush=True)
        ratios = []
        for k in ks:
            plain = lambda: step(lambda *a: direct(model, *a), k)
            (ours, loss), (theirs, wanted) = peak(lambda: step(model, k)), peak(plain)
            fast, half, slow, *ratio = pairs(
                lambda: step(model, k), lambda: step(model, k, "bfloat16"), plain, repeats=3
            )
            ratios.append(1 / np.array(ratio))
            print(
                f"  k {k:5d}: {fast:5.2f} s, bfloat16 selection {half:5.2f} s, direct {slow:5.2f} s: {ratios[-1][0]:.2f} and {ratios[-1][1]:.2f} of "
                f"its time; {ours:.1f} GiB, direct {theirs:.1f} GiB; loss within {abs(loss / wanted - 1):.0e}",
                flush=True,
            )
        print(
            "  mean over the list: {:.2f} and {:.2f} with bfloat16 selection".format(
                *np.mean(ratios, 0)
            )
        )
        low = [r for k, r in zip(ks, ratios) if k <= 200]
        print("  mean of k <= 200:   {:.2f} and {:.2f}".format(*np.mean(low, 0)))
        fast, slow, ratio = pairs(
            lambda: evaluate(lambda: model(x, mask)),
            lambda: evaluate(lambda: torch.stack([direct(model, x, mask, k) for k in ks]).mean(0)),
            repeats=3,
        )
        print(
            f"  all {len(ks)} k: {fast:.2f} s, direct {slow:.2f} s: {1 / ratio:.2f} of its time",
            flush=True,
        )


def bench_memory():
    """Training on 4 slides of 8,000 tiles, features float16 and memory-mapped, all 30,839 genes: the whole process's peak (run it alone)."""
    tmp, device = Path(os.environ.get("TMPDIR", "/tmp")) / f"bench-{os.getpid()}", pick_device()
    try:
        rng, slides = np.random.default_rng(0), [f"s{i}" for i in range(4)]
        for s in slides:
            save_file(
                tmp / "tiles" / f"{s}.npz",
                lambda f: np.savez(f, coords=tile_cloud(8000), settings=np.array("{}")),
            )
            save_file(
                tmp / "features" / "resnet50" / f"{s}.npy",
                lambda f: np.save(f, rng.random((8000, 2048), np.float32).astype(np.float16)),
            )
        torch.manual_seed(0)
        model = he2rna.HE2RNA(2048, 30839, ks=he2rna.KS_TILES, head=top_k_head).to(device).train()
        optimizer, bags = torch.optim.Adam(model.parameters()), from_disk(tmp, "resnet50", slides)
        for k in (10, 200, 2000, 5000):
            start = time.perf_counter()
            x, mask = bags(range(4))
            loss = model(x.to(device).float(), mask.to(device), k).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            took = time.perf_counter() - start
            print(f"  k {k:5d}: loss {loss.item():.4f}, {took:.1f} s", flush=True)
        peak_gib = (
            torch.cuda.max_memory_allocated() / 2**30
            if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        )
        print(
            f"memory: 4 x 8,000 x 2,048 -> 30,839 genes, training: {peak_gib:.1f} GiB at most, everything included, on {device}"
        )
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def bench_table():
    """The per-gene table (R, three nulls' p, both corrections, genes.csv) of 28 cancers, 30,839 genes, 10,500 slides."""
    rng, n, genes = np.random.default_rng(0), 10500, 30839
    y, fold, projects = (
        rng.random((n, genes), np.float32),
        np.arange(n) % 5,
        np.array([f"P{i % 28:02d}" for i in range(n)]),
    )
    prediction = rng.random((n, genes), np.float32)
    untrained = {p: rng.normal(0, 0.05, (3, genes)).astype(np.float32) for p in set(projects)}
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"genes-{os.getpid()}.csv"
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = he2rna.evaluate(prediction, y, fold, projects, 5, untrained, "untrained")
    judged = time.perf_counter() - start
    write_genes(path, [f"G{i}" for i in range(genes)], results)
    print(
        f"table: 28 cancers x {genes:,} genes, {n:,} slides: {judged:.1f} s, and genes.csv {time.perf_counter() - start - judged:.1f} s; "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB at most, {before / 2**20:.1f} before"
    )
    path.unlink()


def bench_lists(cancers=28, m=30839, n_lists=10_000, missing=0.0):
    """Seven signatures x 28 cancers x 10,000 lists: all at once, and the loop (on 20 lists, times 500)."""
    rng = np.random.default_rng(0)
    r = rng.normal(size=(m, cancers)).astype(np.float32)
    r[rng.random(r.shape) < missing] = np.nan
    sizes = (60, 80, 150, 250, 350, 500, 3400)
    members = np.array([rng.permutation(m) < s for s in sizes])
    start = time.perf_counter()
    stats.random_list_test(r, r > 1, members, n_lists, rng)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    for row, c in itertools.product(members, range(cancers)):
        random_list_loop(r[:, c], r[:, c] > 1, np.flatnonzero(row), 20, rng)
    loop = (time.perf_counter() - start) * n_lists / 20
    print(
        f"random lists, {len(sizes)} x {cancers} x {n_lists:,} of {m:,} genes: {ours:.1f} s, the loop about {loop:.0f} s: {loop / ours:.0f} times"
    )


def bench_msi(patients=441, genes=28334):
    """One split of the MSI study at the paper's size, three quarters in A: all arms at once; then
    its direct classifiers, by the fast twin and by the plain form, one network after another.
    """
    rng, device = np.random.default_rng(0), pick_device()
    high = np.arange(patients) % 20 < 3
    d = dict(
        x=rng.normal(size=(patients, 2048)).astype(np.float32),
        y=rng.random((patients, genes), np.float32),
        has_y=np.ones(patients, bool),
        patients=np.array([f"P{i}" for i in range(patients)]),
        projects=np.full(patients, "COAD"),
        high=high,
    )
    d["x"][:, :40] += high[:, None]
    in_a = he2rna.hospital_a(high, Fraction(3, 4), rng)
    o = argparse.Namespace(code=(), folds=3, repeats=10, seed=0)
    start = time.perf_counter()
    compare_arms(d, in_a, tuple(he2rna.MSI_ARMS), o, (0,), device)
    seconds = time.perf_counter() - start
    print(f"MSI, {patients} patients, {genes:,} genes, 3/4 in A, 10 x 3 folds, on {device}")
    print(f"one split, all arms: {seconds:.1f} s", flush=True)

    a, b = np.flatnonzero(in_a), np.flatnonzero(~in_a)
    trains = [b[~test] for test in he2rna.folds_in_b(d["patients"][b], high[b], [0])]
    plain = he2rna.Hospitals(d["x"], d["y"], high, [a], trains, [0])
    with networks.threads(device) as pool:
        fast = plain._replace(train=partial(networks.train_networks, pool=pool, device=device))
        scores, times = [], []
        for hospitals in (fast, plain):
            start = time.perf_counter()
            scores.append(he2rna.direct_arm(hospitals))
            times.append(time.perf_counter() - start)
    print(
        f"{len(trains)} direct classifiers: {times[0]:.1f} s, one after another (on the CPU) "
        f"{times[1]:.1f} s: {times[1] / times[0]:.1f} times; scores within "
        f"{abs(scores[0] - scores[1]).max():.0e}"
    )


def bench_macenko():
    """One tile of 256 pixels to the reference's colours: one matrix and a table, against the formula in float64 with least squares; one thread."""
    found, tiles = (
        (STAIN_PAIRS["bluish"], np.array([3.3, 1.2])),
        np.stack([stained(STAIN_PAIRS["bluish"], n=65536, seed=s)[0] for s in range(16)]),
    )

    def formula():
        for tile in tiles:
            c = np.linalg.lstsq(found[0].T, -np.log((tile.astype(float) + 1) / 240).T, rcond=None)[
                0
            ]
            (
                240 * np.exp(-(c * (tiling.REFERENCE_TOP / found[1])[:, None]).T @ tiling.REFERENCE)
            ).clip(0, 255).astype(np.uint8)

    a, b, ratio = pairs(lambda: tiling.macenko(tiles.reshape(16, 256, 256, 3), found), formula)
    c = pairs(lambda: tiling.macenko_stains(tiling.optical_density(tiles.reshape(-1, 3)[:262144])))[
        0
    ]
    print(
        f"macenko: {a / 16 * 1e3:.2f} ms a tile of 256 pixels, the formula {b / 16 * 1e3:.2f}: {ratio:.1f} times; a slide's stains from 64 tiles {c * 1e3:.0f} ms"
    )


def bench_kmeans():
    """8,000 tile locations, 100 clusters: ours against scikit-learn's KMeans(n_init=1) (scipy's kmeans2 without it)."""
    points = tile_cloud(8000).astype(float)
    try:
        from sklearn.cluster import KMeans

        name, other = (
            "scikit-learn",
            lambda s: KMeans(100, n_init=1, random_state=s).fit(points).cluster_centers_,
        )
    except ImportError:
        name, other = (
            "scipy kmeans2",
            lambda s: scipy.cluster.vq.kmeans2(points, 100, minit="++", seed=s, iter=100)[0],
        )
    seeds = [
        itertools.cycle(range(10)),
        itertools.cycle(range(10)),
    ]  # how many iterations it takes depends on the start
    a, b, ratio = pairs(
        lambda: tiling.kmeans(points, 100, next(seeds[0])),
        lambda: other(next(seeds[1])),
        repeats=30,
    )
    ours, theirs = (
        np.mean([inertia(points, c) for c in cs])
        for cs in (
            [tiling.kmeans(points, 100, s)[0] for s in range(9)],
            [other(s) for s in range(9)],
        )
    )
    print(
        f"kmeans 8,000 points, k = 100: {a * 1e3:.0f} ms, {name} {b * 1e3:.0f} ms: {ratio:.2f} times; inertia {ours / theirs:.4f} of its"
    )


def bench_adco():
    """A step of pretraining at batch 64 (views of 224 px of tiles of 256, 65,536 negatives), and
    the bank's gradient in blocks against autograd. Memory: run it alone."""
    device, batch, tau = pick_device(), 64, histcode.TAU
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    torch.manual_seed(0)
    bank = torch.randn(histcode.BANK_SIZE, histcode.EMBEDDING, device=device)
    q = F.normalize(torch.randn(batch, histcode.EMBEDDING, device=device), dim=1)
    k = F.normalize(torch.randn(batch, histcode.EMBEDDING, device=device), dim=1)

    def closed():
        gradient = bank_gradient(q, k, bank, tau)
        synchronize()
        return gradient

    def autograd():
        w = bank.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(histcode.info_nce(q, k, w, tau), w)
        synchronize()
        return gradient

    (ours, a), (theirs, b) = peak(closed), peak(autograd)
    fast, slow, ratio = pairs(closed, autograd)
    print(
        f"bank gradient of {len(bank):,} negatives, batch {batch}, on {device}: "
        f"{fast * 1e3:.0f} ms, autograd {slow * 1e3:.0f} ms: {ratio:.1f} times; "
        f"{ours * 1024:.0f} MiB, autograd {theirs * 1024:.0f} MiB; "
        f"within {relative(a.cpu(), b.cpu()):.0e}",
        flush=True,
    )
    tiles = (pictures(batch, 256) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    precision = pick_precision("auto", device)
    model = histcode.Embedder(tiling.ResNet50(3), precision=getattr(torch, precision))
    model = model.to(device, memory_format=torch.channels_last)
    negatives = histcode.Bank(bank, rate=1e-9, gradient=bank_gradient)

    def draw(epoch=1):
        views = histcode.two_views(tiles.to(device))
        synchronize()
        return [views]

    # An epoch of one step, whose rate leaves every next one the same work.
    epochs = histcode.pretrain_epochs(model, draw, negatives, epochs=10**6, lr=1e-9)

    def step():
        next(epochs)
        synchronize()

    def climb():
        negatives.climb([(q, k)])
        synchronize()

    memory, _ = peak(step)
    views, bank_part, whole, *_ = pairs(draw, climb, step, repeats=3)
    print(
        f"adco step, batch {batch}, views of 224 px, {precision} on {device}: {whole:.2f} s "
        f"({batch / whole:.1f} tiles/s), {memory:.1f} GiB; views {views / whole:.1%}, bank step "
        f"{bank_part / whole:.1%} of the time"
    )


def bench_attention(slides=2000, tiles=1000, D=1024):
    """An epoch of gated attention over 2,000 slides x 1,000 tiles x 1,024 features (float16, on disk): time, memory, reads; and the plain loop."""
    device, rng, reads, y = (
        pick_device(),
        np.random.default_rng(0),
        np.zeros(slides, int),
        np.arange(slides) % 2,
    )
    o = argparse.Namespace(lr=1e-4, weight_decay=1e-5, epochs=1, batch=1, embed=(), hidden=256)
    with tempfile.TemporaryDirectory() as tmp:
        for i in range(slides):
            np.save(f"{tmp}/{i}.npy", rng.random((tiles, D), np.float32).astype(np.float16))
        parts = np.split(np.arange(slides), [int(0.8 * slides), int(0.9 * slides)])
        bag = lambda i: (np.add.at(reads, i, 1), np.load(f"{tmp}/{i}.npy", mmap_mode="r"))[1]
        model = draw_model("HistCode", [(2, np.ones(D), np.full(D, 2 / 3))], [0], 0, o)

        def ours(parts=parts):
            train_heads(
                [model],
                bag,
                lambda rows: torch.from_numpy(y[rows]),
                histcode.cross_entropy,
                [parts],
                [0],
                o,
                device,
            )

        def plain():  # a Dataset of float32 slides, a step for each
            net = copy.deepcopy(model).to(device)
            optimizer = torch.optim.Adam(net.parameters(), 1e-4, weight_decay=1e-5)
            for i in range(50):
                h = torch.from_numpy(np.load(f"{tmp}/{i}.npy").astype(np.float32))[None].to(device)
                out = net(h, torch.ones(h.shape[:2], dtype=torch.bool, device=device))[0][:, 0]
                optimizer.zero_grad()
                F.cross_entropy(out, torch.from_numpy(y[i : i + 1]).to(device)).backward()
                optimizer.step()
            with torch.no_grad():
                for i in range(50, 60):
                    h = torch.from_numpy(np.load(f"{tmp}/{i}.npy").astype(np.float32))[None].to(
                        device
                    )
                    net(h, torch.ones(h.shape[:2], dtype=torch.bool, device=device))[0].cpu()

        ours_60, plain_60, ratio = pairs(
            lambda: ours([np.arange(50), np.arange(50, 55), np.arange(55, 60)]), plain, repeats=3
        )
        reads[:] = 0
        start = time.time()
        memory, _ = peak(ours)
        print(
            f"gated attention, {slides:,} x {tiles:,} x {D:,} float16 on {device}: an epoch (80 % learned from, 20 % judged) {time.time() - start:.0f} s, "
            f"each slide read {reads.min()} to {reads.max()} times, {memory:.2f} GiB; 60 slides {ours_60:.2f} s, plain loop {plain_60:.2f} s: "
            f"{ratio:.2f} times"
        )


def main():
    benches = {name[6:]: f for name, f in list(globals().items()) if name.startswith("bench_")}
    for name in sys.argv[1:] or benches:
        benches[name]()


if __name__ == "__main__":
    main()
