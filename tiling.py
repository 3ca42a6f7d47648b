"""From a whole-slide image to tile features and super-tiles.

What both papers do before they learn anything from RNA: find the tissue (Otsu), cut it into square tiles of a fixed
size in micrometres, bring their stains to a common colour (HistCode; a switch), describe each tile with a ResNet50, and
average neighbouring tiles into 100 super-tiles (k-means on location). The file reads in that order; the commands stand at
its end.

  HE2RNA    Schmauch et al., "A deep learning model to predict RNA-Seq expression of tumours from whole slide images",
            Nature Communications 11:3877 (2020), doi:10.1038/s41467-020-17678-4 (preprint bioRxiv 760173)
  HistCode  the self-supervised contrastive framework for differential gene expression (2022)

    python tiling.py doctor COHORT        what is seen in each slide: mpp and its source, level, threshold, tiles, memory
    python tiling.py features COHORT      tiles/<slide>.npz and .png, features/resnet50/<slide>.npy (what is missing)
    python tiling.py features COHORT --encoder FILE     the same with HistCode's encoder, in features/<name of FILE>
    python tiling.py supertiles COHORT    supertiles/resnet50/<slide>.npz
    python tiling.py export COHORT [SLIDE...] --h5 --geojson --csv      export/<encoder>/: for CLAM, QuPath, AnnData
    python tiling.py simulate FOLDER      a simulated cohort with known truth

COHORT is a folder with slides/ (anything OpenSlide reads, or .png/.jpg) and, if there is one, samples.csv. A step makes
what is missing and skips what is there; what was made with other settings is made anew, and that is said. Slides that
fail are listed in failed.csv, the others go on. A folder belongs to one run at a time (its file `lock` says to which); to
share the slides out, start each process with its own RANK of WORLD_SIZE, as torchrun and a cluster's array jobs do.

What comes in: features made elsewhere (--features DIR, of every command that learns or predicts) as CLAM's or TRIDENT's
<slide>.h5 or as .pt tensors; encoders as TorchScript files, with what they want in <file>.json beside; cells and outlines as
QuPath exports them, points/<slide>.csv, .tsv or .geojson and regions/<slide>.geojson. What goes out: export, and the
tiles.geojson of each heatmap. Every coordinate we keep is a level-0 pixel of OpenSlide's frame; QuPath's begins at the
bounds of what was scanned, and what comes from there or goes there is moved. No ICC profile is applied.

Glossary: n tiles, D features, k super-tiles, d downsample of a level; mpp µm per pixel at level 0; H, W pixels.
Tags: [HE2RNA ...] and [HistCode ...] the papers, [... code] only the authors' released code, [ours] our choice.
"""

import numpy as np
import openslide
import torch
from PIL import Image
from scipy import ndimage, sparse
from scipy.spatial import cKDTree
from torch import nn

TILE_PX = 224  # edge of a tile as the network sees it   [HE2RNA Methods, Preprocessing]


N_SUPERTILES = 100  # k-means clusters per slide              [HE2RNA Methods, Preprocessing]


MIN_TISSUE = (
    0.5  # share of a tile that must be tissue; the paper says "containing tissue"    [ours]
)


THUMBNAIL_UM = (
    8.0  # µm per pixel of the picture on which tissue is found                       [ours]
)


SMOOTH_PX = 2.0  # Gaussian sigma there: 16 µm, so that nuclei and stroma are one tissue      [ours]


OD_OFFSET = 8.0  # grey levels added before the logarithm: noise of black pixels is no stain  [ours]


GLASS_SD = (
    2.5  # grey levels over 40 µm: empty glass is flat (0.3 to 0.8 on real slides), the  [ours]
)


GLASS_SHARE = (
    0.05  #   palest tissue is not (6 to 29); less of the brightest tenth flat: no glass  [ours]
)


NO_GLASS = (
    245.0  # brightness of the light where a picture shows no glass to measure it          [ours]
)


BLACK_LEVEL = (
    50  # brightest channel below it: scanner border, black pen                      [ours]
)


STAIN_FLOOR = (
    0.03  # the Otsu threshold stays in this range of stain (optical density), so that [ours]
)


