"""test_all"""

import colorsys
import gzip
import itertools
import json
import math
import os
import warnings
from fractions import Fraction

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import torch
import torch.nn.functional as F
from matplotlib.path import Path as Outline
from PIL import Image
from scipy import ndimage
from scipy.spatial import Delaunay

import he2rna
import histcode
import stats
import tiling
from lab.cohort.expression import read_expression
from lab.cohort.slides import open_slide
from lab.exchange.qupath import tiles_geojson
from lab.histcode.pretraining import COLLAPSED
from lab.tests.helpers import (
    H_E,
    MODELS,
    REAL_DATA,
    STAIN_PAIRS,
    bags,
    degrees_between,
    folds_in,
    inertia,
    learn,
    painted,
    pictures,
    planted_bags,
    random_list_loop,
    read_csv,
    relative,
    ridge_at,
    same,
    spoken_by_hand,
    stained,
    star,
    swap,
    three_splits,
    tile_cloud,
    tiles_in,
)

INK = {
    "blue": (30, 60, 170),
    "green": (20, 120, 60),
    "red": (205, 20, 30),
    "black": (15, 15, 18),
    "cyan": (20, 150, 180),
}


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_otsu_maximises_the_variance_between_classes():
    rng = np.random.default_rng(0)
    for values in (
        rng.normal(0, 1, 500),
        np.r_[rng.normal(0, 1, 900), rng.normal(6, 2, 100)],
        rng.integers(0, 256, 999).astype(np.uint8),
        np.r_[rng.integers(3, 9, 50), rng.integers(200, 250, 9)].astype(np.uint8),
    ):
        t = tiling.otsu_threshold(values)

        def between(cut):
            low, high = values[values <= cut].astype(float), values[values > cut].astype(float)
            return (
                len(low) * len(high) * (low.mean() - high.mean()) ** 2
                if len(low) and len(high)
                else 0
            )

        best = max(between(c) for c in np.linspace(values.min(), values.max(), 256))
        assert between(t) >= 0.99 * best


def test_otsu_equals_scikit_image():
    filters = pytest.importorskip("skimage.filters")
    rng = np.random.default_rng(1)
    for values in (
        rng.gamma(2, 3, 5000),
        rng.normal(0, 1, 300).astype(np.float32),
        rng.poisson(9, (40, 50)).astype(np.uint8),
    ):
        assert tiling.otsu_threshold(values) == pytest.approx(
            filters.threshold_otsu(values), rel=1e-6, abs=1e-5
        )


def test_otsu_of_one_value():
    assert (
        tiling.otsu_threshold(np.full(7, 3.5)) == 3.5
        and tiling.otsu_threshold(np.full(7, 200, np.uint8)) == 200
    )


@pytest.mark.parametrize(
    "background",
    [(243, 243, 243), (255, 255, 255), (190, 190, 190), (240, 200, 222), (235, 232, 215)],
)
@pytest.mark.parametrize(
    "light",
    [None, lambda x, y: 1 - 0.3 * x, lambda x, y: 1 - 0.35 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)],
)
def test_tissue_is_found_on_any_background(background, light):
    rgb, truth = painted(background, light)
    assert overlap(tiling.tissue_mask(rgb), truth) > 0.9


@pytest.mark.parametrize("noise", [0, 1, 4])
@pytest.mark.parametrize(
    "color", [(255, 255, 255), (243, 243, 243), (128, 128, 128), (240, 200, 222), (2, 2, 2)]
)
def test_an_empty_slide_has_no_tissue(color, noise):
    rng = np.random.default_rng(0)
    light = 1 - 0.2 * np.linspace(0, 1, 120)[None, :, None]
    rgb = (
        (np.array(color) * light + rng.normal(0, noise, (90, 120, 3))).clip(0, 255).astype(np.uint8)
    )
    assert tiling.tissue_mask(rgb).sum() == 0


@pytest.mark.parametrize("ink", INK)
def test_pen_is_not_tissue(ink):
    rgb, truth = painted()
    rgb[10:18, 20:190] = rgb[5:150, 185:192] = INK[ink]  # strokes beside the tissue
    mask = tiling.tissue_mask(rgb)
    assert (
        overlap(mask, truth) > 0.88
        and not mask[11:17, 120:190].any()
        and not mask[20:150, 186:191].any()
    )


@pytest.mark.parametrize("dye", H_E)
def test_every_stain_is_tissue(dye):
    rgb = np.full((60, 80, 3), 243, np.uint8)
    rgb[20:50, 20:60] = H_E[dye]
    assert tiling.tissue_mask(rgb)[24:46, 24:56].all()


def test_black_border_and_what_was_not_scanned_are_not_tissue():
    rgb, truth = painted()
    rgb[:12], rgb[:, :9] = 3, 0
    valid = np.ones(truth.shape, bool)
    valid[:, 130:] = False  # as MIRAX slides: half of them never scanned
    mask = tiling.tissue_mask(rgb, valid)
    assert not mask[:12].any() and not mask[:, :9].any() and not mask[:, 130:].any()
    assert overlap(mask[14:, 12:128], truth[14:, 12:128]) > 0.88


def test_grid_equals_counting_pixels():
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.random((50, 70)), 4) > 0.5
    fine = np.kron(mask, np.ones((40, 40)))  # brute force on a 40-fold finer picture
    for scale, tile in ((4, 4 * 7), (4, 29.3), (2.5, 20.0)):
        size, step = (round(70 * scale), round(50 * scale)), 40 / scale
        got = {tuple(c) for c in tiling.tile_grid(mask, size, tile, 0.5)}
        full = {
            (int(ix * tile), int(iy * tile)): fine[
                round(iy * tile * step) : round((iy + 1) * tile * step),
                round(ix * tile * step) : round((ix + 1) * tile * step),
            ].mean()
            for iy in range(int(size[1] / tile + 1e-6))
            for ix in range(int(size[0] / tile + 1e-6))
        }
        assert (
            {c for c, s in full.items() if s > 0.51}
            <= got
            <= {c for c, s in full.items() if s > 0.49}
        )
        assert 10 < len(got) < len(full) - 10 and max(x + tile for x, _ in got) <= size[0] + 1e-6
        assert tiling.tile_grid(mask, size, tile).dtype == np.int32


def test_grid_samples_by_seed_and_keeps_the_order():
    mask = np.ones((30, 30), bool)
    every = tiling.tile_grid(mask, (300, 300), 10)
    some = tiling.tile_grid(mask, (300, 300), 10, max_tiles=100, seed=1)
    assert len(every) == 900 and len(some) == 100
    place = {tuple(c): i for i, c in enumerate(every)}
    order = [place[tuple(c)] for c in some]
    assert (
        order == sorted(set(order)) and np.ptp(order) > 700
    )  # a sample of all, not the first rows
    assert (tiling.tile_grid(mask, (300, 300), 10, max_tiles=100, seed=1) == some).all()
    assert (tiling.tile_grid(mask, (300, 300), 10, max_tiles=100, seed=2) != some).any()
    assert (
        len(tiling.tile_grid(mask, (5, 300), 10))
        == len(tiling.tile_grid(~mask, (300, 300), 10))
        == 0
    )


@pytest.mark.parametrize("mpp, level", [(0.5, 0), (0.25, 1), (0.2495, 1), (0.12, 2), (0.6, 0)])
def test_tiles_equal_a_direct_resample_of_the_full_picture(smooth_slide, mpp, level):
    path, rgb = smooth_slide
    slide, tile = open_slide(path), 112 / mpp
    assert tiling.best_level(slide, tile / 224)[0] == level
    nx = int(1800 / tile)
    coords = np.array([[int(i * tile), int(tile * 0.3)] for i in range(nx)])
    got = tiling.read_tiles(slide, coords, tile)
    for (x, y), g in zip(coords, got):
        want = np.asarray(
            Image.fromarray(rgb).resize(
                (224, 224), Image.Resampling.LANCZOS, (x, y, x + tile, y + tile)
            )
        )
        assert (
            np.abs(g.astype(int) - want)[4:-4, 4:-4].mean() < 1.0
        )  # the rim may not look beyond the tile
        assert (
            g == tiling.read_tiles(slide, [(x, y)], tile)[0]
        ).mean() > 0.999  # alone or in a run


def test_runs_hold_neighbours_only():
    coords = np.array([(0, 0), (10, 0), (20, 0), (40, 0), (50, 0), (0, 10), (10, 10)])
    assert (
        tiling.tile_runs(coords, 10.3) == [(0, 3), (3, 5), (5, 7)]
        and tiling.tile_runs(coords[:0], 10) == []
    )
    assert (
        max(b - a for a, b in tiling.tile_runs(np.array([(i * 10, 0) for i in range(99)]), 10))
        == tiling.RUN_TILES
    )


def test_resnet50_is_torchvisions():
    net = tiling.ResNet50()
    names = net.state_dict()
    assert len(names) == 320 and sum(p.numel() for p in net.parameters()) == 25_557_032
    assert (
        sum(p.numel() for n, p in net.named_parameters() if not n.startswith("fc.")) == 23_508_032
    )
    for name, shape in (
        ("conv1.weight", (64, 3, 7, 7)),
        ("layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        ("bn1.num_batches_tracked", ()),
        ("layer2.0.downsample.1.running_var", (512,)),
        ("layer3.5.conv2.weight", (256, 256, 3, 3)),
        ("layer4.2.bn3.bias", (2048,)),
        ("fc.weight", (1000, 2048)),
    ):
        assert tuple(names[name].shape) == shape
    assert tiling.ResNet50(3)(torch.zeros(1, 3, 64, 64)).shape == (1, 1024)


def test_kmeans_is_as_good_as_the_references():
    points = tile_cloud(3000).astype(float)
    ours = [tiling.kmeans(points, 60, s) for s in range(5)]
    theirs = [
        scipy.cluster.vq.kmeans2(points, 60, minit="++", seed=s, iter=100)[0] for s in range(5)
    ]
    assert np.mean([inertia(points, c) for c, _ in ours]) < 1.01 * np.mean(
        [inertia(points, c) for c in theirs]
    )
    for centers, labels in ours:
        assert np.bincount(labels, minlength=60).min() > 0 and centers.shape == (60, 2)
        for j in range(60):
            assert np.allclose(
                centers[j], points[labels == j].mean(0)
            )  # each centre is its points' mean
        d2 = ((points[:, None] - centers[None]) ** 2).sum(2)
        assert (
            d2[np.arange(3000), labels] > d2.min(1)
        ).mean() < 0.02  # the last small move apart, the nearest is its own
    cluster = pytest.importorskip("sklearn.cluster")
    sk = [cluster.KMeans(60, n_init=1, random_state=s).fit(points).inertia_ for s in range(5)]
    assert np.mean([inertia(points, c) for c, _ in ours]) < 1.01 * np.mean(sk)


def test_kmeans_edges():
    a, b = tiling.kmeans(tile_cloud(500), 20, 3), tiling.kmeans(tile_cloud(500), 20, 3)
    assert (
        (a[0] == b[0]).all()
        and (a[1] == b[1]).all()
        and (tiling.kmeans(tile_cloud(500), 20, 4)[0] != a[0]).any()
    )
    for points, k, want in (
        ([[1, 2]], 5, 1),
        ([[0, 0], [0, 0], [1, 1]], 5, 2),
        ([[0, 0]] * 9 + [[5, 5]] * 9 + [[9, 0]], 2, 2),
        ([[1, 2], [3, 4]], 1, 1),
        ([[0.0]] * 400 + [[1.0]] + [[2.0]], 2, 2),
    ):
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
    assert (
        mask.sum() == 3 and (means[~mask] == 0).all() and np.allclose(means[cluster], features[:3])
    )
    assert not tiling.supertiles(features[:0], coords[:0], 20, 0)[1].any()


def test_supertiles_without_coordinates_are_even_runs_of_rows():
    features = np.random.default_rng(0).normal(size=(250, 5)).astype(np.float32)
    for n, k in ((250, 100), (250, 7), (30, 100), (1, 3)):
        means, mask, cluster = tiling.supertiles(features[:n], None, k)
        assert (
            np.array_equal(np.unique(cluster), np.arange(min(n, k)))
            and (np.diff(cluster) >= 0).all()
            and np.ptp(np.bincount(cluster)) <= 1
        )
        want = [
            part.mean(0) for part in np.split(features[:n], np.flatnonzero(np.diff(cluster)) + 1)
        ]
        assert (
            mask.sum() == min(n, k)
            and np.allclose(means[mask], want, atol=1e-6)
            and not means[~mask].any()
        )


def test_tiles_geojson_comes_back_as_the_same_tiles():
    rng = np.random.default_rng(0)
    tile, grid = 224.45, np.stack(np.meshgrid(np.arange(7), np.arange(5)), -1).reshape(-1, 2)
    coords, values = (grid * tile).astype(np.int32), rng.normal(size=(35, 2))
    values[3, 1] = np.nan
    text = json.dumps(tiles_geojson(coords, tile, values, ["CD3", "T cells"]), allow_nan=False)
    features = json.loads(text)["features"]
    polygons = stats.read_rings(json.loads(text))
    own = np.array([stats.inside(coords + tile / 2, [polygon]) for polygon in polygons])
    assert np.array_equal(own, np.eye(35, dtype=bool))
    assert all(
        len(rings) == 1
        and np.array_equal(rings[0], np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * tile + c)
        for rings, c in zip(polygons, coords)
    )
    assert all(f["properties"]["objectType"] == "detection" for f in features)
    assert list(features[3]["properties"]["measurements"]) == ["CD3"]
    assert np.allclose(
        [f["properties"]["measurements"]["CD3"] for f in features], values[:, 0], rtol=1e-5
    )


@pytest.mark.parametrize("pair", STAIN_PAIRS)
def test_macenko_recovers_planted_stains_and_their_strength(pair):
    rgb, c = stained(STAIN_PAIRS[pair], (1.3, 0.8))
    od = tiling.optical_density(rgb)
    assert np.allclose(od, -np.log((rgb.astype(float) + 1) / 240), atol=1e-6)
    stains, top = tiling.macenko_stains(od)
    assert degrees_between(stains, STAIN_PAIRS[pair]).max() < 1 and np.allclose(
        np.linalg.norm(stains, axis=1), 1
    )
    dense = (od >= 0.15).all(1)
    assert np.allclose(top, np.percentile(c[dense], 99, axis=0), rtol=0.04)
    order = np.random.default_rng(1).permutation(
        len(od)
    )  # neither the order of pixels nor glass matters
    again = tiling.macenko_stains(
        np.concatenate([od[order], np.full((20_000, 3), -0.06, np.float32)])
    )
    assert np.allclose(again[0], stains, atol=1e-6) and np.allclose(again[1], top, atol=1e-5)
    plane = np.linalg.svd(od[dense].astype(float), full_matrices=False)[
        2
    ]  # the authority for the plane
    assert np.abs(stains @ plane[2]).max() < 1e-6


def test_macenko_is_least_squares_pixel_by_pixel():
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (2, 9, 11, 3)).astype(np.uint8)
    tiles[0] = tiles[0] // 2
    found = STAIN_PAIRS["bluish"], np.array([3.1, 1.2])
    got, changed = tiling.macenko(tiles, found)
    od = -np.log((tiles.reshape(-1, 3).astype(float) + 1) / 240)
    c = np.linalg.lstsq(found[0].T, od.T, rcond=None)[0].T * np.array([1.9705, 1.0308]) / found[1]
    want = (
        (240 * np.exp(-c @ np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])))
        .clip(0, 255)
        .reshape(tiles.shape)
    )
    assert changed.all() and got.dtype == np.uint8 and np.abs(got - want).max() < 0.51


