"""What is true of tiling.py, stats.py, he2rna.py and histcode.py, function by function.

The name of a test says what is true, its docstring on whose authority. Edges and what is ours
alone are in lab/tests/test_edges_*.py. Real data are read where REAL_DATA names their folder.
"""

import colorsys
import copy
import gzip
import itertools
import math
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.cluster
import scipy.optimize
import scipy.signal
import scipy.stats
import skimage.filters
import sklearn.metrics
import sklearn.model_selection
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression

import he2rna
import histcode
import stats
import tiling
from lab.calibration import intervals as calibration
from lab.cohort.slides import open_slide
from lab.gene_sets import read_sets
from lab.histcode.networks import POOLINGS, SlideModel
from lab.tests.helpers import (
    REAL_DATA,
    STAIN_PAIRS,
    degrees_between,
    overlap,
    painted,
    patients_of_projects,
    pictures,
    relative,
    same,
    stained,
    tile_cloud,
    write_pyramid,
)
from lab.tests.helpers_he2rna import bags, planted_slides, small_model
from lab.tests.helpers_histcode import (
    drawn_network,
    learn,
    plain_view,
    planted_bags,
    ragged,
    random_views,
    seeded,
    small_embedder,
    unit_rows,
)

# ===== tiling.py =================================================================================


# ----- A slide -----------------------------------------------------------------------------------
def test_the_scanned_part_is_what_the_file_says():
    """OpenSlide's properties, as MIRAX files have them; a file without them was scanned whole."""
    sides = {"x": 10, "y": 20, "width": 300, "height": 400}
    bounds = {f"openslide.bounds-{side}": str(n) for side, n in sides.items()}
    slide = SimpleNamespace(dimensions=(900, 800), properties=bounds)
    assert tiling.slide_bounds(slide) == (10, 20, 300, 400)
    slide.properties = {}
    assert tiling.slide_bounds(slide) == (0, 0, 900, 800)


@pytest.mark.parametrize("factor", [2, 4, 16])
def test_the_level_that_is_read_is_the_coarsest_that_is_fine_enough(factor):
    """Brute force; of levels that halve, under 4 pixels are read for each one of a tile."""
    downsamples = [float(factor**i) for i in range(7)]
    slide = SimpleNamespace(level_downsamples=downsamples)
    for wanted in np.geomspace(0.3, 60, 200):
        fine_enough = [d for d in downsamples if d <= wanted * 1.01] or [1.0]
        level, d = tiling.best_level(slide, wanted)
        assert d == downsamples[level] == max(fine_enough)
        assert (wanted / d) ** 2 < factor**2


def test_thumbnail_in_strips_equals_at_once(smooth_slide, monkeypatch):
    """Pillow's box average of the whole picture."""
    path, rgb = smooth_slide
    slide = open_slide(path)
    at_once, scanned = tiling.thumbnail(slide, 0.25)
    monkeypatch.setattr(tiling, "STRIP_PIXELS", 3000)
    monkeypatch.setattr(tiling, "STRIP_WIDTH", 500)
    strips, _ = tiling.thumbnail(slide, 0.25)
    assert at_once.shape == (47, 56, 3)
    assert scanned.all()
    assert np.abs(at_once.astype(int) - strips).max() <= 1
    want = Image.fromarray(rgb).resize((56, 47), Image.Resampling.BOX)
    assert np.abs(at_once.astype(int) - np.asarray(want)).mean() < 1.5


def test_a_thumbnail_as_fine_as_the_slide_is_the_slide(tmp_path):
    """The picture itself; a slide too thin for a pixel of a thumbnail has one all the same."""
    rgb = np.random.default_rng(0).integers(0, 256, (90, 130, 3)).astype(np.uint8)
    write_pyramid(tmp_path / "a.tif", rgb, 0.5)
    got, scanned = tiling.thumbnail(open_slide(tmp_path / "a.tif"), 0.5, um=0.5)
    assert np.array_equal(got, rgb) and scanned.all()
    for edges in ((3, 600), (600, 3)):
        write_pyramid(tmp_path / "thin.tif", np.zeros((*edges, 3), np.uint8), 0.5, levels=1)
        got, _ = tiling.thumbnail(open_slide(tmp_path / "thin.tif"), 0.5, um=8)
        assert sorted(got.shape[:2]) == [1, 38] and not got.any()


def test_a_whole_slide_of_glass_is_seen_at_8_um_and_a_whole_mount_in_as_many_pixels():
    """Arithmetic: 26 x 76 mm and 100 x 200 mm, at 0.25 and 1 µm per pixel."""
    for mpp in (0.25, 1.0):
        W, H = 26e3 / mpp, 76e3 / mpp
        assert tiling.thumbnail_um((W, H), mpp) == 8.0
        um = tiling.thumbnail_um((100e3 / mpp, 200e3 / mpp), mpp)
        assert 100e3 / um * 200e3 / um == pytest.approx(2**25)


def test_each_pixel_of_a_slide_without_levels_is_read_once_and_few_at_a_time(monkeypatch):
    """A slide that counts what is read."""
    edge, reads = 2500, []
    monkeypatch.setattr(tiling, "STRIP_PIXELS", 2**17)
    monkeypatch.setattr(tiling, "STRIP_WIDTH", 2**10)

    def read_region(corner, level, size):
        reads.append(size)
        return Image.new("RGBA", size, (243, 240, 240, 255))

    slide = SimpleNamespace(
        dimensions=(edge, edge),
        level_dimensions=[(edge, edge)],
        level_downsamples=[1.0],
        properties={},
        read_region=read_region,
    )
    rgb, _ = tiling.thumbnail(slide, 0.25, um=6.25)
    assert rgb.shape == (100, 100, 3)
    assert (rgb == (243, 240, 240)).all()
    w, h = np.transpose(reads)
    assert (w * h).max() <= 2**17
    assert (w * h).sum() == edge**2
    assert np.median(w) >= np.median(h) >= 100  # so that of a file's own tiles few are cut in two


# ----- Otsu --------------------------------------------------------------------------------------
RNG = np.random.default_rng(0)
VALUES = {
    "one class": RNG.normal(0, 1, 500),
    "two classes": np.r_[RNG.normal(0, 1, 900), RNG.normal(6, 2, 100)],
    "grey levels": RNG.integers(0, 256, 999).astype(np.uint8),
    "few grey levels": np.r_[RNG.integers(3, 9, 50), RNG.integers(200, 250, 9)].astype(np.uint8),
    "skewed": RNG.gamma(2, 3, 5000),
}


def between_classes(values, cut):
    """Otsu's variance between the classes, up to a factor."""
    low, high = values[values <= cut].astype(float), values[values > cut].astype(float)
    if len(low) == 0 or len(high) == 0:
        return 0
    return len(low) * len(high) * (low.mean() - high.mean()) ** 2


@pytest.mark.parametrize("name", VALUES)
def test_otsu_maximises_the_variance_between_classes(name):
    """Brute force: 256 thresholds."""
    values = VALUES[name]
    tried = np.linspace(values.min(), values.max(), 256)
    best = max(between_classes(values, cut) for cut in tried)
    assert between_classes(values, tiling.otsu_threshold(values)) >= 0.99 * best


@pytest.mark.parametrize("name", VALUES)
def test_otsu_equals_scikit_image(name):
    """scikit-image."""
    want = skimage.filters.threshold_otsu(VALUES[name])
    assert tiling.otsu_threshold(VALUES[name]) == pytest.approx(want, rel=1e-6, abs=1e-5)


# ----- Tissue ------------------------------------------------------------------------------------
BACKGROUNDS = [(243, 243, 243), (255, 255, 255), (190, 190, 190), (240, 200, 222), (235, 232, 215)]


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize(
    "light",
    [None, lambda x, y: 1 - 0.3 * x, lambda x, y: 1 - 0.35 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)],
    ids=["even", "from the left", "from the middle"],
)
def test_tissue_is_found_on_any_background(background, light):
    """Painted tissue, whose outline is known."""
    rgb, truth = painted(background, light)
    assert overlap(tiling.tissue_mask(rgb), truth) > 0.9


def test_saturation_is_colorsys_and_its_median_brute_force():
    """colorsys, and NumPy's median of each 7 x 7 pixels."""
    rgb = np.random.default_rng(0).integers(0, 256, (14, 17, 3)).astype(np.uint8)
    rgb[3], rgb[5] = 0, 77
    each = np.zeros((14, 17))
    for y, x in np.ndindex(14, 17):
        _, saturation, _ = colorsys.rgb_to_hsv(*rgb[y, x] / 255)
        each[y, x] = round(255 * saturation + 1e-9)
    wide = np.pad(each, 3, mode="edge")
    got = tiling.saturation_map(rgb)
    for y, x in np.ndindex(14, 17):
        assert got[y, x] == np.median(wide[y : y + 7, x : x + 7])


def test_tissue_of_a_level_of_saturation():
    """Painted tissue; HistCode's threshold of 8, and Otsu's."""
    rgb, truth = painted()
    everywhere = np.ones(truth.shape, bool)
    mask, threshold = tiling.find_tissue(rgb, everywhere, "saturation", 8)
    assert threshold == 8
    assert overlap(mask, truth) > 0.95
    mask, threshold = tiling.find_tissue(rgb, everywhere, "saturation")
    assert threshold == tiling.otsu_threshold(tiling.saturation_map(rgb))
    assert overlap(mask, truth) > 0.6
    mask, _ = tiling.find_tissue(rgb, ~everywhere, "saturation")
    assert not mask.any()


def test_gaps_are_closed_as_by_definition():
    """The definition: each pixel all of whose 4 x 4 squares meet the mask."""
    mask = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(60, 70)), 4) > 0
    window = np.lib.stride_tricks.sliding_window_view
    meets = window(mask, (4, 4)).any((2, 3))
    closed = window(meets, (4, 4)).all((2, 3))
    got = tiling.close_gaps(mask)
    assert np.array_equal(got[3:-3, 3:-3], closed)
    assert (got | ~mask).all()
    assert (got != mask).sum() > 20


def pieces_of(mask):
    """Connected pieces, corners connect, by flood fill: a list of sets of (y, x)."""
    pieces, left = [], set(zip(*np.nonzero(mask), strict=True))
    while left:
        piece, todo = set(), [left.pop()]
        while todo:
            y, x = todo.pop()
            piece.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        pieces.append(piece)
    return pieces