STAIN_CEILING = 0.08  #   an empty slide gives no tissue and pale stroma is not lost to dark nuclei


MEDIAN_PX, CLOSE_PX = (
    7,
    4,
)  # of the saturation, then of the mask; pixels of the thumbnail          [HistCode code]


GLASS_MM = (
    100,
    200,
)  # short and long edge of a picture, at most; whole mounts are 102 x 152 mm   [ours]


IMAGENET_MEAN = (
    0.485,
    0.456,
    0.406,
)  # of RGB in 0..1: torchvision's normalisation, which its weights need; [ours]


IMAGENET_STD = (
    0.229,
    0.224,
    0.225,
)  #   the authors' Keras weights want BGR minus a mean [HE2RNA code]      [ours]


LIGHT = (
    240.0  # intensity without dye      } as published with the common implementations of   [ours]
)


MIN_OD = 0.15  # density of each channel    } Macenko 2009 (natural logarithm, one grey level


EXTREMES = (
    1,
    99,
)  # percentiles of the angle   } added), whose reference the next two are: haematoxylin


REFERENCE = (
    (0.5626, 0.7201, 0.4062),
    (0.2159, 0.8012, 0.5581),
)  # and eosin in R, G, B, their densest 99th


REFERENCE_TOP = (
    1.9705,
    1.0308,
)  #                     percentile; Macenko's own numbers are in log10


STAINED = (
    0.01  # share of pixels above MIN_OD below which a tile or slide keeps its colours     [ours]
)


MIN_ANGLE = (
    8.0  # degrees between two stains: 14 to 38 on real slides; one, with noise of 2 grey [ours]
)
#                               levels, spreads over at most 6


STAIN_TILES = (
    64  # tiles that tell a slide's stains, every 4th pixel of every 4th row             [ours]
)


KMEANS_DRAWS = (
    5  # candidates for each starting centre; scikit-learn takes 2 + log k          [ours]
)


RUN_TILES = 16  # neighbouring tiles read in one go: each JPEG block is decoded once         [ours]


STRIP_PIXELS = (
    2**24
)  # pixels read at once for a thumbnail, so that a one-level slide fits memory [ours]


# Colour: Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009
# [HistCode Methods, Image processing: "we applied color normalization on tiles"; the method is our choice]
DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / LIGHT)  # of each grey level  (256,)


def slide_bounds(slide):
    """(x, y, w, h) of what was scanned, level-0 pixels: all of a slide, but for those whose file says that it lies somewhere
    in a larger frame (MIRAX, Leica, Ventana: OpenSlide's bounds)."""
    try:
        return tuple(
            int(slide.properties[f"openslide.bounds-{k}"]) for k in ("x", "y", "width", "height")
        )
    except (KeyError, ValueError):
        return 0, 0, *slide.dimensions


def best_level(slide, downsample):
    """(level, its downsample): the smallest picture that still has all the detail wanted, so it is only ever reduced."""
    ds = slide.level_downsamples
    level = max(
        (i for i in range(len(ds)) if ds[i] <= downsample * 1.01), key=lambda i: ds[i], default=0
    )
    return level, ds[level]


def read_rgba(slide, level, x, y, w, h):
    """w x h pixels of a level from its pixel (x, y), RGBA."""
    d = slide.level_downsamples[level]
    try:
        return slide.read_region((round(x * d), round(y * d)), level, (w, h))
    except openslide.OpenSlideError as e:
        raise ValueError(f"the slide can't be read to its end ({e})") from None