def test_differently_stained_slides_of_one_tissue_become_one():
    (a, c), (b, _) = (
        stained(STAIN_PAIRS[pair], strength, 65_536, 1)
        for pair, strength in (("reddish", (1.2, 0.9)), ("bluish", (0.7, 1.3)))
    )
    assert np.abs(a.astype(int) - b).mean() > 10
    normal = []
    for rgb in (a, b):
        od = tiling.optical_density(rgb)
        out, changed = tiling.macenko(rgb.reshape(1, 256, 256, 3), tiling.macenko_stains(od))
        normal.append(out)
        after = tiling.optical_density(out.reshape(-1, 3))
        pure = np.stack([after[(c[:, 1 - i] == 0) & (c[:, i] > 0.5)].mean(0) for i in (0, 1)])
        assert changed.all() and degrees_between(pure, np.array(tiling.REFERENCE)).max() < 1
        strength = np.linalg.lstsq(
            np.array(tiling.REFERENCE).T, after[(od >= 0.15).all(1)].T, rcond=None
        )[0]
        assert np.allclose(np.percentile(strength, 99, axis=1), tiling.REFERENCE_TOP, rtol=0.02)
    assert np.abs(normal[0].astype(int) - normal[1]).mean() < 1.5


def test_macenko_leaves_the_reference_as_it_is():
    rgb, _ = stained(STAIN_PAIRS["reference"], n=65_536)
    stains, top = tiling.macenko_stains(tiling.optical_density(rgb))
    assert degrees_between(stains, np.array(tiling.REFERENCE)).max() < 1
    out, _ = tiling.macenko(
        rgb.reshape(1, 256, 256, 3), (np.array(tiling.REFERENCE), np.array(tiling.REFERENCE_TOP))
    )
    glass = rgb.max(1) > 235
    moved = np.abs(out.reshape(-1, 3).astype(int) - rgb)[
        ~glass
    ]  # by the one grey level that the logarithm adds
    assert np.median(moved) == 1 and (moved <= 2).mean() > 0.99 and moved.max() < 8


def flat(color, noise=0.0):
    rng = np.random.default_rng(0)
    return (
        (np.array(color) + rng.normal(0, noise, (64, 64, 3))).round().clip(0, 255).astype(np.uint8)
    )


def one_stain(noise=0.0):
    rng = np.random.default_rng(0)
    od = rng.uniform(0, 2, (64, 64, 1)) * tiling.REFERENCE[0]
    return (
        (240 * np.exp(-od) - 1 + rng.normal(0, noise, od.shape))
        .round()
        .clip(0, 255)
        .astype(np.uint8)
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "tile",
    [
        flat((255,) * 3),
        flat((240,) * 3),
        flat((243, 240, 244), 2),
        flat((0,) * 3),
        flat((128,) * 3),
        flat((170, 90, 150)),
        flat((170, 90, 150), 1),
        flat((60, 30, 90)),
        one_stain(),
        one_stain(1),
        flat((255,) * 3)[:1, :1],
        flat((90, 60, 120))[:1, :1],
    ],
)
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
    speck[:6, :6] = (110, 75, 150)  # 36 of 4,096 pixels, under 1 %
    tissue = speck.copy()
    tissue[:7, :6] = (110, 75, 150)
    tiles = np.stack(
        [flat((255,) * 3), speck, tissue, flat((0,) * 3), flat((170, 90, 150)), one_stain(1)]
    )
    before = tiles.copy()
    got, changed = tiling.macenko(tiles, found)
    assert (
        changed.tolist() == [False, False, True, True, True, True]
        and (got[:2] == tiles[:2]).all()
        and (tiles == before).all()
    )
    assert got[3].max() < 40 and got[2][-1, -1].min() > 235  # black stays dark, glass bright
    assert (
        got[4:].astype(int)[..., 1] <= got[4:].astype(int)[..., [0, 2]].min(-1) + 25
    ).all()  # never green
    empty, none = tiling.macenko(tiles[:0], found)
    assert empty.shape == (0, 64, 64, 3) and none.shape == (0,)
    assert all(
        (tiling.macenko(tiles[i : i + 1], found)[0][0] == got[i]).all() for i in range(len(tiles))
    )  # alone or with others


def test_saturation_is_colorsys_and_its_median_brute_force():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (14, 17, 3)).astype(np.uint8)
    rgb[3], rgb[5] = 0, 77
    each = np.array(
        [[round(255 * colorsys.rgb_to_hsv(*p / 255)[1] + 1e-9) for p in row] for row in rgb]
    )
    wide = np.pad(each, 3, mode="edge")
    want = np.array([[np.median(wide[y : y + 7, x : x + 7]) for x in range(17)] for y in range(14)])
    assert (tiling.saturation_map(rgb) == want).all()


def test_tissue_of_a_fixed_saturation():
    rgb, truth = painted()
    everywhere = np.ones(truth.shape, bool)
    mask, threshold = tiling.find_tissue(rgb, everywhere, "saturation", 8)
    assert threshold == 8 and overlap(mask, truth) > 0.95
    field = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(60, 70, 1)), (4, 4, 0))
    spots = (243 - [0, 1, 0] * (9 + 60 * field)).round().clip(0, 255).astype(np.uint8)
    level, mask = (
        tiling.saturation_map(spots) > 8,
        tiling.find_tissue(spots, np.ones((60, 70), bool), "saturation", 8)[0],
    )
    window = np.lib.stride_tricks.sliding_window_view
    closed = window(window(level, (4, 4)).any((2, 3)), (4, 4)).all(
        (2, 3)
    )  # every square of 4 that holds the pixel meets tissue
    assert (
        (closed == mask[3:-3, 3:-3]).all() and (mask | ~level).all() and (mask != level).sum() > 20
    )
    otsu, threshold = tiling.find_tissue(rgb, everywhere, "saturation")
    assert (
        threshold == tiling.otsu_threshold(tiling.saturation_map(rgb))
        and overlap(otsu, truth) > 0.6
    )
    for color, want in (
        ((243, 243, 243), 0),
        (H_E["pale eosin"], 1),
        ((128, 128, 128), 0),
        (INK["blue"], 1),
    ):  # pen counts, there
        assert (
            tiling.find_tissue(
                np.full((30, 40, 3), color, np.uint8), np.ones((30, 40), bool), "saturation", 8
            )[0].mean()
            == want
        )
    assert not tiling.find_tissue(rgb, ~everywhere, "saturation")[0].any()
    hole = np.full((40, 40, 3), H_E["eosin"], np.uint8)
    assert (
        tiling.find_tissue(hole, np.arange(1600).reshape(40, 40) % 40 < 20, "saturation", 8)[
            0
        ].sum()
        == 800
    )  # only what was scanned


def test_small_pieces_are_dropped():
    mask = ndimage.gaussian_filter(np.random.default_rng(0).random((60, 80)), 1) > 0.55
    pieces, left = [], {tuple(p) for p in np.argwhere(mask)}
    while left:  # flood fill
        piece, todo = set(), [left.pop()]
        while todo:
            y, x = todo.pop()
            piece.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        pieces.append(piece)
    sizes = sorted(map(len, pieces))
    assert 8 < len(sizes) < ndimage.label(mask)[1]  # some hang together by a corner alone
    for least in (0, sizes[0] + 1, sizes[len(sizes) // 2], sizes[-1], sizes[-1] + 1):
        want = {p for piece in pieces if len(piece) >= least for p in piece}
        assert {tuple(p) for p in np.argwhere(tiling.drop_pieces(mask, least))} == want
    rgb, truth = painted()  # 80 x 90 and 60 x 60 pixels of 8 µm
    ellipse = truth & (np.arange(200) < 118)
    assert (
        overlap(tiling.find_tissue(rgb, np.ones(truth.shape, bool), least=4500)[0], ellipse) > 0.9
    )


def test_stretch_worked_by_hand():
    """Each channel of each tile from its lowest to its highest value, as 0..255; a channel of one value is 0."""
    tile = np.zeros((2, 1, 2, 3), np.uint8)
    tile[0, 0], tile[1, 0] = [(10, 50, 7), (110, 100, 7)], [(0, 20, 255), (255, 220, 0)]
    want = [[[[0, 0, 0], [255, 255, 0]]], [[[0, 0, 255], [255, 255, 0]]]]
    assert tiling.stretch(tile).tolist() == want and tiling.stretch(tile).dtype == np.uint8
    rng = np.random.default_rng(0)
    tiles = rng.integers(90, 200, (4, 9, 7, 3)).astype(np.uint8)
    shifted = tiles.astype(float) - tiles.min((1, 2), keepdims=True)
    assert (
        np.abs(tiling.stretch(tiles) - 255 * shifted / shifted.max((1, 2), keepdims=True)).max()
        <= 0.5 + 1e-4
    )
    assert tiling.stretch(tiles[:0]).shape == (0, 9, 7, 3)


def test_the_outline_of_a_tumour_holds_its_cells(drawn):
    for r in read_csv(drawn / "samples.csv"):
        path = drawn / "regions" / f"{r['slide']}.geojson"
        assert path.is_file() == (r["tumor"] == "1")
        if path.is_file():
            points = [
                p for p in read_csv(drawn / "points" / f"{r['slide']}.csv") if p["cell"] == "tumour"
            ]
            inside = stats.inside(
                [[float(p["x"]), float(p["y"])] for p in points],
                stats.read_rings(json.loads(path.read_text())),
            )
            assert len(points) > 10 and inside.mean() > 0.95  # the outline goes in steps of 8 px


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


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64])
@pytest.mark.parametrize("n", [2, 3, 10, 301])
def test_pearson_and_spearman_equal_scipy(dtype, n):
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n, 600)) * 50  # more genes than one block
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
    same(stats.pearson(a + 2.0**20, b - 2.0**20), truth, 1e-8)  # what is lost is lost in the input
    exact, other = (
        np.round(rng.normal(size=(2, 20000, 3)) * 64) / 64
    )  # survives the offset without rounding
    same(stats.pearson(exact + 2.0**46, other), stats.pearson(exact, other), 1e-14)
    same(stats.pearson(a * 1e200, b * 1e-200), truth, 1e-12)  # squares of these leave float64
    single = (a + 1e6).astype(np.float32)  # float32, summed in float64
    same(
        stats.pearson(single, b),
        [scipy.stats.pearsonr(single[:, g].astype(float), b[:, g])[0] for g in range(20)],
    )