def test_small_pieces_are_dropped():
    """Flood fill; corners connect."""
    mask = ndimage.gaussian_filter(np.random.default_rng(0).random((60, 80)), 1) > 0.55
    pieces = pieces_of(mask)
    sizes = sorted(map(len, pieces))
    assert 8 < len(sizes) < ndimage.label(mask)[1]  # some hang together by a corner alone
    for least in (0, sizes[0] + 1, sizes[len(sizes) // 2], sizes[-1], sizes[-1] + 1):
        want = {pixel for piece in pieces if len(piece) >= least for pixel in piece}
        kept = tiling.drop_pieces(mask, least)
        assert set(zip(*np.nonzero(kept), strict=True)) == want


@pytest.mark.parametrize("rule", ["stain", "saturation"])
@pytest.mark.parametrize("kind", ["plain", "filled up", "pen", "noise"])
def test_tissue_found_in_blocks_is_that_of_the_whole_picture(kind, rule, monkeypatch):
    """The same functions at once, bit for bit."""
    rgb, _ = painted((226, 194, 219), noise=1.0)
    scanned = np.ones(rgb.shape[:2], bool)
    if kind == "filled up":
        rgb[:, 95:130] = 255
        scanned[:40] = False
    if kind == "pen":
        rgb[70:78] = (20, 120, 60)
        rgb[:, 60:66] = 10
    if kind == "noise":
        rgb = np.random.default_rng(0).integers(0, 256, rgb.shape).astype(np.uint8)
    whole, threshold = tiling.find_tissue(rgb, scanned, rule, least=30)
    stain = tiling.stain_map(rgb, scanned)
    for edge in (37, 64):
        monkeypatch.setattr(tiling, "BLOCK_PX", edge)
        mask, in_blocks = tiling.find_tissue(rgb, scanned, rule, least=30)
        assert in_blocks == threshold
        assert np.array_equal(mask, whole)
        assert np.array_equal(tiling.stain_map(rgb, scanned), stain)
    assert 0 < whole.mean() <= 1


PADDINGS = {
    "beside": lambda rgb, grey: np.hstack([rgb, np.full_like(rgb, grey)]),
    "below": lambda rgb, grey: np.vstack([rgb, np.full_like(rgb[:40], grey)]),
    "between": lambda rgb, grey: np.hstack([rgb[:, :100], np.full_like(rgb, grey), rgb[:, 100:]]),
}


@pytest.mark.parametrize("rule", ["stain", "saturation"])
@pytest.mark.parametrize("grey", [255, 243, 128, 0])
@pytest.mark.parametrize("where", PADDINGS)
def test_what_was_filled_up_changes_nothing(where, grey, rule):
    """The same picture of pink glass without the padding."""
    rgb, truth = painted((226, 194, 219), noise=1.0)
    alone, threshold = tiling.find_tissue(rgb, np.ones(truth.shape, bool), rule)
    padded = PADDINGS[where](rgb, grey)
    scanned = np.ones(padded.shape[:2], bool)
    mask, same_threshold = tiling.find_tissue(padded, scanned, rule)
    if where == "between":
        mask = np.hstack([mask[:, :100], mask[:, 300:]])
        scanned = np.hstack([scanned[:, :100], scanned[:, 300:]])
    inside = mask[:160, :200]
    assert mask.sum() == inside.sum()
    assert overlap(inside, alone) > 0.95
    assert same_threshold == pytest.approx(threshold, rel=0.1)


@pytest.mark.parametrize("background", [(255, 255, 255), (262, 262, 262), (243, 243, 243)])
def test_glass_is_not_taken_for_filled_up(background):
    """White, and so bright that it clips: it has no noise, but no straight edges."""
    for noise in (0.0, 2.0):
        rgb, truth = painted(background, noise=noise)
        everywhere = np.ones(truth.shape, bool)
        assert not tiling.filled_up(rgb, everywhere).any()
        assert overlap(tiling.tissue_mask(rgb), truth) > 0.85
    rgb, truth = painted((243, 243, 243), noise=2.0)
    rgb[20:60, 10:40] = 243  # as if a program had smoothed the glass there
    assert not tiling.filled_up(rgb, np.ones(truth.shape, bool)).any()
    blank = np.full((60, 80, 3), 255, np.uint8)
    assert not tiling.filled_up(blank, np.ones((60, 80), bool)).any()


# ----- Tiles -------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale, tile", [(4, 28), (4, 29.3), (2.5, 20.0)])
def test_grid_equals_counting_pixels(scale, tile):
    """Brute force: counting pixels of a picture 40 times as fine."""
    mask = ndimage.gaussian_filter(np.random.default_rng(0).random((50, 70)), 4) > 0.5
    fine = np.kron(mask, np.ones((40, 40)))
    W, H = round(70 * scale), round(50 * scale)
    coords = tiling.tile_grid(mask, (W, H), tile, 0.5)
    assert coords.dtype == np.int32
    got = {tuple(corner) for corner in coords}
    share = {}
    for iy in range(int(H / tile + 1e-6)):
        for ix in range(int(W / tile + 1e-6)):
            y, y_end, x, x_end = (round(i * tile * 40 / scale) for i in (iy, iy + 1, ix, ix + 1))
            share[int(ix * tile), int(iy * tile)] = fine[y:y_end, x:x_end].mean()
    surely = {corner for corner, s in share.items() if s > 0.51}
    perhaps = {corner for corner, s in share.items() if s > 0.49}
    assert surely <= got <= perhaps
    assert 10 < len(got) < len(share) - 10
    assert coords[:, 0].max() + tile <= W + 1e-6


@pytest.mark.parametrize("mpp, level", [(0.5, 0), (0.25, 1), (0.2495, 1), (0.12, 2), (0.6, 0)])
def test_tiles_equal_a_direct_resample_of_the_full_picture(smooth_slide, mpp, level):
    """Pillow's Lanczos, which looks beyond a tile's rim: there they may differ."""
    path, rgb = smooth_slide
    slide, tile = open_slide(path), 112 / mpp
    assert tiling.best_level(slide, tile / 224)[0] == level
    coords = np.array([[int(i * tile), int(tile * 0.3)] for i in range(int(1800 / tile))])
    tiles = tiling.read_tiles(slide, coords, tile)
    for (x, y), got in zip(coords, tiles, strict=True):
        box = (x, y, x + tile, y + tile)
        want = Image.fromarray(rgb).resize((224, 224), Image.Resampling.LANCZOS, box)
        assert np.abs(got.astype(int) - np.asarray(want))[4:-4, 4:-4].mean() < 1.0
        alone = tiling.read_tiles(slide, [(x, y)], tile)[0]
        assert (got == alone).mean() > 0.999


@pytest.mark.parametrize("corner", [(40, 30), (41, 30), (43, 33), (51, 47)])
def test_a_tile_lies_where_it_should_to_a_fraction_of_a_pixel(tmp_path, corner):
    """A ramp: the mean of a tile is the ramp's value at its centre."""
    y, x = np.mgrid[:240, :240]
    rgb = np.stack([x, y, 240 - x], 2).astype(np.uint8)
    write_pyramid(tmp_path / "a.tif", rgb)
    slide = open_slide(tmp_path / "a.tif")
    tile = 91.3
    assert tiling.best_level(slide, tile / 20)[0] == 2  # a corner lies between its pixels
    (got,) = tiling.read_tiles(slide, [corner], tile, 20)
    x, y = (at + tile / 2 - 0.5 for at in corner)
    rounded = np.array([x, y, 240 - x]) + 0.5  # of the level's pixels, means of four, by Pillow
    assert got.mean((0, 1)) == pytest.approx(rounded, abs=0.1)


# ----- Colour ------------------------------------------------------------------------------------
@pytest.mark.parametrize("pair", STAIN_PAIRS)
def test_macenko_recovers_planted_stains_and_their_strength(pair):
    """Planted stains; NumPy's percentiles and singular vectors."""
    rgb, c = stained(STAIN_PAIRS[pair], (1.3, 0.8))
    od = tiling.optical_density(rgb)
    assert np.allclose(od, -np.log((rgb.astype(float) + 1) / 240), atol=1e-6)
    stains, top = tiling.macenko_stains(od)
    assert degrees_between(stains, STAIN_PAIRS[pair]).max() < 1
    assert np.allclose(np.linalg.norm(stains, axis=1), 1)
    dense = (od >= 0.15).all(1)
    assert np.allclose(top, np.percentile(c[dense], 99, axis=0), rtol=0.04)
    _, _, axes = np.linalg.svd(od[dense].astype(float), full_matrices=False)
    assert np.abs(stains @ axes[2]).max() < 1e-6  # the plane is that of the singular vectors


def test_macenko_is_least_squares_pixel_by_pixel():
    """NumPy's lstsq, in float64."""
    tiles = np.random.default_rng(0).integers(0, 256, (2, 9, 11, 3)).astype(np.uint8)
    tiles[0] = tiles[0] // 2
    stains, top = STAIN_PAIRS["bluish"], np.array([3.1, 1.2])
    got, changed = tiling.macenko(tiles, (stains, top))
    od = -np.log((tiles.reshape(-1, 3).astype(float) + 1) / 240)
    concentrations = np.linalg.lstsq(stains.T, od.T, rcond=None)[0].T
    scaled = concentrations * np.array([1.9705, 1.0308]) / top
    reference = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
    want = (240 * np.exp(-scaled @ reference)).clip(0, 255).reshape(tiles.shape)
    assert changed.all()
    assert got.dtype == np.uint8
    assert np.abs(got - want).max() < 0.51


def test_the_stains_of_a_slide_are_those_of_its_tiles(tmp_path):
    """Planted stains, in a slide by tifffile."""
    rgb, _ = stained(STAIN_PAIRS["bluish"], (1.3, 0.8), n=128 * 128)
    picture = rgb.reshape(128, 128, 3).repeat(8, 0).repeat(8, 1)
    write_pyramid(tmp_path / "a.tif", picture)
    slide = open_slide(tmp_path / "a.tif")
    coords = np.array([(256 * i, 256 * j) for i in range(4) for j in range(4)])
    stains, _ = tiling.slide_stains(slide, coords, 256, 256, seed=0)
    assert degrees_between(stains, STAIN_PAIRS["bluish"]).max() < 1
    assert tiling.slide_stains(slide, coords[:0], 256, 256, seed=0) is None


@pytest.mark.parametrize("grey", [0, 128])
def test_a_border_that_was_filled_up_is_no_stain(tmp_path, grey):
    """The stains of the same slide without it."""
    rgb, _ = stained(STAIN_PAIRS["bluish"], (1.3, 0.8), n=128 * 128)
    picture = rgb.reshape(128, 128, 3).repeat(4, 0).repeat(4, 1)
    write_pyramid(tmp_path / "plain.tif", picture)
    picture[:, 250:330] = grey
    write_pyramid(tmp_path / "filled.tif", picture)
    coords = np.array([(128 * i, 128 * j) for i in range(4) for j in range(4)])
    found = []
    for name in ("plain.tif", "filled.tif"):
        found.append(tiling.slide_stains(open_slide(tmp_path / name), coords, 128, 128, seed=0))
    (plain, _), (filled, _) = found
    assert degrees_between(plain, filled).max() < 1


def test_stretch_is_the_formula():
    """The formula, in float64."""
    tiles = np.random.default_rng(0).integers(90, 200, (4, 9, 7, 3)).astype(np.uint8)
    shifted = tiles.astype(float) - tiles.min((1, 2), keepdims=True)
    want = 255 * shifted / shifted.max((1, 2), keepdims=True)
    got = tiling.stretch(tiles)
    assert got.dtype == np.uint8
    assert np.abs(got - want).max() <= 0.5 + 1e-4
    assert tiling.stretch(tiles[:0]).shape == (0, 9, 7, 3)


# ----- Features; how ResNet50 is wired: lab/tests/test_fast_encoder.py ---------------------------
RESNET_SHAPES = {
    "conv1.weight": (64, 3, 7, 7),
    "bn1.num_batches_tracked": (),
    "layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "layer2.0.downsample.1.running_var": (512,),
    "layer3.5.conv2.weight": (256, 256, 3, 3),
    "layer4.2.bn3.bias": (2048,),
    "fc.weight": (1000, 2048),
}


@pytest.mark.parametrize("name", RESNET_SHAPES)
def test_resnet50_has_torchvisions_names(name):
    """torchvision's names and shapes."""
    assert tuple(tiling.ResNet50().state_dict()[name].shape) == RESNET_SHAPES[name]


def test_resnet50_is_as_large_as_torchvisions():
    """torchvision's counts of weights."""
    sizes = {name: p.numel() for name, p in tiling.ResNet50().named_parameters()}
    assert sum(sizes.values()) == 25_557_032
    assert sum(n for name, n in sizes.items() if not name.startswith("fc.")) == 23_508_032
    assert len(tiling.ResNet50().state_dict()) == 320
    assert tiling.ResNet50(3)(torch.zeros(1, 3, 64, 64)).shape == (1, 1024)


def test_encode_goes_batch_by_batch():
    """The network itself, all tiles at once."""
    torch.manual_seed(0)
    network = tiling.ResNet50(3).eval()
    tiles = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    with torch.no_grad():
        want = network(tiling.normalise(torch.from_numpy(tiles)))
    assert np.allclose(tiling.encode(network, tiles, batch=2), want, rtol=1e-4, atol=1e-5)
    assert tiling.encode(network, tiles[:0]).shape == (0, 1024)


# ----- Super-tiles -------------------------------------------------------------------------------
CLOUD = tile_cloud(3000).astype(float)


def inertia(points, centers):
    return ((points[:, None] - centers[None]) ** 2).sum(2).min(1).sum()


def test_kmeans_is_as_good_as_scipys():
    """SciPy's kmeans2, from starts by the same rule."""
    ours = np.mean([inertia(CLOUD, tiling.kmeans(CLOUD, 60, seed)[0]) for seed in range(5)])
    theirs = []
    for seed in range(5):
        centers, _ = scipy.cluster.vq.kmeans2(CLOUD, 60, minit="++", seed=seed, iter=100)
        theirs.append(inertia(CLOUD, centers))
    assert ours < 1.01 * np.mean(theirs)


def test_kmeans_is_as_good_as_scikit_learns():
    """scikit-learn's KMeans, from starts by the same rule."""
    ours = np.mean([inertia(CLOUD, tiling.kmeans(CLOUD, 60, seed)[0]) for seed in range(8)])
    theirs = [KMeans(60, n_init=1, random_state=seed).fit(CLOUD).inertia_ for seed in range(8)]
    assert ours < 1.01 * np.mean(theirs)


@pytest.mark.parametrize("shape", [(2000, 8), (800, 2)])
def test_kmeans_from_the_same_start_equals_scikit_learn(shape):
    """scikit-learn's KMeans by Lloyd; points on a grid would be at the same distance of two."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=shape) * rng.uniform(1, 100, shape[1])
    for seed in range(3):
        start = tiling.plus_plus(points, 20, np.random.default_rng(seed))
        theirs = KMeans(20, init=start, n_init=1, tol=tiling.KMEANS_STILL).fit(points)
        centers, labels = tiling.lloyd(points, start)
        assert np.allclose(centers, theirs.cluster_centers_)
        assert np.mean(labels == theirs.labels_) > 0.99  # theirs are set once more at the end
        assert inertia(points, centers) == pytest.approx(theirs.inertia_)


def test_an_empty_cluster_gets_the_farthest_point_that_is_not_alone():
    """By hand: point 3 is farthest from its centre; point 4 is farther, but its cluster's last."""
    distances = np.full((5, 4), 99.0)
    labels = np.array([0, 0, 1, 1, 2])
    distances[np.arange(5), labels] = 1, 2, 3, 4, 5
    assert tiling.fill_empty(labels.copy(), distances).tolist() == [0, 0, 1, 3, 2]


def test_supertiles_are_means_of_their_tiles():
    """NumPy's means, in float64."""
    features = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float16)
    coords = tile_cloud(300)
    means, mask, cluster = tiling.supertiles(features, coords, 20, 0)
    assert means.shape == (20, 7)
    assert mask.all()
    for j in range(20):
        want = features[cluster == j].astype(float).mean(0)
        assert np.allclose(means[j], want, atol=1e-5)


# ===== stats.py ==================================================================================

FIRST_STEP = -math.expm1(math.log1p(-0.05) / 30839)  # Šidák's first p over the paper's genes


def nanmean(values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.nanmean(values, 0)


# ----- Correlation and its p ---------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64])
@pytest.mark.parametrize("n", [2, 3, 10, 301])
def test_pearson_and_spearman_equal_scipy(dtype, n):
    """SciPy, gene by gene."""
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


def test_pearson_p_equals_scipy():
    """SciPy's one-sided p."""
    rng = np.random.default_rng(5)
    for n in (3, 4, 10, 44, 1046):
        a, b = rng.normal(size=(2, n, 20))
        tests = [scipy.stats.pearsonr(a[:, g], b[:, g], alternative="greater") for g in range(20)]
        same(stats.pearson_p(stats.pearson(a, b), n), [test.pvalue for test in tests])


def test_the_papers_smallest_significant_r():
    """HE2RNA Results: R_sign = .64 for the 44 cases of DLBC, 30,839 genes."""
    assert f"{FIRST_STEP:.2e}" == "1.66e-06"
    thresholds = stats.r_threshold(FIRST_STEP, np.array([44, 1046]))
    assert [round(float(r), 3) for r in thresholds] == [0.637, 0.143]
    p = np.array([0.9, 0.5, 0.05, 1e-6, 1e-12])
    for n in (3, 10, 44, 1046):
        r = np.array([-0.1, 0, 0.1, 0.5])
        same(stats.r_threshold(stats.pearson_p(r, n), n), r, 1e-9)
        t = scipy.stats.t.isf(p, n - 2)
        same(stats.r_threshold(p, n), t / np.sqrt(n - 2 + t * t), 1e-9)
    for p, significant in ((1.6e-6, True), (1.7e-6, False)):  # of the best of 30,839 genes
        best = np.r_[stats.r_threshold(p, 44), np.zeros(30838)]
        assert (stats.holm_sidak(stats.pearson_p(best, 44))[0] < 0.05) == significant


# ----- Several tests at once ---------------------------------------------------------------------
def test_holm_sidak_equals_the_step_down_loop():
    """The loop, one step at a time."""
    rng = np.random.default_rng(6)
    for m in (1, 2, 5, 40):
        p = np.round(rng.random(m) ** 3, 2)  # with ties, zeros
        adjusted, highest = {}, 0
        for i, j in enumerate(sorted(range(m), key=lambda j: p[j])):
            highest = max(highest, 1 - (1 - p[j]) ** (m - i))
            adjusted[j] = highest
        same(stats.holm_sidak(p), [adjusted[j] for j in range(m)], 1e-12)


def test_benjamini_hochberg_equals_scipy():
    """SciPy's false_discovery_control."""
    rng = np.random.default_rng(6)
    for m in (1, 2, 5, 400):
        p = np.round(rng.random(m) ** 3, 2)
        same(stats.benjamini_hochberg(p), scipy.stats.false_discovery_control(p))


def test_holm_sidak_equals_statsmodels():
    """statsmodels 0.15's multipletests, written down."""
    p = [0.0005, 0.012, 0.03, 0.0211, 0.9, 0.04, 0.04, 0.3]
    tied = 0.15065344  # of both .04
    theirs = [0.003993007, 0.0810357594, 0.1412659743, 0.1201067804, 0.9, tied, tied, 0.51]
    assert np.allclose(stats.holm_sidak(p), theirs, rtol=0, atol=1e-10)


# ----- Wilcoxon's tests --------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 2, 3, 5, 13, 30, 49, 50, 51, 400])
def test_signed_rank_equals_scipy(n):
    """SciPy's exact and normal p, also with ties and zeros."""
    rng = np.random.default_rng(n)
    normal = {"method": "asymptotic", "correction": True}
    for shift in (0, 0.3, 3):
        x, y = rng.normal(size=(2, n))
        x += shift
        theirs = scipy.stats.wilcoxon(x, y, **({"method": "exact"} if n <= 50 else normal))
        same(stats.wilcoxon_signed_rank(x, y), theirs)
        same(stats.wilcoxon_signed_rank(y, x), theirs)
    steps = rng.choice([-2, -1, 1, 2, 3], n)  # no zero; ties from n = 4 on
    if len(set(abs(steps))) < n:
        same(stats.wilcoxon_signed_rank(steps, 0 * steps), scipy.stats.wilcoxon(steps, **normal))
    zeros = np.r_[0.0, 0.0, rng.normal(size=n)]  # no ties, two pairs without a difference
    same(stats.wilcoxon_signed_rank(zeros, 0 * zeros), scipy.stats.wilcoxon(zeros, **normal))
    both = rng.integers(0, 5, (2, n + 5))
    same(stats.wilcoxon_signed_rank(*both), scipy.stats.wilcoxon(*both, **normal))


SIZES = [(1, 1), (1, 5), (2, 3), (4, 4), (7, 60), (8, 8), (8, 500), (9, 9), (9, 60), (60, 60)]


@pytest.mark.parametrize("n1, n2", SIZES)
def test_rank_sum_equals_scipy(n1, n2):
    """SciPy's mannwhitneyu, also with ties."""
    rng = np.random.default_rng(n1 + n2)
    for x, y in [
        (rng.normal(size=n1), rng.normal(size=n2)),
        (rng.normal(size=n1) + 1.5, rng.normal(size=n2)),
        (rng.integers(0, 6, n1), rng.integers(0, 6, n2)),
        (np.arange(n1) + 1000.0, np.arange(n2)),
    ]:
        same(stats.wilcoxon_rank_sum(x, y), scipy.stats.mannwhitneyu(x, y))
        same(stats.wilcoxon_rank_sum(y, x), scipy.stats.mannwhitneyu(y, x))


def test_corrected_t_without_correction_is_students_and_with_it_the_textbooks():
    """scipy.stats.ttest_1samp; Nadeau and Bengio's standard error, written out."""
    d = np.random.default_rng(0).normal(0.05, 0.1, 12)
    plain = scipy.stats.ttest_1samp(d, 0)
    mean, low, high, p = stats.corrected_t(d, 0)
    assert (mean, p) == pytest.approx((d.mean(), plain.pvalue))
    assert (low, high) == pytest.approx(tuple(plain.confidence_interval()))
    error = np.sqrt((1 / 12 + 0.5) * d.var(ddof=1))
    wanted = scipy.stats.t(11, d.mean(), error)
    assert stats.corrected_t(d, 0.5)[1:3] == pytest.approx(wanted.interval(0.95))
    assert np.isnan(stats.corrected_t([0.1], 0.5)[1:]).all()
    assert np.isnan(stats.corrected_t([0.1, 0.1], 0.5)[1:]).all()


def test_corrected_t_holds_over_divisions_of_the_same_patients_where_wilcoxons_does_not():
    """The truth is 0: the mean of 12 of 60 patients, drawn 20 times, in 400 studies."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        patients = rng.normal(size=60)
        d = [rng.choice(patients, 12, replace=False).mean() for _ in range(20)]
        wilcoxon = stats.wilcoxon_signed_rank(d, np.zeros(20))[1]
        found.append((stats.corrected_t(d, 12 / 48)[3] < 0.05, wilcoxon < 0.05))
    ours, theirs = np.mean(found, 0)
    assert 0.02 < ours < 0.08 and theirs > 0.25


# ----- ROC and precision-recall ------------------------------------------------------------------
def test_roc_auc_equals_counting_all_pairs():
    """Brute force: all pairs, ties by half; an example of scikit-learn's."""
    rng = np.random.default_rng(9)
    for n in (2, 3, 10, 60):
        labels = rng.permutation(np.arange(n) < max(1, n // 3))
        for scores in (rng.normal(size=n) + labels, rng.integers(0, 4, n)):
            pairs = [(p > q) + 0.5 * (p == q) for p in scores[labels] for q in scores[~labels]]
            same(stats.roc_auc(labels, scores), np.mean(pairs), 1e-14)
            turned = stats.roc_auc(labels.astype(int).tolist(), (-scores).tolist())
            same(turned, 1 - np.mean(pairs), 1e-14)
    example = [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]  # scikit-learn's documented one
    assert stats.roc_auc(*example) == 0.75


def test_curves_equal_every_threshold():
    """Brute force: every threshold."""
    rng = np.random.default_rng(3)
    for n, levels in ((2, 9), (7, 3), (40, 6), (60, 10**6)):
        labels, scores = np.r_[1, 0, rng.integers(0, 2, n - 2)], rng.integers(0, levels, n) / 7
        cuts = np.unique(scores)[::-1]
        hits = np.array([(labels[scores >= cut] > 0).sum() for cut in cuts])
        chosen = np.array([(scores >= cut).sum() for cut in cuts])
        fpr, tpr = stats.roc_curve(labels, scores)
        recall, precision = stats.pr_curve(labels, scores)
        same(tpr, np.r_[0, hits / labels.sum()])
        same(fpr, np.r_[0, (chosen - hits) / (n - labels.sum())])
        same(recall, tpr)
        same(precision, np.r_[1, hits / chosen])
        same(np.trapezoid(tpr, fpr), stats.roc_auc(labels, scores))
        at = [(scores[labels > 0] >= s).sum() / (scores >= s).sum() for s in scores[labels > 0]]
        same(stats.pr_auc(labels, scores), np.mean(at))
    assert stats.pr_auc([0, 0, 1, 1], [1, 2, 3, 4]) == 1
    assert stats.pr_auc([0, 1, 0, 0], [2, 2, 2, 2]) == 0.25


def test_areas_and_curves_equal_scikit_learn():
    """scikit-learn."""
    metrics = sklearn.metrics
    rng = np.random.default_rng(10)
    for scores in (rng.normal(size=500), rng.integers(0, 8, 500) / 3):
        labels = rng.random(500) < 0.2
        same(stats.roc_auc(labels, scores), metrics.roc_auc_score(labels, scores), 1e-12)
        same(stats.pr_auc(labels, scores), metrics.average_precision_score(labels, scores), 1e-12)
        fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
        assert np.allclose(stats.roc_curve(labels, scores), (fpr, tpr))


# ----- Nulls of R --------------------------------------------------------------------------------
def chance_r(rng, sizes, count):
    """R of unrelated normal samples: (1 + R) / 2 is a Beta; the mean of one R a fold."""
    return np.mean([2 * rng.beta(n / 2 - 1, n / 2 - 1, count) - 1 for n in sizes], 0)


def exact_tail(sizes, r):
    """P(mean of one chance R a fold >= r), by convolution on a fine grid."""
    grid, law = np.linspace(-1, 1, 2**15 + 1), np.ones(1)
    for n in sizes:
        pdf = scipy.stats.beta.pdf((grid + 1) / 2, n / 2 - 1, n / 2 - 1)
        law = scipy.signal.fftconvolve(law, pdf / pdf.sum())
    return law[np.linspace(-1, 1, len(law)) >= r].sum() / law.sum()


def test_null_fit_of_chance_is_the_analytic_t():
    """The t distribution; LUNG's printed R_sign, .20."""
    rng = np.random.default_rng(0)
    for n in (10, 44, 1046):
        mean, fitted = stats.null_fit(chance_r(rng, [n], (10, 30839)))
        assert abs(mean) < 4 / math.sqrt(n * 308390) and fitted == pytest.approx(n, rel=0.02)
        ours = stats.null_threshold(FIRST_STEP, mean, fitted)
        assert ours == pytest.approx(stats.r_threshold(FIRST_STEP, n), abs=0.01)
    luad_alone = stats.null_threshold(FIRST_STEP, 0, 535)  # LUNG's printed R_sign
    assert round(float(luad_alone), 2) == 0.20


@pytest.mark.parametrize("sizes", [(9, 9, 9, 9, 8), (20,) * 5, (209,) * 5])
def test_null_p_of_a_mean_of_folds_is_near_the_exact_one(sizes):
    """The exact law, by convolution: within a factor 2 at 1.7e-6.

    Counting N = 30,839 null R ends at 3e-5; a normal fit of Fisher's z is further off.
    """
    null = chance_r(np.random.default_rng(1), sizes, 308390)
    mean, n = stats.null_fit(null)
    sd_of_z = np.arctanh(null).std()
    for r in np.arange(0.5, 5, 0.5) / math.sqrt(sum(sizes)):
        exact, p = exact_tail(sizes, r), stats.null_p(r, mean, n)
        assert 0.5 < p / exact < 1.4
        if exact <= 1e-3:
            z = scipy.stats.norm.sf(np.arctanh(r) / sd_of_z)
            assert abs(math.log(p / exact)) < abs(math.log(z / exact)) + 0.1
        if exact >= 1e-4:
            assert np.mean(null >= r) == pytest.approx(p, rel=0.3)


def test_permutation_null_equals_the_loop():
    """The loop over folds, with the same shuffles."""
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
        for f in (0, 1, 2, 3, 7):
            rows = np.flatnonzero(fold == f)
            moved = rows[shuffle.permutation(len(rows))]
            if f != 7:
                r.append(stats.pearson(prediction[moved], truth[rows]))
        same(row, nanmean(r), 1e-12)
    assert np.isnan(null[:, 5]).all() and not np.isnan(null[:, 6:8]).any()
    assert np.isnan(stats.permutation_null(prediction[:2], truth[:2], fold[:2], 2, rng)).all()


def test_patients_change_places_whole_and_within_their_group():
    """By hand, patient by patient."""
    rng = np.random.default_rng(0)
    patients = np.array([f"p{i}" for i in rng.integers(12, size=60)])
    groups = np.array([f"g{int(p[1:]) % 3}" for p in patients])
    source = stats.patient_shuffle(patients, groups, rng)
    assert (groups[source] == groups).all()
    donor = {}
    for patient in set(patients):
        rows, theirs = np.flatnonzero(patients == patient), source[patients == patient]
        (donor[patient],) = set(patients[theirs])
        every = np.flatnonzero(patients == donor[patient])
        assert theirs.tolist() == [every[i % len(every)] for i in range(len(rows))]
    assert set(donor.values()) == set(donor)  # each gives once
    single = stats.patient_shuffle(np.arange(60), groups, rng)
    assert sorted(single) == list(range(60)) and (single != np.arange(60)).any()


def test_permutations_of_patients_scatter_more_than_those_of_their_slides():
    """Four copies of 25 patients are 25, not 100."""
    rng = np.random.default_rng(1)
    patients = np.arange(25).repeat(4)
    x, y = rng.normal(size=(2, 25, 80)).repeat(4, axis=1)
    fold = np.zeros(100, int)
    for who, n in ((None, 100), (patients, 25)):
        null = stats.permutation_null(x, y, fold, 60, rng, who)
        assert null.var() == pytest.approx(1 / (n - 1), rel=0.1)


def test_the_chance_of_a_false_gene_in_small_folds():
    """Brute force: 2,000 studies of 200 genes in folds of 4, 4 and 5; one fold of any size: .05."""
    rng = np.random.default_rng(0)
    most = chance_r(rng, (4, 4, 5), (2000, 200)).max(1)
    for r in (0.8, 0.87):
        want = (most >= r).mean()
        assert stats.chance_of_false(200, (4, 4, 5), r) == pytest.approx(want, abs=0.035)
    for n in (5, 30):
        chance = stats.chance_of_false(500, [n], he2rna.r_sign(500, n))
        assert chance == pytest.approx(0.05, rel=0.05)


def test_recurrent_counts():
    """Counting, gene by gene."""
    significant = np.random.default_rng(6).random((5, 40)) < 0.4
    per_gene, at_least = stats.recurrent(significant)
    assert per_gene.tolist() == [sum(column) for column in significant.T.tolist()]
    assert at_least.tolist() == [sum(g >= c for g in per_gene) for c in (1, 2, 3, 4, 5)]
    per_gene, at_least = stats.recurrent(np.zeros((0, 3), bool))
    assert per_gene.tolist() == [0, 0, 0] and at_least.tolist() == []


# ----- Gene sets ---------------------------------------------------------------------------------
def test_combine_sets():
    """By hand: the paper keeps genes of at least two sets."""
    assert stats.combine_sets([("c", "a", "b"), ["b", "d", "b"], ("a", "e")]) == ("a", "b")
    assert stats.combine_sets([("c", "a")]) == ("c", "a")
    assert stats.combine_sets([]) == stats.combine_sets([(), ()]) == ()
    assert stats.combine_sets([("a", "a"), ("b",)]) == ()
    assert stats.combine_sets([("a", "b"), ("b", "c")], 1) == ("a", "b", "c")
    assert stats.combine_sets([("a", "b"), ("b",), ("b", "a")], 3) == ("b",)


def test_signatures_of_the_paper():
    """HE2RNA Table 2: six pathways of 18 sets; MSigDB's own names."""
    assert len(stats.SIGNATURES) == 6 and sum(map(len, stats.SIGNATURES.values())) == 18
    if not REAL_DATA:
        pytest.skip("REAL_DATA is not set")
    files = ("h.all.v6.2", "c5.bp.v6.2", "c2.cp.kegg.v7.5.1")
    folder = os.path.join(REAL_DATA, "genesets")
    sets = read_sets([os.path.join(folder, f"{name}.symbols.gmt") for name in files])
    assert len(sets) == 50 + 4436 + 186
    missing = {name for names in stats.SIGNATURES.values() for name in names} - set(sets)
    assert {name.split("_")[0] for name in missing} == {"BIOCARTA", "REACTOME"}
    assert len(missing) == 6
    single = stats.SIGNATURES["B cell-mediated immunity"]
    assert len(stats.combine_sets([sets[name] for name in single])) == len(sets[single[0]])


def test_fisher_enrichment_equals_scipy_and_the_lady_tasting_tea():
    """SciPy; Fisher's eight cups (1935)."""
    cups = range(8)  # Fisher 1935
    tea = [
        stats.fisher_enrichment([0, 1, 2, 3], found, cups) for found in ([0, 1, 2, 3], [0, 1, 2, 7])
    ]
    same(tea, [1 / 70, 17 / 70], 1e-12)
    rng = np.random.default_rng(7)
    for n in (1, 2, 9, 60, 500):
        for _ in range(15):
            sizes = rng.integers(0, n + 1, 2)
            hits, members = (set(rng.choice(n, size, replace=False).tolist()) for size in sizes)
            a = len(hits & members)
            table = [[a, len(hits) - a], [len(members) - a, n - len(hits | members)]]
            theirs = scipy.stats.fisher_exact(table, alternative="greater")[1]
            same(stats.fisher_enrichment(hits, members, range(n)), theirs, 1e-9)


def test_enrichment_is_fisher_of_each_set_and_leaves_out_what_cannot_be_tested():
    """Fisher's test, set by set; SciPy's false_discovery_control."""
    rng = np.random.default_rng(8)
    universe = [f"g{i}" for i in range(400)]
    sets = {}
    for i in range(50):
        sets[f"s{i}"] = [f"g{j}" for j in rng.choice(600, rng.integers(1, 80), replace=False)]
    sets |= {"empty": [], "not measured": ["x", "g599"], "planted": universe[:30]}
    hits = universe[:25] + universe[200:240] + ["x"]
    found = stats.enrichment(hits, sets, universe)
    for i, genes in enumerate(sets.values()):
        measured = set(genes) & set(universe)
        row = {key: values[i] for key, values in found.items()}
        if not measured:
            assert np.isnan([row["fold"], row["p"], row["bh"]]).all()
            assert row["size"] == row["expected"] == 0
            continue
        assert row["size"] == len(measured) and row["overlap"] == len(measured & set(hits))
        same(row["expected"], len(measured) * 65 / 400)
        same(row["fold"], row["overlap"] / row["expected"])
        same(row["p"], stats.fisher_enrichment(hits, genes, universe))
    tested = ~np.isnan(found["p"])
    assert tested.sum() >= 49 and not tested[50] and not tested[51]
    assert list(sets)[np.nanargmin(found["p"])] == "planted"
    same(found["bh"][tested], scipy.stats.false_discovery_control(found["p"][tested]))


def test_random_list_p_equals_all_lists():
    """Brute force: eight genes, all 56 lists of three."""
    r = np.array([0.9, 0.1, 0.5, np.nan, 0.3, 0.7, 0.2, 0.4, 0.4])[:, None]
    every = np.array([np.mean(c) for c in itertools.combinations(np.delete(r[:, 0], 3), 3)])
    members = np.zeros((2, 9), bool)
    members[0, [0, 3, 4, 5]] = members[1, [2, 7, 8]] = True  # one without R, and one with ties
    ours = stats.random_list_test(r, r > 0.45, members, 20000, np.random.default_rng(10))
    for i, own in enumerate(([0.9, 0.3, 0.7], [0.5, 0.4, 0.4])):
        assert abs(ours["p_r"][i, 0] - np.mean(every >= np.mean(own) - 1e-12)) < 0.015


# ----- Intervals over patients --------------------------------------------------------------------
def ratings():
    """Hanley and McNeil 1982, Table I: 51 abnormal and 58 normal CT images, rated 1 to 5."""
    normal = np.repeat(np.arange(5), (33, 6, 6, 11, 2))
    abnormal = np.repeat(np.arange(5), (3, 2, 2, 11, 33))
    return np.arange(109) >= 58, np.r_[normal, abnormal]


def test_auc_variance_is_the_published_one():
    """Stata's manual, roctab: DeLong's SE .0307, interval .83295 to .95339."""
    labels, scores = ratings()
    error = math.sqrt(stats.auc_variance(labels, scores, np.arange(109)))
    auc = stats.roc_auc(labels, scores)
    same([error, auc], [0.0307, 0.8932], 5e-5)
    same([auc - 1.959964 * error, auc + 1.959964 * error], [0.83295, 0.95339], 1e-5)
    twice = np.tile(labels, 2), np.tile(scores, 2), np.tile(np.arange(109), 2)
    same(stats.auc_variance(*twice), error**2, 1e-9)  # a patient's copies tell nothing new
    assert stats.auc_variance(*twice[:2], np.arange(218)) < 0.51 * error**2


def test_auc_interval_reaches_where_the_law_does():
    """Hanley and McNeil's variance with Newcombe's sizes; SciPy's brentq."""
    for m, n in ((4, 30), (20, 20)):
        labels = np.arange(m + n) < m
        scores = np.where(labels, 100, 0) + np.arange(m + n)
        low, high = stats.auc_interval(labels, scores, np.arange(m + n))

        def off(t, m=m, n=n):
            q1, q2, size = t / (2 - t), 2 * t * t / (1 + t), (m + n) / 2 - 1
            variance = (t * (1 - t) + size * (q1 - t * t) + size * (q2 - t * t)) / (m * n)
            return 1 - t - 1.959964 * math.sqrt(variance)

        same([low, high], [scipy.optimize.brentq(off, 0.1, 1 - 1e-9), 1], 1e-6)
        same(stats.auc_interval(labels, -scores, np.arange(m + n)), [0, 1 - low], 1e-6)
    labels, scores = ratings()
    one = stats.auc_interval(labels, scores, np.arange(109))
    assert one[0] < 0.83295 and 0.93 < one[1] < 0.95339  # no symmetry near 1
    twice = np.tile(labels, 2), np.tile(scores, 2)
    same(stats.auc_interval(*twice, np.tile(np.arange(109), 2)), one, 0.001)
    assert stats.auc_interval(*twice, np.arange(218))[0] > one[0] + 0.01


def test_r_interval_is_fishers_of_normal_values_and_a_jackknife_of_any():
    """The jackknife by leaving out rows; Fisher's interval from SciPy."""
    rng = np.random.default_rng(16)
    truth = rng.normal(size=(400, 60))
    prediction = 0.5 * truth + math.sqrt(0.75) * rng.normal(size=truth.shape)
    low, high = stats.r_interval(prediction, truth, np.arange(400), np.zeros(400))
    fisher = []
    for x, y in zip(prediction.T, truth.T, strict=True):
        fisher.append(scipy.stats.pearsonr(x, y).confidence_interval())
    assert np.mean(high - low) == pytest.approx(np.mean(np.diff(fisher)), rel=0.03)
    who = rng.integers(0, 25, 60)
    fold = who % 3
    x, y = prediction[:60, :5] * (1 + fold[:, None]), truth[:60, :5] + truth[who, :5]
    z = []
    for left in np.unique(who):
        parts = [np.flatnonzero((fold == f) & (who != left)) for f in range(3)]
        a, b = (np.concatenate([v[rows] - v[rows].mean(0) for rows in parts]) for v in (x, y))
        z.append(np.arctanh((a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))))
    r = np.mean([stats.pearson(x[fold == f], y[fold == f]) for f in range(3)], 0)
    error = np.std(z, 0) * math.sqrt(len(z) - 1) * np.sqrt(2 - abs(r))
    half = scipy.stats.t.ppf(0.975, len(z) - 4) * error
    ours = stats.r_interval(x, y, who, fold)
    same(ours, np.tanh([np.arctanh(r) - half, np.arctanh(r) + half]))


def test_intervals_hold_the_truth():
    """The cheap rows of `python -m lab.bench calibration --only intervals`, within 4 SE of .95."""
    rng = np.random.default_rng(3)
    rows = [
        calibration.given_row(10, 1, 1, 0.4, 20, rng),
        calibration.learned_row(25, 1, 20, 0.0, 20, rng),
        calibration.learned_row(40, 4, 20, 1.0, 10, rng),
        calibration.auc_row("", 5, 30, 0.85, 200, rng),
        calibration.auc_row("", 15, 50, 0.8, 150, rng, slides=3),
        calibration.paired_row(30, 0.9, 150, rng),
    ]
    for row in rows:
        assert 0.95 - 4 * row.error - 0.01 < row.measured < 0.99, row


# ----- HistCode's random baseline ----------------------------------------------------------------
def test_random_baseline_lies_in_the_range_and_correlates_with_nothing():
    """NumPy's percentiles, SciPy's kstest, the law of a chance R."""
    rng = np.random.default_rng(20)
    truth = rng.exponential(size=(153, 2000))
    truth[0, 3] = np.nan
    baseline = stats.random_baseline(truth, rng)
    assert np.isnan(baseline[:, 3]).all()
    truth, baseline = np.delete(truth, 3, 1), np.delete(baseline, 3, 1)
    low, high = np.percentile(truth, [5, 95], axis=0)
    assert ((low <= baseline) & (baseline <= high)).all()
    place = ((baseline - low) / (high - low))[::7].ravel()
    assert scipy.stats.kstest(place, "uniform").pvalue > 1e-4
    r = stats.pearson(baseline, truth)
    same([r.mean(), r.std()], [0, 1 / math.sqrt(152)], 0.005)  # .081; Fig. 4 prints .15: n = 45
    assert (stats.random_baseline(np.ones((9, 2)), rng) == 1).all()  # a constant gene


def test_against_baseline_equals_scipy_gene_by_gene():
    """SciPy's wilcoxon and false_discovery_control."""
    rng = np.random.default_rng(21)
    truth = rng.normal(size=(80, 60))
    prediction = truth + rng.normal(size=60) + rng.normal(size=truth.shape)
    baseline = stats.random_baseline(truth, rng)
    prediction[:, 5], prediction[2, 6] = baseline[:, 5], np.nan
    prediction[:3, 7] = baseline[:3, 7]  # pairs without a difference
    ours = stats.against_baseline(prediction, truth, baseline)
    error, random_error = np.abs(prediction - truth), np.abs(baseline - truth)
    how = {"method": "asymptotic", "correction": True}
    for g in set(range(60)) - {5, 6}:
        p = scipy.stats.wilcoxon(prediction[:, g], baseline[:, g], **how).pvalue
        error_p = scipy.stats.wilcoxon(error[:, g], random_error[:, g], **how).pvalue
        same([ours["p"][g], ours["error_p"][g]], [p, error_p])
        d = error[:, g] - random_error[:, g]
        d, ranks = d[d != 0], scipy.stats.rankdata(abs(d[d != 0]))
        assert ours["better"][g] == (ranks[d < 0].sum() > ranks[d > 0].sum())
    assert ours["p"][5] == ours["error_p"][5] == 1 and not ours["better"][5]
    assert np.isnan([ours[key][6] for key in ("p", "bh", "error_p", "error_bh")]).all()
    assert not ours["better"][6]
    known = np.arange(60) != 6
    for p, bh in (("p", "bh"), ("error_p", "error_bh")):
        same(ours[bh][known], scipy.stats.false_discovery_control(ours[p][known]))


def test_pairs_of_equal_errors_have_no_rank():
    """By hand: W+ = 1 + 2 + 3 is below W- = 4 + 5; had the equal ones the ranks 1 to 5, above."""
    error = np.array([0, 0, 0, 0, 0, 0.1, 0.2, 0.3, 0, 0])
    of_baseline = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0.5, 0.6])
    truth = np.zeros((10, 1))
    found = stats.against_baseline(error[:, None], truth, of_baseline[:, None])
    assert found["better"].tolist() == [True]


def test_the_papers_test_is_of_location_not_of_skill():
    """Planted: what is perfect passes as none, and a constant as skill."""
    rng = np.random.default_rng(22)
    even, skewed = rng.random((150, 40)), rng.exponential(size=(150, 40))
    perfect = stats.against_baseline(even, even, stats.random_baseline(even, rng))
    assert (perfect["bh"] > 0.05).mean() > 0.9
    assert (perfect["error_bh"] < 1e-10).all() and perfect["better"].all()
    mean = np.broadcast_to(skewed.mean(0), skewed.shape)  # predicts nothing
    useless = stats.against_baseline(mean, skewed, stats.random_baseline(skewed, rng))
    assert (useless["bh"] < 0.05).mean() > 0.9


def test_r_against_baseline_equals_scipy():
    """SciPy's mannwhitneyu."""
    rng = np.random.default_rng(23)
    a, b = rng.normal(size=200), rng.normal(size=150) + 0.3
    ours = stats.r_against_baseline(np.insert(a, [0, 9], np.nan), np.append(b, np.nan))
    same(ours, scipy.stats.mannwhitneyu(a, b))
    assert np.isnan(stats.r_against_baseline([np.nan], [0.1])).all()


# ----- Folds by patient --------------------------------------------------------------------------
def tcga_table():
    """Patients and projects of TCGA's samples."""
    if not REAL_DATA:
        pytest.skip("REAL_DATA is not set")
    with gzip.open(os.path.join(REAL_DATA, "tcga", "samples_description.tsv.gz"), "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    project, patient = rows[0].index("Project.ID"), rows[0].index("Case.ID")
    return np.array([r[patient] for r in rows[1:]]), np.array([r[project] for r in rows[1:]])


def patients_per_fold(patients, fold, k):
    return np.bincount([fold[patients == p][0] for p in np.unique(patients)], minlength=k)


@pytest.mark.parametrize("n_patients, k", [(2, 2), (5, 5), (23, 5), (200, 3), (500, 10)])
def test_patient_folds_balance_every_project_and_do_not_see_row_order(n_patients, k):
    """Counting each project's patients in each fold."""
    rng = np.random.default_rng(n_patients)
    patients, projects = patients_of_projects(rng, n_patients, 6)
    fold = stats.patient_folds(patients, projects, k, seed=1)
    assert fold.shape == patients.shape and fold.dtype.kind == "i" and set(fold) == set(range(k))
    assert len(set(zip(patients, fold, strict=True))) == n_patients
    for rows in [projects == projects, *(projects == name for name in np.unique(projects))]:
        assert np.ptp(patients_per_fold(patients[rows], fold[rows], k)) <= 1
    order = rng.permutation(len(patients))
    assert (stats.patient_folds(patients[order], projects[order], k, seed=1) == fold[order]).all()
    assert (stats.patient_folds(patients.tolist(), projects.tolist(), k, seed=1) == fold).all()
    if n_patients > 20:
        assert (stats.patient_folds(patients, projects, k, seed=2) != fold).any()


def test_patient_folds_of_tcga():
    """TCGA's 11,564 samples: a fifth of every project's patients in every fold, to one patient.

    The authors' code is not balanced.
    """
    patients, projects = tcga_table()
    names = np.unique(projects)
    fold = stats.patient_folds(patients, projects, 5, seed=0)
    assert len(names) == 36
    assert len(set(zip(patients, fold, strict=True))) == len(set(patients)) > 10000
    one = np.unique(patients, return_index=True)[1]  # a row a patient

    def table(fold):
        rows = [np.bincount(fold[one][projects[one] == name], minlength=5) for name in names]
        return np.array(rows)  # (36, 5)

    ours = table(fold)
    assert np.abs(ours - ours.sum(1, keepdims=True) / 5).max() < 1
    assert np.ptp(ours.sum(0)) <= 1 and ours.min() >= 1
    for f, (_, _, test) in enumerate(stats.authors_folds(patients)):
        fold[test] = f
    theirs = table(fold)
    assert theirs.sum() == ours.sum() and np.ptp(theirs, axis=1).max() > 20


def test_inner_split_of_tcga():
    """TCGA's samples: a tenth of every project's patients, to one patient."""
    patients, projects = tcga_table()
    mask = stats.inner_split(patients, projects, 0.1, seed=0)
    for name in np.unique(projects):
        mine = projects == name
        held, all_of_it = len(set(patients[mask & mine])), len(set(patients[mine]))
        assert abs(held - all_of_it / 10) < 1.01


PINNED_FOLDS = [([9], [4, 6, 11]), ([9], [2, 8, 10]), ([3], [1, 7]), ([2], [3, 9]), ([3], [0, 5])]


def test_authors_folds_pinned():
    """scikit-learn 1.7's validation and test patients, written down."""
    patients = np.array(list("lkjihgfedcba"))  # sorted inside: a = 0 ... l = 11
    number = np.array([ord(p) - ord("a") for p in patients])
    splits = stats.authors_folds(patients)
    numbers = [(sorted(number[v].tolist()), sorted(number[t].tolist())) for _, v, t in splits]
    assert numbers == PINNED_FOLDS
    for split in splits:
        assert sorted(np.concatenate(split).tolist()) == list(range(12))


@pytest.mark.parametrize("n_patients", [5, 6, 13, 44, 70, 87, 333, 1000])
def test_authors_folds_equal_scikit_learn(n_patients):
    """scikit-learn's KFold and train_test_split."""
    selection = sklearn.model_selection
    patients, _ = patients_of_projects(np.random.default_rng(n_patients), n_patients, 3)
    names = np.unique(patients)
    folds = selection.KFold(5, shuffle=True, random_state=0).split(names)
    for ours, (others, test) in zip(stats.authors_folds(patients), folds, strict=True):
        train, valid = selection.train_test_split(names[others], test_size=0.1, random_state=0)
        for rows, theirs in zip(ours, (train, valid, names[test]), strict=True):
            assert set(patients[rows]) == set(theirs)
            assert (rows == np.flatnonzero(np.isin(patients, theirs))).all()


# ===== he2rna.py =================================================================================


# ----- Expression, and the bags of slides --------------------------------------------------------
def test_genes_with_a_positive_median_stay():
    """NumPy's median, of an even and an odd number of samples."""
    a = np.random.default_rng(0).uniform(1, 9, (9, 5))
    a[:5, 1] = 0  # the median is 0
    a[:4, 2] = 0  # it is not
    for n in (8, 9):
        assert he2rna.expressed(a[:n]).tolist() == (np.median(a[:n], axis=0) > 0).tolist()
    assert he2rna.expressed(a).tolist() == [True, False, True, True, True]
    assert np.allclose(he2rna.log_expression(np.array([0, 9, 999.0])), [0, 1, 3])


def test_bags_of_slides_of_different_sizes():
    """By hand."""
    slides = [np.full((n, 2), n, np.float16) for n in (3, 1, 4)]
    x, mask = he2rna.bags_of(slides)(torch.tensor([2, 1]))
    assert x.shape == (2, 4, 2)
    assert x.dtype == torch.float16
    assert mask.tolist() == [[True] * 4, [True, False, False, False]]
    assert (x[0] == 4).all()
    assert x[1, :, 0].tolist() == [1, 0, 0, 0]


# ----- Model -------------------------------------------------------------------------------------
@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
def test_top_k_mean_equals_a_loop_over_sorted_tiles(shift):
    """Brute force; padding holds 1e6."""
    n_tiles = [1, 3, 9, 12]
    scores, mask = bags(np.random.default_rng(0), n_tiles, 5, pad=1e6)
    scores = scores + shift
    for k in (1, 2, 3, 7, 12, 50):
        got = he2rna.top_k_mean(scores, mask, k)
        for b, n in enumerate(n_tiles):
            for g in range(5):
                best = sorted(scores[b, :n, g].tolist(), reverse=True)[:k]
                assert got[b, g].item() == pytest.approx(np.mean(best), rel=1e-5, abs=1e-4)


def test_padding_never_counts_here_and_competes_in_the_authors_code():
    """By hand: tiles of -1, -2, -3 and five rows of padding, 0."""
    scores = torch.tensor([-1.0, -2, -3])[None, :, None]
    mask = torch.ones(1, 3, dtype=torch.bool)
    for k, want in ((1, -1), (2, -1.5), (3, -2), (8, -2)):
        padded = torch.cat([scores, torch.zeros(1, 5, 1)], 1)
        real = torch.arange(8)[None] < 3
        assert he2rna.top_k_mean(padded, real, k).item() == want
        assert he2rna.padded_top_k_mean(scores, mask, k, 8).item() == 0


def test_padded_top_k_mean_equals_a_loop_over_the_authors_rows():
    """Brute force: the authors' rows, sorted."""
    n_tiles = [1, 3, 9, 12]
    scores, mask = bags(np.random.default_rng(0), n_tiles, 5, pad=1e6)
    for k in (1, 2, 7, 12, 20, 50):
        got = he2rna.padded_top_k_mean(scores, mask, k, 20)
        for b, n in enumerate(n_tiles):
            for g in range(5):
                rows = [*scores[b, :n, g].tolist(), *[0.0] * (20 - n)]
                best = sorted(rows, reverse=True)[: min(k, n)]
                assert got[b, g].item() == pytest.approx(np.mean(best), abs=1e-5)
    for rows in (12, 9):  # no room for padding: nothing competes
        got = he2rna.padded_top_k_mean(scores[3:] - 9, mask[3:], 7, rows)
        assert torch.allclose(got, he2rna.top_k_mean(scores[3:] - 9, mask[3:], 7))


def test_the_model_is_convolutions_of_kernel_one():
    """torch's Conv1d. [HE2RNA Methods, Model architecture]"""
    torch.manual_seed(0)
    model = he2rna.HE2RNA(6, 11, (16, 8)).eval()
    x, _ = bags(np.random.default_rng(2), [9, 9])
    steps = []
    for layer in model.layers:
        step = torch.nn.Conv1d(layer.in_features, layer.out_features, 1)
        step.weight.data = layer.weight.data[:, :, None]
        step.bias.data = layer.bias.data
        steps += [step, torch.nn.ReLU()]
    want = torch.nn.Sequential(*steps[:-1])(x.transpose(1, 2)).transpose(1, 2)
    assert want.shape == (2, 9, 11)
    assert torch.allclose(model.tile_scores(x), want, atol=1e-6)


def test_training_draws_one_k_and_evaluation_takes_the_mean_over_all():
    """top_k_mean of the tile scores, for each k. [HE2RNA Methods, Model architecture]"""
    torch.manual_seed(0)
    x, mask = bags(np.random.default_rng(3), [9, 9])
    model = he2rna.HE2RNA(6, 40, (5,), ks=(1, 3, 9), dropout=0)
    scores = model.tile_scores(x)
    each = torch.stack([he2rna.top_k_mean(scores, mask, k) for k in (1, 3, 9)])  # (3, B, G)
    assert torch.allclose(model.eval()(x, mask), each.mean(0), atol=1e-6)
    model.train()
    drawn = [torch.isclose(model(x, mask), each, atol=1e-6).all((1, 2)) for _ in range(20)]
    assert {tuple(fits.tolist()) for fits in drawn} == set(itertools.permutations([True, 0, 0]))


def test_a_model_of_some_genes_predicts_them_as_before():
    """The model of all genes."""
    x, mask = bags(np.random.default_rng(3), [9, 9])
    model = he2rna.HE2RNA(6, 40, (5,), ks=(1, 3)).eval()
    before = model(x, mask)[:, [7, 2]]
    assert torch.allclose(model.keep_genes([7, 2])(x, mask), before, atol=1e-6)
    assert model.state_dict()["layers.1.weight"].shape == (2, 5)
    deep = he2rna.HE2RNA(6, 4, (5, 7), ks=(1, 3)).eval()
    before = deep(x, mask)[:, [2]]
    assert torch.allclose(deep.keep_genes([2])(x, mask), before, atol=1e-6)


def test_a_prediction_is_a_weighted_mean_of_ranked_tiles():
    """The paper's sentence; provenance lays the weights back on the tiles."""
    torch.manual_seed(0)
    model = he2rna.HE2RNA(6, 7, (5,)).eval()
    for n in (1, 4, 30, 120):
        x, mask = bags(np.random.default_rng(n), [n])
        prediction = model(x, mask)[0].detach().numpy()
        scores = he2rna.score_tiles([model], x[0])
        weights = he2rna.rank_weights(n, model.ks)
        assert weights.sum() == pytest.approx(1)
        assert (weights.diff() <= 1e-7).all()
        for g in range(7):
            ranked = np.sort(scores[:, g])[::-1]
            assert weights.numpy() @ ranked == pytest.approx(prediction[g], abs=1e-5)
            of_tile = he2rna.provenance(scores[:, g], model.ks)
            assert of_tile @ scores[:, g] == pytest.approx(prediction[g], abs=1e-5)


# ----- Training ----------------------------------------------------------------------------------
def test_the_headers_example_finds_what_was_planted_and_only_that():
    """Planted genes: three of six follow the features."""
    slides, y, projects, patients = planted_slides()
    bags = he2rna.bags_of(slides)
    fold = stats.patient_folds(patients, projects, 3, seed=0)
    prediction = np.zeros_like(y)
    for f in range(3):
        train, valid, test = he2rna.split(fold, f, patients, projects, share=0.25)
        assert sorted([*train, *valid, *test]) == list(range(60))
        model = small_model(y[train])
        settings = {"epochs": 30, "lr": 1e-2, "seed": (0, f)}
        for state in he2rna.train_epochs(model, bags, y, projects, train, valid, **settings):
            assert state["loss"] > 0
        model.load_state_dict(state["best"])
        prediction[test] = he2rna.predict(model, bags, test)
    for e in he2rna.evaluate(prediction, y, fold, projects, 3).values():
        assert (e["r"][:3] > 0.6).all()
        assert (e["hs"] < 0.05).tolist() == [True] * 3 + [False] * 3


def test_the_epoch_is_chosen_by_r_or_with_too_few_slides_by_the_loss():
    """SciPy's R within each project."""
    rng = np.random.default_rng(0)
    y, prediction = rng.normal(size=(2, 8, 4))
    r, loss, score = he2rna.validate(prediction, y, np.array(list("XXXXYYYZ")))
    own = []
    for rows in (slice(0, 4), slice(4, 7)):  # Z has too few
        own.append([scipy.stats.pearsonr(prediction[rows, g], y[rows, g])[0] for g in range(4)])
    assert score == r == pytest.approx(np.mean(own))
    assert loss == pytest.approx(np.mean((prediction - y) ** 2))
    r, loss, score = he2rna.validate(prediction, y, np.array(list("WWXXYYZZ")))
    assert r is None
    assert score == -loss
    constant = np.ones_like(y)
    assert he2rna.validate(constant, y, np.array(["X"] * 8))[2] == -1


def test_of_equal_epochs_the_first_is_best_and_patience_counts_from_it():
    """A network that can't move: all epochs are equal."""
    slides, y, projects, _ = planted_slides(24)
    rows = np.arange(24)
    arguments = he2rna.bags_of(slides), y, projects, rows[:18], rows[18:]
    training = he2rna.train_epochs(small_model(y), *arguments, epochs=9, patience=3, lr=0)
    states = [(state["epoch"], state["best_epoch"]) for state in training]
    assert states == [(1, 1), (2, 1), (3, 1), (4, 1)]


def test_each_slide_is_predicted_by_the_model_of_its_fold():
    """Each fold's model, slide by slide."""
    slides, _, _, _ = planted_slides(9)
    bags = he2rna.bags_of(slides)
    models = [he2rna.HE2RNA(8, 6, (4,)) for _ in range(3)]
    fold = np.array([2, 0, 0, 2, 2, 0, 2, 2, 0])  # nobody in fold 1
    got = he2rna.cross_predict(models.__getitem__, bags, fold, batch=2)
    for row, f in enumerate(fold):
        assert got[row] == pytest.approx(he2rna.predict(models[f], bags, [row])[0], abs=1e-6)


# ----- Evaluation --------------------------------------------------------------------------------
def test_cancers_are_never_pooled_but_for_the_papers_merges():
    """HE2RNA Table 1."""
    groups = he2rna.cancers(["TCGA-LUAD", "TCGA-LUSC", "TCGA-KIRC", "TCGA-UCEC", "COAD"])
    assert list(groups) == ["LUNG", "COAD", "KIRC", "LUAD", "LUSC", "UCEC"]
    assert groups["LUNG"].tolist() == [True, True, False, False, False]


def test_of_merged_cancers_and_their_projects_one_counts():
    """HE2RNA Table 1; by hand."""
    names = ["LUNG", "LUAD", "LUSC", "LIHC"]
    assert he2rna.separate(names) == ["LUNG", "LIHC"]
    assert he2rna.separate(names, merged=False) == ["LUAD", "LUSC", "LIHC"]
    for merged in (True, False):
        assert he2rna.separate(["LUAD", "LIHC"], merged) == ["LUAD", "LIHC"]
        assert he2rna.separate(["LUNG", "LIHC"], merged) == ["LUNG", "LIHC"]  # no one's but its own


def test_r_is_the_mean_of_the_folds_and_a_constant_gene_has_none():
    """SciPy, fold by fold."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(60, 5))
    fold = np.arange(60) % 3
    projects = np.array(["X"] * 40 + ["Y"] * 18 + ["Z"] * 2)
    prediction = y * 0.5 + rng.normal(size=y.shape)
    prediction[:, 2] = 1.25  # no value anywhere,
    y[:40, 3] = 0  # in X,
    prediction[(fold == 1) & (projects == "X"), 4] = 7  # in one fold of X
    results = he2rna.evaluate(prediction, y, fold, projects, 3)
    assert results["X"]["n"].tolist() == [40, 40, 0, 0, 40 - 13]
    assert results["Y"]["n"].tolist() == [18, 18, 0, 18, 18]
    for name in "XY":
        e = results[name]
        for g in range(5):
            folds = []
            for f in range(3):
                rows = (fold == f) & (projects == name)
                if np.ptp(y[rows, g]) > 0 and np.ptp(prediction[rows, g]) > 0:
                    folds.append(scipy.stats.pearsonr(prediction[rows, g], y[rows, g])[0])
            want = np.mean(folds) if folds else math.nan
            assert e["r"][g] == pytest.approx(want, nan_ok=True)
        t = scipy.stats.t(e["slides"] - 2)
        r = e["r"][0]
        p = t.sf(r * math.sqrt((e["slides"] - 2) / (1 - r * r)))
        assert e["p"][0] == pytest.approx(p)
        assert np.isnan(e["hs"]).tolist() == np.isnan(e["r"]).tolist()
        assert e["hs"][0] == pytest.approx(stats.holm_sidak(e["p"])[0])
    assert np.isnan(results["Z"]["r"]).all()  # two slides


def test_the_untrained_null_is_of_models_that_learned_nothing():
    """Each block of outputs judged by itself, against each gene."""
    slides, y, projects, _ = planted_slides(30)
    fold = np.arange(30) // 2 % 3
    bags = he2rna.bags_of(slides)

    def draw(f):
        torch.manual_seed(f)
        return he2rna.HE2RNA(8, 6 * 50, (16, 8), ks=(1, 2, 5))

    null = he2rna.untrained_r(draw, bags, y, fold, projects, 3)
    assert {name: r.shape for name, r in null.items()} == {"X": (50, 6), "Y": (50, 6)}
    one = he2rna.cross_predict(draw, bags, fold)[:, 6 * 7 : 6 * 8]  # the eighth block
    group = he2rna.cancers(projects)["X"]
    r = he2rna.mean_of_values(he2rna.fold_r(one, y, fold, group, 3))
    assert null["X"][7] == pytest.approx(r)
    e = he2rna.evaluate(one, y, fold, projects, 3, null, "untrained")["X"]
    assert e["fits"]["untrained"] == pytest.approx(stats.null_fit(null["X"]))
    assert e["p"] == pytest.approx(stats.null_p(e["r"], *stats.null_fit(null["X"])))
    pooled = he2rna.untrained_r(draw, bags, y, fold, projects, 1, judged=np.zeros(30, int))
    all_of_x = one[group], y[group]
    assert pooled["X"][7] == pytest.approx(stats.pearson(*all_of_x))


def test_decoys_are_genes_of_other_patients_of_the_cancer():
    """Counting: in every cancer a decoy has a gene's values, LUAD's and LUSC's together."""
    rng = np.random.default_rng(2)
    y = rng.normal(size=(60, 4)).astype(np.float32)
    patients = np.array([f"p{i}" for i in range(60)])
    projects = np.array(["TCGA-LUAD", "TCGA-LUSC", "TCGA-LIHC"] * 20)
    decoys = he2rna.draw_decoys(y, patients, projects, 10, seed=3)
    assert decoys.shape == (60, 10)
    liver = projects == "TCGA-LIHC"
    models = []
    for decoy in decoys.T:
        same_values = np.sort(y[liver], axis=0) == np.sort(decoy[liver])[:, None]
        (model,) = np.flatnonzero(same_values.all(0))
        assert sorted(decoy[~liver]) == sorted(y[~liver, model])
        assert np.mean(decoy == y[:, model]) < 0.2
        models.append(model)
    assert sorted(models[:4]) == [0, 1, 2, 3]  # in turn
    assert len({tuple(decoy) for decoy in decoys.T}) == 10  # no order twice
    assert not np.array_equal(decoys, he2rna.draw_decoys(y, patients, projects, 10, seed=4))
    assert (he2rna.n_decoys(30839), he2rna.n_decoys(300)) == (1542, 200)


def test_decoys_are_learned_as_genes_but_weigh_little_where_genes_are_few():
    """The loss of all outputs alike, where decoys are few; else DECOY_WEIGHT, by hand."""
    slides, y, _, _ = planted_slides(12)
    bags, rows = he2rna.bags_of(slides), torch.arange(12)
    for n_genes, share in ((5, 1 / 5), (2, he2rna.DECOY_WEIGHT)):
        model = small_model(y).eval()
        before = copy.deepcopy(model)
        model.train = lambda: None  # no dropout, all k
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        loss = he2rna.learn(model, optimizer, bags, y, [rows], 1, n_genes=n_genes)
        error = (before(*bags(rows)) - torch.as_tensor(y)).square()
        genes, decoys = error[:, :n_genes].mean(), error[:, n_genes:].mean()
        assert loss == pytest.approx(genes.item())
        (genes + share * decoys).backward()
        for new, old in zip(model.parameters(), before.parameters(), strict=True):
            assert torch.allclose(new, old - old.grad, atol=1e-6)
    few = error[:, :5].mean() + error[:, 5:].mean() / 5
    assert few.item() == pytest.approx(error.mean().item() * 6 / 5)


def test_the_decoys_decide_and_patients_count():
    """null_fit of their R; n, t and permutation of 20 patients with 3 slides each."""
    rng = np.random.default_rng(0)
    patients = np.array([f"p{i:02d}" for i in range(20)]).repeat(3)
    y, prediction = rng.normal(size=(2, 60, 7))
    fold = np.arange(20).repeat(3) % 4
    fold[:6] = 9  # two patients are no fold
    projects = np.array(["X"] * 60)
    decoys = {"X": 0.3 * rng.normal(size=90)}
    more = {"patients": patients, "decoys": decoys}
    e = he2rna.evaluate(prediction, y, fold, projects, 10, n_genes=10, **more)["X"]
    assert e["null"] == "decoys" and e["fits"]["decoys"] == stats.null_fit(decoys["X"])
    assert e["p"] == pytest.approx(stats.null_p(e["r"], *stats.null_fit(decoys["X"])))
    assert (e["slides"], e["patients"]) == (60, 20)
    assert set(e["n"]) == {20} and set(e["n_slides"]) == {60}
    assert e["all_p"]["t"] == pytest.approx(stats.pearson_p(e["r"], 20))
    assert e["fits"]["permutation"][1] == pytest.approx(
        1 + 5 / np.mean(1 / (np.array([4, 4, 5, 5, 2]) - 1))
    )
    few = he2rna.evaluate(prediction, y, fold, projects, 10, **more)["X"]["fits"]
    assert few["decoys"][1] == pytest.approx(1 + (few["permutation"][1] - 1) / 2)
    r = he2rna.r_of_cancers(prediction, y, fold, projects, 10)
    assert r["X"] == pytest.approx(e["r"])


def test_r_sign_is_the_papers():
    """The paper's .64 (n = 44) and .20: not the t's of 1,046 but of one subtype's 520 slides."""
    for n, want in ((44, 0.637), (1046, 0.143), (520, 0.202)):
        assert he2rna.r_sign(30839, n) == pytest.approx(want, abs=1e-3)


def test_genes_are_counted_over_the_cancers_that_count():
    """By hand."""
    hs = {"LUNG": [0.01, 0.2], "LUAD": [0.01, 0.01], "LUSC": [0.2, 0.01], "LIHC": [0.01, 0.3]}
    results = {name: {"hs": np.array(p)} for name, p in hs.items()}
    cancers, at_least = stats.recurrent(he2rna.significant_genes(results))
    assert cancers.tolist() == [2, 0]
    assert at_least.tolist() == [1, 1]
    assert he2rna.significant_genes(results, merged=False).sum(0).tolist() == [2, 2]


def test_hits_are_significant_in_several_cancers_or_of_high_r():
    """By hand."""
    nan = math.nan
    r = np.array([[0.5, 0.3, nan, nan], [0.2, 0.3, 0.45, nan]])
    significant = np.array([[True, True, False, False], [False, True, True, False]])
    for rule, want in (({}, [0, 1, 2]), ({"at_least": 2}, [1]), ({"min_r": 0.4}, [0, 2])):
        hits, universe = he2rna.well_predicted(r, significant, **rule)
        assert np.flatnonzero(hits).tolist() == want
        assert universe.tolist() == [True, True, True, False]


def test_a_signature_is_compared_with_lists_of_any_or_of_like_genes():
    """Planted: strong genes are the best, but of strong genes not the best."""
    rng = np.random.default_rng(0)
    level = np.arange(400.0)
    r = (level / 400 + 0.01 * rng.normal(size=400))[None]
    members = (level >= 320) & (level % 2 == 0)
    arguments = (r, r > 0.5, members[None], rng)
    any_genes = he2rna.signature_test(*arguments, n_lists=500)
    alike = he2rna.signature_test(*arguments, level, n_lists=500)
    assert any_genes["r"][0, 0] == pytest.approx(r[0, members].mean())
    assert any_genes["p_r"][0, 0] == pytest.approx(1 / 501)
    assert alike["p_r"][0, 0] > 0.01


# ----- Where on the slide, and what is transferred -----------------------------------------------
def test_tile_scores_are_the_mean_of_the_models():
    """torch's mean of each model's scores."""
    models = [he2rna.HE2RNA(8, 6, (4,)) for _ in range(3)]
    features = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float16)
    got = he2rna.score_tiles(models, features, block=4)
    x = torch.from_numpy(features).float()
    want = torch.stack([model.eval().tile_scores(x) for model in models]).mean(0)
    assert torch.allclose(torch.from_numpy(got), want, atol=1e-6)


def test_the_best_tiles_hold_the_cells():
    """SciPy's R; planted cells."""
    scores = np.arange(1000.0)
    cells = np.where(scores >= 900, 42, 4)
    r, best, every = he2rna.against_cells(scores, cells)
    assert r == pytest.approx(scipy.stats.pearsonr(scores, cells)[0])
    assert (best, every) == (42, 4)
    assert he2rna.best_tiles(scores, 3).tolist() == [999, 998, 997]
    assert he2rna.best_tiles(-scores, 3).tolist() == [0, 1, 2]
    assert len(he2rna.best_tiles(scores[:9])) == 4  # at most half


def test_a_group_of_genes_is_judged_as_one():
    """By hand."""
    y, prediction = np.random.default_rng(0).normal(size=(2, 20, 5))
    one, truth = he2rna.mean_of_genes(prediction, y, [1, 3])
    assert one[:, 0] == pytest.approx((prediction[:, 1] + prediction[:, 3]) / 2)
    assert truth.shape == (20, 1)


def test_a_slides_representation_is_the_last_layer_of_its_mean_tile():
    """The genes that the output layer reads from it are the mean tile's."""
    models = [he2rna.HE2RNA(8, 6, (5, 4)) for _ in range(2)]
    features = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
    got = he2rna.representations(models, features)
    assert got.shape == (2, 4)
    x = torch.from_numpy(features.mean(0))
    for h, model in zip(got, models, strict=True):
        genes = model.layers[-1](torch.from_numpy(h))
        assert torch.allclose(genes, model.tile_scores(x), atol=1e-6)


# ----- Hospital A, hospital B --------------------------------------------------------------------
def test_hospital_a_is_nested_stratified_and_of_the_papers_size():
    """The paper's "73 - 368 patients" of 441, with an MSI-H/MSI-NH ratio of 0.18."""
    high = np.arange(441) < 67
    before = np.zeros(441, bool)
    for share in (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6):
        in_a = he2rna.hospital_a(high, share, np.random.default_rng(1))
        assert in_a.sum() == int(441 * share)
        assert abs((high & in_a).sum() - 67 * share) <= 1
        assert (before <= in_a).all()
        before = in_a
    tied = np.arange(20) % 4 == 0  # 5 of 20: the classes tie at the cut
    draws = [he2rna.hospital_a(tied, 0.5, np.random.default_rng(s)) for s in range(50)]
    assert {(tied & in_a).sum() for in_a in draws} == {3}
    draws = [he2rna.hospital_a(high, 0.5, np.random.default_rng(s)) for s in range(200)]
    assert len({in_a.tobytes() for in_a in draws}) == 200
    assert 0.35 < np.mean(draws, 0).min() < np.mean(draws, 0).max() < 0.65


def test_inputs_are_standardised_by_the_rows_that_train():
    """NumPy's mean and deviation of those rows."""
    x = np.random.default_rng(0).normal(3, 2, (20, 4)).astype(np.float32)
    x[:, 3] = 0.1
    rows = np.arange(5, 15)
    z = he2rna.standardise(x, rows)
    assert np.allclose(z[:, :3], ((x - x[rows].mean(0)) / x[rows].std(0))[:, :3], atol=1e-5)
    assert np.allclose(z[:, 3], 0, atol=1e-6)


def test_genes_above_the_floor_of_a_log_table():
    """By hand."""
    log2 = np.log2(np.array([[0, 0, 3, 0.1], [0, 4, 1, 0.2], [0, 2, 0, 0.1]]) + 0.001)
    assert he2rna.above_floor(log2).tolist() == [False, True, True, True]
    assert he2rna.above_floor(np.array([[0, 1], [0, 0], [1, 2.0]])).tolist() == [False, True]


@pytest.fixture
def hospitals():
    """30 slides: 12 in A, and 18 in B in three folds; each arm's networks can be small."""
    rng = np.random.default_rng(0)
    a, b = np.arange(12), np.arange(12, 30)
    return he2rna.Hospitals(
        x=rng.normal(size=(30, 8)).astype(np.float32),
        y=rng.normal(size=(30, 6)).astype(np.float32),
        high=np.arange(30) % 3 == 0,
        rows_a=[a[a % 3 != f] for f in range(3)],
        rows_b=[b[b % 3 != f] for f in (0, 1, 2, 0, 1, 2)],
        seed=[7],
    )


def test_the_arms_networks_are_the_papers(hospitals):
    """HE2RNA Methods, MSI status: layers, activations, epochs."""
    taught = []

    def train(recipe, lessons):
        taught.append((recipe, lessons))
        return [(np.zeros((30, 256)), np.zeros((30, recipe.sizes[-1]))) for _ in lessons]

    h = hospitals._replace(x=np.zeros((30, 2048), np.float32), train=train)
    names = {
        "transcriptome": ["2048-1024-256-6 x3", "256-128-1 x6"],
        "direct": ["2048-256-128-1 x6"],
        "ensemble": ["2048-256-128-1 x18"],
        "autoencoder-a": ["2048-1024-256-1024-2048 x3", "256-128-1 x6"],
        "autoencoder-b": ["2048-1024-256-1024-2048 x6", "256-128-1 x6"],
    }
    for arm, wanted in names.items():
        taught.clear()
        scores = he2rna.MSI_ARMS[arm](h)
        assert scores.shape == (3 if arm == "ensemble" else 1, 6, 30)
        assert [f"{'-'.join(map(str, r.sizes))} x{len(of)}" for r, of in taught] == wanted
        for recipe, lessons in taught:
            assert recipe.epochs == 50
            ends = {1: "Sigmoid", recipe.sizes[0]: "Identity", 6: "Identity"}
            assert recipe.activations[-1].__name__ == ends[recipe.sizes[-1]]
            if len(recipe.sizes) == 5:
                layers = [activation.__name__ for activation in recipe.activations]
                assert layers == ["ReLU", "Identity", "ReLU", "Identity"]
            for lesson in lessons:
                assert lesson.known is lesson.rows  # nothing else is learned from


def test_networks_start_as_torchs_or_as_keras():
    """Bounds and deviations of the uniform laws: 1 / sqrt(inputs), and Glorot's."""
    for keras, bound in ((False, 300**-0.5), (True, (6 / 500) ** 0.5)):
        layer = he2rna.draw_network((300, 200), (torch.nn.Sigmoid,), 0, keras)[0]
        weights = layer.weight.detach()
        assert 0.99 * bound < weights.abs().max() <= bound * (1 + 1e-6)
        assert weights.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
        assert (layer.bias == 0).all() == keras


def test_a_network_learns_from_its_own_rows_alone(hospitals, monkeypatch):
    """Slides of other rows, changed beyond recognition, change no weight; its own rows teach."""
    monkeypatch.setattr(he2rna, "MSI_HIDDEN", (5, 4))
    rows = hospitals.rows_a[0]
    others = np.setdiff1d(np.arange(30), rows)
    h = hospitals._replace(rows_a=[rows])
    ((code, predicted),) = he2rna.learn_expression(h)
    x, y = h.x.copy(), h.y.copy()
    x[others], y[others] = 9, 9
    ((again, predicted_again),) = he2rna.learn_expression(h._replace(x=x, y=y))
    assert (code[rows] == again[rows]).all()
    assert (predicted[rows] == predicted_again[rows]).all()
    z = he2rna.standardise(h.y, rows)
    monkeypatch.setattr(he2rna, "MSI_EPOCHS", 500)
    ((_, learned),) = he2rna.learn_expression(h)
    assert np.square(learned - z)[rows].mean() < 0.9 * np.square(predicted - z)[rows].mean()


def test_folds_in_b_test_each_patient_once_a_repeat():
    """Counting patients and labels."""
    names, high = np.array([f"P{i}" for i in range(20)]), np.arange(20) < 6
    tests = he2rna.folds_in_b(names, high, [0], folds=3, repeats=4)
    assert tests.shape == (12, 20)
    for repeat in range(4):
        of = tests[3 * repeat : 3 * repeat + 3]
        assert (of.sum(0) == 1).all()
        assert (of[:, high].sum(1) == 2).all()


def test_auc_is_of_patients_and_of_their_own_test_fold():
    """Brute force: all pairs of patients, each the mean of three slides."""
    rng = np.random.default_rng(4)
    patient = np.arange(12).repeat(3)
    high = np.arange(12) % 3 == 0
    tests = np.array([np.arange(12) < 6, np.arange(12) >= 6])
    scores = rng.random((2, 2, 36))  # two members
    got = he2rna.fold_aucs(scores, patient, high, tests)
    for auc, own, test in zip(got, scores.mean(0), tests, strict=True):
        of = own.reshape(12, 3).mean(1)
        wins = [p > q for p in of[test & high] for q in of[test & ~high]]
        assert auc == pytest.approx(np.mean(wins))


def test_arms_are_compared_by_paired_splits():
    """SciPy's exact Wilcoxon test."""
    level, noise = np.random.default_rng(0).normal(0, (0.2, 0.01), (12, 2)).T
    p = he2rna.arms_p(level, level + 0.01 + noise)
    assert p == pytest.approx(scipy.stats.wilcoxon(0.01 + noise, method="exact").pvalue)


# ===== histcode.py ===============================================================================


# ----- Views -------------------------------------------------------------------------------------
def test_parts_of_a_batch_get_the_views_of_the_whole():
    """The views of the whole batch."""
    tiles = (pictures(6, 20) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    whole = histcode.two_views(tiles, 16, seed=1, epoch=2, step=3)
    first = histcode.two_views(tiles[:3], 16, 1, 2, 3, part=0, parts=2)
    second = histcode.two_views(tiles[3:], 16, 1, 2, 3, part=1, parts=2)
    for side in (0, 1):
        assert torch.allclose(whole[side], torch.cat([first[side], second[side]]), atol=1e-5)
    assert (whole[0] - whole[1]).abs().mean() > 0.1


def test_each_view_of_each_step_is_drawn_by_itself(monkeypatch):
    """No two have the same seed."""
    keys, original = [], histcode.generator_of
    monkeypatch.setattr(
        histcode, "generator_of", lambda *key: (keys.append(key), original(*key))[1]
    )
    tiles = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    for epoch, step in itertools.product(range(3), range(3)):
        histcode.two_views(tiles, 8, seed=5, epoch=epoch, step=step)
    assert len(set(keys)) == len(keys) == 18 and {key[0] for key in keys} == {5}


@pytest.mark.parametrize("px", [16, 33, 48, 90])
def test_crops_equal_pillows_resize(px):
    """Pillow's resize, channel by channel."""
    tiles = (pictures(4, 64) * 255).to(torch.uint8)
    boxes = torch.tensor(
        [[0, 0, 1, 1], [0.1, 0.25, 0.6, 0.5], [0.3, 0.02, 0.7, 0.93], [0.5, 0.5, 0.45, 0.5]]
    )
    got = histcode.make_view(tiles, plain_view(4, box=boxes), px) * 255
    for tile, (left, top, width, height), view in zip(tiles, boxes * 64, got, strict=True):
        box = [float(v) for v in (left, top, left + width, top + height)]
        for channel, mine in zip(tile.float().numpy(), view.numpy(), strict=True):
            resized = Image.fromarray(channel, "F").resize((px, px), Image.Resampling.BILINEAR, box)
            assert np.abs(np.asarray(resized) - mine).max() < 0.01


def test_turns_are_the_eight_symmetries():
    """torch's rot90 and flip."""
    tile = torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4)
    x = tile[0] / 255
    wanted = [torch.rot90(side, k, (1, 2)) for side in (x, x.flip(2)) for k in range(4)]
    which = set()
    for bits in itertools.product([False, True], repeat=3):
        view = histcode.make_view(tile, plain_view(1, turns=torch.tensor([bits])), 4)[0]
        distance = [(view - w).abs().max().item() for w in wanted]
        assert min(distance) < 1e-6
        which.add(int(np.argmin(distance)))
    assert which == set(range(8))


def jittered_by_colorsys(pixels, brightness, contrast, saturation, hue):
    """The same jitter of one picture (h, w, 3), pixel by pixel."""
    pixels = (pixels * brightness).clip(0, 1)
    grey = pixels @ histcode.LUMINANCE
    pixels = (contrast * pixels + (1 - contrast) * grey.mean()).clip(0, 1)
    grey = pixels @ histcode.LUMINANCE
    pixels = (saturation * pixels + (1 - saturation) * grey[..., None]).clip(0, 1)
    for i, j in np.ndindex(pixels.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*pixels[i, j])
        pixels[i, j] = colorsys.hsv_to_rgb((h + hue) % 1, s, v)
    return pixels


def test_colour_jitter_equals_colorsys():
    """colorsys, pixel by pixel."""
    x = pictures(3, 5)
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 1, 0] = 0, 1, 0.5  # black, white, grey
    rng = np.random.default_rng(0)
    for _ in range(5):
        colour = np.c_[rng.uniform(0.5, 1.5, (3, 3)), rng.uniform(-0.5, 0.5, 3)]
        got = histcode.jitter(x, torch.tensor(colour, dtype=torch.float32))
        for picture, factors, mine in zip(x, colour, got, strict=True):
            wanted = jittered_by_colorsys(picture.permute(1, 2, 0).double().numpy(), *factors)
            assert np.abs(mine.permute(1, 2, 0).numpy() - wanted).max() < 2e-5


