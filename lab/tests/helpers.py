"""What many tests share: slides that are drawn, files, and other names put in a name's place."""

import argparse
import csv
import importlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage

import lab.files as lab_files
import tiling
from lab.trust import name_encoders

ROOT = Path(__file__).parents[2]  # where the programs lie
REAL_DATA = os.environ.get("REAL_DATA", "")
SMALL = {"patients": 6, "edge_px": 600}  # of a simulated cohort


# ----- Anything -----------------------------------------------------------------------------------


def same(ours, theirs, tolerance=1e-10):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


def relative(a, b):
    """How far a is from b, in lengths of b."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def our_modules():
    """The modules of this program and its tests that are loaded now."""
    names = ("lab", "tiling", "stats", "he2rna", "histcode", "conftest")
    for name, module in list(sys.modules.items()):
        top = name.split(".")[0]
        if top in names or top.startswith("test_"):
            yield module


def swap(monkeypatch, module, name, value):
    """Replace a name in the module that defines it and in every module that imported it."""
    home = importlib.import_module(module)
    if not hasattr(home, name):
        homes = [m.__name__ for m in our_modules() if name in vars(m)]
        pytest.fail(f"swap: {module} has no {name}; it stands in {homes or 'no module'}")
    old = getattr(home, name)
    for there in our_modules():
        for key, bound in list(vars(there).items()):
            if bound is old and (key == name or callable(old)):
                monkeypatch.setattr(there, key, value)


def texts(figure):
    """All that stands in a figure, or in its axes."""
    return [text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text"))]


def copy_of(kept):
    """A fixture: a copy of the cohort of the fixture `kept`, so no test sees what another wrote."""

    @pytest.fixture
    def copy(request, tmp_path_factory):
        cohort = request.getfixturevalue(kept)
        folder = tmp_path_factory.mktemp(kept) / "copy"
        shutil.copytree(cohort.parent, folder, symlinks=True)
        return folder / cohort.name

    return copy


# ----- Patients -----------------------------------------------------------------------------------


def patients_of_projects(rng, n_patients, n_projects):
    """Patients with 1 to 4 samples, rows shuffled, projects of uneven size: two names a row."""
    project = np.minimum(rng.geometric(0.3, n_patients) - 1, n_projects - 1)
    who = rng.permutation(np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients)))
    return np.array([f"TCGA-{w:04d}" for w in who]), np.array([f"P{project[w]}" for w in who])


# ----- Files --------------------------------------------------------------------------------------


def real(*parts):
    """The path of a real file; without it the test is skipped."""
    path = Path(REAL_DATA, *parts)
    return path if REAL_DATA and path.exists() else pytest.skip("REAL_DATA is not set")


def read_csv(path):
    with open(path) as f:
        return list(csv.DictReader(f))


def folder_bytes(folder, ending=""):
    paths = sorted(Path(folder).rglob("*" + ending))
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def saved(path):
    """A checkpoint, no pickles."""
    return torch.load(path, weights_only=True)


def fill_disk(monkeypatch, at):
    """The disk is full at the `at`-th file written: the kernel says so, by /dev/full.

    -> the count of files begun, in a list.
    """
    count = [0]

    def full(path, mode="r", **more):
        count[0] += "b" in mode and mode != "rb"
        if mode != "xb" or count[0] != at:
            return open(path, mode, **more)
        open(path, mode).close()  # an empty file still has room
        return open("/dev/full", "wb")

    monkeypatch.setattr(lab_files, "open", full, raising=False)
    return count


# ----- Commands -----------------------------------------------------------------------------------


def options(*argv):
    """Parsed options of a tiling command, as main() leaves them."""
    from lab.commands.slide_options import add_options

    parser = argparse.ArgumentParser()
    add_options(parser)
    o = parser.parse_args(["--device", "cpu", "--weights", "random", *argv])
    name_encoders(o)
    o.tile_seed, o.seed = o.seed, o.seed or 0
    return o


def options_of(program, verb):
    """All words that are an option of a verb; program: its module in lab.commands."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"{program.__name__}.{verb}").options(parser)
    return {word for action in parser._actions for word in action.option_strings}


