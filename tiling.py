"""From a whole-slide image to tile features and super-tiles.

What both papers do before they learn anything from RNA: find the tissue (Otsu), cut it into square tiles of a fixed
size in micrometres, describe each tile with a ResNet50, and average neighbouring tiles into 100 super-tiles (k-means
on location). The file reads in that order; the commands stand at its end.

  HE2RNA    Schmauch et al., "A deep learning model to predict RNA-Seq expression of tumours from whole slide images",
            Nature Communications 11:3877 (2020), doi:10.1038/s41467-020-17678-4 (preprint bioRxiv 760173)
  HistCode  the self-supervised contrastive framework for differential gene expression (2022)

    python tiling.py doctor COHORT        what is seen in each slide: mpp and its source, level, threshold, tiles, memory
    python tiling.py features COHORT      tiles/<slide>.npz and .png, features/resnet50/<slide>.npy (what is missing)
    python tiling.py supertiles COHORT    supertiles/resnet50/<slide>.npz
    python tiling.py simulate FOLDER      a simulated cohort with known truth

COHORT is a folder with slides/ (anything OpenSlide reads, or .png/.jpg) and, if there is one, samples.csv. A step makes
what is missing and skips what is there; what was made with other settings is made anew, and that is said.

Glossary: n tiles, D features, k super-tiles, d downsample of a level; mpp µm per pixel at level 0; H, W pixels.
Tags: [HE2RNA ...] and [HistCode ...] the papers, [... code] only the authors' released code, [ours] our choice.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import signal
import sys
import threading
import time
import zipfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import numpy as np
import openslide
import torch
from PIL import Image, ImageDraw
from scipy import ndimage, sparse
from scipy.spatial import cKDTree
from torch import nn

# ---------------------------------------------------------------------------------------------------------------------
# Constants
# ---------------------------------------------------------------------------------------------------------------------
TILE_UM = 112.0               # edge of a tile, µm                      [HE2RNA Methods, Preprocessing]
TILE_PX = 224                 # edge of a tile as the network sees it   [HE2RNA Methods, Preprocessing]
MAX_TILES = 8000              # tiles per slide, a random sample        [HE2RNA Methods, Preprocessing]
N_SUPERTILES = 100            # k-means clusters per slide              [HE2RNA Methods, Preprocessing]
MIN_TISSUE = 0.5              # share of a tile that must be tissue; the paper says "containing tissue"    [ours]
THUMBNAIL_UM = 8.0            # µm per pixel of the picture on which tissue is found                       [ours]
SMOOTH_PX = 2.0               # Gaussian sigma there: 16 µm, so that nuclei and stroma are one tissue      [ours]
OD_OFFSET = 8.0               # grey levels added before the logarithm: noise of black pixels is no stain  [ours]
WHITE_PERCENTILE = 95         # of each channel: the colour of the empty slide                             [ours]
BLACK_LEVEL = 50              # brightest channel below it: scanner border, black pen                      [ours]
STAIN_FLOOR = 0.03            # the Otsu threshold stays in this range of stain (optical density), so that [ours]
STAIN_CEILING = 0.08          #   an empty slide gives no tissue and pale stroma is not lost to dark nuclei
MPP_RANGE = (0.05, 20.0)      # µm per pixel that a microscope slide can have                              [ours]
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1, torchvision's normalisation, as the weights need  [ours]
IMAGENET_STD = (0.229, 0.224, 0.225)   #   (the authors' Keras weights want BGR minus mean)                [HE2RNA code]
IMAGENET_URL = "https://download.pytorch.org/models/resnet50-0676ba61.pth"   # torchvision's IMAGENET1K_V1 [ours]
RUN_TILES = 16                # neighbouring tiles read in one go: each JPEG block is decoded once         [ours]
STRIP_PIXELS = 2 ** 24        # pixels read at once for a thumbnail, so that a one-level slide fits memory [ours]
BATCH = {"cpu": 8, "cuda": 256}        # tiles per pass; on a CPU 8 stay in its cache: 88 tiles/s against 59 for 64
SLIDE_ENDINGS = (".svs .tif .tiff .ndpi .mrxs .scn .vms .vmu .bif .svslide .dcm .png .jpg .jpeg").split()
ENCODERS = {"resnet50": 4, "resnet50-stage3": 3}      # name -> stages; stage 3 (1,024) is HistCode's cut


class InputError(ValueError):
    """Something the user can mend: shown as one line, exit status 2."""


# ---------------------------------------------------------------------------------------------------------------------
# Files: atomic, and keyed by the settings that made them
# ---------------------------------------------------------------------------------------------------------------------
def save_file(path, write):
    """Write a file beside its place with write(open file) and rename it: it is whole or not there. [ours]"""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(beside, "wb") as f:
            write(f)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save_json(path, value):
    save_file(path, lambda f: f.write(json.dumps(value, indent=1).encode()))


def save_csv(path, header, rows):
    def write(f):
        text = io.TextIOWrapper(f, encoding="utf-8", newline="")
        csv.writer(text, lineterminator="\n").writerows([header])
        csv.writer(text, lineterminator="\n").writerows(rows)
        text.detach()
    save_file(path, write)


def load_json(path):
    """The file's value, or None when it is not there or not whole."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None