def test_blur_equals_scipy_away_from_the_rim():
    """SciPy's gaussian_filter."""
    x = torch.rand(3, 3, 40, 40, generator=seeded())
    sigma = torch.tensor([0, 1.1, 2.0])
    got = histcode.blur(x, sigma)
    assert torch.allclose(got[0], x[0], atol=1e-6)
    assert torch.allclose(histcode.blur(torch.ones_like(x), sigma), torch.ones_like(x))
    for i in (1, 2):
        s = float(sigma[i])
        wanted = ndimage.gaussian_filter(x[i].numpy(), (0, s, s), truncate=8)
        assert np.abs(wanted - got[i].numpy())[:, 12:-12, 12:-12].max() < 1e-5


def test_draws_have_their_ranges_and_chances():
    """SimCLR's ranges and chances, as HistCode has them, in 20,000 draws."""
    view = histcode.draw_view(20000, seeded())
    left, top, width, height = view["box"].T
    assert (view["box"] >= 0).all()
    assert (left + width).max() < 1 + 1e-6 and (top + height).max() < 1 + 1e-6
    area, ratio = width * height, width / height
    assert area.min() > 0.2 - 1e-6 and area.mean() > 0.5
    assert ratio.min() > 0.75 - 1e-5 and ratio.max() < 4 / 3 + 1e-5
    change = view["colour"] - torch.tensor(histcode.PLAIN_COLOUR)
    reach = change.abs().amax(0)
    assert (reach - torch.tensor(histcode.JITTER)).abs().max() < 0.001
    for of_one, most in zip(change.T, histcode.JITTER, strict=True):
        drawn = of_one[of_one != 0].numpy()
        assert scipy.stats.kstest(drawn, "uniform", (-most, 2 * most)).pvalue > 0.001
    sigma = view["sigma"]
    assert sigma[sigma > 0].min() >= 0.1 and 1.99 < sigma.max() <= 2
    chances = [((change != 0).any(1), 0.8), (view["grey"], 0.2), (sigma > 0, 0.5)]
    chances += [(turn, 0.5) for turn in view["turns"].T]
    for happened, chance in chances:
        assert abs(happened.float().mean() - chance) < 0.015


