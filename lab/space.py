"""Points, spots and outlines against tiles, and p of a correlation over places.

All places are x, y in level-0 pixels. Letters: m points or places, n tiles, G genes.
"""

import numpy as np
from scipy import fft, special
from scipy.spatial import cKDTree

import stats

NEAREST = 4  # no more squares than this meet in a point
ROUNDED = 1.5  # pixels by which tiles of a real pitch overlap that lie on whole ones  [ours]
FEW = 4  # fewer places than this are no grid  [ours]
FEWEST = 36  # places of a slide that has a p: on 5 x 5 tiles it was too bold [ours]
PAIRS = 10  # of places at each lag, on average [ours]
SURFACE = 3  # degrees of freedom for R and the surface, in places that count [ours, by simulation]
FINEST = 1000  # cells of a raster, at most, from one side to the other [ours]
LEFT = 1e-6  # a share of a map that is only rounding [ours]
CELLS = 4_000_000  # of rasters at a time: 32 MB [ours]
P_MEANS = (
    "p is one-sided, of R beyond a surface of second order, with as many places as count as "
    f"independent; nan: fewer than {FEWEST} places, or maps that change too slowly for their slide."
)
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
    places = np.unique(np.asarray(coords, np.float64).reshape(-1, 2) @ (1, 1j))  # a number each
    if len(places) < FEW:
        return None
    places = np.stack([places.real, places.imag], 1)
    near = cKDTree(places).query(places, [2], p=np.inf)[0][:, 0]
    median = float(np.percentile(near, 50, method="lower"))
    for steps in range(SPARSE, 1, -1):
        step = median / steps
        near_enough = (abs(near - step) <= ROUNDED).mean() >= 0.1
        farther = (near > median + step / 2).mean() >= 0.05  # else two grids lie on each other
        if near_enough and farther and on_grid(near, step) >= 0.95:
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


class Raster:
    """The places of a slide on a raster, and how many pairs of them lie each lag apart.

    A lag is a vector, and its opposite has as many pairs. The raster is that of the places where
    they lie on one (squares or hexagons, with holes, in pieces); else its cells are so large that a
    lag has `PAIRS` pairs on average. Places of a cell are pairs at lag 0, a place is none with
    itself.
    """

    def __init__(self, xy):
        xy = np.asarray(xy, np.float64) - np.min(xy, 0)
        apart = cKDTree(np.unique(xy, axis=0)).query(np.unique(xy, axis=0), [2])[0]
        step = max(np.median(apart) / 2, xy.max() / FINEST)
        while True:
            self.cell = np.rint(xy / step).astype(int)
            if not (self.cell % 2).any():
                self.cell //= 2
            self.size = tuple(self.cell.max(0) + 1)
            self.padded = tuple(fft.next_fast_len(2 * int(n), real=True) for n in self.size)
            self.pairs = np.rint(self.products(np.ones((len(xy), 1)))[0])
            if len(xy) ** 2 >= PAIRS * np.count_nonzero(self.pairs):
                break
            step *= 2
        u, v = (2 * xy / xy.max() - 1).T
        terms = np.stack([np.ones(len(xy)), u, v, u * u, u * v, v * v], 1)
        surface, size, _ = np.linalg.svd(terms, full_matrices=False)
        self.surface = surface[:, size > LEFT * size[0]]  # fewer where all places are on a line

    def products(self, x):
        """Sum of x x' over the pairs of each lag: x (m, g) -> (g, h, w)."""
        on = np.zeros((x.shape[1], *self.size))
        np.add.at(on, (slice(None), *self.cell.T), x.T)
        sums = fft.irfft2(np.abs(fft.rfft2(on, self.padded)) ** 2, self.padded)
        sums[:, 0, 0] -= np.square(x).sum(0)
        return sums

    def beyond_surface(self, x):
        """What a surface of second order leaves of x (m, g), of length 1; nan where it is all."""
        left = x - self.surface @ (self.surface.T @ x)
        length = np.sqrt(np.square(left).sum(0))
        length[length <= LEFT * np.sqrt(np.square(x).sum(0))] = np.nan
        return left / length


