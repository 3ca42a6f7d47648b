"""Edges of tiling.py: empty slides, pen, odd colours, few tiles. The rest is in test_all.py."""

import numpy as np
import pytest

import tiling
from lab.cohort.slides import open_slide
from lab.tests.helpers import (
    H_E,
    STAIN_PAIRS,
    degrees_between,
    overlap,
    painted,
    stained,
    tile_cloud,
)

INK = {
    "blue": (30, 60, 170),
    "green": (20, 120, 60),
    "red": (205, 20, 30),
    "black": (15, 15, 18),
    "cyan": (20, 150, 180),
}


def one_colour(color, h=64, w=64, noise=0.0):
    rng = np.random.default_rng(0)
    rgb = np.array(color) + rng.normal(0, noise, (h, w, 3))
    return rgb.round().clip(0, 255).astype(np.uint8)


# ----- Otsu --------------------------------------------------------------------------------------


def test_otsu_of_one_value_is_that_value():
    assert tiling.otsu_threshold(np.full(7, 3.5)) == 3.5
    assert tiling.otsu_threshold(np.full(7, 200, np.uint8)) == 200


# ----- Tissue ------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0, 1, 4])
@pytest.mark.parametrize(
    "color", [(255, 255, 255), (243, 243, 243), (128, 128, 128), (240, 200, 222), (2, 2, 2)]
)
def test_an_empty_slide_has_no_tissue(color, noise):
    rng = np.random.default_rng(0)
    light = 1 - 0.2 * np.linspace(0, 1, 120)[None, :, None]
    rgb = np.array(color) * light + rng.normal(0, noise, (90, 120, 3))
    assert tiling.tissue_mask(rgb.clip(0, 255).astype(np.uint8)).sum() == 0


@pytest.mark.parametrize("ink", INK)
def test_pen_is_not_tissue(ink):
    rgb, truth = painted()
    rgb[10:18, 20:190] = rgb[5:150, 185:192] = INK[ink]  # strokes beside the tissue
    mask = tiling.tissue_mask(rgb)
    assert overlap(mask, truth) > 0.88
    assert not mask[11:17, 120:190].any()
    assert not mask[20:150, 186:191].any()


@pytest.mark.parametrize("dye", H_E)
def test_every_stain_is_tissue(dye):
    rgb = np.full((60, 80, 3), 243, np.uint8)
    rgb[20:50, 20:60] = H_E[dye]
    assert tiling.tissue_mask(rgb)[24:46, 24:56].all()


def test_black_border_and_what_was_not_scanned_are_not_tissue():
    rgb, truth = painted()
    rgb[:12] = 3
    rgb[:, :9] = 0
    scanned = np.ones(truth.shape, bool)
    scanned[:, 130:] = False  # as MIRAX slides: half of them never scanned
    mask = tiling.tissue_mask(rgb, scanned)
    assert not mask[:12].any()
    assert not mask[:, :9].any()
    assert not mask[:, 130:].any()
    assert overlap(mask[14:, 12:128], truth[14:, 12:128]) > 0.88


@pytest.mark.parametrize(
    "color, share",
    [((243, 243, 243), 0), (H_E["pale eosin"], 1), ((128, 128, 128), 0), (INK["blue"], 1)],
    ids=["glass", "pale eosin", "grey", "pen, too"],
)
def test_what_saturation_takes_for_tissue(color, share):
    rgb = one_colour(color, 30, 40)
    mask, _ = tiling.find_tissue(rgb, np.ones((30, 40), bool), "saturation", 8)
    assert mask.mean() == share


def test_tissue_by_saturation_is_where_it_was_scanned():
    rgb = one_colour(H_E["eosin"], 40, 40)
    left = np.arange(1600).reshape(40, 40) % 40 < 20
    assert tiling.find_tissue(rgb, left, "saturation", 8)[0].sum() == 800


def test_small_pieces_of_tissue_are_dropped():
    """Painted are pieces of 80 x 90 and 60 x 60 pixels."""
    rgb, truth = painted()
    mask, _ = tiling.find_tissue(rgb, np.ones(truth.shape, bool), least=4500)
    assert overlap(mask, truth & (np.arange(200) < 118)) > 0.9