@pytest.mark.parametrize("correlation", [stats.pearson, stats.spearman])
def test_a_gene_without_variation_has_no_correlation(correlation):
    rng = np.random.default_rng(3)
    n = 40
    y = rng.normal(size=n)
    wobble = 1 + rng.integers(-1, 2, n) * np.finfo(np.float64).eps
    wobble32 = (1 + rng.integers(-1, 2, n) * np.finfo(np.float32).eps).astype(np.float32)
    for column in [
        np.zeros(n),
        np.full(n, 0.1),
        0.1 * wobble,
        1e6 * wobble,
        -1e-9 * wobble,
        5 + 1e-13 * rng.random(n),
        np.full(n, 7),
        np.ones(n, bool),
        np.full(n, 0.1, np.float32),
        np.float32(5) * wobble32,
        np.r_[np.nan, y[1:]],
        np.r_[y[1:], np.nan],
        np.r_[y[1:], np.inf],
        np.r_[np.inf, y[1:]],
        np.r_[-np.inf, y[1:]],
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert math.isnan(correlation(column, y)) and math.isnan(correlation(y, column))
            table = correlation(
                np.stack([y, y], 1), np.stack([column, np.arange(n).astype(column.dtype)], 1)
            )
        assert np.isnan(table[0]) and (
            column.dtype == bool or not np.isnan(table[1])
        )  # its neighbour keeps its value
    assert (
        abs(correlation(np.r_[1.0, np.zeros(n - 1)], y)) <= 1
    )  # one sample that differs is variation
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
        theirs = [
            scipy.stats.pearsonr(a[:, g], b[:, g], alternative="greater").pvalue for g in range(20)
        ]
        same(stats.pearson_p(stats.pearson(a, b), n), theirs)


def test_pearson_p_is_the_t_far_into_both_tails():
    for n in (5, 44, 1046, 10514):
        r = np.array([-0.9999, -0.5, -1e-3, 0, 1e-3, 0.1, 0.3, 0.6, 0.9, 0.99])
        t = r * np.sqrt((n - 2) / (1 - r * r))
        np.testing.assert_allclose(
            stats.pearson_p(r, n), scipy.stats.t.sf(t, n - 2), rtol=1e-8, atol=1e-290
        )
    assert 0 < stats.pearson_p(0.95, 400) < 1e-100
    edges = stats.pearson_p(np.array([1, -1, 0, np.nan]), 44)
    same(edges, [0, 1, 0.5, np.nan])
    assert np.isnan(stats.pearson_p(0.5, 2)) and np.isnan(stats.r_threshold(0.05, 2))
    same(
        stats.pearson_p(np.array([0.3, 0.3, 0.3]), np.array([2, 44, 1046])),
        [np.nan, *(stats.pearson_p(0.3, n) for n in (44, 1046))],
    )


def test_the_papers_smallest_significant_r():
    """HE2RNA Results: R_sign = .64 for the 44 cases of DLBC, 30,839 genes; method.md H12."""
    p = 1 - (1 - 0.05) ** (1 / 30839)
    assert f"{p:.2e}" == "1.66e-06"
    assert [round(float(r), 3) for r in stats.r_threshold(p, np.array([44, 1046]))] == [
        0.637,
        0.143,
    ]
    for n in (3, 10, 44, 1046):
        r = np.array([-0.1, 0, 0.1, 0.5])
        same(stats.r_threshold(stats.pearson_p(r, n), n), r, 1e-9)
        t = scipy.stats.t.isf([0.9, 0.5, 0.05, 1e-6, 1e-12], n - 2)
        same(
            stats.r_threshold(np.array([0.9, 0.5, 0.05, 1e-6, 1e-12]), n),
            t / np.sqrt(n - 2 + t * t),
            1e-9,
        )
    best = np.r_[
        stats.r_threshold(1.6e-6, 44), np.zeros(30838)
    ]  # the best of the 30,839 genes, on either side
    assert stats.holm_sidak(stats.pearson_p(best, 44))[0] < 0.05
    best[0] = stats.r_threshold(1.7e-6, 44)
    assert stats.holm_sidak(stats.pearson_p(best, 44))[0] > 0.05


def test_holm_sidak_equals_the_step_down_loop():
    rng = np.random.default_rng(6)
    for m in (1, 2, 5, 40):
        p = np.round(rng.random(m) ** 3, 2)  # with ties, zeros
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
    assert p[0] == pytest.approx(3e-30, rel=1e-12, abs=0)  # second of 4: exponent 3
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
    steps = rng.choice([-2, -1, 1, 2, 3], n)  # no zero; ties from n = 4 on
    if len(set(abs(steps))) < n:
        same(
            stats.wilcoxon_signed_rank(steps, np.zeros(n)),
            scipy.stats.wilcoxon(steps, method="asymptotic", correction=True),
        )
    zeros = np.r_[0.0, 0.0, rng.normal(size=n)]  # no ties, two zeros
    same(
        stats.wilcoxon_signed_rank(zeros, 0 * zeros),
        scipy.stats.wilcoxon(zeros, method="asymptotic", correction=True),
    )
    both = rng.integers(0, 5, (2, n + 5))
    same(
        stats.wilcoxon_signed_rank(*both),
        scipy.stats.wilcoxon(*both, method="asymptotic", correction=True),
    )


@pytest.mark.parametrize("n", range(1, 9))
def test_signed_rank_equals_all_sign_patterns(n):
    rng = np.random.default_rng(n)
    d = rng.normal(size=n) + 0.5
    ranks = scipy.stats.rankdata(abs(d))
    sums = np.array(
        [ranks[np.array(signs, bool)].sum() for signs in itertools.product([0, 1], repeat=n)]
    )
    w = ranks[d > 0].sum()
    p = min(1, 2 * min((sums <= w).mean(), (sums >= w).mean()))
    same(stats.wilcoxon_signed_rank(d, np.zeros(n)), (min(w, n * (n + 1) / 2 - w), p), 1e-14)


@pytest.mark.parametrize(
    "m,n",
    [(1, 1), (1, 5), (2, 3), (4, 4), (7, 60), (8, 8), (8, 9), (8, 500), (9, 9), (9, 60), (60, 60)],
)
def test_rank_sum_equals_scipy(m, n):
    rng = np.random.default_rng(m + n)
    for x, y in [
        (rng.normal(size=m), rng.normal(size=n)),
        (rng.normal(size=m) + 1.5, rng.normal(size=n)),
        (rng.integers(0, 6, m), rng.integers(0, 6, n)),
        (np.arange(m) + 1000.0, np.arange(n)),
    ]:
        same(stats.wilcoxon_rank_sum(x, y), scipy.stats.mannwhitneyu(x, y))
        same(stats.wilcoxon_rank_sum(y, x), scipy.stats.mannwhitneyu(y, x))


@pytest.mark.parametrize("m,n", [(1, 1), (1, 7), (2, 6), (3, 3), (4, 4), (5, 3), (6, 5)])
def test_rank_sum_equals_all_choices_of_ranks(m, n):
    rng = np.random.default_rng(10 * m + n)
    x, y = rng.normal(size=m) + 0.7, rng.normal(size=n)
    u = sum(i > j for i in x for j in y)
    all_u = np.array(
        [sum(c) - m * (m + 1) / 2 for c in itertools.combinations(range(1, m + n + 1), m)]
    )
    p = min(1, 2 * min((all_u <= u).mean(), (all_u >= u).mean()))
    same(stats.wilcoxon_rank_sum(x, y), (u, p), 1e-13)


def test_wilcoxon_edges_are_defined():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in (1, 5, 80):
            assert stats.wilcoxon_signed_rank(np.ones(n), np.ones(n)) == (0.0, 1.0)
            assert stats.wilcoxon_rank_sum(np.ones(n), np.ones(n)) == (n * n / 2, 1.0)
            assert stats.wilcoxon_signed_rank(np.ones(n), np.zeros(n))[1] <= 1  # all tied, not zero
        for result in [
            stats.wilcoxon_signed_rank([], []),
            stats.wilcoxon_rank_sum([], [1.0]),
            stats.wilcoxon_rank_sum([1.0], []),
            stats.wilcoxon_signed_rank([1.0, np.nan], [0.0, 0.0]),
            stats.wilcoxon_rank_sum([1.0, np.nan], [0.0]),
        ]:
            assert np.isnan(result).all()


def test_roc_auc_equals_counting_all_pairs():
    rng = np.random.default_rng(9)
    for n in (2, 3, 10, 60):
        labels = rng.permutation(np.arange(n) < max(1, n // 3))
        for scores in (rng.normal(size=n) + labels, rng.integers(0, 4, n)):
            pairs = [(p > q) + 0.5 * (p == q) for p in scores[labels] for q in scores[~labels]]
            same(stats.roc_auc(labels, scores), np.mean(pairs), 1e-14)
            same(
                stats.roc_auc(labels.astype(int).tolist(), (-scores).tolist()),
                1 - np.mean(pairs),
                1e-14,
            )
    assert (
        stats.roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    )  # scikit-learn's documented example
    assert (
        math.isnan(stats.roc_auc([1, 1], [0.1, 0.2]))
        and math.isnan(stats.roc_auc([0], [1]))
        and math.isnan(stats.roc_auc([], []))
    )
    assert math.isnan(stats.roc_auc([0, 1, 1], [0.1, np.nan, 2])) and math.isnan(
        stats.roc_auc([0, 1, np.nan], [0, 1, 2])
    )


def test_roc_auc_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(10)
    for scores in (rng.normal(size=500), rng.integers(0, 8, 500)):
        labels = rng.random(500) < 0.2
        same(stats.roc_auc(labels, scores), metrics.roc_auc_score(labels, scores), 1e-12)


def test_roc_and_pr_curves_equal_every_threshold():
    rng = np.random.default_rng(3)
    for n, levels in ((2, 9), (7, 3), (40, 6), (60, 10**6)):
        labels, scores = np.r_[1, 0, rng.integers(0, 2, n - 2)], rng.integers(0, levels, n) / 7
        cuts = np.unique(scores)[::-1]
        hits, chosen = (
            np.array([(part & (scores >= c)).sum() for c in cuts])
            for part in (labels > 0, labels >= 0)
        )
        fpr, tpr = stats.roc_curve(labels, scores)
        recall, precision = stats.pr_curve(labels, scores)
        same(tpr, np.r_[0, hits / labels.sum()])
        same(fpr, np.r_[0, (chosen - hits) / (n - labels.sum())])
        same(recall, tpr)
        same(precision, np.r_[1, hits / chosen])
        same(np.trapezoid(tpr, fpr), stats.roc_auc(labels, scores))
        at = [(scores[labels > 0] >= s).sum() / (scores >= s).sum() for s in scores[labels > 0]]
        same(stats.pr_auc(labels, scores), np.mean(at))
    assert (
        stats.pr_auc([0, 0, 1, 1], [1, 2, 3, 4]) == 1
        and stats.pr_auc([0, 1, 0, 0], [2, 2, 2, 2]) == 0.25
    )
    assert all(
        np.isnan(stats.pr_auc(*bad))
        for bad in (
            ([1, 1], [1, 2]),
            ([0, 0], [1, 2]),
            ([0, 1], [1, np.nan]),
            ([0, np.nan], [1, 2]),
        )
    )


def test_pr_auc_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    for n in (20, 200):
        labels, scores = np.r_[0, 1, rng.integers(0, 2, n - 2)], rng.integers(0, n // 4, n) / 3
        assert stats.pr_auc(labels, scores) == pytest.approx(
            metrics.average_precision_score(labels, scores), abs=1e-12
        )
        fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
        assert np.allclose(stats.roc_curve(labels, scores), (fpr, tpr))


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
    projects = ["Z", "Z", "X", "Z", "X", "X", "Z"]  # a belongs to Z, b to X: X = b, c; Z = a, d
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
    one = np.unique(patients, return_index=True)[1]  # a row per patient
    table = np.array(
        [np.bincount(fold[one][projects[one] == o], minlength=5) for o in np.unique(projects)]
    )  # (36, 5)
    assert np.abs(table - table.sum(1, keepdims=True) / 5).max() < 1 and np.ptp(table.sum(0)) <= 1
    assert table.min() >= 1
    theirs = np.array(
        [
            np.bincount(
                np.searchsorted(np.unique(projects), projects[np.intersect1d(test, one)]),
                minlength=36,
            )
            for _, _, test in stats.authors_folds(patients)
        ]
    ).T
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
        assert (
            stats.inner_split(patients[order], projects[order], share, seed=3) == mask[order]
        ).all()
    assert len({tuple(stats.inner_split(patients, projects, 0.1, seed)) for seed in range(5)}) == 5
    single = [
        stats.inner_split(list("abcdefgh"), list("XYYYYYYY"), 0.125, seed)[0] for seed in range(200)
    ]
    assert 5 < sum(single) < 60  # the first project's only patient: 1 in 8


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
    patients = np.array(list("lkjihgfedcba"))  # sorted inside: a = 0 ... l = 11
    number = np.array([ord(p) - ord("a") for p in patients])
    splits = stats.authors_folds(patients)
    assert [
        (sorted(number[v].tolist()), sorted(number[t].tolist())) for _, v, t in splits
    ] == PINNED_FOLDS
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
        assert (chi2, freedom, p) == (
            pytest.approx(want.statistic),
            want.dof,
            pytest.approx(want.pvalue),
        ) and (p > 0.999) != by_lot
        assert sum(map(sum, counts.values())) == len(set(patients))
    counts, chi2, freedom, p = stats.fold_balance(
        ["a", "b", "b"], ["X", "X", "X"], [0, 1, 1], 3
    )  # one project, an empty fold
    assert counts["X"].tolist() == [1, 1, 0] and (chi2, freedom, p) == (0, 0, 1)


def test_site_folds_keep_sites_whole_and_as_even_as_any_single_move():
    rng = np.random.default_rng(0)
    size = rng.geometric(0.1, 60)
    sites, projects = (
        np.repeat(np.arange(60), size).astype(str),
        np.repeat(np.arange(60) % 4, size).astype(str),
    )
    patients = [f"p{i}" for i in range(len(sites))]
    even = lambda fold: sum(
        ((np.bincount(fold[rows], minlength=5) - rows.sum() / 5) ** 2).sum() / rows.sum()
        for rows in [np.ones(len(fold), bool), *(projects == p for p in "0123")]
    )
    fold = stats.site_folds(patients, projects, sites, 5, 0)
    for s in set(sites):
        assert len(set(fold[sites == s])) == 1
        for f in range(5):
            assert even(np.where(sites == s, f, fold)) >= even(fold) - 1e-9
    by_lot = [even(rng.integers(5, size=60)[sites.astype(int)]) for _ in range(200)]
    assert even(fold) < min(by_lot)
    order = rng.permutation(len(sites))
    assert (
        stats.site_folds(np.array(patients)[order], projects[order], sites[order], 5, 0)
        == fold[order]
    ).all()
    with pytest.raises(ValueError, match="from 2 to 60"):
        stats.site_folds(patients, projects, sites, 61, 0)


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
        assert stats.null_threshold(first, mean, fitted) == pytest.approx(
            stats.r_threshold(first, n), abs=0.01
        )
    assert (
        round(float(stats.null_threshold(first, 0, 535)), 2) == 0.20
    )  # LUNG's printed R_sign: LUAD's 535 slides alone


@pytest.mark.parametrize("sizes", [(9, 9, 9, 9, 8), (20,) * 5, (209,) * 5])
def test_null_p_of_a_mean_of_folds_is_near_the_exact_one(sizes):
    """Within a factor 2 at 1.7e-6, where counting N = 30,839 null R ends at 3e-5; a normal fit of Fisher's z is further off."""
    null = chance_r(np.random.default_rng(1), sizes, 308390)
    mean, n = stats.null_fit(null)
    for r in np.arange(0.5, 5, 0.5) / math.sqrt(sum(sizes)):
        exact = exact_tail(sizes, r)
        p, z = stats.null_p(r, mean, n), scipy.stats.norm.sf(np.arctanh(r) / np.arctanh(null).std())
        assert 0.5 < p / exact < 1.4 and (
            exact > 1e-3 or abs(math.log(p / exact)) < abs(math.log(z / exact)) + 0.1
        )
        counted = np.mean(null >= r)
        assert exact < 1e-4 or counted == pytest.approx(p, rel=0.3)


def test_a_wide_or_shifted_null_raises_the_threshold():
    rng = np.random.default_rng(2)
    plain = rng.normal(size=20000) * 0.1
    mean, n = stats.null_fit(plain)
    same(
        [mean, n], [plain.mean(), 1 + 1 / plain.var()], 0.02
    )  # the tail of a normal is where its SD says
    same(stats.null_fit(plain + 0.2), [mean + 0.2, n], 1e-9)
    mixed = (
        np.where(rng.random(20000) < 0.1, 3, 1) * plain
    )  # one gene in ten scatters three times as much
    mean, n = stats.null_fit(mixed)
    assert (
        n < 1 + 1 / mixed.var() - 5
        and (mixed > stats.null_threshold(0.01, mean, n)).mean() <= 0.0105
    )
    r = np.array([0.1, 0.5, 0.9])
    same(stats.null_threshold(stats.null_p(r, 0.05, 40), 0.05, 40), r, 1e-9)


def test_null_edges():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for null in ([], [np.nan], [0.3], [0.3, 0.3, np.nan]):
            assert np.isnan(stats.null_fit(np.array(null, float))).all()
        same(
            stats.null_fit(np.array([[0.1, np.nan], [-0.1, 0.2]])),
            stats.null_fit(np.array([0.1, -0.1, 0.2])),
        )
        same(stats.null_p(np.array([1, -1, np.nan]), 0, 44), [0, 1, np.nan])
        assert (
            stats.null_p(-1, 0.1, 44) == 1
            and stats.null_p(1, 0.1, 44) == 0
            and 0 < stats.null_p(0.95, -0.06, 3.4) < 0.1
        )
        assert np.isnan(stats.null_p([0.5], math.nan, math.nan)).all() and np.isnan(
            stats.null_p(0.5, *stats.null_fit([-1, 1]))
        )
        assert 0.9 < stats.null_threshold(1e-9, 0.9, 10) < 1 and np.isnan(
            stats.null_threshold(0.05, 0, 2)
        )


def test_permutation_null_equals_the_loop():
    rng = np.random.default_rng(3)
    n, genes = 60, 300  # more genes than one block
    prediction, truth = rng.normal(size=(2, n, genes)).astype(np.float32)
    fold = rng.permutation(np.r_[np.arange(58) % 4, 7, 7])  # a fold of two does not count
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
    p = stats.null_p(
        stats.pearson(truth + 0.5 * rng.normal(size=truth.shape), truth), *stats.null_fit(null)
    )
    assert (stats.holm_sidak(p) < 0.05).mean() > 0.9


def test_recurrent_counts():
    significant = np.random.default_rng(6).random((5, 40)) < 0.4
    per_gene, at_least = stats.recurrent(significant)
    assert per_gene.tolist() == [sum(column) for column in significant.T.tolist()]
    assert at_least.tolist() == [sum(g >= c for g in per_gene) for c in (1, 2, 3, 4, 5)]
    per_gene, at_least = stats.recurrent(np.zeros((0, 3), bool))
    assert per_gene.tolist() == [0, 0, 0] and at_least.tolist() == []


def test_fisher_enrichment_equals_scipy_and_the_lady_tasting_tea():
    cups = range(8)
    assert stats.fisher_enrichment([0, 1, 2, 3], [0, 1, 2, 3], cups) == pytest.approx(
        1 / 70, rel=1e-12
    )  # Fisher 1935
    assert stats.fisher_enrichment([0, 1, 2, 3], [0, 1, 2, 7], cups) == pytest.approx(
        17 / 70, rel=1e-12
    )
    rng = np.random.default_rng(7)
    for n in (1, 2, 9, 60, 500):
        for _ in range(15):
            hits, members = (
                rng.choice(n, rng.integers(0, n + 1), replace=False).tolist() for _ in range(2)
            )
            a = len(set(hits) & set(members))
            table = [[a, len(hits) - a], [len(members) - a, n - len(hits) - len(members) + a]]
            ours = stats.fisher_enrichment(hits, members, range(n))
            same(ours, scipy.stats.fisher_exact(table, alternative="greater")[1], 1e-9)


def test_hypergeometric_tail_is_exact_far_out_and_near_one():
    for overlap, size, n_hits, n in [
        (50, 100, 300, 2000),
        (120, 200, 156, 30839),
        (3, 200, 1500, 3000),
        (90, 200, 1500, 3000),
        (200, 200, 1500, 3000),
        (1, 5, 1, 5),
        (8, 9, 9, 10),
        (9, 9, 9, 10),
        (0, 0, 3, 9),
    ]:
        exact = Fraction(
            sum(
                math.comb(size, k) * math.comb(n - size, n_hits - k)
                for k in range(overlap, min(size, n_hits) + 1)
            ),
            math.comb(n, n_hits),
        )
        assert stats.hypergeometric_tail(overlap, size, n_hits, n) == pytest.approx(
            float(exact), rel=1e-8, abs=0
        )


def test_fisher_enrichment_edges():
    genes = ["a", "b", "c"]
    for hits, members, universe in [
        ([], ["a"], genes),
        (genes, ["a"], genes),
        (["a"], [], genes),
        (["a"], ["x"], genes),
        ([], [], []),
        (["a"], genes, genes),
    ]:
        assert stats.fisher_enrichment(hits, members, universe) == 1.0
    assert stats.fisher_enrichment(["a", "a", "x"], ["a", "y", "a"], iter(genes)) == pytest.approx(
        1 / 3
    )  # strangers, twice


def test_enrichment_is_fisher_of_each_set_and_leaves_out_what_cannot_be_tested():
    rng = np.random.default_rng(8)
    universe = [f"g{i}" for i in range(400)]
    sets = {
        f"s{i}": [f"g{j}" for j in rng.choice(600, rng.integers(1, 80), replace=False)]
        for i in range(50)
    }
    sets |= {"empty": [], "not measured": ["x", "g599"], "planted": universe[:30]}
    hits = universe[:25] + universe[200:240] + ["x"]
    table = stats.enrichment(hits, sets, universe)
    for i, (name, genes) in enumerate(sets.items()):
        measured = set(genes) & set(universe)
        if not measured:
            assert (
                np.isnan([table[k][i] for k in ("fold", "p", "bh")]).all()
                and table["size"][i] == table["expected"][i] == 0
            )
            continue
        assert table["size"][i] == len(measured) and table["overlap"][i] == len(
            measured & set(hits)
        )
        same(table["expected"][i], len(measured) * 65 / 400)
        same(table["fold"][i], table["overlap"][i] / table["expected"][i])
        same(table["p"][i], stats.fisher_enrichment(hits, genes, universe))
    tested = ~np.isnan(table["p"])
    assert tested.sum() >= 49 and not tested[50] and not tested[51]
    assert list(sets)[np.nanargmin(table["p"])] == "planted"
    same(table["bh"][tested], scipy.stats.false_discovery_control(table["p"][tested]))
    for hits in ([], universe):  # the overlap is forced
        table = stats.enrichment(hits, sets, universe)
        assert (table["p"][tested] == 1).all() and (table["bh"][tested] == 1).all()
    assert np.isnan(stats.enrichment([], sets, universe)["fold"]).all()
    assert (
        stats.enrichment(["a"], {}, ["a"])["p"].shape == (0,)
        and np.isnan(stats.enrichment([], {"s": ["a"]}, [])["p"]).all()
    )


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda text: b"\xef\xbb\xbf" + text])
def test_read_gmt_reads_what_is_about(tmp_path, end, pack):
    lines = [
        b"A\thttp://a\tTP53\tMYC\tTP53\t",
        b"",
        b"EMPTY\tna",
        b"  B \t\t CD3D\t\tCD3E ",
        b"A\tagain\tMYC\tTP53",
        b"\t\t",
        b"LAST\td\tx",
    ]
    path = tmp_path / "sets.gmt"
    path.write_bytes(pack(end.join(lines)))
    assert stats.read_gmt(path) == {
        "A": ("TP53", "MYC"),
        "EMPTY": (),
        "B": ("CD3D", "CD3E"),
        "LAST": ("x",),
    }
    assert list(stats.read_gmt(path)) == ["A", "EMPTY", "B", "LAST"]


@pytest.mark.parametrize(
    "data,words",
    [
        (
            b"A\td\tx\nB\td\ty\nA\td\tz\n",
            "line 3: set 'A' stands in .*line 1 too, with different genes",
        ),
        (b"A\td\tx\nno tabs here\n", "line 2: wanted a name.*found 'no tabs here'"),
        (b"\td\tx\n", "line 1: wanted a name"),
        (b"", "no gene set"),
        (b"\n\r\n", "no gene set"),
        ("A\td\tx\n".encode("utf-16"), "not a text file in UTF-8"),
        (gzip.compress(b"A\td\tx\n" * 99)[:-9], "damaged gzip"),
        (b"\x1f\x8bnonsense", "damaged gzip"),
    ],
)
def test_read_gmt_says_file_and_line(tmp_path, data, words):
    path = tmp_path / "sets.gmt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words) as e:
        stats.read_gmt(path)
    assert str(e.value).startswith(str(path)) and "\n" not in str(e.value)


def test_combine_sets():
    assert stats.combine_sets([("c", "a", "b"), ["b", "d", "b"], {"a", "e"}]) == ("a", "b")
    assert (
        stats.combine_sets([("c", "a")]) == ("c", "a")
        and stats.combine_sets([]) == ()
        and stats.combine_sets([(), ()]) == ()
    )
    assert stats.combine_sets([("a", "a"), ("b",)]) == () and stats.combine_sets(
        [("a", "b"), ("b", "c")], 1
    ) == ("a", "b", "c")
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
    assert len(
        stats.combine_sets([sets[s] for s in stats.SIGNATURES["B cell-mediated immunity"]])
    ) == len(sets["GO_B_CELL_MEDIATED_IMMUNITY"])


def test_random_list_test_equals_the_loop_and_the_hypergeometric():
    rng = np.random.default_rng(9)
    m, cancers, n_lists = 500, 4, 4000
    r = 0.2 + 0.1 * rng.normal(size=(m, cancers))
    r[:40] += 0.02  # a signature, weakly better
    r[rng.random((m, cancers)) < [0, 0, 0.2, 0.5]] = np.nan  # two cancers share their genes
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
        spread = (
            r[genes, c].std() / math.sqrt(len(own)) * math.sqrt(1 - len(own) / len(genes)) + 1e-12
        )
        assert abs(ours["r_random"][i, c] - r[genes, c].mean()) < 5 * spread / math.sqrt(n_lists)
        assert abs(theirs[2] - r[genes, c].mean()) < 5 * spread / math.sqrt(300)
        assert abs(ours["share_random"][i, c] - significant[genes, c].mean()) < 0.01
        for p, loop in ((ours["p_r"][i, c], theirs[4]), (ours["p_share"][i, c], theirs[5])):
            assert abs(p - loop) < 5 * math.sqrt(p * (1 - p) / 300) + 1 / 300
        exact = stats.hypergeometric_tail(
            significant[own, c].sum(), len(own), significant[genes, c].sum(), len(genes)
        )
        assert (
            abs(ours["p_share"][i, c] - exact)
            < 5 * math.sqrt(exact * (1 - exact) / n_lists) + 1 / n_lists
        )


def test_random_list_p_equals_all_lists():
    """Eight genes, lists of three: all 56."""
    r = np.array([0.9, 0.1, 0.5, np.nan, 0.3, 0.7, 0.2, 0.4, 0.4])[:, None]
    rest = np.delete(r[:, 0], 3)
    every = np.array([np.mean(c) for c in itertools.combinations(rest, 3)])
    members = np.zeros((2, 9), bool)
    members[0, [0, 3, 4, 5]], members[1, [2, 7, 8]] = True, True  # one without R, and one with ties
    ours = stats.random_list_test(r, r > 0.45, members, 20000, np.random.default_rng(10))
    for i, own in enumerate(([0.9, 0.3, 0.7], [0.5, 0.4, 0.4])):
        assert abs(ours["p_r"][i, 0] - np.mean(every >= np.mean(own) - 1e-12)) < 0.015


def test_random_lists_are_uniform_without_repeats_and_matched():
    rng = np.random.default_rng(11)
    bins = stats.expression_bins(rng.exponential(size=100), 5)
    assert np.bincount(bins).tolist() == [20] * 5
    for members, b in (
        (np.arange(30), bins),
        (np.arange(30), np.zeros(100, int)),
        (np.flatnonzero(bins == 2)[:9], bins),
    ):
        lists = stats.random_lists(members, b, 3000, rng)
        assert lists.shape == (3000, len(members)) and all(
            len(set(row)) == len(row) for row in lists.tolist()
        )
        assert (np.sort(b[lists], 1) == np.sort(b[members])).all()  # the same number of each bin
        expected = (
            np.bincount(b[members], minlength=5) / np.maximum(np.bincount(b, minlength=5), 1)
        )[b] * 3000
        assert (
            np.abs(np.bincount(lists.ravel(), minlength=100) - expected)
            < 5 * np.sqrt(expected) + 1e-9
        ).all()
        assert len(np.unique(np.sort(lists, 1), axis=0)) > 2900
    level = np.array([3.0, 1.0, 1.0, 2.0, 9.0])
    assert (
        stats.expression_bins(level, 5).tolist() == [3, 0, 1, 2, 4]
        and stats.expression_bins(level, 1).tolist() == [0] * 5
    )


def test_matched_lists_take_away_what_expression_explains():
    rng = np.random.default_rng(12)
    level = rng.random(2000)
    r = (0.3 * level + 0.05 * rng.normal(size=2000))[
        :, None
    ]  # R follows expression, and nothing else
    members = (rng.random(2000) < 0.1 * level)[None]
    plain = stats.random_list_test(r, r > 0.2, members, 2000, rng)
    matched = stats.random_list_test(r, r > 0.2, members, 2000, rng, stats.expression_bins(level))
    assert plain["p_r"] < 0.01 < matched["p_r"] and plain["r"] == matched["r"]
    assert abs(matched["r_random"] - matched["r"]) < 0.3 * abs(plain["r_random"] - plain["r"])


def test_random_list_edges():
    rng = np.random.default_rng(13)
    r = rng.random((20, 3))
    r[:, 1] = np.nan  # a cancer without any R
    r[5:, 2] = np.nan
    members = np.zeros((4, 20), bool)
    members[1], members[2, :5], members[3, 10:] = (
        True,
        True,
        True,
    )  # empty; every gene; five; not measured in cancer 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = stats.random_list_test(r, r > 0.5, members, 50, rng)
    assert ours["size"].tolist() == [[0, 0, 0], [20, 0, 5], [5, 0, 5], [10, 0, 0]]
    for key in ("r", "share", "r_random", "share_random", "p_r", "p_share"):
        assert (np.isnan(ours[key]) == (ours["size"] == 0)).all()
    assert (
        ours["p_r"][1, 0] == ours["p_r"][1, 2] == ours["p_r"][2, 2] == ours["p_share"][1, 0] == 1
    )  # the list itself, always
    same(ours["r"][1, 0], ours["r_random"][1, 0])
    constant = stats.random_list_test(
        np.full((20, 1), 0.1), np.zeros((20, 1), bool), members[2:3], 50, rng
    )
    assert constant["p_r"] == constant["p_share"] == 1
    best = stats.random_list_test(
        np.arange(2000.0)[:, None],
        np.zeros((2000, 1), bool),
        (np.arange(2000) > 1990)[None],
        999,
        rng,
    )
    assert best["p_r"] == 1 / 1000  # never 0
    assert stats.random_list_test(r, r > 0.5, members[:0], 50, rng)["p_r"].shape == (0, 3)


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
    assert (
        np.mean(high - low) == pytest.approx(theory, rel=0.08)
        and ((low < 0.5) & (0.5 < high)).mean() > 0.87
    )
    four = np.arange(400) // 4  # four slides of a patient, all alike
    copies = stats.bootstrap_r(prediction[four], truth[four], four, four % 5, 500, rng)
    assert np.mean(copies[1] - copies[0]) == pytest.approx(2 * theory, rel=0.15)


def test_bootstrap_edges():
    rng = np.random.default_rng(17)
    x = rng.normal(size=(6, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for patients, fold in (
            (["a"] * 6, np.zeros(6)),
            (list("abcdef"), np.arange(6)),
        ):  # one patient; folds of one slide
            assert np.isnan(stats.bootstrap_r(x, x, patients, fold, 20, rng)).all()
        low, high = stats.bootstrap_r(
            x, x, list("abcdef"), np.zeros(6), 200, rng
        )  # draws of one patient have no R
        same(low, 1) and same(high, 1)
        for labels, scores, patients in (
            ([1, 1], [0.1, 0.2], "ab"),
            ([1, 0], [0.1, 0.2], "aa"),
            ([1, 0], [0.1, np.nan], "ab"),
            ([], [], ""),
        ):
            assert np.isnan(stats.bootstrap_auc(labels, scores, list(patients), 20, rng)).all()


def test_bootstrap_auc_equals_repeating_the_rows():
    rng = np.random.default_rng(18)
    who = rng.integers(0, 20, 50)
    labels, scores = rng.random(50) < 0.4, rng.integers(0, 9, 50)  # with ties
    times = stats.patient_draws(who, 60, np.random.default_rng(19)).astype(int)
    aucs = [stats.roc_auc(np.repeat(labels, t), np.repeat(scores, t)) for t in times]
    same(
        stats.bootstrap_auc(labels, scores, who, 60, np.random.default_rng(19)),
        np.nanpercentile(aucs, [2.5, 97.5]),
    )
    assert (times.sum(1) != 50).any() and all(
        len(set(t[who == p])) == 1 for t in times for p in set(who.tolist())
    )
    few = [1, 0, 0], [3, 1, 2], ["a", "b", "c"]  # many draws have one class only
    same(stats.bootstrap_auc(*few, 200, rng), (1, 1))


def test_bootstraps_of_pr_auc_and_means_equal_repeating_the_rows():
    rng = np.random.default_rng(21)
    who = np.array(list("aabbbcdefgh"))
    labels, scores = np.array([0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0]), rng.integers(0, 5, 11) / 3
    draws = stats.patient_draws(who, 80, np.random.default_rng(5)).astype(int)
    again = [np.repeat(np.arange(11), d) for d in draws]
    same(
        stats.bootstrap_pr_auc(labels, scores, who, 80, np.random.default_rng(5)),
        np.nanpercentile([stats.pr_auc(labels[r], scores[r]) for r in again], [2.5, 97.5]),
    )
    same(
        stats.bootstrap_mean(scores, who, 80, np.random.default_rng(5)),
        np.percentile([scores[r].mean() for r in again], [2.5, 97.5]),
    )
    assert np.isnan(stats.bootstrap_pr_auc([1, 1, 1], [1, 2, 3], list("abc"), 9, rng)).all()
    assert (
        np.isnan(stats.bootstrap_pr_auc([0, 1], [1, 2], list("aa"), 9, rng)).all()
        and np.isnan(stats.bootstrap_mean([1, 0], "aa", 9, rng)).all()
    )


def test_random_baseline_lies_in_the_range_and_correlates_with_nothing():
    rng = np.random.default_rng(20)
    truth = rng.exponential(size=(153, 2000))
    truth[0, 3] = np.nan
    baseline = stats.random_baseline(truth, rng)
    low, high = np.nanpercentile(truth, [5, 95], axis=0)
    genes = np.delete(np.arange(2000), 3)
    assert (
        np.isnan(baseline[:, 3]).all() and ((low <= baseline) & (baseline <= high))[:, genes].all()
    )
    position = ((baseline - low) / (high - low))[:, genes]
    assert scipy.stats.kstest(position[::7].ravel(), "uniform").pvalue > 1e-4
    r = stats.pearson(baseline, truth)[genes]
    same([r.mean(), r.std()], [0, 1 / math.sqrt(152)], 0.005)  # .081; Fig. 4 prints .15: n = 45
    assert (
        stats.random_baseline(np.ones((9, 2)), rng) == 1
    ).all()  # a constant gene, a constant guess


def test_against_baseline_equals_scipy_gene_by_gene():
    rng = np.random.default_rng(21)
    truth = rng.normal(size=(80, 60))
    prediction = truth + rng.normal(size=60) + rng.normal(size=truth.shape)
    baseline = stats.random_baseline(truth, rng)
    prediction[:, 5], prediction[2, 6] = baseline[:, 5], np.nan
    prediction[:3, 7] = baseline[:3, 7]  # pairs without a difference
    ours = stats.against_baseline(prediction, truth, baseline)
    errors = np.abs(prediction - truth), np.abs(baseline - truth)
    for g in range(60):
        if g == 5:
            assert ours["p"][g] == ours["error_p"][g] == 1 and not ours["better"][g]
        elif g == 6:
            assert (
                np.isnan([ours[k][g] for k in ("p", "bh", "error_p", "error_bh")]).all()
                and not ours["better"][g]
            )
        else:
            how = dict(method="asymptotic", correction=True)
            same(ours["p"][g], scipy.stats.wilcoxon(prediction[:, g], baseline[:, g], **how).pvalue)
            same(
                ours["error_p"][g],
                scipy.stats.wilcoxon(errors[0][:, g], errors[1][:, g], **how).pvalue,
            )
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
    assert (
        (perfect["bh"] > 0.05).mean() > 0.9
        and (perfect["error_bh"] < 1e-10).all()
        and perfect["better"].all()
    )
    mean = np.broadcast_to(skewed.mean(0), skewed.shape)  # predicts nothing
    assert (
        stats.against_baseline(mean, skewed, stats.random_baseline(skewed, rng))["bh"] < 0.05
    ).mean() > 0.9


def test_r_against_baseline_equals_scipy():
    rng = np.random.default_rng(23)
    a, b = rng.normal(size=200), rng.normal(size=150) + 0.3
    same(
        stats.r_against_baseline(np.insert(a, [0, 9], np.nan), np.append(b, np.nan)),
        scipy.stats.mannwhitneyu(a, b),
    )
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
    grid = grid[rng.random(len(grid)) < 0.7]
    coords = rng.permutation((grid * tile).astype(np.int32))
    points = np.concatenate(
        [
            rng.uniform(-99, 32 * tile, (3000, 2)),
            rng.integers(0, int(31 * tile), (3000, 2)),
            coords,
            coords + tile,
        ]
    )
    which, truth = stats.holder(points, coords, tile), held_by_brute_force(points, coords, tile)
    assert all(w == -1 if len(t) == 0 else w in t for w, t in zip(which, truth))
    assert max(map(len, truth)) == 1 or tile % 1
    place = {
        tuple(cell): i for i, cell in enumerate(np.floor((coords + 1) / tile))
    }  # the grid before it was rounded
    deep = np.flatnonzero((abs(points / tile - np.round(points / tile)) > 2 / tile).all(1))
    assert all(which[i] == place.get(tuple(np.floor(points[i] / tile)), -1) for i in deep)
    counts = stats.count_points(points, coords, tile)
    assert counts.shape == (len(coords),) and counts.sum() == (which >= 0).sum()
    assert (counts == [(which == i).sum() for i in range(len(coords))]).all()


def test_a_full_grid_of_real_pitch_loses_no_point_and_counts_none_twice():
    tile, n = 224.3, 25
    coords = (np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) * tile).astype(
        np.int32
    )
    points = np.random.default_rng(1).uniform(0, n * tile - 1, (20000, 2))
    assert stats.count_points(points, coords, tile).sum() == len(points)


def test_tiles_on_no_grid_and_edges():
    coords = np.array([[0, 0], [10, 3], [0, 10], [25, -7]])  # bricks, and one far off
    points = [
        (0, 0),
        (9.99, 9.99),
        (10, 3),
        (10, 2.9),
        (9.5, 10),
        (10, 13),
        (25, -7),
        (34.9, 2.9),
        (35, 2),
        (-1, 0),
        (10, 10),
    ]
    assert stats.holder(points, coords, 10.0).tolist() == [0, 0, 1, -1, 2, -1, 3, 3, -1, -1, 1]
    assert stats.holder([(3, 3)], coords[:1], 10).tolist() == [0]
    assert stats.holder([(3, 3)], np.zeros((0, 2)), 10).tolist() == [-1] and stats.holder(
        [], coords, 10
    ).shape == (0,)
    assert stats.count_points([], coords, 10).tolist() == [0] * 4 and stats.count_points(
        [(3, 3)], [], 10
    ).shape == (0,)


# ----- Shifted draws -------------------------------------------------------------------------
SQUARE = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2)


def smooth_fields(count, sigma=2, seed=0):
    noise = np.random.default_rng(seed).normal(size=(count, 40, 40))
    return (
        ndimage.gaussian_filter(noise, (0, sigma, sigma))[:, 10:30, 10:30].reshape(count, -1).T
    )  # (400, count)


def test_a_shift_moves_a_full_grid_as_a_whole():
    """On a full grid the torus is the grid's own: a draw is np.roll."""
    grid = np.arange(400).reshape(20, 20)
    rolls = {
        tuple(np.roll(grid, s, (0, 1)).ravel()) for s in itertools.product(range(20), range(20))
    }
    draws = [tuple(d) for d in stats.shifts([SQUARE * 7.5 - 31], 60, 0)]
    assert set(draws) <= rolls and len(set(draws)) > 40


def test_shifts_stay_in_their_slide_and_are_seeded():
    rng = np.random.default_rng(0)
    slides = [
        rng.random((9, 2)),
        np.array([[5, 5]]),
        np.stack([np.arange(12), np.full(12, 3)], 1),
        np.zeros((4, 2), int),
        np.repeat(rng.integers(0, 99, (6, 2)), 2, 0),
    ]  # any, one, a line, all in one place, twice each
    slide = np.repeat(np.arange(5), [len(s) for s in slides])
    draws = np.array(list(stats.shifts(slides, 50, 3)))
    assert draws.shape == (50, len(slide)) and (slide[draws] == slide).all()
    assert np.array_equal(draws, list(stats.shifts(slides, 50, 3)))
    assert not np.array_equal(draws, list(stats.shifts(slides, 50, 4)))
    line = draws[:, slide == 2] - 10
    assert all(any((row == np.roll(np.arange(12), s)).all() for s in range(12)) for row in line)
    assert (draws[:, slide == 0] != np.arange(9)).any() and (
        draws[:, slide == 2] != np.arange(10, 22)
    ).any()


def test_false_positives_of_smooth_fields_are_held_where_the_t_test_fails():
    a, b = (
        np.concatenate([smooth_fields(150, seed=s), smooth_fields(150, seed=s + 1)]) for s in (0, 2)
    )  # two slides
    r, p = stats.shift_p(a, b, [SQUARE, SQUARE], n=199)
    t = np.array([scipy.stats.pearsonr(x, y, alternative="greater") for x, y in zip(a.T, b.T)])
    assert (
        np.allclose(r, t[:, 0])
        and (p <= 0.05).mean() <= 0.12
        and (t[:, 1] <= 0.05).mean() > 0.25 > 2 * (p <= 0.05).mean()
    )
    assert abs(p.mean() - 0.5) < 0.1


def test_a_true_correlation_gets_the_smallest_p():
    b = np.concatenate([smooth_fields(8, seed=0), smooth_fields(8, seed=1)])
    a = b + 0.5 * b.std() * np.random.default_rng(0).normal(size=b.shape)
    r, p = stats.shift_p(a, b, [SQUARE, SQUARE], n=99)
    assert (
        (r > 0.8).all()
        and (p == 1 / 100).all()
        and (stats.shift_p(-a, b, [SQUARE, SQUARE], n=99)[1] > 0.95).all()
    )
    one = stats.shift_p(a[:, 0], b, [SQUARE, SQUARE], n=99)
    assert (
        one[0].shape == (8,) and one[0][0] == pytest.approx(r[0], abs=1e-12) and one[1][0] == p[0]
    )
    assert (one[1][1:] > 0.01).any()
    assert np.allclose(
        stats.shift_p(a[:, 0], b[:, 0], [SQUARE, SQUARE], n=99), [one[0][:1], one[1][:1]]
    )


def test_shift_p_equals_its_definition():
    rng = np.random.default_rng(0)
    slides = [rng.random((30, 2)), rng.random((17, 2)) * 50]
    a, b = (
        rng.normal(size=(47, 300)),
        rng.normal(size=(47, 300)).astype(np.float32) + 9,
    )  # more than one block of genes
    a[:, 1] = b[:, 2] = 4
    a[3, 3] = np.nan
    r, p = stats.shift_p(a, b, slides, n=40, seed=5, tick=(done := []).append)
    assert sum(done) == 300 and len(done) == 2
    with np.errstate(all="ignore"):
        expected = np.array(
            [
                [np.corrcoef(a[d, j], b[:, j])[0, 1] for j in range(300)]
                for d in [np.arange(47), *stats.shifts(slides, 40, 5)]
            ]
        )
    none = np.isin(np.arange(300), (1, 2, 3))
    assert (
        np.allclose(r[~none], expected[0, ~none], atol=1e-7)
        and np.isnan(r[none]).all()
        and np.isnan(p[none]).all()
    )
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
    r, p = stats.shift_p(
        [1.0, 2.0], [[2.0], [3.0]], [[(0, 0)], [(5, 5)]], n=9
    )  # one in each slide: nothing can move
    assert r[0] == pytest.approx(1) and p[0] == 1


def test_inside_equals_matplotlib_and_shapes_of_known_sense():
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 12, (2000, 2))
    outlines = [star(rng, k, rng.uniform(2, 8, 2), 5) for k in (3, 4, 11, 200)]
    for ring in outlines:
        truth = Outline(ring).contains_points(points)
        assert 20 < truth.sum() < 1900
        for same in (
            ring,
            ring[::-1],
            np.vstack([ring, ring[:1]]),
            np.roll(ring, 2, 0),
        ):  # direction, closed, start
            assert np.array_equal(stats.inside(points, [[same]]), truth)
    union = np.any([Outline(ring).contains_points(points) for ring in outlines], 0)
    assert np.array_equal(
        stats.inside(points, [[ring] for ring in outlines]), union
    )  # overlaps stay in
    outer, hole = star(rng, 9, (5, 5), 7), star(rng, 9, (5, 5), 2)
    holed = Outline(outer).contains_points(points) ^ Outline(hole).contains_points(points)
    assert np.array_equal(stats.inside(points, [[outer, hole]]), holed)
    assert np.array_equal(
        stats.inside(points, [[outer, hole], [hole]]), holed | Outline(hole).contains_points(points)
    )
    assert not stats.inside(points, []).any() and stats.inside([], [[outer]]).shape == (0,)


def test_tiles_of_a_plane_share_no_point():
    """Half-open edges: grid points on the edges of a triangulated square are in exactly one triangle."""
    rng = np.random.default_rng(0)
    corners = rng.integers(1, 20, (60, 2))
    corners = np.unique(np.vstack([corners, [(0, 0), (20, 0), (0, 20), (20, 20)]]), axis=0)
    triangles = corners[Delaunay(corners).simplices]
    points = np.stack(np.meshgrid(np.arange(0, 20, 0.5), np.arange(0, 20, 0.5)), -1).reshape(-1, 2)
    assert (np.sum([stats.inside(points, [[t]]) for t in triangles], 0) == 1).all()


def test_read_rings_of_every_wrapping():
    square, hole = (
        [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]],
        [[3, 3], [6, 3], [6, 6], [3, 6], [3, 3]],
    )
    polygon = dict(type="Polygon", coordinates=[square, hole])
    multi = dict(
        type="MultiPolygon", coordinates=[[square, hole], [[[20, 0, 1], [29, 0, 1], [29, 9, 1]]]]
    )
    other = [
        dict(type="Feature", geometry=dict(type="Point", coordinates=[1, 2])),
        dict(type="Feature", geometry=None),
        5,
    ]
    features = [
        *other,
        dict(type="Feature", geometry=multi, properties=dict(objectType="annotation")),
    ]
    points = [(1, 1), (4, 4), (28, 1), (15, 5)]
    for value, expected in (
        (polygon, [1, 0, 0, 0]),
        (dict(type="Feature", geometry=polygon), [1, 0, 0, 0]),
        (multi, [1, 0, 1, 0]),
        (features, [1, 0, 1, 0]),
        (dict(type="FeatureCollection", features=features), [1, 0, 1, 0]),
    ):
        polygons = stats.read_rings(json.loads(json.dumps(value)))
        assert stats.inside(points, polygons).tolist() == expected
        assert all(ring.shape[1] == 2 for rings in polygons for ring in rings)
    assert [len(rings) for rings in stats.read_rings(multi)] == [2, 1]


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        3,
        "x",
        [1, None],
        dict(type="FeatureCollection", features=[]),
        dict(features=None),
        dict(type="Polygon"),
        dict(type="LineString", coordinates=[[0, 0], [1, 1]]),
        *(
            dict(type="Polygon", coordinates=c)
            for c in (
                [],
                3,
                [[[0, 1], [2], [3, 4]]],
                [[["a", 0]]],
                [[[0], [1], [2], [3]]],
                [[[0, 0], [1, float("nan")], [1, 1]]],
                [[[0, 0], [1, 10**400], [1, 1]]],
                [[[0, 0], [1, 1e308], [1, 1]]],
                [[[0, 0], [1, 1]]],
            )
        ),
        dict(type="MultiPolygon", coordinates=[[[1, 2], [3, 4], [5, 6]]]),
    ],
)
def test_read_rings_says_in_one_line_what_is_wrong(value):
    with pytest.raises(ValueError) as e:
        stats.read_rings(value)
    assert "\n" not in str(e.value) and ("Polygon" in str(e.value))


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