def load_arrays(path):
    """All arrays of an .npz as a dict (no pickles), or None when it is not there or not whole."""
    try:
        with np.load(path, allow_pickle=False) as z:
            return {name: z[name] for name in z.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def read_samples(cohort):
    """samples.csv as a list of dicts in file order. Raises InputError on what can't be meant.

    Columns: slide (file name without its ending), patient, project; optional sample, sample_type, mpp, any labels.
    """
    path = Path(cohort) / "samples.csv"
    if not path.is_file():
        raise InputError(f"{path} is missing: a table with the columns slide,patient,project")
    with open(path, newline="", encoding="utf-8-sig") as f:
        reader = csv.DictReader(f)
        rows = [{k: (v or "").strip() for k, v in row.items() if k} for row in reader if any(row.values())]
    missing = [c for c in ("slide", "patient", "project") if c not in (reader.fieldnames or [])]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; it has {', '.join(reader.fieldnames or ['nothing'])}")
    seen = set()
    for line, row in enumerate(rows, 2):
        for column in ("slide", "patient", "project"):
            if not row[column]:
                raise InputError(f"{path} line {line}: empty {column}")
        if row["slide"] in seen:
            raise InputError(f"{path} line {line}: slide {row['slide']} stands there twice")
        if Path(row["slide"]).name != row["slide"] or row["slide"] in (".", ".."):
            raise InputError(f"{path} line {line}: slide {row['slide']} is a path; give the file name without its ending")
        seen.add(row["slide"])
    if not rows:
        raise InputError(f"{path}: no rows")
    return rows


def find_slides(cohort):
    """{slide id: path} of COHORT/slides, or of the folder itself, or of one slide file."""
    cohort = Path(cohort)
    folder = cohort / "slides" if (cohort / "slides").is_dir() else cohort
    if not folder.exists():
        raise InputError(f"{folder}: no such folder or slide")
    files = [cohort] if cohort.is_file() else sorted(p for p in folder.iterdir() if p.is_file())
    found = {}
    for p in files:
        if p.suffix.lower() in SLIDE_ENDINGS and not p.name.startswith("."):
            if p.stem in found:
                raise InputError(f"{folder}: {found[p.stem].name} and {p.name} are both slide {p.stem}; rename one")
            found[p.stem] = p
    return found


def ordered_map(function, jobs, workers):
    """(job, result or exception) in the order of the jobs; `workers` threads work ahead of the reader.

    Threads are enough: OpenSlide and Pillow release Python's lock. The order, hence every result, does not depend on
    their number. [ours]
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        ahead, jobs = deque(), iter(jobs)
        try:
            while True:
                while len(ahead) < 2 * workers + 2 and (job := next(jobs, None)) is not None:
                    ahead.append((job, pool.submit(function, job)))
                if not ahead:
                    return
                job, future = ahead.popleft()
                yield job, future.exception() or future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def progress(what, total, unit):
    """A function tick(n) that shows how far a long loop is: one line on a terminal, one a minute in a log file."""
    start, done, shown = time.time(), [0], [time.time() if not sys.stderr.isatty() else 0.0]

    def tick(n=1):
        done[0] += n
        now, last = time.time(), done[0] >= total
        if now - shown[0] > (0.5 if sys.stderr.isatty() else 60) or (last and n):
            shown[0], rate = now, done[0] / max(now - start, 1e-9)
            end = "\n" if last or not sys.stderr.isatty() else "\r"
            left = clock(0 if last else (total - done[0]) / max(rate, 1e-9))
            print(f"{what}: {done[0]:,}/{total:,} {unit}, {rate:.1f}/s, {left} left   ", end=end, file=sys.stderr,
                  flush=True)
    return tick


def clock(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


# ---------------------------------------------------------------------------------------------------------------------
# Slide
# ---------------------------------------------------------------------------------------------------------------------
def open_slide(path):
    """The slide, by OpenSlide (plain images by Pillow). Raises InputError with the file's name when it can't be read."""
    try:
        return openslide.open_slide(str(path))
    except Exception as e:      # OpenSlide, Pillow and the file system each have their own errors
        raise InputError(f"{path}: not a readable slide ({e or type(e).__name__})") from None


def slide_mpp(slide, given, name):
    """(µm per pixel at level 0, its source): the slide's own properties, else `given` (samples.csv or --mpp).

    There is no guess from the magnification: 20x is 0.5 on one scanner and 0.46 on another. [ours]
    """
    mends = "an mpp column in samples.csv, --mpp for all slides without one, or the right value in the file itself"
    own = []
    for axis in "xy":
        try:
            own.append(float(slide.properties.get(f"openslide.mpp-{axis}", "")))
        except ValueError:
            pass
    sane = [m for m in own if MPP_RANGE[0] <= m <= MPP_RANGE[1]]
    if len(sane) == 2 and max(sane) <= 1.05 * min(sane):
        return float(np.mean(sane)), "slide"
    if given is not None:
        if not MPP_RANGE[0] <= given <= MPP_RANGE[1]:
            raise InputError(f"slide {name}: mpp {given:g} is outside {MPP_RANGE[0]}-{MPP_RANGE[1]} µm per pixel; "
                             f"mend: {mends}")
        return float(given), "given"
    if own:
        raise InputError(f"slide {name}: its file says {' and '.join(f'{m:g}' for m in own)} µm per pixel, which can't "
                         f"be (one value per axis, equal, {MPP_RANGE[0]}-{MPP_RANGE[1]}); mend: {mends}")
    power = slide.properties.get("openslide.objective-power")
    raise InputError(f"slide {name}: no µm per pixel in the file{f' (objective {power}x)' if power else ''}; mend: {mends}")


def best_level(slide, downsample):
    """(level, its downsample): the smallest picture that still has all the detail wanted, so it is only ever reduced."""
    ds = slide.level_downsamples
    level = max((i for i in range(len(ds)) if ds[i] <= downsample * 1.01), key=lambda i: ds[i], default=0)
    return level, ds[level]


def read_rgba(slide, level, x, y, w, h):
    """w x h pixels of a level from its pixel (x, y), RGBA."""
    d = slide.level_downsamples[level]
    return slide.read_region((round(x * d), round(y * d)), level, (w, h))


def thumbnail(slide, mpp):
    """The whole slide at THUMBNAIL_UM per pixel: (rgb (h, w, 3) uint8 on white, opaque (h, w) bool).

    Read in strips, so that a slide with only level 0 needs little memory; exact box average.
    """
    W, H = slide.dimensions
    scale = max(1.0, THUMBNAIL_UM / mpp)
    w, h = max(1, round(W / scale)), max(1, round(H / scale))
    level, _ = best_level(slide, scale)
    lw, lh = slide.level_dimensions[level]
    rows = max(1, int(STRIP_PIXELS / (lw * lh / h)))
    out = np.empty((h, w, 4), np.uint8)
    for r in range(0, h, rows):
        top, bottom = r * lh / h, min(h, r + rows) * lh / h                    # level rows of this strip
        first = int(top)
        strip = read_rgba(slide, level, 0, first, lw, min(lh, int(np.ceil(bottom))) - first)
        box = (0, top - first, lw, min(bottom - first, strip.height))
        out[r:r + rows] = strip.resize((w, min(h, r + rows) - r), Image.Resampling.BOX, box)
    opaque = out[:, :, 3] >= 128                                               # (h, w)
    return np.where(opaque[:, :, None], out[:, :, :3], 255).astype(np.uint8), opaque


# ---------------------------------------------------------------------------------------------------------------------
# Tissue: Otsu  [HE2RNA Methods, Preprocessing: "used the Otsu algorithm to select only those containing tissue"]
# ---------------------------------------------------------------------------------------------------------------------
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
    w0 = np.cumsum(counts)                                                     # pixels at or below the bin  (256,)
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

    rgb (h, w, 3) uint8 at about 8 µm per pixel. Optical density of each channel against the colour of the empty slide,
    largest minus smallest channel: uneven or grey light dims all channels alike and cancels, a tinted glass is divided
    out, haematoxylin and eosin remain. The papers name Otsu but not its image. [ours]
    """
    x = ndimage.uniform_filter(rgb.astype(np.float32), (3, 3, 0))              # sensor and JPEG noise
    ok = x.max(2) >= BLACK_LEVEL
    ok &= True if valid is None else valid
    if not ok.any():
        return np.zeros(rgb.shape[:2], np.float32)
    white = np.percentile(x[ok], WHITE_PERCENTILE, axis=0)                     # (3,)
    od = -np.log10((x + OD_OFFSET) / (white + OD_OFFSET))                      # (h, w, 3)
    ok &= ~ndimage.binary_dilation(pen_mask(x), iterations=3)                  # ink bleeds into its rim
    stain = np.where(ok, od.max(2) - od.min(2), 0)
    return ndimage.gaussian_filter(stain, SMOOTH_PX).astype(np.float32) * ok


def pen_mask(rgb):
    """Marker ink: hues H&E does not have (green, cyan), and blues and reds purer than any dye. (h, w) bool [ours]"""
    r, g, b = np.moveaxis(np.asarray(rgb, np.float32), 2, 0)
    top, chroma = np.max((r, g, b), 0), np.ptp((r, g, b), 0)
    c = np.maximum(chroma, 1e-6)
    hue = 60 * np.where(top == r, ((g - b) / c) % 6, np.where(top == g, (b - r) / c + 2, (r - g) / c + 4))   # degrees
    pure = chroma / np.maximum(top, 1)                                         # HSV saturation 0..1
    green = (hue > 65) & (hue < 215) & (pure > .25)
    return (green | ((hue >= 215) & (hue < 262) & (pure > .7)) | (((hue > 345) | (hue < 20)) & (pure > .75))) & (chroma > 25)


def tissue_threshold(stain):
    """Otsu on the square root of the stain, squared again, kept in [STAIN_FLOOR, STAIN_CEILING].

    Stain is skewed: plain Otsu cuts between pale stroma and dark nuclei, its root between glass and tissue. [ours]
    """
    return float(np.clip(otsu_threshold(np.sqrt(stain)) ** 2, STAIN_FLOOR, STAIN_CEILING)) if stain.size else STAIN_CEILING


def tissue_mask(rgb, valid=None):
    """(h, w) bool, True on tissue, of a thumbnail (h, w, 3) uint8 at about 8 µm per pixel; `valid` (h, w) bool marks
    what was scanned. Background (white, grey, tinted, unevenly lit), pen, black borders and holes are not tissue."""
    valid = np.ones(rgb.shape[:2], bool) if valid is None else valid
    stain = stain_map(rgb, valid)
    return (stain > tissue_threshold(stain[valid])) & valid


# ---------------------------------------------------------------------------------------------------------------------
# Tiles
# ---------------------------------------------------------------------------------------------------------------------
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
    area = np.pad(mask.astype(float).cumsum(0).cumsum(1), ((1, 0), (1, 0)))    # summed-area table   (h + 1, w + 1)
    y, x = np.meshgrid(np.arange(ny + 1) * tile * h / H, np.arange(nx + 1) * tile * w / W, indexing="ij")
    s = ndimage.map_coordinates(area, [np.minimum(y, h), np.minimum(x, w)], order=1)   # exact between pixels
    share = (s[1:, 1:] - s[1:, :-1] - s[:-1, 1:] + s[:-1, :-1]) / (tile * h / H * tile * w / W)  # (ny, nx)
    iy, ix = np.nonzero((share >= min_tissue - 1e-9) & (share > 1e-9))
    coords = np.stack([ix * tile, iy * tile], 1).astype(np.int32)              # floor: the tile stays inside
    if max_tiles and len(coords) > max_tiles:
        coords = coords[np.sort(np.random.default_rng(seed).permutation(len(coords))[:max_tiles])]
    return coords


def find_tiles(path, name, settings):
    """(what tiles/<slide>.npz holds as a dict of arrays, its picture) of one slide."""
    slide = open_slide(path)
    mpp, _ = slide_mpp(slide, settings["mpp"], name)
    tile = settings["tile_um"] / mpp
    rgb, opaque = thumbnail(slide, mpp)
    stain = stain_map(rgb, opaque)
    threshold = tissue_threshold(stain[opaque])
    mask = (stain > threshold) & opaque
    coords = tile_grid(mask, slide.dimensions, tile, settings["min_tissue"], None)
    n = len(coords)
    if n > settings["max_tiles"]:
        coords = tile_grid(mask, slide.dimensions, tile, settings["min_tissue"], settings["max_tiles"], settings["seed"])
    arrays = dict(coords=coords, tile=np.float64(tile), mpp=np.float64(mpp), threshold=np.float64(threshold),
                  size=np.array(slide.dimensions, np.int64), tissue=np.float64(mask.mean()), found=np.int64(n),
                  settings=np.array(json.dumps(settings)))
    return arrays, draw_tiles(rgb, mask, coords, tile, slide.dimensions)


def draw_tiles(rgb, mask, coords, tile, size):
    """The thumbnail with the outline of the tissue (green) and the grid of kept tiles (blue), a PIL image."""
    rgb = rgb.copy()
    rgb[mask ^ ndimage.binary_erosion(mask)] = (0, 158, 115)
    image = Image.fromarray(rgb)
    grow = max(1, round(600 / max(image.size)))
    image = image.resize((image.width * grow, image.height * grow), Image.Resampling.NEAREST)
    pen, s = ImageDraw.Draw(image), image.width / size[0]
    for x, y in coords:
        pen.rectangle([x * s, y * s, (x + tile) * s, (y + tile) * s], outline=(0, 114, 178))
    return image


def tile_runs(coords, tile):
    """[(first, last + 1)] rows of the list that lie side by side, at most RUN_TILES together."""
    runs, start = [], 0
    for i in range(1, len(coords) + 1):
        side_by_side = i < len(coords) and coords[i][1] == coords[i - 1][1] and coords[i][0] - coords[i - 1][0] <= tile + 1
        if not side_by_side or i - start == RUN_TILES:
            runs.append((start, i))
            start = i
    return runs


def read_tiles(slide, coords, tile, px=TILE_PX):
    """Tiles lying side by side, (n, px, px, 3) uint8: read once, each cut out and resampled once (Lanczos, antialiased).

    coords (n, 2) level-0 top-left of one run of tile_runs; tile: edge in level-0 pixels. What was never scanned is white.
    A tile's pixels depend on that tile alone, not on its neighbours in the run.
    """
    level, d = best_level(slide, tile / px)
    x0, y0 = int(coords[0][0] / d), int(coords[0][1] / d)
    w, h = int(np.ceil((coords[-1][0] + tile) / d)) - x0, int(np.ceil((coords[0][1] + tile) / d)) - y0
    region = read_rgba(slide, level, x0, y0, w, h)
    if region.getextrema()[3][0] < 255:
        region = Image.alpha_composite(Image.new("RGBA", region.size, "white"), region)
    region, out = region.convert("RGB"), np.empty((len(coords), px, px, 3), np.uint8)
    for i, (x, y) in enumerate(coords):
        left, top = x / d - x0, y / d - y0
        cut = region.crop((int(left), int(top), int(np.ceil(left + tile / d)), int(np.ceil(top + tile / d))))
        left, top = left - int(left), top - int(top)
        box = (left, top, min(left + tile / d, cut.width), min(top + tile / d, cut.height))
        out[i] = cut.resize((px, px), Image.Resampling.LANCZOS, box)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Features: ResNet50  [HE2RNA Methods, Preprocessing: "2,048 features ... with a 50-layer ResNet pretrained on ImageNet"]
# ---------------------------------------------------------------------------------------------------------------------
class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions around a shortcut. He et al. 2015; stride as in torchvision."""

    def __init__(self, n_in, width, stride):
        super().__init__()
        n_out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(n_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, n_out, 1, bias=False), nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride > 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):                                                      # (B, n_in, h, w)
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
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")   # as torchvision

    def forward(self, x):                                                      # (B, 3, H, W)
        x = self.maxpool(self.bn1(self.conv1(x)).relu_())                      # (B, 64, H/4, W/4)
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return x.mean((2, 3))                                                  # (B, D)


def fold_batchnorm(net):
    """Put each BatchNorm's fixed scale and shift into the convolution before it; same function, fewer passes. In place.

    BN(Wx) = g (Wx - mean) / sqrt(var + eps) + b = (g / sqrt(var + eps)) W x + (b - g mean / sqrt(var + eps))
    """
    def fold(conv, bn):
        scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
        conv.bias = nn.Parameter(bn.bias - bn.running_mean * scale)

    with torch.no_grad():
        for m in net.modules():
            for i in (1, 2, 3):
                if isinstance(getattr(m, f"bn{i}", None), nn.BatchNorm2d):
                    fold(getattr(m, f"conv{i}"), getattr(m, f"bn{i}"))
                    setattr(m, f"bn{i}", nn.Identity())
            if getattr(m, "downsample", None) is not None:
                fold(m.downsample[0], m.downsample[1])
                m.downsample[1] = nn.Identity()
    return net


def weights_identity(weights, seed):
    """What says which weights these are, for the settings of features and for reports. Cheap: nothing is loaded."""
    if weights == "random":
        return f"random, seed {seed}"
    if weights == "imagenet":
        return f"imagenet {Path(IMAGENET_URL).stem}"
    try:
        return f"{Path(weights).name} sha256 {hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:16]}"
    except OSError as e:
        raise InputError(f"--weights {weights}: {e.strerror}; it takes imagenet, random or a file") from None


def load_weights(stages, weights, seed):
    """ResNet50 with its weights: imagenet (fetched once, its hash checked), random (seeded), or a state_dict file."""
    torch.manual_seed(seed)
    net = ResNet50(stages)
    if weights == "random":
        return net
    try:
        if weights == "imagenet":
            state = torch.hub.load_state_dict_from_url(IMAGENET_URL, map_location="cpu", check_hash=True, weights_only=True)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as e:      # the network's, torch's and pickle's errors share no class
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(IMAGENET_URL).name
        raise InputError(f"--weights imagenet: {IMAGENET_URL} can't be had ({why}); fetch it elsewhere and put it at {place}, "
                         "or pass --weights FILE, or --weights random to try the program out" if weights == "imagenet" else
                         f"--weights {weights}: not a file of weights ({why}); give a torchvision resnet50 state_dict") from None
    wanted = {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    state = {k: v for k, v in state.items() if k in wanted} if isinstance(state, dict) else {}
    bad = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
    if bad:
        raise InputError(f"--weights {weights}: {len(bad)} of {len(wanted)} entries are missing or of another shape, first "
                         f"{bad[0]}; give a torchvision resnet50 state_dict")
    net.load_state_dict(state, strict=False)                                   # all but fc, which features don't use
    return net


def pick_device(name="auto"):
    """auto: the GPU when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        return device
    except Exception as e:
        raise InputError(f"--device {name}: not to be had here ({str(e).splitlines()[0]}); try --device auto") from None


def pick_precision(name, device):
    """auto: bfloat16 where the processor multiplies it in hardware (features within 1 %), else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has = torch.cpu.get_capabilities()
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else "float32"


def prepare_encoder(net, device, precision):
    """The network as it runs fastest: BatchNorm folded, channels last, in bfloat16 where asked. In place."""
    net = fold_batchnorm(net.eval()).requires_grad_(False)
    return net.to(device, getattr(torch, precision), memory_format=torch.channels_last)


def rebatch(chunks, size):
    """Arrays laid end to end and cut into pieces of `size` rows, the last one smaller."""
    kept = []
    for chunk in chunks:
        kept.append(chunk)
        if sum(map(len, kept)) >= size:
            rows = np.concatenate(kept)
            whole = len(rows) // size * size
            yield from (rows[i:i + size] for i in range(0, whole, size))
            kept = [rows[whole:]]
    if sum(map(len, kept)):
        yield np.concatenate(kept)


@torch.inference_mode()
def encode(net, chunks):
    """Features of a slide's tiles by a prepared encoder: iterable of (m, px, px, 3) uint8 -> (n, D) float16 numpy.

    The result depends on the tiles alone, not on how they were cut into chunks.
    """
    weight, out = next(net.parameters()), [np.zeros((0, net.n_features), np.float16)]
    mean, std = (torch.tensor(v, device=weight.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    for tiles in rebatch(chunks, BATCH[weight.device.type]):
        x = torch.from_numpy(tiles).to(weight.device).permute(0, 3, 1, 2)                              # (b, 3, px, px)
        x = ((x.float() / 255 - mean) / std).to(weight.dtype, memory_format=torch.channels_last)
        out.append(net(x).float().clamp(-65504, 65504).half().cpu().numpy())                           # (b, D)
    return np.concatenate(out)


# ---------------------------------------------------------------------------------------------------------------------
# Super-tiles: k-means on location  [HE2RNA Methods, Preprocessing]
# ---------------------------------------------------------------------------------------------------------------------
def kmeans(points, k, seed):
    """Lloyd's k-means from a k-means++ start. points (n, d) -> (centers (k', d) float64, labels (n,) int).

    k' = min(k, number of different points); no cluster is empty; the same seed gives the same result.
    Start: Arthur & Vassilvitskii 2007, of a few candidates the one that helps most, as scikit-learn does. [ours]
    """
    points = np.asarray(points, np.float64)
    assert points.ndim == 2 and len(points) > 0 and np.isfinite(points).all()
    rng = np.random.default_rng(seed)
    different, labels = np.unique(points, axis=0, return_inverse=True)
    if len(different) <= k:
        return different, labels.ravel()
    tries = 2 + int(np.log(k))
    centers = points[rng.integers(len(points))][None]
    d2 = ((points - centers[0]) ** 2).sum(1)                                   # to the nearest centre so far   (n,)
    for _ in range(k - 1):
        picks = np.searchsorted(np.cumsum(d2), rng.random(tries) * d2.sum(), side="right").clip(max=len(points) - 1)
        trial = np.minimum(d2, ((points[picks, None] - points[None]) ** 2).sum(2))     # (tries, n)
        best = trial.sum(1).argmin()
        d2, centers = trial[best], np.vstack([centers, points[picks[best]]])
    for _ in range(300):
        distance, labels = cKDTree(centers).query(points)
        size = np.bincount(labels, minlength=k)
        for empty in np.flatnonzero(size == 0):                                # give it the point farthest from its own
            far = np.where(size[labels] > 1, distance, -1).argmax()
            size[labels[far]] -= 1
            labels[far], size[empty], distance[far] = empty, 1, 0
        new = np.stack([np.bincount(labels, x, k) for x in points.T], 1) / size[:, None]
        shift, centers = ((new - centers) ** 2).sum(), new
        if shift <= 1e-4 * points.var(0).mean():                               # scikit-learn's rule
            break
    return centers, labels


def supertiles(features, coords, k=N_SUPERTILES, seed=0):
    """Average the features of the tiles in each of k clusters of tile locations.

    features (n, D), coords (n, 2). Returns means (k, D) float32, mask (k,) bool (False: no such cluster, the row is 0),
    cluster of each tile (n,) int32. Fewer tiles than k: each is its own. [HE2RNA Methods, Preprocessing]
    The authors pad with rows of zeros and no mask [HE2RNA code]; a model then takes them for tissue.
    """
    assert len(features) == len(coords)
    means, mask = np.zeros((k, features.shape[1]), np.float32), np.zeros(k, bool)
    if len(coords) == 0:
        return means, mask, np.zeros(0, np.int32)
    _, labels = kmeans(coords, k, seed)
    size = np.bincount(labels, minlength=k)
    member = sparse.csr_matrix((1 / size[labels], (labels, np.arange(len(labels)))), (k, len(labels)), dtype=np.float32)
    means[:] = member @ np.asarray(features, np.float32)                       # (k, n) @ (n, D)
    return means, size > 0, labels.astype(np.int32)


# ---------------------------------------------------------------------------------------------------------------------
# The three steps over a cohort. Each makes what is missing and returns {slide: why it failed}; the others go on.
# ---------------------------------------------------------------------------------------------------------------------
def settle(path, asked, default):
    """Settings of a folder of results: what is asked for, else what its settings.json says, else the default.

    So a later command without options goes on as the folder was begun, and other settings are never mixed in. [ours]
    """
    before = load_json(path) or {}
    now = {k: asked[k] if asked.get(k) is not None else before.get(k, v) for k, v in default.items()}
    changed = [f"{k} {before[k]} -> {v}" for k, v in now.items() if before.get(k, v) != v]
    if changed:
        print(f"{path.parent}: made anew with other settings: {', '.join(changed)}")
    return now


def tile_settings(cohort, o):
    for name, value, low, high in (("--tile-um", o.tile_um, 1, 1e4), ("--min-tissue", o.min_tissue, 0, 1),
                                   ("--max-tiles", o.max_tiles, 1, 1e9), ("--mpp", o.mpp, *MPP_RANGE)):
        if value is not None and not low <= value <= high:
            raise InputError(f"{name} {value}: must lie between {low:g} and {high:g}")
    asked = dict(tile_um=o.tile_um, min_tissue=o.min_tissue, max_tiles=o.max_tiles, seed=o.tile_seed)
    return settle(Path(cohort) / "tiles" / "settings.json", asked,
                  dict(tile_um=TILE_UM, min_tissue=MIN_TISSUE, max_tiles=MAX_TILES, seed=o.seed))


def given_mpp(cohort, o):
    """slide -> mpp of samples.csv, else of --mpp; used where the slide itself has none."""
    given = {}
    if (Path(cohort) / "samples.csv").is_file():
        for row in read_samples(cohort):
            try:
                given[row["slide"]] = float(row["mpp"]) if row.get("mpp") else None
            except ValueError:
                raise InputError(f"{Path(cohort) / 'samples.csv'}: mpp {row['mpp']!r} of slide {row['slide']} is not a "
                                 "number (µm per pixel, such as 0.25)") from None
    return lambda slide: given.get(slide) if given.get(slide) is not None else o.mpp


def tiles_of(cohort, name):
    """(arrays of tiles/<slide>.npz, the settings that made them), or (None, None)."""
    arrays = load_arrays(Path(cohort) / "tiles" / f"{name}.npz")
    return (arrays, json.loads(str(arrays["settings"]))) if arrays and "settings" in arrays else (None, None)


def make_tiles(cohort, slides, o):
    """tiles/<slide>.npz (coords (n, 2) int32, tile and slide size, mpp, threshold, settings) and its picture .png."""
    cohort, found, failed, jobs = Path(cohort), find_slides(cohort), {}, []
    shared, mpp = tile_settings(cohort, o), given_mpp(cohort, o)
    for name in slides:
        if name not in found:
            failed[name] = f"no file {name}.* in {cohort / 'slides'}"
            continue
        settings = dict(shared, mpp=mpp(name), file=found[name].name, bytes=found[name].stat().st_size)
        old, was = tiles_of(cohort, name)
        if was and len(old["coords"]) == old["found"]:                         # nothing was sampled: the seed is idle
            was["seed"] = settings["seed"]
        if was != settings:
            jobs.append((name, settings))
    if jobs:
        save_json(cohort / "tiles" / "settings.json", shared)
    tick = progress("tiles", len(jobs), "slides")
    for (name, settings), got in ordered_map(lambda job: find_tiles(found[job[0]], *job), jobs, o.workers):
        tick()
        if isinstance(got, Exception):
            failed[name] = str(got) or type(got).__name__
            continue
        arrays, picture = got
        if arrays["mpp"] > shared["tile_um"] / TILE_PX * 1.01:
            print(f"slide {name}: {arrays['mpp']:.3f} µm per pixel is coarser than the {shared['tile_um'] / TILE_PX:g} wanted: "
                  "read at level 0 and resampled up")
        save_file(cohort / "tiles" / f"{name}.png", lambda f: picture.save(f, "PNG"))
        save_file(cohort / "tiles" / f"{name}.npz", lambda f: np.savez(f, **arrays))
    for name in slides:
        if name not in failed and len(tiles_of(cohort, name)[0]["coords"]) == 0:
            failed[name] = (f"no {shared['tile_um']:g} µm tile is {shared['min_tissue']:.0%} tissue: an empty slide, or "
                            "--min-tissue is too high")
    return failed


def make_features(cohort, slides, o):
    """features/<encoder>/<slide>.npy (n, D) float16; the .json beside it says which settings made it."""
    cohort = Path(cohort)
    folder, found, failed = cohort / "features" / o.encoder, find_slides(cohort), make_tiles(cohort, slides, o)
    device = pick_device(o.device)
    settings = settle(folder / "settings.json",
                      dict(weights=o.weights, precision=o.precision and pick_precision(o.precision, device), seed=o.tile_seed),
                      dict(weights="imagenet", precision=pick_precision("auto", device), seed=o.seed))
    identity, jobs, made_by = weights_identity(settings["weights"], settings["seed"]), [], {}
    for name in [s for s in slides if s not in failed]:
        tiles, by = tiles_of(cohort, name)
        made_by[name] = dict(encoder=o.encoder, weights=identity, precision=settings["precision"], tiles=by)
        if load_json(folder / f"{name}.json") != made_by[name] or not (folder / f"{name}.npy").is_file():
            tile = float(tiles["tile"])
            jobs += [(name, tile, tiles["coords"][a:b]) for a, b in tile_runs(tiles["coords"], tile)]
    if not jobs:
        return failed
    net = prepare_encoder(load_weights(ENCODERS[o.encoder], settings["weights"], settings["seed"]), device,
                          settings["precision"])
    save_json(folder / "settings.json", settings)
    tick, current = progress(f"features {o.encoder}", sum(len(c) for _, _, c in jobs), "tiles"), threading.local()

    def read(job):                                                             # each thread keeps one slide open
        if getattr(current, "name", None) != job[0]:
            current.name, current.slide = job[0], open_slide(found[job[0]])
        return read_tiles(current.slide, job[2], job[1])

    def chunks(group):
        for (_, _, coords), tiles in group:
            tick(len(coords))
            if isinstance(tiles, Exception):
                raise tiles
            yield tiles

    for name, group in groupby(ordered_map(read, jobs, o.workers), key=lambda item: item[0][0]):
        try:
            done = encode(net, chunks(group))
        except (InputError, OSError, openslide.OpenSlideError) as e:
            failed[name] = f"{found[name].name} can't be read to its end ({e})"
            continue
        (folder / f"{name}.json").unlink(missing_ok=True)                      # never an old label on new features
        save_file(folder / f"{name}.npy", lambda f: np.save(f, done))
        save_json(folder / f"{name}.json", made_by[name])
    return failed


def load_features(cohort, source, name):
    """(features (n, D) float16, memory-mapped where ours; coords (n, 2); the settings that made them) of one slide.

    source: an encoder's name (features/<encoder>/ of the cohort), or a folder of CLAM/TRIDENT .h5 files with `features`
    (n, D) or (1, n, D) and `coords`. Raises InputError on what is missing, of the wrong shape, or not finite.
    """
    if source in ENCODERS:
        folder = Path(cohort) / "features" / source
        tiles, _ = tiles_of(cohort, name)
        path, made_by = folder / f"{name}.npy", load_json(folder / f"{name}.json")
        features, coords = np.load(path, mmap_mode="r", allow_pickle=False), tiles["coords"]
    else:
        try:
            import h5py
        except ImportError:
            raise InputError("reading .h5 features needs the package h5py: pip install h5py") from None
        path = Path(source) / f"{name}.h5"
        if not path.is_file():
            raise InputError(f"no file {path}")
        try:
            with h5py.File(path) as f:
                features, coords = f["features"][()], f["coords"][()]
        except (OSError, KeyError) as e:
            raise InputError(f"{path}: not a CLAM/TRIDENT file with `features` and `coords` ({e})") from None
        features = features[0] if features.ndim == 3 and len(features) == 1 else features
        coords = coords[0] if coords.ndim == 3 and len(coords) == 1 else coords
        made_by = dict(file=str(path.resolve()), bytes=path.stat().st_size, changed=path.stat().st_mtime_ns)
    if features.ndim != 2 or coords.shape != (len(features), 2):
        raise InputError(f"{path}: features {features.shape} and coords {coords.shape} don't fit; wanted (n, D) and (n, 2)")
    if len(features) == 0:
        raise InputError(f"{path}: no tiles")
    if not np.isfinite(features).all():
        raise InputError(f"{path}: NaN or infinite feature in tile {np.argmin(np.isfinite(features).all(1))}")
    return features, coords, made_by


def source_name(o):
    """The folder name under supertiles/: the encoder's, or that of the .h5 folder."""
    return Path(o.features).resolve().name if o.features else o.encoder


