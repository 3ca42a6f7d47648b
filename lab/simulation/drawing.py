"""Drawing a simulated slide from its plan: stains on a plan of tissue, as pixels and as a file."""

import io
import itertools
import struct

import numpy as np
from PIL import Image
from scipy import ndimage

from lab.files import save_file
from lab.simulation.tissue import Canvas, gland_wall, nearest, place_nuclei, plan_tissue

SIM_MPP = {"SIM-COLO": 0.4990, "SIM-BRST": 0.5040}  # µm/px: a scanner for each project  [ours]
COARSE = 4  # px; regions are planned on a map this much coarser  [ours]
OUTLINE_STEP = 2  # of those pixels: the steps of a tumour's outline  [ours]
N_STAMPS = 64  # nuclei drawn per kind and slide, one for each angle  [ours]
# Optical density of pure stain in R, G, B: haematoxylin and eosin [Ruifrok & Johnston 2001], eosin
# [Macenko 2009]. The first eosin alone is more magenta than tissue is, so each slide's lies between
# the two.  [ours]
STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.216, 0.801, 0.558]])
NUCLEI = {  # length, width (µm), spread (log SD), density, dark rim, nucleolus, room (µm)  [ours]
    "lymphocyte": (7.2, 6.6, 0.07, 1.20, 0.05, 0.0, 7),
    "tumour": (13.0, 9.5, 0.17, 0.80, 0.45, 0.6, 9),
    "stroma": (15.0, 3.8, 0.18, 0.95, 0.10, 0.0, 5),
    "epithelium": (9.5, 6.0, 0.07, 0.90, 0.20, 0.0, 5),
}
TILE_PX, JPEG_QUALITY = 256, 85  # of the file  [ours]


