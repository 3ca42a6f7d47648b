"""Points, spots and outlines against tiles; p by shifts."""

import itertools

import numpy as np
import pytest
import scipy.stats
from matplotlib.path import Path as Outline
from scipy import ndimage
from scipy.spatial import Delaunay

from lab import space
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
    draws = [tuple(d) for d in space.shifts([SQUARE * 7.5 - 31], 60, 0)]
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
    draws = np.array(list(space.shifts(slides, 50, 3)))
    assert draws.shape == (50, len(slide)) and (slide[draws] == slide).all()
    assert np.array_equal(draws, list(space.shifts(slides, 50, 3)))
    assert not np.array_equal(draws, list(space.shifts(slides, 50, 4)))
    line = draws[:, slide == 2] - 10
    assert all(any((row == np.roll(np.arange(12), s)).all() for s in range(12)) for row in line)
    assert (draws[:, slide == 0] != np.arange(9)).any() and (
        draws[:, slide == 2] != np.arange(10, 22)
    ).any()


def test_false_positives_of_smooth_fields_are_held_where_the_t_test_fails():
    a, b = (
        np.concatenate([smooth_fields(150, seed=s), smooth_fields(150, seed=s + 1)]) for s in (0, 2)
    )  # two slides
    r, p = space.shift_p(a, b, [SQUARE, SQUARE], n=199)
    t = np.array(
        [scipy.stats.pearsonr(x, y, alternative="greater") for x, y in zip(a.T, b.T, strict=False)]
    )
    assert (
        np.allclose(r, t[:, 0])
        and (p <= 0.05).mean() <= 0.12
        and (t[:, 1] <= 0.05).mean() > 0.25 > 2 * (p <= 0.05).mean()
    )
    assert abs(p.mean() - 0.5) < 0.1


def test_a_true_correlation_gets_the_smallest_p():
    b = np.concatenate([smooth_fields(8, seed=0), smooth_fields(8, seed=1)])
    a = b + 0.5 * b.std() * np.random.default_rng(0).normal(size=b.shape)
    r, p = space.shift_p(a, b, [SQUARE, SQUARE], n=99)
    assert (
        (r > 0.8).all()
        and (p == 1 / 100).all()
        and (space.shift_p(-a, b, [SQUARE, SQUARE], n=99)[1] > 0.95).all()
    )
    one = space.shift_p(a[:, 0], b, [SQUARE, SQUARE], n=99)
    assert (
        one[0].shape == (8,) and one[0][0] == pytest.approx(r[0], abs=1e-12) and one[1][0] == p[0]
    )
    assert (one[1][1:] > 0.01).any()
    assert np.allclose(
        space.shift_p(a[:, 0], b[:, 0], [SQUARE, SQUARE], n=99), [one[0][:1], one[1][:1]]
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
    r, p = space.shift_p(a, b, slides, n=40, seed=5, tick=(done := []).append)
    assert sum(done) == 300 and len(done) == 2
    with np.errstate(all="ignore"):
        expected = np.array(
            [
                [np.corrcoef(a[d, j], b[:, j])[0, 1] for j in range(300)]
                for d in [np.arange(47), *space.shifts(slides, 40, 5)]
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
    r, p = space.shift_p(a, b, [SQUARE], n=99)
    shuffled = space.shift_p(a[order], b[order], [SQUARE[order]], n=99)
    assert np.allclose(shuffled[0], r, atol=1e-12) and np.array_equal(shuffled[1], p)
    assert np.array_equal(space.shift_p(a, b, [SQUARE * 112.5 + 7], n=99)[1], p)
    moved = space.shift_p(3 * a + 1e3, b / 7, [SQUARE], n=99)
    assert np.allclose(moved[0], r) and np.array_equal(moved[1], p)


def test_too_few_locations_have_no_p():
    assert np.isnan(space.shift_p([1.0], [[2.0, 3.0]], [[(0, 0)]], n=9)).all()
    r, p = space.shift_p(
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