def test_the_authors_padding_competes():
    """The same three tiles, the authors' way: 0.0 for every k. Authority: that case; a loop over rows."""
    scores, mask = torch.tensor([-1.0, -2, -3])[None, :, None], torch.ones(1, 3, dtype=torch.bool)
    assert [he2rna.padded_top_k_mean(scores, mask, k, 8).item() for k in (1, 2, 3, 8, 99)] == [
        0
    ] * 5
    rng, n_tiles = np.random.default_rng(0), [1, 3, 9, 12]
    scores, mask = bags(rng, n_tiles, 5, pad=1e6)
    for k in (1, 2, 7, 12, 20, 50):
        got = he2rna.padded_top_k_mean(scores, mask, k, 20).numpy()
        for b, n in enumerate(n_tiles):
            for g in range(5):
                rows = sorted([*scores[b, :n, g].tolist(), *[0.0] * (20 - n)], reverse=True)[
                    : min(k, n)
                ]
                assert got[b, g] == pytest.approx(sum(rows) / len(rows), abs=1e-5)


def test_expression_formats_agree_and_genes_without_median_are_dropped(tmp_path):
    rng = np.random.default_rng(0)
    a = np.round(10 ** rng.uniform(0, 5, (9, 40)), 3)
    a[:5, 3] = 0  # median 0
    a[:4, 4] = 0  # median > 0
    genes, ids = [f"G{g}" for g in range(40)], [f"s{i}" for i in range(9)]
    text = "\n".join(
        [
            ",".join(["slide", *genes]),
            *(",".join([i, *map(repr, row.tolist())]) for i, row in zip(ids, a)),
        ]
    )
    for name in ("csv", "gz", "npz", "windows"):
        (tmp_path / name).mkdir()
    (tmp_path / "csv" / "expression.csv").write_text(text)
    (tmp_path / "windows" / "expression.csv").write_bytes(
        ("\ufeff" + text.replace("\n", "\r\n") + "\r\n\r\n").encode()
    )
    (tmp_path / "gz" / "expression.csv.gz").write_bytes(gzip.compress(text.encode()))
    np.savez(
        tmp_path / "npz" / "expression.npz",
        expression=a,
        genes=np.array(genes),
        slide=np.array(ids),
    )
    for name in ("csv", "gz", "npz", "windows"):
        key, got_ids, got_genes, got = read_expression(tmp_path / name)
        assert (
            (key, got_ids, got_genes) == ("slide", ids, genes)
            and np.allclose(got, a, rtol=1e-6)
            and got.dtype == np.float32
        )
    for n in (8, 9):  # even, odd
        assert (
            he2rna.expressed(a[:n]) == (np.median(a[:n], axis=0) > 0)
        ).all() and not he2rna.expressed(a[:n])[3]
    assert np.allclose(he2rna.log_expression(np.array([0, 9, 999.0])), [0, 1, 3])