def draw_slide(seed, index, traits, edge_px):
    """One slide: (RGB (edge, edge, 3), nuclei [(x, y, cell)], tissue mm², stain, tumour's bed)."""
    rng = np.random.default_rng([seed, index])
    mpp = SIM_MPP[traits["project"]]
    canvas = Canvas(rng, -(-edge_px // COARSE), COARSE * mpp)
    plan = plan_tissue(canvas, traits)
    fibre, grain, flow = draw_textures(canvas, mpp, edge_px)
    nuclei = place_nuclei(canvas, plan, flow, traits)
    h, e = draw_between_nuclei(canvas, plan, nuclei, traits, fibre, grain, edge_px)
    points = draw_nuclei(canvas, h, nuclei, mpp)
    e *= 1 - 0.3 * np.minimum(h, 1)  # eosin has less to bind in a nucleus
    stain, vectors, white = draw_stain(rng)
    tissue_mm2 = float(plan["tissue"].sum() * canvas.um**2 / 1e6)
    return stain_to_rgb(h, e, vectors, white), points, tissue_mm2, stain, plan["bed"]


def draw_textures(canvas, mpp, edge_px):
    """(fibres of collagen, grain, both (edge, edge); direction of the fibres (n, n))."""
    rng, n = canvas.rng, canvas.n
    y, x = np.mgrid[:n, :n].astype(np.float32) * COARSE
    turn = rng.uniform(0, np.pi)
    bend = (34 * canvas.noise(170) + 5 * canvas.noise(36)) / mpp
    across = y * np.cos(turn) - x * np.sin(turn) + bend
    along = x * np.cos(turn) + y * np.sin(turn) + 12 / mpp * canvas.noise(36)
    texture = rng.standard_normal((512, 512), np.float32)  # its rows become fibres that bend
    texture = ndimage.gaussian_filter(texture, (1.3, 11), mode="wrap")
    row = enlarge(across, edge_px).astype(np.int32) & 511
    column = enlarge(along, edge_px).astype(np.int32) & 511
    fibre = (texture / texture.std()).ravel()[row * 512 + column]
    grain = rng.standard_normal((256, 256), np.float32)
    grain = ndimage.gaussian_filter(grain, 0.9, mode="wrap")
    repeats = edge_px // 256 + 1
    grain = np.tile(grain / grain.std(), (repeats, repeats))[:edge_px, :edge_px]
    gy, gx = np.gradient(across)
    return fibre, grain, np.arctan2(gx, -gy)


def draw_between_nuclei(canvas, plan, nuclei, traits, fibre, grain, edge_px):
    """(haematoxylin, eosin) of everything but nuclei, each (edge, edge)."""
    mucinous = traits["msi"] == "MSI-H"
    tumour = nuclei[nuclei[:, 3] == 1]
    seam = nearest(tumour, canvas.n)[2] if len(tumour) else 0  # paler where two tumour cells meet
    shrunk = ndimage.distance_transform_edt(plan["depth"] == 0) < 2.5
    cleft = shrunk & (canvas.noise(45) > 0.3)
    debris = plan["lumen"] & (canvas.noise(14) + canvas.noise(60) > 0.9) & (not mucinous)
    cytoplasm = (1 + 0.16 * canvas.noise(16)) * (1 - 0.3 * seam)
    empty = plan["hole"] | plan["lumen"] | plan["goblet"]
    eosin = (0.34 * plan["nest"] + 0.28 * (plan["wall"] & ~plan["goblet"])) * cytoplasm
    eosin = eosin + 0.32 * plan["septa"] + 0.03 * empty + 0.3 * debris
    basic = 0.12 * plan["nest"] * cytoplasm + 0.07 * plan["wall"] + 0.02 * plan["stroma"]
    mucin = 0.13 * mucinous * plan["lumen"] * (1 + 0.4 * canvas.noise(20))
    basic = basic + 0.1 * debris + mucin
    fibrous = smooth_and_enlarge(plan["stroma"] & ~cleft, edge_px)
    eosin = smooth_and_enlarge(eosin, edge_px)
    basic = smooth_and_enlarge(basic, edge_px)
    collagen = enlarge((0.36 + 0.09 * canvas.noise(60)).clip(0.12), edge_px)
    e = fibrous * (collagen + 0.13 * fibre).clip(0.03)
    e = (e + eosin) * (1 + 0.13 * grain)
    h = basic * (1 + 0.25 * grain) + 0.003 * grain + 0.004
    return h, e


def smooth_and_enlarge(field, edge_px):
    return enlarge(ndimage.gaussian_filter(field.astype(np.float32), 0.6), edge_px)


def enlarge(field, size):
    """A coarse map at full resolution, bilinear: (n, n) -> (size, size) float32."""
    field = Image.fromarray(np.asarray(field, np.float32))
    edge = field.width * COARSE
    return np.asarray(field.resize((edge, edge), Image.Resampling.BILINEAR))[:size, :size]


def draw_nuclei(canvas, h, nuclei, mpp):
    """Draw into h (edge, edge) the nuclei that find room -> [(x, y, cell)] of those, in pixels."""
    rng, edge_px = canvas.rng, len(h)
    stamps = [nucleus_stamps(rng, mpp, *row[:-1]) for row in NUCLEI.values()]
    rooms = [max(1, round(row[-1] / 2 / canvas.um)) for row in NUCLEI.values()]
    cells = list(NUCLEI)
    sway = rng.integers(-2, 3, len(nuclei))
    turned = (nuclei[:, 2] / np.pi * N_STAMPS + sway).astype(int) % N_STAMPS
    free = np.ones((canvas.n, canvas.n), bool)
    points = []
    for (x, y, _, kind), number in zip(nuclei.tolist(), turned.tolist(), strict=True):
        stamp = stamps[int(kind)][number]
        room = rooms[int(kind)]
        half = len(stamp) // 2
        px, py = int(x * COARSE), int(y * COARSE)
        row, column = int(y), int(x)
        within = half <= px < edge_px - half and half <= py < edge_px - half
        if not within or not free[row, column]:
            continue
        top, left = max(row - room, 0), max(column - room, 0)
        free[top : row + room + 1, left : column + room + 1] = False
        patch = h[py - half : py + half + 1, px - half : px + half + 1]
        np.maximum(patch, stamp, out=patch)
        points.append((px, py, cells[int(kind)]))
    return points


def nucleus_stamps(rng, mpp, length, width, spread, density, rim, nucleolus):
    """(N_STAMPS, s, s) optical density of nuclei; number i lies at the angle pi i / N_STAMPS."""

    def draw(low, high):
        return rng.uniform(low, high, (N_STAMPS, 1, 1)).astype(np.float32)

    a = length / 2 / mpp * np.exp(spread * draw(-1.7, 1.7))  # half axes, px
    b = width / 2 / mpp * np.exp(spread * draw(-1.7, 1.7))
    half = int(max(a.max(), b.max()) * 1.1) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    angle = np.pi * np.arange(N_STAMPS, dtype=np.float32)[:, None, None] / N_STAMPS
    u = (x * np.cos(angle) + y * np.sin(angle)) / a
    v = (y * np.cos(angle) - x * np.sin(angle)) / b
    shape = (spread * draw(0, 0.6), draw(0, 6.3), spread * draw(0, 0.6), draw(0, 6.3))
    r = np.hypot(u, v) / gland_wall(np.arctan2(v, u), 1, shape)  # 1 on the membrane
    chromatin = rng.standard_normal(r.shape, np.float32)
    chromatin = ndimage.gaussian_filter(chromatin, (0, 1.2, 1.2))
    shade = 1 - rim / 2 + rim * np.exp(-(((1 - r) / 0.2) ** 2)) + 0.8 * chromatin
    off_centre = ((u - draw(-0.4, 0.4)) * a) ** 2 + ((v - draw(-0.4, 0.4)) * b) ** 2
    shade += nucleolus * np.exp(-off_centre / 4)
    edge = np.clip((1 - r) * np.minimum(a, b) / 1.6 + 0.5, 0, 1)
    return edge * shade.clip(0.3) * density * draw(0.75, 1.2)


def draw_stain(rng):
    """A slide's stain: (amounts as truth/slides.csv has them, vectors (2, 3) OD, white (3,))."""
    stain = {
        "haematoxylin": rng.uniform(0.82, 1.18),
        "eosin": rng.uniform(0.8, 1.25),
        "mix": rng.uniform(0.35, 0.8),
        "white": rng.uniform(239, 247),
    }
    eosin = (1 - stain["mix"]) * STAINS[1] + stain["mix"] * STAINS[2]
    vectors = np.stack([STAINS[0], eosin])
    vectors += 0.015 * rng.standard_normal((2, 3))  # a small turn of both
    amounts = np.array([[stain["haematoxylin"]], [stain["eosin"]]])
    vectors *= amounts / np.linalg.norm(vectors, axis=1, keepdims=True)
    white = stain["white"] + rng.uniform(-2, 2, 3)
    return stain, vectors.astype(np.float32), white.astype(np.float32)


def stain_to_rgb(h, e, vectors, white):
    """Beer-Lambert: RGB = white * 10^-(h H + e E). h, e (y, x); vectors (2, 3) OD; white (3,)."""
    rgb = np.empty((*h.shape, 3), np.uint8)
    for c in range(3):
        density = h * vectors[0, c] + e * vectors[1, c]
        rgb[..., c] = (white[c] * np.exp(-2.302585 * density) + 0.5).clip(0, 255)
    return rgb


def write_slide(path, rgb, mpp):
    """A tiled JPEG TIFF with levels 1, 1/2, 1/4, as OpenSlide's generic-tiff wants it.

    Written here since no light package writes JPEG tiles. [TIFF 6.0]
    """
    body = bytearray(b"II*\0" + bytes(4))
    link = 4  # where the place of the next directory is noted
    for factor in (1, 2, 4):
        level = Image.fromarray(rgb).reduce(factor)
        places, sizes = [], []
        for tile in jpeg_tiles(level):
            places.append(len(body))
            sizes.append(len(tile))
            body += tile
        per_cm = (round(1e7 / mpp / factor), 1000)  # pixels per centimetre, a fraction
        directory = tiff_directory(body, level.size, factor, per_cm, places, sizes)
        body += bytes(len(body) % 2)
        body[link : link + 4] = struct.pack("<I", len(body))
        body += directory + bytes(4)
        link = len(body) - 4
    save_file(path, lambda f: f.write(body))


def tiff_directory(body, size, factor, per_cm, places, sizes):
    """The directory of one level; values too long for it go to the end of `body`."""
    shorts, longs, fractions = 3, 4, 5  # kinds of values
    tags = (
        (254, longs, [factor > 1]),  # a reduced picture
        (256, longs, [size[0]]),
        (257, longs, [size[1]]),
        (258, shorts, [8, 8, 8]),  # bits
        (259, shorts, [7]),  # JPEG
        (262, shorts, [6]),  # YCbCr
        (277, shorts, [3]),  # channels
        (282, fractions, per_cm),
        (283, fractions, per_cm),
        (296, shorts, [3]),  # resolution is per centimetre
        (322, longs, [TILE_PX]),
        (323, longs, [TILE_PX]),
        (324, longs, places),
        (325, longs, sizes),
        (530, shorts, [2, 2]),  # subsampling
    )
    directory = struct.pack("<H", len(tags))
    for tag, kind, values in tags:
        data = struct.pack(f"<{len(values)}{'H' if kind == shorts else 'I'}", *values)
        count = 1 if kind == fractions else len(values)
        if len(data) > 4:
            body += bytes(len(body) % 2) + data
            data = struct.pack("<I", len(body) - len(data))
        directory += struct.pack("<HHI", tag, kind, count) + data.ljust(4, b"\0")
    return directory


def jpeg_tiles(level):
    """The tiles of a picture, row by row, each a JPEG."""
    for y in range(0, level.height, TILE_PX):
        for x in range(0, level.width, TILE_PX):
            tile = Image.new("RGB", (TILE_PX, TILE_PX), (243, 243, 243))
            right, bottom = min(x + TILE_PX, level.width), min(y + TILE_PX, level.height)
            tile.paste(level.crop((x, y, right, bottom)))
            buffer = io.BytesIO()
            tile.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
            yield buffer.getvalue()


def trace(mask):
    """Outlines of a mask (h, w): [[ring, hole, ...] of each piece], a closed ring (k, 2) of x, y.

    The level .5 between pixel centres, so corners are cut by half a pixel.
    """
    from contourpy import FillType, contour_generator

    inside = np.pad(mask.astype(float), 1)
    x = np.arange(-1, mask.shape[1] + 1) + 0.5
    y = np.arange(-1, mask.shape[0] + 1) + 0.5
    contours = contour_generator(x, y, inside, fill_type=FillType.OuterOffset)
    polygons = []
    for points, starts in zip(*contours.filled(0.5, 2.0), strict=True):
        polygons.append([points[a:b] for a, b in itertools.pairwise(starts)])
    return polygons
