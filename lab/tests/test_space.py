"""Points, spots and outlines against tiles; p of a correlation over places."""

import itertools

import numpy as np
import pytest
import scipy.stats
from matplotlib.path import Path as Outline
from scipy.spatial import Delaunay

import stats
from lab import space
from lab.calibration.space import domed, p_of, sloped, smooth
from lab.tests.helpers import star


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
    which, truth = space.holder(points, coords, tile), held_by_brute_force(points, coords, tile)
    assert all(w == -1 if len(t) == 0 else w in t for w, t in zip(which, truth, strict=False))
    assert max(map(len, truth)) == 1 or tile % 1
    place = {
        tuple(cell): i for i, cell in enumerate(np.floor((coords + 1) / tile))
    }  # the grid before it was rounded
    deep = np.flatnonzero((abs(points / tile - np.round(points / tile)) > 2 / tile).all(1))
    assert all(which[i] == place.get(tuple(np.floor(points[i] / tile)), -1) for i in deep)
    counts = space.count_points(points, coords, tile)
    assert counts.shape == (len(coords),) and counts.sum() == (which >= 0).sum()
    assert (counts == [(which == i).sum() for i in range(len(coords))]).all()


def test_a_full_grid_of_real_pitch_loses_no_point_and_counts_none_twice():
    tile, n = 224.3, 25
    coords = (np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) * tile).astype(
        np.int32
    )
    points = np.random.default_rng(1).uniform(0, n * tile - 1, (20000, 2))
    assert space.count_points(points, coords, tile).sum() == len(points)


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
    assert space.holder(points, coords, 10.0).tolist() == [0, 0, 1, -1, 2, -1, 3, 3, -1, -1, 1]
    assert space.holder([(3, 3)], coords[:1], 10).tolist() == [0]
    assert space.holder([(3, 3)], np.zeros((0, 2)), 10).tolist() == [-1] and space.holder(
        [], coords, 10
    ).shape == (0,)
    assert space.count_points([], coords, 10).tolist() == [0] * 4 and space.count_points(
        [(3, 3)], [], 10
    ).shape == (0,)


SQUARE = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2)


def brute_force(x, y, places):
    """R and variance of two maps of one slide, by its definition: a loop over all pairs."""
    u, v = (2 * (places - places.min(0)) / np.ptp(places) - 1).T
    terms = np.stack([np.ones(len(u)), u, v, u * u, u * v, v * v], 1)
    x, y = (z - terms @ np.linalg.lstsq(terms, z, rcond=None)[0] for z in (x, y))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    sums = {}
    for i, j in itertools.product(range(len(x)), repeat=2):
        if i != j:
            at = sums.setdefault(tuple(places[i] - places[j]), np.zeros(3))
            at += 1, x[i] * x[j], y[i] * y[j]
    return x @ y, 1 / len(x) + sum(xx * yy / pairs for pairs, xx, yy in sums.values())


def test_spatial_p_equals_its_definition():
    rng = np.random.default_rng(0)
    holed = np.argwhere(rng.random((9, 11)) < 0.7)
    hexagons = np.array([(2 * x + y % 2, 2 * y) for y in range(8) for x in range(7)])
    for places in (holed, hexagons):
        a, b = rng.normal(size=(2, len(places))).cumsum(1)
        own, variance = brute_force(a, b, places)
        df = 1 / variance - space.SURFACE
        r, p = space.spatial_p(a, b, [places * 448 + 7])
        assert r[0] == pytest.approx(scipy.stats.pearsonr(a, b)[0])
        assert p[0] == pytest.approx(scipy.stats.t.sf(own * np.sqrt(df / (1 - own**2)), df))
    whole = smooth(4, (12, 10), 2, rng).reshape(4, -1).T
    two = [np.argwhere(np.ones((12, 10)))] * 2
    a, b = np.concatenate([whole, whole[::-1] ** 3]), np.concatenate([whole[:, ::-1], whole])
    each = [space.spatial_p(a[i : i + 120], b[i : i + 120], two[:1])[1] for i in (0, 120)]
    pairs = (space.Raster(two[0]), space.Raster(two[0]))
    df = [space.likeness(a[i : i + 120], b[i : i + 120], pairs[0])[1] for i in (0, 120)]
    for gene in range(4):
        how = {"method": "stouffer", "weights": np.sqrt([d[gene] for d in df])}
        want = scipy.stats.combine_pvalues([p[gene] for p in each], **how).pvalue
        assert space.spatial_p(a, b, two)[1][gene] == pytest.approx(want)