def test_cancers_are_never_pooled_but_for_the_papers_merges():
    groups = he2rna.cancers(["TCGA-LUAD", "TCGA-LUSC", "TCGA-KIRC", "TCGA-UCEC", "COAD"])
    assert list(groups) == ["LUNG", "COAD", "KIRC", "LUAD", "LUSC", "UCEC"] and groups[
        "LUNG"
    ].tolist() == [True, True, False, False, False]


def test_r_sign_is_the_papers(tmp_path):
    """.64 at n = 44 is the t's first Šidák step over 30,839 genes; .20 at n = 1,046 is not (.143)."""
    for n, want in ((44, 0.637), (1046, 0.143)):
        e = dict(r=np.zeros(30839), fits=dict(t=(0.0, n)))
        assert he2rna.r_sign(e, "t") == pytest.approx(want, abs=6e-4)


# histcode.py: contrastive pretraining (AdCo, SimCLR)
def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_views_have_their_shape_and_range_and_follow_the_seed():
    tiles = (pictures(6, 40) * 255).to(torch.uint8)
    for px in (24, 40, 64):
        a = histcode.make_view(tiles, histcode.draw_view(6, seeded(1)), px)
        assert (
            a.shape == (6, 3, px, px) and a.dtype == torch.float32 and 0 <= a.min() and a.max() <= 1
        )
        assert torch.equal(a, histcode.make_view(tiles, histcode.draw_view(6, seeded(1)), px))
        assert (
            a - histcode.make_view(tiles, histcode.draw_view(6, seeded(2)), px)
        ).abs().mean() > 0.02
    one = histcode.make_view(tiles[:1].repeat(40, 1, 1, 1), histcode.draw_view(40, seeded()), 24)
    assert (
        torch.cdist(one.flatten(1), one.flatten(1)).fill_diagonal_(9).min() > 0.1
    )  # each of one tile's views is another


