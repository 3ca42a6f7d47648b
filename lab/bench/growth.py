"""What grows: seconds and memory of all that reads a cohort, at several sizes of each.

    python -m lab.bench growth [--runs X]     --runs 10 and 100 add sizes that take minutes

Each size is read in a process of its own, so that none has the memory of another. The number
between is the exponent from the size before: 1 is linear. Seconds are those of a processor, however
many share it; MiB what the call takes at most beyond the program itself. All files are removed.
"""

import gzip
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lab.bench import growth_slides

GENES = 60_483  # of the GDC's tables [HE2RNA Methods]
ROWS = 50  # different rows of a drawn table
PROJECTS = ("TCGA-LUAD", "TCGA-LUSC", "TCGA-COAD")

# ----- What is drawn ------------------------------------------------------------------------------


def draw_samples(folder, n):
    """samples.csv of n slides, three of four of patients of their own."""
    lines = ["slide,patient,project,sample_type"]
    for i in range(n):
        patient = i - (i % 4 == 3)
        lines.append(f"TCGA-{i:06d}-DX1,patient {patient:06d},{PROJECTS[i % 3]},Primary Tumor")
    (folder / "samples.csv").write_text("\n".join(lines))


def draw_strangers(folder, n):
    """A run's folder, and n slides of another cohort."""
    draw_samples(folder, n)
    (folder / "slides").mkdir()
    for i in range(n):
        (folder / "slides" / f"TCGA-{i:06d}-DX1.svs").write_bytes(b"%d" % i)


def expression_rows(n):
    """n rows of float32 as text, ROWS of them different."""
    rng = np.random.default_rng(0)
    a = rng.lognormal(8, 3, (ROWS, GENES)).astype(np.float32) * (rng.random((ROWS, GENES)) < 0.7)
    lines = [("," + ",".join(map(str, row)) + "\n").encode() for row in a]
    for i in range(n):
        yield f"s{i}".encode(), lines[i % ROWS]


def draw_expression_csv(folder, n):
    with open(folder / "expression.csv", "wb") as f:
        f.write(b"slide," + b",".join(b"G%d" % g for g in range(GENES)) + b"\n")
        for parts in expression_rows(n):
            f.writelines(parts)


def draw_expression_gz(folder, n):
    """As draw_expression_csv; the rows are packed once each: .gz files may be joined."""
    packed = {}
    with open(folder / "expression.csv.gz", "wb") as f:
        f.write(gzip.compress(b"slide," + b",".join(b"G%d" % g for g in range(GENES)) + b"\n"))
        for name, line in expression_rows(n):
            if line not in packed:
                packed[line] = gzip.compress(line, 1)
            f.write(gzip.compress(name, 1) + packed[line])


def draw_expression_npz(folder, n):
    a = np.random.default_rng(0).lognormal(8, 3, (ROWS, GENES)).astype(np.float32)
    arrays = {"slide": [f"s{i}" for i in range(n)], "genes": [f"G{g}" for g in range(GENES)]}
    np.savez(folder / "expression.npz", **arrays, expression=np.resize(a, (n, GENES)))


def draw_points(folder, n):
    xy = np.random.default_rng(0).uniform(0, 1e5, (n, 2))
    kinds = ("tumour", "stroma", "immune")
    (folder / "points").mkdir()
    with open(folder / "points" / "s0.csv", "w") as f:
        f.write("x,y,cell\n")
        f.writelines(f"{x:.2f},{y:.2f},{kinds[i % 3]}\n" for i, (x, y) in enumerate(xy))


def draw_geojson(folder, megabytes):
    """Cells as QuPath exports them: outlines of 24 corners, with measurements."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 25)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    texts = []
    for x, y in rng.uniform(0, 1e5, (1000, 2)):
        places = (ring * rng.uniform(4, 12) + (x, y)).round(2)
        cell = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [places.tolist()]},
            "properties": {
                "objectType": "cell",
                "classification": {"name": "Tumor", "color": [200, 0, 0]},
                "measurements": dict(zip("abcdefgh", rng.random(8), strict=True)),
            },
        }
        texts.append(json.dumps(cell))
    block = ",\n".join(texts)
    (folder / "points").mkdir()
    with open(folder / "points" / "s0.geojson", "w") as f:
        f.write('{"type": "FeatureCollection", "features": [')
        f.write(",\n".join([block] * max(1, megabytes * 10**6 // len(block))))
        f.write("]}")


def draw_tiles(folder, n):
    """tiles/ of n slides, each of 8,000 tiles, under the names of one file."""
    draw_strangers(folder, n)
    grid = np.stack(np.meshgrid(np.arange(100), np.arange(80)), -1).reshape(-1, 2) * 224
    first = folder / "tiles" / "first.npz"
    first.parent.mkdir()
    arrays = {"coords": grid.astype(np.int32), "tile": 224.0, "mpp": 0.5, "found": len(grid)}
    np.savez(first, **arrays, size=np.array([10**5, 10**5]), settings=json.dumps({"seed": 0}))
    for i in range(n):
        os.link(first, first.with_name(f"TCGA-{i:06d}-DX1.npz"))


def draw_features(folder, n):
    rng = np.random.default_rng(0)
    np.save(folder / "features.npy", rng.random((n, 2048), np.float32))


# ----- What is measured ---------------------------------------------------------------------------


def read_samples(folder):
    from lab.cohort.samples import read_samples

    return lambda: read_samples(folder)


def check_samples(folder):
    """Every check of names before a training, and the join with an expression table."""
    from lab.cohort import check, samples
    from lab.findings import Findings

    rows = samples.read_samples(folder)
    ids = [row["slide"] for row in rows]
    table = "slide", ids, ["A"], np.ones((len(ids), 1))

    def checks():
        samples.join(rows, "slide", ids)
        check.check_cohort(Findings(), folder, rows, None, table)

    return checks


def misspelled(folder):
    """The same where no name of the table is as in samples.csv, and the mend is looked for."""
    from lab.cohort import samples
    from lab.files import InputError

    rows = samples.read_samples(folder)
    ids = [row["slide"].lower().replace("-", "_") for row in rows]

    def join():
        try:
            samples.join(rows, "slide", ids)
        except InputError:
            return

    return join


def ask_strangers(folder):
    """`predict` and `heatmap` of slides that are no run's: whose are they?"""
    from lab.cohort.identity import asked_slides

    paths = sorted(map(str, (folder / "slides").iterdir()))
    (folder / "run").mkdir()
    run = {"rows": [], "cohort": folder, "folder": folder / "run", "config": {}}
    return lambda: asked_slides(run, paths)