# ----- Tiles -------------------------------------------------------------------------------------


def test_grid_samples_by_seed_and_keeps_the_order():
    mask = np.ones((30, 30), bool)
    every = tiling.tile_grid(mask, (300, 300), 10)
    some = tiling.tile_grid(mask, (300, 300), 10, max_tiles=100, seed=1)
    assert (len(every), len(some)) == (900, 100)
    place = {tuple(corner): i for i, corner in enumerate(every)}
    order = [place[tuple(corner)] for corner in some]
    assert order == sorted(set(order))
    assert np.ptp(order) > 700  # a sample of all, not the first rows
    again, other = (tiling.tile_grid(mask, (300, 300), 10, max_tiles=100, seed=s) for s in (1, 2))
    assert np.array_equal(again, some)
    assert not np.array_equal(other, some)


def test_grid_of_a_slide_smaller_than_a_tile_or_without_tissue_is_empty():
    mask = np.ones((30, 30), bool)
    assert tiling.tile_grid(mask, (5, 300), 10).shape == (0, 2)
    assert tiling.tile_grid(~mask, (300, 300), 10).shape == (0, 2)


def test_runs_hold_neighbours_only():
    """By hand."""
    coords = np.array([(0, 0), (10, 0), (20, 0), (40, 0), (50, 0), (0, 10), (10, 10)])
    assert tiling.tile_runs(coords, 10.3) == [(0, 3), (3, 5), (5, 7)]
    assert tiling.tile_runs(coords[:0], 10) == []
    row = np.array([(i * 10, 0) for i in range(99)])
    assert max(last - first for first, last in tiling.tile_runs(row, 10)) == tiling.RUN_TILES


# ----- Colour ------------------------------------------------------------------------------------


def test_macenko_needs_neither_the_order_of_pixels_nor_glass():
    rgb, _ = stained(STAIN_PAIRS["bluish"], (1.3, 0.8))
    od = tiling.optical_density(rgb)
    stains, top = tiling.macenko_stains(od)
    order = np.random.default_rng(1).permutation(len(od))
    glass = np.full((20_000, 3), -0.06, np.float32)
    again = tiling.macenko_stains(np.concatenate([od[order], glass]))
    assert np.allclose(again[0], stains, atol=1e-6)
    assert np.allclose(again[1], top, atol=1e-5)


def test_differently_stained_slides_of_one_tissue_become_one():
    """Pure stains become the reference's, their 99th percentiles the reference's percentiles."""
    reference, seen, normal = np.array(tiling.REFERENCE), [], []
    for pair, strength in (("reddish", (1.2, 0.9)), ("bluish", (0.7, 1.3))):
        rgb, c = stained(STAIN_PAIRS[pair], strength, 65_536, 1)
        od = tiling.optical_density(rgb)
        out, changed = tiling.macenko(rgb.reshape(1, 256, 256, 3), tiling.macenko_stains(od))
        assert changed.all()
        seen.append(rgb.astype(int))
        normal.append(out.astype(int))
        after = tiling.optical_density(out.reshape(-1, 3))
        haematoxylin = after[(c[:, 1] == 0) & (c[:, 0] > 0.5)].mean(0)
        eosin = after[(c[:, 0] == 0) & (c[:, 1] > 0.5)].mean(0)
        assert degrees_between(np.stack([haematoxylin, eosin]), reference).max() < 1
        dense = after[(od >= 0.15).all(1)]
        strengths, *_ = np.linalg.lstsq(reference.T, dense.T, rcond=None)
        tops = np.percentile(strengths, 99, axis=1)
        assert np.allclose(tops, tiling.REFERENCE_TOP, rtol=0.02)
    assert np.abs(seen[0] - seen[1]).mean() > 10
    assert np.abs(normal[0] - normal[1]).mean() < 1.5


