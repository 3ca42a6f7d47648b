"""Tests of every piece, in the order of the files, each against an authority that is named; and the benchmarks.

    python -m pytest test_all.py              all tests (REAL_DATA=folder adds those on real slides and tables)
    python test_all.py bench [NAME ...]       this implementation and the direct way side by side, in one run
"""

import argparse
import colorsys
import copy
import csv
import errno
import filecmp
import gzip
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import h5py
import hypothesis
import numpy as np
import openslide
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import tifffile
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from PIL import Image, ImageCms
from scipy import ndimage
from scipy.spatial import Delaunay

import he2rna
import histcode
import stats
import tiling

REAL_DATA = os.environ.get("REAL_DATA", "")


# =====================================================================================================================
# tiling.py
# Authorities: brute force, Pillow, SciPy, torch.nn.functional; scikit-learn and scikit-image where installed; real slides.
# =====================================================================================================================
H_E = {"eosin": (225, 150, 185), "pale eosin": (238, 205, 220), "nuclei": (110, 75, 150), "red cells": (190, 85, 95)}
INK = {"blue": (30, 60, 170), "green": (20, 120, 60), "red": (205, 20, 30), "black": (15, 15, 18), "cyan": (20, 150, 180)}


@pytest.fixture(scope="session", autouse=True)
def quick():
    """What --weights random takes 3 s for is done once for each network and seed of this process; plots are drawn without the search for
    margins, half of their time."""
    calibrate, known, save = tiling.calibrate, {}, Figure.savefig

    def once(net, seed):
        key = net.stages, seed, tiling.digest(net.conv1.weight.detach().numpy(), net.layer3[0].conv1.weight.detach().numpy())
        if key not in known:
            known[key] = copy.deepcopy(calibrate(net, seed))
        return copy.deepcopy(known[key])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "calibrate", once)
        patch.setattr(Figure, "savefig", lambda fig, *where, **how: fig.set_layout_engine("none") or save(fig, *where, **how))
        yield


def options(*argv):
    """Parsed options of a tiling command, as main() leaves them."""
    parser = argparse.ArgumentParser()
    tiling.add_options(parser)
    o = parser.parse_args(["--device", "cpu", "--weights", "random", *argv])
    o.tile_seed, o.seed = o.seed, o.seed or 0
    return o


def painted(background=(243, 243, 243), light=None, noise=2.0, h=160, w=200):
    """A thumbnail with two pieces of tissue (pale and dark areas, JPEG-like noise); returns rgb, truth (h, w)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:h, :w]
    truth = ((y - 70) ** 2 / 45 ** 2 + (x - 60) ** 2 / 40 ** 2 < 1) | ((abs(y - 110) < 30) & (abs(x - 150) < 30))
    dye = np.where((x // 7 + y // 5) % 3 == 0, 1, 0)[..., None] * np.subtract(H_E["nuclei"], H_E["eosin"]) + H_E["eosin"]
    dye = np.where(y[..., None] > 120, H_E["pale eosin"], dye) / 243.0
    rgb = np.where(truth[..., None], dye, 1) * np.array(background, float)
    rgb = rgb * (1 if light is None else light(x / w, y / h)[..., None]) + rng.normal(0, noise, (h, w, 3))
    return rgb.clip(0, 255).astype(np.uint8), truth


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def write_pyramid(path, rgb, mpp=0.5, levels=3):
    """A tiled pyramidal TIFF as scanners write them, by tifffile."""
    with tifffile.TiffWriter(path) as t:
        for i in range(levels):
            small = np.asarray(Image.fromarray(rgb).reduce(2 ** i)) if i else rgb
            t.write(small, tile=(256, 256), photometric="rgb", compression="zlib", subfiletype=1 if i else 0,
                    resolution=(1e4 / mpp / 2 ** i,) * 2 if mpp else (1, 1), resolutionunit="CENTIMETER" if mpp else "NONE", metadata=None)


def test_otsu_maximises_the_variance_between_classes():
    rng = np.random.default_rng(0)
    for values in (rng.normal(0, 1, 500), np.r_[rng.normal(0, 1, 900), rng.normal(6, 2, 100)],
                   rng.integers(0, 256, 999).astype(np.uint8), np.r_[rng.integers(3, 9, 50), rng.integers(200, 250, 9)].astype(np.uint8)):
        t = tiling.otsu_threshold(values)

        def between(cut):
            low, high = values[values <= cut].astype(float), values[values > cut].astype(float)
            return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0
        best = max(between(c) for c in np.linspace(values.min(), values.max(), 256))
        assert between(t) >= .99 * best


def test_otsu_equals_scikit_image():
    filters = pytest.importorskip("skimage.filters")
    rng = np.random.default_rng(1)
    for values in (rng.gamma(2, 3, 5000), rng.normal(0, 1, 300).astype(np.float32), rng.poisson(9, (40, 50)).astype(np.uint8)):
        assert tiling.otsu_threshold(values) == pytest.approx(filters.threshold_otsu(values), rel=1e-6, abs=1e-5)


def test_otsu_of_one_value():
    assert tiling.otsu_threshold(np.full(7, 3.5)) == 3.5 and tiling.otsu_threshold(np.full(7, 200, np.uint8)) == 200


@pytest.mark.parametrize("background", [(243, 243, 243), (255, 255, 255), (190, 190, 190), (240, 200, 222), (235, 232, 215)])
@pytest.mark.parametrize("light", [None, lambda x, y: 1 - .3 * x, lambda x, y: 1 - .35 * ((x - .5) ** 2 + (y - .5) ** 2)])
def test_tissue_is_found_on_any_background(background, light):
    rgb, truth = painted(background, light)
    assert overlap(tiling.tissue_mask(rgb), truth) > .9


def test_a_crop_from_within_the_tissue_is_tissue():
    """No glass to be seen: what is palest in it must not be taken for glass."""
    slide = tiling.open_slide(real("slides", "tcga-cr-7395-01a-01-ts1.svs"))
    for x, y, w, h in ((900, 1200, 1200, 1200), (1200, 1000, 2400, 1800)):
        crop = slide.read_region((x, y), 0, (w, h)).convert("RGB").resize((w // 32, h // 32), Image.Resampling.BOX)
        assert tiling.tissue_mask(np.asarray(crop)).mean() > .95


@pytest.mark.parametrize("noise", [0, 1, 4])
@pytest.mark.parametrize("color", [(255, 255, 255), (243, 243, 243), (128, 128, 128), (240, 200, 222), (2, 2, 2)])
def test_an_empty_slide_has_no_tissue(color, noise):
    rng = np.random.default_rng(0)
    light = 1 - .2 * np.linspace(0, 1, 120)[None, :, None]
    rgb = (np.array(color) * light + rng.normal(0, noise, (90, 120, 3))).clip(0, 255).astype(np.uint8)
    assert tiling.tissue_mask(rgb).sum() == 0


@pytest.mark.parametrize("ink", INK)
def test_pen_is_not_tissue(ink):
    rgb, truth = painted()
    rgb[10:18, 20:190] = rgb[5:150, 185:192] = INK[ink]                        # strokes beside the tissue
    mask = tiling.tissue_mask(rgb)
    assert overlap(mask, truth) > .88 and not mask[11:17, 120:190].any() and not mask[20:150, 186:191].any()


@pytest.mark.parametrize("dye", H_E)
def test_every_stain_is_tissue(dye):
    rgb = np.full((60, 80, 3), 243, np.uint8)
    rgb[20:50, 20:60] = H_E[dye]
    assert tiling.tissue_mask(rgb)[24:46, 24:56].all()


def test_black_border_and_what_was_not_scanned_are_not_tissue():
    rgb, truth = painted()
    rgb[:12], rgb[:, :9] = 3, 0
    valid = np.ones(truth.shape, bool)
    valid[:, 130:] = False                                                     # as MIRAX slides: half of them never scanned
    mask = tiling.tissue_mask(rgb, valid)
    assert not mask[:12].any() and not mask[:, :9].any() and not mask[:, 130:].any()
    assert overlap(mask[14:, 12:128], truth[14:, 12:128]) > .88


def test_grid_equals_counting_pixels():
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.random((50, 70)), 4) > .5
    fine = np.kron(mask, np.ones((40, 40)))                                    # brute force on a 40-fold finer picture
    for scale, tile in ((4, 4 * 7), (4, 29.3), (2.5, 20.0)):
        size, step = (round(70 * scale), round(50 * scale)), 40 / scale
        got = {tuple(c) for c in tiling.tile_grid(mask, size, tile, .5)}
        full = {(int(ix * tile), int(iy * tile)): fine[round(iy * tile * step):round((iy + 1) * tile * step),
                round(ix * tile * step):round((ix + 1) * tile * step)].mean()
                for iy in range(int(size[1] / tile + 1e-6)) for ix in range(int(size[0] / tile + 1e-6))}
        assert {c for c, s in full.items() if s > .51} <= got <= {c for c, s in full.items() if s > .49}
        assert 10 < len(got) < len(full) - 10 and max(x + tile for x, _ in got) <= size[0] + 1e-6
        assert tiling.tile_grid(mask, size, tile).dtype == np.int32


def test_grid_samples_by_seed_and_keeps_the_order():
    mask = np.ones((30, 30), bool)
    every = tiling.tile_grid(mask, (300, 300), 10)
    some = tiling.tile_grid(mask, (300, 300), 10, max_tiles=100, seed=1)
    assert len(every) == 900 and len(some) == 100
    place = {tuple(c): i for i, c in enumerate(every)}
    order = [place[tuple(c)] for c in some]
    assert order == sorted(set(order)) and np.ptp(order) > 700                 # a sample of all, not the first rows
    assert (tiling.tile_grid(mask, (300, 300), 10, max_tiles=100, seed=1) == some).all()
    assert (tiling.tile_grid(mask, (300, 300), 10, max_tiles=100, seed=2) != some).any()
    assert len(tiling.tile_grid(mask, (5, 300), 10)) == len(tiling.tile_grid(~mask, (300, 300), 10)) == 0


@pytest.fixture(scope="module")
def smooth_slide(tmp_path_factory):
    """A pyramid of a smooth picture, so that a right resample can be told from a shifted one."""
    y, x = np.mgrid[:1500, :1800]
    rgb = np.stack([x / 8, y / 7, 128 + 100 * np.sin(x / 60) * np.cos(y / 45)], 2).astype(np.uint8)
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    write_pyramid(path, rgb, .25)
    return path, rgb


@pytest.mark.parametrize("mpp, level", [(.5, 0), (.25, 1), (.2495, 1), (.12, 2), (.6, 0)])
def test_tiles_equal_a_direct_resample_of_the_full_picture(smooth_slide, mpp, level):
    path, rgb = smooth_slide
    slide, tile = tiling.open_slide(path), 112 / mpp
    assert tiling.best_level(slide, tile / 224)[0] == level
    nx = int(1800 / tile)
    coords = np.array([[int(i * tile), int(tile * .3)] for i in range(nx)])
    got = tiling.read_tiles(slide, coords, tile)
    for (x, y), g in zip(coords, got):
        want = np.asarray(Image.fromarray(rgb).resize((224, 224), Image.Resampling.LANCZOS, (x, y, x + tile, y + tile)))
        assert np.abs(g.astype(int) - want)[4:-4, 4:-4].mean() < 1.0           # the rim may not look beyond the tile
        assert (g == tiling.read_tiles(slide, [(x, y)], tile)[0]).mean() > .999     # alone or in a run


def test_runs_hold_neighbours_only():
    coords = np.array([(0, 0), (10, 0), (20, 0), (40, 0), (50, 0), (0, 10), (10, 10)])
    assert tiling.tile_runs(coords, 10.3) == [(0, 3), (3, 5), (5, 7)] and tiling.tile_runs(coords[:0], 10) == []
    assert max(b - a for a, b in tiling.tile_runs(np.array([(i * 10, 0) for i in range(99)]), 10)) == tiling.RUN_TILES


def test_thumbnail_in_strips_equals_at_once(smooth_slide, monkeypatch):
    slide = tiling.open_slide(smooth_slide[0])
    at_once, opaque = tiling.thumbnail(slide, .25)
    monkeypatch.setattr(tiling, "STRIP_PIXELS", 3000)
    strips, _ = tiling.thumbnail(slide, .25)
    assert at_once.shape == (47, 56, 3) and opaque.all() and np.abs(at_once.astype(int) - strips).max() <= 1
    want = np.asarray(Image.fromarray(smooth_slide[1]).resize((56, 47), Image.Resampling.BOX))
    assert np.abs(at_once.astype(int) - want).mean() < 1.5


class FakeSlide:
    def __init__(self, **properties):
        self.properties = {"openslide." + k.replace("_", "-"): v for k, v in properties.items()}


def test_mpp_comes_from_the_slide_then_the_table_then_the_option():
    assert tiling.slide_mpp(FakeSlide(mpp_x="0.25", mpp_y="0.252"), .5, "a") == (pytest.approx(.251), "slide")
    assert tiling.slide_mpp(FakeSlide(), .5, "a") == (.5, "given")
    assert tiling.slide_mpp(FakeSlide(mpp_x="1000", mpp_y="1000"), .5, "a") == (.5, "given")       # the mend works
    for slide, given in ((FakeSlide(), None), (FakeSlide(mpp_x="0", mpp_y="0"), None), (FakeSlide(mpp_x="nan", mpp_y="nan"), None),
                         (FakeSlide(mpp_x="0.25", mpp_y="0.5"), None), (FakeSlide(), 50.0), (FakeSlide(), float("nan")),
                         (FakeSlide(mpp_x="0.25"), None), (FakeSlide(mpp_x="1e9", mpp_y="1e9"), None)):
        with pytest.raises(tiling.InputError, match=r"slide a: .*samples.csv, --mpp .*file itself"):
            tiling.slide_mpp(slide, given, "a")


def test_resnet50_is_torchvisions():
    net = tiling.ResNet50()
    names = net.state_dict()
    assert len(names) == 320 and sum(p.numel() for p in net.parameters()) == 25_557_032
    assert sum(p.numel() for n, p in net.named_parameters() if not n.startswith("fc.")) == 23_508_032
    for name, shape in (("conv1.weight", (64, 3, 7, 7)), ("layer1.0.downsample.0.weight", (256, 64, 1, 1)), ("bn1.num_batches_tracked", ()),
                        ("layer2.0.downsample.1.running_var", (512,)), ("layer3.5.conv2.weight", (256, 256, 3, 3)),
                        ("layer4.2.bn3.bias", (2048,)), ("fc.weight", (1000, 2048))):
        assert tuple(names[name].shape) == shape
    assert tiling.ResNet50(3)(torch.zeros(1, 3, 64, 64)).shape == (1, 1024)


def random_resnet(stages=4):
    """With BatchNorm statistics as training leaves them, so that folding is put to the test."""
    torch.manual_seed(0)
    net = tiling.ResNet50(stages).eval()
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, .1), m.running_var.uniform_(.5, 2)
            torch.nn.init.uniform_(m.weight, .3, .9), torch.nn.init.normal_(m.bias, 0, .1)
    return net


def functional_resnet(s, x):
    """ResNet50 v1.5 straight from a state_dict with torch.nn.functional: the authority for the module's wiring."""
    def bn(x, n):
        return F.batch_norm(x, s[n + ".running_mean"], s[n + ".running_var"], s[n + ".weight"], s[n + ".bias"], False, 0, 1e-5)
    x = F.max_pool2d(F.relu(bn(F.conv2d(x, s["conv1.weight"], None, 2, 3), "bn1")), 3, 2, 1)
    for layer, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for b in range(blocks):
            n, stride = f"layer{layer}.{b}.", 2 if b == 0 and layer > 1 else 1
            y = F.relu(bn(F.conv2d(x, s[n + "conv1.weight"]), n + "bn1"))
            y = F.relu(bn(F.conv2d(y, s[n + "conv2.weight"], None, stride, 1), n + "bn2"))
            y = bn(F.conv2d(y, s[n + "conv3.weight"]), n + "bn3")
            if b == 0:
                x = bn(F.conv2d(x, s[n + "downsample.0.weight"], None, stride), n + "downsample.1")
            x = F.relu(x + y)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def relative(a, b):
    return float(np.linalg.norm(np.asarray(a, float) - np.asarray(b, float)) / np.linalg.norm(np.asarray(b, float)))


def test_resnet50_forward_folded_and_bfloat16():
    net, rng = random_resnet(), np.random.default_rng(0)
    tiles = ndimage.gaussian_filter(rng.integers(0, 256, (5, 224, 224, 3)).astype(float), (0, 3, 3, 0))
    tiles = ((tiles - tiles.min()) / np.ptp(tiles) * 255).astype(np.uint8)
    x = (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - torch.tensor([.485, .456, .406]).view(3, 1, 1)) / torch.tensor(
        [.229, .224, .225]).view(3, 1, 1)
    with torch.no_grad():
        plain = net(x).numpy()
        assert relative(plain, functional_resnet(net.state_dict(), x)) < 1e-5
        folded = tiling.fold_batchnorm(copy.deepcopy(net))
        assert relative(folded(x), plain) < 1e-4 and not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    exact = tiling.encode(tiling.prepare_encoder(copy.deepcopy(net), torch.device("cpu"), "float32"), [tiles])
    fast = tiling.prepare_encoder(copy.deepcopy(net), torch.device("cpu"), "bfloat16")
    short = tiling.encode(fast, [tiles])
    assert exact.dtype == np.float16 and exact.shape == (5, 2048)
    assert relative(exact, plain) < 1e-3 and relative(short, plain) < .01      # float16 of storage; bfloat16
    assert (tiling.encode(fast, [tiles[:1], tiles[1:4], tiles[4:]]) == short).all()      # however it is cut
    assert tiling.encode(fast, []).shape == (0, 2048)


def test_rebatch():
    rows = np.arange(23)
    for cut in ([23], [1] * 23, [9, 0, 9, 5], [8, 8, 7], []):
        pieces = list(tiling.rebatch(np.split(rows[:sum(cut)], np.cumsum(cut)[:-1]) if cut else [], 8))
        assert [len(p) for p in pieces] == ([8, 8, 7] if cut else []) and (not cut or (np.concatenate(pieces) == rows).all())


def test_weights_file_loads_and_wrong_ones_are_refused(tmp_path):
    net = random_resnet()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    old = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}  # 267 entries, as torchvision's oldest files
    assert len(old) == 267
    torch.save(old, tmp_path / "old.pth")
    torch.save({**old, "conv1.weight": 3}, tmp_path / "number.pth")
    for stages in (3, 4):
        for name in ("w.pth", "old.pth"):
            loaded = tiling.load_weights(stages, str(tmp_path / name), 0)
            assert torch.equal(loaded.layer3[5].bn3.running_var, net.layer3[5].bn3.running_var)
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save(net, tmp_path / "pickle.pth")                                   # a whole object: code would run on loading
    for bad in ("text.pth", "other.pth", "number.pth", "pickle.pth", "absent.pth"):
        with pytest.raises(tiling.InputError, match="--weights .*" + bad):
            tiling.weights_identity(str(tmp_path / bad), 0), tiling.load_weights(4, str(tmp_path / bad), 0)


def test_imagenet_weights_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr(tiling, "IMAGENET_URL", "http://127.0.0.1:9/resnet50-0676ba61.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(tiling.InputError, match="127.0.0.1:9.*put it at .*resnet50-0676ba61.pth.*--weights FILE"):
        tiling.load_weights(4, "imagenet", 0)
    (tmp_path / "checkpoints").mkdir(exist_ok=True)                            # put there by hand, but another file
    torch.save(random_resnet().state_dict(), tmp_path / "checkpoints" / "resnet50-0676ba61.pth")
    with pytest.raises(tiling.InputError, match="resnet50-0676ba61.pth is another file .sha256 .*, not 0676ba61...."):
        tiling.load_weights(4, "imagenet", 0)


def inertia(points, centers):
    return (((points[:, None] - centers[None]) ** 2).sum(2).min(1)).sum()


def tile_cloud(n, seed=0):
    """n tile positions of an irregular piece of tissue."""
    rng = np.random.default_rng(seed)
    side = int((n * 3) ** .5) + 4
    y, x = np.nonzero(ndimage.gaussian_filter(rng.random((side, side)), side / 12) > .5)
    keep = np.sort(rng.permutation(len(x))[:n])
    return np.stack([x[keep], y[keep]], 1) * 448


def test_kmeans_is_as_good_as_the_references():
    points = tile_cloud(3000).astype(float)
    ours = [tiling.kmeans(points, 60, s) for s in range(5)]
    theirs = [scipy.cluster.vq.kmeans2(points, 60, minit="++", seed=s, iter=100)[0] for s in range(5)]
    assert np.mean([inertia(points, c) for c, _ in ours]) < 1.01 * np.mean([inertia(points, c) for c in theirs])
    for centers, labels in ours:
        assert np.bincount(labels, minlength=60).min() > 0 and centers.shape == (60, 2)
        for j in range(60):
            assert np.allclose(centers[j], points[labels == j].mean(0))        # each centre is its points' mean
        d2 = ((points[:, None] - centers[None]) ** 2).sum(2)
        assert (d2[np.arange(3000), labels] > d2.min(1)).mean() < .02          # the last small move apart, the nearest is its own
    cluster = pytest.importorskip("sklearn.cluster")
    sk = [cluster.KMeans(60, n_init=1, random_state=s).fit(points).inertia_ for s in range(5)]
    assert np.mean([inertia(points, c) for c, _ in ours]) < 1.01 * np.mean(sk)


def test_kmeans_edges():
    a, b = tiling.kmeans(tile_cloud(500), 20, 3), tiling.kmeans(tile_cloud(500), 20, 3)
    assert (a[0] == b[0]).all() and (a[1] == b[1]).all() and (tiling.kmeans(tile_cloud(500), 20, 4)[0] != a[0]).any()
    for points, k, want in (([[1, 2]], 5, 1), ([[0, 0], [0, 0], [1, 1]], 5, 2), ([[0, 0]] * 9 + [[5, 5]] * 9 + [[9, 0]], 2, 2), ([[1, 2], [3, 4]], 1, 1),
                            ([[0.0]] * 400 + [[1.0]] + [[2.0]], 2, 2)):
        centers, labels = tiling.kmeans(np.array(points), k, 0)
        assert len(centers) == want and set(labels) == set(range(want))


def test_supertiles_are_means_of_their_tiles():
    rng = np.random.default_rng(0)
    features, coords = rng.normal(size=(300, 7)).astype(np.float16), tile_cloud(300)
    means, mask, cluster = tiling.supertiles(features, coords, 20, 0)
    assert means.shape == (20, 7) and mask.all()
    for j in range(20):
        assert np.allclose(means[j], features[cluster == j].astype(float).mean(0), atol=1e-5)
    means, mask, cluster = tiling.supertiles(features[:3], coords[:3], 20, 0)
    assert mask.sum() == 3 and (means[~mask] == 0).all() and np.allclose(means[cluster], features[:3])
    assert not tiling.supertiles(features[:0], coords[:0], 20, 0)[1].any()


def test_supertiles_without_coordinates_are_even_runs_of_rows():
    features = np.random.default_rng(0).normal(size=(250, 5)).astype(np.float32)
    for n, k in ((250, 100), (250, 7), (30, 100), (1, 3)):
        means, mask, cluster = tiling.supertiles(features[:n], None, k)
        assert np.array_equal(np.unique(cluster), np.arange(min(n, k))) and (np.diff(cluster) >= 0).all() and np.ptp(np.bincount(cluster)) <= 1
        want = [part.mean(0) for part in np.split(features[:n], np.flatnonzero(np.diff(cluster)) + 1)]
        assert mask.sum() == min(n, k) and np.allclose(means[mask], want, atol=1e-6) and not means[~mask].any()


def test_ordered_map_keeps_order_and_errors():
    def work(i):
        time.sleep(.002 * (i % 3))
        return 10 // (i - 5)
    for workers in (1, 4):
        got = list(tiling.ordered_map(work, range(12), workers))
        assert [j for j, _ in got] == list(range(12)) and isinstance(got[5][1], ZeroDivisionError)
        assert [r for j, r in got if j != 5] == [10 // (i - 5) for i in range(12) if i != 5]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_line_a_minute_in_a_log_file(monkeypatch, terminal):
    now, out = [0.0], io.StringIO()
    out.isatty = lambda: terminal
    monkeypatch.setattr(tiling.sys, "stderr", out)
    monkeypatch.setattr(tiling.time, "time", lambda: now[0])
    tick = tiling.progress("tiles", 1000, "slides")
    for _ in range(1000):                                                      # .6 s each: 10 minutes
        now[0] += .6
        tick()
    shown = out.getvalue().replace("\r", "\n").splitlines()
    assert (len(shown) > 100 if terminal else 9 <= len(shown) <= 11) and "1,000/1,000 slides, 1.7/s, 0:00:00 left" in shown[-1]
    assert re.fullmatch(r"tiles: [0-9,]+/1,000 slides, 1.7/s, 0:0[0-9]:[0-9]{2} left *", shown[0]) and (terminal or "\r" not in out.getvalue())
    for n, jobs in ((90, iter(range(90))), (1000, list(range(1000)))):         # of less than a minute, of ten
        out.truncate(0)
        for job in tiling.counted("cells", jobs, "slides", n if n == 90 else None):
            now[0] += .6
        shown = out.getvalue().strip("\0").replace("\r", "\n").splitlines()
        assert job == n - 1 and (len(shown) > n / 10 if terminal else len(shown) == (0 if n == 90 else 9)) and (n == 90 or "/1,000 slides, 1.7/s" in shown[0])


def test_a_killed_map_leaves_nothing_and_loses_nothing(tmp_path):
    """SIGKILL while a map is drawn, and between the old one's leaving and the new one's coming."""
    maps, read = tmp_path / "a map [1]", lambda: {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    def killed(early):
        """In a process that ends so; early: before the new map is whole."""
        kill, move = lambda: os.kill(os.getpid(), signal.SIGKILL), os.replace
        os.replace = lambda a, b: kill() if b == maps else move(a, b)
        with tiling.whole_folder(maps) as work:
            work.mkdir()
            (work / "map").write_text("new")
            kill() if early else None
    for early in (True, False):
        tiling.save_text(maps / "map", ["old"])
        if not (pid := os.fork()):
            killed(early)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL and (maps / "map").is_file() == early
        here = tiling.digest(tiling.platform.node())[:6]                       # of a process at work, another slide's, another host's
        beside = [tmp_path / name / "half" for name in (f".{maps.name}.{here}.{os.getppid()}.tmp", f".a map 1.{here}.99999999.tmp",
                                                        f".{maps.name}.0ther0.99999999.tmp")]
        [tiling.save_text(p, ["half"]) for p in beside]
        with pytest.raises(KeyError), tiling.whole_folder(maps) as work:
            tiling.save_text(work / "map", ["half"])
            raise KeyError
        assert read() == {"a map [1]/map": "old", **{str(p.relative_to(tmp_path)): "half" for p in beside}}
        with tiling.whole_folder(maps) as work:
            tiling.save_text(work / "other", ["new"])
        assert read().pop("a map [1]/other") == "new" and len(read()) == 4
        shutil.rmtree(maps)


def folder_bytes(folder, ending=""):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).rglob("*" + ending)) if p.is_file()}


@pytest.fixture()
def two_slides(tmp_path):
    (tmp_path / "slides").mkdir()
    for i, name in enumerate("ab"):
        rgb = np.array(Image.fromarray(painted((243 - 5 * i,) * 3)[0]).resize((1600, 1280), Image.Resampling.NEAREST))
        write_pyramid(tmp_path / "slides" / f"{name}.tif", rgb)
    return tmp_path


def test_steps_make_what_is_missing_and_never_mix_settings(two_slides, capsys):
    run = lambda *a: tiling.main(["supertiles", str(two_slides), "--device", "cpu", "--encoder", "resnet50-stage3", *a])
    assert run("--weights", "random", "--workers", "1") == 0
    first = {e: folder_bytes(two_slides, e) for e in (".npz", ".npy")}
    tiles = np.load(two_slides / "tiles" / "a.npz")
    features = np.load(two_slides / "features" / "resnet50-stage3" / "a.npy")
    assert features.dtype == np.float16 and features.shape == (len(tiles["coords"]), 1024) and tiles["coords"].dtype == np.int32
    assert Image.open(two_slides / "tiles" / "a.png").size[0] >= 100
    made = {p: p.stat().st_mtime_ns for p in two_slides.rglob("*.np[yz]")}
    assert run() == 0                                                          # no options: as it was made, nothing to do
    assert {p: p.stat().st_mtime_ns for p in made} == made
    (two_slides / "features" / "resnet50-stage3" / "b.npy").unlink()
    assert run("--workers", "4") == 0                                          # what is missing; workers change nothing
    assert {e: folder_bytes(two_slides, e) for e in (".npz", ".npy")} == first
    assert run("--tile-um", "150") == 0
    assert "2 slides are made anew: tile_um 112.0 -> 150.0" in capsys.readouterr().out
    changed = np.load(two_slides / "features" / "resnet50-stage3" / "a.npy")
    assert len(changed) == len(np.load(two_slides / "tiles" / "a.npz")["coords"]) != len(features)
    assert len(np.load(two_slides / "supertiles" / "resnet50-stage3" / "a.npz")["cluster"]) == len(changed)
    assert run("--tile-um", "112", "--seed", "0") == 0 and {e: folder_bytes(two_slides, e) for e in (".npz", ".npy")} == first
    assert not list(two_slides.rglob("*.tmp"))


def test_mpp_is_remembered_and_leaves_slides_with_their_own_alone(two_slides, capsys):
    rgb = np.array(Image.fromarray(painted()[0]).resize((1600, 1280), Image.Resampling.NEAREST))
    Image.fromarray(rgb).save(two_slides / "slides" / "plain.png")
    run = lambda verb, *a: tiling.main([verb, str(two_slides), "--device", "cpu", "--encoder", "resnet50-stage3", *a])
    assert run("features", "--weights", "random") == 1                         # plain.png has no scale
    own = {p: p.stat().st_mtime_ns for p in two_slides.rglob("*.np[yz]")}
    assert run("tiles", "--mpp", "0.5") == 0 and run("features") == 0          # given once, remembered
    assert all(p.stat().st_mtime_ns == t for p, t in own.items()) and len(own) == 4
    assert run("tiles", "--mpp", "0.4") == 0
    assert "1 slides are made anew: mpp 0.5 -> 0.4" in capsys.readouterr().out and all(p.stat().st_mtime_ns == t for p, t in own.items())
    for p in (two_slides / "slides").iterdir():                                # features travel without their slides
        p.unlink()
    (two_slides / "samples.csv").write_text("slide,patient,project\na,p,X\nb,q,X\nc,r,X\n")
    assert run("supertiles") == 1 and "failed: c: no file c.*" in capsys.readouterr().err


def test_a_slide_replaced_by_another_is_made_anew(two_slides):
    run = lambda: tiling.main(["tiles", str(two_slides)])
    assert run() == 0
    before = np.load(two_slides / "tiles" / "a.npz")["coords"]
    shutil.copyfile(two_slides / "slides" / "b.tif", two_slides / "slides" / "a.tif")
    rgb = np.full((1280, 1600, 3), 243, np.uint8)
    rgb[200:700, 300:1400] = H_E["eosin"]
    write_pyramid(two_slides / "slides" / "a.tif", rgb)
    assert run() == 0 and len(np.load(two_slides / "tiles" / "a.npz")["coords"]) != len(before)


def test_a_slide_that_fails_does_not_stop_the_others(two_slides, capsys):
    (two_slides / "slides" / "text.svs").write_text("not a slide")
    whole = (two_slides / "slides" / "a.tif").read_bytes()
    (two_slides / "slides" / "cut.tif").write_bytes(whole[:len(whole) // 2])
    (two_slides / "slides" / "nothing.tif").write_bytes(b"")
    write_pyramid(two_slides / "slides" / "white.tif", np.full((900, 900, 3), 244, np.uint8))
    write_pyramid(two_slides / "slides" / "nompp.tif", np.full((900, 900, 3), 244, np.uint8), None)
    Image.fromarray(np.full((1, 1, 3), 200, np.uint8)).save(two_slides / "slides" / "pixel.png")
    status = tiling.main(["features", str(two_slides), "--weights", "random", "--device", "cpu", "--encoder", "resnet50-stage3"])
    said = capsys.readouterr()
    assert status == 1 and "2 of 8 slides ready" in said.out
    for name, why in (("text", "not a readable slide"), ("cut", "can't be read|not a readable"), ("nothing", "not a readable slide"), ("white", "tissue"),
                      ("nompp", "no µm per pixel"), ("pixel", "no µm per pixel")):
        assert re.search(f"failed: {name}: .*{why}", said.err)
    listed = read_csv(two_slides / "features" / "failed.csv")
    shown = [line for line in said.err.splitlines() if line.startswith("failed:")]
    assert [f"failed: {r['slide']}: {r['reason']}" for r in listed] == shown and len(listed) == 6
    for r in listed:
        next((two_slides / "slides").glob(f"{r['slide']}.*")).unlink()
    assert tiling.main(["features", str(two_slides), "--encoder", "resnet50-stage3", "--device", "cpu"]) == 0
    assert not (two_slides / "features" / "failed.csv").exists()
    assert sorted(p.stem for p in (two_slides / "features").rglob("*.npy")) == ["a", "b"]


LOCKED = """
import sys, time
import tiling
tiling.hold(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_run_in_a_folder_says_who_is_at_work_and_a_killed_ones_lock_is_taken_over(two_slides, capsys):
    """A real process holds the folder; SIGKILL leaves its lock behind, SIGTERM and a mistake do not."""
    folder, run = two_slides / "tiles", lambda: tiling.main(["tiles", str(two_slides)])
    process = subprocess.Popen([sys.executable, "-c", LOCKED, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path(tiling.__file__).parent)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(tiling.InputError, match=rf"tiles: process {process.pid} on .* since 20.*: wait for it, or stop it") as e:
        run()
    assert "\n" not in str(e.value) and not list(folder.glob("*.npz")) and not list(folder.glob(".lock*"))
    process.kill()
    time.sleep(.1)                                                             # a zombie: nobody has asked for its status yet
    assert run() == 0 and f"the lock of process {process.pid}, killed after" in capsys.readouterr().out
    assert process.wait() == -9 and not (folder / "lock").exists() and sorted(p.stem for p in folder.glob("*.npz")) == ["a", "b"]


def test_a_lock_is_believed_stale_only_where_that_is_sure(tmp_path, capsys):
    me, lock = tiling.this_process(), tmp_path / "lock"
    at = dict(me, since="2026-01-01 00:00:00")
    for changes, taken in ((dict(host="another"), False), (dict(pids="pid:[1]"), False), (dict(pid=os.getppid(), started=tiling.started(os.getppid())), False),
                           (dict(pid=os.getppid(), started="1"), True), (dict(pid=2 ** 22 + 1), True), ({}, True)):   # number used again; none; our own, copied
        lock.write_text(json.dumps({**at, **changes}))
        if taken:
            tiling.hold(tmp_path)
            assert json.loads(lock.read_text())["pid"] == os.getpid()
            tiling.hold(tmp_path)                                              # once more is no conflict
            tiling.release(tmp_path)
            assert not list(tmp_path.iterdir()) and not tiling.HELD
        else:
            with pytest.raises(tiling.InputError, match="delete .*lock if it is dead" if "pid" not in changes else "stop it"):
                tiling.hold(tmp_path)
            assert json.loads(lock.read_text()) == {**at, **changes} and not tiling.HELD
    no_pid = {k: v for k, v in at.items() if k != "pid"}                       # edited by hand; "": just being made, or the disk was full
    for text in ("", "[1, 2]", "no json", "\xff\0", "null", '{"host": [], "pids": {}, "pid": "x"}', json.dumps(no_pid),
                 *(json.dumps({**at, "pid": pid}) for pid in ("12", [1], -1, 0, 1.5, None, 2 ** 80))):
        lock.write_text(text, encoding="latin-1")
        with pytest.raises(tiling.InputError, match="delete .*lock if it is dead, which can't be told"):
            tiling.hold(tmp_path)
        assert lock.read_text(encoding="latin-1") == text and not tiling.HELD
    lock.write_text("")
    os.utime(lock, (time.time() - 61,) * 2)                                    # killed between making it and writing it
    capsys.readouterr()
    tiling.hold(tmp_path)
    assert json.loads(lock.read_text())["pid"] == os.getpid() and "the lock of process ?, killed after an unknown time" in capsys.readouterr().out
    tiling.release(tmp_path)


def test_of_two_that_take_over_a_stale_lock_one_gets_it(tmp_path):
    (tmp_path / "lock").write_text(json.dumps(dict(tiling.this_process(), pid=2 ** 22 + 1, since="x")))
    ask = "try:\n tiling.hold(sys.argv[1]); print('held', flush=True)\nexcept tiling.InputError:\n print('refused', flush=True)\nsys.stdin.readline()"
    several = [subprocess.Popen([sys.executable, "-c", "import sys, tiling\nsys.stdin.readline()\n" + ask, str(tmp_path)], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True, cwd=Path(tiling.__file__).parent) for _ in range(2)]
    for process in several:
        process.stdin.write("go\n")
        process.stdin.flush()
    words = []
    for process in several:
        line = process.stdout.readline()
        words.append(process.stdout.readline() if "taken over" in line else line)
    for process in several:
        process.communicate("end\n")
    assert sorted(words) == ["held\n", "refused\n"]


def test_processes_share_the_slides_out(two_slides, tmp_path, monkeypatch, capsys):
    """RANK and WORLD_SIZE, as torchrun and cluster arrays give them: together what one process makes, each slide once."""
    tiny_encoder(tmp_path / "tiny.pt")
    for name in "cd":
        shutil.copyfile(two_slides / "slides" / "a.tif", two_slides / "slides" / f"{name}.tif")
    (two_slides / "slides" / "e.tif").write_bytes(b"broken")
    shutil.copytree(two_slides / "slides", tmp_path / "one" / "slides")
    run = lambda cohort: tiling.main(["supertiles", str(cohort), "--device", "cpu", "--encoder", str(tmp_path / "tiny.pt")])
    assert run(tmp_path / "one") == 1
    original, read = tiling.find_tiles, []
    monkeypatch.setattr(tiling, "find_tiles", lambda path, name, settings: read.append(name) or original(path, name, settings))
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(tiling.InputError, match="RANK= WORLD_SIZE=3 in the environment: wanted are both"):
        run(two_slides)
    tiling.save_json(two_slides / "tiles" / "lock-2-of-3", dict(tiling.this_process(), host="another", since="now"))   # at work, and no conflict
    status = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        status.append(run(two_slides))
    monkeypatch.setenv("WORLD_SIZE", "2")                                      # nor does another division begin meanwhile
    with pytest.raises(tiling.InputError, match="tiles: process .* on another"):
        (two_slides / "tiles" / "b.npz").unlink()
        run(two_slides)
    (two_slides / "tiles" / "lock-2-of-3").unlink()
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in "12":
        monkeypatch.setenv("RANK", rank)
        status.append(run(two_slides))
    assert status == [0, 1, 1, 0] and sorted(read) == ["a", "b", "b", "c", "d", "e", "e"] and not list(two_slides.rglob("lock*"))
    assert [r["slide"] for r in read_csv(two_slides / "supertiles" / "failed-1-of-3.csv")] == ["e"]
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    assert run(two_slides) == 1 and not list(two_slides.rglob("failed-*")) and len(read) == 8      # one process again: nothing is made anew
    mine, one = ({p.relative_to(cohort): p.read_bytes() for p in cohort.rglob("*.*") if p.parent.name != "slides" and p.suffix not in (".csv", ".pt") and
                  "one" not in p.relative_to(cohort).parts and p.is_file()} for cohort in (two_slides, tmp_path / "one"))
    assert mine == one and len(one) == 4 * 5 + 3


def png_that_claims(path, width, height):
    """A small PNG whose header claims another size, its checksum made right."""
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(path)
    data = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


def test_slides_that_cannot_be_meant_have_a_reason_each(two_slides, capsys):
    """Sizes and scales that are wrong, claimed or too small; the good slide among them is done, in seconds and little memory."""
    slides, why = two_slides / "slides", {}
    (slides / "b.tif").unlink()
    for name, (h, w) in dict(pixel=(1, 1), line=(1, 100_000), column=(100_000, 1)).items():
        Image.fromarray(np.full((h, w, 3), 150, np.uint8)).save(slides / f"{name}.png")
        why[name] = "smaller than a tile of 112 µm"
    png_that_claims(slides / "bomb.png", 60_000, 60_000)
    png_that_claims(slides / "hollow.png", 3_000, 3_000)
    why.update(bomb="not a readable slide .*exceeds limit", hollow="truncated|broken|can't be read",
               wide="more than a glass slide has", high="more than a glass slide has")
    for name, tag in (("wide", "ImageWidth"), ("high", "ImageLength")):
        write_pyramid(slides / f"{name}.tif", np.full((600, 600, 3), 150, np.uint8), levels=1)
        with tifffile.TiffFile(slides / f"{name}.tif", mode="r+") as t:
            t.pages[0].tags[tag].overwrite(2 ** 29)
            for tag in ("TileOffsets", "TileByteCounts"):                      # 2.8 million tiles, as many as the claimed size has
                t.pages[0].tags[tag].overwrite([t.pages[0].tags[tag].value[0]] * (3 * 2 ** 21))
    rows = []
    for i, mpp in enumerate(("0", "-1", "nan", "1e9", "1e400")):
        Image.fromarray(np.full((900, 900, 3), 150, np.uint8)).save(slides / f"table{i}.png")
        with tifffile.TiffWriter(slides / f"own{i}.svs") as t:
            t.write(np.full((512, 512, 3), 150, np.uint8), tile=(256, 256), photometric="rgb", compression="zlib", metadata=None,
                    description=f"Aperio Image Library v1\r\n512x512 [0,0 512x512] (256x256)|MPP = {mpp}|AppMag = 20")
        rows.append(f"table{i},p,X,{mpp}")
        why[f"table{i}"], why[f"own{i}"] = "is outside 0.05-20", "its file says|no µm per pixel"
    rows += [f"{name},p,X,{'' if name[:3] == 'own' else .5}" for name in why if name[:5] != "table"]
    (two_slides / "samples.csv").write_text("\n".join(["slide,patient,project,mpp", "a,p,X,", *rows]))
    start, before = time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert tiling.main(["tiles", str(two_slides), "--workers", "2"]) == 1
    assert time.time() - start < 30 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 ** 19     # KiB
    said = capsys.readouterr().err
    for name, words in why.items():
        assert re.search(f"failed: {name}: .*({words})", said), name
    assert sorted(p.stem for p in (two_slides / "tiles").glob("*.npz") if p.stem not in ("pixel", "line", "column")) == ["a"]


def test_real_slides_cut_and_flipped(tmp_path, capsys):
    """A few of the 20 places to cut and 200 to flip that were tried by hand: read as it is, or a reason; a second or so for each."""
    rng = np.random.default_rng(0)
    (tmp_path / "slides").mkdir()
    for path in sorted(real("slides").iterdir()):
        data = path.read_bytes()
        for i in range(2):
            (tmp_path / "slides" / f"cut{i}-{path.name}").write_bytes(data[:int(len(data) * rng.random())])
        for i in range(3):
            flipped, at = bytearray(data), int(rng.integers(2048 if i else len(data))) * (-1) ** i              # anywhere, then where the directories lie
            flipped[at] ^= int(rng.integers(1, 256))
            (tmp_path / "slides" / f"flip{i}-{path.name}").write_bytes(flipped)
    tiny_encoder(tmp_path / "tiny.pt")
    start = time.time()
    status = tiling.main(["features", str(tmp_path), "--device", "cpu", "--mpp", ".25", "--workers", "2", "--encoder", str(tmp_path / "tiny.pt")])
    said, names = capsys.readouterr().err, [p.stem for p in (tmp_path / "slides").iterdir()]
    failed = re.findall("^failed: ([^:]*): .{10}", said, re.M)
    done = {p.stem for p in (tmp_path / "features").rglob("*.npy")}
    assert status == (1 if failed else 0) and sorted([*failed, *done]) == sorted(names) and time.time() - start < 10 * len(names)


def fill_disk(monkeypatch, at):
    """The disk is full at the `at`-th file written: the kernel says so, by /dev/full. Returns the count of files begun."""
    count = [0]

    def full(path, mode="r", **more):
        count[0] += "b" in mode and mode != "rb"
        if mode != "wb" or count[0] != at:
            return open(path, mode, **more)
        open(path, mode).close()                                               # an empty file still has room
        return open("/dev/full", mode)
    monkeypatch.setattr(tiling, "open", full, raising=False)
    return count


def test_a_full_disk_is_named_through_what_torch_makes_of_it(tmp_path, monkeypatch):
    fill_disk(monkeypatch, 1)
    with pytest.raises(OSError, match="No space left on device") as e:
        tiling.save_file(tmp_path / "a.pt", lambda f: torch.save(torch.zeros(10 ** 6), f))
    assert e.value.filename == str(tmp_path / "a.pt") and e.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="anything else"):
        tiling.save_file(tmp_path / "a.pt", lambda f: exec("raise RuntimeError('anything else')"))


def status_of(capsys, *argv):
    """(exit status, lines on stderr) of a program's command as the shell sees them."""
    before = signal.getsignal(signal.SIGTERM)
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        tiling.run(lambda: argv[0].main([str(a) for a in argv[1:]]))
    signal.signal(signal.SIGTERM, before)
    return e.value.code, capsys.readouterr().err.splitlines()


def test_a_full_disk_stops_a_step_with_one_line_and_damages_nothing(two_slides, tmp_path, monkeypatch, capsys):
    tiny_encoder(tmp_path / "tiny.pt")
    shutil.copytree(two_slides / "slides", tmp_path / "one" / "slides")
    argv = ("--device", "cpu", "--encoder", tmp_path / "tiny.pt")
    count = fill_disk(monkeypatch, 0)
    assert status_of(capsys, tiling, "supertiles", tmp_path / "one", *argv)[0] == 0 and count[0] == 13
    for at in range(1, 14):
        count = fill_disk(monkeypatch, at)
        status, said = status_of(capsys, tiling, "supertiles", two_slides, *argv)
        assert not list(two_slides.rglob("*.tmp")) and not list(two_slides.rglob("lock*"))
        assert (status > 0) == (count[0] >= at)                                # what was made before is not written again
        if status:
            assert [line for line in said if "No space left on device" in line and str(two_slides) in line] and "Traceback" not in "".join(said)
    monkeypatch.undo()
    assert tiling.main(["supertiles", str(two_slides), *map(str, argv)]) == 0
    for part in ("tiles", "features", "supertiles"):
        assert folder_bytes(two_slides / part) == folder_bytes(tmp_path / "one" / part)


def test_a_folder_for_a_file_a_file_for_a_folder_and_what_may_not_be_written(two_slides, capsys, monkeypatch):
    run = lambda *argv: status_of(capsys, tiling, "tiles", two_slides, *argv)
    (two_slides / "samples.csv").mkdir()
    assert run() == (2, [f"error: {two_slides}/samples.csv is a folder: wanted is a table with the columns slide,patient,project"])
    (two_slides / "samples.csv").rmdir()
    (two_slides / "tiles").write_text("in the way")
    status, said = run()
    assert status == 2 and len(said) == 1 and f"error: {two_slides}/tiles: " in said[0]
    (two_slides / "tiles").unlink()
    (two_slides / "tiles" / "a.npz").mkdir(parents=True)
    (two_slides / "slides" / "d.tif").mkdir()                                  # no slide: left alone
    status, said = run()
    assert status == 1 and f"failed: a: {two_slides}/tiles/a.npz is a folder: move it away" in said and (two_slides / "tiles" / "b.npz").is_file()
    (two_slides / "tiles" / "a.npz").rmdir()

    def refuse(path, mode="r", **more):
        if "r" not in mode and "tiles" in str(path) or "samples" in str(path):
            raise OSError(errno.EROFS if "r" not in mode else errno.EACCES, os.strerror(errno.EROFS if "r" not in mode else errno.EACCES), str(path))
        return open(path, mode, **more)
    monkeypatch.setattr(tiling, "open", refuse, raising=False)                 # by hand: tests may run as root, whom no permission stops
    status, said = run()
    assert status == 2 and said == [f"error: {two_slides}/tiles/lock: Read-only file system"]
    (two_slides / "samples.csv").write_text("slide,patient,project\na,p,X\n")
    assert run() == (2, [f"error: {two_slides}/samples.csv: Permission denied"])


HUNDREDS = """
import json, resource, sys
import tiling
usual, loops = tiling.progress, []
def progress(*what, **more):                         # MB of this process at every tick of every loop
    tick, held = usual(*what, **more), []
    loops.append(held)
    return lambda n=1: tick(n) or held.append(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6)
tiling.progress = progress
print(json.dumps([tiling.main(sys.argv[1:]), loops]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_memory_stays_flat_over_two_hundred_slides(tmp_path):
    """Tiles, features and super-tiles: from slide 50 of each loop on at most 12 MB more than up to there; the pixels of 200 slides are 230 MB."""
    tiny_encoder(tmp_path / "tiny.pt")
    (tmp_path / "c" / "slides").mkdir(parents=True)
    write_pyramid(tmp_path / "one.tif", np.array(Image.fromarray(painted()[0]).resize((700, 560), Image.Resampling.NEAREST)), levels=1)
    for i in range(200):
        os.link(tmp_path / "one.tif", tmp_path / "c" / "slides" / f"s{i:03d}.tif")
    done = subprocess.run([sys.executable, "-c", HUNDREDS, "supertiles", str(tmp_path / "c"), "--device", "cpu", "--encoder", str(tmp_path / "tiny.pt"),
                           "--precision", "float32", "--workers", "2"], capture_output=True, text=True, cwd=Path(__file__).parent)
    status, loops = json.loads(done.stdout.splitlines()[-1])
    assert status == 0 and len(loops) >= 4 and all(len(held) >= 200 for held in loops), done.stderr
    assert all(max(held[len(held) // 4:]) < max(held[:len(held) // 4]) + 12 for held in loops), [held[::20] for held in loops]


def test_what_vanishes_meanwhile_is_that_slides_failure(two_slides, monkeypatch, capsys):
    tiny_encoder(two_slides / "tiny.pt")
    argv = ["features", str(two_slides), "--device", "cpu", "--encoder", str(two_slides / "tiny.pt")]
    find, make, fingerprint = tiling.find_tiles, tiling.make_tiles, tiling.fingerprint
    monkeypatch.setattr(tiling, "fingerprint", lambda path: path.unlink() if path.stem == "a" else None)                  # before it is looked at
    assert tiling.main(argv) == 1 and "failed: a: " in capsys.readouterr().err
    monkeypatch.setattr(tiling, "fingerprint", fingerprint)
    shutil.copyfile(two_slides / "slides" / "b.tif", two_slides / "slides" / "a.tif")
    monkeypatch.setattr(tiling, "find_tiles", lambda path, *more: (path.stem == "a" and path.unlink()) or find(path, *more))   # before its tiles
    assert tiling.main(argv) == 1 and "failed: a: " in capsys.readouterr().err
    monkeypatch.setattr(tiling, "find_tiles", find)
    shutil.copyfile(two_slides / "slides" / "b.tif", two_slides / "slides" / "a.tif")
    monkeypatch.setattr(tiling, "make_tiles", lambda *more: make(*more) or (two_slides / "tiles" / "a.npz").unlink() or {})    # its tiles, before its features
    assert tiling.main(argv) == 1 and "tiles/a.npz was there and is gone" in capsys.readouterr().err
    monkeypatch.setattr(tiling, "make_tiles", lambda *more: make(*more) or (two_slides / "slides" / "a.tif").unlink() or {})   # the slide, before its features
    assert tiling.main(argv) == 1 and re.search("failed: a: .*a.tif", capsys.readouterr().err)
    assert [p.stem for p in (two_slides / "features").rglob("*.npy")] == ["b"]


def test_what_is_left_of_a_slide_is_no_picture_of_it(tmp_path):
    """Pillow opens the first page of a real .svs or tiled .tif that is cut off behind it, and the label that a .mrxs is: all refused."""
    whole = real("slides", "CMU-1-Small-Region.svs").read_bytes()
    for name in ("a.svs", "a.tif"):
        (tmp_path / name).write_bytes(whole[:int(.75 * len(whole))])
    Image.fromarray(np.full((900, 900, 3), 150, np.uint8)).save(tmp_path / "a.mrxs", "JPEG")
    for path in sorted(tmp_path.iterdir()):
        assert Image.open(path).size[0] >= 900
        with pytest.raises(tiling.InputError, match=f"{path.name}: not a readable slide .OpenSlide doesn't know it"):
            tiling.open_slide(path)


def test_mpp_column_and_png(two_slides):
    rgb = np.array(Image.fromarray(painted()[0]).resize((1600, 1280), Image.Resampling.NEAREST))
    Image.fromarray(rgb).save(two_slides / "slides" / "c.png")
    (two_slides / "samples.csv").write_text("slide,patient,project,mpp\na,p,X,0.1\nc,q,X,0.6878\n")
    assert tiling.main(["tiles", str(two_slides)]) == 0
    mpp = {n: float(np.load(two_slides / "tiles" / f"{n}.npz")["mpp"]) for n in "ac"}
    assert mpp == {"a": pytest.approx(.5, rel=1e-3), "c": .6878} and not (two_slides / "tiles" / "b.npz").exists()


@pytest.mark.parametrize("argv, words", [
    (["tiles", "{}/nowhere"], "nowhere"), (["tiles", "{}", "--tile-um", "-3"], "--tile-um -3"), (["tiles", "{}", "--mpp", "90"], "--mpp 90"),
    (["features", "{}", "--weights", "{}/absent.pth"], "absent.pth"), (["features", "{}", "--device", "cuda:77"], "cuda:77"),
    (["supertiles", "{}", "--features", "{}/h5"], "no such folder")])
def test_tiling_commands_say_one_line(two_slides, argv, words):
    done = subprocess.run([sys.executable, tiling.__file__, *(a.format(two_slides) for a in argv)], capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize("program, argv, words", [
    (tiling, ["features", "x", "--features", ""], "argument --features: an empty word was given"),
    (he2rna, ["predict", "x", "y", "--into="], "argument --into: an empty word"),
    (tiling, ["tiles", ""], "argument cohort: an empty word"), (histcode, ["diagnose", "x", "--external", ""], "argument --external: an empty word"),
    (tiling, ["tiles", "x", "--seed", str(2 ** 63)], "'9223372036854775808' is not a whole number >= 0 and < 2..63")])
def test_empty_words_and_seeds_that_no_generator_takes_are_refused(capsys, program, argv, words):
    with pytest.raises(SystemExit, match="2"):
        program.main(argv)
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize("argv, words", [(["--weights", "none.pth"], "none.pth: No such file"),
                                         (["--device", "cuda:77"], "cuda:77"), (["--features", "none"], "no such folder")])
def test_doctor_looks_at_what_features_would_need(two_slides, argv, words):
    with pytest.raises(tiling.InputError, match=words):
        tiling.main(["doctor", str(two_slides), *argv])


@pytest.mark.parametrize("key, value", [("tile_um", "x"), ("tile_um", None), ("tile_um", float("nan")), ("max_tiles", 5.5), ("seed", [1]), ("tissue", 3),
                                        ("tissue", []), ("tissue_threshold", "x"), ("min_area", True), ("mpp", "0.5")])
def test_settings_that_cannot_be_name_file_and_key(two_slides, key, value):
    tiling.save_json(two_slides / "tiles" / "settings.json", dict(tile_um=112, mpp=.5, max_tiles=9) | {key: value})
    for verb in ("doctor", "tiles"):
        with pytest.raises(tiling.InputError, match=re.escape(f"tiles/settings.json: {key} is {value!r}, which can't be")):
            tiling.main([verb, str(two_slides)])


@pytest.mark.parametrize("table, words", [
    ("slide,patient\na,p\n", "no column project"), ("slide,patient,project\na,p,X\na,q,X\n", "line 3: slide a stands there twice"),
    ("slide,patient,project\na,Doe, Jane,X\n", "line 2: 4 fields, the header has 3"), ("slide;patient;project\na;p;X\n", "separated by commas"),
    ("slide,patient,project,patient\na,p,X,q\n", "a column stands there twice"), ("slide,patient,project\n\n\na,p,X\na,q,X\n", "line 5: slide a"),
    ("slide,patient,project\n../a,p,X\n", "is a path"), ("slide,patient,project\na,,X\n", "line 2: empty patient"),
    ("slide,patient,project\n", "no rows"), ("slide,patient,project,mpp\na,p,X,half\n", "mpp 'half' of slide a"),
    ("slide,patient,project,mpp\na,p,X,0_5\n", "mpp '0_5' of slide a")])
def test_samples_csv_mistakes(two_slides, table, words):
    (two_slides / "samples.csv").write_text(table)
    with pytest.raises(tiling.InputError, match=re.escape(words)):
        tiling.main(["tiles", str(two_slides)])
    (two_slides / "samples.csv").write_bytes("slide,patient,project\na,p,X\n".encode("utf-16"))
    with pytest.raises(tiling.InputError, match="UTF-8"):
        tiling.main(["tiles", str(two_slides)])


CELLS = st.sampled_from(["", "a", "b", "é", "NA", "1e400", "-1", "0", "3.5", "../x", "a/b", "/etc/x", "..", ".", "\\x", 'say "x"', "a,b", "a;b", "\0", "\r", "x\ny",
                         "slide", "settings", "nan", " a ", "\ufeff", "x" * 300]) | st.text(max_size=4)


def broken_tables(header):
    """Bytes of tables, whole and broken: separators, quotes, line ends, byte order marks, encodings, a cut end."""
    rows = st.lists(st.one_of(*(st.lists(CELLS, min_size=n, max_size=m) for n, m in ((0, 6), (3, 3), (4, 4)))), max_size=5)
    quotes = st.sampled_from([str, str, lambda c: '"' + c.replace('"', '""') + '"', lambda c: '"' + c])
    join = lambda rows, sep, end, quote: end.join(sep.join(map(quote, row)) for row in rows) + end
    return st.builds(lambda header, rows, sep, end, quote, mark, cut, code: (mark + join([header, *rows], sep, end, quote))[:cut].encode(code, "replace"),
                     header, rows, st.sampled_from(",,,;\t"), st.sampled_from(["\n", "\r\n", "\r"]), quotes, st.sampled_from(["", "\ufeff"]),
        st.sampled_from([None, None, -3]), st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "cp1252"]))


@hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(broken_tables(st.just(["slide", "patient", "project"]) | st.just(["slide", "patient", "project", "mpp"]) | st.lists(st.sampled_from(
    ["slide", "patient", "project", "mpp", "sample", "tumor", "msi", "", "slide "]), max_size=6)),
    broken_tables(st.just(["slide", "G1", "G2"]) | st.lists(st.sampled_from(["slide", "sample", "G1", "G2", "", "G1"]), max_size=5)))
def test_any_table_is_read_or_refused_in_one_line_and_nothing_is_written_outside_the_cohort(samples, expression):
    """Property, by hypothesis (1,500 examples were tried by hand)."""
    with tempfile.TemporaryDirectory() as outside:
        cohort = Path(outside) / "in" / "cohort"
        (cohort / "slides").mkdir(parents=True)
        for name, content in (("slides/a.png", b"no slide"), ("samples.csv", samples), ("expression.csv", expression)):
            (cohort / name).write_bytes(content)
        usual = ("--features", str(cohort), "--device", "cpu")
        for command in (lambda: tiling.main(["tiles", str(cohort), "--workers", "1"]), lambda: tiling.read_expression(cohort), lambda: tiling.table_mpp(cohort),
                        lambda: tiling.read_rows(cohort / "samples.csv"), lambda: he2rna.main(["train", str(cohort), *usual]),
                        lambda: he2rna.main(["msi", str(cohort), *usual])):
            try:
                command()
            except tiling.InputError as e:
                assert str(e).isprintable()
        assert all(cohort in p.parents for p in Path(outside).rglob("*") if p.is_file())


def test_names_that_are_no_files_are_refused_and_others_kept(two_slides):
    for name in ("a\tb", "a\0", "settings", "x" * 201, "é" * 101):
        (two_slides / "samples.csv").write_text(f'slide,patient,project\n"{name}",p,X\n')
        with pytest.raises(tiling.InputError, match="line 2: slide .* can't be the name of a file here"):
            tiling.main(["tiles", str(two_slides)])
    for name in ("é ü 漢字", "it's (1) #2; 50%", "-rf", "a.b.c", "'" * 99):
        (two_slides / "slides" / "a.tif").replace(two_slides / "slides" / f"{name}.tif")
        (two_slides / "samples.csv").write_text(f"slide,patient,project\n{name},p,X\n", encoding="utf-8")
        assert tiling.main(["tiles", str(two_slides)]) == 0 and (two_slides / "tiles" / f"{name}.npz").is_file()
        (two_slides / "slides" / f"{name}.tif").replace(two_slides / "slides" / "a.tif")


def test_h5_features(tmp_path):
    rng = np.random.default_rng(0)
    features, coords = rng.normal(size=(9, 5)).astype(np.float32), tile_cloud(9)
    for name, f, c in (("flat", features, coords), ("batch", features[None], coords[None]), ("nan", np.where(features > 1, np.nan, features), coords),
                       ("double", features.astype(np.float64), coords.astype(float)), ("short", features[:4], coords),
                       ("empty", features[:0], coords[:0]), ("thin", features[:, :0], coords),
                       ("place", features, np.where(coords > 0, np.nan, 0)), ("words", features.astype("S"), coords), ("flatter", features[0], coords)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as h:
            h["features"], h["coords"] = f, c
    (tmp_path / "text.h5").write_text("no")
    whole = (tmp_path / "flat.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[:len(whole) - 100])
    with h5py.File(tmp_path / "other.h5", "w") as h:
        h["feats"], h["features"] = features, [1.0]
        del h["features"]
    for name in ("flat", "batch", "double"):
        got = tiling.load_features(tmp_path, tmp_path, name)
        assert (got[0] == features).all() and got[0].dtype == np.float32 and (got[1] == coords).all()
    for name, words in (("nan", "NaN or infinite feature in tile"), ("short", "don't fit"), ("empty", "no tiles"),
                        ("thin", r"no features: .9, 0."), ("place", "infinite coords"),
                        ("text", "not a CLAM"), ("gone", "no file"),
                        ("cut", "cut.h5: not a CLAM/TRIDENT file"), ("words", "words.h5: not a CLAM.* in place of numbers"), ("flatter", "don't fit"),
                        ("other", "no `features` in it")):
        with pytest.raises(tiling.InputError, match=words) as e:
            tiling.load_features(tmp_path, tmp_path, name)
        assert "\n" not in str(e.value)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("/tmp/evil-pickle-ran",)


def test_pt_features(tmp_path):
    """Of torch.save: CLAM's tensors without coordinates, dicts with; a pickle is refused and never run."""
    rng, coords = np.random.default_rng(0), tile_cloud(9)
    features = torch.from_numpy(rng.normal(size=(9, 5)).astype(np.float32))
    place = torch.from_numpy(coords)
    for name, saved in (("tensor", features), ("batch", features[None]), ("dict", dict(features=features, coords=place)),
                        ("none", dict(features=features, coords=None)),
                        ("brain", features.bfloat16()), ("nan", features / (features > 0)), ("short", dict(features=features, coords=place[:3])),
                        ("feats", dict(feats=features)),
                        ("flat", features[0]), ("list", [features]), ("module", torch.nn.Linear(2, 2)), ("evil", Evil()), ("empty", features[:0]),
                        ("bool", features > 0)):
        torch.save(saved, tmp_path / f"{name}.pt")
    torch.save(features, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "text.pt").write_text("no")
    load = lambda name: tiling.load_features(tmp_path, tmp_path, name)
    for name in ("tensor", "batch", "dict", "none", "old"):
        got = load(name)
        assert np.array_equal(got[0], features.numpy()) and (np.array_equal(got[1], coords) if name == "dict" else got[1] is None)
    assert np.array_equal(load("brain")[0], features.bfloat16().float().numpy())
    for name, words in (("nan", "NaN or infinite feature"), ("short", "don't fit"), ("feats", "no `features` in it; it has feats"), ("flat", "don't fit"),
                        ("list", "not a tensor"),
                        ("module", "module.pt: not a tensor, .*without running code"), ("evil", "evil.pt: not a tensor"), ("empty", "no tiles"),
                        ("text", "not a tensor"), ("bool", "bool in place of numbers")):
        with pytest.raises(tiling.InputError, match=words) as e:
            load(name)
        assert "\n" not in str(e.value)
    assert not Path("/tmp/evil-pickle-ran").exists()


def test_features_in_clams_and_tridents_folders(tmp_path, capsys):
    """What a .pt lacks comes from the .h5 of the same slide beside it; the size of tiles from the attributes that either program writes."""
    features, coords = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32), tile_cloud(9)
    def write(path, attrs, n=9, **data):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as h:
            for k, v in dict(data, coords=coords[:n]).items():
                h[k] = v
            h["coords"].attrs.update(attrs)
    clam, trident = tmp_path / "clam", tmp_path / "trident"
    (clam / "pt_files").mkdir(parents=True)
    for name in "abc":
        torch.save(torch.from_numpy(features), clam / "pt_files" / f"{name}.pt")
    write(clam / "h5_files" / "a.h5", {}, features=features + 1)
    write(clam / "patches" / "a.h5", dict(patch_size=256, patch_level=1, downsample=(2.0, 2.0)))
    write(clam / "patches" / "b.h5", dict(patch_size=256, patch_level=0))
    write(clam / "patches" / "c.h5", dict(patch_size=256, patch_level=0), 8)   # of another tiling
    for source in (clam, clam / "pt_files"):
        taken = features + (source == clam)                                    # the .h5 goes first where it is asked
        got = tiling.load_features(tmp_path, source, "a")
        assert np.array_equal(got[0], taken) and np.array_equal(got[1], coords) and tiling.tile_edge(tmp_path, source, "a", coords) == 512
        assert np.array_equal(tiling.load_features(tmp_path, source, "b")[1], coords) and tiling.tile_edge(tmp_path, source, "b", coords) == 256
        assert tiling.load_features(tmp_path, source, "c")[1] is None
    tiling.say_twice(clam, list("abc"))
    assert re.fullmatch("1 slides have .h5 and .pt in .*clam, the .h5 is taken: a\n", capsys.readouterr().out)
    for attrs, want in ((dict(patch_size=256, patch_size_level0=513, level0_magnification=40, target_magnification=20, overlap=0, name="x"), 513),
                        (dict(patch_size=256, level0_magnification=40, target_magnification=20), 512), (dict(patch_size=256, downsample=4.0), 1024),
                        (dict(patch_size=256, patch_level=2), None), (dict(patch_size="big", patch_size_level0=-1), None), ({}, None)):
        write(trident / "features_uni" / "x.h5", attrs, features=features)
        assert tiling.edge_said(tiling.foreign(trident / "features_uni", "x")[3]) == want
    edge = lambda *asked: tiling.tile_edge(tmp_path, trident / "features_uni", "x", coords, *asked)
    assert edge() == 448 and "taken to be 448 level-0 pixels, the pitch of their grid; --tile-um says otherwise" in capsys.readouterr().out
    assert edge(500.) == 500
    write(trident / "patches" / "x_patches.h5", dict(patch_size_level0=300))
    assert edge() == edge(299.) == 300 and capsys.readouterr().out == ""
    with pytest.raises(tiling.InputError, match="x.h5 says 300 level-0 pixels for a tile, which is not 448"):
        edge(448.)


def test_features_made_elsewhere_are_known_by_what_they_hold(tmp_path):
    """A copy, however late and wherever, is the same; other values, an order or coordinates of their own are not."""
    features, coords = np.random.default_rng(0).normal(size=(900, 5)).astype(np.float32), tile_cloud(900)
    def write(folder, f, c):
        folder.mkdir()
        with h5py.File(folder / "a.h5", "w") as h:
            h["features"], h["coords"] = f, c
        return tiling.features_made_by(tmp_path, folder, "a")
    first = write(tmp_path / "one", features, coords)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    os.utime(tmp_path / "two" / "a.h5", (1, 1))
    assert first == tiling.features_made_by(tmp_path, tmp_path / "two", "a")
    for i, (f, c) in enumerate(((features * 2, coords), (features[::-1], coords), (features, coords + 1), (features[:-1], coords[:-1]))):
        assert write(tmp_path / f"other{i}", f, c) != first


def test_export_is_read_back_by_h5py_json_and_csv(two_slides, capsys):
    """--h5 as CLAM's and TRIDENT's programs read it, and as we do; GeoJSON in QuPath's form; a table as anndata.read_csv takes one."""
    o = ["--encoder", "resnet50-stage3", "--device", "cpu"]
    run = lambda *argv: tiling.main(["export", str(two_slides), *argv, *o])
    assert run("--h5", "--geojson", "--csv", "--weights", "random") == 0       # from nothing but slides
    assert "export: 2 of 2 slides ready" in capsys.readouterr().out
    folder, tiles = two_slides / "export" / "resnet50-stage3", tiling.tiles_of(two_slides, "a")[0]
    features, coords, tile = np.load(two_slides / "features" / "resnet50-stage3" / "a.npy"), tiles["coords"], float(tiles["tile"])
    with h5py.File(folder / "h5_files" / "a.h5") as h:
        assert np.array_equal(h["features"][:], features) and h["features"].dtype == np.float32 and np.array_equal(h["coords"][:], coords)
        said = dict(h["coords"].attrs)
        assert said["patch_size"] == 224 and said["patch_size_level0"] == tile and said["patch_size"] * said["downsample"][0] == pytest.approx(tile)
        assert said["level0_magnification"] == pytest.approx(20) and said["target_magnification"] == pytest.approx(20)
        assert (said["overlap"], said["name"]) == (0, "a")
        assert "random, seed 0" in h["features"].attrs["made_by"]
    for source in (folder, folder / "h5_files"):
        got = tiling.load_features(two_slides, source, "a")
        assert np.array_equal(got[0], features) and np.array_equal(got[1], coords) and tiling.tile_edge(two_slides, source, "a", coords) == tile
    shapes = json.loads((folder / "a.geojson").read_text())
    assert shapes["type"] == "FeatureCollection" and [f["properties"]["measurements"] for f in shapes["features"]] == [{"tile": i} for i in range(len(coords))]
    for f, (x, y) in zip(shapes["features"], coords.tolist()):
        assert f["type"] == "Feature" and f["properties"]["objectType"] == "detection" and f["geometry"]["type"] == "Polygon"
        assert f["geometry"]["coordinates"] == [[[x, y], [x + tile, y], [x + tile, y + tile], [x, y + tile], [x, y]]]
    table, obs = (list(csv.reader(open(folder / name))) for name in ("a.csv", "a.obs.csv"))
    assert [row[0] for row in table] == [row[0] for row in obs] == ["tile", *(f"a:{i}" for i in range(len(coords)))]
    assert obs[0] == ["tile", "slide", "x", "y", "edge"]
    assert len(set(map(len, table))) == 1 and np.allclose(np.array([row[1:] for row in table[1:]], float), features, rtol=1e-5)
    assert np.array_equal(np.array([row[2:4] for row in obs[1:]], int), coords)
    for text in (row[0] for row in table[1:]):                                 # anndata takes a first column for names when it is no number
        with pytest.raises(ValueError):
            float(text)
    shutil.rmtree(two_slides / "export"), shutil.rmtree(two_slides / "features")
    assert run("b", "--geojson") == 0 and [p.name for p in (two_slides / "export").rglob("*.*")] == ["b.geojson"] and not (two_slides / "features").exists()
    for argv, words in (([], "export what"), (["c", "--h5"], "has no slide c; it has a, b")):
        with pytest.raises(tiling.InputError, match=words):
            run(*argv)


def test_export_of_features_made_elsewhere(two_slides, capsys):
    """A .pt with coordinates becomes an .h5; without them it fails with its reason; attributes go on, --tile-um stands in for them."""
    (two_slides / "pt").mkdir()
    features, coords = torch.arange(12.).reshape(4, 3), torch.tensor([[0, 0], [300, 0], [0, 300], [300, 300]])
    torch.save(dict(features=features, coords=coords, patch_size=256, note=None), two_slides / "pt" / "a.pt")
    torch.save(features, two_slides / "pt" / "b.pt")
    run = lambda *argv: tiling.main(["export", str(two_slides), "--features", str(two_slides / "pt"), "--device", "cpu", *argv])
    with pytest.raises(tiling.InputError, match="--tile-um -3: must lie between 1 and 10000"):
        run("--h5", "--tile-um", "-3")
    assert run("--h5", "--geojson", "--tile-um", "100") == 1                   # .5 µm per pixel
    assert "failed: b: " in (said := capsys.readouterr()).err and "has no coordinates, nor has an .h5 beside it" in said.err
    with h5py.File(two_slides / "export" / "pt" / "h5_files" / "a.h5") as h:
        assert np.array_equal(h["features"][:], features) and np.array_equal(h["coords"][:], coords)
        assert h["coords"].attrs["patch_size_level0"] == pytest.approx(200, rel=1e-3) and h["coords"].attrs["patch_size"] == 256
    assert len(json.loads((two_slides / "export" / "pt" / "a.geojson").read_text())["features"]) == 4
    for far in (-300, 10 ** 18, 2 ** 62):                                      # not of this slide, as heatmap says
        torch.save(dict(features=features, coords=coords + far, patch_size=256), two_slides / "pt" / "a.pt")
        assert run("--csv", "--tile-um", "100") == 1 and "failed: a: tiles reach beyond the slide of 1,600 x 1,280 px" in capsys.readouterr().err


def test_damaged_features_are_made_again_and_a_folder_in_their_place_is_that_slides_failure(two_slides, capsys):
    tiny_encoder(two_slides / "tiny.pt")
    run = lambda: tiling.main(["features", str(two_slides), "--device", "cpu", "--encoder", str(two_slides / "tiny.pt")])
    assert run() == 0
    folder = two_slides / "features" / "tiny"
    whole = (folder / "a.json").read_text()
    for text in ("[1]", '"x"', '{"tiles": "x"}', '{"encoder": "tiny", "weights": "x", "tiles": "x"}'):
        (folder / "a.json").write_text(text)
        assert run() == 0 and (folder / "a.json").read_text() == whole
    (folder / "a.npy").unlink(), (folder / "a.npy").mkdir(), (folder / "b.json").unlink()
    assert run() == 1 and f"failed: a: {folder}/a.npy is a folder: move it away" in capsys.readouterr().err and (folder / "b.json").is_file()


# Places from QuPath, slides in a larger frame, turned pictures. Authorities: matplotlib's outlines, what QuPath 0.3 to 0.6 write, Pillow, tifffile.
def feature(kind, coordinates, name=None, **properties):
    named = dict(classification=name if isinstance(name, dict) else dict(name=name, color=[1, 2, 3])) if name else {}
    return dict(type="Feature", id="6f7ab1", geometry=dict(type=kind, coordinates=coordinates), properties=dict(properties, **named))


def test_centroids_equal_means_of_the_pixels_inside():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(-2, 12, .02), np.arange(-2, 12, .02)), -1).reshape(-1, 2)
    outer, hole, far = star(rng, 11, (5, 5), 6), star(rng, 7, (5, 5), 1), np.array([[9, -1], [11, -1], [11, 3], [9, -1]])
    inside = lambda *rings: np.logical_xor.reduce([Outline(r).contains_points(grid) for r in rings])
    for ring in (outer, outer[::-1], np.vstack([outer, outer[:1]])):
        assert np.allclose(tiling.centroid([[ring.tolist(), hole.tolist()]]), grid[inside(outer, hole)].mean(0), atol=.02)
    assert np.allclose(tiling.centroid([[outer.tolist()], [far.tolist()]]), np.concatenate([grid[inside(outer)], grid[inside(far)]]).mean(0), atol=.02)
    assert tiling.centroid([[[[1, 2], [3, 4], [1, 2]]]]).tolist() == [5 / 3, 8 / 3]                 # a line has no area
    assert np.allclose(tiling.centroid([[(1e6 + outer).tolist()]]) - 1e6, tiling.centroid([[outer.tolist()]]), atol=1e-6)


def test_cells_from_qupath_tables_and_geojson(tmp_path):
    """The same cells as tables in px and µm of QuPath's frame, in ours, and as GeoJSON of every wrapping; classes as it names them."""
    (tmp_path / "points").mkdir()
    xy, kinds = np.array([[10.5, 20], [30, 40.25], [50, 60], [7, 8]]), ["Tumor", "Immune cells", "Tumor", ""]
    um, origin = np.array([.25, .26]), np.array([1000, 2000])
    places = lambda name: tiling.read_places(tmp_path, name, um, origin)[0]
    def table(name, x, y, places, sep=",", encoding="utf-8", kind="Class", image="a.mrxs"):
        rows = [["Image", "Object ID", x, y, kind]] + [[image, str(i), *map(repr, map(float, p)), k] for i, (p, k) in enumerate(zip(places, kinds))]
        text = "\n".join(sep.join(row) for row in rows).encode(encoding)
        (tmp_path / "points" / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    table("px.csv", "Centroid X px", "Centroid Y px", xy)
    table("um.tsv", "Centroid X µm", "Centroid Y µm", xy * um, "\t", kind="Classification")
    table("win.txt", "Centroid X µm", "Centroid Y µm", xy * um, "\t", "cp1252")
    table("mu.csv.gz", "Centroid X μm", "Centroid Y μm", xy * um)              # the Greek letter
    table("ascii.tsv.gz", "Centroid X um", "Centroid Y um", xy * um, "\t")
    table("own.csv", "x", "y", xy + origin, kind="cell")                       # ours: OpenSlide's frame, nothing to move
    square = lambda p, r=2: [[[p[0] + a * r, p[1] + b * r] for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))]]
    cells = [feature("Point", xy[0].tolist(), kinds[0]), feature("Polygon", square(xy[1]), dict(names=["Immune cells"]), objectType="cell"),
             feature("MultiPoint", [xy[2].tolist()], kinds[2], objectType="annotation"), feature("MultiPolygon", [square(xy[3])], objectType="detection")]
    region = feature("Polygon", square((500, 500), 90), "Tumor", objectType="annotation")
    line, nothing = feature("LineString", [[1, 2], [3, 4]]), dict(type="Feature", geometry=None)
    for name, value in (("collection", dict(type="FeatureCollection", features=[region, *cells, line])), ("list", [*cells, nothing, region]),
                        ("packed", [*cells, feature("Polygon", square((5, 5)), None, object_type="annotation"),
                                    dict(region, id="PathAnnotationObject", properties={})])):
        data = json.dumps(value).encode()
        (tmp_path / "points" / f"{name}.geojson{'.gz' * (name == 'packed')}").write_bytes(gzip.compress(data) if name == "packed" else data)
    for name in ("px", "um", "win", "mu", "ascii", "own", "collection", "list", "packed"):
        got = places(name)
        assert list(got) == ["all cells", "Immune cells", "Tumor"] and np.allclose(got["all cells"], xy + origin, atol=1e-6)
        assert np.allclose(got["Tumor"], xy[[0, 2]] + origin) and np.allclose(got["Immune cells"], xy[[1]] + origin)
    (tmp_path / "points" / "one.geojson").write_text(json.dumps(cells[0]["geometry"]))      # a bare geometry
    (tmp_path / "points" / "derived.geojson").write_text(json.dumps(feature("Point", [1, 2], dict(names=["Tumor", "Positive"]))))
    (tmp_path / "points" / "none.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert places("one")["all cells"].tolist() == [[1010.5, 2020]] and list(places("derived")) == ["all cells", "Tumor: Positive"]
    assert places("none")["all cells"].shape == (0, 2) and places("nobody") is None
    table("many.csv", "x", "y", xy, image="a")
    (tmp_path / "points" / "many.csv").write_text((tmp_path / "points" / "many.csv").read_text().replace("a,0,", "b,0,"))
    table("list.csv", "x", "y", xy)
    (tmp_path / "points" / "text.geojson").write_text("no json")
    (tmp_path / "points" / "cut.geojson.gz").write_bytes((tmp_path / "points" / "packed.geojson.gz").read_bytes()[:50])
    for i, bad in enumerate((["a", 2], [float("nan"), 1], None, [3], [10 ** 400, 1], [1e308, 1])):
        (tmp_path / "points" / f"bad{i}.geojson").write_text(json.dumps([cells[0], feature("Point", bad)]))
    (tmp_path / "points" / "bad6.geojson").write_text(json.dumps([cells[0], feature("Polygon", [[1, 2], [3, 4]])]))
    (tmp_path / "points" / "bad7.geojson").write_text(json.dumps([cells[0], feature("Polygon", square((1, 2), 1e308))]))
    (tmp_path / "points" / "deep.geojson").write_text("[" * 100000)
    for i, odd in enumerate((dict(geometry="x"), dict(geometry=[1]), dict(geometry=None, properties=[1]), dict(cells[0], properties="x"))):
        (tmp_path / "points" / f"odd{i}.geojson").write_text(json.dumps([cells[0], odd]))
    for names, kind in (([1, 2], "1: 2"), (3, "3")):
        (tmp_path / "points" / "names.geojson").write_text(json.dumps(feature("Point", [1, 2], dict(names=names))))
        assert list(places("names")) == ["all cells", kind]
    for name, words in (("many", "rows of 2 images .a, b.; give those of many alone"), ("list", "list.csv and list.geojson are both there; keep one"),
                        ("text", "not whole GeoJSON"), ("deep", "not whole GeoJSON"),
                        ("cut", "not whole GeoJSON"), *((f"bad{i}", "bad..geojson: feature 2: its P[a-z]+ has no x, y numbers") for i in range(8)),
                        *((f"odd{i}", "odd..geojson: feature 2: its (geometry|properties) is .*, no JSON object") for i in range(4))):
        with pytest.raises(tiling.InputError, match=words):
            places(name)


class Framed:
    """Stands for a MIRAX slide: a picture that begins at pixel (640, 384) of a larger frame; the rest was not scanned, but for a stain beyond the bounds."""
    start, dimensions, level_downsamples, level_count, color_profile = (640, 384), (3200, 2400), (1.0,), 1, None

    def __init__(self, rgb):
        h, w = rgb.shape[:2]
        self.frame, self.level_dimensions = np.zeros((2400, 3200, 4), np.uint8), (self.dimensions,)
        self.frame[384:384 + h, 640:640 + w] = np.dstack([rgb, np.full((h, w), 255)])
        self.frame[2000:, 2600:] = (150, 60, 150, 255)
        self.properties = {"openslide.vendor": "mirax", "openslide.mpp-x": "0.5", "openslide.mpp-y": "0.505"}
        self.properties.update({f"openslide.bounds-{k}": str(v) for k, v in zip(("x", "y", "width", "height"), (640, 384, w, h))})

    def read_region(self, corner, level, size):
        (x, y), (w, h) = corner, size
        out = np.zeros((h, w, 4), np.uint8)
        part = self.frame[y:y + h, x:x + w]
        out[:part.shape[0], :part.shape[1]] = part
        return Image.fromarray(out, "RGBA")


def test_slides_in_a_larger_frame_keep_openslides_and_trade_in_qupaths(tmp_path, monkeypatch, capsys):
    """Tissue is looked for within the bounds; our coordinates are OpenSlide's; GeoJSON and centroids are QuPath's, which begin at the bounds."""
    rgb = np.array(Image.fromarray(painted()[0]).resize((1600, 1280), Image.Resampling.NEAREST))
    opened, slide, whole = tiling.open_slide, Framed(rgb), np.array([640, 384])
    for d in ("slides", "points", "regions", "h5"):
        (tmp_path / d).mkdir()
    write_pyramid(tmp_path / "slides" / "plain.tif", rgb)
    Image.fromarray(rgb[:20, :20]).save(tmp_path / "slides" / "m.png")         # stands in the folder
    monkeypatch.setattr(tiling, "open_slide", lambda path: slide if Path(path).stem == "m" else opened(path))
    assert tiling.main(["doctor", str(tmp_path)]) == 0 and "m: 3,200 x 2,400 px, mirax" in (said := capsys.readouterr().out)
    assert "scanned: 1,600 x 1,280 px from (640, 384)" in said and said.count("scanned:") == 1
    assert tiling.main(["tiles", str(tmp_path), "--tile-um", "80.4"]) == 0     # 160 px: both frames have their grid in common
    plain, framed = (tiling.tiles_of(tmp_path, name)[0]["coords"] for name in ("plain", "m"))
    assert framed.min(0).min() >= 384 and (framed + 160 <= whole + (1600, 1280)).all()      # the stain beyond is no tissue
    inside = tiling.thumbnail(slide, .5)
    assert inside[1].sum() == 100 * 80 and (inside[0][~inside[1]] == 255).all()
    assert tiling.main(["export", str(tmp_path), "m", "--geojson"]) == 0
    shapes = json.loads((tmp_path / "export" / "resnet50" / "m.geojson").read_text())["features"]
    assert [f["geometry"]["coordinates"][0][0] for f in shapes] == (framed - whole).tolist()
    um, origin = tiling.qupath_frame(slide, .5025)
    assert um.tolist() == [.5, .505] and np.array_equal(origin, whole)
    assert [v.tolist() for v in tiling.qupath_frame(opened(tmp_path / "slides" / "plain.tif"), .5)] == [[.5, .5], [0, 0]]
    rng = np.random.default_rng(3)
    write_cohort(tmp_path, rng, patients=9, tiles=40)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(5)), -1).reshape(-1, 2) * 200 + whole       # features made elsewhere, in OpenSlide's frame
    with h5py.File(tmp_path / "h5" / "s00_0.h5", "w") as h:
        x = rng.normal(size=(40, 8))
        h["features"], h["coords"] = x.astype(np.float16), grid
        h["coords"].attrs["patch_size_level0"] = 200
    Image.fromarray(rgb[:20, :20]).save(tmp_path / "slides" / "s00_0.png")
    monkeypatch.setattr(tiling, "open_slide", lambda path: slide)
    assert train(tmp_path, "--epochs", "2") == 0
    heatmap = lambda *argv: he2rna.main(["heatmap", str(tmp_path / "runs" / "he2rna"), "s00_0", "--genes", "G0", "--device", "cpu", *argv])
    assert heatmap() == 0
    folder = tmp_path / "runs" / "he2rna" / "heatmaps" / "G0" / "s00_0"
    score = np.array([float(r["score"]) for r in read_csv(folder / "tiles.csv")])
    rings = np.array([f["geometry"]["coordinates"][0][:4] for f in json.loads((folder / "tiles.geojson").read_text())["features"]])
    assert np.array_equal(rings[:, 0], grid - whole) and [(int(r["x"]), int(r["y"])) for r in read_csv(folder / "tiles.csv")] == list(map(tuple, grid.tolist()))
    best, top = np.flatnonzero(score > np.median(score)), int(score.argmax())
    shapes = [feature("Polygon", [rings[i].tolist()], "Tumor") for i in best] + [feature("Polygon", [rings[score.argmin()].tolist()], "Necrosis")]
    (tmp_path / "regions" / "s00_0.geojson").write_text(json.dumps(dict(type="FeatureCollection", features=shapes)))
    center = (rings[top].mean(0) * um).tolist()
    (tmp_path / "points" / "s00_0.csv").write_text(f"Image,Class,Centroid X µm,Centroid Y µm\nm.mrxs,Tumor,{center[0]},{center[1]}\n")
    capsys.readouterr()
    assert heatmap("--regions", "Tumor", "--cells", "Tumor") == 0
    assert "outline AUC 1.000" in capsys.readouterr().out
    assert [int(r["cells: Tumor"]) for r in read_csv(folder / "tiles.csv")] == [int(i == top) for i in range(40)]
    assert "## Outline of Tumor" in (folder / "report.md").read_text() and heatmap("--cells", "Tumor") == 0
    assert "outline AUC 0.9" in capsys.readouterr().out                        # all classes together
    assert heatmap("--regions", "Stroma") == 0
    assert re.search("no region of class Stroma; it has Necrosis, Tumor", said := capsys.readouterr().out) and "outline" not in said


def test_pictures_lie_as_their_tag_says(tmp_path, capsys):
    """EXIF of a .jpg and the tag of an untiled TIFF are followed, as Pillow does; a tiled TIFF, whose tiles OpenSlide would turn one by one, is refused."""
    rgb = np.array(Image.fromarray(painted()[0]).resize((1600, 1280), Image.Resampling.NEAREST))
    (tmp_path / "slides").mkdir()
    path = lambda name: tmp_path / "slides" / name
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(rgb).save(path("upright.jpg"), quality=95), Image.fromarray(np.rot90(rgb)).save(path("turned.jpg"), quality=95, exif=exif)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(rgb).save(path("profile.png"), icc_profile=profile), Image.fromarray(rgb).save(path("broken.png"), icc_profile=b"no profile")
    Image.fromarray(rgb).save(path("plain.png"))
    for name, tag, tile in (("strips.tif", 6, None), ("tiled.tif", 6, (256, 256)), ("right.tif", 1, (256, 256))):
        tifffile.imwrite(path(name), np.rot90(rgb) if tag == 6 else rgb, photometric="rgb", tile=tile, extratags=[(274, 3, 1, tag, True)], metadata=None)
    Image.new("1", (16000, 12000)).save(tmp_path / "large.png")                # more pixels than Pillow opens unasked
    assert tiling.open_slide(tmp_path / "large.png").dimensions == (16000, 12000)
    assert tiling.main(["doctor", str(tmp_path), "--mpp", "0.5"]) == 1
    said = capsys.readouterr()
    assert "tiled: " in said.err and "its orientation tag is 6, with which OpenSlide turns each of its tiles by itself" in said.err
    assert "1 of 8 slides failed" in said.err
    blocks = {text.split(":")[0]: text for text in re.split(r"\n(?! )", said.out)}
    for name in ("upright", "turned", "profile", "broken", "plain", "strips", "right"):
        assert ("turned upright: its orientation tag is 6" in blocks[name]) == (name in ("turned", "strips")) and "1,600 x 1,280 px" in blocks[name]
        assert ("ICC profile present: not applied" in blocks[name]) == (name in ("profile", "broken"))
    assert tiling.main(["tiles", str(tmp_path), "--mpp", "0.5"]) == 1
    coords = {p.stem: tiling.tiles_of(tmp_path, p.stem)[0]["coords"] for p in (tmp_path / "tiles").glob("*.npz")}
    assert len(coords) == 7 and all(np.array_equal(c, coords["plain"]) for c in coords.values())
    got = [tiling.read_tiles(tiling.open_slide(path(name)), coords["plain"][:1], 224)
           for name in ("plain.png", "profile.png", "right.tif", "strips.tif", "turned.jpg")]
    assert all(np.array_equal(g, got[0]) for g in got[:4]) and np.abs(got[4].astype(int) - got[0]).mean() < 4


def real(*parts):
    path = Path(REAL_DATA, *parts)
    return path if REAL_DATA and path.exists() else pytest.skip("REAL_DATA is not set")


def test_real_slides(tmp_path, capsys):
    shutil.copytree(real("slides"), tmp_path / "slides", copy_function=shutil.copyfile)
    (tmp_path / "slides").chmod(0o755)
    assert tiling.main(["doctor", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "mpp 0.4990 µm from the slide" in said.out and "224.4 px" in said.out and "tcga-cr-7395-01a-01-ts1: no µm per pixel" in said.err
    assert tiling.main(["tiles", str(tmp_path), "--mpp", "0.25"]) == 0
    a = np.load(tmp_path / "tiles" / "CMU-1-Small-Region.npz")
    b = np.load(tmp_path / "tiles" / "tcga-cr-7395-01a-01-ts1.npz")
    assert .30 < a["tissue"] < .45 and .58 < b["tissue"] < .70                 # outlines looked at; see the pictures
    assert 40 <= len(a["coords"]) <= 55 and 42 <= len(b["coords"]) <= 52 and float(b["tile"]) == 448
    slide = tiling.open_slide(tmp_path / "slides" / "CMU-1-Small-Region.svs")
    for x, y in a["coords"]:                                                   # most of each tile is stained, by plain brightness
        assert (np.asarray(slide.read_region((int(x), int(y)), 0, (224, 224)).convert("L")) < 225).mean() > .33


def test_real_regions_with_tinted_glass(capsys):
    """her2st: pink glass, coarser than 0.5 µm/px; the share of tissue by eye on four regions."""
    for name, low, high in (("B4_r43", .18, .45), ("C2_r20", .45, .70), ("B4_r23", .45, .70), ("C2_r32", .75, 1), ("C2_r21", .85, 1)):
        slide = tiling.open_slide(real("her2st", "slides", f"{name}.tif"))
        assert low < tiling.tissue_mask(*tiling.thumbnail(slide, tiling.slide_mpp(slide, None, name)[0])).mean() < high


# Pictures. Authorities: the geometry itself, read back from the pixels; fields of the GeoJSON as QuPath reads them.
GREY = np.full((50, 100, 3), 230, np.uint8)


class Flat:
    """Stands for a slide: each level-0 pixel's red is x // 100, its green y // 100; not scanned beyond 1000 x 500."""
    dimensions, level_downsamples, level_dimensions = (1000, 500), (1.0,), ((1000, 500),)

    def read_region(self, corner, level, size):
        y, x = np.mgrid[corner[1]:corner[1] + size[1], corner[0]:corner[0] + size[0]]
        return Image.fromarray(np.stack([x // 100 * 20, y // 100 * 20, 0 * x, 255 + 0 * x], 2).astype(np.uint8), "RGBA")


def where(image, color):
    """First and one past the last row and column of the pixels of one colour."""
    y, x = np.nonzero((np.asarray(image)[:, :, :3] == color).all(2))
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


@pytest.mark.parametrize("size", [(1000, 800), (2000, 500), (700, 1400), (1000, 60), (60, 1000)])
def test_heatmap_draws_each_tile_where_it_lies(tmp_path, size):
    """Lowest and highest colour of the map: places and sizes in the picture are those on the slide, to a pixel."""
    import matplotlib
    tile, coords = 20.0, np.array([[8, 8], [size[0] - 25, size[1] - 26], [28, 8], [8, 28]])    # off the frame
    tiling.draw_heatmap(tmp_path / "a.png", GREY, size, .5, coords, tile, [0, 9, 4, 5], "title", "score")
    image = np.asarray(Image.open(tmp_path / "a.png"))[:-130]                  # less the colour bar
    low, high = (where(image, np.round(np.multiply(matplotlib.colormaps["viridis"](v)[:3], 255))) for v in (0., 1.))
    scale = 200 * 5 * (1.5 if size[0] > 1.6 * size[1] else 1) / max(size)
    assert abs(high[:2] - low[:2] - (coords[1] - coords[0]) * scale).max() <= 1.5
    assert abs(high[2:] - high[:2] - tile * scale).max() <= 1.5
    x, y = (low[:2] + .4 * tile * scale).astype(int)
    step = round(tile * scale)
    around = {tuple(image[y + b * step, x + a * step]) for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))}
    assert len(around) == 4                                                    # three tiles and the slide


def test_outlines_are_drawn_on_slide_and_map(tmp_path):
    ring = np.array([[200, 100], [700, 100], [700, 600], [200, 600]], float)
    tiling.draw_heatmap(tmp_path / "a.png", GREY, (1000, 800), .5, np.array([[8, 8], [900, 700]]), 20.0, [0, 9], "", "score", None, [[ring]])
    image = np.asarray(Image.open(tmp_path / "a.png"))[:, :, :3].astype(int)
    red = (image[:, :, 0] > 200) & (image[:, :, 1:].max(2) < 60)
    for half in np.split(red, [red.shape[1] // 2], axis=1):                    # 1,000 pixels of the picture for 1,000 of the slide
        y, x = np.nonzero(half)
        assert abs(np.ptp(x) - 500) < 6 and abs(np.ptp(y) - 500) < 6 and not half[y.min() + 10:y.max() - 10, x.min() + 10:x.max() - 10].any()


def test_heatmap_of_neighbours_of_real_pitch_has_no_seams(tmp_path):
    coords = (np.stack(np.meshgrid(np.arange(40), np.arange(40)), -1).reshape(-1, 2) * 22.43).astype(np.int32)
    tiling.draw_heatmap(tmp_path / "a.png", GREY, (900, 900), .5, coords, 22.43, np.full(1600, 3.), "", "score")
    image = np.asarray(Image.open(tmp_path / "a.png"))[:, :, :3]
    color = image[500, 1600]                                                   # amid the map
    x0, y0, x1, y1 = where(image[:-130], color)
    assert (image[y0:y1, x0:x1] == color).all() and min(x1 - x0, y1 - y0) >= 40 * 22.43 / 900 * 1000 - 3


@pytest.mark.parametrize("scores", [[2.5], [2.5, 2.5], [1e9, -1e9, 0]])
def test_heatmap_of_few_and_equal_scores(tmp_path, scores):
    coords = np.array([[0, 0], [40, 0], [80, 40]])[:len(scores)]
    tiling.draw_heatmap(tmp_path / "a.png", GREY, (120, 80), .25, coords, 40.0, scores, "word " * 60, "label " * 20,
                        points=np.array([[3, 4]]) if len(scores) > 1 else np.zeros((0, 2)))
    assert (np.asarray(Image.open(tmp_path / "a.png"))[[0, -1]] == 255).all()  # nothing is cut off


def test_scale_bar_is_round_and_a_tenth_to_a_third():
    for width in np.geomspace(.1, 1e6, 500):
        bar = tiling.scale_bar_um(width)
        assert width / 10 <= bar <= width / 3 and f"{bar:.0e}"[0] in "125" and np.isclose(float(f"{bar:.0e}"), bar)


def test_color_range_passes_over_single_outliers_only():
    assert tiling.color_range(np.array([0., 1, 2])) == (0, 2, "neither")
    assert tiling.color_range(np.full(5, 7.)) == (6.5, 7.5, "neither")
    assert tiling.color_range(np.r_[np.zeros(999), 3]) == (0, 3, "neither")
    assert tiling.color_range(np.r_[np.linspace(0, 1, 1001), 50]) == (.01, .991, "both")


def shown(monkeypatch, count, **options):
    """What draw_gallery reads and writes: tiles read, in order, and the labels."""
    import matplotlib.pyplot as plt
    read, labels = [], []
    tiles = tiling.read_tiles
    monkeypatch.setattr(tiling, "read_tiles",
                        lambda slide, coords, *a: read.append(coords[0].tolist()) or tiles(slide, coords, *a))
    monkeypatch.setattr(tiling, "save_file", lambda path, write: (write(io.BytesIO()), labels.extend(
        t.get_text() for ax in plt.gcf().axes for t in ax.texts)))
    coords = np.array([[100 * i, 100 * (i % 3)] for i in range(count)])
    scores = [(7 * i) % count - 1. for i in range(count)]
    tiling.draw_gallery("a.png", Flat(), coords, 100.0, scores, "title", px=32, **options)
    return [x // 100 for x, _ in read], labels


def test_gallery_shows_the_highest_and_lowest_tiles(monkeypatch):
    order, labels = shown(monkeypatch, 10, n=3, counts=np.arange(10), counts_name="T")
    score = [(7 * i) % 10 - 1 for i in order]
    assert score == [8, 7, 6, -1, 0, 1]
    assert labels[0] == f"S = 8.00\n#T = {order[0]}" and labels[3] == f"S = −1.00\n#T = {order[3]}"


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_gallery_of_few_tiles_shows_each_once(monkeypatch, n):
    order, _ = shown(monkeypatch, n)
    assert sorted(order) == list(range(n))


def test_gallery_shows_the_pixels_of_the_slide(tmp_path):
    """At px = 200 a tile is one inch: 200 x 200 pixels of the tile's own colour."""
    coords = np.array([[0, 0], [300, 100], [800, 400]])
    tiling.draw_gallery(tmp_path / "a.png", Flat(), coords, 100.0, [1, 2, 3], "t", px=200)
    image = Image.open(tmp_path / "a.png")
    places = [where(image, color) for color in ((160, 80, 0), (60, 20, 0), (0, 0, 0))]
    assert all(abs(p[2:] - p[:2] - 200).max() <= 3 for p in places)
    assert places[0][0] < places[1][0] and places[0][1] == places[1][1] < places[2][1]


@pytest.mark.parametrize("n", [1, 2, 60, 3000])
def test_scatter_writes_r_and_medians(monkeypatch, n):
    import matplotlib.pyplot as plt
    rng, seen = np.random.default_rng(0), []
    scores, values = rng.normal(size=n), rng.poisson(9, n)
    monkeypatch.setattr(tiling, "save_file", lambda path, write: (write(io.BytesIO()), seen.extend(
        [plt.gcf().texts[0].get_text(), *(t.get_text() for t in plt.gcf().axes[1].texts)])))
    tiling.draw_scatter("a.png", scores, values, "x", "y", "t")
    best = values[np.argsort(-scores)[:max(1, min(100, n // 2))]]
    assert seen[0].startswith(f"t: R = {np.corrcoef(scores, values)[0, 1]:.2f}" if n > 1 else "t: no R")
    assert seen[1:] == [f"{np.median(best):.4g}", f"{np.median(values):.4g}"]


def test_tiles_geojson_comes_back_as_the_same_tiles():
    rng = np.random.default_rng(0)
    tile, grid = 224.45, np.stack(np.meshgrid(np.arange(7), np.arange(5)), -1).reshape(-1, 2)
    coords, values = (grid * tile).astype(np.int32), rng.normal(size=(35, 2))
    values[3, 1] = np.nan
    text = json.dumps(tiling.tiles_geojson(coords, tile, values, ["CD3", "T cells"]), allow_nan=False)
    features = json.loads(text)["features"]
    polygons = stats.read_rings(json.loads(text))
    own = np.array([stats.inside(coords + tile / 2, [polygon]) for polygon in polygons])
    assert np.array_equal(own, np.eye(35, dtype=bool))
    assert all(len(rings) == 1 and np.array_equal(rings[0], np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * tile + c)
               for rings, c in zip(polygons, coords))
    assert all(f["properties"]["objectType"] == "detection" for f in features)
    assert list(features[3]["properties"]["measurements"]) == ["CD3"]
    assert np.allclose([f["properties"]["measurements"]["CD3"] for f in features], values[:, 0], rtol=1e-5)


# Colour, tissue as HistCode's code finds it, encoders from files
STAIN_PAIRS = {name: np.array(pair) / np.linalg.norm(pair, axis=1, keepdims=True) for name, pair in (
    ("reference", tiling.REFERENCE), ("reddish", [[.650, .704, .286], [.21, .91, .35]]), ("bluish", [[.75, .60, .28], [.35, .83, .43]]))}


def stained(stains, strength=(1.0, 1.0), n=40_000, noise=0.0, seed=0):
    """Pixels (n, 3) uint8 of known concentrations (n, 2) of two stains: some pure, some glass, most mixed."""
    rng = np.random.default_rng(seed)
    c = rng.gamma(3, .4, (n, 2)) + .3                                          # eosin dims red by MIN_OD at least
    c[:n // 20, 1] = c[n // 20:n // 10, 0] = 0                                 # pure haematoxylin, pure eosin: 5 % each
    c[n // 10:n // 5] = 0                                                      # glass
    c = rng.permutation(c * strength)
    light = tiling.LIGHT * np.exp(-c @ stains) - 1 + rng.normal(0, noise, (n, 3))
    return light.round().clip(0, 255).astype(np.uint8), c


def degrees_between(a, b):
    return np.degrees(np.arccos(np.clip((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1), -1, 1)))


@pytest.mark.parametrize("pair", STAIN_PAIRS)
def test_macenko_recovers_planted_stains_and_their_strength(pair):
    rgb, c = stained(STAIN_PAIRS[pair], (1.3, .8))
    od = tiling.optical_density(rgb)
    assert np.allclose(od, -np.log((rgb.astype(float) + 1) / 240), atol=1e-6)
    stains, top = tiling.macenko_stains(od)
    assert degrees_between(stains, STAIN_PAIRS[pair]).max() < 1 and np.allclose(np.linalg.norm(stains, axis=1), 1)
    dense = (od >= .15).all(1)
    assert np.allclose(top, np.percentile(c[dense], 99, axis=0), rtol=.04)
    order = np.random.default_rng(1).permutation(len(od))                      # neither the order of pixels nor glass matters
    again = tiling.macenko_stains(np.concatenate([od[order], np.full((20_000, 3), -.06, np.float32)]))
    assert np.allclose(again[0], stains, atol=1e-6) and np.allclose(again[1], top, atol=1e-5)
    plane = np.linalg.svd(od[dense].astype(float), full_matrices=False)[2]     # the authority for the plane
    assert np.abs(stains @ plane[2]).max() < 1e-6


def test_macenko_is_least_squares_pixel_by_pixel():
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (2, 9, 11, 3)).astype(np.uint8)
    tiles[0] = tiles[0] // 2
    found = STAIN_PAIRS["bluish"], np.array([3.1, 1.2])
    got, changed = tiling.macenko(tiles, found)
    od = -np.log((tiles.reshape(-1, 3).astype(float) + 1) / 240)
    c = np.linalg.lstsq(found[0].T, od.T, rcond=None)[0].T * np.array([1.9705, 1.0308]) / found[1]
    want = (240 * np.exp(-c @ np.array([[.5626, .7201, .4062], [.2159, .8012, .5581]]))).clip(0, 255).reshape(tiles.shape)
    assert changed.all() and got.dtype == np.uint8 and np.abs(got - want).max() < .51


def test_differently_stained_slides_of_one_tissue_become_one():
    (a, c), (b, _) = (stained(STAIN_PAIRS[pair], strength, 65_536, 1) for pair, strength in (("reddish", (1.2, .9)), ("bluish", (.7, 1.3))))
    assert np.abs(a.astype(int) - b).mean() > 10
    normal = []
    for rgb in (a, b):
        od = tiling.optical_density(rgb)
        out, changed = tiling.macenko(rgb.reshape(1, 256, 256, 3), tiling.macenko_stains(od))
        normal.append(out)
        after = tiling.optical_density(out.reshape(-1, 3))
        pure = np.stack([after[(c[:, 1 - i] == 0) & (c[:, i] > .5)].mean(0) for i in (0, 1)])
        assert changed.all() and degrees_between(pure, np.array(tiling.REFERENCE)).max() < 1
        strength = np.linalg.lstsq(np.array(tiling.REFERENCE).T, after[(od >= .15).all(1)].T, rcond=None)[0]
        assert np.allclose(np.percentile(strength, 99, axis=1), tiling.REFERENCE_TOP, rtol=.02)
    assert np.abs(normal[0].astype(int) - normal[1]).mean() < 1.5


def test_macenko_leaves_the_reference_as_it_is():
    rgb, _ = stained(STAIN_PAIRS["reference"], n=65_536)
    stains, top = tiling.macenko_stains(tiling.optical_density(rgb))
    assert degrees_between(stains, np.array(tiling.REFERENCE)).max() < 1
    out, _ = tiling.macenko(rgb.reshape(1, 256, 256, 3), (np.array(tiling.REFERENCE), np.array(tiling.REFERENCE_TOP)))
    glass = rgb.max(1) > 235
    moved = np.abs(out.reshape(-1, 3).astype(int) - rgb)[~glass]               # by the one grey level that the logarithm adds
    assert np.median(moved) == 1 and (moved <= 2).mean() > .99 and moved.max() < 8


def flat(color, noise=0.0):
    rng = np.random.default_rng(0)
    return (np.array(color) + rng.normal(0, noise, (64, 64, 3))).round().clip(0, 255).astype(np.uint8)


def one_stain(noise=0.0):
    rng = np.random.default_rng(0)
    od = rng.uniform(0, 2, (64, 64, 1)) * tiling.REFERENCE[0]
    return (240 * np.exp(-od) - 1 + rng.normal(0, noise, od.shape)).round().clip(0, 255).astype(np.uint8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tile", [flat((255,) * 3), flat((240,) * 3), flat((243, 240, 244), 2), flat((0,) * 3), flat((128,) * 3), flat((170, 90, 150)),
                                  flat((170, 90, 150), 1), flat((60, 30, 90)), one_stain(), one_stain(1), flat((255,) * 3)[:1, :1], flat((90, 60, 120))[:1, :1]])
def test_macenko_leaves_a_tile_without_two_stains_unchanged(tile):
    found = tiling.macenko_stains(tiling.optical_density(tile.reshape(-1, 3)))
    assert found is None
    got, changed = tiling.macenko(tile[None], found)
    assert (got[0] == tile).all() and changed.tolist() == [False]


@pytest.mark.filterwarnings("error")
def test_macenko_of_a_slide_on_its_odd_tiles():
    """The slide's stains are known: only tiles with almost no stain stay; none turns into a colour that no dye has."""
    found = STAIN_PAIRS["bluish"], np.array([3.3, 1.2])
    speck = flat((255,) * 3)
    speck[:6, :6] = (110, 75, 150)                                             # 36 of 4,096 pixels, under 1 %
    tissue = speck.copy()
    tissue[:7, :6] = (110, 75, 150)
    tiles = np.stack([flat((255,) * 3), speck, tissue, flat((0,) * 3), flat((170, 90, 150)), one_stain(1)])
    before = tiles.copy()
    got, changed = tiling.macenko(tiles, found)
    assert changed.tolist() == [False, False, True, True, True, True] and (got[:2] == tiles[:2]).all() and (tiles == before).all()
    assert got[3].max() < 40 and got[2][-1, -1].min() > 235                    # black stays dark, glass bright
    assert (got[4:].astype(int)[..., 1] <= got[4:].astype(int)[..., [0, 2]].min(-1) + 25).all()        # never green
    empty, none = tiling.macenko(tiles[:0], found)
    assert empty.shape == (0, 64, 64, 3) and none.shape == (0,)
    assert all((tiling.macenko(tiles[i:i + 1], found)[0][0] == got[i]).all() for i in range(len(tiles)))   # alone or with others


def test_macenko_brings_real_slides_together():
    looks, seen = [], []
    for path in (real("slides", "CMU-1-Small-Region.svs"), real("her2st", "slides", "B4_r10.tif"), real("her2st", "slides", "C2_r11.tif")):
        slide = tiling.open_slide(path)
        mpp, _ = tiling.slide_mpp(slide, .5, path.stem)
        arrays, _ = tiling.find_tiles(path, path.stem, dict(tile_um=128., mpp=mpp, min_tissue=.5, max_tiles=8000, seed=0))
        tile, coords = float(arrays["tile"]), arrays["coords"]
        stains, top = tiling.slide_stains(slide, coords, tile, 256, 0)
        assert stains[0, 0] > stains[1, 0] and (stains > .05).all() and 15 < degrees_between(*stains[:, None])[0] < 45      # red is haematoxylin's
        tiles = np.concatenate([tiling.read_tiles(slide, coords[i:i + 1], tile, 256) for i in range(0, len(coords), 3)])
        out, changed = tiling.macenko(tiles, (stains, top))
        assert changed.all() and 80 < out.mean() < 230
        after = tiling.macenko_stains(tiling.optical_density(out[:, ::4, ::4].reshape(-1, 3)))
        assert degrees_between(after[0], np.array(tiling.REFERENCE)).max() < 4
        for kept, x in ((seen, tiles), (looks, out)):
            dark = x.reshape(-1, 3)[(tiles.reshape(-1, 3).max(1) < 200)]
            kept.append(dark.astype(float).mean(0) / dark.mean())              # hue of the stained pixels
    spread = [np.std(kept, 0).mean() for kept in (seen, looks)]
    assert spread[1] < .5 * spread[0]


def test_saturation_is_colorsys_and_its_median_brute_force():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (14, 17, 3)).astype(np.uint8)
    rgb[3], rgb[5] = 0, 77
    each = np.array([[round(255 * colorsys.rgb_to_hsv(*p / 255)[1] + 1e-9) for p in row] for row in rgb])
    wide = np.pad(each, 3, mode="edge")
    want = np.array([[np.median(wide[y:y + 7, x:x + 7]) for x in range(17)] for y in range(14)])
    assert (tiling.saturation_map(rgb) == want).all()


def test_tissue_of_a_fixed_saturation():
    rgb, truth = painted()
    everywhere = np.ones(truth.shape, bool)
    mask, threshold = tiling.find_tissue(rgb, everywhere, "saturation", 8)
    assert threshold == 8 and overlap(mask, truth) > .95
    field = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(60, 70, 1)), (4, 4, 0))
    spots = (243 - [0, 1, 0] * (9 + 60 * field)).round().clip(0, 255).astype(np.uint8)
    level, mask = tiling.saturation_map(spots) > 8, tiling.find_tissue(spots, np.ones((60, 70), bool), "saturation", 8)[0]
    window = np.lib.stride_tricks.sliding_window_view
    closed = window(window(level, (4, 4)).any((2, 3)), (4, 4)).all((2, 3))     # every square of 4 that holds the pixel meets tissue
    assert (closed == mask[3:-3, 3:-3]).all() and (mask | ~level).all() and (mask != level).sum() > 20
    otsu, threshold = tiling.find_tissue(rgb, everywhere, "saturation")
    assert threshold == tiling.otsu_threshold(tiling.saturation_map(rgb)) and overlap(otsu, truth) > .6
    for color, want in (((243, 243, 243), 0), (H_E["pale eosin"], 1), ((128, 128, 128), 0), (INK["blue"], 1)):       # pen counts, there
        assert tiling.find_tissue(np.full((30, 40, 3), color, np.uint8), np.ones((30, 40), bool), "saturation", 8)[0].mean() == want
    assert not tiling.find_tissue(rgb, ~everywhere, "saturation")[0].any()
    hole = np.full((40, 40, 3), H_E["eosin"], np.uint8)
    assert tiling.find_tissue(hole, np.arange(1600).reshape(40, 40) % 40 < 20, "saturation", 8)[0].sum() == 800     # only what was scanned


def test_small_pieces_are_dropped():
    mask = ndimage.gaussian_filter(np.random.default_rng(0).random((60, 80)), 1) > .55
    pieces, left = [], {tuple(p) for p in np.argwhere(mask)}
    while left:                                                                # flood fill
        piece, todo = set(), [left.pop()]
        while todo:
            y, x = todo.pop()
            piece.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        pieces.append(piece)
    sizes = sorted(map(len, pieces))
    assert 8 < len(sizes) < ndimage.label(mask)[1]                             # some hang together by a corner alone
    for least in (0, sizes[0] + 1, sizes[len(sizes) // 2], sizes[-1], sizes[-1] + 1):
        want = {p for piece in pieces if len(piece) >= least for p in piece}
        assert {tuple(p) for p in np.argwhere(tiling.drop_pieces(mask, least))} == want
    rgb, truth = painted()                                                     # 80 x 90 and 60 x 60 pixels of 8 µm
    ellipse = truth & (np.arange(200) < 118)
    assert overlap(tiling.find_tissue(rgb, np.ones(truth.shape, bool), least=4500)[0], ellipse) > .9


def test_the_rule_of_tissue_is_part_of_the_tiles_and_the_usual_one_is_as_before(two_slides, capsys):
    run = lambda *a: tiling.main(["tiles", str(two_slides), *a])
    assert run() == 0
    first, settings = folder_bytes(two_slides, ".npz"), json.loads(str(np.load(two_slides / "tiles" / "a.npz")["settings"]))
    assert set(settings) == {"tile_um", "min_tissue", "max_tiles", "mpp", "seed", "file"} == {*json.loads(
        (two_slides / "tiles" / "settings.json").read_text()), "file"}         # tiles made before these options stay valid
    made = {p: p.stat().st_mtime_ns for p in two_slides.rglob("*.npz")}
    assert run("--tissue", "stain", "--min-area", "0", "--tissue-threshold", "otsu") == 0
    assert {p: p.stat().st_mtime_ns for p in made} == made
    capsys.readouterr()
    assert run("--tissue", "saturation", "--tissue-threshold", "8") == 0
    assert "2 slides are made anew: tissue stain -> saturation, tissue_threshold otsu -> 8.0" in capsys.readouterr().out
    cut = np.load(two_slides / "tiles" / "a.npz")
    assert cut["threshold"] == 8 and json.loads(str(cut["settings"]))["tissue"] == "saturation" and run() == 0
    assert np.load(two_slides / "tiles" / "a.npz")["threshold"] == 8           # as it was made
    assert tiling.main(["doctor", str(two_slides)]) == 0 and "fixed threshold 8 of saturation" in capsys.readouterr().out
    assert run("--tissue-threshold", "otsu") == 0 and np.load(two_slides / "tiles" / "a.npz")["threshold"] > 8
    assert run("--tissue", "stain") == 0 and folder_bytes(two_slides, ".npz") == first
    n = {}                                                                     # an ellipse of 360 x 320 µm is 7.2 tiles of 112 µm, a square of 240 µm 4.6
    for area in (0, 3.5, 6, 12):
        assert run("--min-area", str(area)) == (area == 12)
        n[area] = len(np.load(two_slides / "tiles" / "a.npz")["coords"])
    assert n[0] == n[3.5] > n[6] > n[12] == 0 and "--min-area is too high" in capsys.readouterr().err
    with pytest.raises(tiling.InputError, match="--tissue-threshold 8 is a level of saturation: add --tissue saturation"):
        run("--tissue-threshold", "8")


def stained_slides(folder):
    """slides/a.tif and b.tif: one tissue, two stains; dabs of 8 pixels on glass."""
    for name, pair in (("a", "reddish"), ("b", "bluish")):
        rgb = np.full((1280, 1600, 3), 243, np.uint8)
        dabs = np.kron(stained(STAIN_PAIRS[pair], n=100 * 120)[0].reshape(100, 120, 3), np.ones((8, 8, 1), np.uint8))
        rgb[200:1000, 300:1260] = dabs
        write_pyramid(folder / "slides" / f"{name}.tif", rgb)


def tiny_encoder(path, seed=0):
    """A small network as a TorchScript file."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 9, 4), torch.nn.ReLU(), torch.nn.Conv2d(12, 7, 5, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                              torch.nn.Flatten()).eval()
    torch.jit.script(net).save(path)
    return net


def pixels_of(cohort, name, px=224):
    """Every tile of a slide, read one by one; the slide, its coords and the edge of a tile."""
    slide, (arrays, _) = tiling.open_slide(cohort / "slides" / f"{name}.tif"), tiling.tiles_of(cohort, name)
    tile, coords = float(arrays["tile"]), arrays["coords"]
    return np.concatenate([tiling.read_tiles(slide, [c], tile, px) for c in coords]), slide, coords, tile


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_colour_is_part_of_the_features_and_of_no_tile(two_slides, capsys):
    stained_slides(two_slides)
    net = tiny_encoder(two_slides / "tiny.pt")
    run = lambda *a: tiling.main(["features", str(two_slides), "--device", "cpu", "--encoder", str(two_slides / "tiny.pt"), *a])
    folder = two_slides / "features" / "tiny"
    assert run("--precision", "float32") == 0
    plain, tiles = folder_bytes(folder, ".npy"), folder_bytes(two_slides / "tiles", ".npz")
    assert "stains" not in json.loads((folder / "a.json").read_text())
    capsys.readouterr()
    assert run("--colour", "macenko", "--workers", "1") == 0
    assert "2 slides are made anew: colour none -> macenko" in capsys.readouterr().out
    made, side = folder_bytes(folder, ".npy"), json.loads((folder / "a.json").read_text())
    assert made != plain and folder_bytes(two_slides / "tiles", ".npz") == tiles and side["colour"] == "macenko"
    means = []
    for name, pair in (("a", "reddish"), ("b", "bluish")):
        pixels, slide, coords, tile = pixels_of(two_slides, name)
        found = tiling.slide_stains(slide, coords, tile, 224, 0)
        side = json.loads((folder / f"{name}.json").read_text())["stains"]
        assert np.allclose(side["vectors"], found[0], atol=1e-4) and side["unchanged"] == 0 and degrees_between(found[0], STAIN_PAIRS[pair]).max() < 2
        normal = tiling.macenko(pixels, found)[0]
        with torch.no_grad():
            assert relative(np.load(folder / f"{name}.npy"), net(tiling.normalise(torch.from_numpy(normal)))) < 1e-3
        means.append((pixels.mean((0, 1, 2)), normal.mean((0, 1, 2))))
    (seen_a, normal_a), (seen_b, normal_b) = means
    assert np.abs(normal_a - normal_b).max() < 2 < 5 < np.abs(seen_a - seen_b).max()
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert run() == 0 and {p: p.stat().st_mtime_ns for p in times} == times    # as it was made
    for p in folder.glob("*.npy"):
        p.unlink()
    assert run("--workers", "4") == 0 and folder_bytes(folder, ".npy") == made
    one = np.full((1280, 1600, 3), 243, np.uint8)
    one[200:900, 300:1400] = (170, 90, 150)                                    # one colour: no two stains
    write_pyramid(two_slides / "slides" / "c.tif", one)
    capsys.readouterr()
    assert run() == 0
    n, side = len(np.load(folder / "c.npy")), json.loads((folder / "c.json").read_text())
    assert side["stains"] == dict(vectors=None, top=None, unchanged=n) and n > 10
    assert f"--colour macenko: {n} tiles hold too little stain and keep their colours, of c" in capsys.readouterr().out
    (two_slides / "slides" / "c.tif").unlink()
    assert run("--colour", "none") == 0 and {k: v for k, v in folder_bytes(folder, ".npy").items() if k != "c.npy"} == plain


def test_stretch_worked_by_hand():
    """Each channel of each tile from its lowest to its highest value, as 0..255; a channel of one value is 0."""
    tile = np.zeros((2, 1, 2, 3), np.uint8)
    tile[0, 0], tile[1, 0] = [(10, 50, 7), (110, 100, 7)], [(0, 20, 255), (255, 220, 0)]
    want = [[[[0, 0, 0], [255, 255, 0]]], [[[0, 0, 255], [255, 255, 0]]]]
    assert tiling.stretch(tile).tolist() == want and tiling.stretch(tile).dtype == np.uint8
    rng = np.random.default_rng(0)
    tiles = rng.integers(90, 200, (4, 9, 7, 3)).astype(np.uint8)
    shifted = tiles.astype(float) - tiles.min((1, 2), keepdims=True)
    assert np.abs(tiling.stretch(tiles) - 255 * shifted / shifted.max((1, 2), keepdims=True)).max() <= .5 + 1e-4
    assert tiling.stretch(tiles[:0]).shape == (0, 9, 7, 3)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_features_of_stretched_tiles_lie_beside_the_others(two_slides):
    net = tiny_encoder(two_slides / "tiny.pt")
    run = lambda verb, *a: tiling.main([verb, str(two_slides), "--device", "cpu", "--encoder", str(two_slides / "tiny.pt"), "--precision", "float32", *a])
    assert run("supertiles", "--seed", "3") == 0
    plain = folder_bytes(two_slides / "features" / "tiny", ".npy")
    assert run("supertiles", "--colour", "stretch") == 0
    assert folder_bytes(two_slides / "features" / "tiny", ".npy") == plain
    beside = two_slides / "features" / "tiny-stretch"
    assert folder_bytes(beside, ".npy") != plain and json.loads((beside / "a.json").read_text())["colour"] == "stretch"
    seeds = [json.loads((two_slides / d / name / "settings.json").read_text())["seed"] for d in ("features", "supertiles") for name in ("tiny", "tiny-stretch")]
    assert seeds == [3] * 4                                                    # but for the colour made as those
    with torch.no_grad():
        pixels = pixels_of(two_slides, "a")[0]
        assert relative(np.load(beside / "a.npy"), net(tiling.normalise(torch.from_numpy(tiling.stretch(pixels))))) < 1e-3
    assert run("features") == 0 and folder_bytes(two_slides / "features" / "tiny", ".npy") == plain


def save_encoder(path, seed=0, **changes):
    """An encoder checkpoint as histcode.py pretrain writes it; returns its network."""
    net = random_resnet(3)
    torch.manual_seed(seed)
    torch.nn.init.normal_(net.layer3[5].bn3.bias, 0, .5)
    saved = dict(version=1, source="HistCode", method="adco", encoder=net.state_dict(), stages=3, n_features=1024, projection={}, settings={},
                 mean=(.7, .5, .6), std=(.2, .25, .15), tile_px=256, tile_um=128.0, colour="none")
    torch.save({k: v for k, v in {**saved, **changes}.items() if v is not None}, path)
    return net


def test_features_of_an_encoder_file(two_slides, capsys):
    file = two_slides / "adco.pt"
    run = lambda verb, *a: tiling.main([verb, str(two_slides), "--device", "cpu", "--encoder", str(file), "--precision", "float32", *a])
    stained_slides(two_slides)
    net = save_encoder(file, colour="macenko")
    assert run("doctor") == 0 and "resampled to 0.5; a tile is 128 µm = 256.0 px" in capsys.readouterr().out
    assert run("supertiles") == 0                                              # its tile size and its colours, unasked
    folder, by = two_slides / "features" / "adco", tiling.tiles_of(two_slides, "a")[1]
    side = json.loads((folder / "a.json").read_text())
    assert by["tile_um"] == 128 and side["tile_px"] == 256 and side["colour"] == "macenko" and side["encoder"] == "adco"
    assert side["weights"].startswith("adco.pt sha256 ") and (two_slides / "supertiles" / "adco" / "a.npz").is_file()
    pixels, slide, coords, tile = pixels_of(two_slides, "a", 256)
    pixels, changed = tiling.macenko(pixels, tiling.slide_stains(slide, coords, tile, 256, 0))
    assert changed.all()
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - torch.tensor([.7, .5, .6]).view(3, 1, 1)) / torch.tensor([.2, .25, .15]).view(3, 1, 1)
    with torch.no_grad():
        want = net(x).numpy()
    got = np.load(folder / "a.npy")
    assert got.shape == want.shape == (len(pixels), 1024) and relative(got, want) < 1e-3
    made = {p: p.stat().st_mtime_ns for p in folder.glob("*.npy")}
    assert run("features") == 0 and {p: p.stat().st_mtime_ns for p in made} == made
    capsys.readouterr()
    save_encoder(file, 1, colour="macenko")                                    # another file of the same name
    assert run("features") == 0
    assert re.search("2 slides are made anew: weights adco.pt sha256 .* -> adco.pt sha256", capsys.readouterr().out)
    assert relative(np.load(folder / "a.npy"), got) > .01
    for argv, words in ((["--colour", "none"], "--colour none: .*adco.pt learned from --colour macenko"), (["--weights", "random"], "adco.pt is network and weights"),
                        (["--tile-um", "112"], "adco.pt learned from tiles of 128 µm, --tile-um is 112: --tile-um 128 cuts them anew")):
        with pytest.raises(tiling.InputError, match=words):
            run("features", *argv)
    assert tiling.main(["tiles", str(two_slides), "--tile-um", "112"]) == 0
    with pytest.raises(tiling.InputError, match="learned from tiles of 128 µm, those in .*tiles are of 112: --tile-um 128 cuts them anew"):
        run("features")
    assert run("features", "--tile-um", "128") == 0                            # the mend works


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_file_gives_its_modules_features(two_slides):
    net = tiny_encoder(two_slides / "plain.pt")
    torch.jit.freeze(torch.jit.script(net)).save(two_slides / "frozen.pt")     # no parameters left
    torch.jit.trace(net, torch.zeros(1, 3, 224, 224)).save(two_slides / "traced.pt")
    for name, precision, error in (("plain", "float32", 1e-3), ("frozen", "bfloat16", .02), ("frozen", "float32", 1e-3), ("traced", "bfloat16", .02)):
        assert tiling.main(["features", str(two_slides), "--encoder", str(two_slides / f"{name}.pt"), "--device", "cpu", "--precision", precision]) == 0
        pixels, _, _, tile = pixels_of(two_slides, "b")
        with torch.no_grad():
            want = net(tiling.normalise(torch.from_numpy(pixels))).numpy()
        got = np.load(two_slides / "features" / name / "b.npy")
        assert tile == pytest.approx(224) and got.shape == want.shape == (len(pixels), 7) and relative(got, want) < error


class Odd(torch.nn.Module):
    """A network that is no encoder, of one kind or another."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        y = x.flatten(1)[:, :5]
        if self.kind == "four":
            y = y[:, :, None, None]
        if self.kind == "nan":
            y = y / 0
        if self.kind == "batch":
            y = y[:1]
        if self.kind == "squeeze":
            y = y.squeeze(0)
        if self.kind == "few" and x.shape[0] > 2:
            y = y[:2]
        if self.kind == "late" and bool((x.abs().sum() > 0).item()):
            y = y / 0
        if self.kind == "fails" and x.shape[0] > 2:
            y = y.view(7, 7)
        return y


class Two(torch.nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_that_gives_no_features_says_why(two_slides, tmp_path, capsys):
    file = tmp_path / "odd.pt"
    run = lambda: tiling.main(["features", str(two_slides), "--encoder", str(file), "--device", "cpu", "--precision", "float32"])
    for kind, words in (("four", r"2 tiles of 224 px give \(2, 5, 1, 1\)"), ("nan", "a black tile gives NaN"), ("batch", r"2 tiles of 224 px give \(1, 5\)"),
                        ("squeeze", r"1 tile of 224 px give \(5,\)"), ("two", "it gives a tuple, not one tensor")):
        torch.jit.script(Two() if kind == "two" else Odd(kind)).save(file)
        with pytest.raises(tiling.InputError, match=r"odd.pt: can't map \(B, 3, 224, 224\) to \(B, D\): " + words):
            run()
    assert not (two_slides / "tiles").exists()
    for kind, words in (("few", r"failed: a: the encoder gives \(2, 5\) for 8 tiles, not \(8, 5\)"),
                        ("late", "failed: a: the encoder gives NaN or infinite features"),
                        ("fails", "failed: a: the encoder fails on 8 tiles: ")):
        torch.jit.script(Odd(kind)).save(file)
        assert run() == 1 and re.search(words, said := capsys.readouterr().err) and "2 of 2 slides failed" in said
        assert not list((two_slides / "features").rglob("*.npy"))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_json_beside_a_torchscript_says_what_it_wants(two_slides, capsys):
    file, side = two_slides / "tiny.pt", two_slides / "tiny.pt.json"
    net, want = tiny_encoder(file), dict(mean=[.7, .5, .6], std=[.2, .25, .15], tile_px=192, tile_um=128)
    run = lambda *argv: tiling.main(["features", str(two_slides), "--encoder", str(file), "--device", "cpu", "--precision", "float32", *argv])
    side.write_text(json.dumps(want))
    assert run() == 0
    pixels, _, _, tile = pixels_of(two_slides, "a", 192)
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(want["mean"]).view(3, 1, 1)) / torch.tensor(want["std"]).view(3, 1, 1)
    with torch.no_grad():
        assert tile == pytest.approx(256) and relative(np.load(two_slides / "features" / "tiny" / "a.npy"), net(x)) < 1e-3
    capsys.readouterr()
    side.write_text(json.dumps(dict(want, mean=[.5, .5, .5])))                 # the same network, other features
    assert run() == 0 and re.search("2 slides are made anew: weights tiny.pt sha256 .* -> tiny.pt sha256", capsys.readouterr().out)
    with pytest.raises(tiling.InputError, match="tiny.pt learned from tiles of 128 µm, --tile-um is 112"):
        run("--tile-um", "112")
    for said in ("[]", "no", '{"mean": [1, 2]}', '{"std": [0, 1, 1]}', '{"tile_px": 224.5}', '{"tile_um": "112"}', '{"colour": "reinhard"}',
                 '{"means": [1, 1, 1]}',
                 '{"mean": [NaN, 1, 1]}', '{"tile_px": true}'):
        side.write_text(said)
        with pytest.raises(tiling.InputError, match="tiny.pt.json: .* can't be meant: wanted a JSON object"):
            run()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_files_that_are_no_encoder_say_one_line(two_slides, tmp_path):
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "nothing.pt").write_bytes(b"")
    torch.save(random_resnet(3).state_dict(), tmp_path / "state.pt")
    torch.save(random_resnet(3), tmp_path / "object.pt")
    save_encoder(tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:9999])
    save_encoder(tmp_path / "resnet50.pt")
    for name, changes in (("new", dict(version=2)), ("mean", dict(mean=None)), ("colour", dict(colour="reinhard")), ("stages", dict(stages=4)),
                          ("px", dict(tile_px="x")), ("px0", dict(tile_px=0)), ("short", dict(mean=[.5])), ("std", dict(std=(0, 1, 1))),
                          ("um", dict(tile_um=[1])),
                          ("nine", dict(stages=9))):
        save_encoder(tmp_path / f"{name}.pt", **changes)
    torch.jit.script(torch.nn.Conv2d(3, 4, 3)).save(tmp_path / "map.pt")
    for name, words in (("text", "text.pt: not a whole encoder file"), ("nothing", "not a whole encoder file"), ("half", "half.pt: not a whole encoder file"),
                        ("object", "not a whole encoder file"), ("state", "no encoder's checkpoint; .*--weights .*state.pt"), ("new", "of version 2, this program reads version 1"),
                        ("mean", "the checkpoint has no mean"), ("colour", "colour 'reinhard' can't be meant"), ("px", "tile_px 'x' can't"),
                        ("px0", "tile_px 0 "),
                        ("short", r"mean .0.5. can't"), ("std", "std "), ("um", r"tile_um .1. can't"), ("nine", "stages 9 can't be meant"),
                        ("absent", "no such file, nor one of resnet50, resnet50-stage3"),
                        ("stages", "stages.pt: [0-9]+ of [0-9]+ entries are missing"), ("resnet50", "rename it"), ("map", "map.pt: can't map .* to .B, D.")):
        with pytest.raises(tiling.InputError, match=words) as e:
            tiling.main(["features", str(two_slides), "--device", "cpu", "--encoder", str(tmp_path / f"{name}.pt")])
        assert "\n" not in str(e.value)
    assert not (two_slides / "features").exists() and not (two_slides / "tiles").exists()


# =====================================================================================================================
# The simulated cohort
# Authorities: OpenSlide (what it opens, its mpp and colours), Pillow's JPEG, and the cohort's own truth.
# =====================================================================================================================
SMALL = dict(patients=6, edge_px=600)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "demo"
    tiling.simulate_cohort(folder, workers=2, **SMALL)
    return folder


def read_csv(path):
    with open(path) as f:
        return list(csv.DictReader(f))


def test_layout(drawn):
    rows = read_csv(drawn / "samples.csv")
    assert list(rows[0]) == ["slide", "patient", "project", "sample", "sample_type", "tumor", "msi"]
    assert len({r["slide"] for r in rows}) == len(rows) and {r["project"] for r in rows} == set(tiling.SIM_MPP)
    assert {r["sample_type"] for r in rows} == {"Primary Tumor", "Solid Tissue Normal"}
    for r in rows:
        assert r["sample"].split("-")[1] == ("01A" if r["tumor"] == "1" else "11A")
        assert (drawn / "slides" / f"{r['slide']}.tif").exists() and (drawn / "points" / f"{r['slide']}.csv").exists()
    assert {r["sample"] for r in read_csv(drawn / "expression.csv")} == {r["sample"] for r in rows}
    assert not list(drawn.rglob("*.tmp")) and "SIMULATED" in (drawn / "README.md").read_text()


def test_full_cohort_plan():
    slides = tiling.plan_cohort(48, 0)
    patients = {s["patient"]: (s["project"], s["msi"]) for s in slides}
    assert len(slides) == 68 and len(patients) == 48 and sum(not s["tumor"] for s in slides) == 12
    for project in tiling.SIM_MPP:
        msi = [m for p, m in patients.values() if p == project]
        assert [msi.count(m) for m in ("MSI-H", "MSI-L", "MSS")] == [5, 2, 17]
    genes = " ".join(tiling.PROGRAMMES.values()).replace("-", "").split()
    assert len(genes) == len(set(genes)) and 290 <= len(genes) <= 320


def test_a_normal_slide_for_each_patient():
    slides = tiling.plan_cohort(10, 0, normal_in=1)
    assert {s["patient"] for s in slides if not s["tumor"]} == {s["patient"] for s in slides}


def test_outlines_hold_just_the_pixels_of_the_mask():
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal((60, 80)), 3) > .05
    for mask in (blobs, rng.random((20, 30)) < .5, np.ones((3, 4), bool), np.eye(5, dtype=bool)):   # noise touches at corners
        y, x = np.mgrid[:mask.shape[0], :mask.shape[1]] + .5
        polygons = tiling.trace(mask)
        assert len(polygons) == ndimage.label(mask)[1]
        inside = stats.inside(np.stack([x.ravel(), y.ravel()], 1), [[np.array(r, float) for r in p] for p in polygons])
        np.testing.assert_array_equal(inside.reshape(mask.shape), mask)
        for ring in itertools.chain(*polygons):
            assert ring[0] == ring[-1] and all((a == c) != (b == d) for (a, b), (c, d) in zip(ring, ring[1:]))
    square = np.ones((5, 5), bool)
    square[2, 2] = False
    (outer, hole), = tiling.trace(square)                                # the outline first; GeoJSON wants it so
    assert sorted(outer[:-1]) == [[0, 0], [0, 5], [5, 0], [5, 5]] and sorted(hole[:-1]) == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert tiling.trace(np.zeros((4, 4), bool)) == []


def test_the_outline_of_a_tumour_holds_its_cells(drawn):
    for r in read_csv(drawn / "samples.csv"):
        path = drawn / "regions" / f"{r['slide']}.geojson"
        assert path.is_file() == (r["tumor"] == "1")
        if path.is_file():
            points = [p for p in read_csv(drawn / "points" / f"{r['slide']}.csv") if p["cell"] == "tumour"]
            inside = stats.inside([[float(p["x"]), float(p["y"])] for p in points], stats.read_rings(json.loads(path.read_text())))
            assert len(points) > 10 and inside.mean() > .95              # the outline goes in steps of 8 px


def test_openslide_reads_slides(drawn):
    for r in read_csv(drawn / "samples.csv"):
        with openslide.OpenSlide(drawn / "slides" / f"{r['slide']}.tif") as slide:
            assert slide.properties["openslide.vendor"] == "generic-tiff"
            assert slide.level_dimensions == ((600, 600), (300, 300), (150, 150))
            for axis in "xy":
                assert abs(float(slide.properties[f"openslide.mpp-{axis}"]) - tiling.SIM_MPP[r["project"]]) < 1e-3


def test_colours_survive_the_file(tmp_path):
    rgb, *_ = tiling.draw_slide(0, 1, tiling.plan_cohort(6, 0)[0], 600)
    tiling.write_slide(tmp_path / "a.tif", rgb, .5)
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        for level, factor in enumerate((1, 2, 4)):
            drawn, buffer = Image.fromarray(rgb).reduce(factor), io.BytesIO()
            read = np.asarray(slide.read_region((0, 0), level, drawn.size).convert("RGB")).astype(float)
            assert np.abs((read - drawn).mean((0, 1))).max() < .5        # no colour cast
            drawn.crop((0, 0, 128, 128)).save(buffer, "JPEG", quality=85, subsampling="4:2:0")
            alone = np.asarray(Image.open(buffer)).astype(float)         # JPEG's own loss, and no other
            assert np.abs(read[:112, :112] - alone[:112, :112]).max() <= 1


def test_points_lie_on_dark_pixels_of_tissue(drawn):
    for r in read_csv(drawn / "samples.csv"):
        points = read_csv(drawn / "points" / f"{r['slide']}.csv")
        with openslide.OpenSlide(drawn / "slides" / f"{r['slide']}.tif") as slide:
            rgb = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")).astype(int)
        colour = rgb[[int(p["y"]) for p in points], [int(p["x"]) for p in points]]
        assert (colour[:, 0] < 190).mean() > .99                        # red is what haematoxylin takes away
        assert .5 < (rgb.min(2) < 225).mean() < .75 or r["tumor"] == "0"
        assert {p["cell"] for p in points} <= set(tiling.NUCLEI)
        assert (r["tumor"] == "1") == any(p["cell"] == "tumour" for p in points)


def test_truth_counts_the_points(drawn):
    for r in read_csv(drawn / "truth" / "slides.csv"):
        cells = [p["cell"] for p in read_csv(drawn / "points" / f"{r['slide']}.csv")]
        for cell in tiling.NUCLEI:
            assert int(r[cell]) == cells.count(cell)
            assert np.isclose(float(r[f"{cell}_per_mm2"]), cells.count(cell) / float(r["tissue_mm2"]), rtol=1e-4)


def test_same_bytes_for_any_number_of_workers(drawn, tmp_path):
    again = tmp_path / "again"
    tiling.simulate_cohort(again, workers=1, **SMALL)
    files = sorted(p.relative_to(drawn) for p in drawn.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert not filecmp.cmpfiles(drawn, again, files, shallow=False)[1]


def test_genes_follow_the_truth():
    rng = np.random.default_rng(1)      # densities as drawn slides have them, enough of them to see R
    truth = [dict(sample=f"s{i}", tumor=1, msi="MSI-H" if i % 5 == 0 else "MSS",
                  **{f"{c}_per_mm2": 10 ** rng.uniform(2, 3.3) for c in tiling.NUCLEI}) for i in range(1500)]
    expression, genes = tiling.simulate_expression(truth, 0)
    values = np.log10(1 + np.array([list(r.values())[1:] for r in expression], float))
    for programme in tiling.PROGRAMMES:
        content = np.array([float(r["msi"] == "MSI-H") if programme == "msi" else
                            np.log10(r.get(f"{programme}_per_mm2", 1) + tiling.DENSITY_FLOOR) for r in truth])
        content = content if content.std() else rng.standard_normal(len(truth))
        for j, gene in enumerate(genes):
            if gene["programme"] == programme:
                assert abs(np.corrcoef(content, values[:, j])[0, 1] - gene["true_r"]) < .11, gene
    assert all(np.median(values[:, j]) == 0 for j, g in enumerate(genes) if g["programme"] == "silent")


def test_lymphocytes_predict_cd3(drawn):
    truth = read_csv(drawn / "truth" / "slides.csv")
    density, cd3 = [], []
    for row in read_csv(drawn / "expression.csv"):
        mine = [float(r["lymphocyte_per_mm2"]) for r in truth if r["sample"] == row["sample"]]
        density.append(np.mean(np.log10(np.array(mine) + tiling.DENSITY_FLOOR)))
        cd3.append(np.mean([np.log10(1 + float(row[g])) for g in ("CD3D", "CD3E", "CD3G")]))
    assert np.corrcoef(density, cd3)[0, 1] > .85       # 8 samples; > .95 in the full cohort


def test_refuses_a_foreign_folder_and_keeps_a_complete_one(drawn, tmp_path):
    (tmp_path / "mine.txt").write_text("data of somebody")
    with pytest.raises(ValueError, match="not a simulated cohort"):
        tiling.simulate_cohort(tmp_path, **SMALL)
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not a simulated cohort"):
        tiling.simulate_cohort(tmp_path, **SMALL)
    with pytest.raises(ValueError, match="other settings"):
        tiling.simulate_cohort(drawn, **{**SMALL, "seed": 1})
    with pytest.raises(ValueError, match="at least 4 patients"):
        tiling.simulate_cohort(tmp_path / "new", patients=1)
    before = (drawn / "samples.csv").stat().st_mtime_ns
    tiling.simulate_cohort(drawn, **SMALL)
    assert (drawn / "samples.csv").stat().st_mtime_ns == before


# =====================================================================================================================
# stats.py
# Authorities: SciPy, scikit-learn where it is installed, plain enumeration, numbers printed in the papers.
# =====================================================================================================================


def same(ours, theirs, tolerance=1e-10):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


def tcga_table():
    if not REAL_DATA:
        pytest.skip("REAL_DATA is not set")
    with gzip.open(os.path.join(REAL_DATA, "tcga", "samples_description.tsv.gz"), "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    project, patient = rows[0].index("Project.ID"), rows[0].index("Case.ID")
    return np.array([r[patient] for r in rows[1:]]), np.array([r[project] for r in rows[1:]])


def cohort(rng, n_patients, n_projects):
    """Patients with 1 to 4 samples, rows shuffled, projects of uneven size."""
    organ = np.minimum(rng.geometric(0.3, n_patients) - 1, n_projects - 1)
    who = rng.permutation(np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients)))
    return np.array([f"TCGA-{w:04d}" for w in who]), np.array([f"P{organ[w]}" for w in who])


def patients_per_fold(patients, fold, k):
    return np.bincount([fold[patients == p][0] for p in np.unique(patients)], minlength=k)


# ----- Correlation

@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64])
@pytest.mark.parametrize("n", [2, 3, 10, 301])
def test_pearson_and_spearman_equal_scipy(dtype, n):
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n, 600)) * 50                       # more genes than one block
    b = a * rng.normal(size=600) + 80 * rng.normal(size=(n, 600))
    a, b = a.astype(dtype), b.astype(dtype)
    genes = [g for g in range(0, 600, 7) if np.ptp(a[:, g]) and np.ptp(b[:, g])]
    x, y = a.astype(np.float64), b.astype(np.float64)
    same(stats.pearson(a, b)[genes], [scipy.stats.pearsonr(x[:, g], y[:, g])[0] for g in genes])
    same(stats.spearman(a, b)[genes], [scipy.stats.spearmanr(x[:, g], y[:, g])[0] for g in genes])
    r = stats.pearson(a[:, genes[0]], b[:, genes[0]])
    assert isinstance(r, float) and r == pytest.approx(stats.pearson(a, b)[genes[0]], abs=1e-14)


def test_spearman_shares_ranks_on_ties():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 4, (30, 50)), rng.integers(0, 3, (30, 50)).astype(np.float32)
    same(stats.spearman(a, b), [scipy.stats.spearmanr(a[:, g], b[:, g])[0] for g in range(50)])


def test_pearson_keeps_its_digits_under_large_offsets():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 500, 20))
    truth = stats.pearson(a, b)
    same(stats.pearson(a + 2.0**20, b - 2.0**20), truth, 1e-8)              # what is lost is lost in the input
    exact, other = np.round(rng.normal(size=(2, 20000, 3)) * 64) / 64       # survives the offset without rounding
    same(stats.pearson(exact + 2.0**46, other), stats.pearson(exact, other), 1e-14)
    same(stats.pearson(a * 1e200, b * 1e-200), truth, 1e-12)                # squares of these leave float64
    single = (a + 1e6).astype(np.float32)                                   # float32, summed in float64
    same(stats.pearson(single, b), [scipy.stats.pearsonr(single[:, g].astype(float), b[:, g])[0] for g in range(20)])


@pytest.mark.parametrize("correlation", [stats.pearson, stats.spearman])
def test_a_gene_without_variation_has_no_correlation(correlation):
    rng = np.random.default_rng(3)
    n = 40
    y = rng.normal(size=n)
    wobble = 1 + rng.integers(-1, 2, n) * np.finfo(np.float64).eps
    wobble32 = (1 + rng.integers(-1, 2, n) * np.finfo(np.float32).eps).astype(np.float32)
    for column in [np.zeros(n), np.full(n, 0.1), 0.1 * wobble, 1e6 * wobble, -1e-9 * wobble, 5 + 1e-13 * rng.random(n), np.full(n, 7), np.ones(n, bool),
                   np.full(n, 0.1, np.float32), np.float32(5) * wobble32, np.r_[np.nan, y[1:]], np.r_[y[1:], np.nan],
                   np.r_[y[1:], np.inf], np.r_[np.inf, y[1:]], np.r_[-np.inf, y[1:]]]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert math.isnan(correlation(column, y)) and math.isnan(correlation(y, column))
            table = correlation(np.stack([y, y], 1), np.stack([column, np.arange(n).astype(column.dtype)], 1))
        assert np.isnan(table[0]) and (column.dtype == bool or not np.isnan(table[1]))     # its neighbour keeps its value
    assert abs(correlation(np.r_[1.0, np.zeros(n - 1)], y)) <= 1            # one sample that differs is variation
    assert not math.isnan(correlation(1 + 1e-9 * y, y))
    for few in (0, 1):
        assert np.isnan(correlation(np.ones((few, 3)), np.ones((few, 3)))).all()


def test_correlation_is_clipped_symmetric_and_blind_to_order_and_scale():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 100, 300))
    order = rng.permutation(100)
    for correlation in (stats.pearson, stats.spearman):
        r = correlation(a, b)
        same(correlation(a[order], b[order]), r, 1e-13)
        same(correlation(b, a), r, 1e-13)
        same(correlation(3 * a - 7, -2 * b), -r, 1e-12)
        assert np.abs(correlation(a, 0.3 * a)).max() <= 1 and np.abs(correlation(a, -a)).max() <= 1


def test_pearson_p_equals_scipy():
    rng = np.random.default_rng(5)
    for n in (3, 4, 10, 44, 1046):
        a, b = rng.normal(size=(2, n, 20))
        theirs = [scipy.stats.pearsonr(a[:, g], b[:, g], alternative="greater").pvalue for g in range(20)]
        same(stats.pearson_p(stats.pearson(a, b), n), theirs)


def test_pearson_p_is_the_t_far_into_both_tails():
    for n in (5, 44, 1046, 10514):
        r = np.array([-0.9999, -0.5, -1e-3, 0, 1e-3, 0.1, 0.3, 0.6, 0.9, 0.99])
        t = r * np.sqrt((n - 2) / (1 - r * r))
        np.testing.assert_allclose(stats.pearson_p(r, n), scipy.stats.t.sf(t, n - 2), rtol=1e-8, atol=1e-290)
    assert 0 < stats.pearson_p(0.95, 400) < 1e-100
    edges = stats.pearson_p(np.array([1, -1, 0, np.nan]), 44)
    same(edges, [0, 1, 0.5, np.nan])
    assert np.isnan(stats.pearson_p(0.5, 2)) and np.isnan(stats.r_threshold(0.05, 2))
    same(stats.pearson_p(np.array([0.3, 0.3, 0.3]), np.array([2, 44, 1046])), [np.nan, *(stats.pearson_p(0.3, n) for n in (44, 1046))])


def test_the_papers_smallest_significant_r():
    """HE2RNA Results: R_sign = .64 for the 44 cases of DLBC, 30,839 genes; method.md H12."""
    p = 1 - (1 - 0.05) ** (1 / 30839)
    assert f"{p:.2e}" == "1.66e-06"
    assert [round(float(r), 3) for r in stats.r_threshold(p, np.array([44, 1046]))] == [0.637, 0.143]
    for n in (3, 10, 44, 1046):
        r = np.array([-0.1, 0, 0.1, 0.5])
        same(stats.r_threshold(stats.pearson_p(r, n), n), r, 1e-9)
        t = scipy.stats.t.isf([0.9, 0.5, 0.05, 1e-6, 1e-12], n - 2)
        same(stats.r_threshold(np.array([0.9, 0.5, 0.05, 1e-6, 1e-12]), n), t / np.sqrt(n - 2 + t * t), 1e-9)
    best = np.r_[stats.r_threshold(1.6e-6, 44), np.zeros(30838)]            # the best of the 30,839 genes, on either side
    assert stats.holm_sidak(stats.pearson_p(best, 44))[0] < 0.05
    best[0] = stats.r_threshold(1.7e-6, 44)
    assert stats.holm_sidak(stats.pearson_p(best, 44))[0] > 0.05


# ----- Multiple testing

def test_holm_sidak_equals_the_step_down_loop():
    rng = np.random.default_rng(6)
    for m in (1, 2, 5, 40):
        p = np.round(rng.random(m) ** 3, 2)                                 # with ties, zeros
        adjusted, highest = {}, 0
        for i, j in enumerate(sorted(range(m), key=lambda j: p[j])):
            highest = max(highest, 1 - (1 - p[j]) ** (m - i))
            adjusted[j] = highest
        same(stats.holm_sidak(p), [adjusted[j] for j in range(m)], 1e-12)


def test_holm_sidak_worked_example():
    """By hand, m = 3: 1-.99^3, 1-.96^2, and 1-.95^1 = .05 raised to the step before."""
    same(stats.holm_sidak([0.05, 0.01, 0.04]), [0.0784, 0.029701, 0.0784], 1e-12)


def test_adjusted_p_keeps_tiny_p_edges_and_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = stats.holm_sidak(np.array([1e-30, np.nan, 1.0, 0.0, 1.0]))
    assert np.isnan(p[1]) and p[2] == p[4] == 1 and p[3] == 0
    assert p[0] == pytest.approx(3e-30, rel=1e-12, abs=0)                          # second of 4: exponent 3
    for adjust in (stats.holm_sidak, stats.benjamini_hochberg):
        rng = np.random.default_rng(7)
        p = rng.random(50) ** 4
        gaps = np.insert(p, [0, 10, 50], np.nan)
        same(adjust(gaps)[~np.isnan(gaps)], adjust(p), 1e-15)
        assert np.isnan(adjust(gaps)[np.isnan(gaps)]).all()
        assert np.isnan(adjust([np.nan, np.nan])).all() and adjust([]).shape == (0,)
        assert (adjust(p) >= p).all() and (adjust(p) <= 1).all()
        order = rng.permutation(50)
        assert (adjust(p[order]) == adjust(p)[order]).all()
        with pytest.raises(AssertionError):
            adjust([0.5, 1.5])


def test_benjamini_hochberg_equals_scipy():
    rng = np.random.default_rng(8)
    for m in (1, 2, 17, 1000):
        for p in (rng.random(m), np.round(rng.random(m) ** 4, 2), np.ones(m), np.zeros(m)):
            same(stats.benjamini_hochberg(p), scipy.stats.false_discovery_control(p), 1e-12)


# ----- Wilcoxon

@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 14, 30, 49, 50, 51, 60, 400])
def test_signed_rank_equals_scipy(n):
    rng = np.random.default_rng(n)
    for shift in (0, 0.3, 3):
        x, y = rng.normal(size=(2, n))
        x += shift
        method = "exact" if n <= 50 else "asymptotic"
        theirs = scipy.stats.wilcoxon(x, y, method=method, correction=True)
        same(stats.wilcoxon_signed_rank(x, y), theirs)
        same(stats.wilcoxon_signed_rank(y, x), theirs)
    steps = rng.choice([-2, -1, 1, 2, 3], n)                             # no zero; ties from n = 4 on
    if len(set(abs(steps))) < n:
        same(stats.wilcoxon_signed_rank(steps, np.zeros(n)), scipy.stats.wilcoxon(steps, method="asymptotic", correction=True))
    zeros = np.r_[0.0, 0.0, rng.normal(size=n)]                             # no ties, two zeros
    same(stats.wilcoxon_signed_rank(zeros, 0 * zeros), scipy.stats.wilcoxon(zeros, method="asymptotic", correction=True))
    both = rng.integers(0, 5, (2, n + 5))
    same(stats.wilcoxon_signed_rank(*both), scipy.stats.wilcoxon(*both, method="asymptotic", correction=True))


@pytest.mark.parametrize("n", range(1, 9))
def test_signed_rank_equals_all_sign_patterns(n):
    rng = np.random.default_rng(n)
    d = rng.normal(size=n) + 0.5
    ranks = scipy.stats.rankdata(abs(d))
    sums = np.array([ranks[np.array(signs, bool)].sum() for signs in itertools.product([0, 1], repeat=n)])
    w = ranks[d > 0].sum()
    p = min(1, 2 * min((sums <= w).mean(), (sums >= w).mean()))
    same(stats.wilcoxon_signed_rank(d, np.zeros(n)), (min(w, n * (n + 1) / 2 - w), p), 1e-14)


@pytest.mark.parametrize("m,n", [(1, 1), (1, 5), (2, 3), (4, 4), (7, 60), (8, 8), (8, 9), (8, 500), (9, 9), (9, 60), (60, 60)])
def test_rank_sum_equals_scipy(m, n):
    rng = np.random.default_rng(m + n)
    for x, y in [(rng.normal(size=m), rng.normal(size=n)), (rng.normal(size=m) + 1.5, rng.normal(size=n)),
                 (rng.integers(0, 6, m), rng.integers(0, 6, n)), (np.arange(m) + 1000.0, np.arange(n))]:
        same(stats.wilcoxon_rank_sum(x, y), scipy.stats.mannwhitneyu(x, y))
        same(stats.wilcoxon_rank_sum(y, x), scipy.stats.mannwhitneyu(y, x))


@pytest.mark.parametrize("m,n", [(1, 1), (1, 7), (2, 6), (3, 3), (4, 4), (5, 3), (6, 5)])
def test_rank_sum_equals_all_choices_of_ranks(m, n):
    rng = np.random.default_rng(10 * m + n)
    x, y = rng.normal(size=m) + 0.7, rng.normal(size=n)
    u = sum(i > j for i in x for j in y)
    all_u = np.array([sum(c) - m * (m + 1) / 2 for c in itertools.combinations(range(1, m + n + 1), m)])
    p = min(1, 2 * min((all_u <= u).mean(), (all_u >= u).mean()))
    same(stats.wilcoxon_rank_sum(x, y), (u, p), 1e-13)


def test_wilcoxon_edges_are_defined():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in (1, 5, 80):
            assert stats.wilcoxon_signed_rank(np.ones(n), np.ones(n)) == (0.0, 1.0)
            assert stats.wilcoxon_rank_sum(np.ones(n), np.ones(n)) == (n * n / 2, 1.0)
            assert stats.wilcoxon_signed_rank(np.ones(n), np.zeros(n))[1] <= 1      # all tied, not zero
        for result in [stats.wilcoxon_signed_rank([], []), stats.wilcoxon_rank_sum([], [1.0]), stats.wilcoxon_rank_sum([1.0], []),
                       stats.wilcoxon_signed_rank([1.0, np.nan], [0.0, 0.0]), stats.wilcoxon_rank_sum([1.0, np.nan], [0.0])]:
            assert np.isnan(result).all()


# ----- ROC

def test_roc_auc_equals_counting_all_pairs():
    rng = np.random.default_rng(9)
    for n in (2, 3, 10, 60):
        labels = rng.permutation(np.arange(n) < max(1, n // 3))
        for scores in (rng.normal(size=n) + labels, rng.integers(0, 4, n)):
            pairs = [(p > q) + 0.5 * (p == q) for p in scores[labels] for q in scores[~labels]]
            same(stats.roc_auc(labels, scores), np.mean(pairs), 1e-14)
            same(stats.roc_auc(labels.astype(int).tolist(), (-scores).tolist()), 1 - np.mean(pairs), 1e-14)
    assert stats.roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75       # scikit-learn's documented example
    assert math.isnan(stats.roc_auc([1, 1], [0.1, 0.2])) and math.isnan(stats.roc_auc([0], [1])) and math.isnan(stats.roc_auc([], []))
    assert math.isnan(stats.roc_auc([0, 1, 1], [0.1, np.nan, 2])) and math.isnan(stats.roc_auc([0, 1, np.nan], [0, 1, 2]))


def test_roc_auc_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(10)
    for scores in (rng.normal(size=500), rng.integers(0, 8, 500)):
        labels = rng.random(500) < 0.2
        same(stats.roc_auc(labels, scores), metrics.roc_auc_score(labels, scores), 1e-12)


def test_roc_and_pr_curves_equal_every_threshold():
    rng = np.random.default_rng(3)
    for n, levels in ((2, 9), (7, 3), (40, 6), (60, 10 ** 6)):
        labels, scores = np.r_[1, 0, rng.integers(0, 2, n - 2)], rng.integers(0, levels, n) / 7
        cuts = np.unique(scores)[::-1]
        hits, chosen = (np.array([(part & (scores >= c)).sum() for c in cuts]) for part in (labels > 0, labels >= 0))
        fpr, tpr = stats.roc_curve(labels, scores)
        recall, precision = stats.pr_curve(labels, scores)
        same(tpr, np.r_[0, hits / labels.sum()])
        same(fpr, np.r_[0, (chosen - hits) / (n - labels.sum())])
        same(recall, tpr)
        same(precision, np.r_[1, hits / chosen])
        same(np.trapezoid(tpr, fpr), stats.roc_auc(labels, scores))
        at = [(scores[labels > 0] >= s).sum() / (scores >= s).sum() for s in scores[labels > 0]]
        same(stats.pr_auc(labels, scores), np.mean(at))
    assert stats.pr_auc([0, 0, 1, 1], [1, 2, 3, 4]) == 1 and stats.pr_auc([0, 1, 0, 0], [2, 2, 2, 2]) == .25
    assert all(np.isnan(stats.pr_auc(*bad)) for bad in (([1, 1], [1, 2]), ([0, 0], [1, 2]), ([0, 1], [1, np.nan]), ([0, np.nan], [1, 2])))


def test_pr_auc_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    for n in (20, 200):
        labels, scores = np.r_[0, 1, rng.integers(0, 2, n - 2)], rng.integers(0, n // 4, n) / 3
        assert stats.pr_auc(labels, scores) == pytest.approx(metrics.average_precision_score(labels, scores), abs=1e-12)
        fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
        assert np.allclose(stats.roc_curve(labels, scores), (fpr, tpr))


# ----- Folds

@pytest.mark.parametrize("n_patients,k", [(2, 2), (5, 5), (23, 5), (200, 3), (500, 10)])
def test_patient_folds_balance_every_project_and_do_not_see_row_order(n_patients, k):
    rng = np.random.default_rng(n_patients)
    patients, projects = cohort(rng, n_patients, 6)
    fold = stats.patient_folds(patients, projects, k, seed=1)
    assert fold.shape == patients.shape and fold.dtype.kind == "i" and set(fold) == set(range(k))
    for p in np.unique(patients):
        assert len(set(fold[patients == p])) == 1
    for mine in [np.ones(len(patients), bool)] + [projects == o for o in np.unique(projects)]:
        assert np.ptp(patients_per_fold(patients[mine], fold[mine], k)) <= 1
    order = rng.permutation(len(patients))
    assert (stats.patient_folds(patients[order], projects[order], k, seed=1) == fold[order]).all()
    assert (stats.patient_folds(patients.tolist(), projects.tolist(), k, seed=1) == fold).all()
    if n_patients > 20:
        assert (stats.patient_folds(patients, projects, k, seed=2) != fold).any()


def test_a_patient_of_two_projects_counts_once_in_the_larger_first_by_name():
    patients = ["a", "a", "a", "b", "b", "c", "d"]
    projects = ["Z", "Z", "X", "Z", "X", "X", "Z"]                           # a belongs to Z, b to X: X = b, c; Z = a, d
    for seed in range(20):
        fold = stats.patient_folds(patients, projects, 2, seed)
        assert fold[0] == fold[1] == fold[2] and fold[3] == fold[4]
        assert fold[3] != fold[5] and fold[0] != fold[6]


def test_patient_folds_say_what_would_work():
    with pytest.raises(ValueError, match="5 folds of 3 patients.*from 2 to 3"):
        stats.patient_folds(["a", "b", "b", "c"], ["X"] * 4, 5, 0)
    with pytest.raises(ValueError, match="1 folds of 3 patients"):
        stats.patient_folds(["a", "b", "c"], ["X"] * 3, 1, 0)
    for nobody in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="at least 2 patients"):
            stats.patient_folds(nobody, nobody, 2, 0)
        with pytest.raises(ValueError, match="at least 2 patients"):
            stats.inner_split(nobody, nobody, 0.1, 0)
    with pytest.raises(ValueError, match="at least 5 patients; there are 4"):
        stats.authors_folds(["a", "b", "c", "d", "d"])


def test_patient_folds_of_tcga():
    """11,564 samples: a fifth of every project's patients in every fold, to one patient; the authors' code is not balanced."""
    patients, projects = tcga_table()
    fold = stats.patient_folds(patients, projects, 5, seed=0)
    assert len(np.unique(projects)) == 36
    assert len(set(zip(patients, fold))) == len(set(patients)) > 10000
    one = np.unique(patients, return_index=True)[1]                         # a row per patient
    table = np.array([np.bincount(fold[one][projects[one] == o], minlength=5) for o in np.unique(projects)])     # (36, 5)
    assert np.abs(table - table.sum(1, keepdims=True) / 5).max() < 1 and np.ptp(table.sum(0)) <= 1
    assert table.min() >= 1
    theirs = np.array([np.bincount(np.searchsorted(np.unique(projects), projects[np.intersect1d(test, one)]), minlength=36)
                       for _, _, test in stats.authors_folds(patients)]).T
    assert theirs.sum() == table.sum() and np.ptp(theirs, axis=1).max() > 20


@pytest.mark.parametrize("share", [0.1, 0.5, 0.001, 0.999])
def test_inner_split_spreads_whole_patients_over_projects(share):
    rng = np.random.default_rng(11)
    for n_patients in (2, 3, 40, 300):
        patients, projects = cohort(rng, n_patients, 5)
        mask = stats.inner_split(patients, projects, share, seed=3)
        held = set(patients[mask])
        assert mask.dtype == bool and not held & set(patients[~mask])
        assert len(held) == min(max(round(share * n_patients), 1), n_patients - 1)
        for o in np.unique(projects):
            mine = set(patients[projects == o])
            assert abs(len(held & mine) - len(mine) * len(held) / n_patients) < 1
        order = rng.permutation(len(patients))
        assert (stats.inner_split(patients[order], projects[order], share, seed=3) == mask[order]).all()
    assert len({tuple(stats.inner_split(patients, projects, 0.1, seed)) for seed in range(5)}) == 5
    single = [stats.inner_split(list("abcdefgh"), list("XYYYYYYY"), 0.125, seed)[0] for seed in range(200)]
    assert 5 < sum(single) < 60                                             # the first project's only patient: 1 in 8


def test_inner_split_of_tcga():
    patients, projects = tcga_table()
    mask = stats.inner_split(patients, projects, 0.1, seed=0)
    for o in np.unique(projects):
        mine = np.unique(patients[projects == o])
        assert abs(len(np.unique(patients[mask & (projects == o)])) - len(mine) / 10) < 1.01


# scikit-learn 1.9.1: KFold(5, shuffle=True, random_state=0).split(np.arange(12)), then
# train_test_split(train, test_size=.1, random_state=0); (valid, test) of each fold.
PINNED_FOLDS = [([9], [4, 6, 11]), ([9], [2, 8, 10]), ([3], [1, 7]), ([2], [3, 9]), ([3], [0, 5])]


def test_authors_folds_pinned():
    patients = np.array(list("lkjihgfedcba"))                               # sorted inside: a = 0 ... l = 11
    number = np.array([ord(p) - ord("a") for p in patients])
    splits = stats.authors_folds(patients)
    assert [(sorted(number[v].tolist()), sorted(number[t].tolist())) for _, v, t in splits] == PINNED_FOLDS
    for split in splits:
        assert sorted(np.concatenate(split).tolist()) == list(range(12))


@pytest.mark.parametrize("n_patients", [5, 6, 13, 44, 70, 87, 333, 1000])
def test_authors_folds_equal_scikit_learn(n_patients):
    selection = pytest.importorskip("sklearn.model_selection")
    patients, _ = cohort(np.random.default_rng(n_patients), n_patients, 3)
    names = np.unique(patients)
    folds = selection.KFold(5, shuffle=True, random_state=0).split(names)
    for ours, (others, test) in zip(stats.authors_folds(patients), folds, strict=True):
        train, valid = selection.train_test_split(names[others], test_size=0.1, random_state=0)
        for index, theirs in zip(ours, (train, valid, names[test])):
            assert set(patients[index]) == set(theirs)
            assert (index == np.flatnonzero(np.isin(patients, theirs))).all()


def test_fold_balance_equals_scipy_and_counts_patients_once():
    patients, projects = cohort(np.random.default_rng(0), 200, 6)
    rng = np.random.default_rng(1)
    for by_lot in (False, True):
        fold = stats.patient_folds(patients, projects, 5, 0)
        if by_lot:
            _, which = np.unique(patients, return_inverse=True)
            fold = rng.integers(5, size=which.max() + 1)[which]
        counts, chi2, freedom, p = stats.fold_balance(patients, projects, fold, 5)
        want = scipy.stats.chi2_contingency(np.array(list(counts.values())))
        assert (chi2, freedom, p) == (pytest.approx(want.statistic), want.dof, pytest.approx(want.pvalue)) and (p > .999) != by_lot
        assert sum(map(sum, counts.values())) == len(set(patients))
    counts, chi2, freedom, p = stats.fold_balance(["a", "b", "b"], ["X", "X", "X"], [0, 1, 1], 3)   # one project, an empty fold
    assert counts["X"].tolist() == [1, 1, 0] and (chi2, freedom, p) == (0, 0, 1)


def test_site_folds_keep_sites_whole_and_as_even_as_any_single_move():
    rng = np.random.default_rng(0)
    size = rng.geometric(.1, 60)
    sites, projects = np.repeat(np.arange(60), size).astype(str), np.repeat(np.arange(60) % 4, size).astype(str)
    patients = [f"p{i}" for i in range(len(sites))]
    even = lambda fold: sum(((np.bincount(fold[rows], minlength=5) - rows.sum() / 5) ** 2).sum() / rows.sum()
                            for rows in [np.ones(len(fold), bool), *(projects == p for p in "0123")])
    fold = stats.site_folds(patients, projects, sites, 5, 0)
    for s in set(sites):
        assert len(set(fold[sites == s])) == 1
        for f in range(5):
            assert even(np.where(sites == s, f, fold)) >= even(fold) - 1e-9
    by_lot = [even(rng.integers(5, size=60)[sites.astype(int)]) for _ in range(200)]
    assert even(fold) < min(by_lot)
    order = rng.permutation(len(sites))
    assert (stats.site_folds(np.array(patients)[order], projects[order], sites[order], 5, 0) == fold[order]).all()
    with pytest.raises(ValueError, match="from 2 to 60"):
        stats.site_folds(patients, projects, sites, 61, 0)


# ----- The null of a model that has learned nothing

def chance_r(rng, sizes, count):
    """R of unrelated normal samples: (1 + R) / 2 is a Beta; the mean of one R per fold."""
    return np.mean([2 * rng.beta(n / 2 - 1, n / 2 - 1, count) - 1 for n in sizes], 0)


def exact_tail(sizes, r):
    """P(mean of one chance R per fold >= r), by convolution on a fine grid."""
    grid, law = np.linspace(-1, 1, 2**15 + 1), np.ones(1)
    for n in sizes:
        pdf = scipy.stats.beta.pdf((grid + 1) / 2, n / 2 - 1, n / 2 - 1)
        law = scipy.signal.fftconvolve(law, pdf / pdf.sum())
    return law[np.linspace(-1, 1, len(law)) >= r].sum() / law.sum()


def test_null_fit_of_chance_is_the_analytic_t():
    rng, first = np.random.default_rng(0), -np.expm1(np.log1p(-0.05) / 30839)
    for n in (10, 44, 1046):
        mean, fitted = stats.null_fit(chance_r(rng, [n], (10, 30839)))
        assert abs(mean) < 4 / math.sqrt(n * 308390) and fitted == pytest.approx(n, rel=0.02)
        assert stats.null_threshold(first, mean, fitted) == pytest.approx(stats.r_threshold(first, n), abs=0.01)
    assert round(float(stats.null_threshold(first, 0, 535)), 2) == 0.20      # LUNG's printed R_sign: LUAD's 535 slides alone


@pytest.mark.parametrize("sizes", [(9, 9, 9, 9, 8), (20,) * 5, (209,) * 5])
def test_null_p_of_a_mean_of_folds_is_near_the_exact_one(sizes):
    """Within a factor 2 at 1.7e-6, where counting N = 30,839 null R ends at 3e-5; a normal fit of Fisher's z is further off."""
    null = chance_r(np.random.default_rng(1), sizes, 308390)
    mean, n = stats.null_fit(null)
    for r in np.arange(0.5, 5, 0.5) / math.sqrt(sum(sizes)):
        exact = exact_tail(sizes, r)
        p, z = stats.null_p(r, mean, n), scipy.stats.norm.sf(np.arctanh(r) / np.arctanh(null).std())
        assert 0.5 < p / exact < 1.4 and (exact > 1e-3 or abs(math.log(p / exact)) < abs(math.log(z / exact)) + 0.1)
        counted = np.mean(null >= r)
        assert exact < 1e-4 or counted == pytest.approx(p, rel=0.3)


def test_a_wide_or_shifted_null_raises_the_threshold():
    rng = np.random.default_rng(2)
    plain = rng.normal(size=20000) * 0.1
    mean, n = stats.null_fit(plain)
    same([mean, n], [plain.mean(), 1 + 1 / plain.var()], 0.02)               # the tail of a normal is where its SD says
    same(stats.null_fit(plain + 0.2), [mean + 0.2, n], 1e-9)
    mixed = np.where(rng.random(20000) < 0.1, 3, 1) * plain                  # one gene in ten scatters three times as much
    mean, n = stats.null_fit(mixed)
    assert n < 1 + 1 / mixed.var() - 5 and (mixed > stats.null_threshold(0.01, mean, n)).mean() <= 0.0105
    r = np.array([0.1, 0.5, 0.9])
    same(stats.null_threshold(stats.null_p(r, 0.05, 40), 0.05, 40), r, 1e-9)


def test_null_edges():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for null in ([], [np.nan], [0.3], [0.3, 0.3, np.nan]):
            assert np.isnan(stats.null_fit(np.array(null, float))).all()
        same(stats.null_fit(np.array([[0.1, np.nan], [-0.1, 0.2]])), stats.null_fit(np.array([0.1, -0.1, 0.2])))
        same(stats.null_p(np.array([1, -1, np.nan]), 0, 44), [0, 1, np.nan])
        assert stats.null_p(-1, 0.1, 44) == 1 and stats.null_p(1, 0.1, 44) == 0 and 0 < stats.null_p(.95, -.06, 3.4) < .1
        assert np.isnan(stats.null_p([0.5], math.nan, math.nan)).all() and np.isnan(stats.null_p(0.5, *stats.null_fit([-1, 1])))
        assert .9 < stats.null_threshold(1e-9, 0.9, 10) < 1 and np.isnan(stats.null_threshold(0.05, 0, 2))


def test_permutation_null_equals_the_loop():
    rng = np.random.default_rng(3)
    n, genes = 60, 300                                                       # more genes than one block
    prediction, truth = rng.normal(size=(2, n, genes)).astype(np.float32)
    fold = rng.permutation(np.r_[np.arange(58) % 4, 7, 7])                   # a fold of two does not count
    prediction[:, 5] = 1
    truth[fold == 1, 6] = 0
    truth[3, 7] = np.nan
    null = stats.permutation_null(prediction, truth, fold, 3, np.random.default_rng(4))
    shuffle = np.random.default_rng(4)
    for row in null:
        r = []
        for f in range(4):
            rows = np.flatnonzero(fold == f)
            r.append(stats.pearson(prediction[rows[shuffle.permutation(len(rows))]], truth[rows]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(row, np.nanmean(r, 0), 1e-12)
    assert np.isnan(null[:, 5]).all() and not np.isnan(null[:, 6:8]).any()
    assert np.isnan(stats.permutation_null(prediction[:2], truth[:2], fold[:2], 2, rng)).all()


def test_permutation_null_scatters_as_permutations_do_and_ignores_signal():
    """Over permutations R has mean 0 and variance 1 / (n - 1), exactly, whatever the values: five slides, all 120 orders."""
    rng = np.random.default_rng(5)
    x, y = rng.exponential(size=(2, 5))
    every = [stats.pearson(np.array(order), y) for order in itertools.permutations(x)]
    same([np.mean(every), np.var(every)], [0, 1 / 4], 1e-12)
    truth, fold = rng.exponential(size=(50, 60)), np.arange(50) % 5
    null = stats.permutation_null(truth, truth, fold, 1500, rng)
    same([null.mean(), null.var()], [0, 1 / 9 / 5], 0.003)
    p = stats.null_p(stats.pearson(truth + 0.5 * rng.normal(size=truth.shape), truth), *stats.null_fit(null))
    assert (stats.holm_sidak(p) < 0.05).mean() > 0.9


def test_recurrent_counts():
    significant = np.random.default_rng(6).random((5, 40)) < 0.4
    per_gene, at_least = stats.recurrent(significant)
    assert per_gene.tolist() == [sum(column) for column in significant.T.tolist()]
    assert at_least.tolist() == [sum(g >= c for g in per_gene) for c in (1, 2, 3, 4, 5)]
    per_gene, at_least = stats.recurrent(np.zeros((0, 3), bool))
    assert per_gene.tolist() == [0, 0, 0] and at_least.tolist() == []


# ----- Gene sets

def test_fisher_enrichment_equals_scipy_and_the_lady_tasting_tea():
    cups = range(8)
    assert stats.fisher_enrichment([0, 1, 2, 3], [0, 1, 2, 3], cups) == pytest.approx(1 / 70, rel=1e-12)    # Fisher 1935
    assert stats.fisher_enrichment([0, 1, 2, 3], [0, 1, 2, 7], cups) == pytest.approx(17 / 70, rel=1e-12)
    rng = np.random.default_rng(7)
    for n in (1, 2, 9, 60, 500):
        for _ in range(15):
            hits, members = (rng.choice(n, rng.integers(0, n + 1), replace=False).tolist() for _ in range(2))
            a = len(set(hits) & set(members))
            table = [[a, len(hits) - a], [len(members) - a, n - len(hits) - len(members) + a]]
            ours = stats.fisher_enrichment(hits, members, range(n))
            same(ours, scipy.stats.fisher_exact(table, alternative="greater")[1], 1e-9)


def test_hypergeometric_tail_is_exact_far_out_and_near_one():
    for overlap, size, n_hits, n in [(50, 100, 300, 2000), (120, 200, 156, 30839), (3, 200, 1500, 3000), (90, 200, 1500, 3000),
                                     (200, 200, 1500, 3000), (1, 5, 1, 5), (8, 9, 9, 10), (9, 9, 9, 10), (0, 0, 3, 9)]:
        exact = Fraction(sum(math.comb(size, k) * math.comb(n - size, n_hits - k) for k in range(overlap, min(size, n_hits) + 1)),
                         math.comb(n, n_hits))
        assert stats.hypergeometric_tail(overlap, size, n_hits, n) == pytest.approx(float(exact), rel=1e-8, abs=0)


def test_fisher_enrichment_edges():
    genes = ["a", "b", "c"]
    for hits, members, universe in [([], ["a"], genes), (genes, ["a"], genes), (["a"], [], genes), (["a"], ["x"], genes),
                                    ([], [], []), (["a"], genes, genes)]:
        assert stats.fisher_enrichment(hits, members, universe) == 1.0
    assert stats.fisher_enrichment(["a", "a", "x"], ["a", "y", "a"], iter(genes)) == pytest.approx(1 / 3)    # strangers, twice


def test_enrichment_is_fisher_of_each_set_and_leaves_out_what_cannot_be_tested():
    rng = np.random.default_rng(8)
    universe = [f"g{i}" for i in range(400)]
    sets = {f"s{i}": [f"g{j}" for j in rng.choice(600, rng.integers(1, 80), replace=False)] for i in range(50)}
    sets |= {"empty": [], "not measured": ["x", "g599"], "planted": universe[:30]}
    hits = universe[:25] + universe[200:240] + ["x"]
    table = stats.enrichment(hits, sets, universe)
    for i, (name, genes) in enumerate(sets.items()):
        measured = set(genes) & set(universe)
        if not measured:
            assert np.isnan([table[k][i] for k in ("fold", "p", "bh")]).all() and table["size"][i] == table["expected"][i] == 0
            continue
        assert table["size"][i] == len(measured) and table["overlap"][i] == len(measured & set(hits))
        same(table["expected"][i], len(measured) * 65 / 400)
        same(table["fold"][i], table["overlap"][i] / table["expected"][i])
        same(table["p"][i], stats.fisher_enrichment(hits, genes, universe))
    tested = ~np.isnan(table["p"])
    assert tested.sum() >= 49 and not tested[50] and not tested[51]
    assert list(sets)[np.nanargmin(table["p"])] == "planted"
    same(table["bh"][tested], scipy.stats.false_discovery_control(table["p"][tested]))
    for hits in ([], universe):                                              # the overlap is forced
        table = stats.enrichment(hits, sets, universe)
        assert (table["p"][tested] == 1).all() and (table["bh"][tested] == 1).all()
    assert np.isnan(stats.enrichment([], sets, universe)["fold"]).all()
    assert stats.enrichment(["a"], {}, ["a"])["p"].shape == (0,) and np.isnan(stats.enrichment([], {"s": ["a"]}, [])["p"]).all()


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda text: b"\xef\xbb\xbf" + text])
def test_read_gmt_reads_what_is_about(tmp_path, end, pack):
    lines = [b"A\thttp://a\tTP53\tMYC\tTP53\t", b"", b"EMPTY\tna", b"  B \t\t CD3D\t\tCD3E ", b"A\tagain\tMYC\tTP53", b"\t\t", b"LAST\td\tx"]
    path = tmp_path / "sets.gmt"
    path.write_bytes(pack(end.join(lines)))
    assert stats.read_gmt(path) == {"A": ("TP53", "MYC"), "EMPTY": (), "B": ("CD3D", "CD3E"), "LAST": ("x",)}
    assert list(stats.read_gmt(path)) == ["A", "EMPTY", "B", "LAST"]


@pytest.mark.parametrize("data,words", [
    (b"A\td\tx\nB\td\ty\nA\td\tz\n", "line 3: set 'A' stands in .*line 1 too, with different genes"),
    (b"A\td\tx\nno tabs here\n", "line 2: wanted a name.*found 'no tabs here'"), (b"\td\tx\n", "line 1: wanted a name"),
    (b"", "no gene set"), (b"\n\r\n", "no gene set"), ("A\td\tx\n".encode("utf-16"), "not a text file in UTF-8"),
    (gzip.compress(b"A\td\tx\n" * 99)[:-9], "damaged gzip"), (b"\x1f\x8bnonsense", "damaged gzip")])
def test_read_gmt_says_file_and_line(tmp_path, data, words):
    path = tmp_path / "sets.gmt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words) as e:
        stats.read_gmt(path)
    assert str(e.value).startswith(str(path)) and "\n" not in str(e.value)


def test_combine_sets():
    assert stats.combine_sets([("c", "a", "b"), ["b", "d", "b"], {"a", "e"}]) == ("a", "b")
    assert stats.combine_sets([("c", "a")]) == ("c", "a") and stats.combine_sets([]) == () and stats.combine_sets([(), ()]) == ()
    assert stats.combine_sets([("a", "a"), ("b",)]) == () and stats.combine_sets([("a", "b"), ("b", "c")], 1) == ("a", "b", "c")
    assert stats.combine_sets([("a", "b"), ("b",), ("b", "a")], 3) == ("b",)


def test_signatures_of_the_paper():
    """Table 2: six pathways of 18 sets; those of MSigDB that are here have the printed names."""
    assert len(stats.SIGNATURES) == 6 and sum(map(len, stats.SIGNATURES.values())) == 18
    if not REAL_DATA:
        pytest.skip("REAL_DATA is not set")
    sets = {}
    for file in ("h.all.v6.2", "c5.bp.v6.2", "c2.cp.kegg.v7.5.1"):
        sets |= stats.read_gmt(os.path.join(REAL_DATA, "genesets", f"{file}.symbols.gmt"))
    assert len(sets) == 50 + 4436 + 186
    missing = {s for names in stats.SIGNATURES.values() for s in names} - set(sets)
    assert {s.split("_")[0] for s in missing} == {"BIOCARTA", "REACTOME"} and len(missing) == 6
    assert len(stats.combine_sets([sets[s] for s in stats.SIGNATURES["B cell-mediated immunity"]])) == len(sets["GO_B_CELL_MEDIATED_IMMUNITY"])


# ----- Signatures against random lists

def random_list_loop(r, significant, signature, n_lists, rng):
    """The direct way, one cancer and one signature: (R_p, f_p, R_o, f_o, p of R, p of f)."""
    genes = np.flatnonzero(~np.isnan(r))
    own = np.intersect1d(genes, signature)
    r_p, f_p, r_lists, f_lists = r[own].mean(), significant[own].mean(), [], []
    for _ in range(n_lists):
        chosen = rng.choice(genes, len(own), replace=False)
        r_lists.append(r[chosen].mean())
        f_lists.append(significant[chosen].mean())
    reached = [(1 + np.sum(np.array(lists) >= value - 1e-9)) / (1 + n_lists) for lists, value in ((r_lists, r_p), (f_lists, f_p))]
    return r_p, f_p, np.mean(r_lists), np.mean(f_lists), *reached


def test_random_list_test_equals_the_loop_and_the_hypergeometric():
    rng = np.random.default_rng(9)
    m, cancers, n_lists = 500, 4, 4000
    r = 0.2 + 0.1 * rng.normal(size=(m, cancers))
    r[:40] += 0.02                                                           # a signature, weakly better
    r[rng.random((m, cancers)) < [0, 0, 0.2, 0.5]] = np.nan                  # two cancers share their genes
    significant = r > 0.25
    members = np.zeros((3, m), bool)
    members[0, :40], members[1, 100:400], members[2, 490:] = True, True, True
    ours = stats.random_list_test(r, significant, members, n_lists, rng)
    for i, c in itertools.product(range(3), range(cancers)):
        genes = np.flatnonzero(~np.isnan(r[:, c]))
        own = np.intersect1d(genes, np.flatnonzero(members[i]))
        assert ours["size"][i, c] == len(own)
        theirs = random_list_loop(r[:, c], significant[:, c], np.flatnonzero(members[i]), 300, rng)
        same([ours["r"][i, c], ours["share"][i, c]], theirs[:2], 1e-12)
        spread = r[genes, c].std() / math.sqrt(len(own)) * math.sqrt(1 - len(own) / len(genes)) + 1e-12
        assert abs(ours["r_random"][i, c] - r[genes, c].mean()) < 5 * spread / math.sqrt(n_lists)
        assert abs(theirs[2] - r[genes, c].mean()) < 5 * spread / math.sqrt(300)
        assert abs(ours["share_random"][i, c] - significant[genes, c].mean()) < 0.01
        for p, loop in ((ours["p_r"][i, c], theirs[4]), (ours["p_share"][i, c], theirs[5])):
            assert abs(p - loop) < 5 * math.sqrt(p * (1 - p) / 300) + 1 / 300
        exact = stats.hypergeometric_tail(significant[own, c].sum(), len(own), significant[genes, c].sum(), len(genes))
        assert abs(ours["p_share"][i, c] - exact) < 5 * math.sqrt(exact * (1 - exact) / n_lists) + 1 / n_lists


def test_random_list_p_equals_all_lists():
    """Eight genes, lists of three: all 56."""
    r = np.array([0.9, 0.1, 0.5, np.nan, 0.3, 0.7, 0.2, 0.4, 0.4])[:, None]
    rest = np.delete(r[:, 0], 3)
    every = np.array([np.mean(c) for c in itertools.combinations(rest, 3)])
    members = np.zeros((2, 9), bool)
    members[0, [0, 3, 4, 5]], members[1, [2, 7, 8]] = True, True             # one without R, and one with ties
    ours = stats.random_list_test(r, r > 0.45, members, 20000, np.random.default_rng(10))
    for i, own in enumerate(([0.9, 0.3, 0.7], [0.5, 0.4, 0.4])):
        assert abs(ours["p_r"][i, 0] - np.mean(every >= np.mean(own) - 1e-12)) < 0.015


def test_random_lists_are_uniform_without_repeats_and_matched():
    rng = np.random.default_rng(11)
    bins = stats.expression_bins(rng.exponential(size=100), 5)
    assert np.bincount(bins).tolist() == [20] * 5
    for members, b in ((np.arange(30), bins), (np.arange(30), np.zeros(100, int)), (np.flatnonzero(bins == 2)[:9], bins)):
        lists = stats.random_lists(members, b, 3000, rng)
        assert lists.shape == (3000, len(members)) and all(len(set(row)) == len(row) for row in lists.tolist())
        assert (np.sort(b[lists], 1) == np.sort(b[members])).all()           # the same number of each bin
        expected = (np.bincount(b[members], minlength=5) / np.maximum(np.bincount(b, minlength=5), 1))[b] * 3000
        assert (np.abs(np.bincount(lists.ravel(), minlength=100) - expected) < 5 * np.sqrt(expected) + 1e-9).all()
        assert len(np.unique(np.sort(lists, 1), axis=0)) > 2900
    level = np.array([3.0, 1.0, 1.0, 2.0, 9.0])
    assert stats.expression_bins(level, 5).tolist() == [3, 0, 1, 2, 4] and stats.expression_bins(level, 1).tolist() == [0] * 5


def test_matched_lists_take_away_what_expression_explains():
    rng = np.random.default_rng(12)
    level = rng.random(2000)
    r = (0.3 * level + 0.05 * rng.normal(size=2000))[:, None]                # R follows expression, and nothing else
    members = (rng.random(2000) < 0.1 * level)[None]
    plain = stats.random_list_test(r, r > 0.2, members, 2000, rng)
    matched = stats.random_list_test(r, r > 0.2, members, 2000, rng, stats.expression_bins(level))
    assert plain["p_r"] < 0.01 < matched["p_r"] and plain["r"] == matched["r"]
    assert abs(matched["r_random"] - matched["r"]) < 0.3 * abs(plain["r_random"] - plain["r"])


def test_random_list_edges():
    rng = np.random.default_rng(13)
    r = rng.random((20, 3))
    r[:, 1] = np.nan                                                         # a cancer without any R
    r[5:, 2] = np.nan
    members = np.zeros((4, 20), bool)
    members[1], members[2, :5], members[3, 10:] = True, True, True           # empty; every gene; five; not measured in cancer 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = stats.random_list_test(r, r > 0.5, members, 50, rng)
    assert ours["size"].tolist() == [[0, 0, 0], [20, 0, 5], [5, 0, 5], [10, 0, 0]]
    for key in ("r", "share", "r_random", "share_random", "p_r", "p_share"):
        assert (np.isnan(ours[key]) == (ours["size"] == 0)).all()
    assert ours["p_r"][1, 0] == ours["p_r"][1, 2] == ours["p_r"][2, 2] == ours["p_share"][1, 0] == 1    # the list itself, always
    same(ours["r"][1, 0], ours["r_random"][1, 0])
    constant = stats.random_list_test(np.full((20, 1), 0.1), np.zeros((20, 1), bool), members[2:3], 50, rng)
    assert constant["p_r"] == constant["p_share"] == 1
    best = stats.random_list_test(np.arange(2000.0)[:, None], np.zeros((2000, 1), bool), (np.arange(2000) > 1990)[None], 999, rng)
    assert best["p_r"] == 1 / 1000                                           # never 0
    assert stats.random_list_test(r, r > 0.5, members[:0], 50, rng)["p_r"].shape == (0, 3)


# ----- Intervals

def test_bootstrap_r_equals_repeating_the_rows():
    rng = np.random.default_rng(14)
    who = rng.integers(0, 25, 60)
    truth = rng.normal(size=(60, 270)) + rng.normal(size=(25, 270))[who]
    prediction = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    prediction[:, 3], truth[who % 3 == 1, 4], fold = 2, 7, np.where(who == 24, 9, who % 3)
    low, high = stats.bootstrap_r(prediction, truth, who, fold, 40, np.random.default_rng(15))
    times = stats.patient_draws(who, 40, np.random.default_rng(15)).astype(int)
    draws = []
    for t in times:
        r = []
        for f in range(3):
            rows = np.repeat(np.flatnonzero(fold == f), t[fold == f])
            r.append(stats.pearson(prediction[rows], truth[rows]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draws.append(np.nanmean(r, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same([low, high], np.nanpercentile(draws, [2.5, 97.5], axis=0), 1e-9)
    assert np.isnan([low[3], high[3]]).all() and not np.isnan(np.delete(low, 3)).any()


def test_bootstrap_r_is_as_wide_as_theory_and_sees_patients():
    rng = np.random.default_rng(16)
    truth = rng.normal(size=(400, 100))
    prediction = 0.5 * truth + math.sqrt(0.75) * rng.normal(size=truth.shape)
    low, high = stats.bootstrap_r(prediction, truth, np.arange(400), np.arange(400) % 5, 500, rng)
    theory = 2 * 1.96 * (1 - 0.5**2) / math.sqrt(400)
    assert np.mean(high - low) == pytest.approx(theory, rel=0.08) and ((low < 0.5) & (0.5 < high)).mean() > 0.87
    four = np.arange(400) // 4                                               # four slides of a patient, all alike
    copies = stats.bootstrap_r(prediction[four], truth[four], four, four % 5, 500, rng)
    assert np.mean(copies[1] - copies[0]) == pytest.approx(2 * theory, rel=0.15)


def test_bootstrap_edges():
    rng = np.random.default_rng(17)
    x = rng.normal(size=(6, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for patients, fold in ((["a"] * 6, np.zeros(6)), (list("abcdef"), np.arange(6))):     # one patient; folds of one slide
            assert np.isnan(stats.bootstrap_r(x, x, patients, fold, 20, rng)).all()
        low, high = stats.bootstrap_r(x, x, list("abcdef"), np.zeros(6), 200, rng)            # draws of one patient have no R
        same(low, 1) and same(high, 1)
        for labels, scores, patients in (([1, 1], [0.1, 0.2], "ab"), ([1, 0], [0.1, 0.2], "aa"), ([1, 0], [0.1, np.nan], "ab"), ([], [], "")):
            assert np.isnan(stats.bootstrap_auc(labels, scores, list(patients), 20, rng)).all()


def test_bootstrap_auc_equals_repeating_the_rows():
    rng = np.random.default_rng(18)
    who = rng.integers(0, 20, 50)
    labels, scores = rng.random(50) < 0.4, rng.integers(0, 9, 50)            # with ties
    times = stats.patient_draws(who, 60, np.random.default_rng(19)).astype(int)
    aucs = [stats.roc_auc(np.repeat(labels, t), np.repeat(scores, t)) for t in times]
    same(stats.bootstrap_auc(labels, scores, who, 60, np.random.default_rng(19)), np.nanpercentile(aucs, [2.5, 97.5]))
    assert (times.sum(1) != 50).any() and all(len(set(t[who == p])) == 1 for t in times for p in set(who.tolist()))
    few = [1, 0, 0], [3, 1, 2], ["a", "b", "c"]                              # many draws have one class only
    same(stats.bootstrap_auc(*few, 200, rng), (1, 1))


def test_bootstraps_of_pr_auc_and_means_equal_repeating_the_rows():
    rng = np.random.default_rng(21)
    who = np.array(list("aabbbcdefgh"))
    labels, scores = np.array([0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0]), rng.integers(0, 5, 11) / 3
    draws = stats.patient_draws(who, 80, np.random.default_rng(5)).astype(int)
    again = [np.repeat(np.arange(11), d) for d in draws]
    same(stats.bootstrap_pr_auc(labels, scores, who, 80, np.random.default_rng(5)),
         np.nanpercentile([stats.pr_auc(labels[r], scores[r]) for r in again], [2.5, 97.5]))
    same(stats.bootstrap_mean(scores, who, 80, np.random.default_rng(5)), np.percentile([scores[r].mean() for r in again], [2.5, 97.5]))
    assert np.isnan(stats.bootstrap_pr_auc([1, 1, 1], [1, 2, 3], list("abc"), 9, rng)).all()
    assert np.isnan(stats.bootstrap_pr_auc([0, 1], [1, 2], list("aa"), 9, rng)).all() and np.isnan(stats.bootstrap_mean([1, 0], "aa", 9, rng)).all()


# ----- Prediction against chance

def test_random_baseline_lies_in_the_range_and_correlates_with_nothing():
    rng = np.random.default_rng(20)
    truth = rng.exponential(size=(153, 2000))
    truth[0, 3] = np.nan
    baseline = stats.random_baseline(truth, rng)
    low, high = np.nanpercentile(truth, [5, 95], axis=0)
    genes = np.delete(np.arange(2000), 3)
    assert np.isnan(baseline[:, 3]).all() and ((low <= baseline) & (baseline <= high))[:, genes].all()
    position = ((baseline - low) / (high - low))[:, genes]
    assert scipy.stats.kstest(position[::7].ravel(), "uniform").pvalue > 1e-4
    r = stats.pearson(baseline, truth)[genes]
    same([r.mean(), r.std()], [0, 1 / math.sqrt(152)], 0.005)                # .081; Fig. 4 prints .15: n = 45
    assert (stats.random_baseline(np.ones((9, 2)), rng) == 1).all()          # a constant gene, a constant guess


def test_against_baseline_equals_scipy_gene_by_gene():
    rng = np.random.default_rng(21)
    truth = rng.normal(size=(80, 60))
    prediction = truth + rng.normal(size=60) + rng.normal(size=truth.shape)
    baseline = stats.random_baseline(truth, rng)
    prediction[:, 5], prediction[2, 6] = baseline[:, 5], np.nan
    prediction[:3, 7] = baseline[:3, 7]                                      # pairs without a difference
    ours = stats.against_baseline(prediction, truth, baseline)
    errors = np.abs(prediction - truth), np.abs(baseline - truth)
    for g in range(60):
        if g == 5:
            assert ours["p"][g] == ours["error_p"][g] == 1 and not ours["better"][g]
        elif g == 6:
            assert np.isnan([ours[k][g] for k in ("p", "bh", "error_p", "error_bh")]).all() and not ours["better"][g]
        else:
            how = dict(method="asymptotic", correction=True)
            same(ours["p"][g], scipy.stats.wilcoxon(prediction[:, g], baseline[:, g], **how).pvalue)
            same(ours["error_p"][g], scipy.stats.wilcoxon(errors[0][:, g], errors[1][:, g], **how).pvalue)
            d = errors[0][:, g] - errors[1][:, g]
            d, ranks = d[d != 0], scipy.stats.rankdata(abs(d[d != 0]))
            assert ours["better"][g] == (ranks[d < 0].sum() > ranks[d > 0].sum())
    real = np.arange(60) != 6
    for p, bh in (("p", "bh"), ("error_p", "error_bh")):
        same(ours[bh][real], scipy.stats.false_discovery_control(ours[p][real]))


def test_the_papers_test_is_of_location_not_of_skill():
    rng = np.random.default_rng(22)
    even, skewed = rng.random((150, 40)), rng.exponential(size=(150, 40))
    perfect = stats.against_baseline(even, even, stats.random_baseline(even, rng))
    assert (perfect["bh"] > 0.05).mean() > 0.9 and (perfect["error_bh"] < 1e-10).all() and perfect["better"].all()
    mean = np.broadcast_to(skewed.mean(0), skewed.shape)                     # predicts nothing
    assert (stats.against_baseline(mean, skewed, stats.random_baseline(skewed, rng))["bh"] < 0.05).mean() > 0.9


def test_r_against_baseline_equals_scipy():
    rng = np.random.default_rng(23)
    a, b = rng.normal(size=200), rng.normal(size=150) + 0.3
    same(stats.r_against_baseline(np.insert(a, [0, 9], np.nan), np.append(b, np.nan)), scipy.stats.mannwhitneyu(a, b))
    assert np.isnan(stats.r_against_baseline([np.nan], [0.1])).all()


# ----- Points in tiles -----------------------------------------------------------------------
def held_by_brute_force(points, coords, tile):
    """All tiles whose pixels hold the point's pixel, a list for each point."""
    inner = np.floor(points)[:, None] - coords
    return [np.flatnonzero(row) for row in ((inner >= 0) & (inner < tile)).all(2)]


@pytest.mark.parametrize("tile", [224.0, 224.3, 223.54, 50.9])
def test_each_point_has_the_one_tile_that_holds_it(tile):
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(30), np.arange(20)), -1).reshape(-1, 2)
    grid = grid[rng.random(len(grid)) < .7]
    coords = rng.permutation((grid * tile).astype(np.int32))
    points = np.concatenate([rng.uniform(-99, 32 * tile, (3000, 2)), rng.integers(0, int(31 * tile), (3000, 2)), coords,
                             coords + tile])
    which, truth = stats.holder(points, coords, tile), held_by_brute_force(points, coords, tile)
    assert all(w == -1 if len(t) == 0 else w in t for w, t in zip(which, truth))
    assert max(map(len, truth)) == 1 or tile % 1
    place = {tuple(cell): i for i, cell in enumerate(np.floor((coords + 1) / tile))}        # the grid before it was rounded
    deep = np.flatnonzero((abs(points / tile - np.round(points / tile)) > 2 / tile).all(1))
    assert all(which[i] == place.get(tuple(np.floor(points[i] / tile)), -1) for i in deep)
    counts = stats.count_points(points, coords, tile)
    assert counts.shape == (len(coords),) and counts.sum() == (which >= 0).sum()
    assert (counts == [(which == i).sum() for i in range(len(coords))]).all()


def test_a_full_grid_of_real_pitch_loses_no_point_and_counts_none_twice():
    tile, n = 224.3, 25
    coords = (np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) * tile).astype(np.int32)
    points = np.random.default_rng(1).uniform(0, n * tile - 1, (20000, 2))
    assert stats.count_points(points, coords, tile).sum() == len(points)


def test_tiles_on_no_grid_and_edges():
    coords = np.array([[0, 0], [10, 3], [0, 10], [25, -7]])             # bricks, and one far off
    points = [(0, 0), (9.99, 9.99), (10, 3), (10, 2.9), (9.5, 10), (10, 13), (25, -7), (34.9, 2.9), (35, 2), (-1, 0),
              (10, 10)]
    assert stats.holder(points, coords, 10.0).tolist() == [0, 0, 1, -1, 2, -1, 3, 3, -1, -1, 1]
    assert stats.holder([(3, 3)], coords[:1], 10).tolist() == [0]
    assert stats.holder([(3, 3)], np.zeros((0, 2)), 10).tolist() == [-1] and stats.holder([], coords, 10).shape == (0,)
    assert stats.count_points([], coords, 10).tolist() == [0] * 4 and stats.count_points([(3, 3)], [], 10).shape == (0,)


# ----- Shifted draws -------------------------------------------------------------------------
SQUARE = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2)


def smooth_fields(count, sigma=2, seed=0):
    noise = np.random.default_rng(seed).normal(size=(count, 40, 40))
    return ndimage.gaussian_filter(noise, (0, sigma, sigma))[:, 10:30, 10:30].reshape(count, -1).T      # (400, count)


def test_a_shift_moves_a_full_grid_as_a_whole():
    """On a full grid the torus is the grid's own: a draw is np.roll."""
    grid = np.arange(400).reshape(20, 20)
    rolls = {tuple(np.roll(grid, s, (0, 1)).ravel()) for s in itertools.product(range(20), range(20))}
    draws = [tuple(d) for d in stats.shifts([SQUARE * 7.5 - 31], 60, 0)]
    assert set(draws) <= rolls and len(set(draws)) > 40


def test_shifts_stay_in_their_slide_and_are_seeded():
    rng = np.random.default_rng(0)
    slides = [rng.random((9, 2)), np.array([[5, 5]]), np.stack([np.arange(12), np.full(12, 3)], 1), np.zeros((4, 2), int),
              np.repeat(rng.integers(0, 99, (6, 2)), 2, 0)]             # any, one, a line, all in one place, twice each
    slide = np.repeat(np.arange(5), [len(s) for s in slides])
    draws = np.array(list(stats.shifts(slides, 50, 3)))
    assert draws.shape == (50, len(slide)) and (slide[draws] == slide).all()
    assert np.array_equal(draws, list(stats.shifts(slides, 50, 3)))
    assert not np.array_equal(draws, list(stats.shifts(slides, 50, 4)))
    line = draws[:, slide == 2] - 10
    assert all(any((row == np.roll(np.arange(12), s)).all() for s in range(12)) for row in line)
    assert (draws[:, slide == 0] != np.arange(9)).any() and (draws[:, slide == 2] != np.arange(10, 22)).any()


def test_false_positives_of_smooth_fields_are_held_where_the_t_test_fails():
    a, b = (np.concatenate([smooth_fields(150, seed=s), smooth_fields(150, seed=s + 1)]) for s in (0, 2))    # two slides
    r, p = stats.shift_p(a, b, [SQUARE, SQUARE], n=199)
    t = np.array([scipy.stats.pearsonr(x, y, alternative="greater") for x, y in zip(a.T, b.T)])
    assert np.allclose(r, t[:, 0]) and (p <= .05).mean() <= .12 and (t[:, 1] <= .05).mean() > .25 > 2 * (p <= .05).mean()
    assert abs(p.mean() - .5) < .1


def test_a_true_correlation_gets_the_smallest_p():
    b = np.concatenate([smooth_fields(8, seed=0), smooth_fields(8, seed=1)])
    a = b + .5 * b.std() * np.random.default_rng(0).normal(size=b.shape)
    r, p = stats.shift_p(a, b, [SQUARE, SQUARE], n=99)
    assert (r > .8).all() and (p == 1 / 100).all() and (stats.shift_p(-a, b, [SQUARE, SQUARE], n=99)[1] > .95).all()
    one = stats.shift_p(a[:, 0], b, [SQUARE, SQUARE], n=99)
    assert one[0].shape == (8,) and one[0][0] == pytest.approx(r[0], abs=1e-12) and one[1][0] == p[0]
    assert (one[1][1:] > .01).any()
    assert np.allclose(stats.shift_p(a[:, 0], b[:, 0], [SQUARE, SQUARE], n=99), [one[0][:1], one[1][:1]])


def test_shift_p_equals_its_definition():
    rng = np.random.default_rng(0)
    slides = [rng.random((30, 2)), rng.random((17, 2)) * 50]
    a, b = rng.normal(size=(47, 300)), rng.normal(size=(47, 300)).astype(np.float32) + 9      # more than one block of genes
    a[:, 1] = b[:, 2] = 4
    a[3, 3] = np.nan
    r, p = stats.shift_p(a, b, slides, n=40, seed=5, tick=(done := []).append)
    assert sum(done) == 300 and len(done) == 2
    with np.errstate(all="ignore"):
        expected = np.array([[np.corrcoef(a[d, j], b[:, j])[0, 1] for j in range(300)]
                             for d in [np.arange(47), *stats.shifts(slides, 40, 5)]])
    none = np.isin(np.arange(300), (1, 2, 3))
    assert np.allclose(r[~none], expected[0, ~none], atol=1e-7) and np.isnan(r[none]).all() and np.isnan(p[none]).all()
    assert np.array_equal(p[~none], ((1 + (expected[1:] >= expected[0]).sum(0)) / 41)[~none])


def test_the_order_and_unit_of_locations_do_not_matter():
    rng = np.random.default_rng(0)
    a, b, order = smooth_fields(5, seed=0), smooth_fields(5, seed=1), rng.permutation(400)
    r, p = stats.shift_p(a, b, [SQUARE], n=99)
    shuffled = stats.shift_p(a[order], b[order], [SQUARE[order]], n=99)
    assert np.allclose(shuffled[0], r, atol=1e-12) and np.array_equal(shuffled[1], p)
    assert np.array_equal(stats.shift_p(a, b, [SQUARE * 112.5 + 7], n=99)[1], p)
    moved = stats.shift_p(3 * a + 1e3, b / 7, [SQUARE], n=99)
    assert np.allclose(moved[0], r) and np.array_equal(moved[1], p)


def test_too_few_locations_have_no_p():
    assert np.isnan(stats.shift_p([1.0], [[2.0, 3.0]], [[(0, 0)]], n=9)).all()
    r, p = stats.shift_p([1.0, 2.0], [[2.0], [3.0]], [[(0, 0)], [(5, 5)]], n=9)        # one in each slide: nothing can move
    assert r[0] == pytest.approx(1) and p[0] == 1


# ----- Outlines ------------------------------------------------------------------------------
def star(rng, k, center, radius):
    angle = np.sort(rng.random(k)) * 2 * np.pi
    return np.stack([np.cos(angle), np.sin(angle)], 1) * (radius * rng.uniform(.3, 1, (k, 1))) + center


def test_inside_equals_matplotlib_and_shapes_of_known_sense():
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 12, (2000, 2))
    outlines = [star(rng, k, rng.uniform(2, 8, 2), 5) for k in (3, 4, 11, 200)]
    for ring in outlines:
        truth = Outline(ring).contains_points(points)
        assert 20 < truth.sum() < 1900
        for same in (ring, ring[::-1], np.vstack([ring, ring[:1]]), np.roll(ring, 2, 0)):      # direction, closed, start
            assert np.array_equal(stats.inside(points, [[same]]), truth)
    union = np.any([Outline(ring).contains_points(points) for ring in outlines], 0)
    assert np.array_equal(stats.inside(points, [[ring] for ring in outlines]), union)          # overlaps stay in
    outer, hole = star(rng, 9, (5, 5), 7), star(rng, 9, (5, 5), 2)
    holed = Outline(outer).contains_points(points) ^ Outline(hole).contains_points(points)
    assert np.array_equal(stats.inside(points, [[outer, hole]]), holed)
    assert np.array_equal(stats.inside(points, [[outer, hole], [hole]]), holed | Outline(hole).contains_points(points))
    assert not stats.inside(points, []).any() and stats.inside([], [[outer]]).shape == (0,)


def test_tiles_of_a_plane_share_no_point():
    """Half-open edges: grid points on the edges of a triangulated square are in exactly one triangle."""
    rng = np.random.default_rng(0)
    corners = rng.integers(1, 20, (60, 2))
    corners = np.unique(np.vstack([corners, [(0, 0), (20, 0), (0, 20), (20, 20)]]), axis=0)
    triangles = corners[Delaunay(corners).simplices]
    points = np.stack(np.meshgrid(np.arange(0, 20, .5), np.arange(0, 20, .5)), -1).reshape(-1, 2)
    assert (np.sum([stats.inside(points, [[t]]) for t in triangles], 0) == 1).all()


def test_read_rings_of_every_wrapping():
    square, hole = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]], [[3, 3], [6, 3], [6, 6], [3, 6], [3, 3]]
    polygon = dict(type="Polygon", coordinates=[square, hole])
    multi = dict(type="MultiPolygon", coordinates=[[square, hole], [[[20, 0, 1], [29, 0, 1], [29, 9, 1]]]])
    other = [dict(type="Feature", geometry=dict(type="Point", coordinates=[1, 2])), dict(type="Feature", geometry=None), 5]
    features = [*other, dict(type="Feature", geometry=multi, properties=dict(objectType="annotation"))]
    points = [(1, 1), (4, 4), (28, 1), (15, 5)]
    for value, expected in ((polygon, [1, 0, 0, 0]), (dict(type="Feature", geometry=polygon), [1, 0, 0, 0]),
                            (multi, [1, 0, 1, 0]), (features, [1, 0, 1, 0]),
                            (dict(type="FeatureCollection", features=features), [1, 0, 1, 0])):
        polygons = stats.read_rings(json.loads(json.dumps(value)))
        assert stats.inside(points, polygons).tolist() == expected
        assert all(ring.shape[1] == 2 for rings in polygons for ring in rings)
    assert [len(rings) for rings in stats.read_rings(multi)] == [2, 1]


@pytest.mark.parametrize("value", [
    {}, [], None, 3, "x", [1, None], dict(type="FeatureCollection", features=[]), dict(features=None), dict(type="Polygon"),
    dict(type="LineString", coordinates=[[0, 0], [1, 1]]),
    *(dict(type="Polygon", coordinates=c) for c in (
        [], 3, [[[0, 1], [2], [3, 4]]], [[["a", 0]]], [[[0], [1], [2], [3]]], [[[0, 0], [1, float("nan")], [1, 1]]],
        [[[0, 0], [1, 10 ** 400], [1, 1]]], [[[0, 0], [1, 1e308], [1, 1]]], [[[0, 0], [1, 1]]])),
    dict(type="MultiPolygon", coordinates=[[[1, 2], [3, 4], [5, 6]]])])
def test_read_rings_says_in_one_line_what_is_wrong(value):
    with pytest.raises(ValueError) as e:
        stats.read_rings(value)
    assert "\n" not in str(e.value) and ("Polygon" in str(e.value))


# =====================================================================================================================
# he2rna.py
# Authorities: brute force, SciPy, torch.nn.Conv1d, autograd, and what was planted.
# =====================================================================================================================
def bags(rng, n_tiles, d=6, pad=0.0):
    """x (B, T, d), mask (B, T) of slides with these numbers of tiles; padding holds `pad`."""
    x, mask = torch.full((len(n_tiles), max(n_tiles), d), float(pad)), torch.zeros(len(n_tiles), max(n_tiles), dtype=torch.bool)
    for i, n in enumerate(n_tiles):
        x[i, :n], mask[i, :n] = torch.from_numpy(rng.normal(size=(n, d))).float(), True
    return x, mask


@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
def test_top_k_mean_equals_brute_force(shift):
    rng, n_tiles = np.random.default_rng(0), [1, 3, 9, 12]
    scores, mask = bags(rng, n_tiles, 5, pad=1e6)
    scores = scores + shift
    for k in (1, 2, 3, 7, 12, 50):
        got = he2rna.top_k_mean(scores, mask, k).numpy()
        for b, n in enumerate(n_tiles):
            for g in range(5):
                want = sorted(scores[b, :n, g].tolist(), reverse=True)[:k]
                assert got[b, g] == pytest.approx(sum(want) / len(want), rel=1e-5, abs=1e-4)


def test_padding_never_counts():
    """Three tiles -1, -2, -3 and five padded rows: -1 for k = 1, never 0."""
    scores = torch.tensor([-1., -2, -3, 0, 0, 0, 0, 0])[None, :, None]
    mask = torch.arange(8)[None] < 3
    assert [he2rna.top_k_mean(scores, mask, k).item() for k in (1, 2, 3, 8)] == [-1, -1.5, -2, -2]
    layer = torch.nn.Linear(1, 1)
    layer.weight.data.fill_(1), layer.bias.data.fill_(0)
    assert [he2rna.top_k_head(scores, mask, layer, k).item() for k in (1, 2, 3, 8)] == [-1, -1.5, -2, -2]
    with torch.no_grad():
        assert he2rna.all_k_head(scores, mask, layer, (1, 2, 8)).item() == pytest.approx((-1 - 1.5 - 2) / 3)


def test_the_authors_padding_competes():
    """The same three tiles, the authors' way: 0.0 for every k. Authority: that case; a loop over rows."""
    scores, mask = torch.tensor([-1., -2, -3])[None, :, None], torch.ones(1, 3, dtype=torch.bool)
    assert [he2rna.padded_top_k_mean(scores, mask, k, 8).item() for k in (1, 2, 3, 8, 99)] == [0] * 5
    rng, n_tiles = np.random.default_rng(0), [1, 3, 9, 12]
    scores, mask = bags(rng, n_tiles, 5, pad=1e6)
    for k in (1, 2, 7, 12, 20, 50):
        got = he2rna.padded_top_k_mean(scores, mask, k, 20).numpy()
        for b, n in enumerate(n_tiles):
            for g in range(5):
                rows = sorted([*scores[b, :n, g].tolist(), *[0.] * (20 - n)], reverse=True)[:min(k, n)]
                assert got[b, g] == pytest.approx(sum(rows) / len(rows), abs=1e-5)


def test_the_models_switches_have_two_sides():
    """padding, relu and k of HE2RNA on one set of weights, each against top_k_mean of its tile scores."""
    x, mask = bags(np.random.default_rng(3), [3, 9])
    torch.manual_seed(0)
    plain = he2rna.HE2RNA(6, 40, (5,), ks=(1, 3, 9), dropout=0)
    plain.layers[-1].bias.data -= .3                                           # scores of both signs
    other = {c: he2rna.HE2RNA(6, 40, (5,), ks=(1, 3, 9), dropout=0, code=(c,), pad_to=12) for c in ("padding", "relu", "k")}
    for model in other.values():
        model.load_state_dict(plain.state_dict())
    scores = plain.tile_scores(x)
    each = torch.stack([he2rna.top_k_mean(scores, mask, k) for k in (1, 3, 9)])                     # (3, B, G)
    padded = torch.stack([he2rna.padded_top_k_mean(scores, mask, k, 12) for k in (1, 3, 9)])
    outputs = {c: model.eval()(x, mask) for c, model in other.items()}
    assert torch.allclose(plain.eval()(x, mask), each.mean(0), atol=1e-6) and (each.mean(0) < -.01).any()
    assert torch.allclose(outputs["k"], each.mean(0), atol=1e-6) and torch.allclose(outputs["relu"], each.mean(0).relu(), atol=1e-6)
    assert torch.allclose(outputs["padding"], padded.mean(0), atol=1e-6) and not torch.allclose(padded.mean(0), each.mean(0), atol=1e-2)
    grad = torch.autograd.grad(outputs["padding"].square().sum(), other["padding"].layers[0].weight)[0]
    other["padding"].pad_to = 9                                                # none of the longer slide's rows is padding
    assert torch.isfinite(grad).all() and torch.allclose(other["padding"](x, mask)[1], each.mean(0)[1], atol=1e-6)
    other["padding"].pad_to = 12
    drawn = {}
    for i in range(20):
        for c, model in dict(plain=plain, **other).items():
            torch.manual_seed(i)
            out = model.train()(x, mask)                                       # (B, G)
            fits = torch.isclose(out, padded if c == "padding" else each, atol=1e-6).all(1)         # (3, G): all slides, one k
            assert fits.any(0).all()
            drawn.setdefault(c, []).append(fits.all(1).any().item())           # one k for all genes?
    assert all(drawn["plain"]) and all(drawn["relu"]) and all(drawn["padding"]) and not any(drawn["k"])


def test_all_k_is_the_mean_over_the_list_and_a_weighted_mean_of_ranked_tiles():
    rng, n_tiles, ks = np.random.default_rng(1), [1, 4, 30, 120], (1, 2, 5, 10, 20, 50, 100)
    h, mask = bags(rng, n_tiles, 7, pad=9)
    layer = torch.nn.Linear(7, 11)
    with torch.no_grad():
        scores, got = layer(h), he2rna.all_k_head(h, mask, layer, ks)
    want = torch.stack([he2rna.top_k_mean(scores, mask, k) for k in ks]).mean(0)
    assert torch.allclose(got, want, atol=1e-5)
    for b, n in enumerate(n_tiles):
        weights, ranked = he2rna.rank_weights(n, ks), scores[b, :n].sort(0, descending=True).values
        assert weights.sum() == pytest.approx(1) and (weights.diff() <= 1e-7).all()
        assert torch.allclose(weights @ ranked, got[b], atol=1e-5)


def direct(model, x, mask, k):
    """The published way: every tile scored for every gene, all scores kept for the backward pass."""
    return he2rna.top_k_mean(model.tile_scores(x), mask, k)


@pytest.mark.parametrize("way", ["gather", "products"])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_fast_head_has_the_value_and_gradients_of_the_direct_way(monkeypatch, way, dtype, tolerance):
    """Dropout on, padding anywhere, ragged slides, k from 1 to beyond the slide; several blocks of genes. Authority: autograd."""
    monkeypatch.setattr(he2rna, "GATHER", {"cpu": 2 if way == "gather" else 0})
    monkeypatch.setattr(he2rna, "BLOCK_SCORES", 300)
    rng = np.random.default_rng(0)
    x, mask = bags(rng, [1, 7, 40, 23], 12, pad=50)
    order = torch.from_numpy(rng.permutation(40))
    x, mask, y = x[:, order].to(dtype).requires_grad_(), mask[:, order], torch.randn(4, 31, dtype=dtype)
    model = he2rna.HE2RNA(12, 31, (16, 8), dropout=.5).to(dtype).train()
    for k in (1, 2, 7, 23, 39, 40, 99):
        results = []
        for predict in (model, lambda *a: direct(model, *a)):
            torch.manual_seed(k)                                               # the same dropout
            prediction = predict(x, mask, k)
            loss = (prediction - y).square().mean()
            results.append([prediction, loss, *torch.autograd.grad(loss, [x, *model.parameters()])])
        for ours, want in zip(*results):
            assert relative(ours.detach(), want.detach()) < tolerance, k


def test_tied_tiles_and_one_gene(monkeypatch):
    """A slide whose tiles stand there four times each: any of a tie may be taken, and nothing depends on which."""
    x, mask = bags(np.random.default_rng(5), [9, 9], 6)
    x, mask = x.repeat(1, 4, 1), mask.repeat(1, 4)
    model = he2rna.HE2RNA(6, 1, (5,), dropout=0).train()
    for gather in (0, 2):
        monkeypatch.setattr(he2rna, "GATHER", {"cpu": gather})
        for k in (1, 3, 6, 30):
            grads = [torch.autograd.grad(p.square().sum(), list(model.parameters())) for p in (model(x, mask, k), direct(model, x, mask, k))]
            assert all(relative(a, b) < 1e-5 for a, b in zip(*grads))


def test_bfloat16_chooses_among_nearly_equal_scores_and_predicts_in_float32():
    """The k best by rounded scores: their exact mean can only be lower than that of the k best, by less than the rounding."""
    torch.manual_seed(0)
    x, mask = bags(np.random.default_rng(6), [3000, 1200], 64)
    model = he2rna.HE2RNA(64, 50, (64,), dropout=0).train()
    for k in (1, 10, 100, 500):
        model.precision = "float32"
        with torch.no_grad():
            exact, scores = model(x, mask, k), model.tile_scores(x)
            model.precision = "bfloat16"
            lost = exact - model(x, mask, k)
        centred = (scores - scores[mask].mean(0)) * mask[:, :, None]           # what bfloat16 rounds, to one part in 256
        assert lost.min() > -1e-6 and (k + 36 > 600 or lost.max() > 0)         # bfloat16 had a part where the rule lets it
        assert lost.max() < 2 ** -7 * centred.abs().max()


def test_model_is_kernel_one_convolutions_and_blind_to_order_and_padding():
    torch.manual_seed(0)
    model = he2rna.HE2RNA(6, 11, (16, 8)).eval()
    x, mask = bags(np.random.default_rng(2), [3, 9], pad=5)
    convolutions = []
    for layer in model.layers:
        conv = torch.nn.Conv1d(layer.in_features, layer.out_features, 1)
        conv.weight.data, conv.bias.data = layer.weight.data[:, :, None], layer.bias.data
        convolutions += [conv, torch.nn.ReLU()]
    want = torch.nn.Sequential(*convolutions[:-1])(x.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(model.tile_scores(x), want, atol=1e-6) and want.shape == (2, 9, 11)
    out = model(x, mask)
    order = torch.randperm(9)
    assert torch.allclose(model(x[:, order], mask[:, order]), out, atol=1e-6)
    more = torch.cat([x, torch.full((2, 4, 6), -77.)], 1), torch.cat([mask, torch.zeros(2, 4, dtype=torch.bool)], 1)
    assert torch.allclose(model(*more), out, atol=1e-6) and torch.allclose(model(x[:1, :3], mask[:1, :3]), out[:1], atol=1e-6)


def test_training_draws_one_k_of_the_list_and_evaluation_averages():
    model, (x, mask) = he2rna.HE2RNA(6, 4, (5,), ks=(1, 3, 9), dropout=0), bags(np.random.default_rng(3), [9, 9])
    each = [he2rna.top_k_mean(model.tile_scores(x), mask, k) for k in (1, 3, 9)]
    seen = set()
    for i in range(40):
        torch.manual_seed(i)
        out = model.train()(x, mask)
        seen |= {k for k, want in zip((1, 3, 9), each) if torch.allclose(out, want, atol=1e-6)}
        assert any(torch.allclose(out, want, atol=1e-6) for want in each)
    assert seen == {1, 3, 9} and torch.allclose(model.eval()(x, mask), sum(each) / 3, atol=1e-6)


def test_gradient_reaches_the_kept_tiles_only():
    scores, mask = bags(np.random.default_rng(4), [2, 8], 3)
    scores.requires_grad_()
    he2rna.top_k_mean(scores, mask, 3).sum().backward()
    assert (scores.grad[0, 2:] == 0).all() and ((scores.grad != 0).sum(1) == torch.tensor([[2], [3]])).all()
    assert torch.allclose(scores.grad.sum(1), torch.ones(2, 3))
    layer, real = torch.nn.Linear(4, 3).double(), torch.ones(2, 5, dtype=torch.bool)
    h = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h, *_: he2rna.top_k_head(h, real, layer, 2), (h, *layer.parameters()))
    model = he2rna.HE2RNA(4, 3, (6,), ks=(1, 2, 9)).double().eval()            # gradients at test time too
    assert torch.autograd.gradcheck(lambda h: model(h, real), h)


def write_cohort(folder, rng, patients=12, genes=6, d=8, per_patient=1, tiles=30):
    """A cohort of .h5 features whose first genes follow planted features of the tiles; returns the expression table."""
    (folder / "h5").mkdir(parents=True, exist_ok=True)
    rows, table = ["slide,patient,project"], [",".join(["slide", *(f"G{g}" for g in range(genes))])]
    for p in range(patients):
        for s in range(per_patient):
            level, name = rng.normal(size=3), f"s{p:02d}_{s}"
            x = rng.normal(size=(tiles + p % 5, d)) * .3
            x[:, :3] += level
            with h5py.File(folder / "h5" / f"{name}.h5", "w") as h:
                h["features"], h["coords"] = x.astype(np.float16), tile_cloud(len(x), p)
            rows.append(f"{name},p{p:02d},{'XY'[p % 2]}")
            a = 10 ** np.r_[3 + .5 * level, 3 + .5 * rng.normal(size=genes - 3)]
            table.append(",".join([name, *(f"{v:.5g}" for v in a)]))
    (folder / "samples.csv").write_text("\n".join(rows) + "\n")
    (folder / "expression.csv").write_text("\n".join(table) + "\n")


def train(cohort, *argv):
    return he2rna.main(["train", str(cohort), "--features", str(cohort / "h5"), "--hidden", "32,16", "--ks", "1,5,20", "--device", "cpu",
                        "--folds", "3", "--valid", ".25", *argv])


def test_training_finds_what_was_planted_and_only_that(tmp_path, capsys):
    write_cohort(tmp_path, np.random.default_rng(0), patients=60)
    assert train(tmp_path, "--epochs", "60", "--lr", "3e-3", "--batch", "8") == 0
    run = tmp_path / "runs" / "he2rna"
    with open(run / "genes.csv") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 12 and {r["n"] for r in rows} == {"30"}
    for r in rows:
        assert (float(r["R"]) > .75 and r["significant_hs"] == "1") if r["gene"] in ("G0", "G1", "G2") else r["significant_hs"] == "0"
    z = np.load(run / "predictions.npz")                                       # the table again, from the saved predictions, by SciPy
    for r in rows:
        g, fold_r = list(z["genes"]).index(r["gene"]), []
        for f in range(3):
            at = (z["project"] == r["project"]) & (z["fold"] == f)
            fold_r.append(scipy.stats.pearsonr(z["prediction"][at, g], z["truth"][at, g])[0])
        assert [float(r[f"R_fold{f}"]) for f in range(3)] == pytest.approx(fold_r, abs=1e-5)
        t = np.mean(fold_r) * math.sqrt(28 / (1 - np.mean(fold_r) ** 2))
        assert float(r["R"]) == pytest.approx(np.mean(fold_r), abs=1e-5) and float(r["p_t"]) == pytest.approx(scipy.stats.t.sf(t, 28), rel=1e-3)
    with open(run / "folds.csv") as f:
        folds = list(csv.DictReader(f))
    assert all(r["test_fold"] not in r["validates_folds"].split() for r in folds) and len({r["slide"] for r in folds}) == 60
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {e["fold"] for e in log} == {0, 1, 2} and log[-1]["loss"] < log[0]["loss"]
    report = (run / "report.md").read_text()
    assert "seed: 0" in report and torch.__version__ in report and openslide.__version__ in report and (run / "scatter.png").stat().st_size > 10000
    saved = torch.load(run / "fold0.pt", weights_only=True)
    assert saved["genes"] == [f"G{g}" for g in range(6)] and set(saved["test_patients"]) == {r["patient"] for r in folds if r["test_fold"] == "0"}
    assert "slides/s" in capsys.readouterr().out


def test_without_validation_patients_the_last_epoch_is_kept(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(8))
    assert train(tmp_path, "--epochs", "4", "--valid", "0") == 0 and tune(tmp_path, "--project", "Y", "--epochs", "3") == 0
    for name, epochs in (("he2rna", 4), ("he2rna-Y-finetuned", 3)):
        run = tmp_path / "runs" / name
        assert {r["validates_folds"] for r in read_csv(run / "folds.csv")} == {""}
        for f in range(3):
            note = torch.load(run / f"fold{f}.pt", weights_only=True)["note"]
            assert note["best_epoch"] == note["epochs"] == epochs and "none: the last" in (run / "report.md").read_text()


def same_runs(a, b):
    for name in ("genes.csv", "folds.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    pa, pb = np.load(a / "predictions.npz"), np.load(b / "predictions.npz")
    assert all((pa[k] == pb[k]).all() for k in pa.files)
    drop = lambda run: [{k: v for k, v in json.loads(line).items() if k != "slides_per_s"} for line in (run / "log.jsonl").read_text().splitlines()]
    assert drop(a) == drop(b)


def test_interrupted_training_ends_as_one_that_was_not(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(1), patients=30)
    assert train(tmp_path, "--epochs", "5", "--name", "whole") == 0
    original, calls = he2rna.save_file, [0]
    for fatal in (2, 3, 5, 4, 6, 2):                                           # after the first state, between states, at a fold's end
        def save(path, write):
            calls[0] += 1
            if calls[0] == fatal:
                raise KeyboardInterrupt
            original(path, write)
        calls[0] = 0
        monkeypatch.setattr(he2rna, "save_file", save)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "--epochs", "5", "--name", "cut")
    monkeypatch.setattr(he2rna, "save_file", original)
    assert train(tmp_path, "--epochs", "5", "--name", "cut", "--workers", "3") == 0
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")
    assert train(tmp_path, "--epochs", "5", "--name", "cut") == 0              # a finished run is only reported again
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")
    with pytest.raises(tiling.InputError, match="epochs 5 -> 6.*--name"):
        train(tmp_path, "--epochs", "6", "--name", "cut")
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.state.pt"))


def test_runs_are_locked_and_given_back_however_they_end(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(0))
    run = tmp_path / "runs" / "he2rna"
    run.mkdir(parents=True)
    tiling.save_json(run / "lock", dict(tiling.this_process(), host="another", since="2026-01-01 00:00:00"))
    with pytest.raises(tiling.InputError, match="he2rna: process .* on another"):
        train(tmp_path, "--epochs", "1")
    assert not (run / "config.json").exists() and (run / "lock").exists()
    (run / "lock").unlink()
    assert train(tmp_path, "--epochs", "1") == 0
    with pytest.raises(tiling.InputError, match="epochs 1 -> 2"):
        train(tmp_path, "--epochs", "2")
    assert not list(tmp_path.rglob("lock*")) and not tiling.HELD


def test_a_full_disk_stops_a_training_that_goes_on_as_if_it_had_not(tmp_path, monkeypatch, capsys):
    write_cohort(tmp_path, np.random.default_rng(1), patients=6)
    argv = (he2rna, "train", tmp_path, "--features", tmp_path / "h5", "--device", "cpu", *"--hidden 8 --ks 1,5 --folds 3 --valid .25 --epochs 2".split())
    count = fill_disk(monkeypatch, 0)
    assert status_of(capsys, *argv, "--name", "whole")[0] == 0
    for at in (1, 6, 9, 12, 18):
        fill_disk(monkeypatch, at)
        status, said = status_of(capsys, *argv, "--name", "cut")
        assert status in (0, 2) and (status == 0 or re.fullmatch(f"error: {tmp_path}/.*: No space left on device", said[-1]))
    monkeypatch.undo()
    assert count[0] >= 18 and status_of(capsys, *argv, "--name", "cut")[0] == 0 and not list(tmp_path.rglob("*.tmp"))
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")


def test_a_loss_that_is_not_finite_stops_with_the_slide_and_keeps_the_epoch_before(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(1))
    argv = ("--epochs", "3", "--batch", "1")
    assert train(tmp_path, *argv, "--name", "whole") == 0
    whole, seen = he2rna.in_memory, []

    def in_memory(x, mask):
        def bags(parts):
            for rows, one, m in whole(x, mask)(parts):
                seen.append(int(rows[0]))
                yield rows, one * float("nan") if seen.count(seen[-1]) == 2 and seen[-1] == odd else one, m
        return bags
    odd = int(np.flatnonzero([r["test_fold"] != "0" and r["validates_folds"].split() != ["0"] for r in read_csv(tmp_path / "runs" / "whole" / "folds.csv")])[0])
    monkeypatch.setattr(he2rna, "in_memory", in_memory)                        # one slide goes wrong when it is seen again, in epoch 2
    with pytest.raises(tiling.InputError, match=rf"fold 0 epoch 2: loss .* at the slides s{odd:02d}_0; .*fold0.state.pt keeps epoch 1; a lower --lr"):
        train(tmp_path, *argv, "--name", "cut")
    assert torch.load(tmp_path / "runs" / "cut" / "fold0.state.pt", weights_only=True)["epoch"] == 1
    monkeypatch.setattr(he2rna, "in_memory", whole)
    assert train(tmp_path, *argv, "--name", "cut") == 0
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")


class Bomb:
    """What a pickle may hold: a call that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_file_that_is_read_runs_its_pickle(tmp_path, two_slides, changed, unlabelled, monkeypatch):
    """Everything that a program loads, replaced by a pickle that would make a file; the authority: it does, for pickle and torch."""
    ran, bomb = tmp_path / "ran", tmp_path / "bomb.pt"
    torch.save(dict(model={}, version=1, x=Bomb(ran)), bomb)
    torch.load(bomb, weights_only=False)
    assert ran.exists()
    ran.unlink()
    plain, arrays = pickle.dumps(Bomb(ran)), np.array([Bomb(ran)], object)
    contents = [bomb.read_bytes(), plain]
    write_cohort(tmp_path / "c", np.random.default_rng(0), patients=6)
    cohort, run = tmp_path / "c", tmp_path / "c" / "runs" / "he2rna"
    assert train(cohort, "--epochs", "1") == 0
    reads = [lambda p: tiling.load_checkpoint(p, "cpu"), lambda p: tiling.load_weights(4, str(p), 0), lambda p: tiling.read_encoder(p),
             lambda p: tiling.load_encoder(str(p), None, 0, "cpu")]
    for content in contents:
        bomb.write_bytes(content)
        for read in reads:
            with pytest.raises(tiling.InputError):
                read(bomb)
        whole = (run / "fold0.pt").read_bytes()
        (run / "fold0.pt").write_bytes(content)
        for command in (lambda: train(cohort, "--epochs", "1"), lambda: he2rna.main(["predict", str(run), "all"]),
                        lambda: he2rna.main(["finetune", str(cohort), "he2rna"])):
            with pytest.raises(tiling.InputError, match="fold0.pt: not a whole checkpoint"):
                command()
        (run / "fold0.pt").write_bytes(whole)
    for save in (lambda p: np.save(p, arrays), lambda p: p.write_bytes(plain)):
        tiling.make_tiles(two_slides, ["a"], options("--workers", "1"))
        path = two_slides / "features" / "resnet50" / "a.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path)
        with pytest.raises(tiling.InputError, match="not a whole array"):
            tiling.load_features(two_slides, "resnet50", "a")
    other, encoders = tmp_path / "p", tmp_path / "e"                           # what histcode reads, and what a training goes on from
    shutil.copytree(changed, other, ignore=shutil.ignore_patterns(*(set(MODELS) - {"linear"})))
    shutil.copytree(unlabelled, encoders, ignore=shutil.ignore_patterns("runs"))
    monkeypatch.setattr(histcode, "write_diagnosis", lambda folder, *_: tiling.save_text(folder / "report.md", ["done"]))
    assert diagnose(other, "--rotate", "--folds", "3", "--epochs", "1") == 0
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(histcode, "first_bank", lambda *_: signal.raise_signal(signal.SIGINT))
        pretrain(encoders, "--epochs", "1")
    learned, judged, views = other / "runs" / "linear", other / "runs" / "diagnosis", encoders / "runs" / "adco"
    again = {run: lambda: train(cohort, "--epochs", "1"), learned: lambda: express(other, "--name", "linear"),
             judged: lambda: diagnose(other, "--rotate", "--folds", "3", "--epochs", "1"), views: lambda: pretrain(encoders, "--epochs", "1")}
    torch.save(dict(features=torch.zeros(3, 4), coords=Bomb(ran)), bomb)       # inside of what a file of features may be
    for content in (*contents, bomb.read_bytes()):
        for folder, name, state in ((run, "fold0.pt", "fold0.state.pt"), (learned, "fold0.pt", "fold0.0.state.pt"),
                                    (judged, "HistCode-r0-f0.pt", "HistCode-r0-f0.1.state.pt"), (views, None, "state.pt")):
            there = name and (folder / name).read_bytes()
            for spoiled in filter(None, (name, state)):
                (folder / name).unlink(missing_ok=True) if name else None
                (folder / spoiled).write_bytes(content)
                with pytest.raises(tiling.InputError, match=f"{re.escape(spoiled)}: not a whole checkpoint"):
                    again[folder]()
                if spoiled == name and folder != run:
                    with pytest.raises(tiling.InputError, match="not a whole checkpoint"):
                        histcode.main(["predict", str(folder), "all", "--device", "cpu"])
                (folder / spoiled).unlink()
            (folder / name).write_bytes(there) if name else None
        bomb.write_bytes(content)
        for read in (lambda: tiling.load_features(tmp_path, tmp_path, "bomb"), lambda: tiling.read_foreign(bomb, tiling.FEW_ROWS),
                     lambda: histcode.main(["probe", str(encoders), str(bomb), "--device", "cpu"]),
                     lambda: pretrain(encoders, "--weights", str(bomb), "--name", "b")):
            with pytest.raises(tiling.InputError):
                read()
    np.savez(tmp_path / "x.npz", expression=arrays, genes=arrays, slide=arrays, features=arrays, patients=arrays, msi=arrays, coords=arrays, settings=arrays)
    for path in (tmp_path / "c" / "expression.npz", two_slides / "tiles" / "a.npz", run / "predictions.npz", tmp_path / "study.npz"):
        shutil.copyfile(tmp_path / "x.npz", path)
    assert tiling.load_arrays(two_slides / "tiles" / "a.npz") is None
    (cohort / "expression.csv").unlink()
    for call in (lambda: tiling.read_expression(cohort), lambda: he2rna.main(["msi", str(tmp_path / "study.npz")]),
                 lambda: he2rna.group_r(dict(folder=run, config={}), [0])):
        with pytest.raises(tiling.InputError):
            call()
    assert tiling.make_tiles(two_slides, ["a"], options("--workers", "1")) == {} and tiling.tiles_of(two_slides, "a")[0] is not None
    assert not ran.exists() and not tiling.HELD


WHOLE_TILES = dict(coords=np.arange(10, dtype=np.int32).reshape(5, 2), size=np.array([99, 99]), tile=2., mpp=.5, found=5, settings=np.array("{}"))


@pytest.mark.parametrize("damage", [dict(settings="{"), dict(settings="[1]"), dict(settings=3), dict(settings="[" * 9999), dict(coords=None), dict(found=None),
                                    dict(tile=np.nan), dict(tile=-1.), dict(coords=WHOLE_TILES["coords"] - 1),
                                    dict(coords=WHOLE_TILES["coords"].astype(np.int64) + 2 ** 62),
                                    dict(mpp=0.), dict(coords=np.arange(10)), dict(found=np.ones(3, int))])
def test_tiles_that_are_not_whole_are_as_if_not_there(tmp_path, damage):
    (tmp_path / "tiles").mkdir()
    for change in ({}, damage):
        np.savez(tmp_path / "tiles" / "a.npz", **{k: v for k, v in {**WHOLE_TILES, **change}.items() if v is not None})
        assert (tiling.tiles_of(tmp_path, "a") == (None, None)) == bool(change)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.h5", "a.pt", "expression.npz"])
def test_damaged_arrays_are_refused_and_never_a_traceback(tmp_path, name):
    """200 copies, a byte flipped, some cut (600 each were tried by hand): arrays, or None or an InputError."""
    rng, path = np.random.default_rng(0), tmp_path / {"a.npz": "tiles/a.npz", "a.npy": "features/e/a.npy"}.get(name, name)
    for folder in (tmp_path / "tiles", tmp_path / "features" / "e"):
        folder.mkdir(parents=True)
    features, coords = rng.normal(size=(5, 6)).astype(np.float16), np.arange(10, dtype=np.int32).reshape(5, 2)
    np.savez(tmp_path / "tiles" / "a.npz", **WHOLE_TILES)
    np.save(tmp_path / "features" / "e" / "a.npy", features)
    np.savez(tmp_path / "expression.npz", expression=np.ones((3, 2)), genes=np.array(["A", "B"]), slide=np.array(["x", "y", "z"]))
    torch.save(dict(model=dict(a=torch.zeros(3))), tmp_path / "a.pt")
    with h5py.File(tmp_path / "a.h5", "w") as h:
        h["features"], h["coords"] = features, coords
    read = {"a.npz": lambda: tiling.tiles_of(tmp_path, "a"), "a.npy": lambda: tiling.load_features(tmp_path, "e", "a"),
            "a.h5": lambda: tiling.load_features(tmp_path, tmp_path, "a"),
            "a.pt": lambda: tiling.load_checkpoint(path, "cpu"), "expression.npz": lambda: tiling.read_expression(tmp_path)}[name]
    data, refused = path.read_bytes(), 0
    assert read() not in (None, (None, None)) if name == "a.npz" else read() is not None
    for i in range(200):
        damaged = bytearray(data)
        damaged[int(rng.integers(128 if name == "a.npy" else len(data)))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged[:int(rng.integers(len(data)))] if i % 5 == 0 else damaged)
        try:
            refused += read() in (None, (None, None)) if name == "a.npz" else read() is None
        except tiling.InputError as e:
            assert str(e).isprintable()
            refused += 1
    assert refused >= 40                                                       # at least those that were cut


def test_a_checkpoint_of_another_run_is_named(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(0), patients=6)
    run = tmp_path / "runs" / "he2rna"
    assert train(tmp_path, "--epochs", "1") == 0 and train(tmp_path, "--epochs", "1", "--hidden", "8", "--name", "small") == 0
    other = tiling.load_checkpoint(tmp_path / "runs" / "small" / "fold1.pt", "cpu")
    for wrong, why in ((other, "run or fold"), ({k: v for k, v in other.items() if k != "run"}, "network"),      # made before runs had an id
                       (torch.load(run / "fold0.pt", weights_only=True), "run or fold")):
        torch.save(wrong, run / "fold1.pt")
        with pytest.raises(tiling.InputError, match=f"fold1.pt: not a whole checkpoint of this run .of another {why}.; delete it"):
            train(tmp_path, "--epochs", "1")
    for value in ([1, 2], dict(weights=1)):
        torch.save(value, run / "fold1.pt")
        for command in (lambda: train(tmp_path, "--epochs", "1"), lambda: he2rna.main(["predict", str(run), "all"])):
            with pytest.raises(tiling.InputError, match="fold1.pt: not a whole checkpoint of this run"):
                command()
    (run / "fold1.pt").unlink()
    assert train(tmp_path, "--epochs", "1") == 0
    mixed_up(run, lambda: he2rna.main(["predict", str(run), "all"]), "test_fold")


def mixed_up(run, command, column):
    """What names the fold of a patient or a setting, changed by hand, is refused by a command on the run, which then goes on as before."""
    folds, config = run / "folds.csv", run / "config.json"
    table, settings = folds.read_text(), tiling.load_json(config)
    patient = read_csv(folds)[0]["patient"]
    moved = re.sub(r"^(.*?,.*?,.*?),(\d)", lambda m: f"{m[1]},{(int(m[2]) + 1) % 3}", table, count=2, flags=re.MULTILINE)
    for text, why in ((table.replace(f",{patient},", ",Somebody,"), "no model of the run knows the patients Somebody"),
                      (table.replace(",", ";"), "wanted are rows with slide and patient"), ("", "wanted are rows"), ("\x00" * 9, "folds.csv"),
                      *[(moved, "were tested in other folds than it says")] * (column == "test_fold")):
        folds.write_text(text)
        with pytest.raises(tiling.InputError, match=why):
            command()
    folds.write_bytes("\ufeff".encode() + table.encode())                      # as a spreadsheet saves it: nothing else changed
    for key in ("folds", "features", "seed", "version", "command"):
        for change in ({k: v for k, v in settings.items() if k != key}, {**settings, key: 2}, {**settings, key: ["x"]}):
            tiling.save_json(config, change)
            with pytest.raises(tiling.InputError, match="was changed since its run was made|is a run of version|: not a run"):
                command()
    tiling.save_json(config, settings)
    assert command() == 0


def test_choices_are_one_table_and_wrong_names_list_the_right_ones(tmp_path, capsys):
    assert he2rna.main(["choices"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 120
    names = [(c, name) for c, name, *_ in he2rna.CHOICES]
    assert len(set(names)) == len(names) == 17 and all(f"{c} {name}" in said for c, name in names)
    assert all(re.fullmatch(r"\[(HE2RNA.*|ours)\]", row[-1]) for row in he2rna.CHOICES)
    for command, right in (("train", "colour, genes, padding, relu, k, folds, epochs, bias, merged, pooled"),
                           ("audit", "colour, genes, padding"), ("msi", "scaling, genes, autoencoder, epochs, msi-l")):
        with pytest.raises(SystemExit):
            he2rna.main([command, str(tmp_path), "--code", "genes,colours"])
        assert f"colours: choose from {right}" in capsys.readouterr().err
    assert tiling.flipped(he2rna.CHOICES, "train", (), "paper") == ["k", "epochs"] and tiling.flipped(he2rna.CHOICES, "train", ["bias"], None) == ["bias"]
    assert tiling.flipped(he2rna.CHOICES, "train", ["k"], "code") == ["colour", "genes", "padding", "relu", "k", "folds"]
    assert tiling.flipped(he2rna.CHOICES, "msi", (), "paper") == ["genes"] and tiling.flipped(he2rna.CHOICES, "msi", (), "code") == list(tiling.switches(he2rna.CHOICES, "msi"))


@pytest.mark.parametrize("argv, words", [
    (("--code", "colour"), "--code colour: --features .* were made elsewhere"), (("--code", "folds"), "the authors' are 5 folds; leave --folds 3 out"),
    (("--code", "epochs"), "none is left to choose an epoch; leave --valid 0.25 out"), (("--code", "folds", "--folds", "5"), "leave --valid 0.25 out"),
    (("--code", "folds", "--folds", "5", "--valid", "0", "--folds-by", "site"), "leave --folds-by site out"),
    (("--folds-by", "site"), "--folds-by site: samples.csv has the patients p00, p01, .* no TCGA barcode")])
def test_switches_that_gainsay_options_say_so(tmp_path, argv, words):
    write_cohort(tmp_path, np.random.default_rng(0))
    with pytest.raises(tiling.InputError, match=words):
        train(tmp_path, *argv)
    assert not (tmp_path / "runs").exists()


def test_a_runs_switches_have_two_sides(tmp_path, capsys):
    """genes, folds, epochs, bias and pooled in runs of one epoch that learn next to nothing, so that the start is seen."""
    write_cohort(tmp_path, np.random.default_rng(5), patients=30)
    lines = (tmp_path / "expression.csv").read_text().splitlines()             # G5 is expressed in a third of the samples
    lines = [lines[0], *(line if i % 3 == 0 else line.rsplit(",", 1)[0] + ",0" for i, line in enumerate(lines[1:]))]
    (tmp_path / "expression.csv").write_text("\n".join(lines) + "\n")
    few_steps = ("--epochs", "2", "--lr", "1e-9", "--folds", "5", "--valid", ".1")
    assert train(tmp_path, *few_steps) == 0
    assert train(tmp_path, *few_steps, "--valid", "0", "--name", "b", "--code", "genes,epochs,bias,pooled") == 0
    assert train(tmp_path, *few_steps, "--name", "c", "--code", "folds") == 0
    runs = {name: tmp_path / "runs" / name for name in ("he2rna", "b", "c")}
    folds = {name: read_csv(run / "folds.csv") for name, run in runs.items()}
    saved = {name: [torch.load(run / f"fold{f}.pt", weights_only=True) for f in range(5)] for name, run in runs.items()}
    assert saved["he2rna"][0]["genes"] == [f"G{g}" for g in range(5)] and saved["b"][0]["genes"] == [f"G{g}" for g in range(6)]
    assert all(r["validates_folds"] == "" for r in folds["b"]) and any(r["validates_folds"] for r in folds["he2rna"])
    for f in range(5):
        assert saved["b"][f]["note"]["best_epoch"] == 2 and len(saved["b"][f]["saw"]["weights of the network"]) == 24
        assert len(saved["he2rna"][f]["saw"]["weights of the network"]) == 22 and len(saved["he2rna"][f]["saw"]["choice of the epoch"]) == 2
    z = {name: np.load(run / "predictions.npz") for name, run in runs.items()}
    for name, learned in (("he2rna", True), ("b", False)):
        for f, one in enumerate(saved[name]):
            rows = np.isin(z[name]["patient"], one["saw"]["weights of the network"])
            assert np.allclose(one["model"]["layers.2.bias"].numpy(), z[name]["truth"][rows].mean(0), atol=1e-3) == learned
    patients = [r["patient"] for r in folds["c"]]
    for f, (rows, valid, test) in enumerate(stats.authors_folds(patients)):    # set for set
        assert [r["test_fold"] == str(f) for r in folds["c"]] == np.isin(np.arange(30), test).tolist()
        assert [str(f) in r["validates_folds"].split() for r in folds["c"]] == np.isin(np.arange(30), valid).tolist()
        assert saved["c"][f]["saw"]["weights of the network"] == sorted(patients[i] for i in rows)
    assert [r["test_fold"] for r in folds["c"]] != [r["test_fold"] for r in folds["he2rna"]]
    header = {name: (run / "genes.csv").read_text().splitlines()[0] for name, run in runs.items()}
    assert header["he2rna"].endswith("R_fold0,R_fold1,R_fold2,R_fold3,R_fold4") and header["b"].endswith("significant_bh,R_fold0")
    for r in read_csv(runs["b"] / "genes.csv"):                                # one R over all folds
        at, g = z["b"]["project"] == r["project"], list(z["b"]["genes"]).index(r["gene"])
        assert float(r["R"]) == pytest.approx(scipy.stats.pearsonr(z["b"]["prediction"][at, g], z["b"]["truth"][at, g])[0], abs=1e-4)
    report = (runs["b"] / "report.md").read_text()
    for c in ("genes", "epochs", "bias", "pooled"):
        assert f"{c}: {tiling.switches(he2rna.CHOICES, 'train')[c]}" in report
    assert json.loads((runs["b"] / "config.json").read_text())["code"] == ["genes", "epochs", "bias", "pooled"]
    for name, argv in (("he2rna", ("--code", "padding")), ("c", ())):          # never a mix, either way
        with pytest.raises(tiling.InputError, match=r"other settings .*code \["):
            train(tmp_path, *few_steps, "--name", name, *argv)
    assert he2rna.main(["finetune", str(tmp_path), "b", "--epochs", "1", "--ks", "1,5", "--device", "cpu"]) == 0      # keeps its switches
    assert json.loads((tmp_path / "runs" / "b-finetuned" / "config.json").read_text())["code"] == ["genes", "epochs", "bias", "pooled"]
    assert "| b: weights of the network | 24 | 0 of 6 |" in (tmp_path / "runs" / "b-finetuned" / "report.md").read_text()


def test_predictions_of_padding_and_relu_runs_are_those_of_their_models(tmp_path, capsys):
    """Cross-validation and predict agree, though predict sees a slide alone: the padding is the model's."""
    write_cohort(tmp_path, np.random.default_rng(3), patients=12)
    assert train(tmp_path, "--epochs", "1", "--folds", "5", "--valid", ".1", "--follow", "code", "--code", "k") == 0
    run = tmp_path / "runs" / "he2rna"
    assert json.loads((run / "config.json").read_text())["code"] == ["genes", "padding", "relu", "k", "folds"]
    assert "without colour, for features made elsewhere" in capsys.readouterr().out
    z = np.load(run / "predictions.npz")
    assert z["prediction"].min() >= 0 and he2rna.main(["predict", str(run), "all", "--device", "cpu"]) == 0
    for slide, want in zip(z["slide"], z["prediction"]):
        got = [float(r["log10_1p_fpkm_uq"]) for r in read_csv(run / "predict" / f"{slide}.csv")]
        assert np.allclose(got, want, atol=2e-5)


def test_padding_and_relu_change_nothing_where_all_scores_are_positive(tmp_path):
    """Genes far above 0, the last bias at their mean: neither a zero nor a ReLU has a say, in trained or untrained models."""
    write_cohort(tmp_path, np.random.default_rng(4), patients=24)
    for name, argv in (("a", ()), ("b", ("--code", "padding,relu"))):
        assert train(tmp_path, "--epochs", "3", "--name", name, *argv) == 0
    a, b = (np.load(tmp_path / "runs" / name / "predictions.npz")["prediction"] for name in "ab")
    assert np.allclose(a, b, atol=1e-4) and a.min() > .5
    a, b = (np.load(tmp_path / "runs" / name / "null.npz") for name in "ab")
    assert all(np.allclose(a[k], b[k], atol=1e-3) for k in "XY") and np.isfinite(a["X"]).all()


def test_pooled_and_merged_have_two_sides():
    """Each fold's predictions are right but for its own offset: R is 1 in each fold, and less over all."""
    rng = np.random.default_rng(0)
    y, fold = rng.normal(size=(40, 3)).astype(np.float32), np.arange(40) % 4
    prediction, projects = y + 5 * fold[:, None], np.repeat(["LUAD", "LUSC"], 20)
    for code, want in (((), 1), (("pooled",), None)):
        within, k = he2rna.judged_in(fold, dict(folds=4, code=code))
        r = he2rna.evaluate(prediction, y, within, projects, k)["LUNG"]["r"]
        assert r == pytest.approx([want or scipy.stats.pearsonr(prediction[:, g], y[:, g])[0] for g in range(3)]) and (want or r.max() < .6)
    names = ["LUNG", "LUAD", "LUSC", "LIHC"]
    assert he2rna.separate(names) == ["LUNG", "LIHC"] and he2rna.separate(names, ("merged",)) == ["LUAD", "LUSC", "LIHC"]
    assert he2rna.separate(["LUAD", "LIHC"], ("merged",)) == he2rna.separate(["LUAD", "LIHC"]) == ["LUAD", "LIHC"]


def test_the_ledger_says_what_saw_test_patients_and_catches_a_planted_leak(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(2), patients=12, per_patient=2)
    section = lambda name: (tmp_path / "runs" / name / "report.md").read_text().split("## What saw whom")[1].split("## ")[0]
    top = lambda name: (tmp_path / "runs" / name / "report.md").read_text().split("\n## ")[0]
    assert train(tmp_path, "--epochs", "1") == 0 and train(tmp_path, "--epochs", "1", "--name", "none", "--code", "genes") == 0
    assert "**Steps that saw test patients: gene filter**" in top("he2rna") and "| gene filter | 12 | 4 of 4 | as the paper words it" in section("he2rna")
    for step, n in (("start of the last bias", 6), ("weights of the network", 6), ("choice of the epoch", 2)):
        assert f"| {step} | {n} | 0 of 4 |  |" in section("he2rna") and f"| {step} | {n} | 0 of 4 |  |" in section("none")
    assert "saw test patients" not in top("none") and "gene filter" not in section("none") and "by design" in section("none")
    honest = he2rna.split_folds
    for step, leak in (("weights of the network", lambda rows, valid, test: (np.r_[rows, test[:2]], valid, test)),
                       ("choice of the epoch", lambda rows, valid, test: (rows, test, test))):
        name = step.split()[0]
        monkeypatch.setattr(he2rna, "split_folds", lambda *a: [leak(*split) for split in honest(*a)])
        assert train(tmp_path, "--epochs", "1", "--name", name, "--code", "genes,bias") == 0
        assert f"**Steps that saw test patients: {step}**" in top(name) and re.search(rf"\| {step} \| \d \| \d of 4 \| \*\*a leak\*\* \|", section(name))
    rows, leaks = tiling.what_saw_whom([dict(a=["p", "q"], c=["q"]), dict(a=["r"], b=["q"])], [["q"], ["r", "s"]], dict(c=None))
    assert rows == [("a", "1–2", "1 of 1–2", "**a leak**"), ("c", "0–1", "0–1 of 1–2", "by design: it judges, nothing learns from it"),
                    ("b", "0–1", "0 of 1–2", "")] and leaks == ["a"]


def test_folds_by_site_and_the_certificate_of_a_run(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(2), patients=14, per_patient=2)
    assert train(tmp_path, "--epochs", "1") == 0
    text = (tmp_path / "runs" / "he2rna" / "folds.md").read_text()
    assert "by patient" in text and text.splitlines()[4:6] == ["| X | 3 | 2 | 2 |", "| Y | 2 | 3 | 2 |"] or "| X |" in text
    counts = np.array([[int(v) for v in line.split("|")[2:5]] for line in text.splitlines() if line.startswith(("| X", "| Y"))])
    chi2, p = scipy.stats.chi2_contingency(counts)[:2]
    line = f"Chi-square of projects against folds {chi2:.2f}, 2 degrees of freedom, p = {p:.2g}"
    assert counts.sum() == 14 and line in text and line in (tmp_path / "runs" / "he2rna" / "report.md").read_text()
    table = (tmp_path / "samples.csv").read_text()
    named = re.sub(r",p(\d\d)", lambda m: f",TCGA-{'AABBBCDDDDEFFG'[int(m[1])] * 2}-{m[1]}", table)
    (tmp_path / "samples.csv").write_text(named)
    assert train(tmp_path, "--epochs", "1", "--name", "site", "--folds-by", "site") == 0
    of = {}
    for r in read_csv(tmp_path / "runs" / "site" / "folds.csv"):
        of.setdefault(r["patient"][5:7], set()).add(r["test_fold"])
    assert len(of) == 7 and all(len(v) == 1 for v in of.values()) and set.union(*of.values()) == {"0", "1", "2"}
    assert "by site" in (tmp_path / "runs" / "site" / "report.md").read_text() and "by site" in (tmp_path / "runs" / "site" / "folds.md").read_text()
    with pytest.raises(tiling.InputError, match="7 sites .* don't go into --folds 8: --folds 7 would work"):
        train(tmp_path, "--name", "many", "--folds-by", "site", "--folds", "8")
    (tmp_path / "samples.csv").write_text(named.replace("TCGA-GG-13", "patient13"))
    with pytest.raises(tiling.InputError, match="the patient patient13, no TCGA barcode"):
        train(tmp_path, "--name", "odd", "--folds-by", "site")


@pytest.mark.parametrize("row", ["train,default", "train,default,x,R,.1,0,", "train,nosuch,0,R,.1,0,", "x,default,0,R,.1,0,", "train,bias,0,R,.1,0,",
                                 "train,default,0,R,.1,0,\ntrain,bias,0,HS,.1,0,"])
def test_a_table_of_an_audit_with_a_row_that_is_none_of_ours_is_refused(tmp_path, row):
    tiling.claim_folder(tmp_path, dict(command="audit"), "audit.csv")
    tiling.save_text(tmp_path / "audit.csv", ["command,choice,seed,measure,value,change,seconds", row])
    with pytest.raises(tiling.InputError, match="audit.csv: not whole, or not of this program: delete it to begin again"):
        tiling.run_audit(tmp_path, {}, {"train": {"bias": "none"}}, {}, "")
    tiling.release()


def test_audit_goes_on_where_it_stopped_and_is_the_runs_difference(tmp_path, monkeypatch, capsys):
    write_cohort(tmp_path, np.random.default_rng(1), patients=24)
    audit = lambda *more: he2rna.main(["audit", str(tmp_path), "--features", str(tmp_path / "h5"), "--hidden", "16", "--ks", "1,5", "--device", "cpu",
                                 "--folds", "3", "--valid", ".25", "--epochs", "2", "--seeds", "2", *(more or ("--code", "colour,bias,pooled"))])
    real_fold, trained = he2rna.train_fold, []

    def train_fold(*args):
        if len(trained) == 8:
            trained.append("cut")
            raise KeyboardInterrupt
        trained.append(args[-2])
        return real_fold(*args)
    monkeypatch.setattr(he2rna, "train_fold", train_fold)
    folder = tmp_path / "runs" / "audit"
    with pytest.raises(KeyboardInterrupt):
        audit()
    assert "without train's colour: features made elsewhere" in capsys.readouterr().out and len(read_csv(folder / "audit.csv")) == 2 * 3
    assert audit() == 0 and len(trained) == 13 == 1 + 4 * 3                    # default and bias, 2 seeds, 3 folds; pooled has default's models
    stamps, first = {p: p.stat().st_mtime_ns for p in folder.rglob("*.pt")}, (folder / "audit.csv").read_bytes()
    text = (folder / "audit.md").read_text()
    assert audit() == 0 and len(trained) == 13 and stamps == {p: p.stat().st_mtime_ns for p in folder.rglob("*.pt")}
    assert (folder / "audit.csv").read_bytes() == first and (folder / "audit.md").read_text() == text
    value = lambda name, seed: np.mean([np.mean([float(r["R"]) for r in read_csv(folder / f"{name}-seed{seed}" / "genes.csv") if r["project"] == p and r["R"]])
                                        for p in "XY"])
    rows = {(r["choice"], int(r["seed"])): r for r in read_csv(folder / "audit.csv") if r["measure"] == "R"}
    assert list(rows) == [(name, s) for name in ("default", "bias", "pooled") for s in (0, 1)]
    for (name, s), r in rows.items():
        assert float(r["value"]) == pytest.approx(value(name, s), abs=2e-6)
        assert float(r["change"]) == pytest.approx(value(name, s) - value("default", s), abs=4e-6) and (r["seconds"] == "") == (name == "pooled")
    low, high = scipy.stats.t.interval(.95, 1, *(lambda v: (v.mean(), v.std(ddof=1) / 2 ** .5))(np.array([float(rows["bias", s]["change"]) for s in (0, 1)])))
    assert f" ({low:+.3f} to {high:+.3f}) |" in text and "| pooled | one R over the test slides of all folds |" in text
    same = [np.load(folder / f"{name}-seed1" / "predictions.npz")["prediction"] for name in ("default", "pooled")]
    assert (same[0] == same[1]).all()
    assert audit("--code", "merged", "--seeds", "1") == 0                      # one more choice beside the others
    assert [r["choice"] for r in read_csv(folder / "audit.csv") if r["measure"] == "HS"] == ["default"] * 2 + ["bias"] * 2 + ["merged"] + ["pooled"] * 2
    with pytest.raises(tiling.InputError, match="other settings .epochs 2 -> 3"):
        audit("--epochs", "3")
    with pytest.raises(tiling.InputError, match="--seeds 0"):
        audit("--seeds", "0")


def test_killed_training_goes_on(tmp_path):
    """SIGTERM of the real command; SIGKILL is tested with every step."""
    write_cohort(tmp_path, np.random.default_rng(1), patients=30)
    command = [sys.executable, he2rna.__file__, "train", str(tmp_path), "--features", str(tmp_path / "h5"), "--hidden", "32", "--folds", "3",
               "--epochs", "20", "--device", "cpu", "--name", "cut"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "epoch   1/20" in line:                                             # all others a minute later, in a pipe
            process.terminate()
            break
    assert process.wait(60) == 143 and not (tmp_path / "runs" / "cut" / "lock").exists()
    assert he2rna.main(command[2:]) == 0 and he2rna.main([*command[2:-1], "whole"]) == 0
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")


NURSERY = """
import json, os, signal, socket, sys, time
import tiling, he2rna, histcode, matplotlib.pyplot, torch._dynamo     # which torch imports with the first optimizer
begun, begins = os.pipe()
for line in sys.stdin:                 # a process, or several, for each command, without the seconds of importing and of Python's own end
    module, argv, delay, number, world = json.loads(line)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pids = []
    while len(pids) < world and (not pids or pids[-1]):
        pids.append(os.fork())
    if not pids[-1]:
        if world > 1:                                # as torchrun sets them
            os.environ.update(RANK=str(len(pids) - 1), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        try:
            tiling.run(lambda: os.write(begins, b"x") and dict(tiling=tiling, he2rna=he2rna, histcode=histcode)[module].main(argv))
        except SystemExit as end:
            os._exit(end.code)
    for _ in pids:
        os.read(begun, 1)
    start = time.time()
    if delay is not None:
        time.sleep(delay)
        os.kill(pids[0], number)
    status = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps([max(status, key=abs), time.time() - start]), flush=True)
"""


def alike(a, b):
    """Two loaded checkpoints, but for the time they took."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a if k not in ("seconds", "config"))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def but_for_times(path, cohort):
    """What a file of a run says, without its times, rates, number of processes and the folder it lies in: a checkpoint, the set of its log's
    entries, or text."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.name not in ("log.jsonl", "config.json", "report.md"):
        return path.read_bytes().replace(str(cohort).encode(), b"")
    text = path.read_text().replace(str(cohort), "")
    text = re.sub(r"\b\d+:\d\d:\d\d\b|(?<=_per_s\": )[\d.]+|(?<=seconds\": )[\d.]+|(?<=processes\": )\d|(?<=processes: )\d", "", text)
    return set(text.splitlines()) if path.name == "log.jsonl" else text


SIGNALS = {signal.SIGINT: (130, "interrupted; the same command goes on from here"), signal.SIGTERM: (143, "terminated; the same command goes on from here"),
           signal.SIGKILL: (-9, "")}


def kill_often(folder, whole, cut, steps, rounds, rng, shared=None):
    """Each step undisturbed in `whole` with 4 workers; in `cut` with one, stopped by SIGINT, SIGTERM and `rounds` times by SIGKILL at random moments, then
    undisturbed: the same files. SIGINT and SIGTERM end with their status and one line, and leave no lock and no half file. In the cohort
    `shared`, if given, by two processes, but for what is one process's; files of these steps are the same, too."""
    nursery = subprocess.Popen([sys.executable, "-c", NURSERY, str(folder / "errors")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               cwd=Path(__file__).parent)

    def run(module, argv, delay=None, number=0, world=1):
        print(json.dumps([module, argv, delay, number, world]), file=nursery.stdin, flush=True)
        status, seconds = json.loads(nursery.stdout.readline())
        said = [line for line in (folder / "errors").read_text().splitlines() if line and not re.search(r"^.+: [\d,]+/[\d,]+ .* left\s*$", line)]
        return status, seconds, "\n".join(said)
    # nobody holds predict/, nor the folder of probe's table: there SIGKILL may leave a hidden half file, which nothing reads; an empty lock is of
    # one stopped before it wrote who it is, and believed stale after a minute
    left = lambda: [*(p for p in cut.rglob(".*.tmp") if p.parent.name not in ("predict", cut.name)), *(p for p in cut.rglob("lock*") if p.read_text())]
    stopped = dict.fromkeys(SIGNALS, 0)
    for module, argv in steps:
        of = lambda cohort, workers: [a.format(cohort=cohort, workers=workers) for a in argv]
        status, seconds, usual = run(module, of(whole, 4))
        assert status == 0, (argv, usual)
        if shared:
            world = 0 if argv[0] in ("pretrain", "probe") else 1 if argv[0] in ("predict", "heatmap") else 2     # pretraining: to rounding
            assert not world or run(module, of(shared, 1), world=world)[0] == 0, (argv, (folder / "errors").read_text())
        numbers = [*SIGNALS, *[signal.SIGKILL] * (rounds - 1)]                 # SIGKILL last: its lock stays for the next
        for number in numbers:
            status, _, said = run(module, of(cut, 1), seconds * rng.uniform(.02, 1.6 / len(numbers)), number)
            assert (status, said) in ((0, usual), SIGNALS[number]), (argv, number, status, said)
            assert number == signal.SIGKILL or not left(), (argv, number)
            stopped[number] += status == SIGNALS[number][0]
            for lock in cut.rglob("lock*"):                                    # the minute is over
                os.utime(lock, (0, 0))
        assert run(module, of(cut, 1))[::2] == (0, usual), argv
    nursery.stdin.close()
    assert nursery.wait() == 0 and not [*left(), *cut.rglob("*.state.pt")]
    files = lambda cohort: {p.relative_to(cohort): p for p in cohort.rglob("[!.]*") if p.is_file()}
    for other in (cut, *([shared] if shared else ())):
        mine, theirs = files(other), {k: v for k, v in files(whole).items() if other == cut or not {"adco", "probe.csv"} & set(k.parts)}
        assert mine.keys() == theirs.keys(), mine.keys() ^ theirs.keys()
        for name in mine:
            a, b = but_for_times(mine[name], other), but_for_times(theirs[name], whole)
            assert a <= b if name.name == "log.jsonl" else alike(a, b), (name, a, b)   # a line may have been lost, none is another
    return stopped


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_killed_anywhere_every_step_goes_on_to_the_same_files(drawn, tmp_path):
    """SIGKILL, SIGINT and SIGTERM at random moments of every step, 4 workers against one, and two processes that share the slides, folds and
    splits: every file the same, reports but for their times."""
    tiny_encoder(tmp_path / "tiny.pt")
    write_pairs(tmp_path / "pairs")
    for name in ("whole", "cut", "shared"):
        shutil.copytree(drawn, tmp_path / name)
        shutil.copytree(tmp_path / "pairs", tmp_path / name / "pairs")
    common = ["--device", "cpu", "--workers", "{workers}"]
    made = ["{cohort}", *common, "--encoder", str(tmp_path / "tiny.pt"), "--precision", "float32", "--max-tiles", "6"]
    pairs = ["{cohort}/pairs", "--features", "{cohort}/pairs/h5", *common, "--folds", "3", "--hidden", "4"]
    slide = read_csv(drawn / "samples.csv")[0]["slide"]
    np.savez(tmp_path / "study.npz", **study(np.random.default_rng(0)))
    torch.save(tiling.ResNet50(histcode.STAGES).state_dict(), tmp_path / "start.pth")
    steps = [("tiling", ["supertiles", *made]),                                # tiles and features first
        ("he2rna", ["train", *made, "--hidden", "64", "--folds", "3", "--epochs", "5", "--valid", ".25", "--null-models", "1"]),
        ("he2rna", ["finetune", "{cohort}", "he2rna", "--epochs", "3", "--genes", "CD3D,CD3E", "--null-models", "1", *common]),
        ("he2rna", ["predict", "{cohort}/runs/he2rna", "all", *common]),
        ("he2rna", ["heatmap", "{cohort}/runs/he2rna", slide, "--genes", "CD3D", "--weights", str(tmp_path / "tiny.pt"), *common]),      # of all its tiles
        ("he2rna", ["msi", str(tmp_path / "study.npz"), "--name", "{cohort}/msi", "--splits", "2", "--ratios", "1/2", "--arms", "transcriptome,direct",
                    "--repeats", "1", "--device", "cpu"]),
        ("histcode", ["diagnose", *pairs, "--rotate", "--epochs", "6"]), ("histcode", ["expression", *pairs, "--epochs", "6"]),
        ("histcode", ["pretrain", "{cohort}", *common, "--weights", str(tmp_path / "start.pth"), "--tile-px", "32", "--view-px", "32", "--batch", "4", "--epochs", "3",
                      "--tiles-per-slide", "1", "--precision", "float32"]),
        ("histcode", ["probe", "{cohort}", "{cohort}/runs/adco/adco.pt", "--csv", "{cohort}/probe.csv", "--tiles-per-slide", "4", *common])]
    stopped = kill_often(tmp_path, tmp_path / "whole", tmp_path / "cut", steps, 2, np.random.default_rng(0), tmp_path / "shared")
    assert sum(stopped.values()) >= 2 * len(steps) and min(stopped.values()) >= len(steps) / 2, stopped     # of four for each step


def numbers_of(run):
    """All that a run has learned and predicted, as one row of numbers: its checkpoints' tensors and predictions.npz, or MSI's AUCs."""
    if (run / "results.csv").is_file():
        return np.array([float(r["auc"]) for r in read_csv(run / "results.csv")])
    paths, z = sorted(run.glob("state.pt")) or sorted(run.glob("*.pt")), tiling.load_arrays(run / "predictions.npz") or {}     # pretraining: its state
    tensors = [v for p in paths for one in [torch.load(p, weights_only=True)] for part in (one["model"], one) for v in part.values() if torch.is_tensor(v)]
    return np.concatenate([v.double().numpy().ravel() for v in tensors] + [z[k].ravel() for k in ("prediction", "predicted_label") if k in z])


@pytest.mark.parametrize("command, module, name", [("train", he2rna, "BLOCK_SCORES"), ("msi", he2rna, "MSI_BLOCK"), ("expression", histcode, "GENES_AT_ONCE"),
                                                   ("diagnose", histcode, "BAGS_AT_ONCE"), ("pretrain", None, None)])
def test_the_seed_decides_and_blocks_do_not(changed, unlabelled, tmp_path, monkeypatch, small, command, module, name):
    """Blocks of one gene, network or bag, of all at once, and the usual ones: the same weights and predictions to 2e-6 (5e-7 was found; MSI's AUCs
    exactly). The same seed gives the same again, bit for bit; another seed others."""
    monkeypatch.chdir(tmp_path)
    write_cohort(tmp_path / "c", np.random.default_rng(0)), write_bag_table(tmp_path / "toy.csv")
    shutil.copytree(changed, tmp_path / "p", ignore=shutil.ignore_patterns("runs"))
    monkeypatch.setattr(histcode, "write_expression", lambda *_: None), monkeypatch.setattr(histcode, "write_diagnosis", lambda *_: None)
    monkeypatch.setattr(he2rna, "write_msi_report", lambda *_: None)
    go = {"train": lambda run, *argv: train(tmp_path / "c", "--epochs", "2", "--null-models", "1", "--name", run, *argv),
          "msi": lambda run, *argv: run_study(tmp_path, study(np.random.default_rng(0)), "--splits", "1", "--ratios", "1/2", "--repeats", "1", *argv, name=run),
          "expression": lambda run, *argv: express(tmp_path / "p", "--name", run, *MODELS["per-gene"], *argv),
          "diagnose": lambda run, *argv: histcode.main([*"diagnose --bags toy.csv --repeats 1 --folds 3 --epochs 3 --lr .01 --device cpu".split(),
                                                        "--name", run, *argv]),
          "pretrain": lambda run, *argv: pretrain(unlabelled, "--epochs", "1", "--tiles-per-slide", "1", "--name", f"{run}-seed", *argv)}[command]
    folder = {"train": tmp_path / "c" / "runs", "expression": tmp_path / "p" / "runs"}.get(command, tmp_path)

    def numbers(run, *argv):
        go(run, *argv)
        return numbers_of(unlabelled / "runs" / f"{run}-seed" if command == "pretrain" else folder / run)
    usual, seeded = numbers("usual"), numbers("other", "--seed", "1")
    assert len(usual) >= 15 and usual.shape == seeded.shape and np.abs(usual - seeded).max() > .01 and (usual == numbers("again")).all()
    for i, block in enumerate((1, 2 ** 40) if name else ()):
        monkeypatch.setattr(module, name, dict(cpu=block) if name == "MSI_BLOCK" else min(block, 16) if name == "GENES_AT_ONCE" else block)
        assert np.abs(numbers(f"block{i}") - usual).max() <= (0 if command == "msi" else 2e-6)


def test_expression_formats_agree_and_genes_without_median_are_dropped(tmp_path):
    rng = np.random.default_rng(0)
    a = np.round(10 ** rng.uniform(0, 5, (9, 40)), 3)
    a[:5, 3] = 0                                                               # median 0
    a[:4, 4] = 0                                                               # median > 0
    genes, ids = [f"G{g}" for g in range(40)], [f"s{i}" for i in range(9)]
    text = "\n".join([",".join(["slide", *genes]), *(",".join([i, *map(repr, row.tolist())]) for i, row in zip(ids, a))])
    for name in ("csv", "gz", "npz", "windows"):
        (tmp_path / name).mkdir()
    (tmp_path / "csv" / "expression.csv").write_text(text)
    (tmp_path / "windows" / "expression.csv").write_bytes(("\ufeff" + text.replace("\n", "\r\n") + "\r\n\r\n").encode())
    (tmp_path / "gz" / "expression.csv.gz").write_bytes(gzip.compress(text.encode()))
    np.savez(tmp_path / "npz" / "expression.npz", expression=a, genes=np.array(genes), slide=np.array(ids))
    for name in ("csv", "gz", "npz", "windows"):
        key, got_ids, got_genes, got = he2rna.read_expression(tmp_path / name)
        assert (key, got_ids, got_genes) == ("slide", ids, genes) and np.allclose(got, a, rtol=1e-6) and got.dtype == np.float32
    for n in (8, 9):                                                           # even, odd
        assert (he2rna.expressed(a[:n]) == (np.median(a[:n], axis=0) > 0)).all() and not he2rna.expressed(a[:n])[3]
    assert np.allclose(he2rna.log_expression(np.array([0, 9, 999.])), [0, 1, 3])


@pytest.mark.parametrize("row, words", [
    ("s1,1,-2", "gene B of s1 is '-2'"), ("s1,1,x", "gene B of s1 is 'x'"), ("s1,1,", "gene B of s1 is ''"), ("s1,nan,2", "gene A of s1 is 'nan'"),
    ("s1,1,1e400", "gene B of s1 is '1e400'"), ("s1,1,1e39", "gene B of s1 is '1e39'"), ("s1,1_0,2", "gene A of s1 is '1_0'"),
    ("s1,1", "line 3: 2 fields, the header has 3"), ("s0,1,2", "row 's0' stands there twice")])
def test_expression_mistakes_name_gene_and_slide(tmp_path, row, words):
    (tmp_path / "expression.csv").write_text("slide,A,B\ns0,1,2\n" + row + "\n")
    with pytest.raises(tiling.InputError, match=re.escape(words)):
        he2rna.read_expression(tmp_path)


def npz_bytes(**arrays):
    np.savez(f := io.BytesIO(), **arrays)
    return f.getvalue()


@pytest.mark.parametrize("files, words", [
    ({}, "no expression.csv"), ({"expression.csv": b"slide,A,A\ns,1,2\n"}, "gene 'A' stands there twice"), ({"expression.csv": b""}, "the first line must be"),
    ({"expression.csv": b"slide,A\n"}, "no rows"), ({"expression.csv.gz": b"slide,A\n"}, "not a whole"), ({"expression.npz": b"zip?"}, "wanted arrays"),
    *(({"expression.npz": npz_bytes(sample=i, genes=g, expression=np.ones(n))}, "wanted arrays") for i, g, n in (
        ("x", "A", (0, 1)), ([], ["A"], (0, 1)), ("x", "A", ()), ([["a"]], "A", (1, 1)))),
    ({"expression.csv.gz": gzip.compress(b"slide,A\n" + b"s,1\n" * 99)[:-9]}, "not a whole"),
    ({"expression.csv.gz": gzip.compress(b"slide,A\n")[:10] + b"\xff" * 40}, "not a whole"),
    ({"expression.csv": b"slide,A\ns,1\n", "expression.npz": b""}, "are both there")])
def test_expression_files_that_cannot_be_meant(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(tiling.InputError, match=re.escape(words)):
        he2rna.read_expression(tmp_path)


def test_join_by_slide_or_sample():
    samples = [dict(slide=s, sample=m, patient="p", project="X") for s, m in (("a1", "A"), ("a2", "A"), ("b1", "B"), ("c1", "C"))]
    kept, rows, left = he2rna.join(samples, "sample", ["B", "A", "D"])
    assert [s["slide"] for s in kept] == ["a1", "a2", "b1"] and rows.tolist() == [1, 1, 0]
    assert list(left.values()) == [["c1"], ["D"]]
    assert he2rna.join(samples, "", ["A"])[1].tolist() == [0, 0] and he2rna.join(samples, "slide", ["b1"])[1].tolist() == [0]
    with pytest.raises(tiling.InputError, match="no column sample"):
        he2rna.join([dict(slide="a", patient="p", project="X")], "sample", ["a"])
    with pytest.raises(tiling.InputError, match="are genes the rows"):
        he2rna.join(samples, "slide", ["TP53"])


def test_a_sample_of_two_patients_would_stand_on_both_sides_of_a_fold():
    samples = [dict(slide="a", sample="A", patient="p", project="X"), dict(slide="b", sample="A", patient="q", project="X")]
    with pytest.raises(tiling.InputError, match="sample A is of two patients, p and q"):
        he2rna.join(samples, "sample", ["A"])


def test_primary_tumours_and_projects_are_selected():
    samples = [dict(slide=str(i), project=p, sample_type=t) for i, (p, t) in enumerate([
        ("TCGA-LUAD", "Primary Tumor"), ("TCGA-LUSC", "Solid Tissue Normal"), ("TCGA-LUSC", "Primary Tumor"), ("TCGA-KIRC", "Primary Tumor")])]
    pick = lambda types, project: [s["slide"] for s in he2rna.select(samples, types, project)[0]]
    assert pick(None, None) == ["0", "2", "3"] and pick("all", "LUNG") == ["0", "1", "2"] and pick("solid tissue normal", None) == ["1"]
    assert pick(None, "TCGA-KIRC") == pick(None, "KIRC") == ["3"]
    for types, project, words in ((None, "STAD", "samples.csv has TCGA-KIRC"), ("Metastatic", None, "samples.csv has Primary Tumor"),
                                  (None, "LUAD,LUADD", "LUADD: samples.csv"), ("Primary Tumor,Metastatic", None, "samples.csv has Primary")):
        with pytest.raises(tiling.InputError, match=words):
            he2rna.select(samples, types, project)


def test_cancers_are_never_pooled_but_for_the_papers_merges():
    groups = he2rna.cancers(["TCGA-LUAD", "TCGA-LUSC", "TCGA-KIRC", "TCGA-UCEC", "COAD"])
    assert list(groups) == ["LUNG", "COAD", "KIRC", "LUAD", "LUSC", "UCEC"] and groups["LUNG"].tolist() == [True, True, False, False, False]


def test_evaluation_equals_scipy_and_a_constant_gene_has_no_value(tmp_path):
    rng = np.random.default_rng(0)
    y, fold, projects = rng.normal(size=(60, 5)), np.arange(60) % 3, np.array(["X"] * 40 + ["Y"] * 18 + ["Z"] * 2)
    p = y * .5 + rng.normal(size=y.shape)
    p[:, 2], y[:40, 3], p[(fold == 1) & (projects == "X"), 4] = 1.25, 0, 7     # no value: everywhere; in X; in one fold of X
    results = he2rna.evaluate(p, y, fold, projects, 3)
    for name in "XY":
        e = results[name]
        for g in range(5):
            folds = []
            for f in range(3):
                at = (fold == f) & (projects == name)
                if np.ptp(y[at, g]) > 0 and np.ptp(p[at, g]) > 0:
                    folds.append(scipy.stats.pearsonr(p[at, g], y[at, g])[0])
            assert e["r"][g] == pytest.approx(np.mean(folds)) if folds else np.isnan(e["r"][g])
        full = (projects == name).sum()
        assert e["slides"] == full and e["n"].tolist() == [full, full, 0, full if name == "Y" else 0, full if name == "Y" else 40 - 13]
        assert np.isnan(e["p"][2]) and not np.isnan(e["r"][4])
        assert e["p"][0] == pytest.approx(stats.pearson_p(e["r"][0], full)) and e["all_p"]["permutation"][0] >= e["p"][0]
    assert np.isnan(results["Z"]["r"]).all()                                   # two slides: no R at all
    he2rna.write_genes(tmp_path / "genes.csv", ["A", "B,1", "C", "D", "E"], results)
    with open(tmp_path / "genes.csv") as f:
        rows = list(csv.DictReader(f))
    empty = [(r["gene"], r["project"]) for r in rows if r["R"] == ""]
    assert sorted(empty) == sorted([("C", "X"), ("D", "X"), ("C", "Y"), *((g, "Z") for g in ("A", "B,1", "C", "D", "E"))])
    assert len(rows) == 15 and "nan" not in (tmp_path / "genes.csv").read_text() and all(r["significant_hs"] == "0" for r in rows if r["R"] == "")


def test_the_permutation_null_holds_for_noise_in_small_folds():
    """Noise, 12 slides in 5 folds: the mean of folds is not one R; permuted slides scatter as it does. Authority: drawing them."""
    rng, tests, found, uniform = np.random.default_rng(0), 3000, 0, []
    for n, k in ((12, 5), (20, 5), (45, 5)):
        y, p, fold = *rng.normal(size=(2, n, tests)), np.arange(n) % k
        e = he2rna.evaluate(p, y, fold, np.array(["X"] * n), k, null="permutation")["X"]
        found += (e["hs"] < .05).sum()
        uniform.append((e["p"] < .05).mean())
        mean, m = stats.null_fit(stats.permutation_null(p, y, fold, 50, rng))
        assert mean == pytest.approx(0, abs=.01) and e["fits"]["permutation"][1] == pytest.approx(m, rel=.1)
    assert found <= 3 and all(.03 < u < .075 for u in uniform)


def test_the_three_nulls_of_a_run(tmp_path, capsys):
    """Untrained models judge genes that follow nothing as chance does; --null only changes what decides, nothing is trained again."""
    write_cohort(tmp_path, np.random.default_rng(3), patients=40, genes=40)
    run = tmp_path / "runs" / "he2rna"
    for null in ("untrained", "t", "permutation"):
        assert train(tmp_path, "--epochs", "2", "--null", null, "--null-models", "2") == 0
        rows = read_csv(run / "genes.csv")
        for project in "XY":
            part = [r for r in rows if r["project"] == project]
            same([float(r["p_holm_sidak"]) for r in part], stats.holm_sidak(np.array([float(r[f"p_{null}"]) for r in part])), 1e-4)
        assert f"under the {null} null" in (run / "report.md").read_text()
    z, saved = np.load(run / "predictions.npz"), np.load(run / "null.npz")
    assert saved["X"].shape == (2 * 25, 40) and (run / "null.png").stat().st_size > 5000
    noise = saved["X"][:, 3:]                                                  # genes that follow nothing
    assert abs(noise.mean()) < .1 and noise.std() == pytest.approx(1 / math.sqrt(20 - 3), rel=.35)
    torch.manual_seed(int(np.random.default_rng([0, 1, 1]).integers(2 ** 62)))               # one of them, again
    model, at = he2rna.HE2RNA(8, 1000, (32, 16), (1, 5, 20)), (z["fold"] == 1) & (z["project"] == "X")
    x, mask = he2rna.load_bags(tmp_path, "h5", z["slide"][at].tolist())
    p = he2rna.predict_slides(model, he2rna.in_memory(x, mask), np.arange(at.sum()))[:, :40]
    folds = [saved["X"][0] * 3]                                                # mean of the three folds: the other two are between -1 and 1
    one = stats.pearson(p, z["truth"][at])
    assert (np.abs(folds[0] - one) <= 2 + 1e-4).all() and np.corrcoef(saved["X"][0], one)[0, 1] > .3
    before = (run / "null.npz").stat().st_mtime_ns
    assert train(tmp_path, "--epochs", "2") == 0 and (run / "null.npz").stat().st_mtime_ns != before     # three models again


def test_r_sign_is_the_papers(tmp_path):
    """.64 at n = 44 is the t's first Šidák step over 30,839 genes; .20 at n = 1,046 is not (.143)."""
    for n, want in ((44, .637), (1046, .143)):
        e = dict(r=np.zeros(30839), fits=dict(t=(0.0, n)))
        assert he2rna.r_sign(e, "t") == pytest.approx(want, abs=6e-4)


def test_merged_cancers_count_once():
    assert he2rna.separate(["LUNG", "LUAD", "LUSC", "BRCA"]) == ["LUNG", "BRCA"] and he2rna.separate(["LUAD", "BRCA"]) == ["LUAD", "BRCA"]


@pytest.fixture
def judged(tmp_path):
    """A run folder as signatures and enrich read it: 300 genes in two cancers, the first 40 well predicted in both."""
    rng, genes = np.random.default_rng(0), [f"GENE{i}" for i in range(300)]
    n = 60
    y = rng.normal(size=(n, 300)) + 3
    prediction = y * 0 + rng.normal(size=y.shape)
    prediction[:, :40] += 2 * y[:, :40]
    prediction[:, 299] = 1                                                     # no R
    projects, fold = np.repeat(["A", "B"], n // 2), np.arange(n) % 3
    results = he2rna.evaluate(prediction, y, fold, projects, 3)
    he2rna.write_genes(tmp_path / "genes.csv", genes, results)
    np.savez(tmp_path / "predictions.npz", truth=y, prediction=prediction, genes=np.array(genes), fold=fold, project=projects, patient=np.arange(n).astype(str))
    lines = ["IN\tx\t" + "\t".join(genes[:25]), "OUT\tx\t" + "\t".join(genes[100:130]), "NOWHERE\tx\tZZZ1\tZZZ2", "EMPTY\tx",
             "HOUSEKEEPING\tx\t" + "\t".join(genes[200:260]), "HALF\tx\t" + "\t".join(genes[20:60])]
    (tmp_path / "sets.gmt").write_bytes("\r\n".join(lines).encode() + b"\r\n")
    return tmp_path, results


def test_signatures_of_a_run(judged, capsys):
    folder, results = judged
    argv = ["signatures", str(folder), "--gmt", str(folder / "sets.gmt"), "--lists", "500"]
    assert he2rna.main([*argv, "--signature", "IN", "--signature", "mine=IN,HALF", "--signature", "OUT", "--signature", "none=NOWHERE,EMPTY"]) == 0
    rows = {(r["signature"], r["cancer"]): r for r in read_csv(folder / "signatures" / "signatures.csv")}
    for c in "AB":
        assert float(rows["IN", c]["R_p"]) == pytest.approx(results[c]["r"][:25].mean(), abs=1e-3)
        assert float(rows["IN", c]["R_o"]) == pytest.approx(np.nanmean(results[c]["r"]), abs=.02)
        assert float(rows["IN", c]["p"]) == pytest.approx(1 / 501, rel=1e-3) and float(rows["OUT", c]["p"]) > .05
        assert float(rows["IN", c]["f_p"]) == pytest.approx((results[c]["hs"][:25] < .05).mean(), abs=1e-3)
        assert rows["mine", c]["genes in it"] == "5" and rows["none", c]["R_p"] == "" and rows["IN", c]["p matched"] != ""
    out = capsys.readouterr().out
    assert "none: no gene of it was measured" in out and (folder / "signatures" / "r.png").stat().st_size > 5000
    before = (folder / "signatures" / "signatures.csv").read_bytes()
    assert he2rna.main(argv) == 0                                              # the paper's: none of their sets is here
    out = capsys.readouterr().out
    assert "hypoxia: without HALLMARK_HYPOXIA" in out and "HOUSEKEEPING" in out
    with pytest.raises(tiling.InputError, match="no set INN; nearest: IN"):
        he2rna.main([*argv, "--signature", "INN"])
    assert he2rna.main([*argv, "--signature", "IN", "--signature", "mine=IN,HALF", "--signature", "OUT", "--signature", "none=NOWHERE,EMPTY"]) == 0
    assert (folder / "signatures" / "signatures.csv").read_bytes() == before   # the same seed, the same lists


@pytest.mark.parametrize("change, words", [
    (dict(genes=None), "missing or not whole"), (dict(truth=np.ones(300)), "missing or not whole"),
    (dict(truth=np.full((60, 300), "x")), "missing or not whole"),
    (dict(truth=np.ones((60, 9))), "missing or not whole"), (dict(truth=np.full((60, 300), np.nan)), "no expression of GENE0"),
    (dict(genes=np.array(["X"] + [f"GENE{i}" for i in range(1, 300)])), "no expression of GENE0"),
    (lambda text: text + "GENE0,A\n", "'GENE0,A' is no row of it"), (lambda text: text[:text.rindex("GENE299")], "its cancers have different genes")])
def test_a_damaged_runs_tables_are_refused(judged, change, words):
    folder, _ = judged
    for file in ("predictions.npz",) if isinstance(change, dict) else ():
        np.savez(folder / file, **{k: v for k, v in {**np.load(folder / file), **change}.items() if v is not None})
    if callable(change):
        (folder / "genes.csv").write_text(change((folder / "genes.csv").read_text()))
    with pytest.raises(tiling.InputError, match=words):
        he2rna.main(["signatures", str(folder), "--gmt", str(folder / "sets.gmt"), "--lists", "5"])


def test_the_groups_r_is_of_the_runs_genes_and_of_whole_predictions(judged):
    folder, results = judged
    run, z = dict(folder=folder, genes=[f"GENE{i}" for i in range(300)], config=dict(seed=0, code=[], folds=3)), dict(np.load(folder / "predictions.npz"))
    assert [row[:3] for row in he2rna.group_r(run, [7])] == [(c, 30, f"{results[c]['r'][7]:.3f}") for c in "AB"]
    for change in (dict(fold=z["fold"].astype(str)), dict(patient=None), dict(project=z["project"][1:]), dict(genes=z["genes"][::-1])):
        np.savez(folder / "predictions.npz", **{k: v for k, v in {**z, **change}.items() if v is not None})
        with pytest.raises(tiling.InputError, match="different genes" if "genes" in change else "missing or not whole"):
            he2rna.group_r(run, [7])


def test_enrichment_of_a_run(judged, capsys):
    folder, results = judged
    argv = ["enrich", str(folder), "--gmt", str(folder / "sets.gmt")]
    assert he2rna.main(argv) == 0
    for c in "AB":
        rows = {r["set"]: r for r in read_csv(folder / "enrichment" / f"{c}.csv")}
        hits = np.flatnonzero(results[c]["hs"] < .05)
        table = [[(hits < 25).sum(), 25 - (hits < 25).sum()], [(hits >= 25).sum(), 299 - 25 - (hits >= 25).sum()]]
        assert float(rows["IN"]["p"]) == pytest.approx(scipy.stats.fisher_exact(table, alternative="greater")[1], rel=1e-3)
        assert rows["NOWHERE"]["p"] == rows["EMPTY"]["p"] == "" and rows["IN"]["hit genes"].split() == [f"GENE{i}" for i in hits if i < 25]
    assert he2rna.main([*argv, "--min-r", "1"]) == 0 and "A: 0 hits" in capsys.readouterr().out
    assert he2rna.main([*argv, "--at-least", "2"]) == 0
    both = sum((results["A"]["hs"] < .05) & (results["B"]["hs"] < .05))
    assert f"at-least-2: {both} hits" in capsys.readouterr().out
    for extra, words in ((["--at-least", "3"], "has 2 cancers"), (["--project", "C"], "the run has A, B"),
                         *((["--min-r", r], f"--min-r {r}: an R lies") for r in ("nan", "inf", "2"))):
        with pytest.raises(tiling.InputError, match=words):
            he2rna.main([*argv, *extra])
    for text, words in (("A\tx\tG1\nA\tx\tG2\n", "line 1 too, with different genes"), ("", "no gene set")):
        (folder / "bad.gmt").write_text(text)
        with pytest.raises(tiling.InputError, match=words):
            he2rna.main(["enrich", str(folder), "--gmt", str(folder / "bad.gmt")])
    with pytest.raises(tiling.InputError, match="nothing.gmt"):
        he2rna.main(["enrich", str(folder), "--gmt", str(folder / "nothing.gmt")])


def test_ensembl_ids_are_mapped_and_unmapped_ones_counted(tmp_path):
    (tmp_path / "t.tsv").write_text("gene_id\tgene_name\tgene_type\nENSG00000000003.14\tTSPAN6\tprotein_coding\nENSG00000000005.5\tTNMD\tlincRNA\n")
    symbol, biotype = he2rna.read_gene_table(tmp_path / "t.tsv")
    names, line = he2rna.as_symbols(["ENSG00000000003.10", "ENSG00000000005", "ENSG00000999999.1", "TP53", "ENSA"], symbol)
    assert names == ["TSPAN6", "TNMD", "ENSG00000999999", "TP53", "ENSA"] and "1 of 5 genes have no symbol" in line
    assert biotype == {"TSPAN6", "ENSG00000000003"}
    assert he2rna.as_symbols(["A", "B"], {}) == (["A", "B"], "")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(tiling.InputError, match="wanted two of the columns gene_id"):
        he2rna.read_gene_table(tmp_path / "bad.csv")


# The GDC's files: what is written here is what the test expects, read back by NumPy and csv alone.
OLD_GENES = ["ENSG00000000003.13", "ENSG00000000005.5", "ENSG00000182378.11", "ENSGR0000182378.11", "ENSG00000281849.1"]     # GENCODE 22
NEW_GENES = ["ENSG00000000003.15", "ENSG00000290825.1", "ENSG00000182378.15", "ENSG00000182378.15_PAR_Y", "ENSG00000000005.6"]      # 36
SHARED = ["ENSG00000000003", "ENSG00000000005", "ENSG00000182378", "ENSG00000182378_PAR_Y"]
SHEET = ("File ID", "File Name", "Data Category", "Data Type", "Project ID", "Case ID", "Sample ID", "Sample Type")


def gdc_file(folder, name, values, genes):
    """One download in a folder of its own: the older format, or today's for .tsv."""
    path = folder / name.split(".")[0] / name
    path.parent.mkdir(parents=True)
    if "FPKM-UQ" in name:
        text = "".join(f"{g}\t{v!r}\n" for g, v in zip(genes, values))
    else:
        text = "# gene-model: GENCODE v36\ngene_id\tgene_name\tgene_type\tunstranded\tfpkm_unstranded\tfpkm_uq_unstranded\n"
        text += "".join(f"N_{n}\t\t\t7\t\t\n" for n in ("unmapped", "multimapping", "noFeature", "ambiguous"))
        text += "".join(f"{g}\tS{j}\t{'protein_coding' if j % 2 else 'lncRNA'}\t5\t1.5\t{v!r}\n" for j, (g, v) in enumerate(zip(genes, values)))
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def gdc_folder(folder, seed=0):
    """Eight files of six samples, in both formats, and their sheet. -> {sample: {gene without version: value}}"""
    rng, rows, truth, new = np.random.default_rng(seed), [], {}, ".rna_seq.augmented_star_gene_counts.tsv"
    for name, project, sample, kind, genes in (
            ("f3.FPKM-UQ.txt.gz", "TCGA-LUAD", "TCGA-AA-0002-01A", "Primary Tumor", OLD_GENES),
            ("f1" + new, "TCGA-LUSC", "TCGA-AA-0001-01A", "Primary Tumor", NEW_GENES),
            ("f9.FPKM-UQ.txt.gz", "TCGA-LUSC", "TCGA-AA-0001-01A", "Primary Tumor", OLD_GENES),
            ("f4.FPKM-UQ.txt", "TCGA-LUAD", "TCGA-AA-0002-01B", "Primary Tumor", OLD_GENES[::-1]),
            ("f5" + new + ".gz", "TCGA-LUAD", "TCGA-AA-0002-11A", "Solid Tissue Normal", NEW_GENES),
            ("f6" + new, "TCGA-BRCA", "TCGA-AA-0003-06A", "Metastatic", NEW_GENES),
            ("f7" + new, "TCGA-BRCA", "TCGA-AA-0004-01A", "Primary Tumor", NEW_GENES[::-1]),
            ("f8.htseq.counts.gz", "TCGA-BRCA", "TCGA-AA-0005-01A", "Primary Tumor", [])):
        values = np.round(10 ** rng.uniform(0, 6, len(genes)), 4).tolist()
        gdc_file(folder, name, values, genes)
        rows.append((name.split(".")[0], name, "T", "G", project, sample[:12], sample, kind))
        if genes and name != "f9.FPKM-UQ.txt.gz":
            truth[sample] = dict(zip([re.sub(r"\.\d+", "", g.replace("ENSGR0000182378.11", SHARED[3])) for g in genes], values))
    tiling.save_text(folder / "gdc_sample_sheet.2026-01-01.tsv", ["\t".join(row) for row in (SHEET, *rows)])
    (folder / "f1" / "logs").mkdir()
    for name in ("f1/logs/f1.parcel", "f1/f1.FPKM-UQ.txt.gz.partial", "f1/annotations.txt", "MANIFEST.txt"):
        (folder / name).write_text("not expression")
    return truth


def test_a_folder_of_gdc_downloads_becomes_one_table(tmp_path, capsys):
    """Both formats, versions, PAR_Y, two files of a sample, types, projects; the three endings hold the same numbers."""
    truth = gdc_folder(tmp_path / "gdc")
    go = lambda out, *more: he2rna.main(["expression", str(tmp_path / "gdc"), "--out", str(tmp_path / out), *more])
    primary = [f"TCGA-AA-{s}" for s in ("0001-01A", "0002-01A", "0002-01B", "0004-01A")]
    for home, out, more, samples in (
            ("a", "expression.npz", (), primary), ("b", "expression.csv", ("--types", "01"), primary),
            ("c", "expression.csv.gz", ("--types", "Primary Tumor"), primary),
            ("d", "expression.npz", ("--types", "01,11"), sorted([*primary, "TCGA-AA-0002-11A"])), ("e", "expression.npz", ("--types", "all"), sorted(truth)),
            ("f", "expression.npz", ("--project", "LUNG"), primary[:3]), ("g", "expression.npz", ("--project", "TCGA-BRCA"), primary[3:])):
        assert go(f"{home}/{out}", *more) == 0
        key, ids, genes, a = he2rna.read_expression(tmp_path / home)
        assert (key, ids) == ("sample", samples) and sorted(genes) == sorted(SHARED + ["ENSG00000290825"] * (home == "g"))
        np.testing.assert_array_equal(a, np.array([[truth[s][g] for g in genes] for s in samples], np.float32))
        said = capsys.readouterr().out
        assert ("1 more files of samples that have one (the first by barcode, then by name, is taken): f9.FPKM" in said) == (home != "g")
        assert ("2 files of the older format: 5 genes, 4 of them in all files" in said) == (home in "abcdef")
    assert re.search(r"BRCA +1 +1\n +all +1 +1", said)
    table = (tmp_path / "a" / "expression_genes.csv").read_text().splitlines()
    assert table[0] == "gene_id,symbol,biotype" and "ENSG00000182378,S2,lncRNA" in table and len(table) == 5
    assert he2rna.read_gene_table(tmp_path / "a" / "expression_genes.csv")[0]["ENSG00000000003"] == "S0"
    with pytest.raises(tiling.InputError, match="is there already: --overwrite"):
        go("a/expression.npz")
    assert go("a/expression.npz", "--overwrite", "--project", "BRCA") == 0 and len(he2rna.read_expression(tmp_path / "a")[1]) == 1
    assert go("dry/expression.npz", "--dry-run") == 0 and not (tmp_path / "dry").exists()
    (tmp_path / "cohort").mkdir()
    (tmp_path / "gdc").rename(tmp_path / "cohort" / "expression")
    with pytest.raises(tiling.InputError, match="is a folder: GDC's files become a table with python he2rna.py expression"):
        he2rna.read_expression(tmp_path / "cohort")


def test_both_scales_of_fpkm_uq_meet_on_the_papers(tmp_path, capsys):
    """The GDC's example: 1,000 reads, 3,000 bp, quartile 2,000: 1e9 * 1000 / (3000 * 2000), since release 32 / 19,029: 8.76."""
    genes = [f"ENSG{g:011d}.1" for g in range(4000)]
    paper = np.random.default_rng(0).lognormal(10, 2, (3, 4000))
    paper[:, 0] = 1e9 * 1000 / (3000 * 2000)
    assert f"{paper[0, 0] / he2rna.UQ_GENES:.2f}" == "8.76"
    rows = [(f"f{i}", f"f{i}" + (".FPKM-UQ.txt.gz" if i == 1 else ".augmented_star_gene_counts.tsv"), "T", "G", "TCGA-LUAD", f"TCGA-AA-000{i}",
             f"TCGA-AA-000{i}-01A") for i in range(3)]
    for i, row in enumerate(rows):
        gdc_file(tmp_path, row[1], (paper[i] / (1 if i == 1 else he2rna.UQ_GENES)).tolist(), genes)
    for name, of in (("both", rows), ("newer", rows[::2])):                    # a sheet of today: no Sample Type
        tiling.save_text(tmp_path / f"{name}.tsv", ["\t".join(row) for row in (SHEET[:7], *of)])
        assert he2rna.main(["expression", str(tmp_path), "--sheet", str(tmp_path / f"{name}.tsv"), "--out", str(tmp_path / name / "expression.npz")]) == 0
    assert np.allclose(he2rna.read_expression(tmp_path / "both")[3], paper, rtol=1e-6)
    assert np.allclose(he2rna.read_expression(tmp_path / "newer")[3], paper[::2] / 19029, rtol=1e-6)
    said = capsys.readouterr().out
    assert "2 files, of release 32 or later, were multiplied by 19,029" in said and "19,029 times below the paper's" in said


@pytest.mark.parametrize("name, change, words", [
    ("f3.FPKM-UQ.txt.gz", lambda b: b[:-9], "f3.FPKM-UQ.txt.gz: not whole"),
    ("f3.FPKM-UQ.txt.gz", lambda b: b[:20] + b"\xff" * 40, "f3.FPKM-UQ.txt.gz: not whole"),
    ("f3.FPKM-UQ.txt.gz", lambda b: b"<html>503</html>", "'<html>503</html>' is no line of 2 columns"),
    ("f3.FPKM-UQ.txt.gz", None, "f3.FPKM-UQ.txt.gz: not there"),
    ("f4.FPKM-UQ.txt", lambda b: b.replace(b"\t", b"\t-", 1), "f4.FPKM-UQ.txt: gene ENSG00000281849.1 of TCGA-AA-0002-01B is '-"),
    ("f4.FPKM-UQ.txt", lambda b: b"", "f4.FPKM-UQ.txt: no gene in it"),
    ("f1.rna_seq.augmented_star_gene_counts.tsv", lambda b: b"<html>503</html>\n", "it has <html>503</html>"),
    ("f1.rna_seq.augmented_star_gene_counts.tsv", lambda b: b.replace(b"fpkm_uq_", b"x_"), "no fpkm_uq_unstranded; it has gene_id, gene_name"),
    ("f7.rna_seq.augmented_star_gene_counts.tsv", lambda b: b[:-30], "is no line of 6 columns: not whole")])
def test_a_gdc_file_that_is_not_whole_is_named_and_no_table_lacks_it_in_silence(tmp_path, capsys, name, change, words):
    truth, path = gdc_folder(tmp_path), tmp_path / name.split(".")[0] / name
    if "f1" in name:
        shutil.rmtree(tmp_path / "f9")                                         # else the sample's other file would do, where f1 is missing
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    command = ["expression", str(tmp_path), "--out", str(tmp_path / "out" / "expression.npz")]
    with pytest.raises(tiling.InputError, match=f"1 files are missing or not whole: .*{re.escape(words)}.*--partial"):
        he2rna.main(command)
    assert not (tmp_path / "out").exists() and he2rna.main([*command, "--partial"]) == 1
    sample = next(line.split("\t")[6] for line in (tmp_path / "gdc_sample_sheet.2026-01-01.tsv").read_text().splitlines() if name in line)
    assert set(he2rna.read_expression(tmp_path / "out")[1]) == {s for s in truth if "-01" in s} - {sample} and words in capsys.readouterr().out


def test_a_gdc_file_that_is_none_or_cannot_be_opened_is_left_out_alone(tmp_path, capsys, monkeypatch):
    gdc_folder(tmp_path)
    path = tmp_path / "f3" / "f3.FPKM-UQ.txt.gz"
    go = lambda: he2rna.main(["expression", str(tmp_path), "--partial", "--overwrite", "--out", str(tmp_path / "e.npz")])
    data, read = path.read_bytes(), Path.read_bytes
    for change in (Path.mkdir, lambda p: p.symlink_to("/nowhere"), lambda p: p.symlink_to(p)):
        path.rmdir() if path.is_dir() else path.unlink()
        change(path)
        assert go() == 1 and "1 files are missing or not whole: f3.FPKM-UQ.txt.gz: not there" in capsys.readouterr().out
    path.unlink(), path.write_bytes(data)
    monkeypatch.setattr(Path, "read_bytes", lambda p: read(p if p != path else p / "x"))
    assert go() == 1 and "1 files are missing or not whole: f3.FPKM-UQ.txt.gz: Not a directory" in capsys.readouterr().out


@pytest.mark.parametrize("change, options, words", [
    (lambda g, rows: shutil.rmtree(g / "f3"), ("--types", "11", "--sheet", "none.tsv"), "none.tsv: can't be read as a table"),
    (lambda g, rows: (g / "gdc_sample_sheet.2.tsv").write_text("x"), (), "2 gdc_sample_sheet*.tsv there: name the one with --sheet"),
    (lambda g, rows: [shutil.rmtree(p) for p in g.glob("f*")], ("--partial",), "4 files are missing or not whole"),
    (lambda g, rows: rows.__setitem__(0, rows[0].replace("Sample ID", "Barcode")), (), "no column sample id; it has File ID, File Name"),
    (lambda g, rows: rows.__setitem__(slice(None), ["<html>", "</html>"]), (), "no column file name, project id, case id, sample id; it has <html>"),
    (lambda g, rows: rows.__setitem__(slice(1, None), []), (), "no rows"),
    (lambda g, rows: rows.__setitem__(3, "f4\tf4.FPKM-UQ.txt"), (), "row 3 has 2 fields, the header 8"),
    (lambda g, rows: rows.__setitem__(slice(None), [r.replace("FPKM-UQ", "FPKM").replace("star_gene", "x") for r in rows]), (), "names no file of FPKM-UQ"),
    (lambda g, rows: rows.__setitem__(1, rows[1].replace("TCGA-AA-0002-01A", "")), (), "file f3.FPKM-UQ.txt.gz has no case id, sample id or project id"),
    (lambda g, rows: rows.__setitem__(1, rows[1].replace("TCGA-AA-0002\t", "\t")), (), "file f3.FPKM-UQ.txt.gz has no case id, sample id or project id"),
    (lambda g, rows: rows.append(rows[1].replace("TCGA-AA-0002", "TCGA-AA-0009")), (), "1 of its files stand there for two samples"),
    (lambda g, rows: rows.__setitem__(0, "id\tfilename\tmd5\tsize\tstate"), (), "is a manifest, which has no barcodes: download the Sample Sheet"),
    (lambda g, rows: shutil.copy(g / "f3" / "f3.FPKM-UQ.txt.gz", g), (), "f3.FPKM-UQ.txt.gz is there twice"),
    (lambda g, rows: (g / "f7" / "f7.rna_seq.augmented_star_gene_counts.tsv").write_text("gene_id\tfpkm_uq_unstranded\n" + "ENSG1.1\t1\n" * 2), (),
     "1 of its 2 genes stand there twice"),
    (lambda g, rows: gdc_file(shutil.rmtree(g / "f7") or g, "f7.rna_seq.augmented_star_gene_counts.tsv", [1.] * 4, NEW_GENES[1:]), ("--partial",),
     "has 4 genes, .*5; 1 are not in both, though both are of GENCODE v36: one is not whole"),
    (lambda g, rows: gdc_file(shutil.rmtree(g / "f4") or shutil.rmtree(g / "f3") or g, "f3.FPKM-UQ.txt.gz", [1.] * 9,
                              [f"ENSG0000000000{i}.1" for i in range(1, 10)]), ("--partial",),
     "only 2 genes are in all files"),
    (None, ("--types", "02"), "no file has sample_type recurrent tumor; .*has Metastatic, Primary Tumor, Solid Tissue Normal"),
    (None, ("--project", "STAD"), "--project STAD: .*tsv has TCGA-BRCA"),
    (None, ("--out", "x.txt"), "--out x.txt: wanted a .npz, .csv or .csv.gz")])
def test_what_a_gdc_folder_and_its_sheet_cannot_mean(tmp_path, change, options, words):
    gdc_folder(tmp_path / "gdc")
    sheet = tmp_path / "gdc" / "gdc_sample_sheet.2026-01-01.tsv"
    rows = sheet.read_text().splitlines()
    if change:
        change(tmp_path / "gdc", rows)
    tiling.save_text(sheet, rows)
    with pytest.raises(tiling.InputError, match=words.replace("*.tsv there", r"\*.tsv there")) as e:
        he2rna.main(["expression", str(tmp_path / "gdc"), "--out", str(tmp_path / "out" / "expression.npz"), *options])
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_a_manifest_checks_the_files_it_names(tmp_path, capsys):
    """Size and md5 (hashlib's): a .tsv cut at a line's end has the right columns, and one changed in place the right size."""
    gdc_folder(tmp_path / "gdc")
    files = {p.name: p for p in (tmp_path / "gdc").glob("f*/f*[zvt]") if "htseq" not in p.name}
    command = ["expression", str(tmp_path / "gdc"), "--manifest", str(tmp_path / "m.txt"), "--out", str(tmp_path / "expression.npz")]
    tiling.save_text(tmp_path / "m.txt", ["id\tfilename\tmd5\tsize\tstate", *(
        f"{p.parent.name}\t{p.parent.name + '/' if i % 2 else ''}{n}\t{hashlib.md5(p.read_bytes()).hexdigest()}\t{p.stat().st_size}\treleased"
        for i, (n, p) in enumerate(files.items()))])
    assert len(files) == 7 and he2rna.main(command) == 0
    one = files["f4.FPKM-UQ.txt"]
    text = one.read_text()
    one.write_text(text.replace("\t1", "\t2").replace("\t9", "\t8").replace("\t3", "\t4").replace("\t5", "\t6").replace("\t7", "\t0"))
    assert len(one.read_text()) == len(text) != one.read_text().count(text)
    with pytest.raises(tiling.InputError, match="f4.FPKM-UQ.txt: its md5 is not the manifest's"):
        he2rna.main([*command, "--overwrite"])
    one.write_text("".join(text.splitlines(True)[:-1]))
    with pytest.raises(tiling.InputError, match=rf"f4.FPKM-UQ.txt: \d+ bytes, not {len(text)}"):
        he2rna.main([*command, "--overwrite"])
    one.unlink()
    (tmp_path / "gdc" / "f4" / "f4.FPKM-UQ.txt.partial").write_text(text)
    with pytest.raises(tiling.InputError, match="f4.FPKM-UQ.txt: not there"):
        he2rna.main([*command, "--overwrite"])
    whole = (tmp_path / "m.txt").read_text()
    for text in (whole + "\nid", whole.replace(whole.splitlines()[1].split("\t")[2], "")):
        (tmp_path / "m.txt").write_text(text)
        with pytest.raises(tiling.InputError, match="row [29] has no md5, or is not whole"):
            he2rna.main([*command, "--overwrite"])
    (tmp_path / "m.txt").write_text("a\tb\n")
    with pytest.raises(tiling.InputError, match="no column filename, md5 or size; it has a, b"):
        he2rna.main([*command, "--overwrite"])


def test_writing_a_table_holds_no_second_one(tmp_path):
    """tracemalloc: rows come one by one."""
    a = np.random.default_rng(0).lognormal(10, 3, (400, 1000)).astype(np.float32)
    ids, genes = [f"s{i}" for i in range(400)], [f"G{g}" for g in range(1000)]
    tracemalloc.start()
    try:
        tiling.save_expression(tmp_path / "expression.npz", "sample", ids, genes, iter(a))
        assert tracemalloc.get_traced_memory()[1] < .5 * a.nbytes
    finally:
        tracemalloc.stop()
    with np.load(tmp_path / "expression.npz", allow_pickle=False) as z:
        assert (z["expression"] == a).all() and z["expression"].dtype == np.float32 and z["sample"].tolist() == ids and z["genes"].tolist() == genes


def test_ten_real_expression_files(tmp_path, capsys):
    """TCGA-LUAD, two formats: 60,483 fragments, of which 33,240 have a positive median over the ten; read line by line."""
    sheet = {row[1]: row[6] for row in csv.reader(real("gdc", "gdc_sample_sheet.tsv").open(), delimiter="\t")}
    tables = {}
    for path in sorted(real("gdc").glob("*/*")):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as f:
            rows = [line.rstrip().split("\t") for line in f if line.startswith("ENS")]
        tables[sheet[path.name]] = {row[0].split(".")[0]: row[-1] for row in rows}
    assert he2rna.main(["expression", str(real("gdc")), "--out", str(tmp_path / "expression.npz")]) == 0
    key, ids, genes, a = he2rna.read_expression(tmp_path)
    assert (key, ids) == ("sample", sorted(tables)) and a.shape == (10, 60483)
    plain = [re.sub(r"(ENSG)0(\d+)_PAR_Y", r"\1R\2", g) for g in genes]
    assert (a == np.array([[tables[i][g] for g in plain] for i in ids]).astype(np.float64).astype(np.float32)).all()
    assert sum(g.endswith("_PAR_Y") for g in genes) == 50 and he2rna.expressed(a).sum() == (np.median(a, 0) > 0).sum() == 33240
    assert "multiplied" not in capsys.readouterr().out                         # the three rewritten ones are of the older scale


def test_patients_and_samples_of_tcga(capsys):
    """11,564 files, 36 projects: as a set counts them; the type's name is that of characters 14-15."""
    with gzip.open(real("tcga", "samples_description.tsv.gz"), "rt") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    for types, kinds in (("all", None), ("01,11", ("Primary Tumor", "Solid Tissue Normal")), (None, ("Primary Tumor",))):
        assert he2rna.main(["expression", str(real("gdc")), "--sheet", str(real("tcga", "samples_description.tsv.gz")), "--dry-run",
                            *(("--types", types) if types else ())]) == 0
        said = re.findall(r"^ +(\S+) +([\d,]+) +([\d,]+)$", capsys.readouterr().out, re.M)
        said = {name: (int(patients.replace(",", "")), int(n.replace(",", ""))) for name, patients, n in said}
        groups = {p: (p,) for p in {r["Project.ID"] for r in rows if kinds is None or r["Sample.Type"] in kinds}}
        assert len(groups) == 36 or types != "all"
        groups.update({name: [f"TCGA-{p}" for p in parts] for name, parts in he2rna.MERGED.items()}, all=tuple(groups))
        for name, of in groups.items():
            mine = [r for r in rows if r["Project.ID"] in of and (kinds is None or r["Sample.Type"] in kinds)]
            assert said.pop(name.removeprefix("TCGA-")) == (len({r["Case.ID"] for r in mine}), len({r["Sample.ID"] for r in mine}))
        assert not said
    codes = {(r["Sample.ID"][13:15], r["Sample.Type"]) for r in rows if r["Sample.ID"].startswith("TCGA")}
    assert codes == set(he2rna.SAMPLE_TYPES.items())


def test_slides_of_tcga_join_samples_by_patient_and_type(tmp_path, capsys):
    """Barcodes by hand; a diagnostic slide's Z is any vial; gdc-client's folders are looked into."""
    home = tmp_path / "slides" / "1b671fb9-fd78-58b9-9094-30a711a09a8b"
    home.mkdir(parents=True)
    for name in ("TCGA-AA-0001-01Z-00-DX1.a-b", "TCGA-AA-0001-01Z-00-DX2.c", "TCGA-AA-0002-01Z-00-DX1.d", "TCGA-AA-0002-01B-02-TS1.e",
                 "tcga-aa-0002-01a-01-bsb", "TCGA-AA-0002-11A-01-MS1.f", "TCGA-AA-0003-06Z-00-DX1.g",
                 "TCGA-AA-0003-01Z-00-DX1.h", "TCGA-BB-0009-01Z-00-DX1.i", "scan17", "TCGA-AA-0003-01Z-00-DX1.\x01\n", "TCGA-AA-0003-01Z-00-DX1." + "x" * 200):
        (home if "DX1" in name else home.parent).joinpath(name + ".svs").touch()
    gdc_folder(tmp_path / "gdc")
    sheet = ["--sheet", str(tmp_path / "gdc" / "gdc_sample_sheet.2026-01-01.tsv")]
    assert he2rna.main(["expression", str(tmp_path / "gdc"), "--types", "all", "--out", str(tmp_path / "expression.npz")]) == 0
    dx = [("TCGA-AA-0001-01Z-00-DX1.a-b", "TCGA-AA-0001", "TCGA-LUSC", "TCGA-AA-0001-01A", "Primary Tumor", "DX"),
          ("TCGA-AA-0001-01Z-00-DX2.c", "TCGA-AA-0001", "TCGA-LUSC", "TCGA-AA-0001-01A", "Primary Tumor", "DX"),
          ("TCGA-AA-0002-01Z-00-DX1.d", "TCGA-AA-0002", "TCGA-LUAD", "TCGA-AA-0002-01A", "Primary Tumor", "DX"),
          ("TCGA-AA-0003-01Z-00-DX1.h", "TCGA-AA-0003", "TCGA-BRCA", "TCGA-AA-0003-01Z", "Primary Tumor", "DX"),
          ("TCGA-AA-0003-06Z-00-DX1.g", "TCGA-AA-0003", "TCGA-BRCA", "TCGA-AA-0003-06A", "Metastatic", "DX")]
    frozen = [("TCGA-AA-0002-01B-02-TS1.e", "TCGA-AA-0002", "TCGA-LUAD", "TCGA-AA-0002-01B", "Primary Tumor", "TS"),
              ("TCGA-AA-0002-11A-01-MS1.f", "TCGA-AA-0002", "TCGA-LUAD", "TCGA-AA-0002-11A", "Solid Tissue Normal", "MS"),
              ("tcga-aa-0002-01a-01-bsb", "TCGA-AA-0002", "TCGA-LUAD", "TCGA-AA-0002-01A", "Primary Tumor", "BS")]
    go = lambda *more: he2rna.main(["samples", str(tmp_path), *sheet, *more])
    capsys.readouterr()
    assert go("--dry-run") == 0 and not (tmp_path / "samples.csv").exists() and "LUNG" in capsys.readouterr().out
    for more, want in (((), dx), (("--kind", "frozen", "--overwrite"), frozen), (("--kind", "all", "--overwrite"), sorted(dx + frozen))):
        assert go(*more) == 0
        rows = tiling.read_samples(tmp_path)
        assert [tuple(r.values()) for r in rows] == want and list(rows[0]) == ["slide", "patient", "project", "sample", "sample_type", "kind"]
        said = capsys.readouterr().out
        assert ("first by barcode is taken: TCGA-AA-0002-01A (TCGA-AA-0002-01B)" in said) == ("frozen" not in more)
        assert "1 slides whose name is no TCGA slide's barcode: scan17" in said
        assert r"2 slides whose name can't be that of a file here: control characters, or over 200 bytes: TCGA-AA-0003-01Z-00-DX1.\x01\n" in said
    assert re.search(r"no expression: train leaves them out: TCGA-AA-0003-01Z-00-DX1.h\n", said) and "doesn't name: TCGA-BB-0009-01Z-00-DX1.i" in said
    key, ids, _, _ = he2rna.read_expression(tmp_path)
    kept, at, _ = he2rna.join(*he2rna.select(rows, "01,11", None)[:1], key, ids)
    assert {r["slide"]: ids[i] for r, i in zip(kept, at)} == {r[0]: r[3] for r in dx + frozen if r[4] != "Metastatic" and r[3][-1] != "Z"}
    with pytest.raises(tiling.InputError, match="samples.csv is there already: --overwrite"):
        go()
    header = "\t".join(SHEET[1:7])
    for lines, words in (((header, "a\tT\tG\tX\tp\ts", "b\tT\tG\tY\tp\ts"), "patient p is of X and of Y"),
                         ((header, "a\tT\tG\tX\tp\ts"), "no slide is left for samples.csv"),
                         ((header, "a\tT\tG\tX\tTCGA-BB-0009\ts"), "none of 1 slides .the first is TCGA-BB-0009-01Z-00-DX1.i. has its patient and type")):
        tiling.save_text(tmp_path / "sheet.tsv", lines)
        with pytest.raises(tiling.InputError, match=words):
            he2rna.main(["samples", str(tmp_path), "--overwrite", "--sheet", str(tmp_path / "sheet.tsv")])
    assert [tuple(r.values()) for r in tiling.read_samples(tmp_path)] == sorted(dx + frozen)      # as it was
    with pytest.raises(tiling.InputError, match="no gdc_sample_sheet"):
        he2rna.main(["samples", str(tmp_path), "--overwrite"])
    (tmp_path / "expression.npz").unlink()
    (tmp_path / "expression.csv").write_text("slide,G\nscan17,1\n")
    with pytest.raises(tiling.InputError, match="its rows are slides already"):
        go("--overwrite")


def test_folds_need_patients(tmp_path):
    sample = lambda n: [dict(slide=str(i), patient=f"p{i % n}", project="X") for i in range(2 * n)]
    o = argparse.Namespace(folds=5, seed=0, code=[], folds_by="patient")
    assert set(he2rna.folds_of(sample(5), o)) == set(range(5))
    for n, k, words in ((4, 5, "4 patients don't go into --folds 5: --folds 4 would work"), (3, 2, "--folds 3 would work"), (2, 2, "too few")):
        with pytest.raises(tiling.InputError, match=words):
            he2rna.folds_of(sample(n), argparse.Namespace(folds=k, seed=0))


def test_a_single_project_keeps_the_folds_of_all(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(2), patients=14, per_patient=2)
    folds = {}
    for name, more in (("all", ()), ("x", ("--project", "X"))):
        assert train(tmp_path, "--epochs", "1", "--name", name, *more) == 0
        with open(tmp_path / "runs" / name / "folds.csv") as f:
            folds[name] = {r["slide"]: r["test_fold"] for r in csv.DictReader(f)}
    assert len(folds["all"]) == 28 and len(folds["x"]) == 14 and folds["x"].items() <= folds["all"].items()
    for s in folds["all"]:
        assert folds["all"][s] == folds["all"][s[:-1] + "0"]                   # a patient's slides stay together


def test_names_belong_to_the_data_of_a_run_and_its_place_does_not(tmp_path):
    write_cohort(tmp_path / "c", np.random.default_rng(2))
    assert train(tmp_path / "c", "--epochs", "1") == 0
    (tmp_path / "c").rename(tmp_path / "moved")
    assert train(tmp_path / "moved", "--epochs", "1") == 0
    for name, old, new in (("expression.csv", "G0,G1", "G1,G0"), ("samples.csv", ",X", ",Z")):
        text = (tmp_path / "moved" / name).read_text()
        (tmp_path / "moved" / name).write_text(text.replace(old, new))
        with pytest.raises(tiling.InputError, match="other settings .data"):
            train(tmp_path / "moved", "--epochs", "1")
        (tmp_path / "moved" / name).write_text(text)


def test_pt_features_train_and_predict_and_maps_want_coordinates(tmp_path, capsys):
    """CLAM's pt_files/ for every verb; their super-tiles are runs of rows; with its h5_files/ beside, maps too."""
    write_cohort(tmp_path, np.random.default_rng(0), tiles=120)
    (tmp_path / "slides").mkdir(), (tmp_path / "pt_files").mkdir()
    for path in (tmp_path / "h5").iterdir():
        with h5py.File(path, "a") as h:
            torch.save(torch.from_numpy(h["features"][()]), tmp_path / "pt_files" / f"{path.stem}.pt")
            h["coords"][()] = np.stack(np.divmod(np.arange(len(h["coords"])), 12), 1) * 100
    write_pyramid(tmp_path / "slides" / "s00_0.tif", np.full((1400, 1200, 3), (225, 150, 185), np.uint8))
    argv = ["--features", str(tmp_path / "pt_files"), "--folds", "3", "--epochs", "2", "--hidden", "8", "--device", "cpu"]
    assert he2rna.main(["train", str(tmp_path), *argv]) == 0
    run, said = tmp_path / "runs" / "he2rna", capsys.readouterr().out
    assert "12 slides have no coordinates, their super-tiles are runs of neighbouring rows: s00_0" in said and "elsewhere (.pt)" in said
    assert he2rna.main(["predict", str(run), "all", "--device", "cpu"]) == 0
    z, rows = np.load(run / "predictions.npz"), read_csv(run / "predict" / "s03_0.csv")
    assert np.allclose([float(r["log10_1p_fpkm_uq"]) for r in rows], z["prediction"][z["slide"].tolist().index("s03_0")], atol=2e-5)
    assert he2rna.main(["predict", str(run), str(tmp_path / "pt_files" / "s03_0.pt"), "--device", "cpu"]) == 0
    assert he2rna.main(["finetune", str(tmp_path), "he2rna", "--epochs", "1", "--ks", "1,5", "--device", "cpu"]) == 0
    heatmap = lambda *more: he2rna.main(["heatmap", str(tmp_path / "runs" / "he2rna-finetuned"), "s00_0", "--genes", "G0", "--device", "cpu", *more])
    capsys.readouterr()
    assert heatmap() == 1
    assert re.search("s00_0.pt has no coordinates: a map needs them, from an .h5 of the same slide, such as .*h5_files", capsys.readouterr().err)
    (tmp_path / "h5").rename(tmp_path / "h5_files")
    assert heatmap() == 0 and "the pitch of their grid; --tile-um says otherwise" in capsys.readouterr().out
    assert heatmap("--tile-um", "40") == 0
    assert "tiles of 40 µm" in (tmp_path / "runs" / "he2rna-finetuned" / "heatmaps" / "G0" / "s00_0" / "report.md").read_text()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "supertiles").rglob("*.npz")}
    assert he2rna.main(["train", str(tmp_path), *argv, "--name", "placed"]) == 0            # coordinates found: other super-tiles
    assert all(p.stat().st_mtime_ns > t for p, t in before.items()) and "no coordinates" not in capsys.readouterr().out
    shutil.copytree(tmp_path / "pt_files", tmp_path / "copy" / "pt_files")
    shutil.copytree(tmp_path / "h5_files", tmp_path / "copy" / "h5_files")
    before = {p: p.stat().st_mtime_ns for p in before}
    argv[1] = str(tmp_path / "copy" / "pt_files")
    assert he2rna.main(["train", str(tmp_path), *argv, "--name", "placed"]) == 0            # a copy: nothing is made anew
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_features_folder_named_as_an_encoder(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(2))
    (tmp_path / "h5").rename(tmp_path / "resnet50")
    monkeypatch.chdir(tmp_path)
    assert he2rna.main(["train", ".", "--features", "resnet50", "--folds", "3", "--epochs", "1", "--hidden", "8", "--device", "cpu"]) == 0
    assert len(list((tmp_path / "supertiles" / "resnet50-h5").glob("*.npz"))) == 12


def test_half_written_leftovers(tmp_path):
    """What a full disk or a power cut can leave: a half log line, a half checkpoint, no config."""
    write_cohort(tmp_path, np.random.default_rng(2))
    run = tmp_path / "runs" / "he2rna"
    assert train(tmp_path, "--epochs", "2") == 0
    with open(run / "log.jsonl", "a") as f:
        f.write('{"fold": 2, "ep')
    (run / "fold2.pt").unlink()
    assert train(tmp_path, "--epochs", "2") == 0
    (run / "fold1.pt").write_bytes((run / "fold1.pt").read_bytes()[:1000])
    with pytest.raises(tiling.InputError, match="fold1.pt: not a whole checkpoint"):
        train(tmp_path, "--epochs", "2")
    (run / "config.json").unlink()
    with pytest.raises(tiling.InputError, match="no config.json"):
        train(tmp_path, "--epochs", "2")


def test_one_slide_of_another_encoder_and_too_few_left(tmp_path, capsys):
    write_cohort(tmp_path, np.random.default_rng(2), patients=6)
    with h5py.File(tmp_path / "h5" / "s00_0.h5", "w") as h:
        h["features"], h["coords"] = np.ones((4, 3), np.float16), tile_cloud(4)
    with h5py.File(tmp_path / "h5" / "s01_0.h5", "w") as h:
        h["features"], h["coords"] = np.full((4, 8), 1e6, np.float32), tile_cloud(4)
    assert train(tmp_path, "--epochs", "1") == 1
    said = capsys.readouterr().err
    assert "failed: s00_0: 3 features a tile, most slides have 8" in said and "failed: s01_0: features up to 1e+06 are beyond float16" in said
    for i in (2, 3, 4):
        (tmp_path / "h5" / f"s0{i}_0.h5").unlink()
    with pytest.raises(tiling.InputError, match="fewer than 2 patients left to train and validate on"):
        train(tmp_path, "--epochs", "1", "--name", "few")


def test_slides_without_features_or_expression_are_listed(tmp_path, capsys):
    write_cohort(tmp_path, np.random.default_rng(3))
    (tmp_path / "h5" / "s03_0.h5").unlink()
    table = (tmp_path / "expression.csv").read_text().splitlines()
    (tmp_path / "expression.csv").write_text("\n".join([*table[:-1], "other" + table[-1][5:]]) + "\n")
    assert train(tmp_path, "--epochs", "1") == 1
    said, report = capsys.readouterr(), (tmp_path / "runs" / "he2rna" / "report.md").read_text()
    assert "1 slides without expression: s11_0" in said.out and "1 expression rows (slide) without a slide: other" in said.out
    assert "failed: s03_0: no file" in said.err and "slide s03_0 failed" in report and "1 slides without expression: s11_0" in report
    assert "10 slides of 10 patients" in report


@pytest.mark.parametrize("argv, words", [
    (["train", "nowhere"], "nowhere"), (["train", "{}", "--epochs", "0"], "--epochs 0"), (["train", "{}", "--folds", "99"], "--folds 12 would work"),
    (["train", "{}", "--name", "../x"], "--name ../x"), (["train", "{}", "--project", "Q"], "--project Q"), (["train", "{}", "--device", "cuda:9"], "cuda:9"),
    (["train", "{}", "--features", "none"], "none"), (["train", "{}", "--ks", "0"], "--ks")])
def test_train_says_one_line(tmp_path, argv, words):
    write_cohort(tmp_path, np.random.default_rng(0))
    done = subprocess.run([sys.executable, he2rna.__file__, *(a.format(tmp_path) for a in argv)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr and not (tmp_path / "runs").exists()


def tune(cohort, *argv):
    return he2rna.main(["finetune", str(cohort), "he2rna", "--device", "cpu", "--epochs", "2", "--ks", "1,5,20", *argv])


def test_fine_tuning_keeps_folds_and_output_rows_and_reads_from_disk_as_from_memory(tmp_path, capsys):
    write_cohort(tmp_path, np.random.default_rng(0), patients=24, per_patient=2)
    assert train(tmp_path, "--epochs", "3") == 0
    assert tune(tmp_path, "--project", "X", "--genes", "G4,G1", "--lr", "1e-12") == 0
    run, tuned = tmp_path / "runs" / "he2rna", tmp_path / "runs" / "he2rna-X-finetuned"
    before, after = ({r["slide"]: r for r in read_csv(folder / "folds.csv")} for folder in (run, tuned))
    assert set(after) == {s for s, r in before.items() if r["project"] == "X"}
    assert all(r == before[s] for s, r in after.items())                       # test folds and those that choose the epoch
    for f in range(3):
        old, new = (torch.load(folder / f"fold{f}.pt", weights_only=True) for folder in (run, tuned))
        assert new["genes"] == ["G4", "G1"] and new["ks"] == [1, 5, 20]
        assert torch.allclose(new["model"]["layers.2.weight"], old["model"]["layers.2.weight"][[4, 1]], atol=1e-6)
        assert torch.allclose(new["model"]["layers.0.weight"], old["model"]["layers.0.weight"], atol=1e-6)
    z, want = np.load(tuned / "predictions.npz"), {}                           # all tiles, the direct way, slide by slide
    for f in range(3):
        model = he2rna.model_of(torch.load(tuned / f"fold{f}.pt", weights_only=True), "cpu").eval()
        for slide in z["slide"][z["fold"] == f]:
            features = torch.from_numpy(tiling.load_features(tmp_path, tmp_path / "h5", slide)[0]).float()[None]
            mask = torch.ones(1, features.shape[1], dtype=torch.bool)
            want[slide] = torch.stack([direct(model, features, mask, k) for k in (1, 5, 20)]).mean(0)[0].detach().numpy()
    assert np.allclose(z["prediction"], [want[s] for s in z["slide"]], atol=1e-5)
    assert "fine-tuned on all tiles" in (tuned / "report.md").read_text()
    assert tune(tmp_path, "--name", "again", "--precision", "bfloat16") == 0
    assert len(np.load(tmp_path / "runs" / "again" / "predictions.npz")["genes"]) == 6


def test_fine_tuning_learns_and_an_interrupted_one_goes_on(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(1), patients=30, tiles=60)
    assert train(tmp_path, "--epochs", "2", "--lr", "1e-4") == 0
    real_predict = he2rna.predict_slides
    for name in ("a", "b"):
        calls = []

        def stop(*args, **kwargs):
            calls.append(0)
            if name == "b" and len(calls) == 9:
                raise KeyboardInterrupt
            return real_predict(*args, **kwargs)
        monkeypatch.setattr(he2rna, "predict_slides", stop)
        try:
            tune(tmp_path, "--name", name, "--epochs", "12", "--lr", "3e-3")
        except KeyboardInterrupt:
            monkeypatch.setattr(he2rna, "predict_slides", real_predict)
            tune(tmp_path, "--name", name, "--epochs", "12", "--lr", "3e-3")
    monkeypatch.undo()
    same_runs(tmp_path / "runs" / "a", tmp_path / "runs" / "b")
    r = {name: np.mean([float(row["R"]) for row in read_csv(tmp_path / "runs" / name / "genes.csv") if row["gene"] in ("G0", "G1", "G2")])
         for name in ("he2rna", "a")}
    assert r["a"] > max(.5, r["he2rna"])


def test_the_fast_head_trains_on_batches_read_ahead(tmp_path):
    """Ragged slides in any order, float16 from disk: what comes is what was written, padded."""
    write_cohort(tmp_path, np.random.default_rng(2), patients=7)
    slides = [f"s{p:02d}_0" for p in range(7)]
    bags, seen = he2rna.from_disk(tmp_path, tmp_path / "h5", slides), []
    for rows, x, mask in bags(torch.tensor([5, 0, 6, 3, 2]).split(2)):
        for r, bag, m in zip(rows.tolist(), x, mask):
            features = tiling.load_features(tmp_path, tmp_path / "h5", slides[r])[0]
            assert (bag[m].numpy() == features).all() and (bag[~m] == 0).all() and m.sum() == len(features)
            seen.append(r)
    assert seen == [5, 0, 6, 3, 2]
    (tmp_path / "h5" / "s03_0.h5").unlink()
    with pytest.raises(tiling.InputError, match="s03_0.h5"):
        list(bags(torch.tensor([5, 3]).split(2)))


def test_predict_gives_what_cross_validation_gave_and_knows_whom_the_models_saw(tmp_path, capsys):
    write_cohort(tmp_path, np.random.default_rng(3), patients=12, per_patient=2)
    assert train(tmp_path, "--epochs", "2") == 0 and tune(tmp_path, "--name", "tuned") == 0
    for name in ("he2rna", "tuned"):
        run = tmp_path / "runs" / name
        assert he2rna.main(["predict", str(run), "all", "--device", "cpu", "--representation"]) == 0
        z = np.load(run / "predictions.npz")
        for slide, want, fold in zip(z["slide"], z["prediction"], z["fold"]):
            rows = read_csv(run / "predict" / f"{slide}.csv")
            assert [r["gene"] for r in rows] == z["genes"].tolist()
            assert np.allclose([float(r["log10_1p_fpkm_uq"]) for r in rows], want, atol=2e-5)
            assert np.allclose([float(r["fpkm_uq"]) for r in rows], np.maximum(10 ** want.astype(float) - 1, 0), rtol=1e-4)
            h = np.load(run / "predict" / f"{slide}.representation.npz")
            assert h["folds"].tolist() == [fold] and h["each"].shape == (1, 16)
            model = he2rna.model_of(torch.load(run / f"fold{fold}.pt", weights_only=True), "cpu").eval()
            x = torch.from_numpy(tiling.load_features(tmp_path, tmp_path / "h5", slide)[0]).float().mean(0)
            for layer in model.layers[:-1]:
                x = layer(x).relu()
            assert np.allclose(h["mean"], x.detach().numpy(), atol=1e-4)
    capsys.readouterr()
    new = tmp_path / "new" / "h5"                                              # a slide of one tile, of nobody the run knows
    new.mkdir(parents=True)
    with h5py.File(new / "stranger.h5", "w") as h:
        h["features"], h["coords"] = np.ones((1, 8), np.float16), np.zeros((1, 2), np.int32)
    shutil.copyfile(tmp_path / "h5" / "s00_0.h5", new / "s00_0.h5")
    shutil.copytree(new, tmp_path / "other")                                   # as wide, but of whose encoder?
    with pytest.raises(tiling.InputError, match="learned from features in a folder h5"):
        he2rna.main(["predict", str(tmp_path / "runs" / "he2rna"), str(tmp_path / "other" / "stranger.h5"), "--device", "cpu"])
    for run in ("he2rna", "tuned"):
        assert he2rna.main(["predict", str(tmp_path / "runs" / run), str(new / "stranger.h5"), str(new / "s00_0.h5"), "--device", "cpu"]) == 0
        out = capsys.readouterr().out
        assert "stranger: 1 tiles, models of folds 0, 1, 2" in out and re.search(r"s00_0: 30 tiles, models of folds \d \(", out)
        rows = read_csv(tmp_path / "runs" / run / "predict" / "stranger.csv")
        models = [he2rna.model_of(torch.load(tmp_path / "runs" / run / f"fold{f}.pt", weights_only=True), "cpu").eval() for f in range(3)]
        want = sum(m.tile_scores(torch.ones(1, 1, 8))[0, 0] for m in models).detach().numpy() / 3
        assert np.allclose([float(r["log10_1p_fpkm_uq"]) for r in rows], want, atol=1e-4)
    for scale, words in ((1e6, "features up to 1e+06 are beyond float16; scale them down"), (6e4, "not finite: features up to 6e+04 are of another scale")):
        with h5py.File(new / "large.h5", "w") as h:
            h["features"], h["coords"] = np.full((3, 8), scale, np.float32), tile_cloud(3)
        assert he2rna.main(["predict", str(tmp_path / "runs" / "he2rna"), str(new / "large.h5"), str(new / "s00_0.h5"), "--device", "cpu"]) == 1
        said = capsys.readouterr()
        assert "failed: large: " in said.err and words in said.err and "s00_0: 30 tiles" in said.out
        assert not (tmp_path / "runs" / "he2rna" / "predict" / "large.csv").exists()


@pytest.fixture(scope="module")
def mapped(drawn, tmp_path_factory):
    """A run on the simulated cohort (random encoder, few epochs), for what is done with a run."""
    cohort = tmp_path_factory.mktemp("mapped") / "c"
    shutil.copytree(drawn, cohort)
    assert he2rna.main(["train", str(cohort), "--weights", "random", "--encoder", "resnet50-stage3", "--folds", "3", "--epochs", "2",
                        "--hidden", "32", "--device", "cpu"]) == 0
    return cohort


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_run_on_an_encoder_file_wants_that_file(drawn, tmp_path):
    cohort, file = tmp_path / "c", tmp_path / "tiny.pt"
    shutil.copytree(drawn, cohort)
    tiny_encoder(file), tiny_encoder(tmp_path / "other.pt", 1)
    assert he2rna.main(["train", str(cohort), "--encoder", str(file), "--colour", "macenko", "--tissue", "saturation", "--folds", "3", "--epochs", "1",
                        "--max-tiles", "2", "--hidden", "8", "--device", "cpu"]) == 0
    run, slide = cohort / "runs" / "he2rna", sorted((cohort / "slides").iterdir())[0]
    made = json.loads((run / "config.json").read_text())["features"]
    assert made["source"] == "tiny" and made["weights"].startswith("tiny.pt sha256") and (made["colour"], made["tissue"], made["tile_px"]) == ("macenko", "saturation", 224)
    new = tmp_path / "new" / "slides" / "x.tif"
    new.parent.mkdir(parents=True)
    shutil.copyfile(slide, new)
    predict = lambda *argv: he2rna.main(["predict", str(run), *map(str, argv), "--device", "cpu"])
    with pytest.raises(tiling.InputError, match="learned with weights tiny.pt sha256 .*: give that file with --weights FILE"):
        predict(new)
    with pytest.raises(tiling.InputError, match="weights other.pt sha256 .*, the run has tiny.pt sha256"):
        predict(new, "--weights", tmp_path / "other.pt")
    assert predict(slide) == 0 and predict(new, "--weights", file) == 0
    side = json.loads((tmp_path / "new" / "features" / "tiny" / "x.json").read_text())
    assert side["colour"] == "macenko" and side["tiles"]["tissue"] == "saturation" and side["weights"] == made["weights"]
    assert np.array_equal(*(np.load(d / "features" / "tiny" / f"{n}.npy") for d, n in ((cohort, slide.stem), (tmp_path / "new", "x"))))
    assert he2rna.main(["heatmap", str(run), slide.stem, "--genes", "CD3D", "--device", "cpu"]) == 0        # all tiles: made with the file
    assert len(np.load(cohort / "all-tiles" / "features" / "tiny" / f"{slide.stem}.npy")) > 2
    assert he2rna.main(["finetune", str(cohort), "he2rna", "--epochs", "1", "--genes", "CD3D", "--device", "cpu"]) == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_run_on_stretched_tiles_stretches_those_of_new_slides(drawn, tmp_path):
    cohort = tmp_path / "c"
    shutil.copytree(drawn, cohort)
    tiny_encoder(tmp_path / "tiny.pt")
    small = ("--encoder", str(tmp_path / "tiny.pt"), "--folds", "3", "--epochs", "1", "--max-tiles", "2", "--hidden", "8", "--device", "cpu")
    assert he2rna.main(["train", str(cohort), *small]) == 0 and he2rna.main(["train", str(cohort), *small, "--name", "s", "--code", "colour"]) == 0
    made = [json.loads((cohort / "runs" / name / "config.json").read_text()) for name in ("he2rna", "s")]
    assert [m["features"]["source"] for m in made] == ["tiny", "tiny-stretch"] and [m["features"]["colour"] for m in made] == ["none", "stretch"]
    assert [m["code"] for m in made] == [[], ["colour"]]
    slide, new = sorted((cohort / "slides").iterdir())[0], tmp_path / "new" / "slides" / "x.tif"
    new.parent.mkdir(parents=True)
    shutil.copyfile(slide, new)
    run = cohort / "runs" / "s"
    assert he2rna.main(["predict", str(run), str(slide), str(new), "--device", "cpu", "--weights", str(tmp_path / "tiny.pt")]) == 0
    assert np.array_equal(*(np.load(d / "features" / "tiny-stretch" / f"{n}.npy") for d, n in ((cohort, slide.stem), (tmp_path / "new", "x"))))
    assert he2rna.main(["heatmap", str(run), slide.stem, "--genes", "CD3D", "--device", "cpu", "--weights", str(tmp_path / "tiny.pt")]) == 0
    assert len(np.load(cohort / "all-tiles" / "features" / "tiny-stretch" / f"{slide.stem}.npy")) > 2
    with pytest.raises(tiling.InputError, match="other settings"):             # the default's folder
        he2rna.main(["train", str(cohort), *small, "--colour", "stretch"])


def test_features_of_another_kind_are_refused_naming_both(mapped, tmp_path, capsys):
    run, slide = mapped / "runs" / "he2rna", sorted((mapped / "slides").iterdir())[0]
    predict = lambda *argv: he2rna.main(["predict", str(run), *map(str, argv), "--device", "cpu"])
    for argv, words in (((slide, "--weights", "imagenet"), "imagenet.*random, seed 0"), ((slide, "--features", tmp_path), "leave --features out"),
                        ((slide, "--tile-um", "100"), "options: tile_um 100.0, the run has 112.0"),
                        (("nobody",), "neither a slide file nor a slide of the run"), ((slide, slide), "asked for twice$"),
                        ((slide, slide.stem), "asked for twice")):
        with pytest.raises(tiling.InputError, match=words):
            predict(*argv)
    other = tmp_path / "other"
    (other / "slides").mkdir(parents=True)
    shutil.copyfile(slide, other / "slides" / "x.tif")
    o = options("--encoder", "resnet50-stage3", "--tile-um", "150")
    assert tiling.make_features(other, ["x"], o) == {}
    before = folder_bytes(other, ".npy")
    with pytest.raises(tiling.InputError, match="tile_um 150.0, the run has 112.0"):
        predict(other / "slides" / "x.tif")
    (other / "tiles" / "settings.json").unlink()
    side = other / "features" / "resnet50-stage3" / "x.json"
    side.write_text(side.read_text().replace("seed 0", "seed 7").replace("150.0", "112.0"))
    with pytest.raises(tiling.InputError, match="weights random, seed 7, the run has random, seed 0"):
        predict(other / "slides" / "x.tif")
    assert folder_bytes(other, ".npy") == before and not (run / "predict").exists()
    assert predict(other / "slides" / "x.tif", "--into", tmp_path / "into", "--weights", "random") == 0   # made elsewhere, as the run's
    z, rows = np.load(run / "predictions.npz"), read_csv(run / "predict" / "x.csv")
    models = he2rna.load_run(run)["folds"]
    features, coords = tiling.load_features(tmp_path / "into", "resnet50-stage3", "x")
    means, mask, _ = tiling.supertiles(features, coords)
    x, mask = torch.from_numpy(means.astype(np.float16))[None], torch.from_numpy(mask)[None]
    want = np.mean([he2rna.predict_slides(he2rna.model_of(m, "cpu"), he2rna.in_memory(x, mask), [0])[0] for m in models], 0)
    assert np.allclose([float(r["log10_1p_fpkm_uq"]) for r in rows], want, atol=2e-5) and len(rows) == len(z["genes"])
    config = json.loads((run / "config.json").read_text())
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / "config.json").write_text(json.dumps({**config, "version": 1}))
    with pytest.raises(tiling.InputError, match="version 1 .* reads version 3"):
        he2rna.load_run(old)
    (old / "config.json").write_text(json.dumps(config))
    (old / "fold1.pt").unlink()
    with pytest.raises(tiling.InputError, match="fold1.pt is missing: the run is not finished"):
        he2rna.load_run(old)


def test_what_is_ready_is_used_and_a_moved_cohort_is_found(mapped, tmp_path, capsys):
    """Features made with another seed or precision than a command would choose stay as they are; the run goes with its cohort."""
    cohort = tmp_path / "c"
    shutil.copytree(mapped, cohort)
    shutil.rmtree(cohort / "runs")
    shutil.rmtree(cohort / "features")
    o = options("--encoder", "resnet50-stage3", "--seed", "3", "--precision", "float32")
    assert tiling.make_features(cohort, [r["slide"] for r in read_csv(cohort / "samples.csv")], o) == {}
    assert he2rna.main(["train", str(cohort), "--encoder", "resnet50-stage3", "--folds", "3", "--epochs", "1", "--hidden", "8", "--device", "cpu"]) == 0
    moved = tmp_path / "moved"
    cohort.rename(moved)
    run, before = moved / "runs" / "he2rna", {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in moved.rglob("*") if p.is_file() and "runs" not in p.parts}
    z = np.load(run / "predictions.npz")
    slide, other = z["slide"][0], tmp_path / "slides" / "new.tif"
    other.parent.mkdir()
    shutil.copyfile(mapped / "slides" / f"{slide}.tif", other)
    assert he2rna.main(["predict", str(run), slide, str(other), "--precision", "bfloat16", "--device", "cpu"]) == 0
    rows = read_csv(run / "predict" / f"{slide}.csv")
    assert np.allclose([float(r["log10_1p_fpkm_uq"]) for r in rows], z["prediction"][0], atol=2e-5)
    assert he2rna.main(["finetune", str(moved), "he2rna", "--project", "SIM-COLO", "--genes", "CD3D", "--epochs", "1", "--precision", "bfloat16",
                        "--device", "cpu"]) == 0
    assert he2rna.main(["heatmap", str(run), slide, "--genes", "CD3D", "--device", "cpu"]) == 0
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in moved.rglob("*") if p.is_file() and "runs" not in p.parts}
    weights = json.loads((tmp_path / "features" / "resnet50-stage3" / "new.json").read_text())["weights"]
    assert weights == "random, seed 3" and not cohort.exists()
    tuned = moved / "runs" / "he2rna-SIM-COLO-finetuned"                       # it never saw this project, but what it came from did
    stranger = next(r for r in read_csv(run / "folds.csv") if r["project"] == "SIM-BRST")
    capsys.readouterr()
    assert he2rna.main(["predict", str(tuned), str(moved / "slides" / f"{stranger['slide']}.tif"), "--device", "cpu"]) == 0
    assert f"models of folds {stranger['test_fold']} (the others learned from its patient)" in capsys.readouterr().out
    shutil.rmtree(run)                                                         # trained otherwise: the old fine-tuning is another's
    assert he2rna.main(["train", str(moved), "--encoder", "resnet50-stage3", "--folds", "3", "--epochs", "2", "--hidden", "8", "--device", "cpu"]) == 0
    with pytest.raises(tiling.InputError, match="from_run"):
        he2rna.main(["finetune", str(moved), "he2rna", "--project", "SIM-COLO", "--genes", "CD3D", "--epochs", "1", "--device", "cpu"])


def test_genes_are_named_by_list_or_file_and_near_names_are_suggested(tmp_path):
    known = ["CD3D", "CD3E", "CD247", "MKI67"]
    (tmp_path / "g.txt").write_text("\ufeffCD247\r\nCD3D\tx\n\n")
    assert he2rna.pick_genes("MKI67, CD3D", known) == [3, 0] and he2rna.pick_genes("all", known) == [0, 1, 2, 3]
    assert he2rna.pick_genes(str(tmp_path / "g.txt"), known) == [2, 0]
    for text, words in (("CD3F", "no gene 'CD3F'; nearest: CD3"), ("cd3d", "nearest: CD3D"), (",", "no gene in it"), ("ZZZZ", "it has 4")):
        with pytest.raises(tiling.InputError, match=words):
            he2rna.pick_genes(text, known)


def test_heatmap_of_simulated_slides(mapped, capsys):
    run = mapped / "runs" / "he2rna"
    folds = {r["slide"]: r for r in read_csv(run / "folds.csv")}
    slide = sorted(folds)[0]
    assert he2rna.main(["heatmap", str(run), slide, "--genes", "CD3D,CD3E", "--cells", "lymphocyte", "--device", "cpu"]) == 0
    folder = run / "heatmaps" / "CD3D-CD3E" / slide
    rows, coords = read_csv(folder / "tiles.csv"), tiling.tiles_of(mapped, slide)[0]["coords"]
    model = he2rna.model_of(torch.load(run / f"fold{folds[slide]['test_fold']}.pt", weights_only=True), "cpu").eval()
    genes = torch.load(run / "fold0.pt", weights_only=True)["genes"]
    features = torch.from_numpy(np.load(mapped / "features" / "resnet50-stage3" / f"{slide}.npy")).float()
    want = model.tile_scores(features)[:, [genes.index("CD3D"), genes.index("CD3E")]].detach().numpy()      # the one model held out
    assert [(int(r["x"]), int(r["y"])) for r in rows] == list(map(tuple, coords.tolist()))
    assert np.allclose([[float(r["CD3D"]), float(r["CD3E"])] for r in rows], want, atol=1e-4)
    assert np.allclose([float(r["score"]) for r in rows], want.mean(1), atol=1e-4)
    points = read_csv(mapped / "points" / f"{slide}.csv")
    tile = float(tiling.tiles_of(mapped, slide)[0]["tile"])
    for (x, y), r in list(zip(coords, rows))[:5]:
        for kind in ("all cells", "lymphocyte"):                               # a pixel on the edge is one of two tiles'
            low, high = (sum(x <= float(p["x"]) < x + t and y <= float(p["y"]) < y + t and kind in (p["cell"], "all cells") for p in points)
                         for t in (int(tile), int(tile) + 1))
            assert low <= int(r[f"cells: {kind}"]) <= high
    ledger = read_csv(folder / "provenance.csv")
    prediction = sum(float(r["weight"]) * float(r["score"]) for r in ledger)
    z = np.load(run / "predictions.npz")
    assert prediction == pytest.approx(z["prediction"][z["slide"].tolist().index(slide), genes.index("CD3D")], abs=1e-5)
    assert sum(float(r["weight"]) for r in ledger) == pytest.approx(1, abs=1e-6)
    report = (folder / "report.md").read_text()
    assert f"{prediction:.5f}"[:-1] in report and f"fold {folds[slide]['test_fold']}, which did not learn from its patient" in report
    counts = np.array([int(r["cells: lymphocyte"]) for r in rows])
    r = scipy.stats.pearsonr(want.mean(1), counts)[0] if counts.std() else np.nan
    assert f"| lymphocyte | {counts.sum()} | {r:.3f}" in report.replace(",", "") and "Mean of the genes over the slides" in report
    shapes = json.loads((folder / "tiles.geojson").read_text())
    assert len(shapes["features"]) == len(coords) and {p.name for p in folder.iterdir()} == {
        "map.png", "gallery.png", "cells.png", "tiles.csv", "tiles.geojson", "provenance.csv", "report.md"}
    capsys.readouterr()
    assert he2rna.main(["heatmap", str(run), slide, "--genes", "CD3D", "--cells", "lymphocyt", "--device", "cpu"]) == 1
    assert "no such class" in capsys.readouterr().err
    assert he2rna.main(["heatmap", str(run), *sorted(folds)[:3], "--genes", "CD3D", "--all-models", "--device", "cpu"]) == 0
    assert "models of folds 0, 1, 2" in capsys.readouterr().out and (run / "heatmaps" / "CD3D" / "summary.md").is_file()


def test_the_map_takes_every_tile_where_training_took_a_sample(mapped):
    slide = sorted(r["slide"] for r in read_csv(mapped / "runs" / "he2rna" / "folds.csv"))[1]
    cohort, run = mapped.parent / "few", mapped.parent / "few" / "runs" / "he2rna"
    shutil.copytree(mapped, cohort)
    shutil.rmtree(run)
    assert he2rna.main(["train", str(cohort), "--max-tiles", "3", "--encoder", "resnet50-stage3", "--folds", "3", "--epochs", "1",
                        "--hidden", "8", "--device", "cpu"]) == 0
    assert he2rna.main(["heatmap", str(run), slide, "--genes", "CD3D", "--device", "cpu"]) == 0
    every, few = (tiling.tiles_of(c, slide)[0]["coords"] for c in (mapped, cohort))
    assert len(few) == 3 < len(every) == len(read_csv(run / "heatmaps" / "CD3D" / slide / "tiles.csv"))


def test_spots_and_outlines_as_truth(tmp_path, capsys):
    """A run on .h5 features whose tiles lie on a painted slide; spots that follow the score, an outline around the best tiles."""
    rng = np.random.default_rng(4)
    write_cohort(tmp_path, rng, patients=9, tiles=64)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * 224
    (tmp_path / "slides").mkdir()
    for path in (tmp_path / "h5").iterdir():
        with h5py.File(path, "a") as h:
            x = h["features"][:64]
            del h["coords"], h["features"]
            x[:, :3] += .8 * np.sin(grid[:, :1] / 300)                         # a pattern on the slide
            h["features"], h["coords"] = x, grid.astype(np.int32)
            h["coords"].attrs["patch_size_level0"] = 224
        write_pyramid(tmp_path / "slides" / f"{path.stem}.tif", np.full((1792, 1792, 3), (225, 150, 185), np.uint8))
    assert train(tmp_path, "--epochs", "30", "--lr", "3e-3") == 0
    run = tmp_path / "runs" / "he2rna"
    heatmap = lambda *argv: he2rna.main(["heatmap", str(run), *argv, "--genes", "G0", "--device", "cpu"])
    assert heatmap("s00_0") == 0
    score = np.array([float(r["score"]) for r in read_csv(run / "heatmaps" / "G0" / "s00_0" / "tiles.csv")])
    for d in ("spots", "regions"):
        (tmp_path / d).mkdir()
    for i, slide in enumerate(("s00_0", "s03_0")):
        rows = [f"{x + 100:.1f},{y + 7},{10 ** s - 1:.5f},{10 ** rng.normal():.4f},{s + rng.normal() * .01}" for (x, y), s in zip(grid, score)]
        (tmp_path / "spots" / f"{slide}.csv").write_text("\n".join(["x,y,G0,G5,T-cells", *rows, "9999,9999,1,1,1"]) + "\n")
    best = [[[int(x), int(y)], [int(x) + 224, int(y)], [int(x) + 224, int(y) + 224], [int(x), int(y) + 224]] for x, y in grid[score > np.median(score)]]
    (tmp_path / "regions" / "s00_0.geojson").write_text(json.dumps(dict(type="MultiPolygon", coordinates=[[ring] for ring in best])))
    assert heatmap("s00_0", "s03_0") == 0
    rows = {r["column"]: r for r in read_csv(run / "heatmaps" / "G0" / "s00_0" / "spots.csv")}
    assert float(rows["G0"]["R"]) > .999 and float(rows["G0"]["p"]) < .05 and float(rows["T-cells"]["R"]) > .9 and float(rows["G5"]["p"]) > .01
    report = (run / "heatmaps" / "G0" / "s00_0" / "report.md").read_text()
    assert "64 of 65 spots lie on a tile: 2 genes" in report and "AUC of the scores 1.000" in report
    out = capsys.readouterr().out
    assert re.search(r"spots of [12] slides, models of folds \d: (64|128) spots; 2 genes", out) and "outline AUC 1.000" in out
    for table, words in (("a,b\n1,2\n", "no columns x and y"), ("x,y,G0\nz,2,1\n", "x, y is no place"), ("x,y,G0\n1_0,2,1\n", "row 2: x, y is no place")):
        (tmp_path / "spots" / "s00_0.csv").write_text(table)
        assert heatmap("s00_0") == 1 and words in capsys.readouterr().err
    assert (run / "heatmaps" / "G0" / "s00_0" / "report.md").read_text() == report          # the earlier map stays


@pytest.mark.parametrize("argv,words", [(["--genes", "CD3"], "no gene 'CD3'; nearest: .*CD3"), (["--genes", "CD3D", "--name", "a/b"], "not a path"),
                                        (["--genes", "CD3D", "--provenance", "CD3E"], "not one of --genes CD3D")])
def test_heatmap_says_one_line(mapped, argv, words):
    run, slide = mapped / "runs" / "he2rna", sorted((mapped / "slides").iterdir())[0]
    with pytest.raises(tiling.InputError, match=words):
        he2rna.main(["heatmap", str(run), str(slide), *argv, "--device", "cpu"])


def test_heatmap_of_a_truncated_or_empty_slide_writes_nothing(mapped, tmp_path, capsys):
    source = sorted((mapped / "slides").iterdir())[2]
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "cut.tif").write_bytes(source.read_bytes()[:source.stat().st_size // 3])
    write_pyramid(tmp_path / "slides" / "empty.tif", np.full((1500, 1500, 3), 243, np.uint8))
    files = [str(tmp_path / "slides" / n) for n in ("cut.tif", "empty.tif")]
    for command in (["heatmap", str(mapped / "runs" / "he2rna"), *files, "--genes", "CD3D", "--name", "bad"], ["predict", str(mapped / "runs" / "he2rna"), *files]):
        assert he2rna.main([*command, "--device", "cpu"]) == 1
        err = capsys.readouterr().err
        assert "failed: cut" in err and "failed: empty: no 112 µm tile" in err and "2 of 2 slides failed" in err
    assert [p.name for p in (mapped / "runs" / "he2rna" / "heatmaps" / "bad").iterdir()] == ["failed.csv"] and not list(mapped.glob("runs/he2rna/predict/cut*"))


def test_from_simulated_slides_to_report(tmp_path):
    """The main job, whole: slides, tiles, features, super-tiles, training, report; a second call adds nothing."""
    tiling.simulate_cohort(tmp_path / "c", patients=8, seed=1, edge_px=700)
    command = [sys.executable, he2rna.__file__, "train", str(tmp_path / "c"), "--weights", "random", "--encoder", "resnet50-stage3", "--folds", "3",
               "--epochs", "2", "--hidden", "32", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "c" / "runs" / "he2rna"
    report = (run / "report.md").read_text()
    assert "SIMULATED" in report and "random, seed 0" in report and "Against what was planted" in report
    assert "slides of other sample types than primary tumour" in report and "(of 310)" in report
    first = (run / "genes.csv").read_bytes()
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*.np[yz]") if "runs" not in p.parts}
    again = subprocess.run([*command[:4], *command[6:]], capture_output=True, text=True)   # --weights as it was
    assert again.returncode == 0 and (run / "genes.csv").read_bytes() == first
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps} and len(stamps) > 20


def test_real_breast_cohort_from_features_made_elsewhere(tmp_path):
    """her2st, whole sections held out: the signal is weak but there."""
    source = real("her2st")
    for name in ("samples.csv", "expression.csv.gz"):
        shutil.copyfile(source / name, tmp_path / name)
    assert he2rna.main(["train", str(tmp_path), "--features", str(source / "h5"), "--folds", "4", "--epochs", "12", "--hidden", "256,256",
                        "--device", "cpu", "--lr", "1e-3"]) == 0
    with open(tmp_path / "runs" / "he2rna" / "genes.csv") as f:
        rows = list(csv.DictReader(f))
    with open(tmp_path / "runs" / "he2rna" / "folds.csv") as f:
        assert len({(r["patient"], r["test_fold"]) for r in csv.DictReader(f)}) == 4
    assert max(int(r["n"]) for r in rows) == 45 and np.mean([float(r["R"]) for r in rows if r["R"]]) > .03


# ----- Hospital A, hospital B
def one_by_one(sizes, activations, x, target, train, seed, epochs, batch):
    """The direct way: torch's layers, losses, autograd and Adam, one network. -> outputs of its layers."""
    layers, (weights, biases, _) = [], he2rna.draw_networks(sizes, [seed])
    for w, b, name in zip(weights, biases, activations):
        layers += [torch.nn.Linear(*w.shape[1:]), {"sigmoid": torch.nn.Sigmoid, "relu": torch.nn.ReLU, "linear": torch.nn.Identity}[name]()]
        layers[-2].weight.data, layers[-2].bias.data = w[0].T.clone(), b[0, 0].clone()
    net, loss = torch.nn.Sequential(*layers), F.binary_cross_entropy if activations[-1] == "sigmoid" else F.mse_loss
    optimizer, rng = torch.optim.Adam(net.parameters(), lr=he2rna.MSI_RATE), np.random.default_rng(seed)
    x, target = torch.from_numpy(x), torch.from_numpy(target)
    for _ in range(epochs):
        for rows in torch.from_numpy(train[rng.permutation(len(train))]).split(batch):
            optimizer.zero_grad()
            loss(net(x[rows]), target[rows]).backward()
            optimizer.step()
    out = []
    with torch.no_grad():
        for layer, activation in zip(net[::2], net[1::2]):
            out.append(activation(layer(out[-1] if out else x)))
    return out


@pytest.mark.parametrize("sizes, activations", [
    ((40, 16, 8, 1), ("sigmoid",) * 3), ((40, 12, 6, 30), ("sigmoid", "sigmoid", "linear")), ((40, 24, 6, 24, 40), ("relu",) * 3 + ("linear",))])
@pytest.mark.parametrize("block", [1, 10 ** 9])
def test_networks_in_a_batch_are_those_trained_one_by_one(monkeypatch, sizes, activations, block):
    """50 epochs of 7 networks with 31, 38, 40, 41 ... rows (3 to 5 mini-batches of 10), against torch's autograd and Adam."""
    monkeypatch.setattr(he2rna, "MSI_BLOCK", {"cpu": block})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 40)).astype(np.float32)
    target = (rng.random((60, 1)) < .3).astype(np.float32) if sizes[-1] == 1 else rng.normal(size=(60, sizes[-1])).astype(np.float32)
    trains = [rng.permutation(60)[:n] for n in (31, 38, 40, 41, 40, 9, 10)]
    inputs = lambda m: (x * np.float32(1 + m / 10), target)
    done = dict(he2rna.train_networks(ThreadPoolExecutor(2), sizes, activations, inputs, trains, list(range(90, 97)), 50, 10, torch.device("cpu"), list))
    assert sorted(done) == list(range(7))
    for m, rows in enumerate(trains):
        for ours, theirs in zip(map(torch.from_numpy, done[m]), one_by_one(sizes, activations, *inputs(m), rows, 90 + m, 50, 10), strict=True):
            assert (ours - theirs).abs().max() < 1e-4
        first = he2rna.layers_of(*he2rna.draw_networks(sizes, [90 + m])[:2], activations, torch.from_numpy(inputs(m)[0])[None])
        assert np.abs(done[m][-1] - first[-1][0].numpy()).max() > .05                       # from where they began, a long way


def study(rng, patients=45, d=24, genes=20, slides=1):
    """A study of `slides` slides a patient: expression follows the features, MSI-H the first programme."""
    z = rng.normal(size=(patients, 4)).repeat(slides, 0)
    x = (z @ rng.normal(size=(4, d)) + rng.normal(size=(len(z), d))).astype(np.float32)
    y = (z @ rng.normal(size=(4, genes)) + .3 * rng.normal(size=(len(z), genes))).astype(np.float32)
    names = np.array([f"P{i:03d}" for i in range(patients)]).repeat(slides)
    return dict(features=x, expression=y, genes=np.array([f"G{j}" for j in range(genes)]), patients=names,
                msi=np.where(z[:, 0] > .6, "MSI-H", np.where(z[:, 1] > 1, "MSI-L", "MSS")))


@pytest.fixture()
def small(monkeypatch):
    """The study's networks made small: what they compute is tested elsewhere, here what they are given."""
    for name, value in dict(MSI_HIDDEN=(16, 8), MSI_CLASSIFIER=(8, 6), MSI_EPOCHS=3, MSI_EPOCHS_CODE=5).items():
        monkeypatch.setattr(he2rna, name, value)


def run_study(tmp_path, z, *argv, name="run"):
    np.savez(tmp_path / "study.npz", **z)
    return he2rna.main(["msi", str(tmp_path / "study.npz"), "--name", str(tmp_path / name), "--device", "cpu", *argv])


def as_study(z, code=(), folds=3, repeats=2):
    d = dict(x=z["features"], y=z["expression"], has_y=np.ones(len(z["msi"]), bool), patients=z["patients"], high=z["msi"] == "MSI-H",
             projects=np.full(len(z["msi"]), "all"))
    return d, argparse.Namespace(code=code, folds=folds, repeats=repeats, seed=0)


def test_hospital_a_is_nested_stratified_and_of_the_papers_size():
    high = np.arange(441) % 441 < 67                                                # MSI-H / MSI-NH .18
    before = np.zeros(441, bool)
    for share in he2rna.MSI_SHARES:
        in_a = he2rna.hospital_a(high, share, np.random.default_rng(1))
        assert in_a.sum() == int(441 * share) and abs((high & in_a).sum() - 67 * share) <= 1 and (before <= in_a).all()
        before = in_a
    assert he2rna.hospital_a(high, Fraction(1, 6), np.random.default_rng(1)).sum() == 73                     # "73 - 368 patients"
    tied = np.arange(20) % 4 == 0                                                   # 5 of 20: classes tie at the cut
    assert {(tied & he2rna.hospital_a(tied, Fraction(1, 2), np.random.default_rng(s))).sum() for s in range(50)} == {3}
    draws = [he2rna.hospital_a(high, .5, np.random.default_rng(s)) for s in range(200)]
    assert .35 < np.mean(draws, 0).min() and np.mean(draws, 0).max() < .65 and len({d.tobytes() for d in draws}) == 200


@pytest.mark.parametrize("code, kinds", [((), set()), (("scaling",), {"features"}), (("autoencoder",), set()), (("genes",), {"expression"})])
def test_nothing_learns_from_test_patients_unless_the_authors_switch_says_so(monkeypatch, small, code, kinds):
    """What every network learns from, before and after the patients it is not trained on are changed beyond recognition."""
    z, seen = study(np.random.default_rng(0)), []
    z["expression"] = z["expression"].clip(0)
    z["expression"][:, 3] = np.where(np.arange(45) % 9 < 5, 1, 0)                     # near the median's threshold
    plain = he2rna.train_networks

    def spy(pool, sizes, activations, inputs, trains, *rest):
        for m, rows in enumerate(trains):
            seen.append((sizes, rows, *(v[rows].copy() for v in inputs(m))))
        return plain(pool, sizes, activations, inputs, trains, *rest)
    monkeypatch.setattr(he2rna, "train_networks", spy)
    d, o = as_study(z, code)
    in_a = he2rna.hospital_a(d["high"], .6, np.random.default_rng(5))
    he2rna.compare_arms(d, in_a, tuple(he2rna.MSI_ARMS), o, (0,), torch.device("cpu"))
    first, changed = seen.copy(), set()
    for kind, key in (("features", "x"), ("expression", "y")):
        for patient in np.flatnonzero(~in_a)[:6]:
            before, d[key] = d[key], d[key].copy()
            d[key][patient] = 9 if kind == "features" else 5
            seen.clear()
            he2rna.compare_arms(d, in_a, tuple(he2rna.MSI_ARMS), o, (0,), torch.device("cpu"))
            d[key] = before
            for (sizes, rows, *a), (_, _, *b) in zip(first, seen, strict=True):
                foreign = patient not in rows and sizes[0] == 24                    # codes of a network that saw him may change
                if foreign and not all(u.shape == v.shape and (u == v).all() for u, v in zip(a, b)):
                    changed.add(kind)
    whole_b = [rows for sizes, rows, *_ in first if sizes == (24, 16, 8, 16, 24) and set(np.flatnonzero(~in_a)) <= set(rows)]
    assert changed == kinds and len(whole_b) == ("autoencoder" in code)              # one autoencoder of all of B, test patients too


def test_auc_is_of_patients_and_of_their_own_test_fold(monkeypatch, small):
    """Three slides a patient; the networks' scores replaced by known ones, the AUC by counting pairs."""
    z = study(np.random.default_rng(3), slides=3)
    d, o = as_study(z)
    score, in_a = np.random.default_rng(4).random(135), np.arange(45) < 15
    in_a = in_a.repeat(3)

    def fake(pool, sizes, activations, inputs, trains, seeds, epochs, batch, device, take):
        for m, rows in enumerate(trains):
            assert not set(d["patients"][rows]) & set(d["patients"][np.setdiff1d(np.flatnonzero(~in_a), rows)])      # whole patients
            tests.append(np.setdiff1d(np.flatnonzero(~in_a), rows))
            yield m, take([None] * (len(sizes) - 2) + [(score + m)[:, None]])
    tests = []
    monkeypatch.setattr(he2rna, "train_networks", fake)
    aucs, _ = he2rna.compare_arms(d, in_a, ("direct",), o, (0,), torch.device("cpu"))
    for auc, rows in zip(aucs["direct"].flat, tests, strict=True):
        names = np.unique(d["patients"][rows])
        of = np.array([score[d["patients"] == n].mean() for n in names])
        high = np.array([d["high"][d["patients"] == n][0] for n in names])
        assert auc == pytest.approx(np.mean([p > q for p in of[high] for q in of[~high]]))
    assert all(len(np.unique(np.concatenate(tests[i:i + 3]))) == 90 for i in (0, 3))            # a repeat tests all of B once


def test_msi_run_interrupted_extended_and_reported(tmp_path, monkeypatch, small, capsys):
    z = study(np.random.default_rng(1))
    options = ("--splits", "2", "--ratios", "1/3,1/2", "--repeats", "2")
    assert run_study(tmp_path, z, *options, name="whole") == 0
    said = capsys.readouterr().out
    rows = read_csv(tmp_path / "whole" / "results.csv")
    assert list(rows[0]) == ["split", "ratio", "arm", "repeat", "fold", "auc", "patients_b", "msi_h_b"]
    assert len(rows) == 2 * 2 * 5 * 2 * 3 and {r["ratio"] for r in rows} == {"1/3", "1/2"} and {r["patients_b"] for r in rows} == {"30", "23"}
    plain, calls = he2rna.compare_arms, []

    def broken(*a):
        calls.append(a[4])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*a)
    monkeypatch.setattr(he2rna, "compare_arms", broken)
    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path, z, *options)
    assert len(read_csv(tmp_path / "run" / "results.csv")) == 2 * 5 * 6
    run_study(tmp_path, z, *options)
    assert len(calls) == 3 + 2                                                       # the two that were missing, no more
    for name in ("results.csv", "table.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    calls.clear()
    run_study(tmp_path, z, "--splits", "3", "--ratios", "1/2", "--repeats", "2", "--arms", "direct,transcriptome")
    more = read_csv(tmp_path / "run" / "results.csv")
    assert [c[0] for c in calls] == [2] and [r for r in more if r["split"] != "2"] == rows and len(more) == len(rows) + 2 * 6
    with pytest.raises(tiling.InputError, match="other settings.*code"):
        run_study(tmp_path, z, *options, "--follow", "code")
    with open(tmp_path / "run" / "results.csv", "a") as f:
        f.write("x,1/2,direct,0,0,.5,9,3\n")
    with pytest.raises(tiling.InputError, match="x,1/2,direct.* is no row of ours"):
        run_study(tmp_path, z, *options)
    with pytest.raises(SystemExit):
        run_study(tmp_path, z, "--ratios", "1/0")
    z["expression"][:] = -3                                                          # the floor, everywhere
    with pytest.raises(tiling.InputError, match="no gene is expressed"):
        run_study(tmp_path, z, *options, name="floor")
    assert {f.name for f in (tmp_path / "whole").iterdir()} == {"config.json", "log.jsonl", "results.csv", "table.csv", "report.md", "shares.png", "arms.png"}
    table = read_csv(tmp_path / "whole" / "table.csv")
    each = [np.mean([float(r["auc"]) for r in rows if (r["split"], r["ratio"], r["arm"]) == (s, "1/2", "direct")]) for s in "01"]
    row = next(r for r in table if (r["ratio"], r["arm"]) == ("1/2", "direct"))
    assert float(row["auc"]) == pytest.approx(np.mean(each), abs=1e-4) and float(row["sd"]) == pytest.approx(np.std(each, ddof=1), abs=1e-4)
    report = (tmp_path / "whole" / "report.md").read_text()
    assert f"{(z['msi'] == 'MSI-H').sum()} MSI-H" in report and "too few splits for a p < .05 at 1/3" in report and report.split("\n\n")[-3].strip() in said


def test_msi_verdict_is_of_paired_splits():
    rng, results = np.random.default_rng(0), {}
    for s in range(12):
        level = rng.normal(0, .2)                                                    # shared by the arms: only pairs see the difference
        results.update({(s, "1/2", "transcriptome"): level, (s, "1/2", "direct"): level - .03 + rng.normal(0, .005),
                        (s, "1/2", "ensemble"): level + .02 + rng.normal(0, .005), (s, "1/2", "autoencoder-a"): level + rng.normal(0, .01)})
    text = he2rna.verdict(results, ["1/2"], ["direct", "ensemble", "autoencoder-a"], 3)
    assert re.search(r"direct, one network it wins at 1/2 \(\+0.029\)", text) and re.search(r"direct, ensemble it loses at 1/2 \(-0.021\)", text)
    assert "autoencoder of A it cannot be told apart" in text
    a, b, p = he2rna.compare_to(results, "1/2", "direct")
    assert p == pytest.approx(scipy.stats.wilcoxon(a, b, method="exact").pvalue)


def test_given_hospitals_need_only_what_they_use(tmp_path, small):
    z = study(np.random.default_rng(2))
    z["hospital"] = np.where(np.arange(45) < 20, "A", "B")
    z["expression"][20:] = np.nan
    z["msi"][:20] = ""
    assert run_study(tmp_path, z, "--splits", "2", "--repeats", "1") == 0
    rows = read_csv(tmp_path / "run" / "results.csv")
    assert {r["ratio"] for r in rows} == {"given"} and {r["patients_b"] for r in rows} == {"25"} and len(rows) == 2 * 5 * 3
    assert "say nothing of other patients" in (tmp_path / "run" / "report.md").read_text()
    z["hospital"] = np.where(np.arange(45) < 21, "A", "B")
    z["expression"][20], z["msi"][20] = 1, "MSS"
    with pytest.raises(tiling.InputError, match="other settings.*data"):
        run_study(tmp_path, z, "--splits", "2", "--repeats", "1")
    with pytest.raises(tiling.InputError, match="--ratios 1/2: not where .* has a hospital for each patient"):
        run_study(tmp_path, z, "--ratios", "1/2", name="other")


def spoiled(**change):
    z = study(np.random.default_rng(0))
    for key, f in change.items():
        z[key] = f(z[key]) if key in z else f(z)
    return z


@pytest.mark.parametrize("z, argv, words", [
    (lambda: spoiled(msi=lambda v: np.where(v == "MSI-L", "MSI low", v)), (), r"\d+ of 'MSI low', of 45 labels, are none of MSI-H"),
    (lambda: spoiled(msi=lambda v: np.where(np.arange(45) < 2, "MSI-H", "MSS")), (), "2 MSI-H and 43 other patients; --folds 3 needs as many"),
    (lambda: spoiled(msi=lambda v: np.full(45, "MSS")), (), "0 MSI-H and 45 other"),
    (lambda: spoiled(msi=lambda v: np.where(np.arange(45) < 4, "MSI-H", "MSS")), ("--ratios", "1/2,3/4"), "1/2 in A leaves B 2 MSI-H and 2. other"),
    (lambda: spoiled(msi=lambda v: np.where(np.arange(45) < 40, "Indeterminate", "MSI-H")), (), "5 MSI-H and 0 other"),
    (lambda: spoiled(hospital=lambda z: np.where((np.arange(45) < 30) | (z["msi"] != "MSI-H"), "A", "B")), (), "and 0 other patients in hospital B"),
    (lambda: spoiled(patients=lambda v: np.where(np.arange(45) < 4, v[0], v), hospital=lambda z: np.where(np.arange(45) % 2, "A", "B"),
                     msi=lambda v: np.where(np.arange(45) < 4, "MSS", v)), (), r"1 of 42 patients are of hospital two kinds: P000 \(A, B\)"),
    (lambda: spoiled(patients=lambda v: np.where(np.arange(45) < 4, v[0], v), msi=lambda v: np.where(np.arange(45) < 2, "MSI-H", "MSS")), (),
     r"1 of 42 patients are labelled two kinds: P000 \(MSI-H, MSS\)"),
    (lambda: spoiled(hospital=lambda z: np.full(45, "C")), (), "hospital: C in 45 rows"),
    (lambda: spoiled(features=lambda v: np.where(np.arange(45)[:, None] == 7, np.nan, v)), (), "features of 1 rows are NaN or infinite, the first of patient P007"),
    (lambda: spoiled(expression=lambda v: np.where((np.arange(45)[:, None] == 8) & (np.arange(20) == 3), np.inf, v)), (), "expression of 1 rows.*P008"),
    (lambda: spoiled(expression=lambda v: v[:, :5]), (), r"expression \(45, 5\) for 45 patients and 20 genes"),
    (lambda: spoiled(features=lambda v: v.astype(str)), (), "features are <U"),
    (lambda: {k: v for k, v in spoiled().items() if k != "msi"}, (), "no array msi"),
    (lambda: spoiled(expression=lambda v: v - 3), ("--scale", "linear"), "--scale linear, but expression has -"),
    (lambda: spoiled(), ("--splits", "0"), "--splits 0: must be at least 1"),
    (lambda: spoiled(), ("--project", "COAD"), "--project: only with a cohort folder"),
    (lambda: spoiled(), ("--features", "dir"), "--features: only with a cohort folder"),
    (lambda: spoiled(features=lambda v: v[:, :0]), (), "nothing in features"),
    (lambda: spoiled(genes=lambda v: np.array("G")), (), "nothing in genes"),
])
def test_msi_mistakes_are_told_with_counts(tmp_path, small, z, argv, words):
    with pytest.raises(tiling.InputError, match=words):
        run_study(tmp_path, z(), *argv)
    assert not (tmp_path / "run").exists()


def test_msi_of_a_cohort_takes_mean_features_and_drops_what_has_no_label(tmp_path, small, capsys, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(0), patients=24, per_patient=2)
    lines = (tmp_path / "samples.csv").read_text().split()
    labels = {f"p{i:02d}": "Indeterminate" if i == 3 else "msi-h" if i % 3 == 0 else "MSS" for i in range(24)}
    (tmp_path / "samples.csv").write_text("\n".join([lines[0] + ",msi", *(f"{line},{labels[line.split(',')[1]]}" for line in lines[1:])]) + "\n")
    seen, plain = [], he2rna.compare_arms
    monkeypatch.setattr(he2rna, "compare_arms", lambda d, *a: seen.append(d) or plain(d, *a))
    argv = ["msi", str(tmp_path), "--features", str(tmp_path / "h5"), "--splits", "1", "--ratios", "1/3", "--repeats", "1", "--device", "cpu"]
    assert he2rna.main(argv) == 0
    assert "23 patients, 46 slides: 7 MSI-H, 0 MSI-L, 16 MSS; dropped: 2 slides" in capsys.readouterr().out
    with h5py.File(tmp_path / "h5" / "s05_1.h5") as h:
        mean = h["features"][()].astype(float).mean(0)
    d = seen[0]
    assert np.abs(d["x"] - mean).max(1).min() < 1e-5 and len(d["x"]) == 46 and (tmp_path / "runs" / "msi" / "report.md").is_file()
    assert d["y"].max() < 10                                                          # log10 of FPKM-UQ
    (tmp_path / "samples.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(tiling.InputError, match="no column msi"):
        he2rna.main(argv)


def test_the_representation_helps_on_real_expression_and_labels(tmp_path):
    """Real MSI status and expression of 306 patients, features simulated from expression programmes: B is a quarter."""
    he2rna.main(["msi", str(real("msi", "coadread_semisynthetic.npz")), "--name", str(tmp_path / "run"), "--splits", "1", "--ratios", "3/4",
                 "--repeats", "1", "--arms", "transcriptome,direct", "--device", "cpu"])
    auc = {r["arm"]: float(r["auc"]) for r in read_csv(tmp_path / "run" / "table.csv")}
    assert auc["transcriptome"] > auc["direct"] > .6


# =====================================================================================================================
# histcode.py: contrastive pretraining (AdCo, SimCLR)
# Authorities: autograd, brute force, Pillow, colorsys, SciPy, torch's SGD, one process for two, direct normal equations.
# =====================================================================================================================
def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n, px, seed=0):
    """Smooth random colours, (n, 3, px, px) float in 0..1."""
    x = ndimage.gaussian_filter(np.random.default_rng(seed).random((n, 3, px, px)), (0, 0, 2, 2))
    return torch.from_numpy(((x - x.min()) / np.ptp(x)).astype(np.float32))


def test_views_have_their_shape_and_range_and_follow_the_seed():
    tiles = (pictures(6, 40) * 255).to(torch.uint8)
    for px in (24, 40, 64):
        a = histcode.make_view(tiles, histcode.draw_view(6, seeded(1)), px)
        assert a.shape == (6, 3, px, px) and a.dtype == torch.float32 and 0 <= a.min() and a.max() <= 1
        assert torch.equal(a, histcode.make_view(tiles, histcode.draw_view(6, seeded(1)), px))
        assert (a - histcode.make_view(tiles, histcode.draw_view(6, seeded(2)), px)).abs().mean() > .02
    one = histcode.make_view(tiles[:1].repeat(40, 1, 1, 1), histcode.draw_view(40, seeded()), 24)
    assert torch.cdist(one.flatten(1), one.flatten(1)).fill_diagonal_(9).min() > .1       # each of one tile's views is another


def test_the_plain_view_is_the_tile_and_floats_are_as_bytes():
    tiles = (pictures(3, 32) * 255).to(torch.uint8)
    got = histcode.make_view(tiles, histcode.plain_view(3), 32)
    assert torch.allclose(got, tiles / 255, atol=1e-6)
    view = histcode.draw_view(3, seeded())
    assert torch.allclose(histcode.make_view(tiles, view, 20), histcode.make_view(tiles / 255, view, 20), atol=1e-6)


def test_a_view_depends_on_its_own_draws_alone():
    tiles, view = pictures(5, 32), histcode.draw_view(5, seeded(3))
    together = histcode.make_view(tiles, view, 24)
    for i in (0, 3):
        alone = histcode.make_view(tiles[i:i + 1], {k: v[i:i + 1] for k, v in view.items()}, 24)
        assert torch.allclose(alone[0], together[i], atol=1e-6)


@pytest.mark.parametrize("px", [16, 33, 48, 90])
def test_crops_equal_pillows_resize(px):
    tiles, boxes = (pictures(4, 64) * 255).to(torch.uint8), torch.tensor([[0, 0, 1, 1], [.1, .25, .6, .5], [.3, .02, .7, .93], [.5, .5, .45, .5]])
    got = histcode.make_view(tiles, dict(histcode.plain_view(4), box=boxes), px)
    for tile, (left, top, w, h), g in zip(tiles, boxes * 64, got):
        box = [float(v) for v in (left, top, left + w, top + h)]
        for c in range(3):
            want = Image.fromarray(tile[c].float().numpy(), "F").resize((px, px), Image.Resampling.BILINEAR, box)
            assert np.abs(np.asarray(want) - g[c].numpy() * 255).max() < .01


def test_turns_are_the_eight_symmetries():
    tile = torch.arange(48.).reshape(1, 3, 4, 4) / 48
    views = [histcode.make_view(tile, dict(histcode.plain_view(1), turns=torch.tensor([bits])), 4)[0]
             for bits in itertools.product([False, True], repeat=3)]
    want = [torch.rot90(t, k, (1, 2)) for t in (tile[0], tile[0].flip(2)) for k in range(4)]
    assert sorted(int(np.argmin([(v - w).abs().max() for w in want])) for v in views) == list(range(8))
    assert all(min((v - w).abs().max() for w in want) < 1e-6 for v in views)


def test_colour_jitter_equals_colorsys():
    x, rng = pictures(3, 5), np.random.default_rng(0)
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 1, 0] = 0, 1, .5                      # black, white, grey
    column = lambda v: torch.tensor(v, dtype=torch.float32).reshape(-1, 1, 1, 1)
    for _ in range(5):
        b, c, s = (column(rng.uniform(.5, 1.5, 3)) for _ in range(3))
        hue = column(rng.uniform(-.5, .5, 3))
        got = histcode.jitter(x, b, c, s, hue)
        for n in range(3):
            pixels = (x[n] * b[n]).clamp(0, 1).permute(1, 2, 0).double().numpy()
            grey = pixels @ histcode.GREY
            pixels = (c[n].item() * pixels + (1 - c[n].item()) * grey.mean()).clip(0, 1)
            grey = pixels @ histcode.GREY
            pixels = (s[n].item() * pixels + (1 - s[n].item()) * grey[..., None]).clip(0, 1)
            for i, j in itertools.product(range(5), range(5)):
                h, l, v = colorsys.rgb_to_hsv(*pixels[i, j])
                want = colorsys.hsv_to_rgb((h + hue[n].item()) % 1, l, v)
                assert np.abs(got[n, :, i, j].numpy() - want).max() < 2e-5


def test_saturation_of_a_turned_hue_stays():
    x = pictures(2, 8)
    got = histcode.shift_hue(x, torch.tensor([.3, -.1]).view(2, 1, 1))
    assert torch.allclose(got.amax(1), x.amax(1), atol=1e-6) and torch.allclose(got.amin(1), x.amin(1), atol=1e-6)
    assert torch.allclose(histcode.shift_hue(x, torch.ones(2, 1, 1)), x, atol=1e-5)          # a full turn


def test_blur_equals_scipy_away_from_the_rim():
    x = torch.rand(3, 3, 40, 40, generator=seeded())
    sigma = torch.tensor([0, 1.1, 2.0])
    weights = histcode.blur_weights(sigma, 40)[:, None]
    got = weights @ x @ weights.mT
    assert torch.allclose(got[0], x[0], atol=1e-6) and torch.allclose(weights.sum(3), torch.ones(3, 1, 40))
    for i in (1, 2):
        want = ndimage.gaussian_filter(x[i].numpy(), (0, float(sigma[i]), float(sigma[i])), truncate=8)
        assert np.abs(want - got[i].numpy())[:, 12:-12, 12:-12].max() < 1e-5


def test_draws_have_their_ranges_and_chances():
    v = histcode.draw_view(20000, seeded())
    left, top, w, h = v["box"].T
    assert (v["box"] >= 0).all() and (left + w).max() < 1 + 1e-6 and (top + h).max() < 1 + 1e-6
    assert (w * h).min() > .2 - 1e-6 and (w / h).min() > .75 - 1e-5 and (w / h).max() < 4 / 3 + 1e-5 and (w * h).mean() > .5
    changed = (v["colour"] != torch.tensor([1, 1, 1, 0.])).any(1)
    for got, chance in ((changed, .8), (v["gray"], .2), (v["sigma"] > 0, .5), *((t, .5) for t in v["turns"].T)):
        assert abs(got.float().mean() - chance) < .015
    assert ((v["colour"] - torch.tensor([1, 1, 1, 0.])).abs().amax(0) - torch.tensor(histcode.JITTER)).abs().max() < .001
    assert .1 <= v["sigma"][v["sigma"] > 0].min() and 1.99 < v["sigma"].max() <= 2


def unit(n, d, seed, dtype=torch.float64):
    return F.normalize(torch.randn(n, d, generator=seeded(seed), dtype=dtype), dim=1)


def test_info_nce_equals_its_sum_and_does_not_overflow():
    q, k, w = unit(7, 5, 0), unit(7, 5, 1), 3 * torch.randn(11, 5, generator=seeded(2), dtype=torch.float64)
    for tau, in_batch in itertools.product((.12, 1.0), (False, True)):
        loss = 0.0
        for i in range(7):
            others = [math.exp(float(q[i] @ v / v.norm()) / tau) for v in w]
            others += [math.exp(float(q[i] @ k[j]) / tau) for j in range(7) if j != i and in_batch]
            positive = math.exp(float(q[i] @ k[i]) / tau)
            loss -= math.log(positive / (positive + sum(others))) / 7
        assert histcode.info_nce(q, k, w, tau, in_batch).item() == pytest.approx(loss, rel=1e-12)
    hard = histcode.info_nce(q.float(), -q.float(), q.float() * 1e3, 1e-4)
    assert torch.isfinite(hard) and hard.item() == pytest.approx(2e4, rel=1e-3)


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("tau", [.02, .12, 1.0])
def test_bank_gradient_equals_autograd_and_is_orthogonal(monkeypatch, tau, in_batch):
    monkeypatch.setattr(histcode, "BANK_BLOCK", 64)                            # several blocks, the last one short
    q, k = unit(12, 16, 0), unit(12, 16, 1)
    w = torch.randn(333, 16, generator=seeded(2), dtype=torch.float64) * torch.logspace(-2, 2, 333, dtype=torch.float64)[:, None]
    wanted, = torch.autograd.grad(histcode.info_nce(q, k, w.requires_grad_(), tau, in_batch), w)
    got = histcode.bank_gradient(q, k, w.detach(), tau, in_batch)
    assert ((got - wanted).norm(dim=1) <= 1e-10 * wanted.norm(dim=1) + 1e-16).all()
    assert ((got * w).sum(1).abs() <= 1e-10 * got.norm(dim=1) * w.norm(dim=1)).all() and got.norm(dim=1).min() > 0
    short = histcode.bank_gradient(q.float(), k.float(), w.detach().float(), tau, in_batch)
    assert relative(short, wanted) < 1e-4


def test_bank_step_climbs_and_equals_torchs_sgd():
    q, k, w = unit(12, 8, 0), unit(12, 8, 1), torch.randn(40, 8, generator=seeded(2), dtype=torch.float64)
    ours, velocity, theirs = w.clone(), torch.zeros_like(w), w.clone().requires_grad_()
    sgd = torch.optim.SGD([theirs], .3, momentum=.9, weight_decay=1e-2, maximize=True)
    for _ in range(5):
        histcode.bank_step(ours, velocity, histcode.bank_gradient(q, k, ours, .12), .3, .9, 1e-2)
        sgd.zero_grad()
        histcode.info_nce(q, k, theirs, .12).backward()
        sgd.step()
    # torch subtracts the decay from the reversed gradient with the sign that shrinks, as ours does
    assert torch.allclose(ours, theirs.detach(), rtol=1e-10)
    losses, bank, velocity = [], w.clone(), torch.zeros_like(w)
    for _ in range(30):
        losses.append(histcode.info_nce(q, k, bank, .12).item())
        histcode.bank_step(bank, velocity, histcode.bank_gradient(q, k, bank, .12), .1)
    assert (np.diff(losses) > 0).all() and losses[-1] > losses[0] + .1


def test_nt_xent_equals_its_sum():
    z1, z2, tau, loss = unit(6, 4, 0), unit(6, 4, 1), .3, 0.0
    z = torch.cat([z1, z2])
    for i in range(12):
        e = [math.exp(float(z[i] @ z[j]) / tau) if i != j else 0 for j in range(12)]
        loss -= math.log(e[(i + 6) % 12] / sum(e)) / 12
    assert histcode.nt_xent(z1, z2, tau).item() == pytest.approx(loss, rel=1e-12)
    assert torch.isfinite(histcode.nt_xent(z1.float(), -z1.float(), 1e-4))


def test_spread_tells_a_collapse():
    z = unit(500, 32, 0)
    assert histcode.spread(z) == pytest.approx(float(z.var(0, unbiased=False).mean().sqrt() * 32 ** .5), rel=1e-9)
    assert histcode.spread(z) > .95 and histcode.spread(z[:1].repeat(9, 1)) < 1e-6 < histcode.COLLAPSED


def test_mixing_shuffles_within_its_pool():
    for n, pool in ((1, 5), (50, 1), (200, 30), (200, 500)):
        order = histcode.mix(n, pool, np.random.default_rng(0))
        assert sorted(order) == list(range(n)) and (order <= np.arange(n) + pool - 1).all()      # only what has been read
        assert n < 2 or (order == np.arange(n)).all() == (pool == 1)
        assert pool < 30 or np.ptp([np.flatnonzero(order == i)[0] for i in range(10)]) > 15


def test_an_epochs_tiles_are_drawn_from_every_slide_by_seed_and_epoch():
    counts = np.array([5, 40, 0, 12])
    a = histcode.choose_tiles(counts, np.full(4, 10), 0, 1)
    assert len(set(map(tuple, a))) == len(a) and np.bincount(a[:, 0], minlength=4).tolist() == [5, 10, 0, 10]
    assert (a[:, 1] < counts[a[:, 0]]).all() and (np.diff(np.flatnonzero(np.diff(a[:, 0]))) > 1).all()
    assert (a == histcode.choose_tiles(counts, np.full(4, 10), 0, 1)).all()
    assert len({histcode.choose_tiles(counts, np.full(4, 10), *key).tobytes() for key in ((0, 1), (0, 2), (1, 1))}) == 3


@pytest.fixture(scope="module")
def unlabelled(drawn, tmp_path_factory):
    """The simulated cohort, its slides and points only."""
    folder = tmp_path_factory.mktemp("pretrain") / "c"
    for part in ("slides", "points"):
        shutil.copytree(drawn / part, folder / part)
    shutil.copy(drawn / "samples.csv", folder)
    torch.manual_seed(0)
    net = tiling.ResNet50(3)
    for m in net.modules():
        if isinstance(m, tiling.Bottleneck):
            torch.nn.init.constant_(m.bn3.weight, .2)                          # damped as --weights random is, without its seconds
    torch.save(net.state_dict(), folder / "start.pth")
    return folder


TINY = "--tile-px 36 --view-px 32 --batch 8 --tiles-per-slide 2 --device cpu --precision float32".split()


def pretrain(cohort, *argv):
    return histcode.main(["pretrain", str(cohort), "--weights", str(cohort / "start.pth"), *TINY, *argv])


def data_of(cohort, px=36, colour="none"):
    o = options("--workers", "2", "--colour", colour)
    o.tile_px = px
    return histcode.find_data(cohort, histcode.slides_of(cohort), o)[0]


def test_batches_do_not_depend_on_workers_and_processes_share_them(unlabelled):
    data = data_of(unlabelled)
    counts = np.array([len(c) for c in data["coords"]])
    chosen = histcode.choose_tiles(counts, np.full(len(counts), 3), 0, 1)
    order = histcode.mix(len(chosen), 7, np.random.default_rng(0))
    read = lambda *a: list(histcode.read_batches(data, chosen, order, 6, *a))
    whole = read(0, 1, 1)
    assert len(whole) == len(chosen) // 6 > 2 and whole[0].shape == (6, 36, 36, 3)
    assert all((a == b).all() for a, b in zip(whole, read(0, 1, 5)))
    assert all((np.concatenate(parts) == w).all() for w, *parts in zip(whole, read(0, 2, 2), read(1, 2, 2)))
    s, t = chosen[order[0]]
    want = tiling.read_tiles(tiling.open_slide(data["paths"][s]), data["coords"][s][[t]], data["tiles"][s], 36)[0]
    assert (whole[0][0] == want).all()
    coloured = data_of(unlabelled, colour="macenko")                           # the slide's stains, found once
    found = tiling.slide_stains(tiling.open_slide(data["paths"][s]), data["coords"][s], data["tiles"][s], 36, 0)
    got = next(histcode.read_batches(coloured, chosen, order, 6))[0]
    assert found is not None and (got == tiling.macenko(want[None], found)[0][0]).all() and (got != want).any()


def saved(path):
    return torch.load(path, weights_only=True)


def test_pretraining_stops_where_the_loss_is_lost_and_keeps_the_epoch_before(unlabelled, monkeypatch):
    real_step, steps = histcode.train_step, []

    def train_step(*args):
        steps.append(1)
        return (float("nan"), *real_step(*args)[1:]) if len(steps) == 3 else real_step(*args)
    monkeypatch.setattr(histcode, "train_step", train_step)
    with pytest.raises(tiling.InputError, match=r"epoch 2 step 1: loss .* at tiles of S0[^;]*; .*state.pt keeps epoch 1; a lower --lr"):
        pretrain(unlabelled, "--epochs", "4", "--name", "lost")
    run = unlabelled / "runs" / "lost"
    assert saved(run / "state.pt")["epoch"] == 1 and saved(run / "lost.pt") and len((run / "log.jsonl").read_text().splitlines()) == 1


def test_interrupted_pretraining_ends_as_one_that_was_not(unlabelled, monkeypatch, capsys):
    argv = ("--epochs", "3", "--momentum-encoder", ".9", "--symmetric", "--cosine")
    assert pretrain(unlabelled, *argv, "--name", "whole") == 0
    real_save, epochs = histcode.save_encoder, []

    def stop(path, model, o, epoch):
        real_save(path, model, o, epoch)
        epochs.append(epoch)
        if len(epochs) == 2:
            raise KeyboardInterrupt
    monkeypatch.setattr(histcode, "save_encoder", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(unlabelled, *argv, "--name", "cut")
    run = unlabelled / "runs" / "cut"
    with open(run / "log.jsonl", "a") as f:
        f.write('{"epoch": 3, "half')                                          # what a power cut leaves
    assert pretrain(unlabelled, *argv, "--name", "cut", "--workers", "3") == 0 and epochs == [1, 2, 1, 2, 3]
    a, b = saved(run / f"{run.name}.pt"), saved(unlabelled / "runs" / "whole" / "whole.pt")
    assert all(torch.equal(a[part][k], b[part][k]) for part in ("encoder", "projection") for k in b[part])
    logs = [[json.loads(line) for line in (unlabelled / "runs" / n / "log.jsonl").read_text().splitlines()] for n in ("cut", "whole")]
    assert [e["epoch"] for e in logs[0]] == [1, 2, 3] and [e["loss"] for e in logs[0]] == [e["loss"] for e in logs[1]]
    assert logs[0][2]["lr"] < logs[0][0]["lr"] == .03 and a["settings"] == b["settings"]
    capsys.readouterr()
    (run / "cut.pt").unlink()                                                  # made again from the state
    assert pretrain(unlabelled, *argv, "--name", "cut") == 0 and "was ready" in capsys.readouterr().out
    assert torch.equal(saved(run / "cut.pt")["encoder"]["conv1.weight"], b["encoder"]["conv1.weight"])


def test_two_processes_equal_one(unlabelled, tmp_path):
    """Whole: gathered embeddings, BatchNorm over both, summed gradients, averaged bank gradient, in-batch keys. Two
    steps: more grow the rounding, up to .02 of a step in biases, where one part missing would be all of it."""
    argv = ["--epochs", "1", "--in-batch", "--symmetric", "--lr", "3e-4", "--workers", "1"]
    assert pretrain(unlabelled, *argv, "--name", "one") == 0
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
                           str(20000 + os.getpid() % 20000), histcode.__file__, "pretrain", str(unlabelled), "--weights",
                           str(unlabelled / "start.pth"), *TINY, *argv, "--name", "two"],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch   1/1") == 1                               # one of them prints
    one, two = (saved(unlabelled / "runs" / n / "state.pt") for n in ("one", "two"))
    start = histcode.Embedder(tiling.load_weights(3, str(unlabelled / "start.pth"), 0)).state_dict()
    for name, w in one["model"].items():
        moved, off = ((w - other).double().norm() for other in (start[name], two["model"][name]))
        assert moved > 0 and off < .1 * moved + 1e-7 * w.double().norm(), name      # the same way, not only near
    assert relative(two["bank"], one["bank"]) < 1e-4 and relative(two["velocity"], one["velocity"]) < 1e-3


def test_the_encoder_file_is_what_tiling_takes(unlabelled):
    assert pretrain(unlabelled, "--epochs", "1", "--method", "simclr", "--seed", "1") == 0
    e = saved(unlabelled / "runs" / "simclr" / "simclr.pt")
    net = tiling.ResNet50(3)
    net.load_state_dict(e["encoder"])                                          # strict: torchvision's names, nothing else
    assert set(e) == {"version", "source", "method", "encoder", "stages", "n_features", "projection", "mean", "std", "tile_px",
                      "tile_um", "colour", "settings", "patients"}
    assert e["patients"] == sorted({r["patient"] for r in read_csv(unlabelled / "samples.csv")})
    assert (e["version"], e["method"], e["stages"], e["n_features"], e["tile_px"], e["tile_um"]) == (1, "simclr", 3, 1024, 36, 128.0)
    assert [tuple(v.shape) for v in e["projection"].values()] == [(1024, 1024), (1024,), (128, 1024), (128,)] and "HistCode" in e["source"]
    assert tuple(e["mean"]) == tiling.IMAGENET_MEAN and e["settings"]["seed"] == 1 and e["settings"]["epochs_done"] == 1
    assert not (unlabelled / "runs" / "simclr" / "config.json").read_text().count("bank")


def test_the_bank_starts_from_each_slides_tiles_or_at_random(unlabelled):
    data = data_of(unlabelled)
    counts = np.array([len(c) for c in data["coords"]])
    o = argparse.Namespace(bank_percent=30.0, bank_size=10 ** 6, seed=0, batch=8, pool=1000, view_px=32, precision="float32", workers=1)
    model = histcode.Embedder(random_resnet(3))
    full = int(np.ceil(.3 * counts).sum())
    bank = histcode.first_bank(model, data, counts, o, torch.device("cpu"), 0, 1)
    assert bank.shape == (full // 8 * 8, 128) and torch.allclose(bank.norm(dim=1), torch.ones(len(bank)), atol=1e-5)
    o.bank_size = 9
    assert len(histcode.first_bank(model, data, counts, o, torch.device("cpu"), 0, 1)) == 8
    o.bank_percent, o.bank_size = 0, 50
    bank = histcode.first_bank(model, data, counts, o, torch.device("cpu"), 0, 1)
    assert bank.shape == (50, 128) and torch.allclose(bank.norm(dim=1), torch.ones(50)) and histcode.spread(bank) > .9


@pytest.mark.parametrize("argv, words", [
    (["--batch", "9999"], "don't fill a batch of 9999"), (["--lr", "-1"], "--lr -1"), (["--lr", "nan"], "--lr nan"), (["--name", "a/b"], "not a path"),
    (["--view-px", "8"], "--view-px 8: must lie between 32"), (["--method", "simclr", "--bank-lr", "3"], "--bank-lr: not with --method simclr"),
    (["--weights", "nowhere.pth"], "--weights nowhere.pth"), (["--bank-percent", "101"], "--bank-percent 101")])
def test_pretrain_says_one_line(unlabelled, argv, words):
    with pytest.raises(tiling.InputError, match=words):
        pretrain(unlabelled, "--epochs", "1", "--name", "wrong", *argv)
    assert not (unlabelled / "runs" / "wrong").exists()


def test_a_run_of_other_settings_is_refused(unlabelled):
    assert pretrain(unlabelled, "--epochs", "1", "--name", "kept") == 0
    before = (unlabelled / "runs" / "kept" / "kept.pt").read_bytes()
    with pytest.raises(tiling.InputError, match="other settings .*lr 0.03 -> 0.02.*another --name"):
        pretrain(unlabelled, "--epochs", "1", "--name", "kept", "--lr", ".02")
    assert (unlabelled / "runs" / "kept" / "kept.pt").read_bytes() == before


@pytest.fixture
def settled(monkeypatch):
    """What the options of a command come to."""
    seen = {}
    for verb in ("pretrain", "diagnose", "expression"):
        def run(o):
            histcode.settle_options(o, 1) if o.verb == "pretrain" else histcode.settle_choices(o)
            seen.clear()
            seen.update({k: v for k, v in vars(o).items() if k not in ("function", "parse")})
        run.__name__ = verb
        monkeypatch.setattr(histcode, verb, run)
    return lambda *argv: histcode.main([argv[0], "x", *argv[1:]]) or dict(seen)


def test_follow_code_sets_the_authors_values_but_not_what_is_asked_for(settled, capsys):
    p = settled("pretrain")
    assert (p["lr"], p["in_batch"], p["momentum_encoder"], p["bank_tau"], p["cosine"], p["symmetric"]) == (.03, False, .999, p["tau"], False, False)
    assert p["code"] == [] and (p["bank_momentum"], p["bank_decay"], p["tiles_per_slide"], p["colour"]) == (.9, 1e-4, 256, None)
    c = settled("pretrain", "--follow", "code", "--lr", ".1", "--no-in-batch")
    assert (c["lr"], c["in_batch"], c["momentum_encoder"], c["bank_tau"], c["cosine"], c["tau"], c["bank_lr"]) == (.1, False, .999, .02, True, .12, .3)
    assert c["code"] == ["batch", "cosine", "bank-tau", "bank-size"] and (c["batch"], c["final_lr"], c["bank_size"]) == (250, .0006, 318193)
    assert "--follow code: without lr, for --lr 0.1 is asked for" in capsys.readouterr().out
    assert settled("pretrain", "--follow", "paper")["code"] == ["colour", "tiles", "bank-step"]
    assert settled("expression", "--follow", "code")["code"] == ["model", "epochs", "stop", "embed"]
    assert settled("diagnose", "--follow", "code")["code"] == ["embed"] and settled("diagnose", "--follow", "paper")["code"] == []


@pytest.mark.parametrize("verb, name", [(c, name) for c in histcode.TURNED for name in tiling.switches(histcode.CHOICES, c)])
def test_a_choice_turns_its_options_and_no_other(settled, verb, name):
    own, p, c = histcode.TURNED[verb].get(name, {}), settled(verb), settled(verb, "--code", name)
    differ = {k: v for k, v in c.items() if p[k] != v and k != "code"}
    assert differ == own and c["code"] == [name] and (own or name == "stop")


def test_histcodes_choices_are_one_table(capsys):
    assert histcode.main(["choices"]) == 0
    said, names = capsys.readouterr().out, [row[:2] for row in histcode.CHOICES]
    assert max(map(len, said.splitlines())) <= 120 and len(set(names)) == len(names) == 23 and "python histcode.py pretrain" in said
    assert all(re.fullmatch(r"\[(HistCode|AdCo|ours).*\]", row[-1]) for row in histcode.CHOICES)
    assert {(c, name) for c in histcode.TURNED for name in histcode.TURNED[c]} | {("diagnose", "stop"), ("expression", "stop"),
                                                                                   ("diagnose", "--colour"), ("expression", "--colour"), ("pretrain", "--min-area")} == set(names)
    assert all(name in histcode.TURNED[c] for c in histcode.UNSEEN for name in histcode.UNSEEN[c])
    for command, right in (("pretrain", "tissue, colour, tiles, batch"), ("diagnose", "folds, stop, embed"), ("expression", "model, epochs, stop"),
                           ("audit", "tissue, colour, tiles")):
        with pytest.raises(SystemExit):
            histcode.main([command, "x", "--code", "embed,bias"])
        assert f"bias: choose from {right}" in capsys.readouterr().err or command == "pretrain"


@pytest.mark.parametrize("argv, words", [
    ("pretrain --code lr --lr .1", "--code lr turns it to: .001; leave --lr 0.1 out"),
    ("pretrain --code in-batch --no-in-batch", "leave --no-in-batch out"), ("pretrain --code colour --colour none", "leave --colour none out"),
    ("pretrain --code tissue --tissue stain", "leave --tissue stain out"), ("pretrain --method simclr --code bank-lr", "--code bank-lr: not with"),
    ("diagnose --code folds --no-rotate", "each of the ten parts tests in turn; leave --no-rotate out"),
    ("expression --code epochs --epochs 3", "leave --epochs 3 out"), ("expression --code model --model linear", "leave --model linear out")])
def test_a_choice_and_an_option_that_gainsay_say_so(settled, argv, words):
    with pytest.raises(tiling.InputError, match=words):
        settled(*argv.split())
    assert settled("pretrain", "--code", "lr", "--lr", ".001")["lr"] == .001   # they agree


def test_show_views_draws_and_stops(unlabelled, capsys):
    assert pretrain(unlabelled, "--show-views", "--name", "seen") == 0
    assert [p.name for p in (unlabelled / "runs" / "seen").iterdir()] == ["views.png"]
    assert Image.open(unlabelled / "runs" / "seen" / "views.png").size[1] > 1000


def test_a_collapse_is_said(unlabelled, monkeypatch, capsys):
    monkeypatch.setattr(histcode, "COLLAPSED", .999)
    assert pretrain(unlabelled, "--epochs", "1", "--name", "fallen") == 0
    assert "COLLAPSE" in capsys.readouterr().out and json.loads((unlabelled / "runs" / "fallen" / "log.jsonl").read_text())["collapsed"]


def test_a_slide_that_breaks_off_is_named(unlabelled, tmp_path):
    shutil.copytree(unlabelled, tmp_path / "c", ignore=shutil.ignore_patterns("runs"))
    data_of(tmp_path / "c")
    path = sorted((tmp_path / "c" / "slides").iterdir())[0]
    whole = path.read_bytes()
    data = data_of(tmp_path / "c")
    path.write_bytes(whole[:len(whole) // 2])
    chosen = np.stack([np.zeros(len(data["coords"][0]), int), np.arange(len(data["coords"][0]))], 1)
    with pytest.raises(tiling.InputError, match=f"{path.stem}.*(take it out|not a readable)"):
        list(histcode.read_batches(data, chosen, np.arange(len(chosen)), len(chosen)))


def ridge_at(x, y, penalties, new):
    weights, bias = histcode.ridge(x, y, penalties)
    return new @ weights + bias[:, None]


@pytest.mark.parametrize("n", [50, 6])                                         # more samples than features, and fewer
def test_ridge_equals_the_normal_equations(n):
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(2, 3, (n, 8)), rng.normal(size=(n, 2)), rng.normal(2, 3, (5, 8))
    x[:, 3] = new[:, 3] = 7                                                    # a constant feature
    z = np.delete((x - x.mean(0)) / np.maximum(x.std(0), 1e-9), 3, 1)
    zn = np.delete((new - x.mean(0)) / np.maximum(x.std(0), 1e-9), 3, 1)
    for g, penalty in zip(ridge_at(x, y, (0, .5, 40.0), new), (0, .5, 40.0)):
        w = np.linalg.pinv(z.T @ z + penalty * np.eye(7)) @ z.T @ (y - y.mean(0))       # 0: the smallest solution
        assert np.allclose(g, zn @ w + y.mean(0))


def test_the_probe_finds_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    patients = np.repeat([f"P{i}" for i in range(20)], 30)
    x = rng.normal(size=(600, 12)) + rng.normal(size=(20, 12)).repeat(30, 0) * 2
    signal = x @ rng.normal(size=12)
    y = np.stack([signal, signal + signal.std() * rng.normal(size=600), rng.normal(size=600), rng.normal(size=20).repeat(30)], 1)
    r2 = histcode.linear_probe(x, y, patients)
    assert r2[0] > .999 and .4 < r2[1] < .55 and r2[2] < .03 and r2[3] < .15   # a patient's own offset can't be learned from others
    who = (patients[:, None] == np.unique(patients)).astype(float) + .01 * rng.normal(size=(600, 20))
    assert histcode.linear_probe(who, y[:, 3:], patients)[0] < .2 < stats.pearson(*[v[:, None] for v in (
        ridge_at(who, y[:, 3:], (1.0,), who)[0, :, 0], y[:, 3])])[0] ** 2
    order = rng.permutation(600)
    assert np.allclose(histcode.linear_probe(x[order], y[order], patients[order]), r2, atol=1e-6)


def test_cell_content_of_points_and_spots(tmp_path):
    coords, tile = np.array([[0, 0], [10, 0], [20, 0]]), 10.0
    (tmp_path / "points").mkdir(), (tmp_path / "spots").mkdir()
    (tmp_path / "points" / "a.csv").write_text("x,y,cell\n1,1,T\n2,3,T\n12,5,B\n99,99,T\n")
    with gzip.open(tmp_path / "spots" / "b.csv.gz", "wt") as f:
        f.write("x,y,fraction:T,fraction:B,CD3D\n5,5,.2,.8,9\n6,6,.4,.6,9\n25,5,1,0,9\n99,9,.5,.5,1\n")
    a, b = (histcode.cell_content(tmp_path, n, coords, tile, .5) for n in "ab")
    assert {k: v.tolist() for k, v in a.items()} == {"T": [2, 0, 0], "B": [0, 1, 0]}
    assert np.allclose(b["T"], [.3, np.nan, 1], equal_nan=True) and np.allclose(b["B"], [.7, np.nan, 0], equal_nan=True) and len(b) == 2
    assert histcode.cell_content(tmp_path, "c", coords, tile, .5) is None
    (tmp_path / "points" / "c.csv").write_text("a,b\n1,2\n")
    with pytest.raises(tiling.InputError, match="c.csv: no columns x and y"):
        histcode.cell_content(tmp_path, "c", coords, tile, .5)


def test_probe_prints_a_row_for_each_encoder(unlabelled, tmp_path, monkeypatch, capsys):
    assert pretrain(unlabelled, "--epochs", "1", "--name", "probed") == 0
    path = unlabelled / "runs" / "probed" / "probed.pt"
    capsys.readouterr()
    probe = lambda *argv: histcode.main(["probe", str(unlabelled), *argv, "--device", "cpu"])
    def quick(net, seed):                                                      # calibrate takes seconds
        for m in net.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.momentum = None
        return net.eval()
    monkeypatch.setattr(tiling, "calibrate", quick)
    assert probe("random", str(path), "--csv", str(tmp_path / "t.csv")) == 0
    out = capsys.readouterr().out
    assert "36 px" in out and [r["encoder"] for r in read_csv(tmp_path / "t.csv")] == ["random", str(path)]
    assert {"lymphocyte", "stroma", "tumour"} < set(read_csv(tmp_path / "t.csv")[0])
    before = {p: p.read_bytes() for p in (unlabelled / "tiles").glob("*.npz")}
    for argv, words in ((("--tile-um", "300"), "learned from tiles of .* --tile-um is 300"), (("--colour", "macenko"), "leave --colour out"),
                        *((("--tile-px", px), f"--tile-px {px}.*: must lie between 32 and 2048") for px in ("0", "-3", "10000")),
                        (("--tiles-per-slide", "-1"), "--tiles-per-slide -1: must lie"), (("--csv", str(tmp_path)), "a folder; wanted is the name")):
        with pytest.raises(tiling.InputError, match=words):
            probe(str(path), *argv)
    assert {p: p.read_bytes() for p in (unlabelled / "tiles").glob("*.npz")} == before                # and no tile was cut
    with pytest.raises(tiling.InputError, match="nowhere.pt: no such file"):
        probe("nowhere.pt")
    with pytest.raises(tiling.InputError, match="not a whole encoder file"):
        probe(str(unlabelled / "samples.csv"))
    with pytest.raises(tiling.InputError, match="no encoder's checkpoint|the checkpoint has no|of version"):
        probe(str(unlabelled / "runs" / "probed" / "state.pt"))


# =====================================================================================================================
# histcode.py: diagnosis, expression, maps
# Authorities: loops over tiles, SciPy, scikit-learn where installed, one model for many.
# =====================================================================================================================
def ragged(sizes, d=7, seed=0):
    """Bags of these sizes, padded with nan: h (B, T, d), mask (B, T)."""
    h, mask = torch.full((len(sizes), max(sizes), d), torch.nan), torch.zeros(len(sizes), max(sizes), dtype=torch.bool)
    for b, n in enumerate(sizes):
        h[b, :n], mask[b, :n] = torch.randn(n, d, generator=seeded(seed + b)), True
    return h, mask


def classifier(name, d=7, seed=0):
    torch.manual_seed(seed)
    return histcode.POOLINGS[name](d)


def by_loop(name, model, h):
    """Logits of every stream for one bag h (n, d), tile by tile in float64; the authority for `POOLINGS`."""
    p = {k: v.detach().double().numpy() for k, v in model.named_parameters()}
    h, out = h.double().numpy(), lambda layer, x: x @ p[f"{layer}.weight"].T + p[f"{layer}.bias"]
    if name in ("max", "mean"):
        z = [max(x) if name == "max" else sum(x) / len(h) for x in h.T]
        return [out("classify", np.array(z))]
    if name in ("ABMIL", "HistCode"):
        scores = []
        for x in h:
            hidden = np.tanh(p["pooling.v.weight"] @ x)
            if name == "HistCode":
                hidden = hidden / (1 + np.exp(-(p["pooling.u.weight"] @ x)))
            scores.append(np.exp(p["pooling.w.weight"][0] @ hidden))
        return [out("classify", sum(s * x for s, x in zip(scores, h)) / sum(scores))]
    scores = [out("score", x) for x in h]
    if name == "DSMIL":
        best = [max(range(len(h)), key=lambda i: scores[i][c]) for c in (0, 1)]
        vectors = []
        for b in best:
            weights = [np.exp(out("query", x) @ out("query", h[b]) / np.sqrt(histcode.QUERIES)) for x in h]
            vectors.append(sum(w * x for w, x in zip(weights, h)) / sum(weights))
        return [np.array([scores[best[0]][0], scores[best[1]][1]]), out("classify", np.concatenate(vectors))]
    order, s = sorted(range(len(h)), key=lambda i: scores[i][0] - scores[i][1]), np.zeros(histcode.STATE)
    for i in order[:histcode.TOP_TILES]:
        s = np.maximum(0, out("take", h[i]) + out("keep", s))
    return [scores[order[0]], out("classify", s)]


@pytest.mark.parametrize("name", histcode.POOLINGS)
def test_poolings_equal_loops_over_tiles(name):
    sizes = (1, 3, 12, 25)
    model, (h, mask) = classifier(name), ragged(sizes)
    logits, a = model(h, mask)
    for b, n in enumerate(sizes):
        assert np.allclose(logits[b].detach(), by_loop(name, model, h[b, :n]), atol=2e-6)
        assert a[b, :n].sum().item() == pytest.approx(1, abs=1e-6) and (a[b] >= 0).all() and (a[b, n:] == 0).all()
    logits[:, -1].square().sum().backward()                                    # padding of nan reaches no gradient
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", histcode.POOLINGS)
def test_order_of_tiles_and_padding_change_nothing(name):
    model, (h, mask) = classifier(name, 64), ragged((1, 9, 40), 64)
    logits, a = model(h, mask)
    order = torch.randperm(40, generator=seeded())
    moved, b = model(h[:, order], mask[:, order])
    assert (moved - logits).abs().max() < 1e-6 and (b - a[:, order]).abs().max() < 1e-6
    for filler in (torch.nan, torch.inf, 1e30):
        longer, c = model(F.pad(h, (0, 0, 0, 13), value=filler), F.pad(mask, (0, 13)))
        assert (longer - logits).abs().max() < 1e-6 and (c[:, :40] - a).abs().max() < 1e-6 and (c[:, 40:] == 0).all()


def test_attention_has_the_shapes_and_parts_of_its_equations():
    h, mask = ragged((4, 2), 5)
    for gated, count in ((True, 2 * 5 * 3 + 3), (False, 5 * 3 + 3)):
        model = histcode.GatedAttention(5, 3, gated)
        z, a = model(h, mask)
        assert z.shape == (2, 5) and a.shape == (2, 4) and sum(p.numel() for p in model.parameters()) == count
        assert torch.allclose(z, torch.einsum("bt,btd->bd", a, h.nan_to_num()), atol=1e-6)
    with torch.no_grad():                                                      # a high logit doesn't overflow
        model.w.weight.fill_(1e4)
    assert model(h, mask)[1].isfinite().all()


def planted_bags(n=24, d=6, seed=0, shift=3.0):
    """n bags of 2 to 9 instances; in those of class 1 the first instance is shifted in feature 0. -> bags, y."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    bags = [rng.normal(size=(2 + i % 8, d)).astype(np.float32) for i in range(n)]
    for bag, label in zip(bags, y):
        bag[0, 0] += shift * label
    return bags, y


def some_networks(name, bags, splits, seeds, embed=()):
    models, sums = [], list(map(histcode.sums_of, bags))
    for (train, _, _), seed in zip(splits, seeds):
        torch.manual_seed(seed)
        models.append(histcode.SlideModel(name, *histcode.mean_and_sd(sums, train), 2, embed, 8))
    return models


def learn(name, bags, y, splits, seeds, epochs=3, batch=2, **more):
    o = argparse.Namespace(lr=1e-2, weight_decay=1e-4, epochs=epochs, batch=batch)
    done = histcode.train_heads(some_networks(name, bags, splits, seeds), bags.__getitem__, lambda rows: torch.from_numpy(y[rows]),
                                histcode.cross_entropy, splits, seeds, o, torch.device("cpu"), **more)
    return [dict(model={k: v[m] for k, v in done["model"].items()}, epoch=int(done["epochs"][m]), losses=done["losses"][:, m],
                 tests=done["tests"][m]) for m in range(len(splits))]


def three_splits(n=24):
    order = np.random.default_rng(1).permutation(n)
    return [(np.roll(order, 7 * i)[:16], np.roll(order, 7 * i)[16:20 - i % 2], np.roll(order, 7 * i)[20:]) for i in range(3)]


@pytest.mark.parametrize("name", histcode.POOLINGS)
def test_classifiers_trained_at_once_are_those_trained_one_by_one(name):
    (bags, y), splits = planted_bags(), three_splits()
    at_once = learn(name, bags, y, splits, [5, 6, 7])
    for split, seed, got in zip(splits, [5, 6, 7], at_once):
        alone, = learn(name, bags, y, [split], [seed])
        assert torch.allclose(got["losses"], alone["losses"], atol=2e-4) and torch.allclose(got["tests"], alone["tests"], atol=2e-4)
        assert got["tests"].shape == (3, len(split[2]), 2) and got["epoch"] == alone["epoch"]
        assert all(torch.allclose(v, alone["model"][k], atol=2e-3) for k, v in got["model"].items())


def test_one_step_is_adam_on_the_cross_entropy_of_every_stream():
    bags, y = planted_bags(4)
    split = np.arange(2), np.array([2]), np.array([3])
    for name in ("DSMIL", "HistCode"):
        got, = learn(name, bags, y, [split], [3], epochs=1)
        model, = some_networks(name, bags, [split], [3])
        optimizer, loss = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-4), 0
        for i in (0, 1):
            streams = model(torch.from_numpy(bags[i])[None], torch.ones(1, len(bags[i]), dtype=torch.bool))[0][0]
            loss = loss - streams.log_softmax(1)[:, y[i]].mean() / 2
        loss.backward()
        optimizer.step()
        assert all(torch.allclose(v, got["model"][k], atol=1e-6) for k, v in model.state_dict().items())


def test_the_test_part_chooses_nothing():
    (bags, y), (train, valid, test) = planted_bags(), three_splits()[0]
    spoiled, other = [b.copy() for b in bags], y.copy()
    other[test] = 1 - y[test]
    for i in test:
        spoiled[i][:] = 99
    a, = learn("HistCode", bags, y, [(train, valid, test)], [1])
    b, = learn("HistCode", spoiled, other, [(train, valid, test)], [1])
    assert a["epoch"] == b["epoch"] and torch.equal(a["losses"], b["losses"]) and not torch.equal(a["tests"], b["tests"])
    assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())


def test_interrupted_classifier_ends_as_one_that_was_not(tmp_path, monkeypatch):
    (bags, y), split = planted_bags(), three_splits()[:1]
    whole, = learn("MIL-RNN", bags, y, split, [4], epochs=5)
    state, save, saves = tmp_path / "state.pt", histcode.save_file, []

    def breaks(path, write):
        save(path, write)
        saves.append(path)
        if len(saves) == 2:
            raise KeyboardInterrupt
    monkeypatch.setattr(histcode, "save_file", breaks)
    with pytest.raises(KeyboardInterrupt):
        learn("MIL-RNN", bags, y, split, [4], epochs=5, state_file=state)
    again, = learn("MIL-RNN", bags, y, split, [4], epochs=5, state_file=state)
    assert len(saves) == 5 and torch.equal(whole["losses"], again["losses"]) and torch.equal(whole["tests"], again["tests"])
    assert whole["epoch"] == again["epoch"] and all(torch.equal(v, again["model"][k]) for k, v in whole["model"].items())


def test_features_are_standardised_over_the_training_tiles():
    bags, _ = planted_bags()
    bags = [np.c_[3 * b + 5, np.full(len(b), 7)] for b in bags]                # the last one is constant
    rows = [0, 3, 9]
    tiles = np.concatenate([bags[i] for i in rows])
    mean, sd = histcode.mean_and_sd(list(map(histcode.sums_of, bags)), rows)
    assert np.allclose(mean, tiles.mean(0)) and np.allclose(sd, tiles.std(0), atol=1e-7)
    model = histcode.SlideModel("mean", mean, sd)
    assert np.allclose(model.scale[:-1], 1 / tiles.std(0)[:-1], rtol=1e-5) and model.scale[-1] == 0


def test_figures_of_a_fold_and_their_optimism():
    y, p = np.array([1, 0, 1, 0, 1]), torch.tensor([[.9, .1, .8, .2, .7], [.4, .3, .2, .6, .45], [.6, .55, .9, .1, .8]])
    tests = torch.stack([(1 - p).log(), p.log()], 2)                           # logits: (epochs, n, 2)
    f = histcode.figures_of(y, dict(tests=tests, epoch=3))
    assert f["accuracy"] == pytest.approx(.8) and f["auc"] == 1 and f["pr_auc"] == 1
    assert f["best_epoch"] == 1 and f["best_epoch_auc"] == 1 and f["best_threshold"] == 1
    rng = np.random.default_rng(0)
    for n in (5, 30):
        y, p = np.r_[0, 1, rng.integers(0, 2, n - 2)], rng.integers(0, 6, n) / 6
        assert histcode.best_cut(y, p) == pytest.approx(max(((p >= c) == y).mean() for c in [*np.unique(p), 2]))
    one_class = histcode.figures_of(np.ones(5, int), dict(tests=tests, epoch=1))
    assert np.isnan(one_class["auc"]) and one_class["accuracy"] == pytest.approx(.6) and one_class["best_threshold"] == 1


def test_parts_keep_patients_whole_and_labels_spread():
    rng = np.random.default_rng(0)
    patients, y = [], []
    for i in range(60):                                                        # 20 each with tumour, normal, both
        for label in ([1, 1], [0], [0, 1])[i % 3]:
            patients.append(f"P{i:02d}"), y.append(label)
    order = rng.permutation(len(y))
    patients, y = np.array(patients)[order], np.array(y)[order]
    part = histcode.split_patients(patients, y, 10, [0, 0])
    assert all(len(set(part[patients == p])) == 1 for p in set(patients))
    kinds = np.array([int(p[1:]) % 3 for p in patients])
    assert all(len(set(patients[(part == f) & (kinds == k)])) == 2 for f in range(10) for k in range(3))
    assert (part != histcode.split_patients(patients, y, 10, [0, 1])).any()


def write_bag_table(path, n=30, header=False, **change):
    bags, y = planted_bags(n, shift=6.0)
    rows = [[str(y[i]), f"b{i}", *(f"{v:.4f}" for v in instance)] for i, bag in enumerate(bags) for instance in bag]
    path.write_text("\n".join([*(["label,bag," + ",".join("abcdef")] if header else []), *map(",".join, rows)]) + "\n")
    return rows


def test_diagnose_a_table_of_bags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_bag_table(tmp_path / "toy.csv", header=True)
    argv = "diagnose --bags toy.csv --repeats 2 --folds 5 --epochs 12 --lr 0.01 --device cpu".split()
    assert histcode.main(argv) == 0
    rows = read_csv(tmp_path / "toy-diagnosis" / "predictions.csv")
    assert len(rows) == 60 and len({(r["bag"], r["repeat"]) for r in rows}) == 60      # each bag tested once in each repeat
    assert np.mean([r["label"] == r["predicted"] for r in rows]) > .85
    table, = read_csv(tmp_path / "toy-diagnosis" / "table.csv")
    accuracy = np.mean([np.mean([r["label"] == r["predicted"] for r in rows if (r["repeat"], r["fold"]) == (str(a), str(b))])
                        for a in range(2) for b in range(5)])
    assert float(table["accuracy"]) == pytest.approx(accuracy, abs=1e-4) and table["folds"] == "10"
    assert float(table["best_epoch"]) >= float(table["accuracy"]) <= float(table["best_threshold"])
    report = (tmp_path / "toy-diagnosis" / "report.md").read_text()
    assert all(word in report for word in ("Optimism", "best threshold on test", "Always the commoner class", "no comparison"))
    before = (tmp_path / "toy-diagnosis" / "predictions.csv").read_bytes()
    (tmp_path / "toy-diagnosis" / "HistCode-r1-f3.pt").unlink()
    assert "repeat 0" in capsys.readouterr().out and histcode.main(argv) == 0
    said = capsys.readouterr().out
    assert "repeat 1 fold 3" in said and "repeat 0" not in said                # the one that was missing alone
    after = read_csv(tmp_path / "toy-diagnosis" / "predictions.csv")
    assert all(abs(float(a["p_1"]) - float(b["p_1"])) < 1e-4 for a, b in zip(rows, after)) and before
    with pytest.raises(tiling.InputError, match="other settings.*epochs"):
        histcode.main([*argv, "--epochs", "13"])


@pytest.mark.parametrize("change, words", [
    (lambda rows: [["1", *r[1:]] for r in rows], "every label is 1; a classifier needs two"),
    (lambda rows: [[str(i % 3), r[1], *r[2:]] for i, r in enumerate(rows)], "3 labels .*--positive"),
    (lambda rows: [*rows, ["1", "b0", *rows[0][2:]]], "bag b0 has both labels"),
    (lambda rows: [*rows[:4], [*rows[4][:3], "nan", *rows[4][4:]], *rows[5:]], "row 5: field 4 is 'nan', not a finite number"),
    (lambda rows: [*rows[:4], [*rows[4][:3], "", *rows[4][4:]], *rows[5:]], "row 5: field 4 is '', not a finite"),
    (lambda rows: [*rows[:4], [*rows[4][:3], "1_0", *rows[4][4:]], *rows[5:]], "row 5: field 4 is '1_0', not a finite"),
    (lambda rows: [*rows[:4], rows[4][:-1], *rows[5:]], "row 5: 7 fields, row 1 has 8"),
    (lambda rows: [["", *rows[0][1:]], *rows[1:]], "row 1: label '', bag 'b0'"),
    (lambda rows: [[*rows[0][:2], *["nan"] * 6], *rows[1:]], "row 1: field 3 is 'nan'"),     # no header
    (lambda rows: [*rows[:4], [*rows[4][:3], "1e39", *rows[4][4:]], *rows[5:]], "row 5: field 4 is '1e39', not a finite"),
    (lambda rows: [[*r, r[0]] for r in rows], "column 9 is the label again"),
    (lambda rows: [r[:2] for r in rows], "wanted a table with the columns label, bag"),
    (lambda rows: [r for r in rows if r[1] in ("b0", "b1", "b2")], "3 patients don't go into --folds 5"),
    (lambda rows: [r for r in rows if r[0] == "0" or r[1] == "b1"], "one class only")])
def test_mistakes_in_a_table_of_bags_are_told(tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    rows = change(write_bag_table(tmp_path / "toy.csv"))
    (tmp_path / "toy.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    with pytest.raises(tiling.InputError, match=words):
        histcode.main("diagnose --bags toy.csv --folds 5 --epochs 1 --device cpu".split())
    assert os.listdir(tmp_path) == ["toy.csv"]


def test_an_interrupted_table_of_bags_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_bag_table(tmp_path / "toy.csv")
    argv = "diagnose --bags toy.csv --repeats 1 --folds 3 --epochs 6 --lr 0.01 --device cpu".split()
    assert histcode.main([*argv, "--name", "whole"]) == 0
    save, saves = histcode.save_file, []

    def breaks(path, write):
        save(path, write)
        saves.append(path)
        if len(saves) == 3:
            raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(histcode, "save_file", breaks)
        histcode.main([*argv, "--name", "broken"])
    assert list((tmp_path / "broken").glob("*.state.pt")) and histcode.main(argv + ["--name", "broken", "--bags", "./toy.csv"]) == 0
    for path in (tmp_path / "whole").glob("*.pt"):
        a, b = (tiling.load_checkpoint(tmp_path / d / path.name, "cpu") for d in ("whole", "broken"))
        assert a["epoch"] == b["epoch"] and all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())
    assert not list((tmp_path / "broken").glob("*.state.pt"))


def test_musk1_has_its_92_bags_and_166_features():
    d = histcode.bags_of_table(argparse.Namespace(bags=str(real("mil", "musk1.csv")), positive=None))
    assert len(d["names"]) == 92 and d["y"].sum() == 47 and d["bag"](0).shape[1] == 166 and d["classes"] == ("0", "1")
    assert sum(n for n, _, _ in d["sums"]) == 476


def write_slides(folder, patients=12, prefix="p", labels=("0", "1"), d=8, seed=0, extra=""):
    """A cohort of .h5 features; tumour slides have a few shifted tiles; every third patient has a normal slide too."""
    (folder / "h5").mkdir(parents=True)
    rng, rows = np.random.default_rng(seed), ["slide,patient,project,tumor"]
    for p in range(patients):
        for label in ([0, 1] if p % 3 == 2 else [p % 2]):
            x = rng.normal(size=(12 + p % 5, d))
            x[:3, 0] += 6 * label
            with h5py.File(folder / "h5" / f"{prefix}{p:02d}_{label}.h5", "w") as h:
                h["features"], h["coords"] = x.astype(np.float16), tile_cloud(len(x), p)
            rows.append(f"{prefix}{p:02d}_{label},{prefix}{p:02d},X,{labels[label]}")
    (folder / "samples.csv").write_text("\n".join(rows) + "\n" + extra)
    return folder


def diagnose(cohort, *argv):
    return histcode.main(["diagnose", str(cohort), "--features", str(cohort / "h5"), "--epochs", "4", "--lr", "0.01", "--hidden", "8",
                          "--device", "cpu", "--folds", "6", *argv])


def test_diagnose_slides_all_poolings_and_an_external_cohort(tmp_path, capsys):
    cohort = write_slides(tmp_path / "a", 24, labels=("normal", "tumor"), extra="gone,zz,X,\n")
    other = write_slides(tmp_path / "b", 9, "q", ("normal", "tumor"), seed=1)
    for path in (other / "h5").iterdir():
        shutil.copy(path, cohort / "h5")                                       # --features names one folder
    assert diagnose(cohort, "--rotate", "--table", "--external", str(other)) == 0
    said, run = capsys.readouterr().out, cohort / "runs" / "diagnosis"
    assert "1 slides without a label: gone" in said
    rows = read_csv(run / "predictions.csv")
    assert len(rows) == 6 * 32 and {r["pooling"] for r in rows} == set(histcode.POOLINGS)
    table = {r["pooling"]: r for r in read_csv(run / "table.csv")}
    assert list(table) == list(histcode.POOLINGS) and float(table["max"]["auc"]) > .9
    folds = {p: {(r["slide"], r["fold"]) for r in rows if r["pooling"] == p} for p in table}
    assert all(f == folds["max"] for f in folds.values())                      # the same folds for all
    external = read_csv(run / "external.csv")
    assert len(external) == 6 * 12 and not {r["patient"] for r in external} & {r["patient"] for r in rows}
    saved = [tiling.load_checkpoint(run / f"max-r0-f{f}.pt", "cpu") for f in range(6)]
    for s, f in zip(saved, range(6)):
        assert not set(s["train_patients"]) & (set(s["test_patients"]) | set(s["valid_patients"])) and len(s["test_patients"]) == 4
    bag = tiling.load_features(other, cohort / "h5", "q00_0")[0]
    p = np.mean([histcode.apply_heads(s, "cpu")(bag)[0][0].softmax(0)[1].item() for s in saved])
    assert float(next(r for r in external if r["slide"] == "q00_0" and r["pooling"] == "max")["p_tumour"]) == pytest.approx(p, abs=1e-5)
    assert (run / "curves.png").is_file() and "External" in (run / "report.md").read_text()


def test_without_rotation_half_of_the_patients_are_tested(tmp_path):
    cohort = write_slides(tmp_path / "a", 12)
    assert diagnose(cohort, "--name", "half", "--pooling", "mean") == 0
    rows = read_csv(cohort / "runs" / "half" / "predictions.csv")
    assert {r["fold"] for r in rows} == {"0", "1", "2"} and len({r["patient"] for r in rows}) == 6


def section(run):
    """What a report says at its top and under What saw whom."""
    text = (run / "report.md").read_text()
    return text.split("\n## ")[0].split("\n| ")[0], text.split("## What saw whom")[1].split("\n## ")[0]


def test_stopping_on_test_chooses_by_the_test_part_and_is_called_a_leak(tmp_path):
    cohort = write_slides(tmp_path / "a", 24)
    assert diagnose(cohort, "--name", "a") == 0 and diagnose(cohort, "--name", "b", "--code", "stop") == 0
    runs = {name: [tiling.load_checkpoint(p, "cpu") for p in sorted((cohort / "runs" / name).glob("HistCode-*.pt"))] for name in "ab"}
    label = {r["slide"]: int(r["tumor"]) for r in read_csv(cohort / "samples.csv")}
    rows = [r for r in read_csv(cohort / "runs" / "b" / "predictions.csv")]
    for f, (a, b) in enumerate(zip(runs["a"], runs["b"])):
        assert torch.equal(a["tests"], b["tests"]) and a["train_patients"] == b["train_patients"]    # the same networks, epoch by epoch
        y = [label[r["slide"]] for r in rows if r["fold"] == str(f)]
        mistakes = [(e.argmax(1).numpy() != y).sum() for e in b["tests"]]
        assert b["epoch"] == max(e for e, n in enumerate(mistakes, 1) if n == min(mistakes))
        assert b["valid_patients"] == b["test_patients"] != a["valid_patients"] and set(b["test_patients"]) <= set(b["learned_from"])
        assert a["saw"]["choice of the epoch"] == a["valid_patients"] and a["saw"]["weights of the network"] == a["train_patients"]
    (top, seen), (bad, leak) = (section(cohort / "runs" / name) for name in "ab")
    assert "saw test patients" not in top and "| choice of the epoch | 4 | 0 of 4 |  |" in seen and "whom the encoder learned from is not known" in seen
    assert "**Steps that saw test patients: choice of the epoch**" in bad and "| choice of the epoch | 4 | 4 of 4 | **a leak** |" in leak
    assert "stop: the test part chooses it" in bad and "| optimism table | 4 | 4 of 4 | by design" in seen and "one tests and chooses the epoch" in bad
    with pytest.raises(tiling.InputError, match="other settings .code .'stop'. -> "):
        diagnose(cohort, "--name", "b")


def test_a_planted_leak_of_a_diagnosis_is_caught(tmp_path, monkeypatch):
    cohort, honest = write_slides(tmp_path / "a", 24), histcode.roles

    def leaky(*a):
        train, valid, test = honest(*a)
        return np.r_[train, test[:1]], valid, test
    monkeypatch.setattr(histcode, "roles", leaky)
    assert diagnose(cohort, "--table") == 0
    top, seen = section(cohort / "runs" / "diagnosis")
    assert "**Steps that saw test patients: weights of the network, standardisation of the features**" in top
    assert "| weights of the network | 17 | 1 of 4 | **a leak** |" in seen and "| choice of the epoch | 4 | 0 of 4 |" in seen


def test_an_encoder_that_learned_from_test_patients_is_named(unlabelled, tmp_path):
    """From pretrain's checkpoint over the folder of features to the reports of what uses them."""
    assert pretrain(unlabelled, "--epochs", "1", "--name", "seer") == 0
    learned = saved(unlabelled / "runs" / "seer" / "seer.pt")["patients"]
    small = "--label project --folds 3 --epochs 1 --hidden 4 --device cpu --precision float32 --rotate".split()
    assert histcode.main(["diagnose", str(unlabelled), "--encoder", str(unlabelled / "runs" / "seer" / "seer.pt"), *small]) == 0
    top, seen = section(unlabelled / "runs" / "diagnosis")
    assert "**Steps that saw test patients: encoder, without labels**" in top
    assert re.search(rf"\| encoder, without labels \| {len(learned)} \| (\S+) of \1 \| their tiles, no label or expression \|", seen)


def test_slides_without_whole_features_are_named_and_left_out(tmp_path, capsys):
    cohort = write_slides(tmp_path / "a", 18)
    with h5py.File(cohort / "h5" / "p00_0.h5", "r+") as h:
        h["features"][2, 1] = np.nan
    (cohort / "h5" / "p01_1.h5").unlink()
    assert diagnose(cohort, "--pooling", "mean") == 1
    said = capsys.readouterr().err
    assert "p00_0: " in said and "NaN or infinite feature in tile 2" in said and "p01_1: no file" in said


def test_where_too_few_slides_are_left_each_says_why(tmp_path, capsys):
    cohort = write_slides(tmp_path / "a", 9)
    for path in sorted((cohort / "h5").iterdir())[:6]:
        path.unlink()
    with pytest.raises(tiling.InputError, match="patients don't go into --folds 6"):
        diagnose(cohort)
    said = capsys.readouterr().err
    assert said.count("no file") == 6 and "6 of 12 slides failed" in said and not (cohort / "runs").exists()


@pytest.mark.parametrize("argv, words", [
    (["--label", "stage"], "no column stage; it has slide, patient, project, tumor"), (["--label", "project"], "every label is X"),
    (["--label", "tumor", "--positive", "2"], "--positive 2: the labels of .* are 0, 1"), (["--positive", "1"], "with --label COLUMN"), (["--folds", "40"], "12 patients don't go into --folds 40"),
    (["--folds", "2"], "--folds 2: must lie between 3"), (["--lr", "0"], "--lr 0: must lie"), (["--name", "a/b"], "not a path"),
    (["--bags", "x.csv"], "either a cohort folder or --bags")])
def test_diagnose_says_one_line(tmp_path, argv, words):
    cohort = write_slides(tmp_path / "a", 12)
    with pytest.raises(tiling.InputError, match=words):
        diagnose(cohort, *argv)
    assert not (cohort / "runs").exists()


def test_an_external_cohort_of_other_labels_is_no_test(tmp_path):
    a, b = write_slides(tmp_path / "a", 12, labels=("LUAD", "LUSC")), write_slides(tmp_path / "b", 12, "q", ("KIRC", "LUSC"))
    for path in (b / "h5").iterdir():
        shutil.copy(path, a / "h5")
    with pytest.raises(tiling.InputError, match="labels of .* are KIRC, LUSC, of .* LUAD, LUSC"):
        diagnose(a, "--label", "tumor", "--external", str(b))


def test_slides_may_be_1_and_0_as_numbers_with_a_point(tmp_path):
    samples = [dict(slide=s, tumor=v) for s, v in (("a", "1.0"), ("b", "0.0"), ("c", "Tumor"), ("d", ""))]
    assert histcode.tissue_of(samples, tmp_path) == [1, 0, 1, None]


def test_a_patient_of_both_cohorts_is_no_test(tmp_path):
    a, b = write_slides(tmp_path / "a", 12), write_slides(tmp_path / "b", 12)
    with pytest.raises(tiling.InputError, match="p00.*patients of both"):
        diagnose(a, "--external", str(b))
    assert not (a / "runs").exists()


# ----- Differential expression: the pieces ---------------------------------------------------------------------------
def test_fold_changes_worked_by_hand():
    tumour = [8, 1, 0, 3, 0, np.nan, 2, 2.83, 2.82, 1]
    normal = [1, 8, 2, 0, 0, 1, np.nan, 1, 1, 2.83]
    y, label = histcode.fold_change(np.array(tumour), np.array(normal))
    log = math.log10
    want = [log(9), log(1.125), 0, np.nan, np.nan, np.nan, np.nan, log(3.83), log(3.82), log(1 + 1 / 2.83)]
    assert np.allclose(y, want, equal_nan=True)
    assert np.array_equal(label, [1, 1, 1, 1, np.nan, np.nan, np.nan, 1, 0, 1], equal_nan=True)          # 2 ** 1.5 = 2.828
    fc = np.exp(np.random.default_rng(0).normal(0, 2, (40, 5)))
    y, label = histcode.fold_change(fc, np.ones_like(fc))
    assert (histcode.label_of(y) == label).all() and 0 < label.mean() < 1       # the label that y itself stands for
    assert histcode.label_of(np.array([-3., 0, log(2), log(1 + 2 ** 1.51), 9])).tolist() == [True, True, False, True, True]


def test_ends_are_the_highest_and_lowest_tiles_and_never_share_one():
    rng = np.random.default_rng(0)
    for n, most in ((2, 100), (3, 100), (7, 3), (6, 3), (5, 3), (300, None)):
        a = rng.integers(0, max(3, n // 2), n) / 7                             # ties
        high, low = histcode.ends_of(a, *([most] if most else []))
        count, order = min(most or 100, n // 2), sorted(range(n), key=lambda i: (-a[i], i))         # HistCode: l = 100
        assert high.tolist() == order[:count] and low.tolist() == order[n - count:] and not set(high) & set(low)
        h = rng.normal(size=(n, 4)).astype(np.float16)
        if not most:
            want = [np.mean([float(h[i, k]) for i in rows]) for rows in (high, low) for k in range(4)]
            assert np.allclose(histcode.pair_features(h, a), want, atol=1e-12)


@pytest.mark.parametrize("text,want", [("64,32", (64, 32)), ("0", ()), ("100000", (100000,)), ("64,0", "no width"), ("x", "x"),
                                       *((n, "more than 100,000|2..63") for n in ("100001", "8,100000000000", "1" * 25))])
def test_embed_is_layers_that_can_be(text, want):
    if isinstance(want, tuple):
        assert histcode.layers(text) == want
    else:
        with pytest.raises((argparse.ArgumentTypeError, ValueError), match=want):
            histcode.layers(text)


def test_least_squares_is_lstsq_of_the_known_patients_of_each_gene():
    rng = np.random.default_rng(0)
    for n, d in ((30, 5), (6, 9)):                                             # one solution, and many: the smallest
        x, y = rng.normal(1, 2, (n, d)), rng.normal(size=(n, 5))
        y[:2, 1], y[3, 2], y[:, 4] = np.nan, np.nan, np.nan
        y[:2, 3] = np.nan
        weights, bias = histcode.least_squares(x, y)
        for j in range(4):
            known = ~np.isnan(y[:, j])
            mean, sd = x[known].mean(0), x[known].std(0)
            w = np.linalg.lstsq((x[known] - mean) / sd, y[known, j] - y[known, j].mean(), rcond=1e-9)[0] / sd
            assert np.allclose(weights[:, j], w) and bias[j] == pytest.approx(y[known, j].mean() - mean @ w)
        assert (weights[:, 4] == 0).all() and np.isnan(bias[4])
        z = (x - x.mean(0)) / x.std(0)                                         # normal equations with a penalty
        w = np.linalg.solve(z.T @ z + 2.5 * np.eye(d), z.T @ (y[:, 0] - y[:, 0].mean()))
        assert np.allclose(histcode.least_squares(x, y, 2.5)[0][:, 0] * x.std(0), w)


def test_best_penalty_is_that_of_leaving_out_each_patient_in_turn():
    chosen = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        n, d = 24, (4, 40)[seed % 2]
        x = rng.normal(size=(n, d))
        y = x[:, :3] * (seed // 2) + rng.normal(0, 2, (n, 3)) * [1, 5, 2]
        x = np.c_[x * 3 + 1, np.full(n, 5.)]                                   # and a constant
        rs = []
        for p in histcode.RIDGE:
            z, left = np.c_[(x[:, :d] - x[:, :d].mean(0)) / x[:, :d].std(0), np.zeros(n)], np.empty((n, 3))     # scale: of all
            for i in range(n):
                rest = np.arange(n) != i
                center = z[rest].mean(0)
                zi, yi = z[rest] - center, y[rest] - y[rest].mean(0)
                w = np.linalg.solve(zi.T @ zi + p * np.eye(d + 1), zi.T @ yi)
                left[i] = y[rest].mean(0) + (z[i] - center) @ w
            rs.append(np.mean([max(0, 1 - sum((a - b) ** 2) / sum((b - b.mean()) ** 2)) for a, b in zip(left.T, y.T)]))
        chosen.append(max(zip(rs, histcode.RIDGE))[1])
        unknown = np.where(np.arange(n) == 3, np.nan, rng.normal(size=n) * 1e3)
        assert histcode.best_penalty(x, y) == chosen[-1] == histcode.best_penalty(x, np.c_[y, unknown, np.ones(n)])
    assert len(set(chosen)) > 2 and histcode.best_penalty(x, np.ones((n, 1))) == histcode.RIDGE[3]


def adam_of_labels(z, label, rows, steps, rate=1e-3):
    """Logistic regression of one gene from 0 by Adam (Kingma & Ba 2015, algorithm 1) in NumPy: weights after each step."""
    w, m, v, after = np.zeros(z.shape[1] + 1), 0, 0, []
    rows = [i for i in rows if not np.isnan(label[i])]
    x = np.c_[z[rows], np.ones(len(rows))]
    for t in range(1, steps + 1):
        g = x.T @ (1 / (1 + np.exp(-x @ w)) - label[rows]) / len(rows)
        m, v = .9 * m + .1 * g, .999 * v + .001 * g * g
        w = w - rate * m / (1 - .9 ** t) / (np.sqrt(v / (1 - .999 ** t)) + 1e-8)
        after.append(w)
    return after


def test_labels_are_a_logistic_regression_stopped_on_the_validation_patients(monkeypatch):
    rng = np.random.default_rng(0)
    n, d, steps, rows = 40, 6, 30, np.arange(40)
    x = rng.normal(3, 2, (n, d))
    label = np.where(x[:, :1] + rng.normal(0, 2, (n, 1)) > 3, 1., 0.)
    label[[1, 5, 26]] = np.nan
    monkeypatch.setattr(histcode, "LABEL_EPOCHS", steps)
    monkeypatch.setattr(histcode, "LABEL_RATE", .1)                            # fast enough to overfit
    train, valid, test = rows[:16], rows[16:28], rows[28:]
    x[test], z = np.nan, (x - x[train].mean(0)) / x[train].std(0)
    after = adam_of_labels(z, label[:, 0], train, steps, .1)
    use = [i for i in valid if not np.isnan(label[i, 0])]
    losses = [np.mean([np.log1p(np.exp(-(2 * label[i, 0] - 1) * (z[i] @ w[:-1] + w[-1]))) for i in use]) for w in after]
    best = int(np.argmin(losses))
    for part, k in ((valid, best), (valid[:0], steps - 1)):
        weights, bias = histcode.fit_labels(x, label, train, part, torch.device("cpu"))
        own = z[:28] @ after[k][:-1] + after[k][-1]
        assert np.allclose(x[:28] @ weights[:, 0] + bias[0], own, atol=2e-3 * np.abs(own).max())
    assert 0 < best < steps - 2


def test_genes_are_judged_as_scipy_judges_them(monkeypatch):
    rng = np.random.default_rng(0)
    n, G = 20, 6
    y = rng.normal(size=(n, G))
    prediction, label = y + rng.normal(0, [.5, 1, 2, 5, 1, 1], (n, G)), (rng.random((n, G)) < .7).astype(float)
    y[:3, 1], y[5:, 2], y[2:, 3], label[:4, 0], label[:, 5] = np.nan, np.nan, np.nan, np.nan, np.nan
    guess = rng.random((n, G)) < .5
    monkeypatch.setattr(stats, "random_baseline", lambda truth, rng: np.sin(7 * truth))
    f, S = histcode.judge_genes(prediction, y, guess, label, None), scipy.stats
    assert f["n"].tolist() == [20, 17, 5, 2, 20, 20]
    assert all(np.isnan(f[k][3]) for k in ("r", "rho", "p", "error_p", "better", "baseline"))
    tested = [0, 1, 2, 4, 5]
    for j in tested:
        p, t = (v[~np.isnan(y[:, j]), j] for v in (prediction, y))
        error, base = np.abs(p - t), np.abs(np.sin(7 * t) - t)
        d = error - base
        ranks = S.rankdata(np.abs(d))
        want = dict(r=S.pearsonr(p, t)[0], rho=S.spearmanr(p, t)[0], p=min(1, 2 * S.pearsonr(p, t, alternative="greater")[1]),
                    baseline=S.pearsonr(np.sin(7 * t), t)[0], location_p=S.wilcoxon(p, np.sin(7 * t))[1],
                    error_p=S.wilcoxon(error, base)[1], better=ranks[d < 0].sum() > ranks[d > 0].sum())
        for k, v in want.items():
            assert f[k][j] == pytest.approx(float(v), rel=1e-6), (k, j)
        known = ~np.isnan(label[:, j])
        hits = [guess[i, j] == label[i, j] for i in range(n) if known[i]]
        share = label[known, j].mean() if known.any() else np.nan
        assert np.allclose((f["accuracy"][j], f["positive"][j], f["majority"][j]),
                           (np.mean(hits) if hits else np.nan, share, max(share, 1 - share)), equal_nan=True)
    for k, p in (("bh", "p"), ("location_bh", "location_p"), ("error_bh", "error_p")):
        assert np.allclose(f[k][tested], S.false_discovery_control(f[p][tested]), rtol=1e-6) and np.isnan(f[k][3])
    r = histcode.fold_r(prediction[:, :3], y[:, :3], part := np.arange(n) // 4 % 4)       # folds of 8, 4, 4, 4
    for j in range(3):
        rows = [np.flatnonzero(part == f) for f in range(4)]
        want = [S.pearsonr(prediction[i, j], y[i, j])[0] for i in rows if not np.isnan(y[i, j]).any()]
        assert r[j] == pytest.approx(np.mean(want)) if want else np.isnan(r[j])
    assert np.isnan(histcode.fold_r(prediction[:4], y[:4], np.arange(4))).all()          # folds of one have no R


@pytest.mark.parametrize("n,d,twins", [(30, 80, 0), (30, 80, 3), (30, 12, 0), (9, 9, 0), (1, 4, 0), (4, 0, 0)])
@pytest.mark.parametrize("penalty", [0, 1e-6, 25.])
def test_kernel_solve_is_the_pseudo_inverse_singular_or_not(n, d, twins, penalty, monkeypatch):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(n, d)) * np.geomspace(1, 1e-3, d), rng.normal(size=(n, 3))
    z[:twins] = z[n - twins:]                                                  # the same features, other values
    z, y, slow = z - z.mean(0), y - y.mean(0), []
    monkeypatch.setattr(np.linalg, "eigh", lambda k, real=np.linalg.eigh: (slow.append(k), real(k))[1])
    got = z.T @ histcode.kernel_solve(z @ z.T, penalty, y)
    assert np.allclose(got, np.linalg.pinv(z.T @ z + penalty * np.eye(d), rcond=1e-9, hermitian=True) @ z.T @ y if penalty else
                       np.linalg.pinv(z, rcond=1e-5) @ y, rtol=1e-5, atol=1e-7)
    assert penalty or bool(slow) == ((n, d, twins) not in ((30, 80, 0), (9, 9, 0)))


@pytest.mark.parametrize("n", [12, 60])
def test_smoother_is_ridge_for_any_order(n):
    rng = np.random.default_rng(0)
    x, new, y = rng.normal(2, 3, (n, 30)), rng.normal(2, 3, (5, 30)), rng.normal(size=(n, 4))
    x[:, 3] = new[:, 3] = 7
    for penalty in (0, 25.):
        assert np.allclose(histcode.smoother(x, new, penalty) @ y, ridge_at(x, y, (penalty,), new)[0])


def shuffled_cohort(n=40, d=60, G=60, seed=0):
    """Features by each of 4 folds' attention (they differ), parts, y of genes that follow nothing, some unknown."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.linspace(3, .1, d)
    y = rng.normal(size=(n, G))
    y[:7, :2] = np.nan
    return [x + .1 * rng.normal(size=x.shape) for _ in range(4)], np.arange(n) % 4, y


def held_out_r(xs, part, penalties, y):
    """R of pooled held-out predictions, every fold fitted by `least_squares`."""
    prediction = np.empty_like(y)
    for f, (x, p) in enumerate(zip(xs, penalties)):
        weights, bias = histcode.least_squares(x[part != f], y[part != f], p)
        prediction[part == f] = x[part == f] @ weights + bias
    return np.array([scipy.stats.pearsonr(*v[:, ~np.isnan(v[1])])[0] for v in np.stack([prediction, y]).transpose(2, 0, 1)])


def test_shuffled_p_counts_orders_all_folds_fitted_anew(monkeypatch):
    (xs, part, y), penalties = shuffled_cohort(n=16, d=24, G=3), (0, 5., 0, 30.)
    monkeypatch.setattr(histcode, "SHUFFLES", 60)
    r, rng, null = held_out_r(xs, part, penalties, y), np.random.default_rng(3), []
    for rows, genes in ((np.arange(7, 16), [0, 1]), (np.arange(16), [2])):     # known of the same patients
        for order in rng.permuted(np.tile(rows, (20, 1)), axis=1):
            moved = np.full((16, len(genes)), np.nan)
            moved[rows] = y[np.ix_(order, genes)]
            null += held_out_r(xs, part, penalties, moved).tolist()
    want = [(1 + sum(v >= one - 1e-9 for v in null)) / 61 for one in r]
    assert np.allclose(histcode.shuffled_p(r, xs, part, penalties, y, np.random.default_rng(3)), want)
    assert np.isnan(histcode.shuffled_p(np.array([np.nan, 1, 1]), xs, part, penalties, y, rng)[0])


def test_shuffled_p_is_that_of_chance_where_the_t_is_too_bold(monkeypatch):
    monkeypatch.setattr(histcode, "SHUFFLES", 20000)
    xs, part, y = shuffled_cohort(G=600)
    r = held_out_r(xs, part, (0,) * 4, y)
    p, t = histcode.shuffled_p(r, xs, part, (0,) * 4, y, np.random.default_rng(0)), stats.pearson_p(r, 40)
    assert .03 < (p < .05).mean() < .07 and (p < .01).mean() < .025 and (t < .01).mean() > .025


def test_squared_error_leaves_out_what_is_unknown():
    out, y = (torch.randn(3, 4, *shape, generator=seeded(), dtype=torch.float64) for shape in ((2, 5), (5,)))
    y[0, 1, 2:], y[1, 0] = torch.nan, torch.nan
    out.requires_grad_()
    got = histcode.squared_error(out, y)
    for m, b in itertools.product(range(3), range(4)):
        each = [(out[m, b, 1, g] - y[m, b, g]).item() ** 2 for g in range(5) if not y[m, b, g].isnan()]
        assert got[m, b].item() == pytest.approx(np.mean(each) if each else 0)
    got.sum().backward()
    assert out.grad.isfinite().all() and (out.grad[0, 1, 1, 2:] == 0).all() and (out.grad[0, 1, 1, :2] != 0).all()


# ----- Networks: which epoch, and many on the same bags --------------------------------------------------------------
def regress(bags, y, parts, seeds, epochs=6, columns=None):
    """train_heads on squared errors: one output a network, column m of y (n, G) is network m's target."""
    o, sums = argparse.Namespace(lr=2e-2, weight_decay=0, epochs=epochs, batch=2), list(map(histcode.sums_of, bags))
    columns, models = range(y.shape[1]) if columns is None else columns, []
    for m in columns:
        torch.manual_seed(m)
        models.append(histcode.SlideModel("HistCode", *histcode.mean_and_sd(sums, parts[0][0]), 1, (), 4))
    target = lambda rows: torch.from_numpy(np.float32([[[y[i, m]] for i in rows[0]] for m in columns]))
    return histcode.train_heads(models, bags.__getitem__, target, histcode.squared_error, parts, seeds, o, "cpu")


def test_the_epoch_kept_is_the_last_one_with_the_fewest_mistakes():
    (bags, y), rng = planted_bags(shift=1.0), np.random.default_rng(1)
    order, differ = rng.permutation(24), 0
    splits = [(np.roll(order, 5 * i)[:14], v := np.roll(order, 5 * i)[14:], v) for i in range(4)]     # test is validation
    for split, got in zip(splits, learn("HistCode", bags, y, splits, [1, 2, 3, 4], epochs=25)):
        truth, losses = y[split[1]], []
        mistakes = [int((t.numpy().argmax(1) != truth).sum()) for t in got["tests"]]
        for t in got["tests"].double():
            losses.append(-np.mean([t[i].log_softmax(0)[c].item() for i, c in enumerate(truth)]))
        assert np.allclose(losses, got["losses"], atol=1e-5)
        assert got["epoch"] == 1 + min(range(25), key=lambda e: (mistakes[e], -e))
        differ += got["epoch"] != 1 + int(np.argmin(losses))
        model = histcode.SlideModel("HistCode", np.zeros(6), np.ones(6), 2, (), 8)
        model.load_state_dict(got["model"])                                    # and its weights are that epoch's
        for i, t in zip(split[1], got["tests"][got["epoch"] - 1]):
            out, _ = model(torch.from_numpy(bags[i])[None], torch.ones(1, len(bags[i]), dtype=torch.bool))
            assert torch.allclose(out[0, 0], t, atol=1e-5)
    assert differ                                                              # or the mistakes chose nothing


def test_a_bag_at_which_the_loss_is_lost_is_named_and_the_epoch_before_kept(tmp_path):
    (bags, y), splits = planted_bags(), three_splits()[:1]
    whole, = learn("HistCode", bags, y, splits, [4], epochs=3)
    odd, seen, original = int(splits[0][0][2]), [], list(bags)

    class Going(list):
        def __getitem__(self, i):
            seen.append(i)
            return super().__getitem__(i) * (np.float32("nan") if i == odd and seen.count(odd) == 2 else 1)
    with pytest.raises(tiling.InputError, match=rf"epoch 2: the loss is not finite any more, from {odd} on; .*s.pt keeps epoch 1"):
        learn("HistCode", Going(bags), y, splits, [4], epochs=3, state_file=tmp_path / "s.pt")
    again, = learn("HistCode", original, y, splits, [4], epochs=3, state_file=tmp_path / "s.pt")
    assert all(torch.equal(v, again["model"][k]) for k, v in whole["model"].items())


def test_an_interruption_after_the_best_epoch_keeps_it(tmp_path, monkeypatch):
    (bags, y), (_, valid, _) = planted_bags(), three_splits()[0]
    y = y.copy()
    y[valid] = 1 - y[valid]                                                    # the better it learns the worse: an early epoch is best
    whole, = learn("HistCode", bags, y, three_splits()[:1], [4], epochs=8)
    save, saves = histcode.save_file, []

    def breaks(path, write):
        save(path, write)
        saves.append(path)
        if len(saves) == 7:
            raise KeyboardInterrupt
    monkeypatch.setattr(histcode, "save_file", breaks)
    with pytest.raises(KeyboardInterrupt):
        learn("HistCode", bags, y, three_splits()[:1], [4], epochs=8, state_file=tmp_path / "s.pt")
    again, = learn("HistCode", bags, y, three_splits()[:1], [4], epochs=8, state_file=tmp_path / "s.pt")
    assert whole["epoch"] == again["epoch"] < 7
    assert all(torch.equal(v, again["model"][k]) for k, v in whole["model"].items())


def test_the_epoch_of_a_regression_has_the_lowest_loss():
    (bags, label), rng = planted_bags(), np.random.default_rng(0)
    y = np.c_[label + rng.normal(0, 1, 24), rng.normal(0, 1, 24)]
    done = regress(bags, y, [(np.arange(14), v := np.arange(14, 24), v)], [3], epochs=15)
    for m in range(2):
        losses = [np.mean([(t[i, 0].item() - y[v[i], m]) ** 2 for i in range(10)]) for t in done["tests"][m]]
        assert np.allclose(losses, done["losses"][:, m], atol=1e-5) and done["epochs"][m] == 1 + int(np.argmin(losses)) < 15


def test_networks_that_share_their_bags_are_those_trained_one_by_one():
    bags, label = planted_bags()
    y = np.c_[label, np.sin(np.arange(24)), [b.mean() for b in bags]]
    part = [(np.arange(13), np.arange(13, 18), np.arange(18, 24))]
    y[3, 1] = np.nan
    together = regress(bags, y, part, [9])
    for m in range(3):
        alone = regress(bags, y, part, [9], columns=[m])
        assert alone["epochs"][0] == together["epochs"][m]
        assert torch.allclose(together["tests"][m], alone["tests"][0], atol=1e-5)
        assert all(torch.allclose(v[m], alone["model"][k][0], atol=1e-4) for k, v in together["model"].items())
        assert together["tests"][m].shape == (6, 6, 1)                         # (epochs, n_test, C)


@pytest.mark.parametrize("name", histcode.POOLINGS)
def test_a_checkpoint_of_many_networks_speaks_as_each_of_them(name):
    bags, _ = planted_bags()
    models = some_networks(name, bags, [(np.arange(9), (), ())] * 5, range(5), embed=(5,))
    saved = dict(model={k: torch.stack([m.state_dict()[k] for m in models]) for k in models[0].state_dict()}, pooling=name,
                 outputs=2, embed=[5], hidden=8, n_features=6)
    out, a = histcode.apply_heads(saved, torch.device("cpu"), block=2)(bags[6].astype(np.float16))
    assert out.shape == (5, 2) and a.shape == (5, len(bags[6]))
    for m, model in enumerate(models):
        want, attention = model(torch.from_numpy(bags[6])[None].half(), torch.ones(1, len(bags[6]), dtype=torch.bool))
        assert torch.allclose(out[m], want[0, -1], atol=1e-5) and torch.allclose(a[m], attention[0], atol=1e-5)


# ----- What a cohort says --------------------------------------------------------------------------------------------
def test_tissue_is_read_from_columns_then_from_barcodes(tmp_path):
    of = lambda column, *words: histcode.tissue_of([{"slide": f"s{i}", column: w} for i, w in enumerate(words)], tmp_path)
    assert of("tumor", "1", "0", "Tumor", "normal", "yes", "", "NA", "unknown") == [1, 0, 1, 0, 1, None, None, None]
    assert of("sample_type", "Primary Tumor", "Solid Tissue Normal", "Metastatic") == [1, 0, None]
    with pytest.raises(tiling.InputError, match="samples.csv: tumor of slide s1 is 'maybe'; wanted 1 or 0"):
        of("tumor", "1", "maybe")
    names = ("TCGA-AA-0001-11A-DX1", ""), ("x", "TCGA-AA-0001-01A"), ("TCGA-AA-0001-06A", ""), ("x", "")
    rows = [dict(slide=slide, sample=sample) for slide, sample in names]
    assert histcode.tissue_of(rows, tmp_path) == [0, 1, None, None]
    with pytest.raises(tiling.InputError, match="no column tumor .1, 0. or sample_type, and no TCGA barcode"):
        histcode.tissue_of(rows[3:], tmp_path)
    both = dict(slide="TCGA-AA-0001-11A", tumor="1", sample_type="Solid Tissue Normal")
    assert histcode.tissue_of([both], tmp_path) == [1]
    for name, want in (("TCGA-AB-12CD-01A-DX1", ("TCGA-AB-12CD", 1)), ("TCGA-AB-12CD-11", ("TCGA-AB-12CD", 0)),
                       ("TCGA-AB-12CD-06A", ("TCGA-AB-12CD", None)), ("xTCGA-AB-12CD-01A", (None, None)),
                       ("TCGA-AB-12C-01A", (None, None))):
        assert histcode.barcode(name) == want


def test_driver_genes_are_the_most_mutated_over_all_cohorts(tmp_path):
    path = tmp_path / "d.tsv"
    path.write_text("COHORT\tSymbol\tMUTATIONS\nA\tTP53\t5.0\nB\tKRAS\t6\nB\tTP53\t2\nA\tAPC\t\nA\tPTEN\t6\nA\tZ\t.5\n")
    assert histcode.driver_genes(path, 3) == ["TP53", "KRAS", "PTEN"]
    assert histcode.driver_genes(path, 99)[3:] == ["Z", "APC"]
    for text, words in (("gene,samples\nTP53,3\n", "wanted columns symbol and mutations; it has gene, samples"),
                        ("cohort,gene,mutations\nA,TP53,3\nB\n", "row 3: 1 fields, the header has 3")):
        path.write_text(text)
        with pytest.raises(tiling.InputError, match=f"--drivers .*d.tsv.*{words}"):
            histcode.driver_genes(path, 3)


def test_intogens_most_mutated_drivers():
    path, total = real("genesets", "intogen_2020_drivers.tsv.gz"), {}
    for row in csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode()), delimiter="\t"):
        total[row["SYMBOL"]] = total.get(row["SYMBOL"], 0) + float(row["MUTATIONS"])
    got = histcode.driver_genes(path, histcode.DRIVERS)
    assert len(got) == len(set(got)) == 200 and got[0] == "TP53"
    assert min(total[g] for g in got) >= max(v for g, v in total.items() if g not in got)


# ----- Differential expression: runs ---------------------------------------------------------------------------------
def write_pairs(folder, patients=9, d=8, seed=0, normals=2):
    """A cohort of .h5 features, tumour and normal expression of each patient; `normals` of three have a normal slide too.

    UP0 to UP2: their fold change follows feature 1 of the tumour slide. NO0, NO1: noise. HALF: unknown in two pairs. OFF:
    nothing in most normal samples. SAME: one fold change for all. Feature 0: tumour tiles. -> folder
    """
    (folder / "h5").mkdir(parents=True)
    rng, slides, rows = np.random.default_rng(seed), ["slide,patient,project,sample,tumor"], []
    genes = ["UP0", "UP1", "UP2", "NO0", "NO1", "HALF", "OFF", "SAME"]
    for p in range(patients):
        who, content = f"TCGA-AA-{p:04d}", rng.normal()
        for label in (1, 0)[:1 + (p % 3 < normals)]:
            x = rng.normal(size=(9 + p % 4, d))
            x[:4, 0], x[:, 1] = x[:4, 0] + 6 * label, x[:, 1] + 2 * content * label
            with h5py.File(folder / "h5" / f"s{p}_{label}.h5", "w") as h:
                h["features"], h["coords"] = x.astype(np.float16), tile_cloud(len(x), p)
            slides.append(f"s{p}_{label},{who},X,{who}-{'01A' if label else '11A'},{label}")
        up = np.exp(np.r_[content + rng.normal(0, .1, 3), rng.normal(0, 1.5, 3)])
        normal = np.r_[np.exp(rng.normal(0, .5, 6)), p < 3, 2]
        normal[5] *= p > 1
        rows.append([f"{who}-01A", *(up * np.maximum(normal[:6], .5)), 1 + p, 4])
        rows.append([f"{who}-11A", *np.maximum(normal[:5], .5), *normal[5:]])
    (folder / "samples.csv").write_text("\n".join(slides) + "\n")
    tiling.save_csv(folder / "expression.csv", ("sample", *genes), ([r[0], *(f"{v:.6g}" for v in r[1:])] for r in rows))
    return folder


def change_table(path, change):
    header, rows = tiling.read_rows(path)
    tiling.save_csv(path, header, change(rows))


def test_each_pairs_tiles_are_read_once_a_fold(tmp_path, monkeypatch):
    cohort, read, real = write_pairs(tmp_path / "c"), [], histcode.pair_features
    monkeypatch.setattr(histcode, "pair_features", lambda h, a: (read.append(h), real(h, a))[1])
    monkeypatch.setattr(histcode, "write_expression", lambda *_: None)
    assert express(cohort) == 0
    patients, z = 9, np.load(cohort / "runs" / "expression" / "predictions.npz")
    assert len(z["patient"]) == patients and len(read) == 3 * patients + patients                   # predict_pair makes its own


def express(cohort, *argv):
    return histcode.main(["expression", str(cohort), "--features", str(cohort / "h5"), "--epochs", "3", "--lr", "0.01",
                          "--hidden", "4", "--device", "cpu", "--folds", "3", *argv])


MODELS = {"linear": [], "ridge": ["--ridge", "auto"], "joint": ["--model", "attention"],
          "mean": ["--model", "attention", "--pooling", "mean"],
          "max": ["--model", "attention", "--pooling", "max", "--embed", "5"],
          "per-gene": ["--model", "attention", "--per-gene", "--genes", "UP0,NO0,HALF"]}


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A finished run of each model on one cohort."""
    cohort, patch = write_pairs(tmp_path_factory.mktemp("changed") / "c"), pytest.MonkeyPatch()
    patch.setattr(histcode, "GENES_AT_ONCE", 2)                                # the networks of three genes in two lots
    patch.setattr(histcode, "SHUFFLES", 2000)
    for name, argv in MODELS.items():
        if name != "linear":                                                   # whose pictures are looked at
            patch.setattr(histcode, "write_expression", lambda folder, *_: tiling.save_text(folder / "report.md", ["done"]))
        else:
            patch.setattr(histcode, "SHOWN", ["NO1"])
        assert express(cohort, "--name", name, *argv) == 0
    patch.undo()
    return cohort


def folds_in(run):
    return [tiling.load_checkpoint(path, "cpu") for path in sorted(run.glob("fold*.pt"))]


def tiles_in(cohort, slide):
    return tiling.load_features(cohort, (cohort / "h5").resolve(), slide)[0]


def spoken_by_hand(saved, h):
    """Output of each gene for a bag h (T, D) of a fold's checkpoint by `SlideModel` and NumPy, (G,); attention (M, T)."""
    out, attention = [], []
    for m in range(len(next(iter(saved["model"].values())))):
        D = h.shape[1]
        shape = (saved[k] for k in ("outputs", "embed", "hidden"))
        model = histcode.SlideModel(saved["pooling"], np.zeros(D), np.ones(D), *shape)
        model.load_state_dict({k: v[m] for k, v in saved["model"].items()})
        with torch.no_grad():
            got, a = model(torch.from_numpy(h)[None], torch.ones(1, len(h), dtype=torch.bool))
        out.append(got[0, -1].double().numpy()), attention.append(a[0].double().numpy())
    if saved["kind"] != "linear":
        return np.concatenate(out), np.stack(attention)
    order, n = sorted(range(len(h)), key=lambda i: (-a[0, i].item(), i)), min(histcode.ENDS, len(h) // 2)
    x = np.concatenate([np.mean([h[i] for i in rows], 0, dtype=np.float64) for rows in (order[:n], order[len(h) - n:])])
    return x @ saved["weights"].double().numpy() + saved["bias"].double().numpy(), np.stack(attention)


def test_pairs_of_a_table_worked_by_hand(tmp_path, capsys):
    cohort = tmp_path / "c"
    cohort.mkdir()
    (cohort / "samples.csv").write_text("slide,patient,project,sample,tumor\n" + "".join(f"{r}\n" for r in (
        "a1,A,X,sa,1", "a2,A,X,sa,1", "a0,A,X,na,0", "b1,B,X,sb,1", "b0,B,X,nb,0", "t1,TCGA-AA-0001,X,TCGA-AA-0001-01A,1",
        "c1,C,X,sc,1", "d0,D,X,nd,0", "e0,E,X,ne,0", "e1,E,X,se,", "u,U,X,su,")))
    ids = "sa na sb nb TCGA-AA-0001-01A TCGA-AA-0001-01B TCGA-AA-0001-11A sc nd ne se su TCGA-ZZ-9999-01A TCGA-ZZ-9999-11A"
    tiling.save_csv(cohort / "expression.csv", ("sample", "G", "H"), [(s, i, 2 * i) for i, s in enumerate(ids.split())])
    p = histcode.pairs_of(cohort, argparse.Namespace(slides="tumour"))
    assert p["patients"].tolist() == ["A", "B", "TCGA-AA-0001"] and p["slides"] == [["a1", "a2"], ["b1"], ["t1"]]
    assert p["tumour"].tolist() == [[0, 0], [2, 4], [4.5, 9]]                  # two samples of a patient: their mean
    assert p["normal"].tolist() == [[1, 2], [3, 6], [6, 12]] and p["genes"] == ["G", "H"]          # which has no slide
    assert [len(names) for names in p["left_out"].values()] == [1, 2, 1, 2, 2]
    assert list(p["left_out"].values()) == [["C"], ["D", "E"], ["TCGA-ZZ-9999"], ["se", "su"], ["e1", "u"]]
    tiling.say_left_out(p["left_out"])
    said = capsys.readouterr().out
    assert "1 patients with tumour but no normal expression: C" in said and "2 patients with normal but no tumour" in said
    assert [s["slide"] for s in p["known"]] == ["a1", "a2", "a0", "b1", "b0", "t1", "c1", "d0", "e0"]
    assert p["tissue"].tolist() == [1, 1, 0, 1, 0, 1, 1, 0, 0]
    both = histcode.pairs_of(cohort, argparse.Namespace(slides="both"))
    assert both["slides"] == [["a1", "a2", "a0"], ["b1", "b0"], ["t1"]]
    change_table(cohort / "samples.csv", lambda rows: [[*r[:3], "sa" if r[0] == "b0" else r[3], r[4]] for r in rows])
    with pytest.raises(tiling.InputError, match=r"samples.csv: sample sa is \('A', 1\) and \('B', 0\)"):
        histcode.pairs_of(cohort, argparse.Namespace(slides="both"))


def test_genes_without_a_fold_change_in_half_of_the_pairs_are_left_out(changed, tmp_path):
    cohort, o = changed, argparse.Namespace(cohort="C", slides="tumour", drivers=None, genes="all", top=3)
    p = histcode.pairs_of(cohort, o)
    assert [p["genes"][j] for j in histcode.chosen_genes(p, o)] == ["UP0", "UP1", "UP2", "NO0", "NO1", "HALF"]
    assert ["OFF", "SAME"] in p["left_out"].values()
    (tmp_path / "d.csv").write_text("symbol,mutations\nUP1,3\nNO1,9\nZZ,8\nUP0,2\n")
    o.drivers = tmp_path / "d.csv"
    assert [p["genes"][j] for j in histcode.chosen_genes(p, o)] == ["NO1", "UP1"]           # top three: ZZ is not there
    assert p["left_out"]["of the 3 driver genes, without expression"] == ["ZZ"]


@pytest.mark.parametrize("name", MODELS)
def test_every_pair_is_predicted_by_the_model_that_did_not_know_its_patient(changed, name):
    run = changed / "runs" / name
    saved, z, folds = folds_in(run), np.load(run / "predictions.npz"), read_csv(run / "folds.csv")
    part = {r["patient"]: int(r["part"]) for r in folds}
    assert len(saved) == 3 and sorted(z["patient"]) == sorted(part)
    assert [part[p] for p in z["patient"]] == z["part"].tolist()
    tested = [who for s in saved for who in s["test_patients"]]
    assert sorted(tested) == sorted(z["patient"])
    assert [s["kind"] for s in saved] == ["linear" if name in ("linear", "ridge") else "attention"] * 3
    for f, s in enumerate(saved):
        assert {p for p in part if part[p] == f} == set(s["test_patients"]) == set(part) - set(s["learned_from"])
        assert not set(s["test_patients"]) & {*s["train_patients"], *s["valid_patients"]}
        assert not set(s["train_patients"]) & set(s["valid_patients"])
        assert s["genes"] == z["genes"].tolist()
        assert s["penalty"] in histcode.RIDGE if name == "ridge" else s.get("penalty", 0) == 0
    expression = {r["sample"]: r for r in read_csv(changed / "expression.csv")}
    for i, who in enumerate(z["patient"]):
        h = tiles_in(changed, f"s{int(who[-4:])}_1")
        assert np.allclose(z["prediction"][i], spoken_by_hand(saved[part[who]], h)[0], atol=2e-5)
        pair = ([np.float32(expression[f"{who}-{end}"][g]) for g in z["genes"]] for end in ("01A", "11A"))
        y, label = histcode.fold_change(*map(np.array, pair))
        assert np.allclose(z["truth"][i], y, equal_nan=True, atol=1e-6)
        assert np.array_equal(z["label"][i], label, equal_nan=True)


def test_per_gene_networks_are_each_its_own_and_joint_ones_share(changed):
    per, joint = (folds_in(changed / "runs" / name)[0] for name in ("per-gene", "joint"))
    w = per["model"]["head.pooling.w.weight"]
    assert per["genes"] == ["UP0", "NO0", "HALF"] and w.shape == (3, 1, 4) and not torch.allclose(w[0], w[1])
    assert len(per["epochs"]) == 3
    assert joint["model"]["head.pooling.w.weight"].shape == (1, 1, 4) and joint["outputs"] == 6 == len(joint["genes"])


@pytest.mark.parametrize("name", ["linear", "joint", "per-gene"])
def test_the_test_patients_features_and_expression_teach_the_fold_nothing(changed, tmp_path, monkeypatch, name):
    before, run = folds_in(changed / "runs" / name), changed / "runs" / name
    test, f = before[1]["test_patients"], 1
    cohort = tmp_path / "c"
    shutil.copytree(changed, cohort, ignore=shutil.ignore_patterns("runs"))
    for r in read_csv(run / "folds.csv"):
        if r["patient"] in test:
            with h5py.File(cohort / "h5" / f"{r['slide']}.h5", "r+") as h:
                h["features"][:] = h["features"][:] * 3 - 1
    other = lambda row: [row[0], *(float(v) * (3 + j % 2) for j, v in enumerate(row[1:7])), *row[7:]]
    theirs = [f"{patient}-01A" for patient in test]
    change_table(cohort / "expression.csv", lambda rows: [other(r) if r[0] in theirs else r for r in rows])
    monkeypatch.setattr(histcode, "write_expression", lambda *_: None)
    monkeypatch.setattr(histcode, "GENES_AT_ONCE", 2)
    assert express(cohort, "--name", name, *MODELS[name]) == 0
    z, old = (np.load(c / "runs" / name / "predictions.npz") for c in (cohort, changed))
    own = z["part"] == f
    assert all(not np.allclose(z[k][own], old[k][own], equal_nan=True) for k in ("truth", "prediction"))
    after = folds_in(cohort / "runs" / name)
    kept = ("weights", "bias", "label_weights", "label_bias", "epochs")
    own = lambda s: dict(s["model"], **{k: s[k] for k in kept if k in s})
    same = lambda a, b: all(torch.equal(v, own(b)[k]) for k, v in own(a).items())
    assert same(before[f], after[f]) and not same(before[2], after[2])         # they are the third fold's training part


@pytest.mark.parametrize("name", ["linear", "joint", "per-gene"])
def test_an_interrupted_expression_ends_as_one_that_was_not(changed, tmp_path, monkeypatch, name):
    cohort = tmp_path / "c"
    shutil.copytree(changed, cohort, ignore=shutil.ignore_patterns("runs"))
    monkeypatch.setattr(histcode, "write_expression", lambda *_: None)
    monkeypatch.setattr(histcode, "GENES_AT_ONCE", 2)
    save, saves = histcode.save_file, []

    def breaks(path, write):
        save(path, write)
        saves.append(path.name)
        if len(saves) == 10:
            raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(histcode, "save_file", breaks)
        with pytest.raises(KeyboardInterrupt):
            express(cohort, "--name", name, *MODELS[name])
    there = {p.name for p in (cohort / "runs" / name).glob("fold*.pt")}        # the next one is begun
    assert there == ({"fold0.pt", "fold1.0.state.pt"} if name == "per-gene" else {"fold0.pt", "fold1.pt", "fold2.0.state.pt"})
    done = (cohort / "runs" / name / "fold0.pt").stat().st_mtime_ns
    assert express(cohort, "--name", name, *MODELS[name]) == 0
    assert (cohort / "runs" / name / "fold0.pt").stat().st_mtime_ns == done
    z, old = (np.load(c / "runs" / name / "predictions.npz") for c in (cohort, changed))
    assert all(np.array_equal(z[k], old[k], equal_nan=z[k].dtype.kind == "f") for k in old.files)
    assert not list(cohort.glob("runs/*/*.state.pt"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", ["linear", "joint", "per-gene"])
def test_a_gene_that_no_training_patient_of_a_fold_knows_stops_nothing(changed, tmp_path, monkeypatch, name):
    cohort, z = tmp_path / "c", np.load(changed / "runs" / name / "predictions.npz")
    shutil.copytree(changed, cohort, ignore=shutil.ignore_patterns("runs"))
    gone = {f"{who}-11A" for who in z["patient"][z["part"] == 2]}              # fold 0 tests 0, validates 1, trains on 2
    change_table(cohort / "expression.csv", lambda rows: [[*r[:4], "0", *r[5:]] if r[0] in gone else r for r in rows])
    monkeypatch.setattr(histcode, "write_expression", lambda *_: None)
    assert express(cohort, "--name", name, *MODELS[name]) == 0
    new = np.load(cohort / "runs" / name / "predictions.npz")
    at, first = new["genes"].tolist().index("NO0"), new["part"] == 0
    assert np.isfinite(np.delete(new["prediction"], at, 1)).all() and np.isnan(new["truth"][new["part"] == 2, at]).all()
    others = [j for j in range(len(new["genes"])) if j != at]
    if name != "joint":                                                        # there all genes share their tiles
        assert np.array_equal(new["prediction"][first][:, others], z["prediction"][first][:, others])


def test_what_a_run_of_expression_writes(changed, capsys):
    run = changed / "runs" / "linear"
    rows, z = read_csv(run / "genes.csv"), np.load(run / "predictions.npz")
    assert list(rows[0]) == ["gene", *histcode.GENE_COLUMNS] and {r["gene"] for r in rows} == set(z["genes"])
    r = [float(row["R"]) for row in rows]
    assert r == sorted(r, reverse=True)
    for row in rows:
        j = z["genes"].tolist().index(row["gene"])
        known = ~np.isnan(z["truth"][:, j])
        truth, prediction, label = z["truth"][known, j], z["prediction"][known, j], z["label"][:, j]
        hits = z["predicted_label"][:, j][~np.isnan(label)] == label[~np.isnan(label)]
        want = dict(n=known.sum(), R=scipy.stats.pearsonr(prediction, truth)[0],
                    spearman=scipy.stats.spearmanr(prediction, truth)[0],
                    mean_fc=(10 ** truth - 1).mean(),
                    accuracy=hits.mean(), share_label_1=np.nanmean(label),
                    majority=max(np.nanmean(label), 1 - np.nanmean(label)))
        assert all(float(row[k]) == pytest.approx(v, rel=2e-4, abs=1e-6) for k, v in want.items()), row["gene"]
    report = (run / "report.md").read_text()
    for name in ("r", "accuracy", "fold_change", "scatter"):
        assert Image.open(run / f"{name}.png").size > (300, 300) and f"({name}.png)" in report
    assert "9 pairs of tumour and matched normal tissue, 6 genes" in report and "always the commoner label" in report
    assert "OFF, SAME" in report and "- model: linear" in report and "planted" not in report


def rewritten(name, change):
    return lambda cohort: change_table(cohort / name, change)


@pytest.mark.parametrize("argv, words, spoil", [(*mistake, None)[:3] for mistake in (
    (["--ridge", "1", "--model", "attention"], "--ridge: with --model linear"),
    (["--ridge", "auto", "--model", "attention"], "--ridge: with --model linear"),
    (["--ridge", "-1"], "--ridge -1: must lie between 0"),
    (["--per-gene"], "--per-gene: with --model attention"),
    (["--pooling", "max"], "--pooling max: with --model attention"),
    (["--gmt", "nowhere.gmt"], "--gmt: .*No such file.*nowhere.gmt"),
    (["--name", "a/b"], "--name a/b: the name of a folder, not a path"),
    (["--genes", "UP9"], "the expression table has no gene 'UP9'; nearest: UP"),
    (["--folds", "12"], "9 patients don't go into --folds 12"),
    (["--genes", "UP0", "--drivers", "x"], "--drivers and --genes both"),
    (["--drivers", "nowhere.tsv"], "nowhere.tsv: can't be read"),
    (["--drivers", "samples.csv"], "--drivers samples.csv: wanted columns symbol and mutations; it has slide, patient"),
    (["--drivers", "d.csv"], "--drivers d.csv: none of its genes .TP53. is in the expression table, which has UP0",
     lambda c: (c / "d.csv").write_text("gene,mutations\nTP53,3\n")),
    (["--genes", "OFF,SAME"], "no gene of 2 has a fold change in half of the 9 pairs"),
    ([], "trains on slides of one class only .tumour.*--model attention does without",
     rewritten("samples.csv", lambda rows: [r for r in rows if r[4] == "1"])),
    ([], "samples.csv: tumor of slide s0_1 is 'perhaps'; wanted 1 or 0",
     rewritten("samples.csv", lambda rows: [[*r[:4], "perhaps"] for r in rows])),
    ([], "samples.csv line 2: slide a/s0_1 is a path",
     rewritten("samples.csv", lambda rows: [["a/" + r[0], *r[1:]] for r in rows])),
    ([], "0 patients have tumour and normal .*9 have tumour, 0 normal",
     rewritten("expression.csv", lambda rows: rows[::2])),
    ([], "expression.csv.*UP2", rewritten("expression.csv", lambda rows: [[*r[:3], "-1", *r[4:]] for r in rows])),
    ([], "c: no expression.csv", lambda c: (c / "expression.csv").unlink()))])
def test_expression_says_one_line(tmp_path, monkeypatch, argv, words, spoil):
    cohort = write_pairs(tmp_path / "c")
    monkeypatch.chdir(cohort)
    if spoil:
        spoil(cohort)
    with pytest.raises(tiling.InputError, match=words) as e:
        express(cohort, *argv)
    assert "\n" not in str(e.value) and not (cohort / "runs").exists()


def test_slides_of_one_tile_or_nan_are_left_out_with_their_pair_and_named(tmp_path, monkeypatch, capsys):
    cohort = write_pairs(tmp_path / "c", 12)
    with h5py.File(cohort / "h5" / "s1_1.h5", "r+") as h:
        x, coords = h["features"][:1], h["coords"][:1]
        del h["features"], h["coords"]
        h["features"], h["coords"] = x, coords
    with h5py.File(cohort / "h5" / "s3_1.h5", "r+") as h:
        h["features"][4, 2] = np.nan
    left = []
    monkeypatch.setattr(histcode, "write_expression", lambda *given: left.append(histcode.left_out_lines(given[3])))
    assert express(cohort) == 1
    said = capsys.readouterr()
    assert "s1_1: 1 tile; the highest and the lowest by attention need two" in said.err
    assert "2 of 20 slides failed" in said.err
    assert "s3_1: " in said.err and "s3_1.h5: NaN or infinite feature in tile 4" in said.err
    assert "2 pairs of which a slide failed: TCGA-AA-0001, TCGA-AA-0003" in said.out
    assert "10 pairs, 6 genes, 18 slides" in said.out
    assert any("s1_1 failed: 1 tile" in line for line in left[0])
    z = np.load(cohort / "runs" / "expression" / "predictions.npz")
    assert len(z["patient"]) == 10 and np.isfinite(z["prediction"]).all()


def test_a_run_of_expression_with_other_settings_is_refused(changed, tmp_path, monkeypatch):
    cohort = tmp_path / "c"
    shutil.copytree(changed, cohort)
    before = {p.name: p.read_bytes() for p in (cohort / "runs" / "ridge").iterdir()}
    for argv, words in ((["--ridge", "3"], "ridge"), (["--epochs", "4"], "epochs"), (["--genes", "UP0,UP1"], "genes"),
                        (["--seed", "1"], "seed"), (["--slides", "both"], "slides"),
                        (["--model", "attention", "--ridge", "0"], "model")):
        with pytest.raises(tiling.InputError, match=f"other settings .*{words}.*choose another --name"):
            express(cohort, "--name", "ridge", "--ridge", "auto", *argv)
    twice = lambda row: [row[0], *(2 * float(v) for v in row[1:])]
    change_table(cohort / "expression.csv", lambda rows: [*rows[:-2], twice(rows[-2]), rows[-1]])
    with pytest.raises(tiling.InputError, match="other settings .*data"):
        express(cohort, "--name", "ridge", "--ridge", "auto")
    assert before == {p.name: p.read_bytes() for p in (cohort / "runs" / "ridge").iterdir()}


def test_the_ledger_of_expression_and_stopping_on_test(changed, tmp_path, monkeypatch):
    cohort = tmp_path / "c"
    shutil.copytree(changed, cohort)
    monkeypatch.setattr(histcode, "SHUFFLES", 2000)
    top, seen = section(cohort / "runs" / "linear")
    assert "**Steps that saw test patients: gene filter**" in top and "| gene filter | 9 | 3 of 3 | availability only" in seen and "leak" not in seen
    for step in ("attention: weights of the network", "attention: choice of the epoch", "labels: choice of the epoch", "standardisation of the features"):
        assert f"| {step} | 3 | 0 of 3 |  |" in seen
    assert "| least squares | 6 | 0 of 3 |  |" in seen and "| shuffled patients | 3 | 3 of 3 | by design" in seen
    assert [s["saw"]["penalty"] for s in folds_in(cohort / "runs" / "ridge")] == [s["saw"]["least squares"] for s in folds_in(cohort / "runs" / "ridge")]
    assert express(cohort, "--name", "b", "--code", "stop") == 0 and express(cohort, "--name", "c", "--model", "attention", "--code", "stop") == 0
    top, seen = section(cohort / "runs" / "b")
    assert "test patients: gene filter, attention: choice of the epoch, labels: choice of the epoch**" in top and "stop: the test part" in top
    assert "| least squares | 6 | 0 of 3 |  |" in seen and "| attention: weights of the network | 3 | 0 of 3 |  |" in seen
    top, seen = section(cohort / "runs" / "c")
    assert "test patients: gene filter, choice of the epoch**" in top and "| start of the last bias | 3 | 0 of 3 |  |" in seen
    z = np.load(cohort / "runs" / "c" / "predictions.npz")
    joint = folds_in(cohort / "runs" / "joint")
    for f, s in enumerate(folds_in(cohort / "runs" / "c")):
        assert s["valid_patients"] == s["test_patients"] and set(s["test_patients"]) <= set(s["learned_from"])
        test = z["part"] == f
        error = (np.where(np.isnan(z["truth"]), 0, z["prediction"] - z["truth"])[test] ** 2).sum(1) / (~np.isnan(z["truth"][test])).sum(1)
        assert s["losses"].min().item() == pytest.approx(error.mean(), rel=1e-3) and not torch.equal(s["losses"], joint[f]["losses"])
    with pytest.raises(tiling.InputError, match="other settings .code .'stop'. -> "):
        express(cohort, "--name", "c", "--model", "attention")
    honest = histcode.roles
    monkeypatch.setattr(histcode, "roles", lambda *a: (lambda train, valid, test: (train, np.r_[valid, test[:1]], test))(*honest(*a)))
    assert express(cohort, "--name", "leaky") == 0
    assert "| least squares | 7 | 1 of 3 | **a leak** |" in section(cohort / "runs" / "leaky")[1]


def test_expressions_choices_are_runs_of_their_options(changed, tmp_path, monkeypatch):
    cohort = tmp_path / "c"
    shutil.copytree(changed, cohort)
    monkeypatch.setattr(histcode, "GENES_AT_ONCE", 2)
    monkeypatch.setattr(histcode, "write_expression", lambda *_: None)
    assert express(cohort, "--name", "a", "--code", "model", "--genes", "UP0,NO0,HALF") == 0
    assert express(cohort, "--name", "b", "--code", "embed,slides", "--genes", "UP0") == 0
    assert express(cohort, "--name", "c", "--embed", "512", "--slides", "both", "--genes", "UP0") == 0
    z = {name: np.load(cohort / "runs" / name / "predictions.npz")["prediction"] for name in ("a", "b", "c", "per-gene")}
    assert np.array_equal(z["a"], z["per-gene"]) and np.array_equal(z["b"], z["c"]) and folds_in(cohort / "runs" / "b")[0]["embed"] == [512]
    config = json.loads((cohort / "runs" / "b" / "config.json").read_text())
    assert config["code"] == ["embed", "slides"] and config["slides"] == "both"


def test_histcodes_audit_goes_on_where_it_stopped_and_is_the_runs_difference(tmp_path, monkeypatch, capsys):
    cohort, runs, real = write_pairs(tmp_path / "c", 12), [], histcode.expression
    folder, own = cohort / "runs" / "histcode-audit", f"--features {cohort / 'h5'} --epochs 2 --folds 3 --device cpu --hidden 4"
    monkeypatch.setattr(histcode, "SHUFFLES", 2000)

    def expression(o):
        runs.append(o.name)
        if len(runs) == 4:
            raise KeyboardInterrupt
        return real(o)
    monkeypatch.setattr(histcode, "expression", expression)
    audit = lambda *more: histcode.main(["audit", str(cohort), "--seeds", "2", "--code", "lr,folds,slides", f"--diagnose={own} --lr .01",
                                         f"--expression={own}", *more])
    with pytest.raises(KeyboardInterrupt):
        audit()
    assert "without pretrain's lr: " in (said := capsys.readouterr().out) and len(read_csv(folder / "audit.csv")) == 2 * 4 + 2 * 3
    left = re.findall(r"(\d+) runs left, 0:00:0\d at the mean of the (\d+) done", said)
    assert left == [(str(7 - i), str(i + 1)) for i in range(7)]
    assert audit() == 0 and runs == ["expression-default-seed0", "expression-default-seed1", "expression-slides-seed0", *["expression-slides-seed1"] * 2]
    first, text = (folder / "audit.csv").read_bytes(), (folder / "audit.md").read_text()
    assert audit() == 0 and len(runs) == 5 and (folder / "audit.csv").read_bytes() == first and (folder / "audit.md").read_text() == text
    rows = {(r["command"], r["choice"], int(r["seed"]), r["measure"]): r for r in read_csv(folder / "audit.csv")}
    value = {}
    for c, name, s in {k[:3] for k in rows}:
        if c == "expression":
            r = [float(g["R"]) for g in read_csv(folder / f"{c}-{name}-seed{s}" / "genes.csv")]
            value[c, name, s, "R"] = np.mean(r)
        else:
            p = read_csv(folder / f"{c}-{name}-seed{s}" / "predictions.csv")
            value[c, name, s, "accuracy"] = np.mean([r["label"] == r["predicted"] for r in p])
            hit = [(float(a["p_tumour"]) > float(b["p_tumour"])) + .5 * (a["p_tumour"] == b["p_tumour"]) for a in p for b in p
                   if a["label"] == "tumour" != b["label"]]
            value[c, name, s, "AUC"] = np.mean(hit)
    for k, want in value.items():
        assert float(rows[k]["value"]) == pytest.approx(want, abs=1e-4)
        assert float(rows[k]["change"]) == pytest.approx(want - value[k[0], "default", *k[2:]], abs=2e-4) and float(rows[k]["seconds"]) > 0
    assert len(value) == 2 * 2 * 2 + 2 * 2 and "| slides | tiles of the normal slides too |" in text
    with pytest.raises(tiling.InputError, match="--code lr: nothing is left to turn: .*spots/ to probe"):
        histcode.main(["audit", str(write_pairs(tmp_path / "d")), "--code", "lr"])
    with pytest.raises(tiling.InputError, match="--seeds 0"):
        audit("--seeds", "0")
    with pytest.raises(tiling.InputError, match="--diagnose --lr '1: no closing quotation"):
        audit("--diagnose=--lr '1")


def test_audit_of_pretraining_probes_the_same_tiles(unlabelled, tmp_path, monkeypatch, capsys):
    cohort = tmp_path / "c"
    shutil.copytree(unlabelled, cohort, ignore=shutil.ignore_patterns("runs", "features", "tiles"))
    own = " ".join(TINY) + f" --epochs 1 --weights {cohort / 'start.pth'} --tile-um 100"
    again = lambda code="lr": histcode.main(["audit", str(cohort), "--seeds", "1", "--code", code, f"--pretrain={own}", "--probe=--tiles-per-slide 3"])
    assert again("lr,tissue") == 0
    folder = cohort / "runs" / "histcode-audit"
    rows = read_csv(folder / "audit.csv")
    assert [(r["choice"], r["measure"]) for r in rows] == [(c, m) for c in ("default", "tissue", "lr") for m in ("R2 of the cells", "spread")]
    other = folder / "tissue"
    for name, home in (("default", cohort), ("tissue", other), ("lr", cohort)):
        run = home / "runs" / "histcode-audit" / f"pretrain-{name}-seed0"
        probed, = read_csv(run / "probe.csv")
        got = {r["measure"]: float(r["value"]) for r in rows if r["choice"] == name}
        assert got["R2 of the cells"] == pytest.approx(float(probed["mean"]), rel=1e-5) and probed["tiles"] == read_csv(folder / "pretrain-default-seed0"
                                                                                                       / "probe.csv")[0]["tiles"]
        assert got["spread"] == pytest.approx(json.loads((run / "log.jsonl").read_text())["spread"], rel=1e-5)
        config = json.loads((run / "config.json").read_text())
        assert config["lr"] == (.001 if name == "lr" else .03) and config["tile_um"] == 100 and config["code"] == [name] * (name != "default")
    log, was = (run / "log.jsonl").read_bytes(), (run / "audit.json").read_bytes()
    for half in (b"{}", was.replace(b'"status": 0', b'"status": "y"'), b'{"measures": {}, "seconds": '):
        (run / "audit.json").write_bytes(half)                                 # is measured again
        assert again() == 0 and json.loads((run / "audit.json").read_bytes())["measures"] == json.loads(was)["measures"]
    (run / "audit.json").unlink(), (run / "log.jsonl").write_bytes(b"")
    assert again() == 1 and f"log.jsonl has no epoch: delete {run} to train it again" in capsys.readouterr().out
    (run / "log.jsonl").write_bytes(log)
    a, b = (json.loads((home / "tiles" / "settings.json").read_text()) for home in (cohort, other))
    assert b == {**a, "tissue_threshold": 8.0} and (other / "slides").is_symlink()


def test_gene_sets_of_the_best_genes_are_fishers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(histcode, "BEST_GENES", 4)
    ranked = [f"G{i}" for i in range(12)]
    sets = dict(first=("G0", "G1", "G2", "X"), mixed=("G3", "G4", "G11"), none=("Y",), last=("G9", "G10"))
    text = histcode.enrich_best(tmp_path, ranked, sets)
    rows = {r["set"]: r for r in read_csv(tmp_path / "enrichment.csv")}
    assert list(rows) == ["first", "mixed", "last"]                            # by p; of the fourth no gene was tested
    for name, (hits, size) in dict(first=(3, 3), mixed=(1, 3), last=(0, 2)).items():
        p = scipy.stats.fisher_exact([[hits, size - hits], [4 - hits, 12 - 4 - size + hits]], "greater")[1]
        r = rows[name]
        assert (int(r["hits"]), int(r["genes tested"])) == (hits, size) and float(r["p"]) == pytest.approx(p, rel=1e-3)
        assert float(r["expected"]) == pytest.approx(size * 4 / 12, rel=1e-3) and len(r["hit genes"].split()) == hits
    assert rows["first"]["hit genes"] == "G0 G1 G2" and (tmp_path / "enrichment.png").is_file()
    assert "of 3 sets with a tested gene" in capsys.readouterr().out
    assert any("| first | 3 | 3 | 1.0 |" in line for line in text)


def test_gene_sets_are_read_from_several_files(tmp_path):
    for name, text in (("a.gmt", "A\tx\tG1\tG2\nB\tx\tG3\n"), ("b.gmt", "C\tx\tG4\nB\ty\tG3\n"), ("c.gmt", "B\tx\tG9\n")):
        (tmp_path / name).write_text(text)
    a, b, c = (str(tmp_path / f"{n}.gmt") for n in "abc")
    assert stats.read_gmt(a, b) == histcode.read_sets([a, b]) == dict(A=("G1", "G2"), B=("G3",), C=("G4",))
    with pytest.raises(tiling.InputError, match="--gmt: .*c.gmt, line 1: set 'B' stands in .*b.gmt, line 2 too"):
        histcode.read_sets([b, a, c])
    with pytest.raises(tiling.InputError, match="--gmt: .*nowhere.gmt"):
        histcode.read_sets([a, str(tmp_path / "nowhere.gmt")])


def test_planted_programmes_are_those_of_the_simulated_cohort(drawn, tmp_path):
    rows = read_csv(drawn / "truth" / "genes.csv")
    genes = [r["gene"] for r in rows[::3]] + ["unheard"]
    of = histcode.tiling.planted_programmes(drawn, genes)
    assert set(of) == {r["programme"] for r in rows[::3]} and sum(w.sum() for w in of.values()) == len(genes) - 1
    assert all(of[r["programme"]][genes.index(r["gene"])] for r in rows[::3])
    assert tiling.planted_programmes(tmp_path, genes) is None


def test_pieces_in_both_files_are_the_same_text():
    for name in ("read_sets", "read_outlines"):
        (first, ours), (second, theirs) = (inspect.getsource(getattr(m, name)).split("\n", 1) for m in (he2rna, histcode))
        assert ours == theirs and first.replace("histcode.py", "he2rna.py") == second
        assert "# same in histcode.py" in first and "# same in he2rna.py" in second


# ----- A run's models on slides --------------------------------------------------------------------------------------
def test_attention_between_0_and_1_and_dice_worked_by_hand():
    assert np.allclose(histcode.scale_to_one(np.array([.2, .1, .5])), [.25, 0, 1])
    assert (histcode.scale_to_one(np.full(3, .3)) == 0).all()
    a, b = np.array([1, 1, 1, 0, 0], bool), np.array([0, 1, 1, 1, 0], bool)
    assert histcode.dice(a, b) == pytest.approx(4 / 6) and histcode.dice(a, a) == 1
    assert histcode.dice(a, ~a) == histcode.dice(~a & a, ~a & a) == 0


def labels_by_hand(saved, x):
    return 1 / (1 + np.exp(-(x @ saved["label_weights"].double().numpy() + saved["label_bias"].double().numpy())))


@pytest.mark.parametrize("name", ["linear", "joint", "per-gene"])
def test_predictions_of_a_run_are_the_means_of_its_models_by_hand(changed, tmp_path, name, capsys):
    run, new = changed / "runs" / name, tmp_path / "h5" / "new.h5"
    saved, z = folds_in(run), np.load(run / "predictions.npz")
    new.parent.mkdir()
    shutil.copy(changed / "h5" / "s4_1.h5", new)
    part = z["part"][z["patient"].tolist().index("TCGA-AA-0004")]
    header = f"{'p' if name == 'linear' else 'predicted'}_abs_log2_fc_above_{histcode.LOG2_FC}"
    h = tiles_in(changed, "s4_1")
    for argv, slide, use in (([str(new)], "new", [0, 1, 2]), (["s4_1"], "s4_1", [part]),
                             (["s4_1", "--all-models"], "s4_1", [0, 1, 2])):
        assert histcode.main(["predict", str(run), *argv, "--device", "cpu"]) == 0
        assert f"{len(h)} tiles, {len(use)} of 3 models, {len(z['genes'])} genes" in capsys.readouterr().out
        rows, each = read_csv(run / "predict" / f"{slide}.csv"), [spoken_by_hand(saved[m], h) for m in use]
        y = np.mean([out for out, _ in each], 0)
        assert [r["gene"] for r in rows] == z["genes"].tolist()
        assert np.allclose([float(r["log10_fc_plus_1"]) for r in rows], y, atol=2e-5)
        assert np.allclose([float(r["fold_change"]) for r in rows], np.maximum(10 ** y - 1, 0), atol=2e-4, rtol=1e-4)
        p = np.abs(np.log2(np.maximum(10 ** y - 1, 1e-12))) > 1.5
        if name == "linear":                                                   # it has a layer of its own for the label
            p = np.mean([labels_by_hand(saved[m], histcode.pair_features(h, a[0])) for m, (_, a) in zip(use, each)], 0)
        assert np.allclose([float(r[header]) for r in rows], p, atol=2e-5)
    with h5py.File(large := tmp_path / "h5" / "large.h5", "w") as f:
        f["features"], f["coords"] = h * np.float32(1e7), tile_cloud(len(h))
    capsys.readouterr()
    assert histcode.main(["predict", str(run), str(large), str(new), "--device", "cpu"]) == 1
    assert re.search("failed: large: its prediction is not finite: features up to .*e.07 are of another scale", (said := capsys.readouterr()).err)
    assert said.out.startswith("new: ") and not (run / "predict" / "large.csv").exists()
    with pytest.raises(tiling.InputError, match="of another scale"), np.errstate(all="ignore"):
        histcode.map_scores(dict(folds=saved), [histcode.apply_heads(s, "cpu") for s in saved], [0], h * np.float32(1e38), 0, "attention")


@pytest.mark.parametrize("name", ["linear", "joint", "mean", "max", "per-gene"])
def test_what_tiles_add_and_the_bias_are_the_prediction(changed, name):
    run = histcode.load_run(changed / "runs" / name)
    for slide, (f, saved) in itertools.product(("s2_1", "s3_1", "s4_0"), enumerate(run["folds"])):
        h, (_, a) = tiles_in(changed, slide), histcode.apply_heads(saved, "cpu")(tiles_in(changed, slide))
        want, by_hand = spoken_by_hand(saved, h)
        assert np.allclose(a, by_hand, atol=1e-6)
        for j in range(len(want)):
            m, at = (j, 0) if name == "per-gene" else (0, j)
            got = histcode.contributions(saved, h, a.double().numpy(), j)
            bias = saved["bias"][j] if name == "linear" else saved["model"]["head.classify.bias"][m, at]
            assert np.nansum(got) + bias.item() == pytest.approx(want[j], abs=2e-5)
            assert np.isnan(got).sum() == (len(h) % 2 if name == "linear" else 0)       # the one tile between both halves
            if name in ("joint", "per-gene", "mean"):                          # tile by tile
                s = {k: v[m].double().numpy() for k, v in saved["model"].items()}
                x = (h.astype(float) - s["mean"]) * s["scale"]
                w = s["head.classify.weight"][at]
                assert np.allclose(got, [b * (xi @ w) for b, xi in zip(by_hand[m], x)], atol=1e-6)
            if name == "max":
                assert (got[a[0].numpy() == 0] == 0).all()


def test_maps_are_means_over_models_and_keep_their_sum(changed):
    run, h = histcode.load_run(changed / "runs" / "linear"), tiles_in(changed, "s2_1")
    assert len(h) == 11                                                        # odd: each model leaves one tile out
    appliers = [histcode.apply_heads(s, "cpu") for s in run["folds"]]
    attention = [spoken_by_hand(s, h)[1][0] for s in run["folds"]]
    got = histcode.map_scores(run, appliers, [0, 2], h, 0, "attention")
    assert np.allclose(got, sum((a - a.min()) / (a.max() - a.min()) for a in (attention[0], attention[2])) / 2, atol=1e-5)
    for use in ([1], [0, 1, 2]):
        got = histcode.map_scores(run, appliers, use, h, 3, "contribution")
        want = np.mean([spoken_by_hand(run["folds"][m], h)[0][3] for m in use])
        assert np.nansum(got) + np.mean([run["folds"][m]["bias"][3] for m in use]) == pytest.approx(want, abs=2e-5)
        undefined = [{i for i in range(11) if sorted(a).index(a[i]) == 5} for a in (attention[m] for m in use)]
        assert set(np.flatnonzero(np.isnan(got))) == set.intersection(*undefined)


def test_a_diagnosis_is_predicted_by_models_that_did_not_know_the_patient(tmp_path, monkeypatch, capsys):
    cohort = write_slides(tmp_path / "c", 12, labels=("normal", "tumor"))
    monkeypatch.setattr(histcode, "draw_curves", lambda *_: None)
    assert diagnose(cohort) == 0                                               # parts 3 to 5 are never tested
    run = cohort / "runs" / "diagnosis"
    parts = {r["slide"]: int(r["part_0"]) for r in read_csv(run / "folds.csv")}
    learned = lambda part: [f for f in range(3) if part != f]                  # part f tests model f, all others teach it
    capsys.readouterr()
    assert histcode.main(["predict", str(run), "all", "--device", "cpu"]) == 1
    said, own = capsys.readouterr(), [s for s, p in parts.items() if len(learned(p)) == 2]
    assert {p.stem for p in (run / "predict").iterdir()} - {"failed"} == set(own) and 0 < len(own) < len(parts)
    for slide in set(parts) - set(own):
        assert f"failed: {slide}: every model of {run} learned from patient {slide[:3]}: a run with --rotate" in said.err
    shutil.copyfile(run / "HistCode-r0-f1.pt", run / "HistCode-r0-f2.pt")      # which learned from those that f2 tests
    with pytest.raises(tiling.InputError, match="HistCode-r0-f2.pt: not a whole checkpoint of this run .of another run or fold."):
        histcode.main(["predict", str(run), "all", "--device", "cpu"])
    (run / "HistCode-r0-f2.pt").unlink()
    assert diagnose(cohort) == 0
    slide = own[0]
    mixed_up(run, lambda: histcode.main(["predict", str(run), slide, "--device", "cpu"]), "part_0")
    saved = tiling.load_checkpoint(run / f"HistCode-r0-f{parts[slide]}.pt", "cpu")
    row, = read_csv(run / "predict" / f"{slide}.csv")
    logits, a = spoken_by_hand(saved, h := tiles_in(cohort, slide))
    p = np.exp(logits) / np.exp(logits).sum()
    assert np.allclose([float(row["p_normal"]), float(row["p_tumour"])], p, atol=2e-6)
    assert row["predicted"] == ("normal", "tumour")[p.argmax()]
    b = saved["model"]["head.classify.bias"][0]
    added = histcode.contributions(saved, h, a, 0).sum()
    assert added + (b[1] - b[0]).item() == pytest.approx(logits[1] - logits[0], abs=1e-5)
    lost = next(s for s in parts if s not in own)
    assert histcode.main(["predict", str(run), lost, "--all-models", "--device", "cpu"]) == 0
    models = dict(rows=[dict(slide=lost, patient="P")], fold_of=dict(P=[]), folds=[0, 1], folder=run, cohort=cohort)
    with pytest.raises(tiling.InputError, match="every model of .* learned from patient P: .*--rotate.*--all-models"):
        tiling.held_out(models, lost, cohort, False)
    assert tiling.held_out(models, lost, cohort, True) == [0, 1] == tiling.held_out(models, "nobody's", cohort, False)
    with pytest.raises(tiling.InputError, match="--genes UP0: .* is a diagnosis; give a run of expression"):
        histcode.main(["heatmap", str(run), slide, "--genes", "UP0", "--device", "cpu"])
    for pooling in ("MIL-RNN", "DSMIL"):
        assert diagnose(cohort, "--pooling", pooling) == 0
        with pytest.raises(tiling.InputError, match=f"--score contribution: {pooling} is no sum over tiles"):
            histcode.main(["heatmap", str(run), slide, "--pooling", pooling, "--score", "contribution", "--device", "cpu"])
    with pytest.raises(tiling.InputError, match="--pooling max: .* has MIL-RNN, DSMIL, HistCode"):
        histcode.load_run(run, "max")


def test_a_folder_that_is_no_finished_run_is_told(changed, tmp_path):
    run = tmp_path / "c" / "runs" / "r"
    shutil.copytree(changed / "runs" / "linear", run)
    whole = (run / "config.json").read_text()
    config = json.loads(whole)
    del config["id"]                                                           # which holds for what was written with it
    for text, words in (({**config, "version": 0}, "version 0 of this program's files, this one reads version 1"),
                        ({**config, "command": "pretrain"}, "not a run on slides"),
                        ({**config, "command": "diagnose", "bags": "x.csv"}, "not a run on slides")):
        (run / "config.json").write_text(json.dumps(text))
        with pytest.raises(tiling.InputError, match=words):
            histcode.load_run(run)
    (run / "config.json").write_text(whole)
    assert histcode.load_run(run)["cohort"] == changed                         # the copy has no samples.csv: where it was
    with pytest.raises(tiling.InputError, match="--pooling max: .* is a run of expression, which has one"):
        histcode.load_run(run, "max")
    fold_of = histcode.load_run(run)["fold_of"]
    assert sorted(map(tuple, fold_of.values())) == sorted((f,) for f in range(3) for _ in range(3))
    for name in ("report.md", "fold1.pt"):
        data = (run / name).read_bytes()
        (run / name).unlink()
        with pytest.raises(tiling.InputError, match=f"{name} is missing: the run is not finished; the command that began"):
            histcode.load_run(run)
        (run / name).write_bytes(data)
    for folder in (tmp_path, changed, tmp_path / "nowhere"):
        with pytest.raises(tiling.InputError, match="not a run on slides of diagnose or expression; give a folder such as"):
            histcode.load_run(folder)


# ----- Maps of drawn slides, and encoders against each other -----------------------------------------------------------
GENES = "CD3D,CD3E,MKI67,ACTB,ZG16,COL1A1"


def small_encoder(path, seed):
    torch.manual_seed(seed)
    parts = torch.nn.AvgPool2d(8), torch.nn.Conv2d(3, 6, 5, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
    torch.jit.script(torch.nn.Sequential(*parts, torch.nn.Flatten()).eval()).save(path)


def drawn_run(command, cohort, *argv):
    return histcode.main([command, str(cohort), "--tile-um", "25", "--epochs", "2", "--lr", "0.01", "--hidden", "4",
                          "--folds", "3", "--device", "cpu", *argv])


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """A simulated cohort whose patients all have normal tissue, and runs on a small encoder."""
    cohort, patch = tmp_path_factory.mktemp("looked") / "demo", pytest.MonkeyPatch()
    tiling.simulate_cohort(cohort, normal_in=1, workers=2, **SMALL)
    for seed, name in enumerate(("one.pt", "two.pt")):
        small_encoder(cohort.parent / name, seed)
    patch.setattr(histcode, "draw_curves", lambda *_: None)
    one, argv = str(cohort.parent / "one.pt"), ["--genes", GENES]
    assert drawn_run("diagnose", cohort, "--rotate", "--encoder", one) == 0
    assert drawn_run("expression", cohort, "--encoder", one, *argv, "--gmt", str(gmt_of(cohort))) == 0
    argv += ["--model", "attention", "--per-gene", "--name", "per-gene"]
    assert drawn_run("expression", cohort, "--encoder", one, *argv) == 0
    patch.undo()
    return cohort


def gmt_of(cohort):
    path = cohort.parent / "sets.gmt"
    path.write_text("T cells\tx\tCD3D\tCD3E\nproliferation\tx\tMKI67\n")
    return path


def maps_of(cohort, run, *argv):
    return histcode.main(["heatmap", str(cohort / "runs" / run), *argv, "--device", "cpu"])


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_attention_on_the_slide_against_its_outline(looked_at, capsys):
    run, slides = looked_at / "runs" / "diagnosis", ["S001-01A-DX1", "S003-01A-DX1", "S001-11A-DX1"]
    capsys.readouterr()
    assert maps_of(looked_at, "diagnosis", *slides) == 0
    said, part, aucs = capsys.readouterr().out, {r["slide"]: r["part_0"] for r in read_csv(run / "folds.csv")}, []
    for slide in slides:
        folder, (arrays, _) = run / "heatmaps" / "diagnose" / slide, tiling.tiles_of(looked_at, slide)
        rows, coords, tile = read_csv(folder / "tiles.csv"), arrays["coords"], float(arrays["tile"])
        assert [(int(r["x"]), int(r["y"])) for r in rows] == list(map(tuple, coords.tolist())) and len(rows) > 20
        a = np.array([float(r["attention"]) for r in rows])
        saved = tiling.load_checkpoint(run / f"HistCode-r0-f{part[slide]}.pt", "cpu")
        own = spoken_by_hand(saved, np.load(looked_at / "features" / "one" / f"{slide}.npy"))[1][0]
        assert a.min() == 0 and a.max() == 1 and np.allclose(a, (own - own.min()) / np.ptp(own), atol=2e-4)
        shapes = json.loads((folder / "tiles.geojson").read_text())["features"]
        assert len(shapes) == len(rows)
        assert {p.name for p in folder.iterdir()} == {"map.png", "gallery.png", "tiles.csv", "tiles.geojson", "report.md"}
        line, = [x for x in said.splitlines() if x.startswith(f"{slide}, diagnose:")]
        report = (folder / "report.md").read_text()
        assert f"{len(rows)} tiles, 1 of 3 models" in line and "none of which learned from the slide's patient" in report
        if slide.split("-")[1] == "11A":
            assert "outline" not in line and "inside" not in rows[0]
            continue
        region = json.loads((looked_at / "regions" / f"{slide}.geojson").read_text())["features"]
        rings = [[Outline(np.array(ring)) for ring in f["geometry"]["coordinates"]] for f in region]
        inside = [any(sum(r.contains_point(xy) for r in polygon) % 2 for polygon in rings) for xy in coords + tile / 2]
        got = np.array([r["inside"] == "1" for r in rows])
        assert (got == inside).mean() > .98                                    # but for points on an edge
        up, down = a[got], a[~got]
        auc = np.mean([(x > y) + .5 * (x == y) for x in up for y in down])
        cut = tiling.otsu_threshold(a)
        dice, everywhere = 2 * ((a > cut) & got).sum() / ((a > cut).sum() + got.sum()), 2 * got.sum() / (len(a) + got.sum())
        assert f"outline AUC {auc:.3f}, Dice {dice:.3f} (all tiles {everywhere:.3f})" in line
        assert f"AUC {auc:.3f}; Dice" in report
        points = read_csv(looked_at / "points" / f"{slide}.csv")
        held = sum(any(x <= float(p["x"]) < x + tile and y <= float(p["y"]) < y + tile for x, y in coords) for p in points)
        assert abs(sum(int(r["cells: all cells"]) for r in rows) - held) <= .01 * held
        counts = np.array([int(r["cells: tumour"]) for r in rows])
        assert f"tumour R {scipy.stats.pearsonr(a, counts)[0]:.3f}" in line
        aucs.append(auc)
    assert f"diagnose, 2 slides with an outline that divides their tiles: AUC mean {np.mean(aucs):.3f}" in said
    summary = (run / "heatmaps" / "diagnose" / "summary.md").read_text()
    assert summary.startswith("# diagnose: 3 slides") and f"above .5 on {sum(v > .5 for v in aucs)}" in summary
    assert f"| {slides[0]} | " in summary and f" | {aucs[0]:.3f} | " in summary


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_gene_maps_of_a_linear_and_of_per_gene_networks(looked_at, monkeypatch, capsys):
    slide, h = "S002-01A-DX1", np.load(looked_at / "features" / "one" / "S002-01A-DX1.npy")
    monkeypatch.setattr(histcode.ends_of, "__defaults__", (4,))                # so that most tiles are at no end
    assert maps_of(looked_at, "expression", slide, "--genes", "CD3E") == 0
    run = histcode.load_run(looked_at / "runs" / "expression")
    m, = run["fold_of"]["S002"]
    rows = read_csv(run["folder"] / "heatmaps" / "CD3E" / slide / "tiles.csv")
    score = [float(r["contribution"]) for r in rows if r["contribution"]]
    assert len(score) == 8 < len(rows) == len(h)
    assert "8 tiles have one" in (run["folder"] / "heatmaps" / "CD3E" / slide / "report.md").read_text()
    monkeypatch.setattr(histcode, "ENDS", 4)
    want = spoken_by_hand(run["folds"][m], h)[0][1]
    assert sum(score) + run["folds"][m]["bias"][1].item() == pytest.approx(want, abs=1e-3)
    assert maps_of(looked_at, "per-gene", slide, "--genes", "CD3D,ZG16") == 0
    assert maps_of(looked_at, "per-gene", slide, "--genes", "ZG16", "--score", "contribution") == 0
    per = histcode.load_run(looked_at / "runs" / "per-gene")
    a, maps = spoken_by_hand(per["folds"][m], h)[1], per["folder"] / "heatmaps"
    for gene, j in (("CD3D", 0), ("ZG16", 4)):                                 # attention of the gene's own network
        got = [float(r["attention"]) for r in read_csv(maps / gene / slide / "tiles.csv")]
        assert np.allclose(got, (a[j] - a[j].min()) / np.ptp(a[j]), atol=2e-4)
    assert {p.name for p in maps.iterdir()} == {"CD3D", "ZG16", "ZG16-contribution"}
    for argv, words in ((["per-gene", slide], "has a network for each gene: name some with --genes"),
                        (["expression", slide, "--genes", "CD3F"], "no gene 'CD3F'; nearest: CD3"),
                        (["expression", slide, "--score", "contribution"], "to which gene. name it with --genes"),
                        (["expression", "nobody"], "neither a slide file nor a slide of the run")):
        with pytest.raises(tiling.InputError, match=words):
            maps_of(looked_at, *argv)


def test_a_gene_whose_name_is_a_path_is_drawn_nowhere(changed, tmp_path):
    run = tmp_path / "c" / "runs" / "r"
    shutil.copytree(changed / "runs" / "joint", run)
    for path in run.glob("fold*.pt"):
        saved = tiling.load_checkpoint(path, "cpu")
        saved["genes"][1] = "../../x"
        torch.save(saved, path)
    with pytest.raises(tiling.InputError, match="gene '../../x' can't name a map's folder"):
        histcode.main(["heatmap", str(run), "s0_1", "--genes", "../../x", "--device", "cpu"])


def test_the_report_of_a_simulated_cohort_says_what_was_planted(looked_at):
    report = (looked_at / "runs" / "expression" / "report.md").read_text()
    assert "## Against what was planted" in report and "SIMULATED cohort" in report and "| lymphocyte | 2 |" in report
    assert "## Gene sets of the 6 best genes" in report
    assert len(read_csv(looked_at / "runs" / "expression" / "enrichment.csv")) == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_ablation_compares_encoders_and_poolings_on_the_same_folds(looked_at, capsys):
    encoders = [str(looked_at.parent / name) for name in ("one.pt", "two.pt")]
    assert drawn_run("ablation", looked_at, "--genes", GENES, "--encoders", *encoders) == 0
    said, folder = capsys.readouterr().out, looked_at / "runs" / "ablation"
    cells = [(e, p) for e in ("one", "two") for p in ("attention", "mean")]
    table, genes = read_csv(folder / "table.csv"), read_csv(folder / "genes.csv")
    assert [(r["encoder"], r["pooling"]) for r in table] == cells and all(r["genes"] == str(len(genes)) for r in table)
    values, folds = {}, []
    for e, p in cells:
        run = looked_at / "runs" / f"ablation-{e}-{p}"
        own = {r["gene"]: r for r in read_csv(run / "genes.csv")}
        assert all(r[f"{k} {e} {p}"] == own[r["gene"]][k] for r in genes for k in ("R", "spearman"))
        values[f"{e}, {p}"] = np.array([[float(own[r["gene"]][k]) for k in ("R", "spearman")] for r in genes])
        folds.append((run / "folds.csv").read_text())
    assert len(set(folds)) == 1 and (folder / "ablation.png").is_file()
    tested = len(set(np.load(looked_at / "runs" / "ablation-one-mean" / "predictions.npz")["patient"]))
    assert re.search(rf"learned from, without labels: one (not known|\d+ of {tested}); two (not known|\d+ of {tested})\.", (folder / "report.md").read_text())
    for (e, p), r in zip(cells, table):
        v = values[f"{e}, {p}"]
        assert r["mean R ± SD"] == f"{v[:, 0].mean():.3f} ± {v[:, 0].std():.3f}"
        assert r["median R"] == f"{np.median(v[:, 0]):.3f}"
    lines = [line.strip("|") for line in (folder / "report.md").read_text().splitlines() if line[:1] == "|"]
    lines = [[c.strip() for c in line.split("|")] for line in lines if line.count(",") == 2]
    assert [tuple(line[:2]) for line in lines] == [("one, attention", "one, mean"), ("one, attention", "two, attention"),
                                                   ("one, mean", "two, mean"), ("two, attention", "two, mean")]
    compared = 0
    for a, b, *rest in lines:
        d = values[a] - values[b]
        for k in (0, 1):
            p = scipy.stats.wilcoxon(d[:, k])[1] if len(set(np.abs(d[:, k]))) == len(d) and d[:, k].all() else None
            compared += p is not None
            assert rest[2 * k] == f"{d[:, k].mean():+.3f}"
            assert p is None or float(rest[2 * k + 1]) == pytest.approx(p, rel=.06)
    assert compared > 3 and "Genes vary together" in said                      # SciPy approximates the ties of others
    with pytest.raises(tiling.InputError, match="--encoders .* two have the name one"):
        drawn_run("ablation", looked_at, "--encoders", encoders[0], encoders[0])
    before = {p: p.read_bytes() for d in ("expression", "ablation") for p in (looked_at / "runs" / d).rglob("*.*")}
    for name, which, words in (("expression", encoders, "a run with other settings .command expression -> ablation"),
                               ("ablation", encoders[:1], "a run with other settings .encoders .* -> .'one'.")):
        with pytest.raises(tiling.InputError, match=words):
            drawn_run("ablation", looked_at, "--genes", GENES, "--encoders", *which, "--name", name)
    assert all(p.read_bytes() == b for p, b in before.items())


def test_features_made_elsewhere_in_every_verb(tmp_path, capsys):
    """diagnose, expression, ablation, predict and heatmap on CLAM's .pt files, whose coordinates come from its .h5 files."""
    cohort = write_pairs(tmp_path / "c")
    (cohort / "uni" / "pt_files").mkdir(parents=True), (cohort / "slides").mkdir()
    for path in (cohort / "h5").iterdir():
        with h5py.File(path, "a") as h:
            torch.save(torch.from_numpy(h["features"][()]), cohort / "uni" / "pt_files" / f"{path.stem}.pt")
            del h["features"]
            h["coords"][()] = np.stack(np.divmod(np.arange(len(h["coords"])), 4), 1) * 100
    write_pyramid(cohort / "slides" / "s0_1.tif", np.full((900, 900, 3), (225, 150, 185), np.uint8))
    source, small = str(cohort / "uni"), ["--epochs", "2", "--lr", "0.01", "--hidden", "4", "--device", "cpu", "--folds", "3"]
    assert histcode.main(["diagnose", str(cohort), "--rotate", "--features", source, *small]) == 0
    assert histcode.main(["expression", str(cohort), "--features", source, *small]) == 0
    shutil.copytree(cohort / "uni", cohort / "conch")
    assert histcode.main(["ablation", str(cohort), "--encoders", source, str(cohort / "conch"), *small]) == 0
    table = {(r["encoder"], r["pooling"]): r["median R"] for r in read_csv(cohort / "runs" / "ablation" / "table.csv")}
    assert set(e for e, _ in table) == {"uni", "conch"} and table["uni", "mean"] == table["conch", "mean"]
    for run in ("diagnosis", "expression"):
        assert histcode.main(["predict", str(cohort / "runs" / run), "all", "--device", "cpu"]) == 0
    heatmap = lambda: histcode.main(["heatmap", str(cohort / "runs" / "diagnosis"), "s0_1", "--device", "cpu", "--tile-um", "50"])
    capsys.readouterr()
    assert heatmap() == 1 and "s0_1.pt has no coordinates: a map needs them" in capsys.readouterr().err
    (cohort / "h5").rename(cohort / "uni" / "patches")                         # only coordinates in them
    assert heatmap() == 0
    shapes = json.loads((cohort / "runs" / "diagnosis" / "heatmaps" / "diagnose" / "s0_1" / "tiles.geojson").read_text())["features"]
    assert len(shapes) == 9 and shapes[1]["geometry"]["coordinates"][0][:2] == [[0, 100], [100, 100]]


# =====================================================================================================================
# README and --help
# =====================================================================================================================
def test_readme_names_symbols_and_tests_that_exist():
    rows = re.findall(r"^\| (?!paper|---|file|step)(.*?) \| (.*?) \| (.*?) \|$", Path(__file__).with_name("README.md").read_text().split(
        "## Where to find what")[1], re.M)
    assert len(rows) >= 12
    for _, symbols, tests in rows:
        for module, name in re.findall(r"`(\w+)\.(\w+)`", symbols):
            assert hasattr(dict(tiling=tiling, stats=stats, he2rna=he2rna, histcode=histcode)[module], name), name
        assert all(callable(globals().get(name)) for name in re.findall(r"`(\w+)`", tests)) and "`" in symbols and "`" in tests
    assert [n for n in re.findall(r"`(test_\w+)`", Path(__file__).with_name("README.md").read_text()) if n not in globals()] == []


def test_readme_has_a_row_for_every_section_equation_figure_and_table():
    text = Path(__file__).with_name("README.md").read_text().split("## Where to find what")[1]
    places = re.findall(r"^\| (.*?) \| .*? \| .*? \|$", text, re.M)
    cut = next(i for i, p in enumerate(places) if p.startswith("HistCode Methods"))
    found = [{(kind[0].lower(), n) for kind, ns in re.findall(r"(eqs?\.|Figs?\.|Tables?) ((?:S?\d+(?:[a-e]\b|[a-e]–[a-e]|)(?:, [a-e]\b)*(?:, | and |))+)", "\n".join(part))
              for n in re.findall(r"S?\d+", ns)} for part in (places[:cut], places[cut:])]
    figures = lambda *names: {("f", str(n)) for n in names}
    assert found[0] >= figures(*range(1, 6), "S1", "S2", "S3", "S4") | {("t", n) for n in ("1", "2", "S4")}
    assert found[1] >= figures(*range(1, 12)) | {("t", "1")} | {("e", str(n)) for n in range(1, 9)}
    for part, sections in ((places[:cut], ("TCGA Pan-Cancer Dataset", "Cleaning", "Preprocessing", "Model architecture", "Training and evaluation", "GSEA signatures",
                                           "Visual spatialization", "MSI status", "Statistics")),
                           (places[cut:], ("Whole slide image", "Slide annotation", "RNA-seq dataset", "Cancer driver genes", "Image processing", "Differential expression analysis",
                                           "HistCode framework", "Contrastive learning", "Feature aggregation", "Tumor diagnosis", "Differential expression prediction",
                                           "Results, differential expression", "attentive pooling", "fold change", "well-predicted genes", "interpretability"))):
        assert [s for s in sections if not any(s in p for p in part)] == []


def disagreements(program, folder=Path(__file__).parent):
    """Rows of README's table of a program's choices: what paper and code say, what is done here, what the committed audit found."""
    values = {}
    for r in read_csv(folder / f"audit_{program.__name__}.csv"):
        values.setdefault((r["command"], r["choice"]), {}).setdefault(r["measure"], []).append(float(r["change"]))
    effect = lambda key: "; ".join(f"{m} {tiling.over_seeds(v, 1 if m in tiling.COUNTS else 3, '+')}" for m, v in values[key].items())
    return [f"| `{command} {name}` | {paper} | {code} | {ours} | {effect((command, name)) if (command, name) in values else 'not measured'} |"
            for command, name, paper, code, ours, _, _ in program.CHOICES]


@pytest.mark.parametrize("program", [he2rna, histcode])
def test_readmes_disagreements_are_the_choices_with_the_effects_of_the_committed_audit(program):
    lines = Path(__file__).with_name("README.md").read_text().splitlines()
    rows = disagreements(program)
    assert [r for r in rows if r not in lines] == []
    unseen = {("train", "merged")} if program is he2rna else {(c, name) for c in histcode.UNSEEN for name in histcode.UNSEEN[c]}   # says each audit
    assert {(c, name) for (c, name, *_), r in zip(program.CHOICES, rows) if "not measured" in r} == unseen | {
        (c, name) for c, name, *_ in program.CHOICES if name.startswith("--")}
    default = {r["measure"]: r for r in read_csv(Path(__file__).with_name(f"audit_{program.__name__}.csv")) if r["choice"] == "default"}
    assert default and all(float(r["change"]) == 0 for r in default.values())


@pytest.mark.parametrize("program", [tiling, he2rna, histcode])
def test_help_of_every_verb_fits_two_screens_and_states_every_default(program, monkeypatch):
    asked = []
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda parser, file=None: asked.append(parser))

    def parser_of(*verb):
        with pytest.raises(SystemExit):
            program.main([*verb, "--help"])
        return asked.pop()
    verbs = list(next(x for x in parser_of()._actions if x.dest == "verb").choices)
    assert len(verbs) > 5
    for verb in verbs:
        parser = parser_of(verb)
        lines = parser.format_help().splitlines()
        assert len(lines) <= 100 and lines[0].startswith(f"usage: {program.__name__}.py {verb} [options]") and parser.description, verb
        for x in parser._actions:
            silent = x.dest in ("mpp", "min_r", "at_least") or "made elsewhere" in (x.help or "")             # numbers that nothing replaces
            free = x.nargs == 0 or x.default in (None, []) and (silent or x.type not in (int, float))
            assert x.help and (free or "default" in x.help), (verb, x.dest)
            assert not (x.required and x.option_strings) or f"{x.option_strings[0]} " in lines[0], (verb, x.dest)


# =====================================================================================================================
# Benchmarks: the direct way stands here, ours beside it, measured in turn in one run
# =====================================================================================================================
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
        tiling.simulate_cohort(tmp, patients=4)
        path = sorted((tmp / "slides").iterdir())[0]
        o = options()
        tiling.make_tiles(tmp, [path.stem], o)
        tiles, _ = tiling.tiles_of(tmp, path.stem)
        runs, tile, slide = tiling.tile_runs(tiles["coords"], float(tiles["tile"])), float(tiles["tile"]), tiling.open_slide(path)
        read = lambda run: tiling.read_tiles(slide, tiles["coords"][run[0]:run[1]], tile)
        pixels = np.concatenate([read(r) for r in runs])[:32]
        device = tiling.pick_device()
        net = tiling.load_weights(4, "random", 0).to(device)
        x = tiling.normalise(torch.from_numpy(pixels)).contiguous().to(device)
        with torch.inference_mode():
            want = net(x).cpu().numpy()
        for precision in ("float32", "bfloat16"):
            fast = tiling.prepare_encoder(copy.deepcopy(net), device, precision)

            def plain():
                with torch.inference_mode():
                    return net(x).cpu()
            a, b, ratio = pairs(lambda: tiling.encode(fast, [pixels]), plain)
            print(f"encoder {precision} on {device}: {len(pixels) / a:.1f} tiles/s, plain eager float32 {len(pixels) / b:.1f}: {ratio:.2f} times; "
                  f"features within {relative(tiling.encode(fast, [pixels]), want):.1e}")
        waited, total = [0.0], time.perf_counter()

        def chunks():
            ahead = tiling.ordered_map(read, runs * 6, os.cpu_count())
            while True:
                start = time.perf_counter()
                item = next(ahead, None)
                waited[0] += time.perf_counter() - start
                if item is None:
                    return
                yield item[1]
        n = len(tiling.encode(fast, chunks()))
        total = time.perf_counter() - total
        print(f"encoder {precision} from the slide: {n / total:.1f} tiles/s, {waited[0] / total:.1%} of the time waiting for tiles")
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def peak(function):
    """Memory in GiB that a call takes beyond what was there before, and its result."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before, result = torch.cuda.memory_allocated(), function()
        return (torch.cuda.max_memory_allocated() - before) / 2 ** 30, result
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    seen, before, stop = [], resident(), threading.Event()
    def watch():
        while not stop.wait(.002):
            seen.append(resident())
    thread = threading.Thread(target=watch)
    thread.start()
    result = function()
    stop.set(), thread.join()
    return (max(seen, default=before) - before) / 2 ** 30, result


def bench_topk():
    """Whole steps (hidden layers, loss, backward, Adam) and evaluation, at full scale and on super-tiles, against the direct way."""
    genes, device = 30839, tiling.pick_device()
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for B, T, ks in ((16, 100, he2rna.KS_SUPERTILES), (1, 8000, he2rna.KS_TILES)):
        torch.manual_seed(0)
        model = he2rna.HE2RNA(2048, genes, ks=ks).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=0)                 # all of Adam's work, and the same step each time
        x, y = torch.rand(B, T, 2048, device=device), torch.randn(B, genes, device=device)
        mask = torch.ones(B, T, dtype=torch.bool, device=device)

        def step(predict, k, precision="float32"):
            torch.manual_seed(1)                                               # the same dropout
            model.precision = precision
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
            fast, half, slow, *ratio = pairs(lambda: step(model, k), lambda: step(model, k, "bfloat16"), plain, repeats=3)
            ratios.append(1 / np.array(ratio))
            print(f"  k {k:5d}: {fast:5.2f} s, bfloat16 selection {half:5.2f} s, direct {slow:5.2f} s: {ratios[-1][0]:.2f} and {ratios[-1][1]:.2f} of "
                  f"its time; {ours:.1f} GiB, direct {theirs:.1f} GiB; loss within {abs(loss / wanted - 1):.0e}", flush=True)
        print("  mean over the list: {:.2f} and {:.2f} with bfloat16 selection".format(*np.mean(ratios, 0)))
        low = [r for k, r in zip(ks, ratios) if k <= 200]
        print("  mean of k <= 200:   {:.2f} and {:.2f}".format(*np.mean(low, 0)))
        fast, slow, ratio = pairs(lambda: evaluate(lambda: model(x, mask)),
                                  lambda: evaluate(lambda: torch.stack([direct(model, x, mask, k) for k in ks]).mean(0)), repeats=3)
        print(f"  all {len(ks)} k: {fast:.2f} s, direct {slow:.2f} s: {1 / ratio:.2f} of its time", flush=True)


def bench_memory():
    """Training on 4 slides of 8,000 tiles, features float16 and memory-mapped, all 30,839 genes: the whole process's peak (run it alone)."""
    tmp, device = Path(os.environ.get("TMPDIR", "/tmp")) / f"bench-{os.getpid()}", tiling.pick_device()
    try:
        rng, slides = np.random.default_rng(0), [f"s{i}" for i in range(4)]
        for s in slides:
            tiling.save_file(tmp / "tiles" / f"{s}.npz", lambda f: np.savez(f, coords=tile_cloud(8000), settings=np.array("{}")))
            tiling.save_file(tmp / "features" / "resnet50" / f"{s}.npy", lambda f: np.save(f, rng.random((8000, 2048), np.float32).astype(np.float16)))
        torch.manual_seed(0)
        model = he2rna.HE2RNA(2048, 30839, ks=he2rna.KS_TILES).to(device).train()
        optimizer, bags = torch.optim.Adam(model.parameters()), he2rna.from_disk(tmp, "resnet50", slides)
        for k in (10, 200, 2000, 5000):
            start = time.perf_counter()
            for _, x, mask in bags(torch.arange(4).split(4)):
                loss = model(x.to(device).float(), mask.to(device), k).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                print(f"  k {k:5d}: loss {loss.item():.4f}, {time.perf_counter() - start:.1f} s", flush=True)
        peak_gib = torch.cuda.max_memory_allocated() / 2 ** 30 if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
        print(f"memory: 4 x 8,000 x 2,048 -> 30,839 genes, training: {peak_gib:.1f} GiB at most, everything included, on {device}")
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def bench_table():
    """The per-gene table (R, three nulls' p, both corrections, genes.csv) of 28 cancers, 30,839 genes, 10,500 slides."""
    rng, n, genes = np.random.default_rng(0), 10500, 30839
    y, fold, projects = rng.random((n, genes), np.float32), np.arange(n) % 5, np.array([f"P{i % 28:02d}" for i in range(n)])
    prediction = rng.random((n, genes), np.float32)
    untrained = {p: rng.normal(0, .05, (3, genes)).astype(np.float32) for p in set(projects)}
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"genes-{os.getpid()}.csv"
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = he2rna.evaluate(prediction, y, fold, projects, 5, untrained, "untrained")
    judged = time.perf_counter() - start
    he2rna.write_genes(path, [f"G{i}" for i in range(genes)], results)
    print(f"table: 28 cancers x {genes:,} genes, {n:,} slides: {judged:.1f} s, and genes.csv {time.perf_counter() - start - judged:.1f} s; "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20:.1f} GiB at most, {before / 2 ** 20:.1f} before")
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
    print(f"random lists, {len(sizes)} x {cancers} x {n_lists:,} of {m:,} genes: {ours:.1f} s, the loop about {loop:.0f} s: {loop / ours:.0f} times")


def bench_msi(patients=441, genes=28334):
    """One split of the MSI study at the paper's size, three quarters in A, all arms; then its classifiers alone, and one after another."""
    rng, high, device = np.random.default_rng(0), np.arange(patients) % 20 < 3, tiling.pick_device()
    d = dict(x=rng.normal(size=(patients, 2048)).astype(np.float32), y=rng.random((patients, genes), np.float32), has_y=np.ones(patients, bool),
             patients=np.array([f"P{i}" for i in range(patients)]), projects=np.full(patients, "COAD"), high=high)
    d["x"][:, :40] += high[:, None]
    o, plain, calls, cores = argparse.Namespace(code=(), folds=3, repeats=10, seed=0), he2rna.train_networks, [], torch.get_num_threads()

    def keep(pool, sizes, activations, inputs, trains, seeds, *more):
        done = dict(plain(pool, sizes, activations, inputs, trains, seeds, *more)) if sizes[-1] == 1 else plain(pool, sizes, activations, inputs, trains, seeds, *more)
        if sizes[-1] == 1:
            calls.append((sizes, activations, [inputs(m) for m in range(len(trains))], trains, seeds, *more, done))
            done = iter(done.items())
        return done
    in_a, start = he2rna.hospital_a(high, Fraction(3, 4), rng), time.perf_counter()
    he2rna.compare_arms(d, in_a, tuple(he2rna.MSI_ARMS), o, (0,), device)
    print(f"MSI, {patients} patients, {genes:,} genes, 3/4 in A, 10 x 3 folds, on {device}: one split, all arms {time.perf_counter() - start:.1f} s", flush=True)
    he2rna.train_networks = keep
    he2rna.compare_arms(d | dict(y=d["y"][:, :9]), in_a, tuple(he2rna.MSI_ARMS), o, (0,), device)
    he2rna.train_networks, total = plain, np.zeros(2)
    with ThreadPoolExecutor(cores if device.type == "cpu" else 1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for sizes, activations, made, trains, seeds, epochs, batch, _, take, done in sorted(calls, key=lambda c: len(c[0])):
            start, difference = time.perf_counter(), 0
            again = dict(plain(pool, sizes, activations, lambda m: made[m], trains, seeds, epochs, batch, device, take))
            ours = time.perf_counter() - start
            start = time.perf_counter()
            for m, rows in enumerate(trains):
                scores = one_by_one(sizes, activations, *made[m], rows, seeds[m], epochs, batch)[-1]
                difference = max(difference, np.abs(scores[~in_a, 0].numpy() - done[m]).max(), np.abs(again[m] - done[m]).max())
            total += ours, time.perf_counter() - start
            print(f"  {len(seeds)} classifiers {'-'.join(map(str, sizes))}: {ours:.2f} s, one by one (on the CPU) {time.perf_counter() - start:.1f} s; "
                  f"scores within {difference:.0e}", flush=True)
    print(f"  all {sum(len(c[4]) for c in calls)}: {total[0]:.1f} s, one by one {total[1]:.1f} s: {total[1] / total[0]:.1f} times")


def bench_macenko():
    """One tile of 256 pixels to the reference's colours: one matrix and a table, against the formula in float64 with least squares; one thread."""
    found, tiles = (STAIN_PAIRS["bluish"], np.array([3.3, 1.2])), np.stack([stained(STAIN_PAIRS["bluish"], n=65536, seed=s)[0] for s in range(16)])

    def formula():
        for tile in tiles:
            c = np.linalg.lstsq(found[0].T, -np.log((tile.astype(float) + 1) / 240).T, rcond=None)[0]
            (240 * np.exp(-(c * (tiling.REFERENCE_TOP / found[1])[:, None]).T @ tiling.REFERENCE)).clip(0, 255).astype(np.uint8)
    a, b, ratio = pairs(lambda: tiling.macenko(tiles.reshape(16, 256, 256, 3), found), formula)
    c = pairs(lambda: tiling.macenko_stains(tiling.optical_density(tiles.reshape(-1, 3)[:262144])))[0]
    print(f"macenko: {a / 16 * 1e3:.2f} ms a tile of 256 pixels, the formula {b / 16 * 1e3:.2f}: {ratio:.1f} times; a slide's stains from 64 tiles {c * 1e3:.0f} ms")


def bench_kmeans():
    """8,000 tile locations, 100 clusters: ours against scikit-learn's KMeans(n_init=1) (scipy's kmeans2 without it)."""
    points = tile_cloud(8000).astype(float)
    try:
        from sklearn.cluster import KMeans
        name, other = "scikit-learn", lambda s: KMeans(100, n_init=1, random_state=s).fit(points).cluster_centers_
    except ImportError:
        name, other = "scipy kmeans2", lambda s: scipy.cluster.vq.kmeans2(points, 100, minit="++", seed=s, iter=100)[0]
    seeds = [itertools.cycle(range(10)), itertools.cycle(range(10))]             # how many iterations it takes depends on the start
    a, b, ratio = pairs(lambda: tiling.kmeans(points, 100, next(seeds[0])), lambda: other(next(seeds[1])), repeats=30)
    ours, theirs = (np.mean([inertia(points, c) for c in cs]) for cs in ([tiling.kmeans(points, 100, s)[0] for s in range(9)], [other(s) for s in range(9)]))
    print(f"kmeans 8,000 points, k = 100: {a * 1e3:.0f} ms, {name} {b * 1e3:.0f} ms: {ratio:.2f} times; inertia {ours / theirs:.4f} of its")


def bench_adco():
    """A step of pretraining at batch 64 (views of 224 px from tiles of 256, 65,536 negatives); the bank's gradient against autograd (memory: run it alone)."""
    device, batch, K = tiling.pick_device(), 64, histcode.BANK_SIZE
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    o = argparse.Namespace(precision=tiling.pick_precision("auto", device), tau=.12, bank_tau=.12, bank_lr=.3, bank_momentum=.9, bank_decay=1e-4,
                           in_batch=False, symmetric=False, momentum_encoder=histcode.MOMENTUM_ENCODER)
    torch.manual_seed(0)
    bank, (q, k) = torch.randn(K, 128, device=device), (F.normalize(torch.randn(batch, 128, device=device), dim=1) for _ in range(2))

    def closed():
        g = histcode.bank_gradient(q, k, bank, .12)
        synchronize()
        return g

    def autograd():
        w = bank.detach().requires_grad_()
        g, = torch.autograd.grad(histcode.info_nce(q, k, w, .12), w)
        synchronize()
        return g
    (ours, a), (theirs, b) = peak(closed), peak(autograd)
    fast, slow, ratio = pairs(closed, autograd)
    print(f"bank gradient of {K:,} negatives, batch {batch}, on {device}: {fast * 1e3:.0f} ms, autograd {slow * 1e3:.0f} ms: {ratio:.1f} times; "
          f"{ours * 1024:.0f} MiB, autograd {theirs * 1024:.0f} MiB; within {relative(a.cpu(), b.cpu()):.0e}", flush=True)
    tiles = (pictures(batch, 256) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    model = histcode.Embedder(tiling.ResNet50(3)).to(device, memory_format=torch.channels_last).train()
    keys, velocity = copy.deepcopy(model).requires_grad_(False), torch.zeros_like(bank)
    optimizer = torch.optim.SGD(model.parameters(), 1e-9, .9)                  # all of its work, and the same step each time

    def draw():
        views = list(histcode.two_views(tiles.to(device), 224, batch, 0, 1, 0, 1, 0))
        synchronize()
        return views

    def step():
        histcode.train_step(model, keys, optimizer, bank, velocity, draw(), o)
        synchronize()

    def climb():
        histcode.bank_step(bank, velocity, histcode.bank_gradient(q, k, bank, .12), 1e-9, .9, 1e-4)
        synchronize()
    memory, _ = peak(step)
    views, bank_part, whole, *_ = pairs(draw, climb, step, repeats=3)
    print(f"adco step, batch {batch}, views of 224 px, {o.precision} on {device}: {whole:.2f} s ({batch / whole:.1f} tiles/s), {memory:.1f} GiB; "
          f"views {views / whole:.1%}, bank step {bank_part / whole:.1%} of the time")


def bench_attention(slides=2000, tiles=1000, D=1024):
    """An epoch of gated attention over 2,000 slides x 1,000 tiles x 1,024 features (float16, on disk): time, memory, reads; and the plain loop."""
    device, rng, reads, y = tiling.pick_device(), np.random.default_rng(0), np.zeros(slides, int), np.arange(slides) % 2
    o = argparse.Namespace(lr=1e-4, weight_decay=1e-5, epochs=1, batch=1, embed=(), hidden=256)
    with tempfile.TemporaryDirectory() as tmp:
        for i in range(slides):
            np.save(f"{tmp}/{i}.npy", rng.random((tiles, D), np.float32).astype(np.float16))
        parts = np.split(np.arange(slides), [int(.8 * slides), int(.9 * slides)])
        bag = lambda i: (np.add.at(reads, i, 1), np.load(f"{tmp}/{i}.npy", mmap_mode="r"))[1]
        model = histcode.draw_model("HistCode", [(2, np.ones(D), np.full(D, 2 / 3))], [0], 0, o)

        def ours(parts=parts):
            histcode.train_heads([model], bag, lambda rows: torch.from_numpy(y[rows]), histcode.cross_entropy, [parts], [0], o, device)

        def plain():                                                           # a Dataset of float32 slides, a step for each
            net = copy.deepcopy(model).to(device)
            optimizer = torch.optim.Adam(net.parameters(), 1e-4, weight_decay=1e-5)
            for i in range(50):
                h = torch.from_numpy(np.load(f"{tmp}/{i}.npy").astype(np.float32))[None].to(device)
                out = net(h, torch.ones(h.shape[:2], dtype=torch.bool, device=device))[0][:, 0]
                optimizer.zero_grad()
                F.cross_entropy(out, torch.from_numpy(y[i:i + 1]).to(device)).backward()
                optimizer.step()
            with torch.no_grad():
                for i in range(50, 60):
                    h = torch.from_numpy(np.load(f"{tmp}/{i}.npy").astype(np.float32))[None].to(device)
                    net(h, torch.ones(h.shape[:2], dtype=torch.bool, device=device))[0].cpu()
        ours_60, plain_60, ratio = pairs(lambda: ours([np.arange(50), np.arange(50, 55), np.arange(55, 60)]), plain, repeats=3)
        reads[:] = 0
        start = time.time()
        memory, _ = peak(ours)
        print(f"gated attention, {slides:,} x {tiles:,} x {D:,} float16 on {device}: an epoch (80 % learned from, 20 % judged) {time.time() - start:.0f} s, "
              f"each slide read {reads.min()} to {reads.max()} times, {memory:.2f} GiB; 60 slides {ours_60:.2f} s, plain loop {plain_60:.2f} s: "
              f"{ratio:.2f} times")


if __name__ == "__main__":
    benches = {name[6:]: f for name, f in list(globals().items()) if name.startswith("bench_")}
    if sys.argv[1:2] != ["bench"] or set(sys.argv[2:]) - set(benches):
        sys.exit(f"usage: python test_all.py bench [{' | '.join(benches)}]   (tests: python -m pytest test_all.py)")
    for name in sys.argv[2:] or benches:
        benches[name]()