def test_the_plain_view_is_the_tile_and_floats_are_as_bytes():
    tiles = (pictures(3, 32) * 255).to(torch.uint8)
    got = histcode.make_view(tiles, histcode.plain_view(3), 32)
    assert torch.allclose(got, tiles / 255, atol=1e-6)
    view = histcode.draw_view(3, seeded())
    assert torch.allclose(
        histcode.make_view(tiles, view, 20), histcode.make_view(tiles / 255, view, 20), atol=1e-6
    )


def test_a_view_depends_on_its_own_draws_alone():
    tiles, view = pictures(5, 32), histcode.draw_view(5, seeded(3))
    together = histcode.make_view(tiles, view, 24)
    for i in (0, 3):
        alone = histcode.make_view(tiles[i : i + 1], {k: v[i : i + 1] for k, v in view.items()}, 24)
        assert torch.allclose(alone[0], together[i], atol=1e-6)


@pytest.mark.parametrize("px", [16, 33, 48, 90])
def test_crops_equal_pillows_resize(px):
    tiles, boxes = (
        (pictures(4, 64) * 255).to(torch.uint8),
        torch.tensor(
            [[0, 0, 1, 1], [0.1, 0.25, 0.6, 0.5], [0.3, 0.02, 0.7, 0.93], [0.5, 0.5, 0.45, 0.5]]
        ),
    )
    got = histcode.make_view(tiles, dict(histcode.plain_view(4), box=boxes), px)
    for tile, (left, top, w, h), g in zip(tiles, boxes * 64, got):
        box = [float(v) for v in (left, top, left + w, top + h)]
        for c in range(3):
            want = Image.fromarray(tile[c].float().numpy(), "F").resize(
                (px, px), Image.Resampling.BILINEAR, box
            )
            assert np.abs(np.asarray(want) - g[c].numpy() * 255).max() < 0.01