def test_macenko_leaves_the_reference_as_it_is():
    """But for the one grey level that the logarithm adds."""
    rgb, _ = stained(STAIN_PAIRS["reference"], n=65_536)
    stains, _ = tiling.macenko_stains(tiling.optical_density(rgb))
    reference = np.array(tiling.REFERENCE)
    assert degrees_between(stains, reference).max() < 1
    known = reference, np.array(tiling.REFERENCE_TOP)
    out, _ = tiling.macenko(rgb.reshape(1, 256, 256, 3), known)
    tissue = rgb.max(1) <= 235
    moved = np.abs(out.reshape(-1, 3).astype(int) - rgb)[tissue]
    assert np.median(moved) == 1
    assert (moved <= 2).mean() > 0.99
    assert moved.max() < 8


def one_stain(noise=0.0):
    rng = np.random.default_rng(0)
    od = rng.uniform(0, 2, (64, 64, 1)) * tiling.REFERENCE[0]
    light = 240 * np.exp(-od) - 1 + rng.normal(0, noise, od.shape)
    return light.round().clip(0, 255).astype(np.uint8)


WITHOUT_TWO_STAINS = {
    "white": one_colour((255,) * 3),
    "glass": one_colour((240,) * 3),
    "noisy glass": one_colour((243, 240, 244), noise=2),
    "black": one_colour((0,) * 3),
    "grey": one_colour((128,) * 3),
    "one colour": one_colour((170, 90, 150)),
    "one colour, noisy": one_colour((170, 90, 150), noise=1),
    "dark": one_colour((60, 30, 90)),
    "one stain": one_stain(),
    "one stain, noisy": one_stain(1),
    "a white pixel": one_colour((255,) * 3, 1, 1),
    "a stained pixel": one_colour((90, 60, 120), 1, 1),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", WITHOUT_TWO_STAINS)
def test_macenko_leaves_a_tile_without_two_stains_unchanged(name):
    tile = WITHOUT_TWO_STAINS[name]
    found = tiling.macenko_stains(tiling.optical_density(tile.reshape(-1, 3)))
    assert found is None
    got, changed = tiling.macenko(tile[None], found)
    assert np.array_equal(got[0], tile)
    assert changed.tolist() == [False]


@pytest.mark.filterwarnings("error")
def test_macenko_of_a_slide_on_its_odd_tiles():
    """The slide's stains are known: only tiles with almost no stain stay, none turns green."""
    found = STAIN_PAIRS["bluish"], np.array([3.3, 1.2])
    white = one_colour((255,) * 3)
    speck, tissue = white.copy(), white.copy()
    speck[:6, :6] = (110, 75, 150)  # 36 of 4,096 pixels, under 1 %
    tissue[:7, :6] = (110, 75, 150)
    black, pink = one_colour((0,) * 3), one_colour((170, 90, 150))
    tiles = np.stack([white, speck, tissue, black, pink, one_stain(1)])
    before = tiles.copy()
    got, changed = tiling.macenko(tiles, found)
    assert changed.tolist() == [False, False, True, True, True, True]
    assert np.array_equal(got[:2], tiles[:2])
    assert np.array_equal(tiles, before)
    assert got[2, -1, -1].min() > 235  # glass stays bright, black dark
    assert got[3].max() < 40
    red, green, blue = np.moveaxis(got[4:].astype(int), -1, 0)
    assert (green <= np.minimum(red, blue) + 25).all()
    for i in range(len(tiles)):
        assert np.array_equal(tiling.macenko(tiles[i : i + 1], found)[0][0], got[i])
    empty, none = tiling.macenko(tiles[:0], found)
    assert (empty.shape, none.shape) == ((0, 64, 64, 3), (0,))


def test_stretch_worked_by_hand():
    """Each channel of each tile from its lowest to its highest value; one of one value is 0."""
    tiles = np.zeros((2, 1, 2, 3), np.uint8)
    tiles[0, 0] = [(10, 50, 7), (110, 100, 7)]
    tiles[1, 0] = [(0, 20, 255), (255, 220, 0)]
    want = [[[[0, 0, 0], [255, 255, 0]]], [[[0, 0, 255], [255, 255, 0]]]]
    assert tiling.stretch(tiles).tolist() == want


# ----- Super-tiles -------------------------------------------------------------------------------


CLOUD = tile_cloud(3000).astype(float)


def test_clusters_are_their_points_means_and_none_is_empty():
    """NumPy's means; brute force over all centres."""
    centers, labels = tiling.kmeans(CLOUD, 60, 0)
    assert centers.shape == (60, 2)
    assert np.bincount(labels, minlength=60).min() > 0
    for j in range(60):
        assert np.allclose(centers[j], CLOUD[labels == j].mean(0))
    d2 = ((CLOUD[:, None] - centers[None]) ** 2).sum(2)
    own = d2[np.arange(3000), labels]
    assert (own > d2.min(1)).mean() < 0.02  # the last small move apart, the nearest is its own


def test_kmeans_has_one_result_for_a_seed():
    (a, a_labels), (b, b_labels), (c, _) = (tiling.kmeans(CLOUD, 20, seed) for seed in (3, 3, 4))
    assert np.array_equal(a, b)
    assert np.array_equal(a_labels, b_labels)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    "points, k, n_clusters",
    [
        ([[1, 2]], 5, 1),
        ([[0, 0], [0, 0], [1, 1]], 5, 2),
        ([[0, 0]] * 9 + [[5, 5]] * 9 + [[9, 0]], 2, 2),
        ([[1, 2], [3, 4]], 1, 1),
        ([[0.0]] * 400 + [[1.0]] + [[2.0]], 2, 2),
    ],
)
def test_kmeans_of_few_different_points(points, k, n_clusters):
    centers, labels = tiling.kmeans(np.array(points), k, 0)
    assert len(centers) == n_clusters
    assert set(labels) == set(range(n_clusters))


