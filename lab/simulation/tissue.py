"""lab.simulation.tissue"""

import io
import struct

import numpy as np
from PIL import Image
from scipy import ndimage

import tiling
from lab.encoders import STAINS
from lab.files import save_file

# The simulated cohort: slides drawn from known cells, expression made from the same cells
SIM_MPP = {
    "SIM-COLO": 0.4990,
    "SIM-BRST": 0.5040,
}  # µm/px: a scanner for each project          [ours]


TISSUE_SHARE = 0.64  # of the slide inside the tissue outline                    [ours]


COARSE = 4  # px; regions are planned on a map this much coarser        [ours]


N_STAMPS = 64  # nuclei drawn per kind and slide, one for each angle       [ours]


# Nuclei: length, width (µm), spread (log SD), optical density, dark rim, nucleolus, room kept (µm) [ours]
NUCLEI = {
    "lymphocyte": (7.2, 6.6, 0.07, 1.20, 0.05, 0.0, 7),
    "tumour": (13.0, 9.5, 0.17, 0.80, 0.45, 0.6, 9),
    "stroma": (15.0, 3.8, 0.18, 0.95, 0.10, 0.0, 5),
    "epithelium": (9.5, 6.0, 0.07, 0.90, 0.20, 0.0, 5),
}


def smooth_noise(rng, n, scale):
    """(n, n) float32 noise of mean 0 and SD 1 whose blobs are about `scale` pixels wide."""
    grid = ndimage.gaussian_filter(
        rng.standard_normal((int(2 * n / scale) + 6,) * 2, np.float32), 1
    )
    x, y = 1 + rng.random(2)
    box = (x, y, x + 2 * n / scale, y + 2 * n / scale)
    field = np.asarray(Image.fromarray(grid).resize((n, n), Image.Resampling.BICUBIC, box))
    return (field - field.mean()) / field.std()


def top_share(field, where, share):
    """Mask of that `share` of the True pixels of `where` in which `field` is highest."""
    return where & (field > np.quantile(field[where], 1 - share)) if where.any() else where


def scatter(rng, n, spacing):
    """(m, 2) x, y in an n x n square: a hexagonal grid with jitter, so that cells keep their distance."""
    row, col = np.mgrid[: int(n / spacing / 0.866) + 1, : int(n / spacing) + 1].astype(float)
    xy = np.stack([(col + row % 2 / 2) * spacing, row * spacing * 0.866], -1).reshape(-1, 2)
    xy += rng.uniform(-0.32, 0.32, xy.shape) * spacing
    return xy[((xy >= 0) & (xy < n)).all(1)]


def at(field, xy):
    """The map's value at each point: field (n, n), xy (m, 2 or more) in its pixels -> (m,)."""
    col, row = np.clip(xy[:, :2].T.astype(int), 0, len(field) - 1)
    return field[row, col]


def gland_wall(theta, radius, shape):
    """Radius of a gland (µm) in the direction theta: a circle pulled to an oval and a trefoil."""
    return radius * (
        1 + shape[0] * np.cos(2 * theta + shape[1]) + shape[2] * np.cos(3 * theta + shape[3])
    )


def nucleus_stamps(rng, mpp, length, width, spread, density, rim, nucleolus, room):
    """(N_STAMPS, s, s) optical density of nuclei; number i lies at the angle pi i / N_STAMPS."""

    def draw(low, high):
        return rng.uniform(low, high, (N_STAMPS, 1, 1)).astype(np.float32)

    a, b = (
        d / 2 / mpp * np.exp(spread * draw(-1.7, 1.7)) for d in (length, width)
    )  # half axes, px
    half = int(max(a.max(), b.max()) * 1.1) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    angle = np.pi * np.arange(N_STAMPS, dtype=np.float32)[:, None, None] / N_STAMPS
    u, v = (x * np.cos(angle) + y * np.sin(angle)) / a, (y * np.cos(angle) - x * np.sin(angle)) / b
    shape = (spread * draw(0, 0.6), draw(0, 6.3), spread * draw(0, 0.6), draw(0, 6.3))
    r = np.hypot(u, v) / gland_wall(np.arctan2(v, u), 1, shape)  # 1 on the membrane
    chromatin = ndimage.gaussian_filter(rng.standard_normal(r.shape, np.float32), (0, 1.2, 1.2))
    shade = 1 - rim / 2 + rim * np.exp(-(((1 - r) / 0.2) ** 2)) + 0.8 * chromatin
    shade += nucleolus * np.exp(
        -(((u - draw(-0.4, 0.4)) * a) ** 2 + ((v - draw(-0.4, 0.4)) * b) ** 2) / 4
    )
    return (
        np.clip((1 - r) * np.minimum(a, b) / 1.6 + 0.5, 0, 1)
        * shade.clip(0.3)
        * density
        * draw(0.75, 1.2)
    )