def test_false_positives_of_smooth_fields_are_held_where_the_t_test_fails():
    """The share of p < .05 within 4 binomial SD of .05, where a t of all tiles has .2 and more."""
    rng = np.random.default_rng(1)
    mask = np.ones((20, 26), bool)
    for reach, change in ((8, lambda fields, _: fields), (4, sloped), (4, domed)):
        a, b = (change(smooth(300, mask.shape, reach, rng), rng) for _ in "ab")
        p = p_of(a, b, mask)
        assert np.mean(p < 0.05) <= 0.1 and np.isnan(p).mean() < 0.1
        t = stats.pearson_p(stats.pearson(a[:, mask].T, b[:, mask].T), mask.sum())
        assert np.mean(t < 0.05) > 0.2


def test_a_true_correlation_is_found():
    rng = np.random.default_rng(2)
    mask = np.ones((20, 26), bool)
    for reach, power in ((0, 1), (2, 0.9), (4, 0.6)):
        common, a, b = (smooth(60, mask.shape, reach, rng) for _ in "cab")
        assert np.mean(p_of(common + a, sloped(common + b, rng), mask) < 0.05) >= power
        assert np.mean(p_of(common + a, -common - b, mask) > 0.5) > 0.9


def test_one_column_of_scores_serves_all_genes_in_any_order_and_unit(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = (smooth(5, (20, 20), 2, rng).reshape(5, -1).T for _ in "ab")
    order = rng.permutation(400)
    r, p = space.spatial_p(a[:, 0], b, [SQUARE])
    same = space.spatial_p(np.repeat(a[:, :1], 5, 1), b, [SQUARE])
    assert np.allclose([r, p], same)
    monkeypatch.setattr(space, "CELLS", 2 * 40 * 40)
    done = []
    assert np.allclose(space.spatial_p(a[:, 0], b, [SQUARE], done.append), same)
    assert sum(done) == 5 and len(done) > 1
    assert np.allclose(space.spatial_p(a[order, 0], b[order], [SQUARE[order]]), same)
    assert np.allclose(space.spatial_p(3 * a[:, 0] + 1e3, b / 7, [SQUARE * 112.5 + 7]), same)


def test_where_nothing_holds_there_is_no_p():
    rng = np.random.default_rng(0)
    few = np.argwhere(np.ones((5, 5)))
    a, b = rng.normal(size=(2, 25))
    r, p = space.spatial_p(a, b, [few])
    assert r[0] == pytest.approx(np.corrcoef(a, b)[0, 1]) and np.isnan(p[0])
    a, b = (smooth(200, (6, 6), 12, rng) for _ in "ab")
    assert 0.02 < np.isnan(p_of(a, b, np.ones((6, 6), bool))).mean() < 0.5  # slow maps, few tiles
    x, y = SQUARE.T / 20
    assert np.isnan(space.spatial_p(x + y, rng.normal(size=400), [SQUARE])[1][0])  # a plane
    a, b = rng.normal(size=(400, 3)), rng.normal(size=(400, 3))
    a[:, 0], b[3, 1] = 4, np.nan
    r, p = space.spatial_p(a, b, [SQUARE])
    assert np.isnan([r, p]).tolist() == [[True, True, False]] * 2
    both = space.spatial_p(np.r_[a[:, 2], a[:25, 2]], np.r_[b[:, 2], b[:25, 2]], [SQUARE, few])
    assert both[1][0] == pytest.approx(p[2])  # the slide of few places has no say
    line = np.stack([np.arange(90), np.zeros(90)], 1)
    assert 0 < space.spatial_p(*rng.normal(size=(2, 90)), [line])[1][0] < 1


def test_inside_equals_matplotlib_and_shapes_of_known_sense():
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 12, (2000, 2))
    outlines = [star(rng, k, rng.uniform(2, 8, 2), 5) for k in (3, 4, 11, 200)]
    for ring in outlines:
        truth = Outline(ring).contains_points(points)
        assert 20 < truth.sum() < 1900
        for again in (
            ring,
            ring[::-1],
            np.vstack([ring, ring[:1]]),
            np.roll(ring, 2, 0),
        ):  # direction, closed, start
            assert np.array_equal(space.inside(points, [[again]]), truth)
    union = np.any([Outline(ring).contains_points(points) for ring in outlines], 0)
    assert np.array_equal(
        space.inside(points, [[ring] for ring in outlines]), union
    )  # overlaps stay in
    outer, hole = star(rng, 9, (5, 5), 7), star(rng, 9, (5, 5), 2)
    holed = Outline(outer).contains_points(points) ^ Outline(hole).contains_points(points)
    assert np.array_equal(space.inside(points, [[outer, hole]]), holed)
    assert np.array_equal(
        space.inside(points, [[outer, hole], [hole]]), holed | Outline(hole).contains_points(points)
    )
    assert not space.inside(points, []).any() and space.inside([], [[outer]]).shape == (0,)