def thumbnail(slide, mpp, um=THUMBNAIL_UM):
    """The whole slide at `um` µm per pixel: (rgb (h, w, 3) uint8 on white, opaque (h, w) bool: scanned, within its bounds).

    Read in strips, so that a slide with only level 0 needs little memory; exact box average.
    """
    (W, H), edges = slide.dimensions, sorted(round(edge * mpp / 1000) for edge in slide.dimensions)
    if edges[0] > GLASS_MM[0] or edges[1] > GLASS_MM[1]:  # would ask for any memory, any time
        raise ValueError(
            f"{W:,} x {H:,} pixels of {mpp:g} µm are {edges[0]:,} x {edges[1]:,} mm, more than a glass slide "
            "has: the file is broken, or its mpp is wrong"
        )
    scale = max(1.0, um / mpp)
    w, h = max(1, round(W / scale)), max(1, round(H / scale))
    level, _ = best_level(slide, scale)
    lw, lh = slide.level_dimensions[level]
    rows = max(1, int(STRIP_PIXELS / (lw * lh / h)))
    out = np.empty((h, w, 4), np.uint8)
    for r in range(0, h, rows):
        top, bottom = r * lh / h, min(h, r + rows) * lh / h  # level rows of this strip
        first = int(top)
        strip = read_rgba(slide, level, 0, first, lw, min(lh, int(np.ceil(bottom))) - first)
        box = (0, top - first, lw, min(bottom - first, strip.height))
        out[r : r + rows] = strip.resize((w, min(h, r + rows) - r), Image.Resampling.BOX, box)
    x, y, bw, bh = slide_bounds(slide)
    column, row = (np.arange(w) + 0.5) * W / w, (np.arange(h) + 0.5) * H / h  # level-0 pixels
    scanned = ((row >= y) & (row < y + bh))[:, None] & (column >= x) & (column < x + bw)
    opaque = scanned & (out[:, :, 3] >= 128)  # (h, w)
    return np.where(opaque[:, :, None], out[:, :, :3], 255).astype(np.uint8), opaque


# Tissue: Otsu  [HE2RNA Methods, Preprocessing: "used the Otsu algorithm to select only those containing tissue"]
def otsu_threshold(values):
    """Threshold that maximises the variance between the two classes `<= t` and `> t`. Otsu 1979.

    values: any shape, integer grey levels 0..255 or floats; histogram of 256 bins. Returns a float in the units of the
    values (a bin's centre; of equally good thresholds the lowest). Values all equal: that value.
    """
    values = np.ravel(values)
    assert values.size > 0
    if values.dtype == np.uint8:
        counts, centers = np.bincount(values, minlength=256).astype(float), np.arange(256.0)
    elif values.min() == values.max():
        return float(values[0])
    else:
        counts, edges = np.histogram(values.astype(float), bins=256)
        counts, centers = counts.astype(float), (edges[:-1] + edges[1:]) / 2
    w0 = np.cumsum(counts)  # pixels at or below the bin  (256,)
    w1 = w0[-1] - w0
    s0 = np.cumsum(counts * centers)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = w0 * w1 * (s0 / w0 - (s0[-1] - s0) / w1) ** 2
    between[(w0 == 0) | (w1 == 0)] = -1
    if between.max() < 0:
        return float(centers[counts.argmax()])
    return float(centers[between.argmax()])


def stain_map(rgb, valid=None):
    """How much dye each pixel holds: (h, w) float32 optical density; 0 where ink, black border or not `valid`.

    rgb (h, w, 3) uint8 at about 8 µm per pixel. Optical density of each channel against the colour of the glass (the bright
    flat part; a crop from within the tissue has none), largest minus smallest channel: uneven or grey light dims all
    channels alike and cancels, a tint is divided out, haematoxylin and eosin remain.
    Otsu's threshold is of this stain, for the papers name Otsu but not the image it is of. [ours]
    """
    x = ndimage.uniform_filter(rgb.astype(np.float32), (3, 3, 0))  # sensor and JPEG noise
    ok = x.max(2) >= BLACK_LEVEL  # (h, w)
    ok &= True if valid is None else valid
    if not ok.any():
        return np.zeros(rgb.shape[:2], np.float32)
    green = x[:, :, 1]  # where both dyes are darkest
    bright = ok & (green >= np.percentile(green[ok], 90))
    spread = (
        ndimage.uniform_filter(green**2, 5) - ndimage.uniform_filter(green, 5) ** 2
    )  # variance (h, w)
    glass = bright & (spread < GLASS_SD**2)
    white = (
        np.median(x[glass], axis=0)
        if glass.sum() >= GLASS_SHARE * bright.sum()
        else np.full(3, NO_GLASS)
    )  # (3,)
    od = -np.log10((x + OD_OFFSET) / (white + OD_OFFSET))  # (h, w, 3)
    ok &= ~ndimage.binary_dilation(pen_mask(x), iterations=3)  # ink bleeds into its rim
    stain = np.where(ok, od.max(2) - od.min(2), 0)
    return ndimage.gaussian_filter(stain, SMOOTH_PX).astype(np.float32) * ok