def plan_tissue(rng, n, um, t):
    """Regions of a slide with the traits t: masks (n, n) of `um` µm pixels, and the nuclei of its glands."""

    def noise(scale_um):
        return smooth_noise(rng, n, scale_um / um)

    colon, mucinous = t["project"] == "SIM-COLO", t["msi"] == "MSI-H"
    y, x = (np.mgrid[:n, :n] + 0.5) / n - 0.5
    outline = (
        0.5 * noise(200) + 0.17 * noise(50) + 0.06 * noise(14) - 14 * (x**2 * 1.2 + y**2 * 0.85)
    )
    tissue = top_share(outline, np.ones((n, n), bool), TISSUE_SHARE)
    big = noise(300) + 0.5 * noise(100)
    bed = top_share(big, tissue, t["tumour"])  # tumour and the stroma between its nests
    nest = top_share(noise(75) + 0.3 * noise(24) + 0.3 * big, bed, 0.74)
    depth = ndimage.distance_transform_edt(nest).astype(np.float32) * um
    # tumour glands: a lumen where a nest is deep; wide and full of mucin in MSI-H, rare in the breast
    lumen = (depth > (13 if mucinous else 18)) & (
        noise(60) > (-0.3 if mucinous else 0.1 if colon else 1.3)
    )
    fat = top_share(noise(170) - 0.4 * big, tissue & ~bed, t["fat"])
    septa = fat & (tiling.nearest(scatter(rng, n, 56 / um), n)[2] | ~ndimage.binary_erosion(fat))
    # normal glands: crypts of the colon, with goblet cells; small acini of the breast
    low, high, thick, pitch = (27, 36, 19, 82) if colon else (17, 24, 10.5, 54)
    centre = scatter(rng, n, pitch / um)
    centre = centre[
        at(top_share(noise(200) - 0.4 * big, tissue & ~bed & ~fat, t["glands"]), centre)
    ]
    if not len(centre):  # none: one of no size, so that what follows holds
        centre, low, high = np.full((1, 2), n / 2), 0, 0
    radius = rng.uniform(low, high, len(centre))
    shape = rng.uniform(0, [[0.13], [6.3], [0.07], [6.3]], (4, len(centre)))
    label, distance, _ = tiling.nearest(centre, n)
    theta = np.arctan2(
        np.mgrid[:n, :n][0] - centre[label, 1], np.mgrid[:n, :n][1] - centre[label, 0]
    )
    inside = np.where(
        tissue & ~nest & ~fat, gland_wall(theta, radius[label], shape[:, label]) - distance * um, -1
    )
    ring = [np.zeros((0, 3))]
    for (cx, cy), r, s in zip(centre, radius, shape.T):
        angle = np.arange(0, 2 * np.pi - 0.1, 6.4 / (r - 5))
        reach = (gland_wall(angle, r, s) - 6 + rng.uniform(-1, 1, len(angle))) / um
        ring.append(
            np.column_stack([cx + reach * np.cos(angle), cy + reach * np.sin(angle), angle])
        )
    ring = np.concatenate(ring)
    wall = (inside > 0) & (inside < thick)
    return dict(
        tissue=tissue,
        bed=bed,
        nest=nest & ~lumen,
        lumen=lumen,
        depth=depth,
        septa=septa,
        wall=wall,
        goblet=wall & (inside > 9) & (noise(11) > (0.1 if colon else 9)),
        hole=inside >= thick,
        stroma=tissue & ~nest & ~fat & ~(inside > 0),
        ring=ring[at(wall, ring) & (at(inside, ring) < 9)],
    )


