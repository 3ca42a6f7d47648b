"""Points, spots and outlines against tiles, and p of a correlation over places, by shifts.

All places are x, y in level-0 pixels. Letters: m points or places, n tiles or draws, G genes.
"""

import numpy as np
from scipy.spatial import cKDTree

import stats

NEAREST = 4  # no more squares than this meet in a point
ROUNDED = 1.5  # pixels by which tiles of a real pitch overlap that lie on whole ones  [ours]
FEW = 4  # fewer places than this are no grid  [ours]
SPARSE = 3  # the median neighbour on a grid of which few tiles were kept is so many steps off


def holder(points, coords, tile):
    """Which tile holds each point: points (m, 2), coords (n, 2) top-left -> (m,), -1 for none.

    On any grid or none; tile is their edge, a real number. A point lies in
    the pixel [x, x + 1) x [y, y + 1), and a tile holds the pixels from its corner up to, not with,
    its far edges: so tiles whose real pitch was rounded down to whole pixels leave no gap. A pixel
    that tiles share goes to the tile whose centre is nearest. [ours]
    """
    points = np.asarray(points, np.float64).reshape(-1, 2)
    coords = np.asarray(coords, np.float64).reshape(-1, 2)
    if not len(points) or not len(coords):
        return np.full(len(points), -1)
    ranks = np.arange(1, min(NEAREST, len(coords)) + 1)
    near = cKDTree(coords + tile / 2).query(points, ranks, p=np.inf)[1]  # (m, 4) nearest first
    inner = np.floor(points)[:, None] - coords[near]  # (m, 4, 2) pixels from the corner
    held = ((inner >= 0) & (inner < tile)).all(2)  # (m, 4)
    first = near[np.arange(len(points)), held.argmax(1)]
    return np.where(held.any(1), first, -1)


def count_points(points, coords, tile):
    """Points in each tile, as the T cells of the paper: (m, 2), (n, 2), edge -> (n,) int.

    Where tiles overlap, a point counts in every tile that holds it [ours]; a pixel that two share
    because a real pitch was rounded is no overlap. [HE2RNA Fig. 4c]
    """
    step = pitch(coords)
    if step is None or step >= tile - ROUNDED or not len(points):
        which = holder(points, coords, tile)
        return np.bincount(which[which >= 0], minlength=len(coords))
    pixels = np.floor(np.asarray(points, np.float64)).reshape(-1, 2)
    near = cKDTree(pixels).query_ball_point(coords + tile / 2, tile / 2, np.inf)
    counts = []
    for corner, candidates in zip(coords, near, strict=True):
        inner = pixels[candidates] - corner
        counts.append(((inner >= 0) & (inner < tile)).all(1).sum())
    return np.array(counts)


def pitch(coords):
    """How far a tile (n, 2) is from the next one of its grid, or None where they are on no grid.

    The median distance to the nearest neighbour, the larger of both axes: so each piece of tissue
    may have a grid of its own. Of a slide of which few tiles were kept it is twice or three times
    the pitch; then the nearest neighbours lie at whole multiples of the pitch, many at one. [ours]
    """
    places = np.unique(np.asarray(coords, np.float64).reshape(-1, 2), axis=0)
    if len(places) < FEW:
        return None
    near = cKDTree(places).query(places, [2], p=np.inf)[0][:, 0]
    median = float(np.percentile(near, 50, method="lower"))
    for steps in range(SPARSE, 1, -1):
        step = median / steps
        if on_grid(near, step) >= 0.95 and (abs(near - step) <= ROUNDED).mean() >= 0.1:
            return step
    return median if on_grid(near, median) >= 0.5 else None


def on_grid(distances, step):
    """The share of distances that are whole multiples of a step, but for rounding."""
    off = abs(distances - step * np.round(distances / step))
    return (off <= np.maximum(ROUNDED, 0.02 * step)).mean()


def inside(points, polygons):
    """Whether each point (m, 2) lies in any of the polygons -> (m,) bool.

    A polygon is a list of rings (k, 2), its outline and its holes, closed or not, in any order and
    direction. A point is in where a ray to the right crosses the rings an odd number of times. Left
    and top edges are in, right and bottom ones out, so neighbours never share a point. [ours]
    """
    points = np.asarray(points, np.float64).reshape(-1, 2)
    order = np.argsort(points[:, 1])
    x, y = points[order].T  # (m,) by ascending y
    within = np.zeros(len(points), bool)
    for rings in polygons:
        odd = np.zeros(len(points), bool)
        for ring in rings:
            cross(odd, x, y, np.asarray(ring, np.float64))
        within |= odd
    return within[np.argsort(order)]