def pen_mask(rgb):
    """Marker ink: hues H&E does not have (green, cyan), and blues and reds purer than any dye. (h, w) bool [ours]"""
    r, g, b = np.moveaxis(np.asarray(rgb, np.float32), 2, 0)
    top, chroma = np.max((r, g, b), 0), np.ptp((r, g, b), 0)
    c = np.maximum(chroma, 1e-6)
    hue = 60 * np.where(
        top == r, ((g - b) / c) % 6, np.where(top == g, (b - r) / c + 2, (r - g) / c + 4)
    )  # degrees
    pure = chroma / np.maximum(top, 1)  # HSV saturation 0..1
    green = (hue > 65) & (hue < 215) & (pure > 0.25)
    return (
        green
        | ((hue >= 215) & (hue < 262) & (pure > 0.7))
        | (((hue > 345) | (hue < 20)) & (pure > 0.75))
    ) & (chroma > 25)


def tissue_threshold(stain):
    """Otsu on the square root of the stain, squared again, kept in [STAIN_FLOOR, STAIN_CEILING].

    Stain is skewed: plain Otsu cuts between pale stroma and dark nuclei, its root between glass and tissue. [ours]
    """
    return (
        float(np.clip(otsu_threshold(np.sqrt(stain)) ** 2, STAIN_FLOOR, STAIN_CEILING))
        if stain.size
        else STAIN_CEILING
    )


def saturation_map(rgb):
    """HSV saturation 0..255 of each pixel, (h, w, 3) -> (h, w) uint8, after a median over MEDIAN_PX. [HistCode code]"""
    top = rgb.max(2).astype(float)
    saturation = 255 * (top - rgb.min(2)) / np.maximum(top, 1)
    return ndimage.median_filter(
        np.floor(saturation + 0.5).astype(np.uint8), MEDIAN_PX, mode="nearest"
    )


def drop_pieces(mask, least):
    """A mask without its connected pieces (corners connect) of fewer than `least` pixels."""
    pieces, _ = ndimage.label(mask, np.ones((3, 3)))
    return mask & (np.bincount(pieces.ravel()) >= least)[pieces]


def find_tissue(rgb, valid, tissue="stain", threshold="otsu", least=0):
    """(tissue (h, w) bool, the threshold it was cut at) of a thumbnail; rgb and valid as tissue_mask.

    tissue: what is cut, "stain" (optical density) or "saturation" (0..255), which takes pen and black borders for tissue;
    threshold: "otsu" or a fixed level of saturation [HistCode Methods, "the threshold 8 was used to detect tissue", which
    fits no Otsu: CLAM, whose code theirs is, has one or the other]; least: pixels of the smallest piece kept.
    """
    if tissue == "stain":
        level = stain_map(rgb, valid)  # (h, w)
        threshold = tissue_threshold(level[valid])
        mask = level > threshold
    else:
        level, square = saturation_map(rgb), np.ones((CLOSE_PX, CLOSE_PX), bool)
        if threshold == "otsu":
            threshold = otsu_threshold(level[valid] if valid.any() else level)
        mask = ndimage.binary_dilation(level > threshold, square)
        mask = ndimage.binary_erosion(
            mask, square, border_value=1
        )  # a closing that leaves the rim as it is
    return drop_pieces(mask & valid, least), float(threshold)


def tissue_mask(rgb, valid=None):
    """(h, w) bool, True on tissue, of a thumbnail (h, w, 3) uint8 at about 8 µm per pixel; `valid` (h, w) bool marks
    what was scanned. Background (white, grey, tinted, unevenly lit), pen, black borders and holes are not tissue."""
    return find_tissue(rgb, np.ones(rgb.shape[:2], bool) if valid is None else valid)[0]