def test_tiles_of_a_plane_share_no_point():
    """Half-open edges: grid points on the edges of a triangulated square are in exactly one
    triangle.
    """
    rng = np.random.default_rng(0)
    corners = rng.integers(1, 20, (60, 2))
    corners = np.unique(np.vstack([corners, [(0, 0), (20, 0), (0, 20), (20, 20)]]), axis=0)
    triangles = corners[Delaunay(corners).simplices]
    points = np.stack(np.meshgrid(np.arange(0, 20, 0.5), np.arange(0, 20, 0.5)), -1).reshape(-1, 2)
    assert (np.sum([space.inside(points, [[t]]) for t in triangles], 0) == 1).all()


def pieces(pitch, n, rng, snap=1):
    """Tiles of n pieces of tissue, each 1 to 5 tiles wide and high on a grid of its own."""
    coords = []
    for _ in range(n):
        w, h = rng.integers(2, 6, 2)
        grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).reshape(-1, 2) * pitch
        coords.append(grid + rng.integers(0, 40000 // snap, 2) * snap)
    return np.concatenate(coords)


def kept(pitch, share, rng):
    """A share of the tiles of a full grid, of a real pitch on whole pixels."""
    grid = np.stack(np.meshgrid(np.arange(300), np.arange(200)), -1).reshape(-1, 2)
    return np.floor(grid[rng.random(len(grid)) < share] * pitch)


@pytest.mark.parametrize("seed", range(3))
def test_the_pitch_of_grids_whole_in_pieces_or_sampled(seed):
    rng = np.random.default_rng(seed)
    diagonal = np.repeat(np.arange(20), 2).reshape(-1, 2) * 256
    lone = np.concatenate([kept(256, 1, rng)[:400], [[777, 70001]]])
    for coords in (pieces(256, 40, rng), pieces(256, 40, rng, 64), diagonal, lone):
        assert space.pitch(coords) == 256
    for share in (1, 0.5, 0.13, 0.08, 0.05, 0.03, 0.02):
        assert abs(space.pitch(kept(256, share, rng)) - 256) <= 0.5
        assert abs(space.pitch(kept(223.9, share, rng)) - 223.9) <= 1
    board = kept(256, 1, rng)
    assert space.pitch(board[board.sum(1) / 256 % 2 == 0]) == 256


def test_tiles_on_no_grid_have_no_pitch():
    rng = np.random.default_rng(0)
    for coords in (np.zeros((0, 2)), [[3, 4]], [[0, 0], [5000, 70]], np.zeros((9, 2))):
        assert space.pitch(np.array(coords)) is None
    assert space.pitch(rng.integers(0, 50000, (500, 2))) is None


@pytest.mark.parametrize("step", [112, 56.5, 150])
def test_a_point_counts_in_every_tile_of_those_that_overlap(step):
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(12), np.arange(9)), -1).reshape(-1, 2)
    coords, tile = np.floor(grid * step).astype(int), 224.0
    points = np.concatenate([rng.uniform(-50, 1800, (2000, 2)), coords, coords + 224])
    truth = np.zeros(len(coords), int)
    for held in held_by_brute_force(points, coords, tile):
        truth[held] += 1
    assert np.array_equal(space.count_points(points, coords, tile), truth)
    assert truth.sum() > 1.5 * (space.holder(points, coords, tile) >= 0).sum()