def place_nuclei(rng, n, um, p, flow, t):
    """(m, 4) nuclei on the map p: x, y (map px), angle, kind; when two collide the earlier one stays."""
    rate = np.exp(
        1.25 * smooth_noise(rng, n, 80 / um) + 0.7 * smooth_noise(rng, n, 220 / um)
    )  # clusters
    rate *= p["stroma"] + 0.25 * p["nest"] + 0.3 * p["septa"] + 0.05 * p["wall"]
    rate *= t["lymphocytes"] * p["tissue"].sum() / rate.sum()  # per mm²
    gy, gx = np.gradient(p["depth"])  # tumour cells stand across the edge of their nest
    found = [np.column_stack([p["ring"], np.full(len(p["ring"]), 3)])]
    for kind, spacing, chance, turn, sway in (
        (0, 8.6, rate * 0.866 * 8.6**2 / 1e6, flow, 3),
        (1, t["spacing"], 0.95 * (p["nest"] & (p["depth"] > 2.5)), np.arctan2(gy, gx), 0.35),
        (2, 17.0, 0.62 * p["stroma"] + 0.3 * p["septa"], flow, 0.35),
    ):
        xy = scatter(rng, n, spacing / um)
        xy = xy[rng.random(len(xy)) < at(chance, xy).clip(0, 0.95)]
        found.append(
            np.column_stack(
                [xy, at(turn, xy) + sway * rng.standard_normal(len(xy)), np.full(len(xy), kind)]
            )
        )
    return np.concatenate(found)


def enlarge(field, size):
    """A coarse map at full resolution, bilinear: (n, n) -> (size, size) float32."""
    field = Image.fromarray(np.asarray(field, np.float32))
    return np.asarray(field.resize((field.width * COARSE,) * 2, Image.Resampling.BILINEAR))[
        :size, :size
    ]


def stain_to_rgb(h, e, vectors, white):
    """Beer-Lambert: RGB = white * 10^-(h H + e E). h, e (y, x) amounts; vectors (2, 3) OD; white (3,)."""
    rgb = np.empty(h.shape + (3,), np.uint8)
    for c in range(3):
        rgb[..., c] = (
            white[c] * np.exp(-2.302585 * (h * vectors[0, c] + e * vectors[1, c])) + 0.5
        ).clip(0, 255)
    return rgb


def trace(mask):
    """Outlines of a mask (h, w), as GeoJSON wants them: [[ring, hole, ...] of each 4-connected piece], a ring a closed list
    of pixel corners [x, y], without those on straight stretches."""
    pieces, polygons = ndimage.label(mask)[0], []
    for number, (rows, columns) in enumerate(ndimage.find_objects(pieces), 1):
        own, rings, leaving = np.pad(pieces[rows, columns] == number, 1), [], {}
        for (dy, dx), side, step in (
            ((-1, 0), (0, 0), (1, 0)),
            ((0, 1), (1, 0), (0, 1)),
            ((1, 0), (1, 1), (-1, 0)),
            ((0, -1), (0, 1), (0, -1)),
        ):  # edges, the piece on their right
            for y, x in np.argwhere(own & ~np.roll(own, (-dy, -dx), (0, 1))).tolist():
                leaving.setdefault((x + side[0], y + side[1]), []).append(step)
        while leaving:
            at, (dx, dy), ring = next(iter(leaving)), (0, 0), []
            while at in leaving:
                ways = leaving[at]
                turn = (
                    ways.index((-dy, dx)) if (-dy, dx) in ways else 0
                )  # pieces that touch at a corner stay apart
                if ways[turn] != (dx, dy):
                    ring.append([at[0] + columns.start - 1, at[1] + rows.start - 1])
                dx, dy = ways.pop(turn)
                if not ways:
                    del leaving[at]
                at = at[0] + dx, at[1] + dy
            rings.append([*ring, ring[0]])
        size = [sum(a * d - c * b for (a, b), (c, d) in zip(r, r[1:])) for r in rings]
        polygons.append(
            [rings[i] for i in np.argsort(size)[::-1]]
        )  # clockwise, y downwards: above 0; holes: below
    return polygons