# ----- Contrast, and the bank that plays against it ----------------------------------------------
@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("tau", [0.12, 1.0])
def test_info_nce_equals_its_sum(tau, in_batch):
    """HistCode eq. 1, summed term by term."""
    q, k = unit_rows(7, 5, 0), unit_rows(7, 5, 1)
    w = 3 * torch.randn(11, 5, generator=seeded(2), dtype=torch.float64)
    loss = 0.0
    for i in range(7):
        negatives = [v / v.norm() for v in w]
        if in_batch:
            negatives += [k[j] for j in range(7) if j != i]
        positive = math.exp(float(q[i] @ k[i]) / tau)
        others = sum(math.exp(float(q[i] @ m) / tau) for m in negatives)
        loss -= math.log(positive / (positive + others)) / 7
    assert histcode.info_nce(q, k, w, tau, in_batch).item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("tau", [0.02, 0.12, 1.0])
def test_bank_gradient_equals_autograd_and_is_orthogonal(tau, in_batch):
    """torch's autograd, for eq. 4."""
    q, k = unit_rows(12, 16, 0), unit_rows(12, 16, 1)
    w = torch.randn(333, 16, generator=seeded(2), dtype=torch.float64)
    w *= torch.logspace(-2, 2, 333, dtype=torch.float64)[:, None]
    loss = histcode.info_nce(q, k, w.requires_grad_(), tau, in_batch)
    (wanted,) = torch.autograd.grad(loss, w)
    w = w.detach()
    got = histcode.bank_gradient(q, k, w, tau, in_batch)
    size = got.norm(dim=1)
    assert ((got - wanted).norm(dim=1) <= 1e-10 * wanted.norm(dim=1) + 1e-16).all()
    assert size.min() > 0 and ((got * w).sum(1).abs() <= 1e-10 * size * w.norm(dim=1)).all()
    short = histcode.bank_gradient(q.float(), k.float(), w.float(), tau, in_batch)
    assert relative(short, wanted) < 1e-4