def test_turns_are_the_eight_symmetries():
    tile = torch.arange(48.0).reshape(1, 3, 4, 4) / 48
    views = [
        histcode.make_view(tile, dict(histcode.plain_view(1), turns=torch.tensor([bits])), 4)[0]
        for bits in itertools.product([False, True], repeat=3)
    ]
    want = [torch.rot90(t, k, (1, 2)) for t in (tile[0], tile[0].flip(2)) for k in range(4)]
    assert sorted(int(np.argmin([(v - w).abs().max() for w in want])) for v in views) == list(
        range(8)
    )
    assert all(min((v - w).abs().max() for w in want) < 1e-6 for v in views)


def test_colour_jitter_equals_colorsys():
    x, rng = pictures(3, 5), np.random.default_rng(0)
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 1, 0] = 0, 1, 0.5  # black, white, grey
    column = lambda v: torch.tensor(v, dtype=torch.float32).reshape(-1, 1, 1, 1)
    for _ in range(5):
        b, c, s = (column(rng.uniform(0.5, 1.5, 3)) for _ in range(3))
        hue = column(rng.uniform(-0.5, 0.5, 3))
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
    got = histcode.shift_hue(x, torch.tensor([0.3, -0.1]).view(2, 1, 1))
    assert torch.allclose(got.amax(1), x.amax(1), atol=1e-6) and torch.allclose(
        got.amin(1), x.amin(1), atol=1e-6
    )
    assert torch.allclose(histcode.shift_hue(x, torch.ones(2, 1, 1)), x, atol=1e-5)  # a full turn


def test_blur_equals_scipy_away_from_the_rim():
    x = torch.rand(3, 3, 40, 40, generator=seeded())
    sigma = torch.tensor([0, 1.1, 2.0])
    weights = histcode.blur_weights(sigma, 40)[:, None]
    got = weights @ x @ weights.mT
    assert torch.allclose(got[0], x[0], atol=1e-6) and torch.allclose(
        weights.sum(3), torch.ones(3, 1, 40)
    )
    for i in (1, 2):
        want = ndimage.gaussian_filter(
            x[i].numpy(), (0, float(sigma[i]), float(sigma[i])), truncate=8
        )
        assert np.abs(want - got[i].numpy())[:, 12:-12, 12:-12].max() < 1e-5


def test_draws_have_their_ranges_and_chances():
    v = histcode.draw_view(20000, seeded())
    left, top, w, h = v["box"].T
    assert (v["box"] >= 0).all() and (left + w).max() < 1 + 1e-6 and (top + h).max() < 1 + 1e-6
    assert (
        (w * h).min() > 0.2 - 1e-6
        and (w / h).min() > 0.75 - 1e-5
        and (w / h).max() < 4 / 3 + 1e-5
        and (w * h).mean() > 0.5
    )
    changed = (v["colour"] != torch.tensor([1, 1, 1, 0.0])).any(1)
    for got, chance in (
        (changed, 0.8),
        (v["gray"], 0.2),
        (v["sigma"] > 0, 0.5),
        *((t, 0.5) for t in v["turns"].T),
    ):
        assert abs(got.float().mean() - chance) < 0.015
    assert (
        (v["colour"] - torch.tensor([1, 1, 1, 0.0])).abs().amax(0) - torch.tensor(histcode.JITTER)
    ).abs().max() < 0.001
    assert 0.1 <= v["sigma"][v["sigma"] > 0].min() and 1.99 < v["sigma"].max() <= 2


def unit(n, d, seed, dtype=torch.float64):
    return F.normalize(torch.randn(n, d, generator=seeded(seed), dtype=dtype), dim=1)


def test_info_nce_equals_its_sum_and_does_not_overflow():
    q, k, w = (
        unit(7, 5, 0),
        unit(7, 5, 1),
        3 * torch.randn(11, 5, generator=seeded(2), dtype=torch.float64),
    )
    for tau, in_batch in itertools.product((0.12, 1.0), (False, True)):
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
@pytest.mark.parametrize("tau", [0.02, 0.12, 1.0])
def test_bank_gradient_equals_autograd_and_is_orthogonal(monkeypatch, tau, in_batch):
    swap(monkeypatch, "histcode", "BANK_BLOCK", 64)  # several blocks, the last one short
    q, k = unit(12, 16, 0), unit(12, 16, 1)
    w = (
        torch.randn(333, 16, generator=seeded(2), dtype=torch.float64)
        * torch.logspace(-2, 2, 333, dtype=torch.float64)[:, None]
    )
    (wanted,) = torch.autograd.grad(histcode.info_nce(q, k, w.requires_grad_(), tau, in_batch), w)
    got = histcode.bank_gradient(q, k, w.detach(), tau, in_batch)
    assert ((got - wanted).norm(dim=1) <= 1e-10 * wanted.norm(dim=1) + 1e-16).all()
    assert ((got * w).sum(1).abs() <= 1e-10 * got.norm(dim=1) * w.norm(dim=1)).all() and got.norm(
        dim=1
    ).min() > 0
    short = histcode.bank_gradient(q.float(), k.float(), w.detach().float(), tau, in_batch)
    assert relative(short, wanted) < 1e-4


def test_bank_step_climbs_and_equals_torchs_sgd():
    q, k, w = (
        unit(12, 8, 0),
        unit(12, 8, 1),
        torch.randn(40, 8, generator=seeded(2), dtype=torch.float64),
    )
    ours, velocity, theirs = w.clone(), torch.zeros_like(w), w.clone().requires_grad_()
    sgd = torch.optim.SGD([theirs], 0.3, momentum=0.9, weight_decay=1e-2, maximize=True)
    for _ in range(5):
        histcode.bank_step(ours, velocity, histcode.bank_gradient(q, k, ours, 0.12), 0.3, 0.9, 1e-2)
        sgd.zero_grad()
        histcode.info_nce(q, k, theirs, 0.12).backward()
        sgd.step()
    # torch subtracts the decay from the reversed gradient with the sign that shrinks, as ours does
    assert torch.allclose(ours, theirs.detach(), rtol=1e-10)
    losses, bank, velocity = [], w.clone(), torch.zeros_like(w)
    for _ in range(30):
        losses.append(histcode.info_nce(q, k, bank, 0.12).item())
        histcode.bank_step(bank, velocity, histcode.bank_gradient(q, k, bank, 0.12), 0.1)
    assert (np.diff(losses) > 0).all() and losses[-1] > losses[0] + 0.1


def test_nt_xent_equals_its_sum():
    z1, z2, tau, loss = unit(6, 4, 0), unit(6, 4, 1), 0.3, 0.0
    z = torch.cat([z1, z2])
    for i in range(12):
        e = [math.exp(float(z[i] @ z[j]) / tau) if i != j else 0 for j in range(12)]
        loss -= math.log(e[(i + 6) % 12] / sum(e)) / 12
    assert histcode.nt_xent(z1, z2, tau).item() == pytest.approx(loss, rel=1e-12)
    assert torch.isfinite(histcode.nt_xent(z1.float(), -z1.float(), 1e-4))


def test_spread_tells_a_collapse():
    z = unit(500, 32, 0)
    assert histcode.spread(z) == pytest.approx(
        float(z.var(0, unbiased=False).mean().sqrt() * 32**0.5), rel=1e-9
    )
    assert histcode.spread(z) > 0.95 and histcode.spread(z[:1].repeat(9, 1)) < 1e-6 < COLLAPSED


def test_mixing_shuffles_within_its_pool():
    for n, pool in ((1, 5), (50, 1), (200, 30), (200, 500)):
        order = histcode.mix(n, pool, np.random.default_rng(0))
        assert (
            sorted(order) == list(range(n)) and (order <= np.arange(n) + pool - 1).all()
        )  # only what has been read
        assert n < 2 or (order == np.arange(n)).all() == (pool == 1)
        assert pool < 30 or np.ptp([np.flatnonzero(order == i)[0] for i in range(10)]) > 15


def test_an_epochs_tiles_are_drawn_from_every_slide_by_seed_and_epoch():
    counts = np.array([5, 40, 0, 12])
    a = histcode.choose_tiles(counts, np.full(4, 10), 0, 1)
    assert len(set(map(tuple, a))) == len(a) and np.bincount(a[:, 0], minlength=4).tolist() == [
        5,
        10,
        0,
        10,
    ]
    assert (a[:, 1] < counts[a[:, 0]]).all() and (
        np.diff(np.flatnonzero(np.diff(a[:, 0]))) > 1
    ).all()
    assert (a == histcode.choose_tiles(counts, np.full(4, 10), 0, 1)).all()
    assert (
        len(
            {
                histcode.choose_tiles(counts, np.full(4, 10), *key).tobytes()
                for key in ((0, 1), (0, 2), (1, 1))
            }
        )
        == 3
    )


@pytest.mark.parametrize("n", [50, 6])  # more samples than features, and fewer
def test_ridge_equals_the_normal_equations(n):
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(2, 3, (n, 8)), rng.normal(size=(n, 2)), rng.normal(2, 3, (5, 8))
    x[:, 3] = new[:, 3] = 7  # a constant feature
    z = np.delete((x - x.mean(0)) / np.maximum(x.std(0), 1e-9), 3, 1)
    zn = np.delete((new - x.mean(0)) / np.maximum(x.std(0), 1e-9), 3, 1)
    for g, penalty in zip(ridge_at(x, y, (0, 0.5, 40.0), new), (0, 0.5, 40.0)):
        w = (
            np.linalg.pinv(z.T @ z + penalty * np.eye(7)) @ z.T @ (y - y.mean(0))
        )  # 0: the smallest solution
        assert np.allclose(g, zn @ w + y.mean(0))


# histcode.py: diagnosis, expression, maps
def ragged(sizes, d=7, seed=0):
    """Bags of these sizes, padded with nan: h (B, T, d), mask (B, T)."""
    h, mask = (
        torch.full((len(sizes), max(sizes), d), torch.nan),
        torch.zeros(len(sizes), max(sizes), dtype=torch.bool),
    )
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
            weights = [
                np.exp(out("query", x) @ out("query", h[b]) / np.sqrt(histcode.QUERIES)) for x in h
            ]
            vectors.append(sum(w * x for w, x in zip(weights, h)) / sum(weights))
        return [
            np.array([scores[best[0]][0], scores[best[1]][1]]),
            out("classify", np.concatenate(vectors)),
        ]
    order, s = (
        sorted(range(len(h)), key=lambda i: scores[i][0] - scores[i][1]),
        np.zeros(histcode.STATE),
    )
    for i in order[: histcode.TOP_TILES]:
        s = np.maximum(0, out("take", h[i]) + out("keep", s))
    return [scores[order[0]], out("classify", s)]


@pytest.mark.parametrize("name", histcode.POOLINGS)
def test_poolings_equal_loops_over_tiles(name):
    sizes = (1, 3, 12, 25)
    model, (h, mask) = classifier(name), ragged(sizes)
    logits, a = model(h, mask)
    for b, n in enumerate(sizes):
        assert np.allclose(logits[b].detach(), by_loop(name, model, h[b, :n]), atol=2e-6)
        assert (
            a[b, :n].sum().item() == pytest.approx(1, abs=1e-6)
            and (a[b] >= 0).all()
            and (a[b, n:] == 0).all()
        )
    logits[:, -1].square().sum().backward()  # padding of nan reaches no gradient
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
        assert (
            (longer - logits).abs().max() < 1e-6
            and (c[:, :40] - a).abs().max() < 1e-6
            and (c[:, 40:] == 0).all()
        )