# Tiles
def tile_grid(mask, size, tile, min_tissue=MIN_TISSUE, max_tiles=None, seed=0):
    """Non-overlapping tiles of a regular grid of which at least `min_tissue` is tissue.

    mask (h, w) bool over the whole slide; size (W, H) level-0 pixels; tile: edge in level-0 pixels, a real number, so
    that the grid keeps its pitch in µm. More than max_tiles: a random sample by `seed`. Returns (n, 2) int32, the
    level-0 top-left x, y, row by row. [HE2RNA Methods, Preprocessing]
    """
    (W, H), (h, w) = size, mask.shape
    nx, ny = int(W / tile + 1e-6), int(H / tile + 1e-6)
    if nx == 0 or ny == 0:
        return np.zeros((0, 2), np.int32)
    area = np.pad(
        mask.astype(float).cumsum(0).cumsum(1), ((1, 0), (1, 0))
    )  # summed-area table   (h + 1, w + 1)
    y, x = np.meshgrid(
        np.arange(ny + 1) * tile * h / H, np.arange(nx + 1) * tile * w / W, indexing="ij"
    )
    s = ndimage.map_coordinates(
        area, [np.minimum(y, h), np.minimum(x, w)], order=1
    )  # exact between pixels
    share = (s[1:, 1:] - s[1:, :-1] - s[:-1, 1:] + s[:-1, :-1]) / (
        tile * h / H * tile * w / W
    )  # (ny, nx)
    iy, ix = np.nonzero((share >= min_tissue - 1e-9) & (share > 1e-9))
    coords = np.stack([ix * tile, iy * tile], 1).astype(np.int32)  # floor: the tile stays inside
    if max_tiles and len(coords) > max_tiles:
        coords = coords[np.sort(np.random.default_rng(seed).permutation(len(coords))[:max_tiles])]
    return coords


def tile_runs(coords, tile):
    """[(first, last + 1)] rows of the list that lie side by side, at most RUN_TILES together."""
    runs, start = [], 0
    for i in range(1, len(coords) + 1):
        side_by_side = (
            i < len(coords)
            and coords[i][1] == coords[i - 1][1]
            and coords[i][0] - coords[i - 1][0] <= tile + 1
        )
        if not side_by_side or i - start == RUN_TILES:
            runs.append((start, i))
            start = i
    return runs


def read_tiles(slide, coords, tile, px=TILE_PX):
    """Tiles lying side by side, (n, px, px, 3) uint8: read once, each cut out and resampled once (Lanczos, antialiased).

    coords (n, 2) level-0 top-left of one run of tile_runs; tile: edge in level-0 pixels. What was never scanned is white.
    A tile's pixels depend on that tile alone, not on its neighbours in the run (but for OpenSlide's rounding to whole
    level-0 pixels where a downsample is no whole number).
    """
    level, d = best_level(slide, tile / px)
    x0, y0 = int(coords[0][0] / d), int(coords[0][1] / d)
    w, h = (
        int(np.ceil((coords[-1][0] + tile) / d)) - x0,
        int(np.ceil((coords[0][1] + tile) / d)) - y0,
    )
    region = read_rgba(slide, level, x0, y0, w, h)
    if region.getextrema()[3][0] < 255:
        region = Image.alpha_composite(Image.new("RGBA", region.size, "white"), region)
    region, out = region.convert("RGB"), np.empty((len(coords), px, px, 3), np.uint8)
    for i, (x, y) in enumerate(coords):
        left, top = x / d - x0, y / d - y0
        cut = region.crop(
            (int(left), int(top), int(np.ceil(left + tile / d)), int(np.ceil(top + tile / d)))
        )
        left, top = left - int(left), top - int(top)
        box = (left, top, min(left + tile / d, cut.width), min(top + tile / d, cut.height))
        out[i] = cut.resize((px, px), Image.Resampling.LANCZOS, box)
    return out


def optical_density(rgb):
    """-ln((I + 1) / LIGHT): how much light the dye took, for any shape of uint8; float32. The 1 keeps black finite."""
    return DENSITY[rgb]