def test_bank_step_equals_torchs_sgd():
    """torch's SGD, also in the sign of the decay, which shrinks where the gradient is climbed."""
    q, k = unit_rows(12, 8, 0), unit_rows(12, 8, 1)
    ours = torch.randn(40, 8, generator=seeded(2), dtype=torch.float64)
    theirs = ours.clone().requires_grad_()
    velocity = torch.zeros_like(ours)
    sgd = torch.optim.SGD([theirs], 0.3, momentum=0.9, weight_decay=1e-2, maximize=True)
    for _ in range(5):
        gradient = histcode.bank_gradient(q, k, ours, 0.12)
        histcode.bank_step(ours, velocity, gradient, 0.3, 0.9, 1e-2)
        sgd.zero_grad()
        histcode.info_nce(q, k, theirs, 0.12).backward()
        sgd.step()
    assert torch.allclose(ours, theirs.detach(), rtol=1e-10)


def test_nt_xent_equals_its_sum():
    """SimCLR eq. 1, summed term by term."""
    z1, z2, tau = unit_rows(6, 4, 0), unit_rows(6, 4, 1), 0.3
    z = torch.cat([z1, z2])
    loss = 0.0
    for i in range(12):
        e = [math.exp(float(z[i] @ z[j]) / tau) if i != j else 0 for j in range(12)]
        loss -= math.log(e[(i + 6) % 12] / sum(e)) / 12
    assert histcode.nt_xent(z1, z2, tau).item() == pytest.approx(loss, rel=1e-12)
    assert torch.isfinite(histcode.nt_xent(z1.float(), -z1.float(), 1e-4))


