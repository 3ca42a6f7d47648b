"""test_all"""

import colorsys

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import torch
from PIL import Image
from scipy import ndimage

import tiling
from lab.cohort.slides import open_slide
from lab.tests.helpers import H_E, STAIN_PAIRS, degrees_between, painted, stained, tile_cloud

INK = {
    "blue": (30, 60, 170),
    "green": (20, 120, 60),
    "red": (205, 20, 30),
    "black": (15, 15, 18),
    "cyan": (20, 150, 180),
}


def inertia(points, centers):
    return (((points[:, None] - centers[None]) ** 2).sum(2).min(1)).sum()


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