def made_by(cohort, o, slides):
    """Where the super-tiles of a run come from, for its config and report: encoder, weights, precision, tile size."""
    if o.features:
        return dict(source=source_name(o), made="elsewhere (.h5)")
    sides = [load_json(Path(cohort) / "features" / o.encoder / f"{s}.json") for s in slides]
    tiles = sides[0]["tiles"]
    return dict(source=o.encoder, weights=sides[0]["weights"], precision=sides[0]["precision"],
                tile_um=tiles["tile_um"], tile_px=TILE_PX, min_tissue=tiles["min_tissue"], max_tiles=tiles["max_tiles"])


def make_supertiles(cohort, slides, o):
    """supertiles/<encoder>/<slide>.npz: means (100, D) float16, mask (100,), cluster of each tile (n,)."""
    folder, source = Path(cohort) / "supertiles" / source_name(o), o.features or o.encoder
    if o.features and not Path(o.features).is_dir():
        raise InputError(f"--features {o.features}: no such folder")
    failed = {} if o.features else make_features(cohort, slides, o)
    settings = settle(folder / "settings.json", dict(seed=o.tile_seed, k=None), dict(seed=o.seed, k=N_SUPERTILES))
    tick = progress("super-tiles", len(slides), "slides")

    def one(name):
        features, coords, made_by = load_features(cohort, source, name)
        key = json.dumps(dict(settings, features=made_by), sort_keys=True)
        old = load_arrays(folder / f"{name}.npz")
        if old is None or str(old.get("settings")) != key:
            means, mask, cluster = supertiles(features, coords, settings["k"], settings["seed"])
            arrays = dict(means=means.astype(np.float16), mask=mask, cluster=cluster, settings=np.array(key))
            save_file(folder / f"{name}.npz", lambda f: np.savez(f, **arrays))

    save_json(folder / "settings.json", settings)
    for name, error in ordered_map(one, [s for s in slides if s not in failed], o.workers):
        tick()
        if error is not None:
            failed[name] = str(error) or type(error).__name__
    return failed


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------
def doctor(cohort, slides, o):
    """Say what is seen in each slide, without writing anything."""
    found, failed, shared, mpp = find_slides(cohort), {}, tile_settings(cohort, o), given_mpp(cohort, o)
    jobs = [name for name in slides if name in found]
    failed.update({name: f"no file {name}.* in {cohort}" for name in slides if name not in found})

    def one(name):
        slide = open_slide(found[name])
        arrays, _ = find_tiles(found[name], name, dict(shared, mpp=mpp(name)))
        level, d = best_level(slide, float(arrays["tile"]) / TILE_PX)
        return slide, slide_mpp(slide, mpp(name), name)[1], arrays, level, d

    for name, got in ordered_map(one, jobs, o.workers):
        if isinstance(got, Exception):
            failed[name] = str(got)
            continue
        slide, source, a, level, d = got
        n, dim = len(a["coords"]), ResNet50(ENCODERS[o.encoder]).n_features
        print(f"{name}: {slide.dimensions[0]:,} x {slide.dimensions[1]:,} px, "
              f"{slide.properties.get('openslide.vendor', 'plain image')}, {slide.level_count} level(s)\n"
              f"  mpp {a['mpp']:.4f} µm from {'the slide' if source == 'slide' else 'samples.csv or --mpp'}; read at level {level} "
              f"(downsample {d:g}, {a['mpp'] * d:.3f} µm/px), {'resampled' if d * a['mpp'] <= shared['tile_um'] / TILE_PX * 1.01 else 'RESAMPLED UP'}"
              f" to {shared['tile_um'] / TILE_PX:g}; a tile is {shared['tile_um']:g} µm = {a['tile']:.1f} px\n"
              f"  Otsu threshold {a['threshold']:.3f} OD, tissue {a['tissue']:.0%}; {a['found']:,} tiles"
              f"{f', {n:,} of them sampled' if n < a['found'] else ''}; features {n * dim * 2 / 2**20:.1f} MiB"
              + ("; has an ICC profile (not applied)" if slide.color_profile is not None else ""))
    return failed