# ----- Pretraining -------------------------------------------------------------------------------
def test_pretraining_equals_two_optimizers_that_play_against_each_other():
    """Eqs. 2-4 by autograd for both players: torch's SGD down for the encoder, up for the bank."""
    start = unit_rows(20, 5, 7, torch.float32)
    bank = histcode.Bank(start.clone(), 0.5, rate=0.3)
    model = small_embedder()
    (state,) = histcode.pretrain_epochs(model, random_views, bank, epochs=1)
    theirs, w = small_embedder(), start.clone().requires_grad_()
    down = torch.optim.SGD(theirs.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    up = torch.optim.SGD([w], 0.3, momentum=0.9, weight_decay=1e-4, maximize=True)
    losses = []
    for x1, x2 in random_views(1):
        loss = histcode.info_nce(theirs(x1), theirs(x2), w, 0.5, in_batch=True)
        down.zero_grad(), up.zero_grad()
        loss.backward()
        down.step(), up.step()
        losses.append(loss.item())
    for ours, wanted in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(ours, wanted, atol=1e-6)
    assert torch.allclose(state["negatives"]["w"], w.detach(), atol=1e-6)
    assert state["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_queries_learn_and_keys_follow(symmetric):
    """MoCo, arXiv:1911.05722, eq. 2 and algorithm 1, by autograd and torch's SGD."""
    start = unit_rows(20, 5, 7, torch.float32)
    model = small_embedder()
    negatives = histcode.Bank(start.clone(), 0.5, rate=0, in_batch=False)
    options = {"epochs": 1, "momentum_encoder": 0.7, "symmetric": symmetric}
    (state,) = histcode.pretrain_epochs(model, random_views, negatives, **options)
    query, key = small_embedder(), small_embedder()
    down = torch.optim.SGD(query.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    for x1, x2 in random_views(1):
        with torch.no_grad():
            for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
                slow.copy_(0.7 * slow + 0.3 * fast)
            k1, k2 = key(x1), key(x2)
        loss = histcode.info_nce(query(x1), k2, start, 0.5)
        if symmetric:
            loss = (loss + histcode.info_nce(query(x2), k1, start, 0.5)) / 2
        down.zero_grad()
        loss.backward()
        down.step()
    for ours, theirs in ((state["model"], query), (state["keys"], key)):
        for name, wanted in theirs.state_dict().items():
            assert torch.allclose(ours[name], wanted, atol=1e-6)


def test_the_learning_rate_stays_or_falls_along_half_a_cosine():
    """The formula."""
    assert histcode.learning_rate(7, 10) == 0.03
    rates = [histcode.learning_rate(epoch, 4, 1.0, 0.2) for epoch in (1, 2, 3, 4)]
    assert np.allclose(rates, 0.6 + 0.4 * np.cos(np.pi * np.arange(4) / 4))


def test_a_bank_starts_from_embeddings_of_the_untrained_model():
    """The model itself."""
    model = small_embedder()
    first, second = (x1 for x1, _ in random_views(0, steps=2))
    bank = histcode.first_bank(model, [first, second], size=12)
    with torch.no_grad():
        assert torch.equal(bank, torch.cat([model(first), model(second)])[:12])


# ----- Feature aggregation -----------------------------------------------------------------------
def by_loop(name, model, h):
    """Outputs of every stream for one bag h (n, d), tile by tile."""
    p = {key: value.detach().double().numpy() for key, value in model.named_parameters()}
    h = h.double().numpy()

    def layer(key, x):
        return x @ p[f"{key}.weight"].T + p[f"{key}.bias"]

    def weighted(weights):
        return sum(w * x for w, x in zip(weights, h, strict=True)) / sum(weights)

    if name == "max":
        return [layer("classify", np.array([max(column) for column in h.T]))]
    if name == "mean":
        return [layer("classify", sum(h) / len(h))]
    if name in ("ABMIL", "HistCode"):
        weights = []
        for x in h:
            hidden = np.tanh(p["pooling.v.weight"] @ x)
            if name == "HistCode":
                hidden = hidden / (1 + np.exp(-(p["pooling.u.weight"] @ x)))
            weights.append(np.exp(p["pooling.w.weight"][0] @ hidden))
        return [layer("classify", weighted(weights))]
    scores = [layer("score", x) for x in h]
    if name == "DSMIL":
        best = [int(np.argmax([s[c] for s in scores])) for c in (0, 1)]
        vectors = []
        for b in best:
            q = layer("query", h[b])
            likeness = [layer("query", x) @ q / np.sqrt(histcode.QUERIES) for x in h]
            vectors.append(weighted(np.exp(likeness)))
        instance = np.array([scores[best[0]][0], scores[best[1]][1]])
        return [instance, layer("classify", np.concatenate(vectors))]
    order = sorted(range(len(h)), key=lambda i: scores[i][0] - scores[i][1])
    s = np.zeros(histcode.STATE)
    for i in order[: histcode.TOP_TILES]:
        s = np.maximum(0, layer("take", h[i]) + layer("keep", s))
    return [scores[order[0]], layer("classify", s)]


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_equal_loops_over_tiles(name):
    """The papers' formulas, in loops over tiles in float64."""
    sizes = (1, 3, 12, 25)
    model = drawn_network(name)
    h, mask = ragged(sizes)
    outputs, a = model(h, mask)
    for b, n in enumerate(sizes):
        assert np.allclose(outputs[b].detach(), by_loop(name, model, h[b, :n]), atol=2e-6)
        assert a[b, :n].sum().item() == pytest.approx(1, abs=1e-6)
        assert (a[b] >= 0).all() and (a[b, n:] == 0).all()
    outputs[:, -1].square().sum().backward()  # padding of nan reaches no gradient
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("gated, count", [(True, 2 * 5 * 3 + 3), (False, 5 * 3 + 3)])
def test_attention_has_the_shapes_and_parts_of_its_equations(gated, count):
    """HistCode eqs. 5, 6; ABMIL without the gate."""
    h, mask = ragged((4, 2), 5)
    model = histcode.GatedAttention(5, 3, gated)
    z, a = model(h, mask)
    assert z.shape == (2, 5) and a.shape == (2, 4)
    assert sum(p.numel() for p in model.parameters()) == count
    assert torch.allclose(z, torch.einsum("bt,btd->bd", a, h.nan_to_num()), atol=1e-6)
    with torch.no_grad():
        model.w.weight.fill_(1e4)
    assert model(h, mask)[1].isfinite().all()  # a high logit does not overflow


# ----- Learning from slides ----------------------------------------------------------------------
def test_dsmil_tells_the_attention_of_the_last_class():
    """Li et al. 2021, eqs. 2-4, tile by tile."""
    h, mask = ragged([6])
    torch.manual_seed(0)
    model = histcode.DSMIL(7, outputs=3, queries=4)
    _, a = model(h, mask)
    q = model.query(h[0])
    critical = q[model.score(h[0])[:, 2].argmax()]
    want = (q @ critical / 2).softmax(0)
    assert torch.allclose(a[0], want, atol=1e-6)


def test_cross_entropy_is_torchs_over_the_streams():
    """torch's cross_entropy."""
    outputs = torch.randn(6, 2, 3, generator=seeded(), dtype=torch.float64)
    y = torch.tensor([0, 2, 1, 1, 0, 2])
    want = (F.cross_entropy(outputs[:, 0], y, reduction="none")
            + F.cross_entropy(outputs[:, 1], y, reduction="none")) / 2  # fmt: skip
    assert torch.allclose(histcode.cross_entropy(outputs, y), want)
    assert torch.equal(histcode.mistakes(outputs, y), (outputs[:, 1].argmax(1) != y).float())


def test_squared_error_leaves_out_what_is_unknown():
    """Brute force over what is known."""
    out = torch.randn(3, 4, 2, 5, generator=seeded(), dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 4, 5, generator=seeded(1), dtype=torch.float64)
    y[0, 1, 2:] = y[1, 0] = torch.nan
    got = histcode.squared_error(out, y)
    for m, b in itertools.product(range(3), range(4)):
        known = [g for g in range(5) if not y[m, b, g].isnan()]
        errors = [(out[m, b, 1, g] - y[m, b, g]).item() ** 2 for g in known]
        assert got[m, b].item() == pytest.approx(np.mean(errors) if errors else 0)
    got.sum().backward()
    assert out.grad.isfinite().all() and (out.grad[0, 1, 1, 2:] == 0).all()
    assert (out.grad[0, 1, 1, :2] != 0).all()


def test_the_epoch_kept_is_the_last_one_with_the_fewest_mistakes():
    """Counting the mistakes of each epoch."""
    bags, y = planted_bags(shift=1.0)
    order = np.random.default_rng(1).permutation(24)
    splits = []
    for i in range(4):
        train, valid = np.split(np.roll(order, 5 * i), [14])
        splits.append((train, valid, valid))  # the test bags show what was judged
    differ = 0
    done = learn("HistCode", bags, y, splits, [1, 2, 3, 4], epochs=25)
    for (_, valid, _), got in zip(splits, done, strict=True):
        truth = torch.from_numpy(y[valid])
        wrong = [(answers.argmax(1) != truth).sum().item() for answers in got["tests"]]
        losses = [F.cross_entropy(answers, truth).item() for answers in got["tests"]]
        assert np.allclose(losses, got["losses"], atol=1e-5)
        assert got["epoch"] == max(e for e, n in enumerate(wrong, 1) if n == min(wrong))
        differ += got["epoch"] != 1 + int(np.argmin(losses))
        model = SlideModel("HistCode", np.zeros(6), np.ones(6), 2, (), 8)
        model.load_state_dict(got["model"])  # and its weights are that epoch's
        answers = histcode.predict_slides(model, bags, valid)[:, 0]
        assert torch.allclose(answers, got["tests"][got["epoch"] - 1], atol=1e-5)
    assert differ  # or the mistakes chose nothing
    (got,) = learn("HistCode", bags, y, splits[:1], [1], epochs=3, lr=0)
    assert got["epoch"] == 3  # all are equal


def test_parts_keep_patients_whole_and_labels_spread():
    """Counting patients of each kind in each part."""
    patients, y = [], []
    for i in range(60):  # 20 each with tumour, normal, both
        for label in ([1, 1], [0], [0, 1])[i % 3]:
            patients.append(f"P{i:02d}")
            y.append(label)
    order = np.random.default_rng(0).permutation(len(y))
    patients, y = np.array(patients)[order], np.array(y)[order]
    part = histcode.split_patients(patients, y, 10, [0, 0])
    assert all(len(set(part[patients == p])) == 1 for p in set(patients))
    kinds = np.array([int(p[1:]) % 3 for p in patients])
    for f, kind in itertools.product(range(10), range(3)):
        assert len(set(patients[(part == f) & (kinds == kind)])) == 2
    assert (part != histcode.split_patients(patients, y, 10, [0, 1])).any()


def test_each_part_tests_once_and_the_next_one_chooses():
    """By hand."""
    part = np.arange(40) % 10
    for f in range(10):
        train, valid, test = histcode.roles(part, f)
        assert (part[test] == f).all() and (part[valid] == (f + 1) % 10).all()
        assert sorted([*train, *valid, *test]) == list(range(40))
        leak = histcode.roles(part, f, stop_on_test=True)
        assert np.array_equal(leak[1], test) and np.array_equal(leak[0], train)


# ----- Differential expression -------------------------------------------------------------------
def test_fold_changes_worked_by_hand():
    """HistCode Methods: log10(fc + 1), and |log2 fc| > 1.5."""
    cases = [  # tumour, normal, fc, label
        (8, 1, 8, 1),
        (1, 8, 1 / 8, 1),
        (0, 2, 0, 1),
        (3, 0, np.nan, 1),  # infinite: no y
        (0, 0, np.nan, np.nan),
        (np.nan, 1, np.nan, np.nan),
        (2, np.nan, np.nan, np.nan),
        (2.83, 1, 2.83, 1),  # 2 ** 1.5 = 2.828
        (2.82, 1, 2.82, 0),
        (1, 2.83, 1 / 2.83, 1),
    ]
    tumour, normal, fc, want = np.array(cases).T
    y, label = histcode.fold_change(tumour, normal)
    assert np.allclose(y, np.log10(fc + 1), equal_nan=True)
    assert np.array_equal(label, want, equal_nan=True)


def test_a_predicted_fold_change_has_the_label_it_stands_for():
    """The label of the fold change itself."""
    fc = np.exp(np.random.default_rng(0).normal(0, 2, (40, 5)))
    y, label = histcode.fold_change(fc, np.ones_like(fc))
    assert (histcode.label_of(y) == label).all() and 0 < label.mean() < 1
    beyond = np.array([-3.0, 0, np.log10(2), np.log10(1 + 2**1.51), 9])  # the first no fc can give
    assert histcode.label_of(beyond).tolist() == [True, True, False, True, True]


def test_the_ends_of_the_attention_worked_by_hand():
    """By hand: the 100 highest and lowest tiles, or of few half each."""
    a = np.array([0.1, 0.3, 0.3, 0.05, 0.25])
    high, low = histcode.ends_of(a)
    assert high.tolist() == [1, 2] and low.tolist() == [0, 3]  # tile 4, in the middle, in neither
    assert [len(end) for end in histcode.ends_of(np.arange(300.0))] == [100, 100]
    h = np.random.default_rng(0).normal(size=(5, 3))
    x = histcode.end_features(h, a)
    assert np.allclose(x, [*(h[1] + h[2]) / 2, *(h[0] + h[3]) / 2])
    weights = np.arange(6.0)
    added = histcode.end_contributions(h, a, weights)
    assert np.isnan(added[4]) and np.nansum(added) == pytest.approx(x @ weights)
    assert added[3] == pytest.approx(h[3] @ weights[3:] / 2)


@pytest.mark.parametrize("n, d", [(30, 5), (6, 9)])  # one solution; many, of which the smallest
def test_least_squares_is_lstsq_of_the_known_patients_of_each_gene(n, d):
    """NumPy's lstsq, gene by gene. [HistCode eq. 8]"""
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 2, (n, d)), rng.normal(size=(n, 4))
    y[:2, 1] = y[3, 2] = y[:2, 3] = np.nan
    weights, bias = histcode.least_squares(x, y)
    for g in range(4):
        rows = ~np.isnan(y[:, g])
        mean, sd, level = x[rows].mean(0), x[rows].std(0), y[rows, g].mean()
        w = np.linalg.lstsq((x[rows] - mean) / sd, y[rows, g] - level, rcond=1e-9)[0] / sd
        assert np.allclose(weights[:, g], w)
        assert bias[g] == pytest.approx(level - mean @ w)


def test_labels_are_learned_by_logistic_regression():
    """scikit-learn's weights; torch's loss; the log odds at first."""
    x = torch.randn(60, 3, generator=seeded(), dtype=torch.float64).float()
    label = (x[:, :2] + torch.randn(60, 2, generator=seeded(1)) > 0.5).float()
    label[:9, 1] = torch.nan
    train, valid = np.arange(40), np.arange(40, 60)
    states = histcode.train_label_epochs(x, label, train, valid, epochs=600, lr=0.05)
    first = next(states)
    share = label[:40].nanmean(0)
    assert torch.allclose(first["bias"], torch.log(share / (1 - share)), atol=1e-5)
    *_, last = states
    for g in range(2):
        rows = train[~label[train, g].isnan()]
        theirs = LogisticRegression(C=1e9, tol=1e-8).fit(x[rows], label[rows, g])
        assert np.allclose(last["weights"][:, g], theirs.coef_, atol=1e-3)
        assert last["bias"][g].item() == pytest.approx(theirs.intercept_.item(), abs=1e-3)
    never = torch.zeros(60, 1)
    first = next(histcode.train_label_epochs(x, never, train, valid))
    assert first["bias"].item() == pytest.approx(math.log(1 / 79))  # half a slide of 40
    odds = x @ last["weights"] + last["bias"]
    loss = F.binary_cross_entropy_with_logits(odds[valid], label[valid])
    assert last["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_genes_are_judged_by_scipys_correlations_and_p():
    """SciPy; of the random predictions stats.against_baseline, which is SciPy's too."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(20, 4))
    prediction = y + rng.normal(0, [0.5, 1, 4, 1], y.shape)
    y[:3, 1] = y[2:, 3] = np.nan
    found = histcode.judge_genes(prediction, y, rng)
    for g in range(3):
        of_gene = prediction[~np.isnan(y[:, g]), g], y[~np.isnan(y[:, g]), g]
        one_sided = scipy.stats.pearsonr(*of_gene, alternative="greater")
        assert found["r"][g] == pytest.approx(one_sided[0])
        assert found["p"][g] == pytest.approx(one_sided[1])
        assert found["rho"][g] == pytest.approx(scipy.stats.spearmanr(*of_gene)[0])
    same(found["bh"][:3], scipy.stats.false_discovery_control(found["p"][:3]))
    assert found["n"].tolist() == [20, 17, 20, 2] and np.isnan(found["r"][3])
    assert found["better"][0] == 1 and found["error_p"][0] < 0.01


def test_labels_are_judged_beside_the_commoner_label():
    """By hand."""
    label = np.array([[1, 0, np.nan], [1, 0, np.nan], [0, np.nan, np.nan], [1, 1, np.nan]])
    guess = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [1, 0, 1]])
    found = histcode.judge_labels(guess, label)
    assert np.allclose(found["accuracy"], [3 / 4, 2 / 3, np.nan], equal_nan=True)
    assert np.allclose(found["positive"], [3 / 4, 1 / 3, np.nan], equal_nan=True)
    assert np.allclose(found["majority"], [3 / 4, 2 / 3, np.nan], equal_nan=True)


def test_attention_between_0_and_1_and_dice_worked_by_hand():
    """By hand."""
    assert np.allclose(histcode.scale_to_one(np.array([0.2, 0.1, 0.5])), [0.25, 0, 1])
    assert (histcode.scale_to_one(np.full(3, 0.3)) == 0).all()
    a, b = np.array([1, 1, 1, 0, 0], bool), np.array([0, 1, 1, 1, 0], bool)
    assert histcode.dice(a, b) == pytest.approx(4 / 6) and histcode.dice(a, a) == 1
    assert histcode.dice(a, ~a) == histcode.dice(~a & a, ~a & a) == 0