def test_attention_has_the_shapes_and_parts_of_its_equations():
    h, mask = ragged((4, 2), 5)
    for gated, count in ((True, 2 * 5 * 3 + 3), (False, 5 * 3 + 3)):
        model = histcode.GatedAttention(5, 3, gated)
        z, a = model(h, mask)
        assert (
            z.shape == (2, 5)
            and a.shape == (2, 4)
            and sum(p.numel() for p in model.parameters()) == count
        )
        assert torch.allclose(z, torch.einsum("bt,btd->bd", a, h.nan_to_num()), atol=1e-6)
    with torch.no_grad():  # a high logit doesn't overflow
        model.w.weight.fill_(1e4)
    assert model(h, mask)[1].isfinite().all()


@pytest.mark.parametrize("name", histcode.POOLINGS)
def test_classifiers_trained_at_once_are_those_trained_one_by_one(name):
    (bags, y), splits = planted_bags(), three_splits()
    at_once = learn(name, bags, y, splits, [5, 6, 7])
    for split, seed, got in zip(splits, [5, 6, 7], at_once):
        (alone,) = learn(name, bags, y, [split], [seed])
        assert torch.allclose(got["losses"], alone["losses"], atol=2e-4) and torch.allclose(
            got["tests"], alone["tests"], atol=2e-4
        )
        assert got["tests"].shape == (3, len(split[2]), 2) and got["epoch"] == alone["epoch"]
        assert all(torch.allclose(v, alone["model"][k], atol=2e-3) for k, v in got["model"].items())


def test_figures_of_a_fold_and_their_optimism():
    y, p = (
        np.array([1, 0, 1, 0, 1]),
        torch.tensor(
            [[0.9, 0.1, 0.8, 0.2, 0.7], [0.4, 0.3, 0.2, 0.6, 0.45], [0.6, 0.55, 0.9, 0.1, 0.8]]
        ),
    )
    tests = torch.stack([(1 - p).log(), p.log()], 2)  # logits: (epochs, n, 2)
    f = histcode.figures_of(y, dict(tests=tests, epoch=3))
    assert f["accuracy"] == pytest.approx(0.8) and f["auc"] == 1 and f["pr_auc"] == 1
    assert f["best_epoch"] == 1 and f["best_epoch_auc"] == 1 and f["best_threshold"] == 1
    rng = np.random.default_rng(0)
    for n in (5, 30):
        y, p = np.r_[0, 1, rng.integers(0, 2, n - 2)], rng.integers(0, 6, n) / 6
        assert histcode.best_cut(y, p) == pytest.approx(
            max(((p >= c) == y).mean() for c in [*np.unique(p), 2])
        )
    one_class = histcode.figures_of(np.ones(5, int), dict(tests=tests, epoch=1))
    assert (
        np.isnan(one_class["auc"])
        and one_class["accuracy"] == pytest.approx(0.6)
        and one_class["best_threshold"] == 1
    )


def test_parts_keep_patients_whole_and_labels_spread():
    rng = np.random.default_rng(0)
    patients, y = [], []
    for i in range(60):  # 20 each with tumour, normal, both
        for label in ([1, 1], [0], [0, 1])[i % 3]:
            patients.append(f"P{i:02d}"), y.append(label)
    order = rng.permutation(len(y))
    patients, y = np.array(patients)[order], np.array(y)[order]
    part = histcode.split_patients(patients, y, 10, [0, 0])
    assert all(len(set(part[patients == p])) == 1 for p in set(patients))
    kinds = np.array([int(p[1:]) % 3 for p in patients])
    assert all(
        len(set(patients[(part == f) & (kinds == k)])) == 2 for f in range(10) for k in range(3)
    )
    assert (part != histcode.split_patients(patients, y, 10, [0, 1])).any()


# ----- Differential expression: the pieces ---------------------------------------------------------------------------
def test_fold_changes_worked_by_hand():
    tumour = [8, 1, 0, 3, 0, np.nan, 2, 2.83, 2.82, 1]
    normal = [1, 8, 2, 0, 0, 1, np.nan, 1, 1, 2.83]
    y, label = histcode.fold_change(np.array(tumour), np.array(normal))
    log = math.log10
    want = [
        log(9),
        log(1.125),
        0,
        np.nan,
        np.nan,
        np.nan,
        np.nan,
        log(3.83),
        log(3.82),
        log(1 + 1 / 2.83),
    ]
    assert np.allclose(y, want, equal_nan=True)
    assert np.array_equal(
        label, [1, 1, 1, 1, np.nan, np.nan, np.nan, 1, 0, 1], equal_nan=True
    )  # 2 ** 1.5 = 2.828
    fc = np.exp(np.random.default_rng(0).normal(0, 2, (40, 5)))
    y, label = histcode.fold_change(fc, np.ones_like(fc))
    assert (
        histcode.label_of(y) == label
    ).all() and 0 < label.mean() < 1  # the label that y itself stands for
    assert histcode.label_of(np.array([-3.0, 0, log(2), log(1 + 2**1.51), 9])).tolist() == [
        True,
        True,
        False,
        True,
        True,
    ]


def test_best_penalty_is_that_of_leaving_out_each_patient_in_turn():
    chosen = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        n, d = 24, (4, 40)[seed % 2]
        x = rng.normal(size=(n, d))
        y = x[:, :3] * (seed // 2) + rng.normal(0, 2, (n, 3)) * [1, 5, 2]
        x = np.c_[x * 3 + 1, np.full(n, 5.0)]  # and a constant
        rs = []
        for p in histcode.RIDGE:
            z, left = (
                np.c_[(x[:, :d] - x[:, :d].mean(0)) / x[:, :d].std(0), np.zeros(n)],
                np.empty((n, 3)),
            )  # scale: of all
            for i in range(n):
                rest = np.arange(n) != i
                center = z[rest].mean(0)
                zi, yi = z[rest] - center, y[rest] - y[rest].mean(0)
                w = np.linalg.solve(zi.T @ zi + p * np.eye(d + 1), zi.T @ yi)
                left[i] = y[rest].mean(0) + (z[i] - center) @ w
            rs.append(
                np.mean(
                    [
                        max(0, 1 - sum((a - b) ** 2) / sum((b - b.mean()) ** 2))
                        for a, b in zip(left.T, y.T)
                    ]
                )
            )
        chosen.append(max(zip(rs, histcode.RIDGE))[1])
        unknown = np.where(np.arange(n) == 3, np.nan, rng.normal(size=n) * 1e3)
        assert (
            histcode.best_penalty(x, y)
            == chosen[-1]
            == histcode.best_penalty(x, np.c_[y, unknown, np.ones(n)])
        )
    assert len(set(chosen)) > 2 and histcode.best_penalty(x, np.ones((n, 1))) == histcode.RIDGE[3]


@pytest.mark.parametrize(
    "n,d,twins", [(30, 80, 0), (30, 80, 3), (30, 12, 0), (9, 9, 0), (1, 4, 0), (4, 0, 0)]
)
@pytest.mark.parametrize("penalty", [0, 1e-6, 25.0])
def test_kernel_solve_is_the_pseudo_inverse_singular_or_not(n, d, twins, penalty, monkeypatch):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(n, d)) * np.geomspace(1, 1e-3, d), rng.normal(size=(n, 3))
    z[:twins] = z[n - twins :]  # the same features, other values
    z, y, slow = z - z.mean(0), y - y.mean(0), []
    monkeypatch.setattr(
        np.linalg, "eigh", lambda k, real=np.linalg.eigh: (slow.append(k), real(k))[1]
    )
    got = z.T @ histcode.kernel_solve(z @ z.T, penalty, y)
    assert np.allclose(
        got,
        np.linalg.pinv(z.T @ z + penalty * np.eye(d), rcond=1e-9, hermitian=True) @ z.T @ y
        if penalty
        else np.linalg.pinv(z, rcond=1e-5) @ y,
        rtol=1e-5,
        atol=1e-7,
    )
    assert penalty or bool(slow) == ((n, d, twins) not in ((30, 80, 0), (9, 9, 0)))


@pytest.mark.parametrize("n", [12, 60])
def test_smoother_is_ridge_for_any_order(n):
    rng = np.random.default_rng(0)
    x, new, y = rng.normal(2, 3, (n, 30)), rng.normal(2, 3, (5, 30)), rng.normal(size=(n, 4))
    x[:, 3] = new[:, 3] = 7
    for penalty in (0, 25.0):
        assert np.allclose(
            histcode.smoother(x, new, penalty) @ y, ridge_at(x, y, (penalty,), new)[0]
        )


def test_squared_error_leaves_out_what_is_unknown():
    out, y = (
        torch.randn(3, 4, *shape, generator=seeded(), dtype=torch.float64)
        for shape in ((2, 5), (5,))
    )
    y[0, 1, 2:], y[1, 0] = torch.nan, torch.nan
    out.requires_grad_()
    got = histcode.squared_error(out, y)
    for m, b in itertools.product(range(3), range(4)):
        each = [
            (out[m, b, 1, g] - y[m, b, g]).item() ** 2 for g in range(5) if not y[m, b, g].isnan()
        ]
        assert got[m, b].item() == pytest.approx(np.mean(each) if each else 0)
    got.sum().backward()
    assert (
        out.grad.isfinite().all()
        and (out.grad[0, 1, 1, 2:] == 0).all()
        and (out.grad[0, 1, 1, :2] != 0).all()
    )


def test_the_epoch_kept_is_the_last_one_with_the_fewest_mistakes():
    (bags, y), rng = planted_bags(shift=1.0), np.random.default_rng(1)
    order, differ = rng.permutation(24), 0
    splits = [
        (np.roll(order, 5 * i)[:14], v := np.roll(order, 5 * i)[14:], v) for i in range(4)
    ]  # test is validation
    for split, got in zip(splits, learn("HistCode", bags, y, splits, [1, 2, 3, 4], epochs=25)):
        truth, losses = y[split[1]], []
        mistakes = [int((t.numpy().argmax(1) != truth).sum()) for t in got["tests"]]
        for t in got["tests"].double():
            losses.append(-np.mean([t[i].log_softmax(0)[c].item() for i, c in enumerate(truth)]))
        assert np.allclose(losses, got["losses"], atol=1e-5)
        assert got["epoch"] == 1 + min(range(25), key=lambda e: (mistakes[e], -e))
        differ += got["epoch"] != 1 + int(np.argmin(losses))
        model = histcode.SlideModel("HistCode", np.zeros(6), np.ones(6), 2, (), 8)
        model.load_state_dict(got["model"])  # and its weights are that epoch's
        for i, t in zip(split[1], got["tests"][got["epoch"] - 1]):
            out, _ = model(
                torch.from_numpy(bags[i])[None], torch.ones(1, len(bags[i]), dtype=torch.bool)
            )
            assert torch.allclose(out[0, 0], t, atol=1e-5)
    assert differ  # or the mistakes chose nothing


@pytest.mark.parametrize("name", MODELS)
def test_every_pair_is_predicted_by_the_model_that_did_not_know_its_patient(changed, name):
    run = changed / "runs" / name
    saved, z, folds = folds_in(run), np.load(run / "predictions.npz"), read_csv(run / "folds.csv")
    part = {r["patient"]: int(r["part"]) for r in folds}
    assert len(saved) == 3 and sorted(z["patient"]) == sorted(part)
    assert [part[p] for p in z["patient"]] == z["part"].tolist()
    tested = [who for s in saved for who in s["test_patients"]]
    assert sorted(tested) == sorted(z["patient"])
    assert [s["kind"] for s in saved] == [
        "linear" if name in ("linear", "ridge") else "attention"
    ] * 3
    for f, s in enumerate(saved):
        assert (
            {p for p in part if part[p] == f}
            == set(s["test_patients"])
            == set(part) - set(s["learned_from"])
        )
        assert not set(s["test_patients"]) & {*s["train_patients"], *s["valid_patients"]}
        assert not set(s["train_patients"]) & set(s["valid_patients"])
        assert s["genes"] == z["genes"].tolist()
        assert s["penalty"] in histcode.RIDGE if name == "ridge" else s.get("penalty", 0) == 0
    expression = {r["sample"]: r for r in read_csv(changed / "expression.csv")}
    for i, who in enumerate(z["patient"]):
        h = tiles_in(changed, f"s{int(who[-4:])}_1")
        assert np.allclose(z["prediction"][i], spoken_by_hand(saved[part[who]], h)[0], atol=2e-5)
        pair = (
            [np.float32(expression[f"{who}-{end}"][g]) for g in z["genes"]]
            for end in ("01A", "11A")
        )
        y, label = histcode.fold_change(*map(np.array, pair))
        assert np.allclose(z["truth"][i], y, equal_nan=True, atol=1e-6)
        assert np.array_equal(z["label"][i], label, equal_nan=True)


# ----- A run's models on slides --------------------------------------------------------------------------------------
def test_attention_between_0_and_1_and_dice_worked_by_hand():
    assert np.allclose(histcode.scale_to_one(np.array([0.2, 0.1, 0.5])), [0.25, 0, 1])
    assert (histcode.scale_to_one(np.full(3, 0.3)) == 0).all()
    a, b = np.array([1, 1, 1, 0, 0], bool), np.array([0, 1, 1, 1, 0], bool)
    assert histcode.dice(a, b) == pytest.approx(4 / 6) and histcode.dice(a, a) == 1
    assert histcode.dice(a, ~a) == histcode.dice(~a & a, ~a & a) == 0
