"""From a slide's tiles to features: what reading costs beside the network alone.

Slides: those of REAL_DATA, where that is set, and one that is drawn (lab/bench/growth_slides.py).
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

import tiling
from lab.bench.growth_slides import draw_slide
from lab.bench.timing import say
from lab.cohort.encoding import Slide
from lab.cohort.slides import SCANS, open_slide
from lab.cohort.tiles import find_tiles
from lab.devices import pick_device, pick_precision
from lab.fast.encoder import encode, prepare
from lab.weights import load_weights

WORKERS = (1, 2, 4)
MPP = 0.25  # of slides that say none
RULE = {"mpp": MPP, "tile_um": 112.0, "min_tissue": 0.5, "max_tiles": 8000, "seed": 0}


def bench_encoding(repeats=3):
    """Medians; the network alone and each number of workers take turns."""
    device = pick_device()
    precision = pick_precision("auto", device)
    network = prepare(load_weights(4, "random", 0), device, precision)
    most = 4000 if device.type == "cuda" else 240
    say(f"features of at most {most:,} tiles of each slide, {precision} on {device}")
    with tempfile.TemporaryDirectory() as folder:
        draw_slide(Path(folder), 400)
        real = Path(os.environ.get("REAL_DATA", folder), "slides")
        paths = [path for path in sorted(real.glob("*")) if path.suffix in SCANS]
        for path in [*paths, Path(folder) / "slide.tif"]:
            measure(path, network, most, repeats)


def measure(path, network, most, repeats):
    tiles, _ = find_tiles(path, path.stem, RULE)
    tiles["coords"] = tiles["coords"][:most]
    made = {"colour": "none", "tiles": {"seed": 0}}

    def opened():
        """The slide anew: OpenSlide keeps what it has decoded, and a slide is read once."""
        return Slide(open_slide(path), tiles, made, tiling.TILE_PX)

    n = len(tiles["coords"])
    say(f"{path.name}: {n:,} tiles of {float(tiles['tile']):g} px, {decoded(opened())}")
    slide = opened()
    start = time.process_time()
    pixels = list(slide.read(1))
    reading = (time.process_time() - start) / n * 1e3
    say(f"  reading takes {reading:.1f} ms of a core a tile")
    seconds = {key: [] for key in ("alone", *WORKERS)}
    waited = {workers: [] for workers in WORKERS}
    busy = []
    for i in range(repeats + 1):
        start = time.process_time()
        took = run(network, pixels)
        busy.append((time.process_time() - start) / n * 1e3)
        if i > 0:  # the first is a warm-up
            seconds["alone"].append(took[0])
        for workers in WORKERS:
            took = run(network, opened().begin(workers))
            if i > 0:
                seconds[workers].append(took[0])
                waited[workers].append(took[1] / took[0])
    alone = np.array(seconds["alone"])
    rate, ms = n / np.median(alone), np.median(busy)
    say(f"  network alone {rate:6.1f} tiles/s, {ms:.1f} ms of a core a tile")
    if next(network.parameters()).device.type == "cpu":
        say(f"  reading takes cores from it: at most {ms / (ms + reading):.2f} of that can be had")
    for workers in WORKERS:
        took = np.array(seconds[workers])
        say(
            f"  {workers} workers     {n / np.median(took):6.1f} tiles/s, "
            f"{np.median(alone / took):.2f} of it; waited {np.median(waited[workers]):.1%}"
        )


def run(network, chunks):
    """(seconds, those of them that the network waited for tiles)."""
    waits = []

    def watched():
        source = iter(chunks)
        while True:
            start = time.perf_counter()
            chunk = next(source, None)
            waits.append(time.perf_counter() - start)
            if chunk is None:
                return
            yield chunk

    start = time.perf_counter()
    encode(network, watched())
    return time.perf_counter() - start, sum(waits)


def decoded(slide):
    """Which level is read, and how many of its pixels for one that the network sees."""
    source, coords, tile, px = slide.where
    level, d = tiling.best_level(source, tile / px)
    edge = np.array(
        [
            float(source.properties.get(f"openslide.level[{level}].tile-{side}", 1))
            for side in ("width", "height")
        ]
    )
    whole = 0
    for first, end in tiling.tile_runs(coords, tile):
        low = coords[first] / d // edge
        high = np.ceil((coords[end - 1] + tile) / d / edge)
        whole += np.prod((high - low) * edge)
    used = len(coords) * px**2
    return (
        f"level {level} (downsample {d:g}): {(tile / d) ** 2 * len(coords) / used:.2f} pixels read "
        f"for each one used, {whole / used:.2f} with the rest of the file's own tiles"
    )