def cross(odd, x, y, ring):
    """Flip `odd` of each point, ascending in y, whose ray to the right crosses the ring."""
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
        if y0 > y1:  # the upper end first, from either side of a common edge
            x0, y0, x1, y1 = x1, y1, x0, y0
        first, last = np.searchsorted(y, (y0, y1))
        if first < last:
            at = slice(first, last)
            odd[at] ^= x[at] < x0 + (y[at] - y0) * ((x1 - x0) / (y1 - y0))


def shifts(places, n, seed):
    """Draws of a null that keeps neighbours alike: each slide's values moved as a whole.

    places: the locations (m, 2) of each slide, in any unit -> yields n index arrays over the places
    of all slides; a[index] is a moved. The locations of a slide go round a torus, their bounding
    box and one spacing, by one random vector, and each takes the value of the moved one now
    nearest. Values stay in their slide; some come twice, some never. A shuffle would make p too
    small, since neighbours are alike. [ours]
    """
    rng = np.random.default_rng(seed)
    slides = []
    first = 0
    for xy in places:
        slides.append((*torus(xy), first))
        first += len(xy)
    for _ in range(n):
        draw = []
        for xy, size, tree, first in slides:
            moved = (xy - rng.random(2) * size) % size
            draw.append(tree.query(moved)[1] + first)
        yield np.concatenate(draw)


def torus(xy):
    """Locations from 0 on, the size of the torus that they lie on, and the tree that knows it."""
    xy = np.asarray(xy, np.float64)
    xy = xy - xy.min(0)
    distinct = np.unique(xy, axis=0)
    spacing = 1.0
    if len(distinct) > 1:
        spacing = np.median(cKDTree(distinct).query(distinct, [2])[0])
    size = np.ptp(xy, axis=0) + spacing  # never 0 wide
    return xy, size, cKDTree(xy, boxsize=size)


def shift_p(a, b, places, n=999, seed=0, tick=None):
    """R of scores and measured values over places, and its one-sided p against shifted scores.

    a (m,) or (m, G) scores, b (m, G) or (m,) measured, over the places of all slides end to end ->
    R (G,), p (G,): the share of the n + 1 draws, the unmoved one among them, whose R is at least R.
    nan where R is nan. It is a that moves: one column moves at the price of one. A draw near no
    shift is a draw too, so p of one slide can't fall much below 1 / m. What differs between slides
    moves with them: p is of the likeness within slides. It needs 8 n m bytes. tick is told how many
    genes a block had. [ours; the paper gives R alone, Fig. 4c]
    """
    a, b = as_columns(a), as_columns(b)
    m, n_genes = b.shape
    if a.shape not in ((m, 1), (m, n_genes)) or sum(map(len, places)) != m:
        raise ValueError(f"scores {a.shape}, measured {b.shape}, of {len(places)} slides' places")
    r, p = np.full((2, n_genes), np.nan)
    if m < 2:
        return r, p
    draws = np.empty((n + 1, m), np.int32)
    draws[0] = np.arange(m)
    for i, draw in enumerate(shifts(places, n, seed)):
        draws[i + 1] = draw
    for block in stats.gene_blocks(n_genes):
        x = stats.unit_columns(a if a.shape[1] == 1 else a[:, block])
        y = stats.unit_columns(b[:, block])
        null = np.array([moved_r(x[draw], y) for draw in draws])  # (n + 1, g)
        r[block] = np.clip(null[0], -1, 1)
        reached = (null >= null[0] - stats.TIED) | np.isnan(null)  # nan: moved onto one value
        p[block] = np.where(np.isnan(null[0]), np.nan, reached.mean(0))
        if tick:
            tick(null.shape[1])
    return r, p


def as_columns(v):
    v = np.asarray(v)
    return v[:, None] if v.ndim == 1 else v


def moved_r(x, y):
    """R of moved unit columns (m, 1 or g) with unit y: repetitions left them off centre, and longer
    or shorter.
    """
    x = x - x.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("mg,mg->g", x, y) / np.sqrt(np.einsum("mg,mg->g", x, x))
