"""The plan of a simulated slide: where its tumour, glands, fat and cells lie.

Everything is drawn on a coarse square map. The order of the draws decides what a seed gives: a draw
that is moved or added changes every slide.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

TISSUE_SHARE = 0.64  # of the slide inside the tissue outline  [ours]
NEST_SHARE = 0.74  # of the tumour's bed are its nests, the rest is stroma  [ours]
CELL_KINDS = ("lymphocyte", "tumour", "stroma", "epithelium")


@dataclass
class Canvas:
    """A square map of n x n pixels of `um` µm, and the generator that its draws come from."""

    rng: np.random.Generator
    n: int
    um: float

    def noise(self, scale_um):
        """(n, n) float32 noise of mean 0 and SD 1 whose blobs are about `scale_um` wide."""
        scale = scale_um / self.um
        cells = int(2 * self.n / scale) + 6
        grid = self.rng.standard_normal((cells, cells), np.float32)
        grid = ndimage.gaussian_filter(grid, 1)
        x, y = 1 + self.rng.random(2)
        box = (x, y, x + 2 * self.n / scale, y + 2 * self.n / scale)
        size = (self.n, self.n)
        field = np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC, box))
        return (field - field.mean()) / field.std()

    def scatter(self, spacing_um):
        """(m, 2) x, y on a hexagonal grid with jitter, so that cells keep their distance."""
        spacing = spacing_um / self.um
        rows = int(self.n / spacing / 0.866) + 1
        columns = int(self.n / spacing) + 1
        row, column = np.mgrid[:rows, :columns].astype(float)
        xy = np.stack([(column + row % 2 / 2) * spacing, row * spacing * 0.866], -1).reshape(-1, 2)
        xy += self.rng.uniform(-0.32, 0.32, xy.shape) * spacing
        return xy[((xy >= 0) & (xy < self.n)).all(1)]


def top_share(field, where, share):
    """Mask of that `share` of the True pixels of `where` in which `field` is highest."""
    if not where.any():
        return where
    return where & (field > np.quantile(field[where], 1 - share))


def at(field, xy):
    """The map's value at each point: field (n, n), xy (m, 2 or more) in its pixels -> (m,)."""
    column, row = np.clip(xy[:, :2].T.astype(int), 0, len(field) - 1)
    return field[row, column]


def nearest(points, n):
    """(number of the nearest point, its distance, borders between points), each (n, n), in px."""
    seed = np.zeros((n, n), np.int32)
    seed[points[:, 1].astype(int), points[:, 0].astype(int)] = 1 + np.arange(len(points))
    distance, (row, column) = ndimage.distance_transform_edt(seed == 0, return_indices=True)
    label = seed[row, column] - 1
    border = (label != np.roll(label, 1, 0)) | (label != np.roll(label, 1, 1))
    return label, distance, border


def gland_wall(theta, radius, shape):
    """Radius of a gland in the direction theta: a circle pulled to an oval and a trefoil."""
    oval = shape[0] * np.cos(2 * theta + shape[1])
    trefoil = shape[2] * np.cos(3 * theta + shape[3])
    return radius * (1 + oval + trefoil)


def plan_tissue(canvas, traits):
    """Regions of a slide with these traits, masks (n, n), and the nuclei of its glands."""
    n, um = canvas.n, canvas.um
    colon = traits["project"] == "SIM-COLO"
    mucinous = traits["msi"] == "MSI-H"
    y, x = (np.mgrid[:n, :n] + 0.5) / n - 0.5
    outline = 0.5 * canvas.noise(200) + 0.17 * canvas.noise(50) + 0.06 * canvas.noise(14)
    outline -= 14 * (x**2 * 1.2 + y**2 * 0.85)
    tissue = top_share(outline, np.ones((n, n), bool), TISSUE_SHARE)
    big = canvas.noise(300) + 0.5 * canvas.noise(100)
    bed = top_share(big, tissue, traits["tumour"])
    nest = top_share(canvas.noise(75) + 0.3 * canvas.noise(24) + 0.3 * big, bed, NEST_SHARE)
    depth = ndimage.distance_transform_edt(nest).astype(np.float32) * um
    lumen = tumour_lumen(canvas, depth, colon, mucinous)
    fat = top_share(canvas.noise(170) - 0.4 * big, tissue & ~bed, traits["fat"])
    _, _, walls_of_fat_cells = nearest(canvas.scatter(56), n)
    septa = fat & (walls_of_fat_cells | ~ndimage.binary_erosion(fat))
    room = tissue & ~bed & ~fat
    inside, ring, thick = plan_glands(
        canvas, room, tissue & ~nest & ~fat, big, traits["glands"], colon
    )
    wall = (inside > 0) & (inside < thick)
    goblet = wall & (inside > 9) & (canvas.noise(11) > (0.1 if colon else 9))
    return {
        "tissue": tissue,
        "bed": bed,  # the tumour with the stroma between its nests
        "nest": nest & ~lumen,
        "lumen": lumen,
        "depth": depth,  # µm from the edge of a nest
        "septa": septa,
        "wall": wall,
        "goblet": goblet,
        "hole": inside >= thick,
        "stroma": tissue & ~nest & ~fat & ~(inside > 0),
        "ring": ring[at(wall, ring) & (at(inside, ring) < 9)],
    }