def macenko_stains(od):
    """Densities of pixels (n, 3) -> unit vectors of haematoxylin and eosin (2, 3) and their 99th percentiles (2,).

    The stains are the two extreme directions in the plane that holds most of the density. None where fewer than STAINED
    of the pixels are dense, or the two stains lie within MIN_ANGLE: one stain, or one colour, tells no plane. [ours]
    Dense in each channel, as in the common implementations: dense in their mean lets in so much pale noise that eosin's
    red falls to zero or below on real slides. The plane holds the origin, no dye; theirs is centred (under 3 degrees).
    The percentiles are of the dense pixels, so that they do not depend on how much glass is around. [ours]
    """
    dense = od[(od >= MIN_OD).all(1)].astype(np.float64)  # (m, 3)
    if len(dense) < max(1, STAINED * len(od)):
        return None
    _, directions = np.linalg.eigh(dense.T @ dense)  # their singular vectors, rising
    plane = directions[:, [2, 1]]  # (3, 2)
    plane = plane * np.where(plane.sum(0) < 0, -1, 1)  # eigh's signs are arbitrary
    angle = np.arctan2(*(dense @ plane).T[::-1])  # (m,)
    ends = np.percentile(angle, EXTREMES)
    if np.degrees(ends[1] - ends[0]) < MIN_ANGLE:
        return None
    stains = np.stack([np.cos(ends), np.sin(ends)], 1) @ plane.T  # (2, 3)
    stains = stains[np.argsort(-stains[:, 0])]  # haematoxylin takes more of the red
    return stains, np.percentile(dense @ np.linalg.pinv(stains), EXTREMES[1], axis=0)


def macenko(tiles, found):
    """Tiles (n, h, w, 3) uint8 in the reference's colours, and which of them were changed (n,) bool.

    found: (stains, 99th percentiles) of macenko_stains, or None: nothing is changed. A tile with fewer than STAINED dense
    pixels stays as it is. Concentrations by least squares, scaled to the reference's percentiles, in the reference's
    stains: all linear in the density, so one (3, 3) matrix.
    """
    changed = np.zeros(len(tiles), bool)
    if found is None:
        return tiles, changed
    stains, top = found
    matrix = -(np.linalg.pinv(stains) * (REFERENCE_TOP / top)) @ REFERENCE  # (3, 2) @ (2, 3)
    dark, matrix, out = (
        np.searchsorted(-DENSITY, -MIN_OD, side="right"),
        matrix.astype(np.float32),
        tiles.copy(),
    )
    for i, tile in enumerate(tiles):  # one by one: a tile fits the cache
        brightest = np.maximum(np.maximum(tile[:, :, 0], tile[:, :, 1]), tile[:, :, 2])
        changed[i] = (brightest < dark).mean() >= STAINED
        if changed[i]:
            light = np.exp(DENSITY.take(tile.reshape(-1, 3)) @ matrix)  # (h w, 3)
            out[i] = np.minimum(light * LIGHT + 0.5, 255).reshape(tile.shape)
    return out, changed


def stretch(tiles):
    """Tiles (n, h, w, 3) uint8, each channel of each tile shifted to begin at 0, then stretched to end at 255; a channel of
    one value becomes 0. How dark a tile was is lost, and glass in it or not decides what is white. [HE2RNA code]
    """
    low, high = (
        f((1, 2), keepdims=True).astype(np.float32) for f in (tiles.min, tiles.max)
    )  # (n, 1, 1, 3)
    return ((tiles - low) * (255 / np.maximum(high - low, 1)) + 0.5).astype(np.uint8)


def slide_stains(slide, coords, tile, px, seed):
    """The stains of a slide from a random sample of its tiles; result as macenko_stains, arguments as read_tiles.

    Of the slide, not of each tile: slides are stained as a whole, and a tile's extremes are those of its tissue. On eight
    real slides a tile's own stains lie up to 5 degrees from its slide's (medians) and its percentiles 3 to 26 %: on its
    own, stroma without nuclei would be painted with haematoxylin. 64 tiles come within 1 degree and 8 %. [ours]
    """
    pick = np.sort(np.random.default_rng(seed).permutation(len(coords))[:STAIN_TILES])
    pixels = [
        read_tiles(slide, coords[i : i + 1], tile, px)[0, ::4, ::4].reshape(-1, 3) for i in pick
    ]
    return macenko_stains(optical_density(np.concatenate(pixels)))