def test_an_empty_cluster_gets_the_point_farthest_from_its_own():
    """Three clusters, the third empty; point 1 is farthest, but alone in its cluster."""
    distances = np.array([[1.0, 9, 9], [9, 8, 9], [2, 9, 9], [0, 9, 9]])
    assert tiling.fill_empty(distances.argmin(1), distances).tolist() == [0, 1, 2, 0]


def test_fewer_tiles_than_supertiles_are_each_their_own():
    features = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float16)
    means, mask, cluster = tiling.supertiles(features, tile_cloud(3), 20, 0)
    assert mask.sum() == 3
    assert not means[~mask].any()
    assert np.allclose(means[cluster], features)
    means, mask, cluster = tiling.supertiles(features[:0], tile_cloud(3)[:0], 20, 0)
    assert not mask.any()
    assert not means.any()


@pytest.mark.parametrize("n, k", [(250, 100), (250, 7), (30, 100), (1, 3)])
def test_supertiles_without_coordinates_are_even_runs_of_rows(n, k):
    features = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    means, mask, cluster = tiling.supertiles(features, None, k)
    assert np.array_equal(np.unique(cluster), np.arange(min(n, k)))
    assert (np.diff(cluster) >= 0).all()
    assert np.ptp(np.bincount(cluster)) <= 1
    runs = np.split(features, np.flatnonzero(np.diff(cluster)) + 1)
    assert mask.sum() == min(n, k)
    assert np.allclose(means[mask], [run.mean(0) for run in runs], atol=1e-6)
    assert not means[~mask].any()


def test_the_whole_path_as_the_manual_says(smooth_slide):
    """The example at the head of tiling.py, with random weights."""
    slide = open_slide(smooth_slide[0])
    rgb, scanned = tiling.thumbnail(slide, 0.25)
    tile = tiling.TILE_UM / 0.25
    coords = tiling.tile_grid(scanned, slide.dimensions, tile, max_tiles=3)
    pixels = tiling.read_tiles(slide, coords, tile, px=64)
    features = tiling.encode(tiling.ResNet50(), pixels)
    means, mask, cluster = tiling.supertiles(features, coords)
    assert rgb.shape[:2] == scanned.shape
    assert (features.shape, means.shape, mask.sum()) == ((3, 2048), (100, 2048), 3)
    assert np.allclose(means[cluster], features, atol=1e-5)