def draw_slide(seed, index, t, edge_px):
    """One slide with the traits t: RGB (edge, edge, 3), nuclei [(x, y, cell)], tissue mm², stain, tumour (n, n) bool."""
    rng, f32, mpp = np.random.default_rng([seed, index]), np.float32, SIM_MPP[t["project"]]
    n, um = -(-edge_px // COARSE), COARSE * mpp

    def noise(scale_um):
        return smooth_noise(rng, n, scale_um / um)

    p = plan_tissue(rng, n, um, t)
    # collagen: a texture whose rows are fibres, looked up at coordinates that bend
    y, x = np.mgrid[:n, :n].astype(f32) * COARSE
    turn = rng.uniform(0, np.pi)
    across = y * np.cos(turn) - x * np.sin(turn) + (34 * noise(170) + 5 * noise(36)) / mpp
    along = x * np.cos(turn) + y * np.sin(turn) + 12 / mpp * noise(36)
    texture = ndimage.gaussian_filter(rng.standard_normal((512, 512), f32), (1.3, 11), mode="wrap")
    row, col = (enlarge(field, edge_px).astype(np.int32) & 511 for field in (across, along))
    fibre = (texture / texture.std()).ravel()[row * 512 + col]
    grain = ndimage.gaussian_filter(rng.standard_normal((256, 256), f32), 0.9, mode="wrap")
    grain = np.tile(grain / grain.std(), (edge_px // 256 + 1,) * 2)[:edge_px, :edge_px]
    # eosin and haematoxylin between the nuclei, on the coarse map
    gy, gx = np.gradient(across)
    nuclei = place_nuclei(rng, n, um, p, np.arctan2(gx, -gy), t)
    tumour, mucinous = nuclei[nuclei[:, 3] == 1], t["msi"] == "MSI-H"
    seam = tiling.nearest(tumour, n)[2] if len(tumour) else 0  # paler where two tumour cells meet
    cleft = (ndimage.distance_transform_edt(p["depth"] == 0) < 2.5) & (noise(45) > 0.3)  # shrinkage
    debris = p["lumen"] & (noise(14) + noise(60) > 0.9) & (not mucinous)
    cytoplasm = (1 + 0.16 * noise(16)) * (1 - 0.3 * seam)
    eosin = (
        (0.34 * p["nest"] + 0.28 * (p["wall"] & ~p["goblet"])) * cytoplasm
        + 0.32 * p["septa"]
        + 0.03 * (p["hole"] | p["lumen"] | p["goblet"])
        + 0.3 * debris
    )
    basic = (
        0.12 * p["nest"] * cytoplasm
        + 0.07 * p["wall"]
        + 0.02 * p["stroma"]
        + 0.1 * debris
        + 0.13 * mucinous * p["lumen"] * (1 + 0.4 * noise(20))
    )
    fibrous, eosin, basic = (
        enlarge(ndimage.gaussian_filter(field.astype(f32), 0.6), edge_px)
        for field in (p["stroma"] & ~cleft, eosin, basic)
    )
    e = fibrous * (enlarge((0.36 + 0.09 * noise(60)).clip(0.12), edge_px) + 0.13 * fibre).clip(0.03)
    e, h = (e + eosin) * (1 + 0.13 * grain), basic * (1 + 0.25 * grain) + 0.003 * grain + 0.004
    # nuclei, where there is room
    stamps = [
        (nucleus_stamps(rng, mpp, *row), max(1, round(row[-1] / 2 / um)), cell)
        for cell, row in NUCLEI.items()
    ]
    number = (nuclei[:, 2] / np.pi * N_STAMPS + rng.integers(-2, 3, len(nuclei))).astype(
        int
    ) % N_STAMPS
    free, points = np.ones((n, n), bool), []
    for (cx, cy, _, kind), i in zip(nuclei.tolist(), number.tolist()):
        (stamp, room, cell), row, col, px, py = (
            stamps[int(kind)],
            int(cy),
            int(cx),
            int(cx * COARSE),
            int(cy * COARSE),
        )
        s = stamp.shape[1] // 2
        if s <= px < edge_px - s and s <= py < edge_px - s and free[row, col]:
            free[max(row - room, 0) : row + room + 1, max(col - room, 0) : col + room + 1] = False
            patch = h[py - s : py + s + 1, px - s : px + s + 1]
            np.maximum(patch, stamp[i], out=patch)
            points.append((px, py, cell))
    e *= 1 - 0.3 * np.minimum(h, 1)  # eosin has less to bind in a nucleus
    stain = dict(
        haematoxylin=rng.uniform(0.82, 1.18),
        eosin=rng.uniform(0.8, 1.25),
        mix=rng.uniform(0.35, 0.8),
        white=rng.uniform(239, 247),
    )
    vectors = np.stack([STAINS[0], (1 - stain["mix"]) * STAINS[1] + stain["mix"] * STAINS[2]])
    vectors += 0.015 * rng.standard_normal((2, 3))  # a small turn of both
    vectors *= [[stain["haematoxylin"]], [stain["eosin"]]] / np.linalg.norm(
        vectors, axis=1, keepdims=True
    )
    rgb = stain_to_rgb(
        h, e, vectors.astype(f32), (stain["white"] + rng.uniform(-2, 2, 3)).astype(f32)
    )
    return rgb, points, float(p["tissue"].sum() * um**2 / 1e6), stain, p["bed"]


def write_slide(path, rgb, mpp):
    """Tiled JPEG TIFF with levels 1, 1/2, 1/4, as OpenSlide's generic-tiff wants it; needs no TIFF package."""
    body, link = (
        bytearray(b"II*\0" + bytes(4)),
        4,
    )  # link: where the next directory's place is noted
    for factor in (1, 2, 4):
        level, places, sizes = Image.fromarray(rgb).reduce(factor), [], []
        for y in range(0, level.height, 256):
            for x in range(0, level.width, 256):
                buffer, tile = io.BytesIO(), Image.new("RGB", (256, 256), (243, 243, 243))
                tile.paste(
                    level.crop((x, y, min(x + 256, level.width), min(y + 256, level.height)))
                )
                tile.save(buffer, "JPEG", quality=85, subsampling="4:2:0")
                places.append(len(body))
                sizes.append(buffer.tell())
                body += buffer.getvalue()
        per_cm = (round(1e7 / mpp / factor), 1000)  # pixels per centimetre, a fraction
        tags = (
            (254, 4, [factor > 1]),
            (256, 4, [level.width]),
            (257, 4, [level.height]),
            (258, 3, [8, 8, 8]),
            (259, 3, [7]),
            (262, 3, [6]),
            (277, 3, [3]),
            (282, 5, per_cm),
            (283, 5, per_cm),
            (296, 3, [3]),
            (322, 4, [256]),
            (323, 4, [256]),
            (324, 4, places),
            (325, 4, sizes),
            (530, 3, [2, 2]),
        )
        directory = struct.pack("<H", len(tags))
        for tag, kind, values in tags:  # kind 3 short, 4 long, 5 fraction of two longs
            data = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
            directory += struct.pack("<HHI", tag, kind, len(values) // (2 if kind == 5 else 1))
            if len(data) > 4:  # too long for the directory: its place instead
                body += bytes(len(body) % 2) + data
                data = struct.pack("<I", len(body) - len(data))
            directory += data.ljust(4, b"\0")
        body += bytes(len(body) % 2)
        body[link : link + 4] = struct.pack("<I", len(body))
        body += directory + bytes(4)
        link = len(body) - 4
    save_file(path, lambda f: f.write(body))
