"""Memory of long loops, read from Linux's /proc."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab.tests.helpers import ROOT, painted, swap, tiny_encoder, write_pyramid

SLIDES = 200
ROOM = 12  # MB that a loop may still grow; the pixels of 200 slides are 230 MB


def megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def watch(argv):
    """Run a command of tiling.py -> its status, and this process's MB at each tick of each loop."""
    from lab import progress
    from lab.commands.tiling import main

    usual, loops = progress.progress, []

    def watched(*what, **more):
        tick, held = usual(*what, **more), []
        loops.append(held)

        def both(n=1):
            tick(n)
            held.append(megabytes())

        return both

    with pytest.MonkeyPatch.context() as patch:
        swap(patch, "lab.progress", "progress", watched)
        return main(argv), loops


@pytest.mark.skipif(not Path("/proc").exists(), reason="memory is read from /proc")
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_memory_stays_flat_over_two_hundred_slides(tmp_path):
    """Tiles, features, super-tiles: from slide 50 of each loop on hardly more than before."""
    tiny_encoder(tmp_path / "tiny.pt")
    (tmp_path / "c" / "slides").mkdir(parents=True)
    tissue = Image.fromarray(painted()[0]).resize((700, 560), Image.Resampling.NEAREST)
    write_pyramid(tmp_path / "one.tif", np.array(tissue), levels=1)
    for i in range(SLIDES):
        os.link(tmp_path / "one.tif", tmp_path / "c" / "slides" / f"s{i:03d}.tif")
    argv = f"supertiles {tmp_path}/c --encoder {tmp_path}/tiny.pt".split()
    argv += ["--device", "cpu", "--precision", "float32", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "lab.tests.test_memory", *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    status, loops = json.loads(done.stdout.splitlines()[-1])
    assert status == 0, done.stderr
    assert len(loops) >= 4
    for held in loops:
        assert len(held) >= SLIDES
        early, late = held[: len(held) // 4], held[len(held) // 4 :]
        assert max(late) < max(early) + ROOM, held[::20]


@pytest.mark.skipif(not Path("/proc").exists(), reason="memory is read from /proc")
def test_tissue_takes_the_memory_of_masks_and_not_of_floats():
    """A picture of 1,760 x 2,000 pixels: 25 bytes a pixel; whole arrays of floats took 60."""
    code = """
import numpy as np, tiling
from lab.tests.helpers import painted
from lab.bench.growth import memory
rgb = np.tile(painted()[0], (11, 10, 1))
before = memory("VmRSS")
mask, _ = tiling.find_tissue(rgb, np.ones(rgb.shape[:2], bool), least=99)
coords = tiling.tile_grid(mask, (2000 * 16, 1760 * 16), 224.0)
assert 0.2 < mask.mean() < 0.4 and len(coords) > 2000
print((memory("VmHWM") - before) * 2**20 / mask.size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 35


if __name__ == "__main__":
    print(json.dumps(watch(sys.argv[1:])))