def add_options(parser):
    """The options every command that needs slides shares; None means: as the folder was made, else the default."""
    a = parser.add_argument_group("slides, tiles and features").add_argument
    a("--mpp", type=float, help="µm per pixel at level 0 for slides whose file and samples.csv have none; never a guess, "
      "since a tile must be the same size of tissue on every slide")
    a("--tile-um", type=float, help=f"edge of a tile, µm (default {TILE_UM:g}, the paper's; it is always {TILE_PX} px)")
    a("--min-tissue", type=float, help=f"share of a tile that must be tissue (default {MIN_TISSUE}); lower keeps fat and edges")
    a("--max-tiles", type=int, help=f"tiles per slide, a random sample beyond (default {MAX_TILES}, the paper's): bounds time")
    a("--encoder", choices=ENCODERS, default="resnet50", help="resnet50: 2,048 features; resnet50-stage3: 1,024")
    a("--weights", help="imagenet (default; downloaded once, hash checked), a torchvision state_dict file, or random "
      "(seeded; to try the program without weights)")
    a("--features", metavar="DIR", help="use these CLAM/TRIDENT .h5 features (<slide>.h5) instead of slides and encoder")
    a("--precision", choices=("auto", "bfloat16", "float32"), help="of the encoder; auto: bfloat16 where the hardware has it "
      "(within 1 %% of float32, several times as fast)")
    a("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default auto: the GPU when there is one)")
    a("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that read slides ahead; no effect on results")
    a("--seed", type=int, default=None, help="of every random draw (default 0)")
    parser.set_defaults(tile_seed=None)