def list_tiles(folder):
    """What `tiles`, `features` and `train` look at where all is there."""
    from lab.cohort.samples import read_samples
    from lab.cohort.tiles import missing_tiles

    slides = [row["slide"] for row in read_samples(folder)]
    shared = {"mpp": None, "tile_um": 112.0}
    found = {name: folder / "slides" / f"{name}.svs" for name in slides}
    return lambda: missing_tiles(folder, folder, slides, shared, found)


def read_expression(folder):
    from lab.cohort.expression import read_expression

    return lambda: read_expression(folder)


def read_cells(folder):
    from lab.cohort.places import read_cells

    return lambda: read_cells(folder, "s0", 0.5, (0, 0), print)


def make_supertiles(folder):
    import tiling

    features = np.load(folder / "features.npy")
    coords = np.stack(np.divmod(np.arange(len(features)), 100), 1) * 224
    return lambda: tiling.supertiles(features, coords, 100, 0)


ROWS_READ = {1: (100, 1000, 10_000), 10: (100_000,)}
CASES = {  # what: unit, how it is drawn, what is measured, {--runs from which on: sizes}
    "samples.csv: read": (
        "rows",
        draw_samples,
        read_samples,
        ROWS_READ,
    ),
    "samples.csv: all checks before training": (
        "rows",
        draw_samples,
        check_samples,
        ROWS_READ,
    ),
    "samples.csv: no name as in the table": (
        "rows",
        draw_samples,
        misspelled,
        ROWS_READ,
    ),
    "slides outside a run: whose are they": (
        "slides",
        draw_strangers,
        ask_strangers,
        {1: (100, 1000), 10: (10_000,)},
    ),
    "tiles/ looked through, 8,000 tiles each": (
        "slides",
        draw_tiles,
        list_tiles,
        {1: (100, 1000), 10: (10_000,)},
    ),
    "expression.csv of 60,483 genes": (
        "samples",
        draw_expression_csv,
        read_expression,
        {1: (30, 100), 10: (1000,), 50: (5000,)},
    ),
    "expression.csv.gz of 60,483 genes": (
        "samples",
        draw_expression_gz,
        read_expression,
        {1: (30, 100), 10: (1000,), 100: (10_000,)},
    ),
    "expression.npz of 60,483 genes": (
        "samples",
        draw_expression_npz,
        read_expression,
        {1: (30, 100), 10: (1000,), 100: (10_000,)},
    ),
    "points/*.csv": ("cells", draw_points, read_cells, {1: (10_000, 100_000, 1_000_000)}),
    "points/*.geojson": ("MB", draw_geojson, read_cells, {1: (5, 20), 10: (60, 200)}),
    "super-tiles of one slide": (
        "tiles",
        draw_features,
        make_supertiles,
        {1: (500, 2000), 10: (8000, 32_000)},
    ),
    **growth_slides.CASES,
}


def measured(what, folder):
    """(seconds, MiB that the call takes) of one case, in this process."""
    call = CASES[what][2](Path(folder))
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start = time.process_time()
    call()
    return time.process_time() - start, memory("VmHWM") - before


def memory(name):
    """MiB of this process by a name that the kernel gives them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def in_a_process(what, size):
    """What `measured` returns, of a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        CASES[what][1](Path(folder), size)
        words = [sys.executable, "-m", "lab.bench.growth", what, folder]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(runs):
    """Yield (what, size in words, size, seconds, MiB) of all cases, also of slides."""
    for what, (unit, _, _, sizes) in CASES.items():
        for least, some in sizes.items():
            for size in some if runs >= least else ():
                yield what, f"{size:,} {unit}", size, *in_a_process(what, size)


def bench_growth(runs=1.0):
    last = None
    for what, said, size, seconds, mib in rows(runs):
        grows = ""
        if last and last[0] == what:
            grows = f"{math.log(seconds / last[2]) / math.log(size / last[1]):.2f}"
        print(f"{what:42} {said:>16} {seconds:8.2f} s {grows:>6} {mib:8.0f} MiB", flush=True)
        last = what, size, seconds


if __name__ == "__main__":
    print(json.dumps(measured(*sys.argv[1:])))