def tumour_lumen(canvas, depth, colon, mucinous):
    """Lumina where a nest is deep: wide and full of mucin in MSI-H, rare in the breast."""
    field = canvas.noise(60)
    if mucinous:
        return (depth > 13) & (field > -0.3)
    return (depth > 18) & (field > (0.1 if colon else 1.3))


def plan_glands(canvas, room, around, big, share, colon):
    """Normal glands: crypts of the colon, small acini of the breast.

    Returns how deep each pixel lies inside a gland (µm; negative outside), the nuclei of their
    walls (m, 3) as x, y, angle, and how thick the walls are (µm).
    """
    n, um = canvas.n, canvas.um
    low, high, thick, pitch = (27, 36, 19, 82) if colon else (17, 24, 10.5, 54)
    centre = canvas.scatter(pitch)
    centre = centre[at(top_share(canvas.noise(200) - 0.4 * big, room, share), centre)]
    if not len(centre):  # one gland of no size, so that what follows holds
        centre, low, high = np.full((1, 2), n / 2), 0, 0
    radius = canvas.rng.uniform(low, high, len(centre))
    shape = canvas.rng.uniform(0, [[0.13], [6.3], [0.07], [6.3]], (4, len(centre)))
    label, distance, _ = nearest(centre, n)
    row, column = np.mgrid[:n, :n]
    theta = np.arctan2(row - centre[label, 1], column - centre[label, 0])
    depth = gland_wall(theta, radius[label], shape[:, label]) - distance * um
    ring = [np.zeros((0, 3))]
    for (x, y), r, s in zip(centre, radius, shape.T, strict=True):
        angle = np.arange(0, 2 * np.pi - 0.1, 6.4 / (r - 5))
        reach = (gland_wall(angle, r, s) - 6 + canvas.rng.uniform(-1, 1, len(angle))) / um
        ring.append(np.column_stack([x + reach * np.cos(angle), y + reach * np.sin(angle), angle]))
    return np.where(around, depth, -1), np.concatenate(ring), thick


def place_nuclei(canvas, plan, flow, traits):
    """(m, 4) nuclei: x, y (px of the map), angle, number of their kind; earlier ones go first."""
    rng = canvas.rng
    rate = np.exp(1.25 * canvas.noise(80) + 0.7 * canvas.noise(220))  # lymphocytes cluster
    rate *= plan["stroma"] + 0.25 * plan["nest"] + 0.3 * plan["septa"] + 0.05 * plan["wall"]
    rate *= traits["lymphocytes"] * plan["tissue"].sum() / rate.sum()  # per mm²
    across_y, across_x = np.gradient(plan["depth"])  # tumour cells stand across their nest's edge
    in_nest = plan["nest"] & (plan["depth"] > 2.5)
    kinds = (  # spacing (µm), chance, direction, sway
        (8.6, rate * 0.866 * 8.6**2 / 1e6, flow, 3),
        (traits["spacing"], 0.95 * in_nest, np.arctan2(across_y, across_x), 0.35),
        (17.0, 0.62 * plan["stroma"] + 0.3 * plan["septa"], flow, 0.35),
    )
    epithelium = np.full(len(plan["ring"]), CELL_KINDS.index("epithelium"))
    found = [np.column_stack([plan["ring"], epithelium])]
    for kind, (spacing, chance, direction, sway) in enumerate(kinds):
        xy = canvas.scatter(spacing)
        xy = xy[rng.random(len(xy)) < at(chance, xy).clip(0, 0.95)]
        angle = at(direction, xy) + sway * rng.standard_normal(len(xy))
        found.append(np.column_stack([xy, angle, np.full(len(xy), kind)]))
    return np.concatenate(found)