def report_failures(failed, total):
    """Say which slides failed and why; the exit status: 0 all done, 1 some failed, 2 all did."""
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {total} slides failed", file=sys.stderr)
    return 0 if not failed else 1 if len(failed) < total else 2


def run(main):
    """Run a command: a user's mistake is one line and status 2, an interruption one line and status 130."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("terminated; the same command goes on from here", file=sys.stderr) or 143))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")                 # µ and ± on any terminal
    try:
        sys.exit(main())
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:
        print(f"error: {e.filename or ''}: {e.strerror or e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="tiling.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (("doctor", "say what is seen in each slide"), ("tiles", "tissue and tiles"),
                       ("features", "tiles, then features"), ("supertiles", "tiles, features, then super-tiles")):
        p = verbs.add_parser(verb, help=what, description=what)
        p.add_argument("cohort", help="folder with slides/ (and samples.csv), a folder of slides, or for doctor one slide")
        add_options(p)
    p = verbs.add_parser("simulate", help="draw a simulated cohort with known truth")
    p.add_argument("cohort", metavar="folder")
    p.add_argument("--patients", type=int, default=48, help="in two projects, at least 4 (default 48)")
    p.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(argv)
    if o.verb == "simulate":
        simulate_cohort(o.cohort, o.patients, o.seed)
        return 0
    o.tile_seed, o.seed = o.seed, o.seed or 0
    cohort = Path(o.cohort)
    known = [r["slide"] for r in read_samples(cohort)] if (cohort / "samples.csv").is_file() else None
    there = find_slides(cohort) if known is None or not o.features else {}
    slides = known or list(there)
    if not slides:
        raise InputError(f"{cohort}: no slides ({' '.join(SLIDE_ENDINGS)}) in it or in its slides/")
    extra = [] if known is None or o.features else sorted(set(find_slides(cohort)) - set(known))
    if extra:
        print(f"{len(extra)} slide files are not in samples.csv and left out: {', '.join(extra[:5])}{' ...' if len(extra) > 5 else ''}")
    start = time.time()
    make = dict(doctor=doctor, tiles=make_tiles, features=make_features, supertiles=make_supertiles)[o.verb]
    failed = make(cohort, slides, o)
    if o.verb != "doctor":
        print(f"{o.verb}: {len(slides) - len(failed)} of {len(slides)} slides ready in {cohort / o.verb} ({clock(time.time() - start)})")
    return report_failures(failed, len(slides))


if __name__ == "__main__":
    run(main)