def status_of(capsys, *argv):
    """(exit status, lines on stderr) of a program's command as the shell sees them."""
    from lab.commands.start import run

    program, *words = argv
    before = signal.getsignal(signal.SIGTERM)
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        run(lambda: program.prepare([str(word) for word in words]))
    signal.signal(signal.SIGTERM, before)
    return e.value.code, capsys.readouterr().err.splitlines()


# ----- Slides -------------------------------------------------------------------------------------

H_E = {
    "eosin": (225, 150, 185),
    "pale eosin": (238, 205, 220),
    "nuclei": (110, 75, 150),
    "red cells": (190, 85, 95),
}


def painted(background=(243, 243, 243), light=None, noise=2.0, h=160, w=200):
    """A thumbnail with two pieces of tissue, pale and dark, and noise: rgb, truth (h, w)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:h, :w]
    ellipse = (y - 70) ** 2 / 45**2 + (x - 60) ** 2 / 40**2 < 1
    square = (abs(y - 110) < 30) & (abs(x - 150) < 30)
    truth = ellipse | square
    nuclei = np.where((x // 7 + y // 5) % 3 == 0, 1, 0)[..., None]
    dye = nuclei * np.subtract(H_E["nuclei"], H_E["eosin"]) + H_E["eosin"]
    dye = np.where(y[..., None] > 120, H_E["pale eosin"], dye) / 243.0
    rgb = np.where(truth[..., None], dye, 1) * np.array(background, float)
    if light:
        rgb = rgb * light(x / w, y / h)[..., None]
    rgb = rgb + rng.normal(0, noise, (h, w, 3))
    return rgb.clip(0, 255).astype(np.uint8), truth


def write_pyramid(path, rgb, mpp=0.5, levels=3):
    """A tiled pyramidal TIFF as scanners write them, by tifffile."""
    with tifffile.TiffWriter(path) as t:
        for i in range(levels):
            small = np.asarray(Image.fromarray(rgb).reduce(2**i)) if i else rgb
            t.write(
                small,
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                subfiletype=1 if i else 0,
                resolution=(1e4 / mpp / 2**i,) * 2 if mpp else (1, 1),
                resolutionunit="CENTIMETER" if mpp else "NONE",
                metadata=None,
            )


class Flat:
    """Stands for a slide: each level-0 pixel's red is x // 100, its green y // 100.

    Not scanned beyond 1000 x 500.
    """

    dimensions, level_downsamples, level_dimensions = (1000, 500), (1.0,), ((1000, 500),)

    def read_region(self, corner, level, size):
        y, x = np.mgrid[corner[1] : corner[1] + size[1], corner[0] : corner[0] + size[0]]
        return Image.fromarray(
            np.stack([x // 100 * 20, y // 100 * 20, 0 * x, 255 + 0 * x], 2).astype(np.uint8), "RGBA"
        )


def where(image, color):
    """First and one past the last row and column of the pixels of one colour."""
    y, x = np.nonzero((np.asarray(image)[:, :, :3] == color).all(2))
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


def unit(rows):
    return np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)


STAIN_PAIRS = {
    "reference": unit(tiling.REFERENCE),
    "reddish": unit([[0.650, 0.704, 0.286], [0.21, 0.91, 0.35]]),
    "bluish": unit([[0.75, 0.60, 0.28], [0.35, 0.83, 0.43]]),
}


def stained(stains, strength=(1.0, 1.0), n=40_000, noise=0.0, seed=0):
    """Pixels (n, 3) uint8 of known concentrations (n, 2) of two stains.

    Some are pure, some glass, most mixed.
    """
    rng = np.random.default_rng(seed)
    c = rng.gamma(3, 0.4, (n, 2)) + 0.3  # eosin dims red by MIN_OD at least
    c[: n // 20, 1] = c[n // 20 : n // 10, 0] = 0  # pure haematoxylin, pure eosin: 5 % each
    c[n // 10 : n // 5] = 0  # glass
    c = rng.permutation(c * strength)
    light = tiling.LIGHT * np.exp(-c @ stains) - 1 + rng.normal(0, noise, (n, 3))
    return light.round().clip(0, 255).astype(np.uint8), c


def overlap(a, b):
    """How far two masks agree: the pixels of both over those of either."""
    return (a & b).sum() / (a | b).sum()


def degrees_between(a, b):
    cosine = (unit(a) * unit(b)).sum(1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def pictures(n, px, seed=0):
    """Smooth random colours, (n, 3, px, px) float in 0..1."""
    x = np.random.default_rng(seed).random((n, 3, px, px))
    x = ndimage.gaussian_filter(x, (0, 0, 2, 2))
    return torch.from_numpy(((x - x.min()) / np.ptp(x)).astype(np.float32))


# ----- Tiles --------------------------------------------------------------------------------------

WHOLE_TILES = {
    "coords": np.arange(10, dtype=np.int32).reshape(5, 2),
    "size": np.array([99, 99]),
    "tile": 2.0,
    "mpp": 0.5,
    "found": 5,
    "settings": np.array("{}"),
}


def describe(cohort, features, name="a", encoder="e", tiles=WHOLE_TILES, **more):
    """tiles/ and features/ of a slide, as the steps leave them: the path of the .npy."""
    from lab.cohort.made import cut_of, held_by
    from lab.files import save_file, save_json

    path = cohort / "features" / encoder / f"{name}.npy"
    save_file(cohort / "tiles" / f"{name}.npz", lambda f: np.savez(f, **tiles))
    save_file(path, lambda f: np.save(f, features))
    side = {"encoder": encoder, "weights": "random, seed 0", "precision": "float32"}
    side |= {"colour": "none", "tiles": json.loads(str(tiles["settings"])), "cut": cut_of(tiles)}
    save_json(path.with_suffix(".json"), {**side, "holds": held_by(features), **more})
    return path


def tile_cloud(n, seed=0):
    """n tile positions of an irregular piece of tissue."""
    rng = np.random.default_rng(seed)
    side = int((n * 3) ** 0.5) + 4
    y, x = np.nonzero(ndimage.gaussian_filter(rng.random((side, side)), side / 12) > 0.5)
    keep = np.sort(rng.permutation(len(x))[:n])
    return np.stack([x[keep], y[keep]], 1) * 448


def pixels_of(cohort, name, px=224):
    """Every tile of a slide, read one by one; the slide, its coords and the edge of a tile."""
    from lab.cohort.slides import open_slide
    from lab.cohort.tiles import tiles_of

    slide, (arrays, _) = open_slide(cohort / "slides" / f"{name}.tif"), tiles_of(cohort, name)
    tile, coords = float(arrays["tile"]), arrays["coords"]
    pixels = np.concatenate([tiling.read_tiles(slide, [c], tile, px) for c in coords])
    return pixels, slide, coords, tile


def star(rng, k, center, radius):
    """An outline (k, 2) around a centre."""
    angle = np.sort(rng.random(k)) * 2 * np.pi
    length = radius * rng.uniform(0.3, 1, (k, 1))
    return np.stack([np.cos(angle), np.sin(angle)], 1) * length + center


def feature(kind, coordinates, name=None, **properties):
    """A Feature of GeoJSON as QuPath writes it; name: of its class."""
    if name:
        named = name if isinstance(name, dict) else {"name": name, "color": [1, 2, 3]}
        properties["classification"] = named
    return {
        "type": "Feature",
        "id": "6f7ab1",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


# ----- Encoders -----------------------------------------------------------------------------------


def random_resnet(stages=4):
    """With BatchNorm statistics as training leaves them, so that folding is put to the test."""
    torch.manual_seed(0)
    net = tiling.ResNet50(stages).eval()
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(m.weight, 0.3, 0.9)
            torch.nn.init.normal_(m.bias, 0, 0.1)
    return net


def tiny_encoder(path, seed=0):
    """A small network as a TorchScript file."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 12, 9, 4),
        torch.nn.ReLU(),
        torch.nn.Conv2d(12, 7, 5, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    ).eval()
    torch.jit.script(net).save(path)
    return net


def small_encoder(path, seed):
    """Another, for drawn slides."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.AvgPool2d(8),
        torch.nn.Conv2d(3, 6, 5, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    ).eval()
    torch.jit.script(net).save(path)
