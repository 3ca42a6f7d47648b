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
from concurrent.futures import ThreadPoolExecutor
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
import lab.he2rna.msi
import stats
import tiling
from lab.cohort.make import make_tiles
from lab.cohort.slides import open_slide
from lab.cohort.steps import tiles_of
from lab.devices import pick_device, pick_precision
from lab.encoders import prepare_encoder
from lab.fast.encoder import encode
from lab.fast.topk import top_k_head
from lab.files import save_file
from lab.he2rna.bags import from_disk
from lab.he2rna.evaluation import write_genes
from lab.he2rna.msi import compare_arms, hospital_a
from lab.he2rna.msi_report import MSI_ARMS
from lab.histcode.heads import train_heads
from lab.histcode.pretraining import train_step
from lab.histcode.settings import BANK_SIZE, MOMENTUM_ENCODER
from lab.histcode.training import draw_model
from lab.progress import ordered_map
from lab.simulation.cohort import simulate_cohort
from lab.tests.helpers import (
    STAIN_PAIRS,
    direct,
    inertia,
    one_by_one,
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
    """One split of the MSI study at the paper's size, three quarters in A, all arms; then its classifiers alone, and one after another."""
    rng, high, device = np.random.default_rng(0), np.arange(patients) % 20 < 3, pick_device()
    d = dict(
        x=rng.normal(size=(patients, 2048)).astype(np.float32),
        y=rng.random((patients, genes), np.float32),
        has_y=np.ones(patients, bool),
        patients=np.array([f"P{i}" for i in range(patients)]),
        projects=np.full(patients, "COAD"),
        high=high,
    )
    d["x"][:, :40] += high[:, None]
    o, plain, calls, cores = (
        argparse.Namespace(code=(), folds=3, repeats=10, seed=0),
        lab.he2rna.msi.train_networks,
        [],
        torch.get_num_threads(),
    )

    def keep(pool, sizes, activations, inputs, trains, seeds, *more):
        done = (
            dict(plain(pool, sizes, activations, inputs, trains, seeds, *more))
            if sizes[-1] == 1
            else plain(pool, sizes, activations, inputs, trains, seeds, *more)
        )
        if sizes[-1] == 1:
            calls.append(
                (
                    sizes,
                    activations,
                    [inputs(m) for m in range(len(trains))],
                    trains,
                    seeds,
                    *more,
                    done,
                )
            )
            done = iter(done.items())
        return done

    in_a, start = hospital_a(high, Fraction(3, 4), rng), time.perf_counter()
    compare_arms(d, in_a, tuple(MSI_ARMS), o, (0,), device)
    print(
        f"MSI, {patients} patients, {genes:,} genes, 3/4 in A, 10 x 3 folds, on {device}: one split, all arms {time.perf_counter() - start:.1f} s",
        flush=True,
    )
    lab.he2rna.msi.train_networks = keep
    compare_arms(d | dict(y=d["y"][:, :9]), in_a, tuple(MSI_ARMS), o, (0,), device)
    lab.he2rna.msi.train_networks, total = plain, np.zeros(2)
    with ThreadPoolExecutor(
        cores if device.type == "cpu" else 1, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for sizes, activations, made, trains, seeds, epochs, batch, _, take, done in sorted(
            calls, key=lambda c: len(c[0])
        ):
            start, difference = time.perf_counter(), 0
            again = dict(
                plain(
                    pool,
                    sizes,
                    activations,
                    lambda m: made[m],
                    trains,
                    seeds,
                    epochs,
                    batch,
                    device,
                    take,
                )
            )
            ours = time.perf_counter() - start
            start = time.perf_counter()
            for m, rows in enumerate(trains):
                scores = one_by_one(sizes, activations, *made[m], rows, seeds[m], epochs, batch)[-1]
                difference = max(
                    difference,
                    np.abs(scores[~in_a, 0].numpy() - done[m]).max(),
                    np.abs(again[m] - done[m]).max(),
                )
            total += ours, time.perf_counter() - start
            print(
                f"  {len(seeds)} classifiers {'-'.join(map(str, sizes))}: {ours:.2f} s, one by one (on the CPU) {time.perf_counter() - start:.1f} s; "
                f"scores within {difference:.0e}",
                flush=True,
            )
    print(
        f"  all {sum(len(c[4]) for c in calls)}: {total[0]:.1f} s, one by one {total[1]:.1f} s: {total[1] / total[0]:.1f} times"
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
    """A step of pretraining at batch 64 (views of 224 px from tiles of 256, 65,536 negatives); the bank's gradient against autograd (memory: run it alone)."""
    device, batch, K = pick_device(), 64, BANK_SIZE
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    o = argparse.Namespace(
        precision=pick_precision("auto", device),
        tau=0.12,
        bank_tau=0.12,
        bank_lr=0.3,
        bank_momentum=0.9,
        bank_decay=1e-4,
        in_batch=False,
        symmetric=False,
        momentum_encoder=MOMENTUM_ENCODER,
    )
    torch.manual_seed(0)
    bank, (q, k) = (
        torch.randn(K, 128, device=device),
        (F.normalize(torch.randn(batch, 128, device=device), dim=1) for _ in range(2)),
    )

    def closed():
        g = histcode.bank_gradient(q, k, bank, 0.12)
        synchronize()
        return g

    def autograd():
        w = bank.detach().requires_grad_()
        (g,) = torch.autograd.grad(histcode.info_nce(q, k, w, 0.12), w)
        synchronize()
        return g

    (ours, a), (theirs, b) = peak(closed), peak(autograd)
    fast, slow, ratio = pairs(closed, autograd)
    print(
        f"bank gradient of {K:,} negatives, batch {batch}, on {device}: {fast * 1e3:.0f} ms, autograd {slow * 1e3:.0f} ms: {ratio:.1f} times; "
        f"{ours * 1024:.0f} MiB, autograd {theirs * 1024:.0f} MiB; within {relative(a.cpu(), b.cpu()):.0e}",
        flush=True,
    )
    tiles = (pictures(batch, 256) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    model = (
        histcode.Embedder(tiling.ResNet50(3)).to(device, memory_format=torch.channels_last).train()
    )
    keys, velocity = copy.deepcopy(model).requires_grad_(False), torch.zeros_like(bank)
    optimizer = torch.optim.SGD(
        model.parameters(), 1e-9, 0.9
    )  # all of its work, and the same step each time

    def draw():
        views = list(histcode.two_views(tiles.to(device), 224, batch, 0, 1, 0, 1, 0))
        synchronize()
        return views

    def step():
        train_step(model, keys, optimizer, bank, velocity, draw(), o)
        synchronize()

    def climb():
        histcode.bank_step(
            bank, velocity, histcode.bank_gradient(q, k, bank, 0.12), 1e-9, 0.9, 1e-4
        )
        synchronize()

    memory, _ = peak(step)
    views, bank_part, whole, *_ = pairs(draw, climb, step, repeats=3)
    print(
        f"adco step, batch {batch}, views of 224 px, {o.precision} on {device}: {whole:.2f} s ({batch / whole:.1f} tiles/s), {memory:.1f} GiB; "
        f"views {views / whole:.1%}, bank step {bank_part / whole:.1%} of the time"
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