# Features: ResNet50  [HE2RNA Methods, Preprocessing: "2,048 features ... with a 50-layer ResNet pretrained on ImageNet"]
class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions around a shortcut. He et al. 2015; stride as in torchvision."""

    def __init__(self, n_in, width, stride):
        super().__init__()
        n_out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(n_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = (
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.conv3, self.bn3 = nn.Conv2d(width, n_out, 1, bias=False), nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride > 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x):  # (B, n_in, h, w)
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y)).relu_()
        y = self.bn3(self.conv3(y))
        return y.add_(x if self.downsample is None else self.downsample(x)).relu_()


class ResNet50(nn.Module):
    """ResNet50 up to its pooled features: (B, 3, 224, 224) normalised RGB -> (B, 2048); stages=3 -> (B, 1024).

    The state_dict has torchvision's names: 320 entries, 25,557,032 parameters with the classifier `fc`, which is kept
    so that published weights load as they are; features are what goes into it. stages=3 has neither layer4 nor fc.
    """

    def __init__(self, stages=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool, n_in = nn.MaxPool2d(3, 2, 1), 64
        for i, (blocks, width) in enumerate(list(zip((3, 4, 6, 3), (64, 128, 256, 512)))[:stages]):
            layer = [Bottleneck(n_in, width, 2 if i else 1)]
            layer += [Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)]
            n_in = 4 * width
            setattr(self, f"layer{i + 1}", nn.Sequential(*layer))
        self.n_features, self.stages = n_in, stages
        if stages == 4:
            self.fc = nn.Linear(n_in, 1000)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(
                    m.weight, mode="fan_out", nonlinearity="relu"
                )  # as torchvision

    def forward(self, x):  # (B, 3, H, W)
        x = self.maxpool(self.bn1(self.conv1(x)).relu_())  # (B, 64, H/4, W/4)
        x = x.to(self.layer1[0].conv1.weight.dtype)  # bfloat16 where prepare_encoder chose it
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return x.mean((2, 3), dtype=torch.float32)  # (B, D), summed in float32


def normalise(tiles, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """(b, px, px, 3) uint8 -> (b, 3, px, px) float32 as ImageNet weights want it; in memory the channels stay last."""
    mean, std = (torch.tensor(v, device=tiles.device).view(1, 3, 1, 1) for v in (mean, std))
    return (tiles.permute(0, 3, 1, 2).float() / 255 - mean) / std


# Super-tiles: k-means on location  [HE2RNA Methods, Preprocessing]
def plus_plus(points, k, rng):
    """k-means++ start, greedy: each next centre is the best of a few draws in proportion to the squared distance to the
    nearest centre so far. Arthur & Vassilvitskii 2007. points (n, d) -> (k, d), or all different points if fewer."""
    columns, picks = np.ascontiguousarray(points.T), [rng.integers(len(points))]
    d2 = sum((x - x[picks[0]]) ** 2 for x in columns)  # (n,)
    for _ in range(k - 1):
        chance = np.cumsum(d2)
        if chance[-1] == 0:  # every point is a centre
            break
        draws = np.searchsorted(chance, rng.random(KMEANS_DRAWS) * chance[-1], side="right").clip(
            max=len(points) - 1
        )
        trial = np.minimum(sum((x - x[draws, None]) ** 2 for x in columns), d2)  # (draws, n)
        best = trial.sum(1).argmin()
        d2 = trial[best]
        picks.append(draws[best])
    return points[picks]


def lloyd(points, centers):
    """Lloyd's iterations until the centres stand still: points (n, d), centers (k, d) -> (centers, labels (n,)).

    A point is asked for its nearest centre again only when it could have another: when its distance to its own, grown by
    that centre's move, may exceed the distance to the second, shrunk by the others' largest move (Hamerly 2010).
    """
    k, columns, labels = (
        len(centers),
        np.ascontiguousarray(points.T),
        np.zeros(len(points), np.int64),
    )
    own, second, ask = np.zeros(len(points)), np.zeros(len(points)), np.arange(len(points))
    still = 1e-4 * points.var(0).mean()  # of all squared moves, as scikit-learn
    for _ in range(300):
        distance, nearest = cKDTree(centers, balanced_tree=False, compact_nodes=False).query(
            points[ask], 2
        )
        labels[ask], own[ask], second[ask] = nearest[:, 0], distance[:, 0], distance[:, 1]
        size = np.bincount(labels, minlength=k)
        for empty in np.flatnonzero(size == 0):  # give it the point farthest from its own
            far = np.where(size[labels] > 1, own, -1).argmax()
            size[labels[far]] -= 1
            labels[far], size[empty], own[far], second[far] = empty, 1, 0, own[far]
        new = np.stack([np.bincount(labels, x, k) for x in columns], 1) / size[:, None]
        move = np.sqrt(((new - centers) ** 2).sum(1))  # (k,)
        others = np.where(
            np.arange(k) == move.argmax(), np.partition(np.append(move, 0), -2)[-2], move.max()
        )
        centers, own, second = new, own + move[labels], second - others[labels]
        if (move**2).sum() <= still:
            break
        ask = np.flatnonzero(own >= second)
    return centers, labels


def kmeans(points, k, seed):
    """k-means. points (n, d) -> (centers (k', d) float64, labels (n,) int), k' = min(k, number of different points).

    No cluster is empty, each centre is the mean of its points; one result per seed.
    Many points: the start is found on a random quarter of them, which saves most of the iterations. [ours]
    """
    points, rng = np.asarray(points, np.float64), np.random.default_rng(seed)
    assert points.ndim == 2 and len(points) > 0 and k > 0 and np.isfinite(points).all()
    few = points[np.sort(rng.permutation(len(points))[: len(points) // 4])]
    start = plus_plus(few, k, rng) if len(few) >= 10 * k else points[:0]
    if len(start) == k:
        return lloyd(points, lloyd(few, start)[0])
    return lloyd(points, plus_plus(points, k, rng))


def supertiles(features, coords, k=N_SUPERTILES, seed=0):
    """Average the features of the tiles in each of k clusters of tile locations.

    features (n, D), coords (n, 2), or None where nobody knows them: then k runs of neighbouring rows, as even as can be,
    since CLAM lists tiles column by column [ours]. Returns means (k, D) float32, mask (k,) bool (False: no such cluster,
    the row is 0), cluster of each tile (n,) int32. Fewer tiles than k: each is its own. [HE2RNA Methods, Preprocessing]
    The authors pad with rows of zeros and no mask [HE2RNA code]; a model then takes them for tissue.
    """
    n = len(features)
    assert coords is None or len(coords) == n
    means, mask = np.zeros((k, features.shape[1]), np.float32), np.zeros(k, bool)
    if n == 0:
        return means, mask, np.zeros(0, np.int32)
    labels = np.arange(n) * min(k, n) // n if coords is None else kmeans(coords, k, seed)[1]
    size = np.bincount(labels, minlength=k)
    member = sparse.csr_matrix((1 / size[labels], (labels, np.arange(n))), (k, n), dtype=np.float32)
    means[:] = member @ np.asarray(features, np.float32)  # (k, n) @ (n, D)
    return means, size > 0, labels.astype(np.int32)


def nearest(points, n):
    """For each pixel of an (n, n) map: the nearest point's number and distance (px); borders between points."""
    seed = np.zeros((n, n), np.int32)
    seed[points[:, 1].astype(int), points[:, 0].astype(int)] = 1 + np.arange(len(points))
    distance, (row, col) = ndimage.distance_transform_edt(seed == 0, return_indices=True)
    label = seed[row, col] - 1
    return label, distance, (label != np.roll(label, 1, 0)) | (label != np.roll(label, 1, 1))


if __name__ == "__main__":
    from lab.commands.options import run
    from lab.commands.tiling import main

    run(main)