def likeness(x, y, raster):
    """R of a slide's x (m, g or 1) and y (m, g) beyond a surface, and its degrees of freedom (g,).

    If x and y are independent, R has the variance: sum over pairs of places of C_x C_y, the mean
    products of x and of y at that pair's lag. It is 1 / m of white noise, and so 1 / variance is
    the number of places that count as independent. The surface and R take SURFACE of them. [after
    Clifford, Richardson and Hemon 1989, Biometrics 45:123, who pool lags of one length; by vectors,
    and beyond a surface, it holds where there are trends: ours]
    """
    x, y = raster.beyond_surface(x), raster.beyond_surface(y)
    r = np.einsum("mg,mg->g", np.broadcast_to(x, y.shape), y)
    each = raster.products(x) * raster.products(y) / np.maximum(raster.pairs, 1)
    variance = 1 / len(y) + each[:, raster.pairs > 0].sum(1)
    df = np.where(variance > 0, 1 / np.where(variance > 0, variance, 1), 0) - SURFACE
    return np.clip(r, -1, 1), np.where(df >= 1, df, np.nan)


def spatial_p(a, b, places, tick=None):
    """R of scores and measured values over places, and its one-sided p where neighbours are alike.

    a (m,) or (m, G) scores, b (m, G) or (m,) measured, over the places of all slides end to end;
    places: of each slide (m, 2), in any unit, on a grid or none -> R (G,), p (G,). R is of all
    places. p is of the likeness within slides, beyond a surface of second order: that both change
    from one side to the other, or from the edge to the middle, is no evidence. p of a slide is by a
    t with its `likeness`; slides are joined by Stouffer's sum, weighted by their freedom. nan, "no
    value", where R is nan, and where no slide has FEWEST places and a degree of freedom: its maps
    change too slowly for its size. tick is told how many genes a block had. [ours; the paper gives
    R alone, Fig. 4c]
    """
    a, b = as_columns(a), as_columns(b)
    m, n_genes = b.shape
    if a.shape not in ((m, 1), (m, n_genes)) or sum(map(len, places)) != m:
        raise ValueError(f"scores {a.shape}, measured {b.shape}, of {len(places)} slides' places")
    r = stats.pearson(np.broadcast_to(a, b.shape), b)
    rasters = [Raster(xy) if len(xy) >= FEWEST else None for xy in places]
    largest = max((raster.pairs.size for raster in rasters if raster), default=CELLS)
    step = max(CELLS // largest, 1)
    p = np.full(n_genes, np.nan)
    for start in range(0, n_genes, step):
        genes = slice(start, start + step)
        p[genes] = joined_p(a if a.shape[1] == 1 else a[:, genes], b[:, genes], rasters, places)
        if tick:
            tick(len(p[genes]))
    return r, np.where(np.isnan(r), np.nan, p)


def joined_p(a, b, rasters, places):
    """p (g,) of the likeness within slides; nan where no slide has one."""
    z, weights = np.zeros((2, b.shape[1]))
    ends = np.cumsum([len(xy) for xy in places])
    for raster, xy, end in zip(rasters, places, ends, strict=True):
        if raster is None:
            continue
        rows = slice(end - len(xy), end)
        with np.errstate(invalid="ignore", divide="ignore"):
            r, df = likeness(a[rows].astype(float), b[rows].astype(float), raster)
            p = special.stdtr(df, -r * np.sqrt(df / (1 - r * r)))
            own = -np.sqrt(df) * special.ndtri(p)
        z += np.where(np.isnan(own), 0, own)
        weights += np.where(np.isnan(own), 0, df)
    with np.errstate(invalid="ignore"):
        return special.ndtr(-z / np.sqrt(weights))


def as_columns(v):
    v = np.asarray(v)
    return v[:, None] if v.ndim == 1 else v


def scale_bar_um(width):
    """The longest of 1, 2, 5, 10, 20, ... µm that is at most a third of `width` µm."""
    lengths = np.outer(10.0 ** np.arange(-2, 7), (1, 2, 5)).ravel()
    return float(lengths[lengths <= width / 3][-1])
