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

import argparse
import csv
import difflib
import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import signal
import struct
import sys
import textwrap
import threading
import time
import warnings
import zipfile
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import openslide
import torch
import torch.distributed as dist
from PIL import Image, ImageDraw, ImageOps
from scipy import ndimage, sparse, special
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
GLASS_SD = 2.5                # grey levels over 40 µm: empty glass is flat (0.3 to 0.8 on real slides), the  [ours]
GLASS_SHARE = 0.05            #   palest tissue is not (6 to 29); less of the brightest tenth flat: no glass  [ours]
NO_GLASS = 245.0              # brightness of the light where a picture shows no glass to measure it          [ours]
BLACK_LEVEL = 50              # brightest channel below it: scanner border, black pen                      [ours]
STAIN_FLOOR = 0.03            # the Otsu threshold stays in this range of stain (optical density), so that [ours]
STAIN_CEILING = 0.08          #   an empty slide gives no tissue and pale stroma is not lost to dark nuclei
TISSUE = dict(tissue="stain", tissue_threshold="otsu", min_area=0.0)   # what tiles whose settings name none have [ours]
MEDIAN_PX, CLOSE_PX = 7, 4    # of the saturation, then of the mask; pixels of the thumbnail          [HistCode code]
MPP_RANGE = (0.05, 20.0)      # µm per pixel that a microscope slide can have                              [ours]
FAR = 1e9                     # pixels or µm from the corner of a slide: no place on it                    [ours]
GLASS_MM = (100, 200)         # short and long edge of a picture, at most; whole mounts are 102 x 152 mm   [ours]
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1: torchvision's normalisation, which its weights need; [ours]
IMAGENET_STD = (0.229, 0.224, 0.225)   #   the authors' Keras weights want BGR minus a mean [HE2RNA code]      [ours]
COLOURS = ("none", "macenko", "stretch")  # of a tile. HE2RNA: paper silent, stretch [HE2RNA code]; HistCode: "color
#                                normalization", method unnamed, none in the code. Default none     [ours]
LIGHT = 240.0                 # intensity without dye      } as published with the common implementations of   [ours]
MIN_OD = 0.15                 # density of each channel    } Macenko 2009 (natural logarithm, one grey level
EXTREMES = (1, 99)            # percentiles of the angle   } added), whose reference the next two are: haematoxylin
REFERENCE = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))   # and eosin in R, G, B, their densest 99th
REFERENCE_TOP = (1.9705, 1.0308)       #                     percentile; Macenko's own numbers are in log10
STAINED = 0.01                # share of pixels above MIN_OD below which a tile or slide keeps its colours     [ours]
MIN_ANGLE = 8.0               # degrees between two stains: 14 to 38 on real slides; one, with noise of 2 grey [ours]
#                               levels, spreads over at most 6
STAIN_TILES = 64              # tiles that tell a slide's stains, every 4th pixel of every 4th row             [ours]
IMAGENET_URL = "https://download.pytorch.org/models/resnet50-0676ba61.pth"   # torchvision's IMAGENET1K_V1 [ours]
KMEANS_DRAWS = 5              # candidates for each starting centre; scikit-learn takes 2 + log k          [ours]
RUN_TILES = 16                # neighbouring tiles read in one go: each JPEG block is decoded once         [ours]
STRIP_PIXELS = 2 ** 24        # pixels read at once for a thumbnail, so that a one-level slide fits memory [ours]
BATCH = {"cpu": 8, "cuda": 256}        # tiles per pass; 8 stay in a CPU's cache: 88 tiles/s, 59 with 64   [ours]
GDC_FOLDER = "-".join("?" * n for n in (8, 4, 4, 4, 12))     # a file id of the GDC                           [ours]
FOREIGN = {".h5": "h5_files", ".pt": "pt_files"}   # features made elsewhere, and where CLAM keeps them, first first  [ours]
FEW_ROWS = 64                 # of such features tell one file from another                                [ours]
SLIDE_ENDINGS = ".svs .tif .tiff .ndpi .mrxs .scn .vms .vmu .bif .svslide .dcm .png .jpg .jpeg".split()  # [ours]
PLAIN = (".png", ".jpg", ".jpeg", ".tif", ".tiff")      # what may be a picture that only Pillow reads        [ours]
ORIENTATION, TILE_WIDTH = 274, 322     # numbers of the tags           [TIFF 6.0]
Image.MAX_IMAGE_PIXELS = 2 ** 29       # Pillow, which holds a plain picture whole, refuses twice as many: 4 GiB [ours]
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)                                #   [ours]
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")     # of tags that only OpenSlide reads     [ours]
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt")                # of places on a slide                [ours]
SHAPES = (".geojson", ".geojson.gz")                                   #                                     [ours]
BEST_TILES = 100              # the highest tiles whose median count is shown        [HE2RNA Results, virtual spatialization]
PICTURE_IN = 5.0              # long edge of a slide in a picture, inches                                  [ours]
PICTURE_DPI = 200             # a tile of 224 pixels is 1.12 inches                                        [ours]
SCORE_RANGE = (1, 99)         # percentiles at the ends of the colours, so that one tile can't pale all    [ours]
SCORE_COLORS = "viridis"      # even steps of lightness, for any eye                                       [ours]
INK, RULE, POINT = "#222222", "#bbbbbb", "#00429d"     # of text, of frames, of single cells                [ours]
OUTLINE = "red"               # of what a pathologist has drawn              [HistCode Fig. 10]
BLUE, ORANGE = "#0072B2", "#D55E00"    # told apart by any eye: Okabe & Ito                                [ours]
ENCODERS = {"resnet50": 4, "resnet50-stage3": 3}   # name -> stages; 3: "the first four main layers" [HistCode Methods]
COUNTS = ("HS", "BH", "mistakes") # measures of an audit that are counted
RANGES = dict(tile_um=(1., 1e4), min_tissue=(0., 1.), max_tiles=(1, 10 ** 9), mpp=MPP_RANGE, min_area=(0., 1e9),
              tissue_threshold=(0., 255.), seed=(0, 2 ** 63 - 1), k=(1, 10 ** 4))      # whole where the ends are  [ours]
RESERVED = ("settings", "failed")      # files beside those of the slides, so no slide's name                [ours]
ENCODER_VERSION = 1           # of the checkpoints that histcode.py pretrain writes                        [ours]
PROCESSES = []                # under torchrun: the group of those of this run
HELD = []                     # lock files of this process: folders it writes to now


def one_line(text):
    """The text with line ends and other control characters, which names in a broken table may have, written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


class InputError(ValueError):
    """Something the user can mend: shown as one line, exit status 2."""

    def __init__(self, text):
        super().__init__(one_line(text))


# ---------------------------------------------------------------------------------------------------------------------
# Files: atomic, and keyed by the settings that made them
# ---------------------------------------------------------------------------------------------------------------------
def save_file(path, write):
    """Write a file beside its place with write(open file) and rename it: it is whole or not there. [ours]"""
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):                # a pipe or device, such as /dev/stdout
        with open(path, "wb") as f:
            return write(f)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(beside, "wb") as f:
            write(f)
        os.replace(beside, path)
    except (OSError, RuntimeError) as e:
        why = e if isinstance(e, OSError) else e.__context__                   # torch.save hides a full disk behind its own
        if not isinstance(why, OSError) or why.errno is None:
            raise
        raise OSError(why.errno, why.strerror, str(path)) from None            # a full disk names none, others that beside
    finally:
        beside.unlink(missing_ok=True)


def save_json(path, value):
    save_file(path, lambda f: f.write(json.dumps(value, indent=1).encode()))


def save_text(path, lines):
    save_file(path, lambda f: f.write("\n".join(lines).encode()))


def save_csv(path, header, rows):
    """A table, row by row; compressed where the name ends in .gz."""
    def write(f):
        with gzip.GzipFile("", "wb", 6, f, mtime=0) if str(path).endswith(".gz") else nullcontext(f) as out:
            text = io.TextIOWrapper(out, encoding="utf-8", errors="backslashreplace", newline="")   # of names of files
            csv.writer(text, lineterminator="\n").writerows([header])
            csv.writer(text, lineterminator="\n").writerows(rows)
            text.detach()
    save_file(path, write)


def load_json(path):
    """The dict that the file holds, or None when it is not there, not whole or something else."""
    try:
        value = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def load_arrays(path):
    """All arrays of an .npz as a dict (no pickles), or None when it is not there or not whole."""
    try:
        with np.load(path, allow_pickle=False) as z:
            return {name: z[name] for name in z.files}
    except Exception:           # zip's, numpy's and the file system's errors share no class
        return None


def whole_arrays(path, **wanted):
    """As load_arrays, of a file that a command before has made. InputError when it is not there or not whole.

    wanted {name: kind of its dtype and a letter for each axis, "fSG"}: arrays it must have; same letter, same length.
    """
    arrays, length = load_arrays(path), {}
    if arrays is None or not all(
            k in arrays and arrays[k].dtype.kind == kind and arrays[k].ndim == len(axes)
            and all(length.setdefault(*pair) == pair[1] for pair in zip(axes, arrays[k].shape))
            for k, (kind, *axes) in wanted.items()):
        raise InputError(f"{path} is missing or not whole: run the command that made it again")
    return arrays


def read_rows(path):
    """(header, rows) of a table, comma- or tab-separated, plain or .gz; blank lines left out. InputError when it can't be
    read."""
    try:
        data = Path(path).read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252")                                       # the µ of programs on Windows
        tab = "\t" in text.partition("\n")[0]
        rows = list(filter(None, csv.reader(io.StringIO(text), delimiter="\t" if tab else ",")))
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as e:
        raise InputError(f"{path}: can't be read as a table ({e})") from None
    return [c.strip() for c in rows[0]] if rows else [], rows[1:]


def number(text):
    """The number that the text of a table is, NaN for any other; Python's float takes 1_0 for 10, no table means that."""
    try:
        return float(text.replace("_", "x"))
    except ValueError:
        return np.nan


def within(value, low, high):
    """Whether a value is a number in a range; a whole one where `low` is."""
    return type(value) in ((int,) if type(low) is int else (int, float)) and low <= value <= high


def read_samples(cohort):
    """samples.csv as a list of dicts in file order. Raises InputError on what can't be meant.

    Columns: slide (file name without its ending), patient, project; optional sample, sample_type, mpp, any labels.
    """
    path = Path(cohort) / "samples.csv"
    if not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'missing'}: wanted is a table with the columns "
                         "slide,patient,project")
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            reader = csv.reader(f)
            header = [c.strip() for c in next(reader, [])]
            lines = [(reader.line_num, [v.strip() for v in row]) for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path}: not a comma-separated table in UTF-8 ({e}); save it as one") from None
    missing = [c for c in ("slide", "patient", "project") if c not in header]
    if missing or len(set(header)) < len(header):
        raise InputError(f"{path}: " + (f"no column {', '.join(missing)}" if missing else "a column stands there twice")
                         + f"; it has {', '.join(header) or 'nothing'}; wanted slide,patient,project separated by commas")
    rows, seen = [dict(zip(header, values)) for _, values in lines], set()
    for (line, values), row in zip(lines, rows):
        if len(values) != len(header):
            raise InputError(f"{path} line {line}: {len(values)} fields, the header has {len(header)}")
        for column in ("slide", "patient", "project"):
            if not row[column]:
                raise InputError(f"{path} line {line}: empty {column}")
        if row["slide"] in seen:
            raise InputError(f"{path} line {line}: slide {row['slide']} stands there twice")
        if Path(row["slide"]).name != row["slide"] or row["slide"] in (".", ".."):
            raise InputError(f"{path} line {line}: slide {row['slide']} is a path; give the file name without its ending")
        if not can_be_named(row["slide"]):
            raise InputError(f"{path} line {line}: slide {row['slide'][:50]} can't be the name of a file here (control "
                             f"characters, over 200 bytes, or one of {', '.join(RESERVED)}): rename it")
        seen.add(row["slide"])
    if not rows:
        raise InputError(f"{path}: no rows")
    return rows


def can_be_named(slide):
    """Whether files here can have a slide's name."""
    return slide.isprintable() and len(slide.encode()) <= 200 and slide not in RESERVED


def find_slides(cohort):
    """{slide id: path} of COHORT/slides, or of the folder itself, or of one slide file. gdc-client gives each file a folder
    of its own, named by its id: those are looked into."""
    cohort = Path(cohort)
    folder = cohort / "slides" if (cohort / "slides").is_dir() else cohort
    if not folder.exists():
        raise InputError(f"{folder}: no such folder or slide")
    files = [cohort] if cohort.is_file() else sorted(
        (p for pattern in ("*", f"{GDC_FOLDER}/*") for p in folder.glob(pattern) if p.is_file()), key=lambda p: p.name)
    found = {}
    for p in files:
        if p.suffix.lower() in SLIDE_ENDINGS and not p.name.startswith("."):
            if p.stem in found:
                raise InputError(f"{folder}: {found[p.stem].name} and {p.name} are both slide {p.stem}; rename one")
            found[p.stem] = p
    return found


def read_expression(cohort):
    """(key, ids, genes, a (n, G) float32) of expression.csv, .csv.gz or .npz; key: 'slide', 'sample' or '' (not said).

    Linear FPKM-UQ. Raises InputError with gene and row on duplicates, negative, non-numeric, infinite or missing values.
    npz: arrays `expression` (n, G), `genes` (G,) and `slide` or `sample` (n,).
    """
    paths = [Path(cohort) / f"expression{e}" for e in (".csv", ".csv.gz", ".npz")]
    paths = [p for p in paths if p.is_file()]
    folder = Path(cohort) / "expression"
    if not paths and folder.is_dir():
        raise InputError(f"{folder} is a folder: GDC's files become a table with python he2rna.py expression {folder} "
                         f"--sheet FILE --out {folder}.npz")
    if len(paths) != 1:
        raise InputError(f"{cohort}: " + (f"{paths[0].name} and {paths[1].name} are both there; keep one" if paths else
                         "no expression.csv, .csv.gz or .npz (first column slide, then a column per gene, linear FPKM-UQ)"))
    path = paths[0]
    if path.suffix == ".npz":
        z = load_arrays(path) or {}
        key = next((k for k in ("slide", "slides", "sample", "samples") if k in z), None)
        if (key is None or not {"expression", "genes"} <= set(z) or not z[key].ndim == z["genes"].ndim == 1
                or z["expression"].shape != z[key].shape + z["genes"].shape or not z["expression"].size):
            shapes = ", ".join(f"{k} {v.shape}" for k, v in z.items()) or "none that can be read"
            raise InputError(f"{path}: wanted arrays expression (n, G), genes (G,) and slide or sample (n,); it has "
                             f"{shapes} (object arrays are pickles and not read: save names as str)")
        ids, genes = [str(i) for i in z[key]], [str(g) for g in z["genes"]]
        if z["expression"].dtype.kind not in "fiu":
            raise InputError(f"{path}: expression is {z['expression'].dtype}, not numbers")
        with np.errstate(over="ignore"):                                       # beyond float32: infinite, and refused below
            key, rows = key.rstrip("s"), z["expression"].astype(np.float32, copy=False)
        for i, row in zip(ids, rows):
            check_row(row, genes, i, path)
    else:
        key, ids, genes, rows = read_table(path)
    for what, names in (("gene", genes), ("row", ids)):
        seen = set()
        twice = next((n for n in names if n in seen or seen.add(n)), None)
        if twice is not None:
            raise InputError(f"{path}: {what} {twice!r} stands there twice")
    return key, ids, genes, rows


def save_expression(path, key, ids, genes, rows):
    """What read_expression reads, as .npz, .csv or .csv.gz by the path's ending. rows: (G,) float32 of each of the ids, one
    after the other, so that a table of some GB is not held twice."""
    def write(f):
        with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
            for name, values in ((key, ids), ("genes", genes)):
                with z.open(f"{name}.npy", "w") as part:
                    np.lib.format.write_array(part, np.array(values), allow_pickle=False)
            with z.open("expression.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array_header_1_0(part, dict(descr="<f4", fortran_order=False,
                                                                shape=(len(ids), len(genes))))
                for row in rows:
                    part.write(row.astype("<f4").tobytes())
    if Path(path).suffix == ".npz":
        save_file(path, write)
    else:
        save_csv(path, (key, *genes), ((i, *row) for i, row in zip(ids, rows)))


def read_table(path):
    """The csv part of read_expression, row by row, so that a table larger than memory as text still fits."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="", encoding="utf-8-sig") as f:
            reader = csv.reader(f)
            header = next(reader, None)
            if not header or len(header) < 2:
                raise InputError(f"{path}: the first line must be slide,GENE1,GENE2,... separated by commas")
            genes, ids, rows = [g.strip() for g in header[1:]], [], []
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise InputError(f"{path} line {reader.line_num}: {len(row)} fields, the header has {len(header)}")
                rows.append(parse_row(row[1:], genes, row[0].strip(), path))
                ids.append(row[0].strip())
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path}: not a whole comma-separated table ({e})") from None
    if not rows:
        raise InputError(f"{path}: no rows")
    key = header[0].strip().lower()
    return key if key in ("slide", "sample") else "", ids, genes, np.stack(rows)


def parse_row(text, genes, name, path):
    """(G,) float32 of a row's fields, checked."""
    try:
        a = np.fromiter(map(number if "_" in "".join(text) else float, text), np.float64, len(genes))
    except ValueError:
        a = np.array([number(v) for v in text])
    with np.errstate(over="ignore"):                                           # beyond float32: infinite, and refused
        a = a.astype(np.float32)
    check_row(a, genes, name, path, text)
    return a


def check_row(a, genes, name, path, text=None):
    bad = ~(np.isfinite(a) & (a >= 0))
    if bad.any():
        j = int(bad.argmax())
        raise InputError(f"{path}: gene {genes[j]} of {name} is {text[j] if text else a[j]!r}; FPKM-UQ is a number >= 0")


def found_one(folder, slide, endings):
    """The path of <slide> with one of the endings in a folder, None where there is none; InputError where there are two."""
    paths = [p for e in endings if (p := folder / f"{slide}{e}").is_file()]
    if len(paths) > 1:
        raise InputError(f"{folder}: {paths[0].name} and {paths[1].name} are both there; keep one")
    return paths[0] if paths else None


def read_places(folder, slide, mpp, origin=(0, 0)):
    """What is known of places on a slide: (cells {class: (m, 2)}, spots ((m, 2), {column: (m,)})), each or None.

    points/<slide>.csv: x, y in level-0 pixels, and a column cell, class or Classification; or as QuPath exports detections:
    "Centroid X px" or "µm" in its own frame (mpp and origin of `qupath_frame`), also as .geojson. spots/<slide>.csv: x, y
    and measured columns. .tsv, .txt and .gz are read too.
    """
    cells = spots = None
    for what in ("points", "spots"):
        path = found_one(folder / what, slide, (*TABLES, *SHAPES) if what == "points" else TABLES)
        if path is None:
            continue
        if path.name.endswith(SHAPES):
            kinds, xy = shape_centres(path)
            cells = cells_by_class(kinds, xy + origin)
            continue
        header, rows = read_rows(path)
        at = {c.lower().replace("μ", "µ").replace(" um", " µm"): j for j, c in enumerate(header)}
        places = next((([at[c + axis + u] for axis in "xy"], scale, start) for c, u, scale, start in (
            ("", "", 1, (0, 0)), ("centroid ", " px", 1, origin), ("centroid ", " µm", 1 / np.asarray(mpp), origin))
            if all(c + axis + u in at for axis in "xy")), None)
        if places is None:
            raise InputError(f"{path}: no columns x and y (level-0 pixels); it has {few(header)}")
        columns, scale, start = places
        short_row = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
        if short_row is not None:
            raise InputError(f"{path}: row {short_row + 2} has {len(rows[short_row])} fields, the header has {len(header)}")
        images = sorted({row[at["image"]] for row in rows}) if "image" in at else []
        if len(images) > 1:
            raise InputError(f"{path}: rows of {len(images)} images ({few(images, 3)}); give those of {slide} alone")
        xy = np.array([[number(row[j]) for j in columns] for row in rows], float).reshape(-1, 2)
        there = (np.abs(xy) < FAR).all(1)
        if not there.all():
            raise InputError(f"{path}: row {2 + int(np.argmin(there))}: x, y is no place")
        xy = xy * scale + start
        if what == "spots":
            values = {c: np.array([number(row[j]) for row in rows]) for j, c in enumerate(header) if j not in columns}
            spots = xy, {c: v for c, v in values.items() if np.isfinite(v).any()}     # barcodes and the like measure nothing
            continue
        kind = next((at[c] for c in ("cell", "class", "classification") if c in at), None)
        cells = cells_by_class([row[kind] if kind is not None else "" for row in rows], xy)
    return cells, spots


def cells_by_class(kinds, xy):
    """{class: (m, 2)} of the classes (n,) of places (n, 2), "all cells" first; "" is no class."""
    kinds = np.array(kinds, str)
    return {"all cells": xy, **{str(c): xy[kinds == c] for c in np.unique(kinds) if c}}


def read_geojson(path):
    """The Features (dicts) of a GeoJSON file, .gz or not: a FeatureCollection, a list of Features (as QuPath writes), a
    Feature or a bare geometry. InputError when it is not whole JSON."""
    try:
        data = path.read_bytes()
        value = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as e:
        raise InputError(f"{path}: not whole GeoJSON ({e})") from None
    value = value.get("features", value) if isinstance(value, dict) else value
    features = [f if "geometry" in f else dict(geometry=f) for f in (value if isinstance(value, list) else [value])
                if isinstance(f, dict)]
    for i, f in enumerate(features):
        for k in ("geometry", "properties"):
            if not isinstance(f.get(k, {}), dict | None):
                raise InputError(f"{path}: feature {i + 1}: its {k} is {str(f[k])[:20]}, no JSON object")
    return features


def shape_class(feature):
    """The class that QuPath gave a Feature: classification.name, or names of a derived one ("Tumor: Positive"); "" none."""
    said = (feature.get("properties") or {}).get("classification") or ""
    said = said.get("name") or said.get("names") or "" if isinstance(said, dict) else said
    return ": ".join(map(str, said)) if isinstance(said, list) else str(said)


def read_regions(folder, slide, kind=None):
    """(path, Features) of regions/<slide>.geojson, of one class or all; Features are None where there is no such file, or
    none of the class in it, which is said."""
    path = found_one(folder / "regions", slide, SHAPES)
    shapes = read_geojson(path) if path else None
    if shapes and kind:
        classes = sorted(set(map(shape_class, shapes)))
        shapes = [f for f in shapes if shape_class(f) == kind] or None
        if not shapes:
            print(f"{path}: no region of class {kind}; it has {few(list(filter(None, classes))) or 'no classes'}")
    return path, shapes


def shape_centres(path):
    """(classes (m,), places (m, 2)) of a GeoJSON file's cells: each Point, each point of a MultiPoint, and the centroid of
    each Polygon and MultiPolygon that is not an annotation (QuPath's outlines of regions)."""
    kinds, places = [], [np.zeros((0, 2))]
    for i, feature in enumerate(read_geojson(path)):
        shape, own = feature["geometry"] or {}, feature.get("properties") or {}
        kind = str(own.get("objectType") or own.get("object_type") or feature.get("id") or "")      # id: before QuPath 0.3
        try:
            places_of = dict(Point=lambda c: [c[:2]], MultiPoint=lambda c: [p[:2] for p in c],
                             Polygon=lambda c: [centroid([c])], MultiPolygon=lambda c: [centroid(c)])
            with np.errstate(all="ignore"):                                    # of vertices near 1e308: refused below
                xy = places_of.get(shape.get("type"), lambda c: [])(shape.get("coordinates"))
            xy = np.asarray(xy, float).reshape(-1, 2)
            if not (np.abs(xy) < FAR).all():
                raise ValueError
        except (TypeError, ValueError, IndexError, OverflowError):             # of an integer of 400 digits
            raise InputError(f"{path}: feature {i + 1}: its {shape.get('type')} has no x, y numbers") from None
        if "Point" in str(shape.get("type")) or "annotation" not in kind.lower():
            places.append(xy)
            kinds += [shape_class(feature)] * len(xy)
    return kinds, np.concatenate(places)


def centroid(polygons):
    """Centre of gravity (2,) of polygons, each a list of rings of x, y: its outline and its holes, in any direction."""
    area, moment = 0.0, np.zeros(2)
    for rings in polygons:
        for i, ring in enumerate(rings):
            first = np.array(ring[0][:2], float)                               # far from the origin digits would be lost
            p = np.array([c[:2] for c in ring], float) - first                 # (k, 2)
            q = np.roll(p, -1, 0)
            cross = p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1]
            size = cross.sum() / 2
            sign = np.sign(size) * (-1 if i else 1)
            area, moment = area + sign * size, moment + sign * ((p + q).T @ cross / 6 + size * first)
    return moment / area if area > 0 else np.mean([c[:2] for c in polygons[0][0]], 0)


def ordered_map(function, jobs, workers):
    """(job, result or exception) in the order of the jobs; `workers` threads work ahead of the reader.

    Threads are enough: OpenSlide and Pillow release Python's lock.
    The order, hence every result, does not depend on the number of workers. [ours]
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


def seldom():
    """A function due(last) of a loop that prints lines: a terminal shows all, a log file one a minute and the last."""
    shown = [-60.0]

    def due(last=False):
        if not (last or (sys.stdout or sys.__stdout__).isatty() or time.monotonic() - shown[0] >= 60):
            return False
        shown[0] = time.monotonic()
        return True
    return due


def progress(what, total, unit, end=True):
    """A function tick(n) that shows how far a long loop is: one line on a terminal, one a minute in a log file; and at the
    end, unless that is said otherwise."""
    start, done, shown = time.time(), [0], [time.time() if not sys.stderr.isatty() else 0.0]

    def tick(n=1):
        done[0] += n
        now, last = time.time(), done[0] >= total
        if now - shown[0] > (0.5 if sys.stderr.isatty() else 60) or (last and n and end):
            shown[0], rate = now, done[0] / max(now - start, 1e-9)
            line_end = "\n" if last and end or not sys.stderr.isatty() else "\r"
            left = clock(0 if last else (total - done[0]) / max(rate, 1e-9))
            print(f"{what}: {done[0]:,}/{total:,} {unit}, {rate:.1f}/s, {left} left   ", end=line_end, file=sys.stderr,
                  flush=True)
    return tick


def counted(what, jobs, unit, total=None):
    """The jobs as they are, with the progress of what is done with them; nothing is said of a loop that is over soon."""
    jobs = list(jobs) if total is None else jobs
    tick = progress(what, len(jobs) if total is None else total, unit, end=False)
    for job in jobs:
        yield job
        tick()


def few(names, n=10):
    """The first n names, and that there are more."""
    return ", ".join(map(str, names[:n])) + (f" ... ({len(names)} in all)" if len(names) > n else "")


def clock(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def digest(*parts):
    """Hash of arrays and lists of names: the same data, the same run."""
    h = hashlib.sha256()
    for part in parts:
        h.update(np.ascontiguousarray(part).view(np.uint8) if isinstance(part, np.ndarray) else json.dumps(part).encode())
    return h.hexdigest()[:16]


def table(header, rows):
    return "\n".join(["| " + " | ".join(header) + " |", "|" + " --- |" * len(header),
                      *("| " + " | ".join(str(v) for v in row) + " |" for row in rows)])


def say_left_out(left_out):
    for what, names in left_out.items():
        if names:
            print(one_line(f"{len(names)} {what}: {few(names)}"))
    return left_out


# ---------------------------------------------------------------------------------------------------------------------
# Slide
# ---------------------------------------------------------------------------------------------------------------------
def orientation(path, formats=None):
    """How a file's tag (EXIF, TIFF) says that its picture lies, 2 to 8; 1: upright, nothing said, or of no such format."""
    try:
        with Image.open(path, formats=formats) as image:
            tag = image.getexif().get(ORIENTATION, 1)
    except Exception:           # no file of Pillow's: it has errors of many classes
        return 1
    return tag if tag in range(2, 9) else 1


def open_slide(path):
    """The slide, by OpenSlide (plain images by Pillow, upright as their tag says). Raises InputError with the file's name
    when it can't be read."""
    try:
        slide = openslide.open_slide(str(path))
        plain = isinstance(slide, openslide.ImageSlide)
        turned = orientation(path, None if plain else ["TIFF"])                # a .mrxs is the JPEG of its label
        if plain:
            with Image.open(path) as image:
                if Path(path).suffix.lower() not in PLAIN or TILE_WIDTH in getattr(image, "tag_v2", ()):
                    raise ValueError("OpenSlide doesn't know it; of a slide that is cut off, or a .mrxs without its folder, "
                                     "only a picture is left")
                slide = openslide.ImageSlide(ImageOps.exif_transpose(image)) if turned > 1 else slide
    except Exception as e:      # OpenSlide, Pillow and the file system each have their own errors
        raise InputError(f"{path}: not a readable slide ({e or type(e).__name__})") from None
    if turned > 1 and not plain:
        raise InputError(f"{path}: its orientation tag is {turned}, with which OpenSlide turns each of its tiles by itself: "
                         "save the picture upright, with the tag 1")
    return slide


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


def has_profile(slide):
    """Whether a slide has an ICC profile, which read_region never applies, so that no result depends on it."""
    try:
        return slide.color_profile is not None
    except Exception:           # a broken one: Pillow's own error
        return True


def slide_bounds(slide):
    """(x, y, w, h) of what was scanned, level-0 pixels: all of a slide, but for those whose file says that it lies somewhere
    in a larger frame (MIRAX, Leica, Ventana: OpenSlide's bounds)."""
    try:
        return tuple(int(slide.properties[f"openslide.bounds-{k}"]) for k in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return 0, 0, *slide.dimensions


def qupath_frame(slide, mpp):
    """(µm per pixel of x and y, level-0 pixel of the origin (2,)) of QuPath's frame of a slide: it crops to what was scanned
    and takes each axis' own µm; `mpp` where the slide has none. All that we keep is in OpenSlide's frame; the centroids and
    GeoJSON that come from QuPath are moved by the origin, and the GeoJSON that goes there is moved back. [ours]"""
    own = [number(slide.properties.get(f"openslide.mpp-{axis}", "")) for axis in "xy"]
    um = own if all(MPP_RANGE[0] <= m <= MPP_RANGE[1] for m in own) else [mpp, mpp]
    return np.array(um), np.array(slide_bounds(slide)[:2])


def best_level(slide, downsample):
    """(level, its downsample): the smallest picture that still has all the detail wanted, so it is only ever reduced."""
    ds = slide.level_downsamples
    level = max((i for i in range(len(ds)) if ds[i] <= downsample * 1.01), key=lambda i: ds[i], default=0)
    return level, ds[level]


def read_rgba(slide, level, x, y, w, h):
    """w x h pixels of a level from its pixel (x, y), RGBA."""
    d = slide.level_downsamples[level]
    try:
        return slide.read_region((round(x * d), round(y * d)), level, (w, h))
    except openslide.OpenSlideError as e:
        raise InputError(f"the slide can't be read to its end ({e})") from None


def thumbnail(slide, mpp, um=THUMBNAIL_UM):
    """The whole slide at `um` µm per pixel: (rgb (h, w, 3) uint8 on white, opaque (h, w) bool: scanned, within its bounds).

    Read in strips, so that a slide with only level 0 needs little memory; exact box average.
    """
    (W, H), edges = slide.dimensions, sorted(round(edge * mpp / 1000) for edge in slide.dimensions)
    if edges[0] > GLASS_MM[0] or edges[1] > GLASS_MM[1]:                       # would ask for any memory, any time
        raise InputError(f"{W:,} x {H:,} pixels of {mpp:g} µm are {edges[0]:,} x {edges[1]:,} mm, more than a glass slide "
                         "has: the file is broken, or its mpp is wrong")
    scale = max(1.0, um / mpp)
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
    x, y, bw, bh = slide_bounds(slide)
    column, row = (np.arange(w) + .5) * W / w, (np.arange(h) + .5) * H / h     # level-0 pixels
    scanned = ((row >= y) & (row < y + bh))[:, None] & (column >= x) & (column < x + bw)
    opaque = scanned & (out[:, :, 3] >= 128)                                   # (h, w)
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

    rgb (h, w, 3) uint8 at about 8 µm per pixel. Optical density of each channel against the colour of the glass (the bright
    flat part; a crop from within the tissue has none), largest minus smallest channel: uneven or grey light dims all
    channels alike and cancels, a tint is divided out, haematoxylin and eosin remain.
    Otsu's threshold is of this stain, for the papers name Otsu but not the image it is of. [ours]
    """
    x = ndimage.uniform_filter(rgb.astype(np.float32), (3, 3, 0))              # sensor and JPEG noise
    ok = x.max(2) >= BLACK_LEVEL                                               # (h, w)
    ok &= True if valid is None else valid
    if not ok.any():
        return np.zeros(rgb.shape[:2], np.float32)
    green = x[:, :, 1]                                                         # where both dyes are darkest
    bright = ok & (green >= np.percentile(green[ok], 90))
    spread = ndimage.uniform_filter(green ** 2, 5) - ndimage.uniform_filter(green, 5) ** 2          # variance (h, w)
    glass = bright & (spread < GLASS_SD ** 2)
    white = np.median(x[glass], axis=0) if glass.sum() >= GLASS_SHARE * bright.sum() else np.full(3, NO_GLASS)   # (3,)
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


def saturation_map(rgb):
    """HSV saturation 0..255 of each pixel, (h, w, 3) -> (h, w) uint8, after a median over MEDIAN_PX. [HistCode code]"""
    top = rgb.max(2).astype(float)
    saturation = 255 * (top - rgb.min(2)) / np.maximum(top, 1)
    return ndimage.median_filter(np.floor(saturation + .5).astype(np.uint8), MEDIAN_PX, mode="nearest")


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
        level = stain_map(rgb, valid)                                          # (h, w)
        threshold = tissue_threshold(level[valid])
        mask = level > threshold
    else:
        level, square = saturation_map(rgb), np.ones((CLOSE_PX, CLOSE_PX), bool)
        if threshold == "otsu":
            threshold = otsu_threshold(level[valid] if valid.any() else level)
        mask = ndimage.binary_dilation(level > threshold, square)
        mask = ndimage.binary_erosion(mask, square, border_value=1)            # a closing that leaves the rim as it is
    return drop_pieces(mask & valid, least), float(threshold)


def tissue_mask(rgb, valid=None):
    """(h, w) bool, True on tissue, of a thumbnail (h, w, 3) uint8 at about 8 µm per pixel; `valid` (h, w) bool marks
    what was scanned. Background (white, grey, tinted, unevenly lit), pen, black borders and holes are not tissue."""
    return find_tissue(rgb, np.ones(rgb.shape[:2], bool) if valid is None else valid)[0]


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
    mpp, source = slide_mpp(slide, settings["mpp"], name)
    settings = dict(settings, mpp=settings["mpp"] if source == "given" else None)
    tile = settings["tile_um"] / mpp
    rgb, opaque = thumbnail(slide, mpp)
    rule = {**TISSUE, **settings}
    least = rule["min_area"] * tile ** 2 * opaque.size / np.prod(slide.dimensions, dtype=float)   # pixels of the thumbnail
    mask, threshold = find_tissue(rgb, opaque, rule["tissue"], rule["tissue_threshold"], least)
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
    A tile's pixels depend on that tile alone, not on its neighbours in the run (but for OpenSlide's rounding to whole
    level-0 pixels where a downsample is no whole number).
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
# Colour: Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009
# [HistCode Methods, Image processing: "we applied color normalization on tiles"; the method is our choice]
# ---------------------------------------------------------------------------------------------------------------------
DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / LIGHT)              # of each grey level  (256,)


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
    dense = od[(od >= MIN_OD).all(1)].astype(np.float64)                       # (m, 3)
    if len(dense) < max(1, STAINED * len(od)):
        return None
    _, directions = np.linalg.eigh(dense.T @ dense)                            # their singular vectors, rising
    plane = directions[:, [2, 1]]                                              # (3, 2)
    plane = plane * np.where(plane.sum(0) < 0, -1, 1)                          # eigh's signs are arbitrary
    angle = np.arctan2(*(dense @ plane).T[::-1])                               # (m,)
    ends = np.percentile(angle, EXTREMES)
    if np.degrees(ends[1] - ends[0]) < MIN_ANGLE:
        return None
    stains = np.stack([np.cos(ends), np.sin(ends)], 1) @ plane.T               # (2, 3)
    stains = stains[np.argsort(-stains[:, 0])]                                 # haematoxylin takes more of the red
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
    matrix = -(np.linalg.pinv(stains) * (REFERENCE_TOP / top)) @ REFERENCE                     # (3, 2) @ (2, 3)
    dark, matrix, out = np.searchsorted(-DENSITY, -MIN_OD, side="right"), matrix.astype(np.float32), tiles.copy()
    for i, tile in enumerate(tiles):                                           # one by one: a tile fits the cache
        brightest = np.maximum(np.maximum(tile[:, :, 0], tile[:, :, 1]), tile[:, :, 2])
        changed[i] = (brightest < dark).mean() >= STAINED
        if changed[i]:
            light = np.exp(DENSITY.take(tile.reshape(-1, 3)) @ matrix)         # (h w, 3)
            out[i] = np.minimum(light * LIGHT + .5, 255).reshape(tile.shape)
    return out, changed


def stretch(tiles):
    """Tiles (n, h, w, 3) uint8, each channel of each tile shifted to begin at 0, then stretched to end at 255; a channel of
    one value becomes 0. How dark a tile was is lost, and glass in it or not decides what is white. [HE2RNA code]
    """
    low, high = (f((1, 2), keepdims=True).astype(np.float32) for f in (tiles.min, tiles.max))       # (n, 1, 1, 3)
    return ((tiles - low) * (255 / np.maximum(high - low, 1)) + .5).astype(np.uint8)


def slide_stains(slide, coords, tile, px, seed):
    """The stains of a slide from a random sample of its tiles; result as macenko_stains, arguments as read_tiles.

    Of the slide, not of each tile: slides are stained as a whole, and a tile's extremes are those of its tissue. On eight
    real slides a tile's own stains lie up to 5 degrees from its slide's (medians) and its percentiles 3 to 26 %: on its
    own, stroma without nuclei would be painted with haematoxylin. 64 tiles come within 1 degree and 8 %. [ours]
    """
    pick = np.sort(np.random.default_rng(seed).permutation(len(coords))[:STAIN_TILES])
    pixels = [read_tiles(slide, coords[i:i + 1], tile, px)[0, ::4, ::4].reshape(-1, 3) for i in pick]
    return macenko_stains(optical_density(np.concatenate(pixels)))


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
        x = x.to(self.layer1[0].conv1.weight.dtype)                            # bfloat16 where prepare_encoder chose it
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return x.mean((2, 3), dtype=torch.float32)                             # (B, D), summed in float32


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
        whole = Path(weights).read_bytes()
        whole += side_file(weights).read_bytes() if side_file(weights).is_file() and is_script(weights) else b""
        return f"{Path(weights).name} sha256 {hashlib.sha256(whole).hexdigest()[:16]}"
    except OSError as e:
        raise InputError(f"--weights {weights}: {e.strerror}; it takes imagenet, random or a file") from None


def load_weights(stages, weights, seed):
    """ResNet50 with its weights: imagenet (fetched once, its hash checked), random (seeded), or a state_dict file."""
    torch.manual_seed(seed)
    net = ResNet50(stages)
    if weights == "random":
        return calibrate(net, seed)
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(IMAGENET_URL).name
    try:
        if weights == "imagenet":
            state = torch.hub.load_state_dict_from_url(IMAGENET_URL, map_location="cpu", check_hash=True, weights_only=True)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as e:      # the network's, torch's and pickle's errors share no class
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"--weights imagenet: {IMAGENET_URL} can't be had ({why}); fetch it elsewhere and put it at "
                         f"{place}, or pass --weights FILE, or --weights random to try the program out"
                         if weights == "imagenet" else
                         f"--weights {weights}: not a file of weights ({why}); give a torchvision resnet50 state_dict"
                         ) from None
    if weights == "imagenet":                                                  # torch.hub checks only what it fetches itself
        want, sha = place.stem.rpartition("-")[2], hashlib.sha256(place.read_bytes()).hexdigest()
        if not sha.startswith(want):
            raise InputError(f"--weights imagenet: {place} is another file (sha256 {sha[:8]}..., not {want}...): delete it")
    return fill(net, state, f"--weights {weights}", "give a torchvision resnet50 state_dict")


def fill(net, state, option, mend):
    """The network with the entries of a state_dict; InputError where it is another network's."""
    # torchvision's oldest files lack num_batches_tracked, which only training uses; fc is not needed for features
    wanted = {k: v for k, v in net.state_dict().items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
    state = {k: v for k, v in state.items() if k in wanted and torch.is_tensor(v)} if isinstance(state, dict) else {}
    bad = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
    if bad:
        raise InputError(f"{option}: {len(bad)} of {len(wanted)} entries are missing or of another shape, first {bad[0]}; "
                         f"{mend}")
    net.load_state_dict(state, strict=False)
    return net


def calibrate(net, seed):
    """Make an untrained network useful: damp its residual branches and let BatchNorm see drawn pictures once. In place.

    Without it the signal grows block by block and 94 % of the features' variance is one direction (overall darkness); a
    linear probe of the true tumour density of simulated slides rises from R = .57 to .92. Only for --weights random. [ours]
    """
    rng, pictures = np.random.default_rng(seed), []
    for _ in range(48):                                                        # blobs of all sizes in the colours of H&E
        amount = sum(w * ndimage.zoom(rng.normal(size=(n, n, 2)), (224 / n, 224 / n, 1), order=1)
                     for n, w in ((3, .5), (14, .4), (40, .5), (112, .4)))
        od = (amount * rng.uniform(.1, .5) + rng.uniform(0, .6, 2)).clip(0) @ STAINS[[0, 2]]
        pictures.append(245 * 10 ** -od)
    for m in net.modules():
        if isinstance(m, Bottleneck):
            nn.init.constant_(m.bn3.weight, .2)
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None                                                  # running statistics = those of one batch
    with torch.no_grad():
        net.train()(normalise(torch.from_numpy(np.stack(pictures).astype(np.uint8))))
    return net.eval()


class Script(nn.Module):
    """A TorchScript file as an encoder: (B, 3, px, px) normalised RGB -> (B, D); bfloat16 by autocast. ValueError where two
    tiles, or one, don't give as many rows of finite numbers. [ours]"""

    def __init__(self, net, device, px=TILE_PX):
        super().__init__()
        self.net, self.precision, self.n_features = net.eval(), "float32", None
        self.place = nn.Parameter(torch.zeros(1, device=device), requires_grad=False)      # a frozen script has no parameter
        with torch.inference_mode():
            for n in (2, 1):                                                   # the last batch has one: .squeeze() breaks
                y = net(torch.zeros(n, 3, px, px, device=device))
                if not torch.is_tensor(y):
                    raise ValueError(f"it gives a {type(y).__name__}, not one tensor")
                if y.ndim != 2 or y.shape != (n, self.n_features or y.shape[1]):
                    raise ValueError(f"{n} tile{'s' * (n > 1)} of {px} px give {tuple(y.shape)}")
                if not y.isfinite().all():
                    raise ValueError("a black tile gives NaN or infinite features")
                self.n_features = y.shape[1]

    def forward(self, x):                                                      # (B, 3, px, px)
        try:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                y = self.net(x)                                                # (B, D)
        except RuntimeError as e:
            raise InputError(f"the encoder fails on {len(x)} tiles: {str(e).strip().splitlines()[-1]}") from None
        if y.shape != (len(x), self.n_features):
            raise InputError(f"the encoder gives {tuple(y.shape)} for {len(x)} tiles, not {(len(x), self.n_features)}")
        return y


def side_file(path):
    """The .json beside a TorchScript file that says what it wants."""
    return Path(f"{path}.json")


def wrong_wants(said):
    """What of {tile_px, mean, std, tile_um, colour}, or some of them, no encoder can want: ["name value"]."""
    three = lambda v: isinstance(v, (list, tuple)) and len(v) == 3 and all(within(c, -255., 255.) for c in v)
    known = dict(tile_px=lambda v: within(v, 8, 4096), mean=three, std=lambda v: three(v) and min(v) > 0,
                 tile_um=lambda v: within(v, *RANGES["tile_um"]), colour=lambda v: v in COLOURS)
    return [f"{k} {v!r}" for k, v in said.items() if k not in known or not known[k](v)]


def script_wants(path):
    """What a TorchScript file wants, by the <file>.json beside it, if there is one: a dict of tile_px, mean, std, tile_um
    and colour, or some of them. InputError where it says anything else. [ours]"""
    side = side_file(path)
    if not side.is_file():
        return {}
    said = load_json(side)
    wrong = ["it"] if said is None else wrong_wants(said)
    if wrong:
        raise InputError(f"{side}: {few(wrong)} can't be meant: wanted a JSON object of tile_px (pixels), tile_um, mean and "
                         f"std (three numbers each, of RGB in 0..1) and colour ({', '.join(COLOURS)}), or some of them")
    return said


def encoder_name(encoder):
    """Of the folder of an encoder's features: its own name, or that of its file without the ending."""
    return encoder if encoder in ENCODERS else Path(encoder).stem


def features_folder(o):
    """The folder under features/ that options name: the encoder's. Features of stretched tiles lie beside those of tiles as
    they are, so that both can be had at once."""
    return encoder_name(o.encoder) + "-stretch" * (o.colour == "stretch")


def is_script(path):
    """TorchScript files are zip archives with code in them; opening one does not run it."""
    try:
        return zipfile.is_zipfile(path) and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist())
    except Exception:           # a damaged one: zip's errors share no class, and read_encoder says that it is not whole
        return False


def read_encoder(path):
    """An encoder checkpoint of `histcode.py pretrain`, as its dict. InputError says what else a file is."""
    option, mend = f"--encoder {path}", "give a checkpoint of histcode.py pretrain or a TorchScript file"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:      # torch's and pickle's errors share no class
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"{option}: not a whole encoder file ({why}); {mend}") from None
    if not isinstance(saved, dict) or "version" not in saved:
        raise InputError(f"{option}: no encoder's checkpoint; {mend}, or a state_dict of resnet50 as --weights {path}")
    if saved["version"] != ENCODER_VERSION:
        raise InputError(f"{option}: of version {saved['version']}, this program reads version {ENCODER_VERSION}; {mend}")
    wants = ("mean", "std", "tile_px", "tile_um", "colour")
    missing = [k for k in ("encoder", "stages", *wants) if k not in saved]
    if missing:
        raise InputError(f"{option}: the checkpoint has no {', '.join(missing)}; {mend}")
    wrong = wrong_wants({k: saved[k] for k in wants}) + [f"stages {saved['stages']!r}"] * (
        saved["stages"] not in list(ENCODERS.values()))
    if wrong:
        raise InputError(f"{option}: {few(wrong)} can't be meant; {mend}")
    return saved


def encoder_wants(o):
    """What an encoder must be given: tile_px, mean and std, and tile_um and colour (None: any). InputError where options
    gainsay its file."""
    wants = dict(tile_px=TILE_PX, mean=IMAGENET_MEAN, std=IMAGENET_STD, tile_um=None, colour=None)
    if o.encoder in ENCODERS:
        return wants
    if not Path(o.encoder).is_file():
        raise InputError(f"--encoder {o.encoder}: no such file, nor one of {', '.join(ENCODERS)}")
    if encoder_name(o.encoder) in ENCODERS:
        raise InputError(f"--encoder {o.encoder}: rename it; {encoder_name(o.encoder)} is the name of another network")
    if o.weights not in (None, o.encoder):
        raise InputError(f"--weights {o.weights}: the file {o.encoder} is network and weights; leave --weights out")
    if not is_script(o.encoder):
        saved = read_encoder(o.encoder)
        wants = {k: saved[k] for k in wants}
    else:
        wants.update(script_wants(o.encoder))
    if o.colour and wants["colour"] not in (None, o.colour):
        raise InputError(f"--colour {o.colour}: {o.encoder} learned from --colour {wants['colour']}; leave --colour out")
    return wants


def load_encoder(encoder, weights, seed, device):
    """The network of a name with its weights, or of a file."""
    if encoder in ENCODERS:
        return load_weights(ENCODERS[encoder], weights, seed)
    if not is_script(encoder):
        saved = read_encoder(encoder)
        return fill(ResNet50(saved["stages"]), saved["encoder"], f"--encoder {encoder}", "pretrain it anew")
    px = script_wants(encoder).get("tile_px", TILE_PX)
    try:
        return Script(torch.jit.load(encoder, map_location=device), device, px)
    except Exception as e:      # the errors of a foreign network share no class
        why = (str(e).strip() or type(e).__name__).splitlines()[-1]
        raise InputError(f"--encoder {encoder}: can't map (B, 3, {px}, {px}) to (B, D): {why}") from None


def pick_device(name="auto"):
    """auto: the GPU when there is one; under torchrun each process has its own."""
    own = f"cuda:{os.environ.get('LOCAL_RANK', '')}".strip(":")                 # of a process under torchrun
    if name == "auto":
        return torch.device(own if torch.cuda.is_available() else "cpu")
    name = own if name == "cuda" else name
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as e:
        raise InputError(f"--device {name}: not to be had here ({str(e).splitlines()[0]}); try --device auto") from None
    if device.type not in BATCH:
        raise InputError(f"--device {name}: only {' and '.join(BATCH)} are supported")
    return device


def pick_precision(name, device):
    """auto: bfloat16 where the processor multiplies it in hardware (features within 1 %), else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has = torch.cpu.get_capabilities()
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else "float32"


def prepare_encoder(net, device, precision):
    """The network as it runs fastest: BatchNorm folded, channels last, in bfloat16 where asked. In place.

    The first convolution stays float32: it costs little, and rounded pixels were a third of bfloat16's error.
    """
    if isinstance(net, Script):                                                # another's: its weights stay as they are
        net.precision = precision
        return net.to(device)
    net = fold_batchnorm(net.eval()).requires_grad_(False).to(device, memory_format=torch.channels_last)
    for part in list(net.children())[1:]:                                      # all after conv1
        part.to(getattr(torch, precision))
    return net


def normalise(tiles, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """(b, px, px, 3) uint8 -> (b, 3, px, px) float32 as ImageNet weights want it; in memory the channels stay last."""
    mean, std = (torch.tensor(v, device=tiles.device).view(1, 3, 1, 1) for v in (mean, std))
    return (tiles.permute(0, 3, 1, 2).float() / 255 - mean) / std


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
def encode(net, chunks, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """Features of a slide's tiles by a prepared encoder: iterable of (m, px, px, 3) uint8 -> (n, D) float16 numpy.

    mean, std: of RGB in 0..1, as the encoder learned. InputError where a feature is no number. The result
    depends on the tiles alone, not on how they were cut into chunks.
    """
    weight, out = next(net.parameters()), [np.zeros((0, net.n_features), np.float16)]
    for tiles in rebatch(chunks, BATCH[weight.device.type]):
        y = net(normalise(torch.from_numpy(tiles).to(weight.device), mean, std)).float()               # (b, D)
        if not y.isfinite().all():
            raise InputError("the encoder gives NaN or infinite features")
        out.append(y.clamp(-65504, 65504).half().cpu().numpy())
    return np.concatenate(out)


# ---------------------------------------------------------------------------------------------------------------------
# Super-tiles: k-means on location  [HE2RNA Methods, Preprocessing]
# ---------------------------------------------------------------------------------------------------------------------
def plus_plus(points, k, rng):
    """k-means++ start, greedy: each next centre is the best of a few draws in proportion to the squared distance to the
    nearest centre so far. Arthur & Vassilvitskii 2007. points (n, d) -> (k, d), or all different points if fewer."""
    columns, picks = np.ascontiguousarray(points.T), [rng.integers(len(points))]
    d2 = sum((x - x[picks[0]]) ** 2 for x in columns)                          # (n,)
    for _ in range(k - 1):
        chance = np.cumsum(d2)
        if chance[-1] == 0:                                                    # every point is a centre
            break
        draws = np.searchsorted(chance, rng.random(KMEANS_DRAWS) * chance[-1], side="right").clip(max=len(points) - 1)
        trial = np.minimum(sum((x - x[draws, None]) ** 2 for x in columns), d2)                     # (draws, n)
        best = trial.sum(1).argmin()
        d2 = trial[best]
        picks.append(draws[best])
    return points[picks]


def lloyd(points, centers):
    """Lloyd's iterations until the centres stand still: points (n, d), centers (k, d) -> (centers, labels (n,)).

    A point is asked for its nearest centre again only when it could have another: when its distance to its own, grown by
    that centre's move, may exceed the distance to the second, shrunk by the others' largest move (Hamerly 2010).
    """
    k, columns, labels = len(centers), np.ascontiguousarray(points.T), np.zeros(len(points), np.int64)
    own, second, ask = np.zeros(len(points)), np.zeros(len(points)), np.arange(len(points))
    still = 1e-4 * points.var(0).mean()                                        # of all squared moves, as scikit-learn
    for _ in range(300):
        distance, nearest = cKDTree(centers, balanced_tree=False, compact_nodes=False).query(points[ask], 2)
        labels[ask], own[ask], second[ask] = nearest[:, 0], distance[:, 0], distance[:, 1]
        size = np.bincount(labels, minlength=k)
        for empty in np.flatnonzero(size == 0):                                # give it the point farthest from its own
            far = np.where(size[labels] > 1, own, -1).argmax()
            size[labels[far]] -= 1
            labels[far], size[empty], own[far], second[far] = empty, 1, 0, own[far]
        new = np.stack([np.bincount(labels, x, k) for x in columns], 1) / size[:, None]
        move = np.sqrt(((new - centers) ** 2).sum(1))                          # (k,)
        others = np.where(np.arange(k) == move.argmax(), np.partition(np.append(move, 0), -2)[-2], move.max())
        centers, own, second = new, own + move[labels], second - others[labels]
        if (move ** 2).sum() <= still:
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
    few = points[np.sort(rng.permutation(len(points))[:len(points) // 4])]
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
    means[:] = member @ np.asarray(features, np.float32)                       # (k, n) @ (n, D)
    return means, size > 0, labels.astype(np.int32)


def half_supertiles(features, coords, k, seed):
    """supertiles with means in float16, as a run's models see them. InputError where they don't fit."""
    means, mask, cluster = supertiles(features, coords, k, seed)
    if np.abs(means).max() > np.finfo(np.float16).max:
        raise InputError(f"features up to {np.abs(means).max():.3g} are beyond float16; scale them down")
    return means.astype(np.float16), mask, cluster


# ---------------------------------------------------------------------------------------------------------------------
# The three steps over a cohort. Each makes what is missing and returns {slide: why it failed}; the others go on.
# ---------------------------------------------------------------------------------------------------------------------
def settle(path, asked, default):
    """Settings of a folder of results: what is asked for, else what its settings.json says, else the default.

    So a later command without options goes on as the folder was begun. InputError where that file says what can't be. [ours]
    """
    before = load_json(path) or {}
    words = dict(tissue=("stain", "saturation"), colour=COLOURS, precision=("float32", "bfloat16"))
    for k, v in default.items():
        said = before.get(k, v)
        if asked.get(k) is None and said != v and not (
                within(said, *RANGES[k]) if k in RANGES else said in words[k] if k in words else isinstance(said, str)):
            raise InputError(f"{path}: {k} is {said!r}, which can't be: mend it, or delete the file for the defaults")
    return {k: asked[k] if asked.get(k) is not None else before.get(k, v) for k, v in default.items()}


def differences(old, new):
    """'tile_um 112.0 -> 150.0, ...' of two dicts of settings; the tiles' settings inside a feature's count as its own."""
    tiles = lambda d: d["tiles"] if isinstance(d.get("tiles"), dict) else {}
    old, new = ({**TISSUE, **d, **tiles(d), "tiles": None} for d in (old, new))
    return ", ".join(f"{k} {old.get(k)} -> {v}" for k, v in new.items() if old.get(k) != v)


def started(pid):
    """A mark that no later process of the same number has: its start in ticks; "" where the system does not say; None when
    there is none."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else rest[18]                              # a zombie has ended
    except OSError:
        pass
    try:
        os.kill(pid, 0) if os.name == "posix" else None                        # asks, sends nothing
    except ProcessLookupError:
        return None
    except OSError:
        pass                                                                   # another user's
    return ""


def this_process():
    """What tells this process from any other that shares the folder; `pids`: containers count from 1, each its own."""
    space = Path("/proc/self/ns/pid")
    return dict(host=platform.node(), pids=os.readlink(space) if space.exists() else "", pid=os.getpid(),
                started=started(os.getpid()))


def free(path):
    """Remove a lock that a killed process has left, and say so. InputError when its process may still run."""
    lock, me = load_json(path) or {}, this_process()
    if not path.exists():
        return
    if all(lock.get(k) == v for k, v in me.items()):                           # of a folder that this process has copied
        return path.unlink()
    pid, since = lock.get("pid"), lock.get("since", "an unknown time")         # of a lock edited by hand anything
    here = all(lock.get(k) == me[k] for k in ("host", "pids")) and isinstance(pid, int) and 0 < pid < 2 ** 31
    mark, at = started(pid) if here else "", path.stat()
    blank = at.st_size == 0 and time.time() - at.st_mtime > 60                 # killed before it wrote who it is    [ours]
    if not blank and (not here or mark in ("", lock.get("started"))):
        raise InputError(f"{path.parent}: process {lock.get('pid', '?')} on {lock.get('host', 'an unknown host')} has been "
                         f"at work here since {since}: wait for it, or " + ("stop it" if here else
                         f"delete {path} if it is dead, which can't be told from here"))
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        os.rename(path, aside)                                                 # of several that come, one gets it
    except FileNotFoundError:
        return
    if (load_json(aside) or {}) != lock:                                       # another was faster: it is theirs
        os.rename(aside, path)
        return free(path)
    aside.unlink()
    print(f"{path.parent}: the lock of process {lock.get('pid', '?')}, killed after {since}, is taken over")


def hold(folder, share=(0, 1)):
    """Keep a folder for this process until release(): FOLDER/lock says by whom. InputError where another is at work there.

    share (r, n): this is one of n processes that share the slides; these don't exclude each other. [ours]
    """
    folder, (rank, world) = Path(folder), share
    path = folder / ("lock" if world == 1 else f"lock-{rank}-of-{world}")
    folder.mkdir(parents=True, exist_ok=True)
    while path not in HELD:
        free(path)
        text = json.dumps(dict(this_process(), since=time.strftime("%Y-%m-%d %H:%M:%S")))
        HELD.append(path)                                                      # first: a signal in between gives it back
        try:
            with open(path, "x") as f:
                f.write(text)
        except FileExistsError:                                                # another was faster
            HELD.remove(path)
    try:
        for other in folder.glob("lock*"):
            if other != path and (world == 1 or not other.name.endswith(f"-of-{world}")):
                free(other)
    except InputError:
        release(folder)
        raise
    if world == 1:
        sweep(folder)                                                          # of several, when all are here: claim_folder


def sweep(folder):
    """Remove the half files of a killed run."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def release(folder=None):
    """Give back a folder, or all that this process holds."""
    for path in [p for p in HELD if folder in (None, p.parent)]:
        HELD.remove(path)
        if (load_json(path) or {}).get("pid") in (None, os.getpid()):          # not one that came after a user deleted ours
            path.unlink(missing_ok=True)


def claim_folder(folder, config, results, share=(0, 1), **more):
    """Hold a run's folder and write its config.json -> its settings. Refused where the folder has results of others; `more`
    may change."""
    hold(folder, share)
    if share[1] > 1:
        of_all(None)                                                           # nobody writes there now
        by_first(lambda: sweep(folder))
    return by_first(lambda: claimed(folder, config, results, more))


def claimed(folder, config, results, more):
    """claim_folder without the lock."""
    before, config = read_config(folder), json.loads(json.dumps(config))
    if before is None and any(folder.glob(results)):
        raise InputError(f"{folder} has {results} but no config.json that says with which settings: choose another --name, "
                         "or delete it")
    if before and {k: before.get(k) for k in config} != config:
        other_data = config.get("data") not in (None, before.get("data"))
        raise InputError(f"{folder} is a run with other settings ({differences(before, config)}"
                         + "; data: slides, labels, expression, folds or feature files" * other_data
                         + "): " + "choose another --name, or " * (config.get("command") != "audit") + "delete it to begin again")
    packages = ("numpy", "scipy", "torch", "openslide-python", "openslide-bin", "Pillow")
    config.update(id=digest(config), **more, threads=torch.get_num_threads(), python=platform.python_version(),
                  **{p: importlib.metadata.version(p) for p in packages})
    save_json(folder / "config.json", config)
    return config


def read_config(folder, version=None):
    """config.json of a run, or None. InputError where a setting was changed by hand: `id` is the digest of those before it.
    Not asked of a run of another version, which the caller refuses."""
    config = load_json(Path(folder) / "config.json")
    settings = dict(list(config.items())[:list(config).index("id")]) if config and "id" in config else None
    if settings is not None and version in (None, config.get("version")) and digest(settings) != config["id"]:
        raise InputError(f"{Path(folder) / 'config.json'} was changed since its run was made: bring it back as it "
                         "was, or choose another run")
    return config


def mark_of(path):
    """What a checkpoint says of where it belongs: [id of its run's settings, name of the file]; None in no run."""
    run = (load_json(Path(path).parent / "config.json") or {}).get("id")
    return [run, Path(path).name] if run else None


def read_folds(folder, fold_of):
    """folds.csv of a run: a dict for each slide. InputError where it isn't whole or names patients that no model knows."""
    path = Path(folder) / "folds.csv"
    header, rows = read_rows(path)
    rows = [dict(zip(header, row)) for row in rows if len(row) == len(header)]
    if not rows or not {"slide", "patient"} <= set(header):
        raise InputError(f"{path}: wanted are rows with slide and patient; it has {few(header)}; bring it back as it was made")
    unknown = sorted({row["patient"] for row in rows} - set(fold_of))
    if unknown:
        raise InputError(f"{path}: no model of the run knows the patients {few(unknown)}; bring it back as it was made")
    return rows


# Several processes of one run (torchrun): each makes its part of the slides, then of the folds or splits, which don't depend
# on each other, so that the results are those of one process to the bit; the first one speaks, checks and judges. [ours]
def share_of_slides():
    """(rank, processes) that share the slides, from RANK and WORLD_SIZE, as torchrun or a cluster's array job set them."""
    rank, world = (os.environ.get(k) for k in ("RANK", "WORLD_SIZE"))
    if rank is None and world is None:
        return 0, 1
    if not (rank and world and rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise InputError(f"RANK={rank or ''} WORLD_SIZE={world or ''} in the environment: wanted are both, RANK from 0 to "
                         "WORLD_SIZE - 1")
    return int(rank), int(world)


def join_processes():
    """(rank, processes) of a run under torchrun, which see each other from here on; (0, 1) without it."""
    rank, world = share_of_slides()
    if world > 1 and not dist.is_initialized():
        if "MASTER_ADDR" not in os.environ:
            raise InputError(f"RANK={rank} WORLD_SIZE={world} in the environment, but no MASTER_ADDR: processes of one run "
                             "must see each other; start them with torchrun, or one without RANK and WORLD_SIZE")
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            PROCESSES[:] = [dist.new_group(backend="gloo", timeout=timedelta(days=2))]     # a part may take hours
        except (RuntimeError, ValueError) as e:                                # no port, no network, no such host
            raise InputError(f"process {rank} of {world} can't reach the others ({str(e).splitlines()[0]})") from None
    return rank, world


def of_all(value):
    """[value of each process], in all of them, when the last has come here."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(values, value, PROCESSES[0])
    except RuntimeError:
        raise InputError("another process of this run has ended, and says why; the same command goes on from here") from None
    return values


def wait_for_others(world):
    """Under torchrun, which stops all processes as soon as one ends with a status that is not 0, end together."""
    if world > 1 and "MASTER_ADDR" in os.environ:
        join_processes()
        of_all(None)


def by_first(function):
    """What function returns in the first process, in all of them; what it refuses there ends them all, in one line."""
    if not dist.is_initialized():
        return function()
    value, failed = None, False
    if dist.get_rank() == 0:
        try:
            value = function()
        except (InputError, OSError) as e:
            say_error(e)
            failed = True
    value, failed = of_all((value, failed))[0]
    return sys.exit(2) if failed else value


def share_out(make, cohort, slides, o, *into):
    """make(cohort, slides, o) -> {slide: why it failed}, each of several processes its part of the slides."""
    rank, world = o.share
    failed = {name: why for part in of_all(make(cohort, slides[rank::world], o, *into)) for name, why in part.items()}
    return {name: failed[name] for name in slides if name in failed}


@contextmanager
def one_voice(o, shared):
    """A context for a command: of several processes (o.share) the first prints, the others only by `say`. InputError where
    the command, o.verb, is not one of those that are `shared` out."""
    if o.verb in shared:
        o.share = join_processes()
    elif os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(f"WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment: {o.verb} is one process; several share "
                         f"{', '.join(shared)} and the steps of tiling.py: leave torchrun out")
    with redirect_stdout(None) if dist.is_initialized() and dist.get_rank() else nullcontext():
        yield
    if dist.is_initialized():
        dist.destroy_process_group()


def say(text):
    """Print a line that each process has to say."""
    print(text, file=sys.stdout or sys.__stdout__, flush=True)


def log_path(folder, share):
    """log.jsonl, a line for each piece of work, or the part of it that one of several processes writes."""
    return folder / ("log-{}-of-{}.jsonl".format(*share) if share[0] else "log.jsonl")


def read_log(folder):
    """The entries of a run's log, of all processes. A half line, which a full disk or a power cut left, is left out."""
    entries = []
    for path in sorted(folder.glob("log*.jsonl"), key=lambda path: len(path.name)):
        for line in path.read_text(errors="replace").splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                pass
    return [e for e in entries if isinstance(e, dict)]


def write_log(folder, entries):
    """Make log.jsonl anew from these entries; those of other processes are in it."""
    save_file(folder / "log.jsonl", lambda f: f.writelines((json.dumps(e) + "\n").encode() for e in entries))
    for path in folder.glob("log-*.jsonl"):
        path.unlink()


def load_checkpoint(path, device, model=None, keys=("model",)):
    """A dict of tensors and plain values; no pickled code is run. InputError when it is not whole, has not the keys, is of
    another run or fold than its place says, or of another network than `model`, which gets its weights."""
    mark, why = mark_of(path), None
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        [saved[k] for k in keys]
        if mark and saved.get("run", mark) != mark:
            why = "of another run or fold"
        elif model is not None:
            model.load_state_dict(saved["model"])
    except Exception as e:      # torch's, zip's and pickle's errors share no class
        why = "of another network" if isinstance(e, RuntimeError) and "state_dict" in str(e) else type(e).__name__
    if why:
        raise InputError(f"{path}: not a whole checkpoint of this run ({why}); delete it to have it made again")
    return saved


def say_anew(folder, anew):
    """Say which results are made anew and why; anew: [(settings they were made with, settings wanted)]."""
    if anew:
        print(f"{folder}: {len(anew)} slides are made anew: {differences(*anew[0])}")


def fingerprint(path):
    """Tells one slide file from another without reading it all: size and hash of its first and last 64 KiB."""
    block = 2 ** 16
    try:
        size = path.stat().st_size
        with open(path, "rb") as f:
            ends = f.read(block)
            f.seek(max(0, size - block))
            return f"{size} bytes, {hashlib.sha256(ends + f.read(block)).hexdigest()[:16]}"
    except OSError as e:
        return f"unreadable ({e.strerror})"                                    # opening it will say so


def tile_settings(cohort, o):
    for k in ("tile_um", "min_tissue", "max_tiles", "mpp", "min_area"):
        if getattr(o, k) is not None and not within(getattr(o, k), *RANGES[k]):
            raise InputError("--{} {}: must lie between {:g} and {:g}".format(k.replace("_", "-"), getattr(o, k),
                                                                              *RANGES[k]))
    um, folder = encoder_wants(o)["tile_um"], Path(cohort) / "tiles"
    asked = dict(tile_um=o.tile_um, min_tissue=o.min_tissue, max_tiles=o.max_tiles, mpp=o.mpp, seed=o.tile_seed,
                 **{k: getattr(o, k) for k in TISSUE})
    settings = settle(folder / "settings.json", asked, dict(tile_um=um or TILE_UM, min_tissue=MIN_TISSUE,
                                                            max_tiles=MAX_TILES, mpp=None, seed=o.seed, **TISSUE))
    if um not in (None, settings["tile_um"]):
        raise InputError(f"{o.encoder} learned from tiles of {um:g} µm, " + ("--tile-um is" if o.tile_um else f"those in "
                         f"{folder} are of") + f" {settings['tile_um']:g}: --tile-um {um:g} cuts them anew")
    if settings["tissue"] == "stain":
        if o.tissue_threshold not in (None, "otsu"):
            raise InputError(f"--tissue-threshold {o.tissue_threshold:g} is a level of saturation: add --tissue saturation")
        settings["tissue_threshold"] = "otsu"
    return {k: v for k, v in settings.items() if k not in TISSUE or v != TISSUE[k]}            # as before these options


def table_mpp(cohort):
    """{slide: mpp} of samples.csv; used, like --mpp for the others, where the slide itself has none."""
    given = {}
    for row in read_samples(cohort) if (Path(cohort) / "samples.csv").exists() else []:
        try:
            given.update({row["slide"]: float(row["mpp"].replace("_", "x"))} if row.get("mpp") else {})
        except ValueError:
            raise InputError(f"{Path(cohort) / 'samples.csv'}: mpp {row['mpp']!r} of slide {row['slide']} is not a number "
                             "(µm per pixel, such as 0.25)") from None
    return given


def tiles_of(cohort, name):
    """(arrays of tiles/<slide>.npz, the settings that made them), or (None, None) where they are not there or not whole."""
    try:
        arrays = whole_arrays(Path(cohort) / "tiles" / f"{name}.npz", coords="inx", size="ix", tile="f", mpp="f", found="i",
                              settings="U")
        settings = json.loads(str(arrays["settings"]))
        check_places(arrays["coords"], arrays["tile"], arrays["size"])
    except (ValueError, RecursionError):                                       # InputError, too
        return None, None
    return (arrays, settings) if isinstance(settings, dict) and 0 < arrays["mpp"] < np.inf else (None, None)


def check_places(coords, tile, size):
    """InputError where tiles, coords (n, 2) and their edge, are not of a slide of `size` (W, H); all level-0 pixels."""
    if not (tile > 0 and (coords >= 0).all() and (coords + tile <= np.add(size, 1)).all()):
        raise InputError("tiles reach beyond the slide of {:,} x {:,} px: are these the features of another "
                         "slide?".format(*size))


def in_the_way(folder, name, *endings):
    """What keeps a slide's files from being written: a folder of the name of one; None where nothing does."""
    return next((f"{path} is a folder: move it away" for e in endings if (path := folder / f"{name}{e}").is_dir()), None)


def made_as(folder, name):
    """The settings that made a slide's features of a folder, as <slide>.json says; {} where it is not there or not whole."""
    side = load_json(folder / f"{name}.json") or {}
    return side if {"encoder", "weights"} <= set(side) and isinstance(side.get("tiles"), dict) else {}


def make_tiles(cohort, slides, o, into=None):
    """tiles/<slide>.npz (coords (n, 2) int32, tile and slide size, mpp, threshold, settings) and its picture .png, in the
    folder `into` (the cohort's own if not given)."""
    slides_in, cohort = Path(cohort), Path(into or cohort)
    found, given, shared = find_slides(slides_in), table_mpp(slides_in), tile_settings(cohort, o)
    failed, jobs, anew, wanted = {}, [], [], shared["tile_um"] / encoder_wants(o)["tile_px"]    # µm per pixel of a tile
    for name in counted("looking for tiles", slides, "slides"):
        settings = dict(shared, mpp=given.get(name, shared["mpp"]), file=name in found and fingerprint(found[name]))
        old, was = tiles_of(cohort, name)
        if was:                                                                # what had no part in the result may differ:
            idle = [*(["mpp"] if was.get("mpp") is None else []),                  # the slide has its own,
                    *(["seed"] if len(old["coords"]) == old["found"] else []),  # nothing was sampled,
                    *(["file"] if name not in found else [])]                  # only its tiles are kept here
            settings.update({k: was.get(k) for k in idle})
        if was == settings:
            continue
        why = in_the_way(cohort / "tiles", name, ".npz", ".png")
        if why or name not in found:
            failed[name] = why or f"no file {name}.* in {slides_in / 'slides'}"
            continue
        jobs.append((name, settings))
        anew += [(was, settings)] if was else []
    if jobs:
        hold(cohort / "tiles", o.share)
        say_anew(cohort / "tiles", anew)
        save_json(cohort / "tiles" / "settings.json", shared)
    tick = progress("tiles", len(jobs), "slides")
    for (name, settings), got in ordered_map(lambda job: find_tiles(found[job[0]], *job), jobs, o.workers):
        tick()
        if isinstance(got, Exception):
            failed[name] = str(got) or type(got).__name__
            continue
        arrays, picture = got
        if arrays["mpp"] > wanted * 1.01:
            print(f"slide {name}: {arrays['mpp']:.3f} µm per pixel is coarser than the {wanted:g} wanted: read at level 0 "
                  "and resampled up")
        save_file(cohort / "tiles" / f"{name}.png", lambda f: picture.save(f, "PNG"))
        save_file(cohort / "tiles" / f"{name}.npz", lambda f: np.savez(f, **arrays))
    release(cohort / "tiles")
    for name in slides:
        a = None if name in failed else tiles_of(cohort, name)[0]
        if a and len(a["coords"]) == 0:
            failed[name] = f"smaller than a tile of {shared['tile_um']:g} µm" if min(a["size"]) < a["tile"] else (
                f"no {shared['tile_um']:g} µm tile is {shared['min_tissue']:.0%} tissue: an empty slide, or --min-tissue "
                "or --min-area is too high")
    return failed


def make_features(cohort, slides, o, into=None):
    """features/<encoder>/<slide>.npy (n, D) float16; the .json beside it says which settings made it, and for --colour
    macenko the slide's stains and how many tiles were left unchanged. `into` as make_tiles."""
    slides_in, cohort, source, wants = Path(cohort), Path(into or cohort), features_folder(o), encoder_wants(o)
    folder, found, device = cohort / "features" / source, find_slides(slides_in), pick_device(o.device)
    file, px, norm = None if o.encoder in ENCODERS else o.encoder, wants["tile_px"], (wants["mean"], wants["std"])
    usual = dict(weights="imagenet", precision=pick_precision("auto", device), colour=COLOURS[0], seed=o.seed)
    beside = settle(folder.with_name(encoder_name(o.encoder)) / "settings.json", {}, usual)        # stretched: as those are
    settings = settle(folder / "settings.json",
                      dict(weights=file or o.weights, precision=o.precision and pick_precision(o.precision, device),
                           colour=wants["colour"] or o.colour, seed=o.tile_seed), beside)
    identity, jobs, made_by, anew = weights_identity(settings["weights"], settings["seed"]), [], {}, []
    get = lambda: load_encoder(o.encoder, settings["weights"], settings["seed"], device)
    net = None if any((folder / f"{s}.npy").is_file() for s in slides) else get()   # at the start, not after hours of tiling
    failed = make_tiles(slides_in, slides, o, cohort)
    for name in counted(f"looking for features {source}", [s for s in slides if s not in failed], "slides"):
        tiles, by = tiles_of(cohort, name)
        if by is None:
            failed[name] = f"{cohort / 'tiles' / name}.npz was there and is gone"
            continue
        made_by[name] = dict(encoder=source, weights=identity, precision=settings["precision"], colour=settings["colour"],
                             tiles=by, **(dict(tile_px=px) if file else {}))
        was = made_as(folder, name)
        was.pop("stains", None)                                                # found, not asked for
        if was == made_by[name] and (folder / f"{name}.npy").is_file():
            continue
        why = in_the_way(folder, name, ".npy", ".json")
        if why or name not in found:
            failed[name] = why or f"no file {name}.* in {slides_in / 'slides'} to make its features from"
            continue
        anew += [(was, made_by[name])] if was else []
        jobs.append((name, float(tiles["tile"]), tiles["coords"]))
    if not jobs:
        return failed
    hold(folder, o.share)
    say_anew(folder, anew)
    net = prepare_encoder(net or get(), device, settings["precision"])
    learned = None if o.encoder in ENCODERS or is_script(o.encoder) else read_encoder(o.encoder).get("patients")
    save_json(folder / "settings.json", {**settings, "encoder_saw": learned})
    stains, changed, current = {}, {}, threading.local()
    if settings["colour"] == "macenko":
        tick = progress("stains", len(jobs), "slides")
        for (name, *_), got in ordered_map(lambda job: slide_stains(open_slide(found[job[0]]), job[2], job[1], px,
                                                                    made_by[job[0]]["tiles"]["seed"]), jobs, o.workers):
            tick()
            stains[name], changed[name] = got, 0
            if isinstance(got, Exception):
                failed[name] = f"{found[name].name} can't be read to its end ({got})"
    jobs = [(name, tile, coords[a:b]) for name, tile, coords in jobs if name not in failed
            for a, b in tile_runs(coords, tile)]
    tick = progress(f"features {source}", sum(len(c) for _, _, c in jobs), "tiles")

    def read(job):                                                             # each thread keeps one slide open
        if getattr(current, "name", None) != job[0]:
            current.name, current.slide = job[0], open_slide(found[job[0]])
        tiles = read_tiles(current.slide, job[2], job[1], px)
        return (stretch(tiles), None) if settings["colour"] == "stretch" else macenko(tiles, stains.get(job[0]))

    def chunks(group):
        for (name, _, coords), got in group:
            tick(len(coords))
            if isinstance(got, Exception):
                raise InputError(f"{found[name].name} can't be read to its end ({got})")
            if stains:
                changed[name] += int(got[1].sum())
            yield got[0]

    for name, group in groupby(ordered_map(read, jobs, o.workers), key=lambda item: item[0][0]):
        try:
            done = encode(net, chunks(group), *norm)
        except InputError as e:
            failed[name] = str(e)
            continue
        if stains:
            vectors, top = [a.round(4).tolist() for a in stains[name]] if stains[name] else (None, None)
            made_by[name]["stains"] = dict(vectors=vectors, top=top, unchanged=len(done) - changed[name])
        (folder / f"{name}.json").unlink(missing_ok=True)                      # never an old label on new features
        save_file(folder / f"{name}.npy", lambda f: np.save(f, done))
        save_json(folder / f"{name}.json", made_by[name])
    release(folder)
    unchanged = {name: made_by[name]["stains"]["unchanged"] for name in changed if "stains" in made_by[name]}
    if any(unchanged.values()):
        print(f"--colour macenko: {sum(unchanged.values()):,} tiles hold too little stain and keep their colours, of "
              f"{few([name for name, n in unchanged.items() if n])}")
    return failed


def features_file(source, name):
    """The file of a slide's features in a folder made elsewhere: <slide>.h5 or .pt, in it or in CLAM's h5_files/ or
    pt_files/. An .h5 goes first, since it has coordinates. InputError when there is none."""
    for ending, inner in FOREIGN.items():
        for path in (source / f"{name}{ending}", source / inner / f"{name}{ending}"):
            if path.is_file():
                return path
    raise InputError(f"no file {source / name}.h5 or .pt")


def read_foreign(path, few=0):
    """What a file made elsewhere holds: (features (n, D) or None, n, coords (n, 2) or None, a dict of what is said).

    .h5 (CLAM, TRIDENT): datasets `features`, `coords` and their attributes; .pt: a tensor of features, or a dict of these;
    no pickled code is run. Each (n, ...) or (1, n, ...). few: only about so many rows of the features, evenly spread.
    """
    def rows(value, few=0):                                                    # of a dataset or tensor, as numpy, and n
        inner = (0,) if value.ndim == 3 and value.shape[0] == 1 else ()
        n = value.shape[len(inner)]
        value = value[(*inner, slice(None, None, max(1, n // few) if few else 1))]
        if torch.is_tensor(value):
            value = (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        if value.dtype.kind not in "fiu":
            raise ValueError(f"{value.dtype} in place of numbers")
        return value, n

    torchs = path.suffix == ".pt"
    h5py = None if torchs else need_h5py()
    wanted = "a tensor, or a dict with `features`, that loads without running code" if torchs else (
        "a CLAM/TRIDENT file with `features` and `coords`")
    try:
        if torchs:
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        with nullcontext(held if isinstance(held, dict) else dict(features=held)) if torchs else h5py.File(path) as held:
            features, n = rows(held["features"], few) if "features" in held else (None, 0)
            coords = rows(held["coords"])[0] if held.get("coords") is not None else None
            said = held if torchs else {k: v for part in (held, *held.values()) for k, v in part.attrs.items()}
    except Exception as e:      # h5py's, torch's and pickle's errors share no class
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"{path}: not {wanted} ({why})") from None
    return features, n, coords, said


def need_h5py():
    try:
        import h5py
        return h5py
    except ImportError:
        raise InputError("reading and writing .h5 features needs the package h5py: pip install h5py") from None


def foreign(source, name, rows=0):
    """(path, features, coords or None, what is said of the tiles) of a slide's features made elsewhere, as read_foreign.

    What the file lacks, coordinates or the size of its tiles, is taken from the .h5 of the same slide and as many tiles
    beside it: CLAM keeps them in h5_files/ and patches/, TRIDENT in patches/<slide>_patches.h5. [ours]
    """
    path = features_file(source, name)
    features, n, coords, said = read_foreign(path, rows)
    if features is None:
        raise InputError(f"{path}: no `features` in it; it has {few(list(said)) or 'nothing'}")
    for inner in ("h5_files", "patches"):
        for beside in (path.parent.parent / inner / f"{name}{end}" for end in (".h5", "_patches.h5")):
            if (coords is None or edge_said(said) is None) and beside != path and beside.is_file():
                _, _, there, more = read_foreign(beside, 1)
                if there is not None and len(there) == n:
                    coords, said = there if coords is None else coords, {**more, **said}
    return path, features, coords, said


def edge_said(said):
    """Edge of a tile in level-0 pixels by TRIDENT's patch_size_level0, by its patch_size and magnifications, or by CLAM's
    patch_size and downsample; None where they don't say."""
    def value(key):
        try:
            return max(0.0, float(np.ravel(said[key])[0]))
        except (KeyError, IndexError, TypeError, ValueError):
            return 0.0
    size, down = value("patch_size"), value("downsample")
    if not down and value("target_magnification"):
        down = value("level0_magnification") / value("target_magnification")
    if not down and "patch_level" in said and not value("patch_level"):
        down = 1.0
    edge = value("patch_size_level0") or size * down
    return edge if 0 < edge < np.inf else None


def features_made_by(cohort, source, name):
    """What a slide's features are, without reading them: the settings that made ours, or what tells files made elsewhere
    apart, wherever they lie: size, coordinates and every so-manieth row. [ours]

    source: an encoder's name (features/<encoder>/ of the cohort), or the Path of a folder of CLAM/TRIDENT files.
    """
    if not isinstance(source, Path):
        return load_json(Path(cohort) / "features" / source / f"{name}.json")
    path, features, coords, _ = foreign(source, name, FEW_ROWS)
    return dict(file=path.name, bytes=path.stat().st_size, content=digest(features, [] if coords is None else coords))


def load_features(cohort, source, name, check=True):
    """(features (n, D) float16, memory-mapped where ours; coords (n, 2) level-0 pixels) of one slide; source as above.

    Made elsewhere (`foreign`): of any float type (float64 becomes float32), coords None where no file has them. Raises
    InputError on what is missing, of the wrong shape or type, or (unless check is False: it reads all) not finite.
    """
    if not isinstance(source, Path):
        path = Path(cohort) / "features" / source / f"{name}.npy"
        coords = whole_arrays(Path(cohort) / "tiles" / f"{name}.npz", coords="inx")["coords"]
        try:
            features = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as e:  # of a damaged header anything may come
            raise InputError(f"{path}: not a whole array ({e}); delete it to have it made again") from None
    else:
        path, features, coords, _ = foreign(source, name)
        if features.dtype not in (np.float16, np.float32):
            with np.errstate(over="ignore"):                                   # beyond float32: infinite, and refused below
                features = features.astype(np.float32)
    if (features.ndim != 2 or features.dtype.kind not in "fiu"
            or coords is not None and (coords.shape != (len(features), 2) or coords.dtype.kind not in "fiu")):
        raise InputError(f"{path}: features {features.shape} and coords {np.shape(coords)} don't fit; wanted are numbers "
                         "(n, D) and (n, 2)")
    if 0 in features.shape:
        raise InputError(f"{path}: no tiles, or no features: {features.shape}")
    if check and not np.isfinite(features).all():
        raise InputError(f"{path}: NaN or infinite feature in tile {np.argmin(np.isfinite(features).all(1))}")
    if coords is not None and not np.isfinite(coords).all():
        raise InputError(f"{path}: NaN or infinite coords")
    return features, coords


def tile_edge(cohort, source, name, coords, asked=None):
    """Edge of a slide's tiles in level-0 pixels: ours say; of features made elsewhere the file does (`edge_said`), else it
    is what was `asked` for, else the pitch of their grid, and that is said."""
    if not isinstance(source, Path):
        return float(tiles_of(cohort, name)[0]["tile"])
    path, _, _, said = foreign(source, name, 1)
    edge = edge_said(said)
    if edge and asked and abs(edge / asked - 1) > .02:
        raise InputError(f"--tile-um: {path} says {edge:g} level-0 pixels for a tile, which is not {asked:g}: leave it out")
    if edge or asked:
        return edge or asked
    steps = np.concatenate([np.diff(np.unique(axis)) for axis in coords.T])
    if not len(steps):
        raise InputError(f"{path}: nothing says how large its one tile is: give --tile-um")
    print(f"{path}: nothing says how large its tiles are: taken to be {steps.min():g} level-0 pixels, the pitch of their "
          "grid; --tile-um says otherwise")
    return float(steps.min())


def source_name(o):
    """The folder name under supertiles/: the encoder's, or that of the .h5 folder. Where it is also that of an encoder
    file, each makes the super-tiles anew, never a mix."""
    name = Path(o.features).resolve().name if o.features else features_folder(o)
    return f"{name}-h5" if o.features and name in ENCODERS else name


def provenance(cohort, o, slides):
    """What a run's features are, for its config and report: encoder, weights and their hash, precision, tiles, seeds."""
    kmeans = load_json(Path(cohort) / "supertiles" / source_name(o) / "settings.json")
    if o.features:
        made = features_file(features_of(o), slides[0]).suffix
        return dict(source=source_name(o), made=f"elsewhere ({made})", supertiles=kmeans)
    side = load_json(Path(cohort) / "features" / source_name(o) / f"{slides[0]}.json")
    return dict(source=source_name(o), weights=side["weights"], precision=side["precision"], colour=side["colour"],
                supertiles=kmeans, **{k: v for k, v in side["tiles"].items() if k not in ("mpp", "file")},
                tile_px=side.get("tile_px", TILE_PX))


def features_of(o):
    """Where features come from, as load_features wants it: an encoder's name, or the Path of the folder --features."""
    if o.features and not Path(o.features).is_dir():
        raise InputError(f"--features {o.features}: no such folder")
    if o.features and not 1 <= (o.tile_um or TILE_UM) <= 1e4:
        raise InputError(f"--tile-um {o.tile_um:g}: must lie between 1 and 10000")
    return Path(o.features).resolve() if o.features else features_folder(o)


def say_twice(source, slides):
    """Say which slides have features made elsewhere as .h5 and as .pt."""
    there = lambda name, end: any((source / d / f"{name}{end}").is_file() for d in ("", FOREIGN[end]))
    say_left_out({f"slides have .h5 and .pt in {source}, the .h5 is taken": [
        name for name in slides if isinstance(source, Path) and all(there(name, end) for end in FOREIGN)]})


def make_supertiles(cohort, slides, o, into=None):
    """supertiles/<encoder>/<slide>.npz: means (100, D) float16, mask (100,), cluster of each tile (n,). `into` as
    make_tiles."""
    slides_in, cohort = cohort, Path(into or cohort)
    folder, source = cohort / "supertiles" / source_name(o), features_of(o)
    failed = {} if o.features else make_features(slides_in, slides, o, cohort)
    say_twice(source, slides)
    beside = cohort / "supertiles" / encoder_name(o.encoder) / "settings.json" if not o.features else Path()
    settings = settle(folder / "settings.json", dict(seed=o.tile_seed, k=None),
                      settle(beside, {}, dict(seed=o.seed, k=N_SUPERTILES)))
    keys, widths, nowhere = {}, {}, []

    def ready(name):
        keys[name] = json.dumps(dict(settings, features=features_made_by(cohort, source, name)), sort_keys=True)
        old = load_arrays(folder / f"{name}.npz")
        return (old["means"].shape[1], True) if old is not None and str(old.get("settings")) == keys[name] else None

    def make(name):
        features, coords = load_features(cohort, source, name)
        means, mask, cluster = half_supertiles(features, coords, settings["k"], settings["seed"])
        arrays = dict(means=means, mask=mask, cluster=cluster, settings=np.array(keys[name]))
        save_file(folder / f"{name}.npz", lambda f: np.savez(f, **arrays))
        return means.shape[1], coords is not None

    for what in ready, make:
        names = [s for s in slides if s not in failed and s not in widths]
        if what is make and names:
            hold(folder, o.share)
        tick = progress("super-tiles" if what is make else "looking for super-tiles", len(names), "slides")
        for name, got in ordered_map(what, names, o.workers):
            tick()
            if isinstance(got, Exception):
                failed[name] = str(got) or type(got).__name__
            elif got:
                widths[name], placed = got
                nowhere += [name] * (not placed)
    save_json(folder / "settings.json", settings)
    say_left_out({"slides have no coordinates, their super-tiles are runs of neighbouring rows": nowhere})
    release(folder)
    usual = max(set(widths.values()), key=list(widths.values()).count, default=None)
    failed.update({name: f"{w} features a tile, most slides have {usual}: another encoder's?" for name, w in widths.items()
                   if w != usual})
    return failed


def export(cohort, slides, o):
    """Tiles and features for other programs, in export/<encoder>/; what is missing is made first. [ours]

    --h5: h5_files/<slide>.h5, `features` (n, D) float32 and `coords` (n, 2) with the attributes of TRIDENT and CLAM.
    --geojson: <slide>.geojson, the tiles in QuPath's frame, each with its number.
    --csv: <slide>.csv, a row of features (six digits) for each tile, and <slide>.obs.csv, where it lies (level-0 pixels).
    They are written for anndata, which is not installed with this program and was not tried:
    a = anndata.read_csv("S.csv"); a.obs = pandas.read_csv("S.obs.csv", index_col=0)
    """
    source, found, given, px = features_of(o), find_slides(cohort), table_mpp(cohort), encoder_wants(o)["tile_px"]
    if not (o.h5 or o.geojson or o.csv):
        raise InputError("export what? --h5, --geojson, --csv")
    h5py = need_h5py() if o.h5 else None
    failed = {} if o.features else (make_features if o.h5 or o.csv else make_tiles)(cohort, slides, o)
    say_twice(source, slides)
    folder, ours = cohort / "export" / source_name(o), not o.features

    def attributes(name, tile):                                                # of the h5's coords
        if not ours:
            said = foreign(source, name, 1)[3]
            return {**{k: v for k, v in said.items() if isinstance(v, (int, float, str, np.generic, np.ndarray))},
                    "patch_size_level0": tile, "name": name}
        mpp = float(tiles_of(cohort, name)[0]["mpp"])
        return dict(patch_size=px, patch_size_level0=tile, downsample=(tile / px,) * 2, overlap=0, name=name, mpp=mpp,
                    level0_magnification=round(10 / mpp, 6), target_magnification=round(10 / mpp * px / tile, 6))

    def write_h5(f, name, features, coords, tile):
        with h5py.File(buffer := io.BytesIO(), "w") as h:
            h["features"], h["coords"] = np.asarray(features, np.float32), coords
            h["coords"].attrs.update(attributes(name, tile))
            h["features"].attrs.update(name=name, made_by=json.dumps(features_made_by(cohort, source, name)))
        f.write(buffer.getvalue())

    def one(name):
        features, coords = load_features(cohort, source, name) if not ours or o.h5 or o.csv else (
            None, tiles_of(cohort, name)[0]["coords"])
        slide = open_slide(found[name]) if name in found else None
        if coords is None:
            raise InputError(f"{features_file(source, name)} has no coordinates, nor has an .h5 beside it")
        if slide is None and o.geojson:
            raise InputError(f"no slide file {name}.* in {cohort}: it says where QuPath's pixels begin")
        mpp = given.get(name, o.mpp)
        if o.tile_um and not ours and slide:
            mpp = slide_mpp(slide, mpp, name)[0]
        tile = tile_edge(cohort, source, name, coords, o.tile_um / mpp if o.tile_um and mpp else None)
        if slide:
            check_places(coords, tile, slide.dimensions)
        ids = [f"{name}:{i}" for i in range(len(coords))]                      # no such name is a number to any reader
        if o.h5:
            save_file(folder / "h5_files" / f"{name}.h5", lambda f: write_h5(f, name, features, coords, tile))
        if o.geojson:
            there = coords - qupath_frame(slide, None)[1]
            save_json(folder / f"{name}.geojson", tiles_geojson(there, tile, np.arange(len(ids))[:, None], ["tile"]))
        if o.csv:
            save_csv(folder / f"{name}.csv", ("tile", *(f"f{j}" for j in range(features.shape[1]))), (
                (i, *(f"{v:.6g}" for v in row.tolist())) for i, row in zip(ids, features)))
            save_csv(folder / f"{name}.obs.csv", ("tile", "slide", "x", "y", "edge"), (
                (i, name, x, y, f"{tile:.9g}") for i, (x, y) in zip(ids, coords.tolist())))

    jobs = [name for name in slides if name not in failed]
    tick = progress("export", len(jobs), "slides")
    for name, got in ordered_map(one, jobs, o.workers):
        tick()
        failed.update({name: str(got) or type(got).__name__} if isinstance(got, Exception) else {})
    return failed


# ---------------------------------------------------------------------------------------------------------------------
# A run's models on slides: features as those it learned from. run: a dict of folder, config, rows (of folds.csv), cohort,
# folds (a checkpoint of each model), and fold_of {patient: models that did not learn from it}
# ---------------------------------------------------------------------------------------------------------------------
def pick_genes(text, known, where="the run"):
    """Indices of the genes of 'A,B,C', of a file (one a line, or its first column) or of 'all' in the list of known ones."""
    if text == "all":
        return list(range(len(known)))
    if len(text) < 256 and Path(text).is_file():
        header, rows = read_rows(text)
        names = [row[0].split("\t")[0].strip() for row in (header, *rows) if row]
    else:
        names = [g.strip() for g in text.split(",")]
    at, names = {g: i for i, g in enumerate(known)}, list(dict.fromkeys(filter(None, names)))
    for g in names:
        if g not in at:
            upper = {k.upper(): k for k in known}
            near = ", ".join(upper[n] for n in difflib.get_close_matches(g.upper(), upper, 3))
            raise InputError(f"--genes: {where} has no gene {g!r}; " + (f"nearest: {near}" if near else
                             f"it has {len(known):,}, such as {', '.join(known[:3])}"))
    if not names:
        raise InputError(f"--genes {text}: no gene in it")
    return [at[g] for g in names]


def held_out(run, slide, cohort, everyone):
    """Models (their numbers) that may speak of a slide: those that did not learn from its patient; all when it is new to the
    run. InputError when all of them did.

    The patient stands in the run's folds.csv, else in samples.csv, else is a TCGA slide's first 12 characters.
    """
    patient = next((row["patient"] for row in run["rows"] if row["slide"] == slide), None)
    for folder in (cohort, run["cohort"]) if patient is None else ():
        if (folder / "samples.csv").is_file():
            patient = patient or {row["slide"]: row["patient"] for row in read_samples(folder)}.get(slide)
    models = next((run["fold_of"][p] for p in (patient, slide[:12]) if p in run["fold_of"]), None)
    if models == [] and not everyone:
        raise InputError(f"every model of {run['folder']} learned from patient {patient}: a run with --rotate has one for each "
                         "patient that did not; --all-models asks them all the same")
    return list(range(len(run["folds"]))) if models is None or everyone else models


def features_as(run, o, cohort, slides):
    """Find, or make where they are missing, features of slides as the run's. -> (options, folder, source, {slide: why it
    failed}).

    What is ready is used as it is. Other encoder, weights, tile size or colours: an InputError that names both.
    """
    made, o, into, failed = run["config"]["features"], argparse.Namespace(**vars(o)), Path(o.into or cohort), {}

    def compare(what, other):
        differ = [f"{k} {other[k]}, the run has {made[k]}" for k in ("source", "weights", "tile_um", "colour")
                  if other.get(k) is not None and other[k] != made[k]]
        if differ:
            raise InputError(f"{what}: {'; '.join(differ)} ({run['folder']}); features of another kind mean nothing to it. "
                             "Give --into another folder to have them made there")
    if "made" in made:                                                         # elsewhere: an .h5 file does not say by what
        o.features = o.features or run["config"]["features_folder"]
        source = features_of(o)
        say_twice(source, slides)
        if source_name(o) != made["source"]:
            raise InputError(f"--features {o.features}: the run {run['folder']} learned from features in a folder "
                             f"{made['source']}; if these are of the same encoder and tile size, give their folder that "
                             "name")

        def read(cohort, slides, o):
            failed, tick = {}, progress("reading features", len(slides), "slides")
            for name in slides:
                tick()
                try:
                    width = load_features(cohort, source, name)[0].shape[1]
                    if width != run["config"]["n_features"]:
                        failed[name] = f"{width} features a tile, the run learned from {run['config']['n_features']}"
                except InputError as e:
                    failed[name] = str(e)
            return failed
        return o, into, source, share_out(read, cohort, slides, o)
    if o.features:
        raise InputError(f"--features {o.features}: the run {run['folder']} learned from this program's {made['source']} "
                         f"with weights {made['weights']}; leave --features out")
    kind = made["weights"].split()[0].strip(",")                               # imagenet, random or a file's name
    given = weights_identity(o.weights, o.seed) if o.weights not in (None, kind) else None
    compare("options", dict(tile_um=o.tile_um, weights=given))
    source = made["source"]
    tiles, features = (load_json(into / d / "settings.json") or {} for d in ("tiles", f"features/{source}"))
    compare(f"tiles in {into}", tiles)
    found, ready, folder = find_slides(cohort), [], into / "features" / source
    for name in counted(f"looking for features {source}", slides, "slides"):
        side = made_as(folder, name)
        if side and (folder / f"{name}.npy").is_file() and tiles_of(into, name)[0]:
            side.update(source=side["encoder"], tile_um=side["tiles"].get("tile_um"))
            compare(f"features of slide {name} in {into}", side)
            if name not in found or side["tiles"].get("file") in (False, fingerprint(found[name])):  # not of another file
                ready.append(name)
    o.weights = o.weights or features.get("weights") or (kind if kind in ("imagenet", "random") else None)
    todo = by_first(lambda: [name for name in slides if name not in ready])    # another may have begun to make them
    if todo and not o.weights:
        raise InputError(f"the run {run['folder']} learned with weights {made['weights']}: give that file with --weights "
                         "FILE")
    o.seed = int(made["weights"].split("seed ")[1]) if kind == "random" else made["seed"]
    o.tile_seed = o.seed if kind == "random" else None
    o.tile_um, o.min_tissue, o.max_tiles = made["tile_um"], *(tiles.get(k, made[k]) for k in ("min_tissue", "max_tiles"))
    for k, usual in TISSUE.items():                                     # a rule is not named where it is the usual
        setattr(o, k, (tiles or made).get(k, usual))
    o.precision, o.colour = features.get("precision", o.precision), made["colour"]
    name = source.removesuffix("-stretch") if o.colour == "stretch" else source
    o.encoder = name if name in ENCODERS else o.weights                 # an encoder's file is its weights, too
    if todo:
        compare("weights", dict(weights=weights_identity(o.weights, o.seed)))
        failed = share_out(make_features, cohort, todo, o, into)
    return o, into, source, failed


def each_slide(run, o, failed):
    """(options, its cohort or folder, folder of its features, their source, name) of every slide asked for, features ready.

    o.slide: slide files (or .h5 and .pt features), names of the run's slides, or ['all']. What fails is put into `failed`.
    """
    known, groups = {row["slide"] for row in run["rows"]}, {}
    for text in sorted(known) if o.slide == ["all"] else o.slide:
        path = Path(text)
        if len(text) > 255 or not path.is_file():
            if text not in known:
                raise InputError(f"{few([text])}: neither a slide file nor a slide of the run {run['folder']}")
            name, home, features = text, run["cohort"], o.features
        elif path.suffix in FOREIGN:
            name, home, features = path.stem, run["folder"] / "predict", o.features or path.parent
        else:                                                                  # COHORT/slides/x.svs is COHORT's
            path = path.absolute()
            name, home, features = path.stem, path.parent.parent if path.parent.name == "slides" else path.parent, o.features
        twice = [place for (place, _), names in groups.items() if name in names]
        if twice:
            both = f", in {twice[0]} and {home}: what is written for one would overwrite the other"
            raise InputError(f"slide {name} is asked for twice" + both * (twice[0] != home))
        groups.setdefault((home, features), []).append(name)
    for (home, features), names in groups.items():
        options = argparse.Namespace(**{**vars(o), "features": features})
        options, into, source, bad = features_as(run, options, home, names)
        failed.update(bad)
        for name in counted(run["folder"].name, [n for n in names if n not in bad], "slides"):
            yield options, home, into, source, name


def every_tile(run, o, home, into, source, name):
    """The folder with the features of *every* tissue tile of a slide: where they were limited, they are made without it."""
    if isinstance(source, Path):
        return into
    tiles, settings = tiles_of(into, name)
    if len(tiles["coords"]) == tiles["found"]:
        return into
    everywhere = argparse.Namespace(**{**vars(o), "max_tiles": 10 ** 9, "mpp": settings["mpp"]})
    wanted = run["config"]["features"]["weights"]
    if not o.weights:
        raise InputError(f"the run {run['folder']} learned with weights {wanted}: give that file with --weights FILE")
    failed = make_features(home, [name], everywhere, into / "all-tiles")
    side = load_json(into / "all-tiles" / "features" / source / f"{name}.json") or {}
    if failed or side.get("weights") != wanted:
        raise InputError(failed.get(name) or f"--weights: {side.get('weights')}, the run has {wanted}")
    return into / "all-tiles"


# ---------------------------------------------------------------------------------------------------------------------
# What an auditor is shown: choices of the method, whom each step learned from, what each choice is worth.
# A row of CHOICES (a table in he2rna.py, one in histcode.py): command, name, paper, authors' code, ours, other side, tag.
# A name that begins with -- is an option that has been there anyway: the table shows it, --code and audit don't take it.
# ---------------------------------------------------------------------------------------------------------------------
def switches(choices, command):
    """{name for --code: what is done where it is given} of one command."""
    return {name: dict(paper=paper, code=code).get(other, other)
            for c, name, paper, code, _, other, _ in choices if c == command and not name.startswith("--")}


def flipped(choices, command, names, follow):
    """The choices that --code names or --follow paper|code turns to their other side, in the table's order."""
    side = lambda paper, code: dict(paper=paper, code=code)                    # the same words: the same side
    return [name for c, name, paper, code, _, other, _ in choices if c == command and (
        name in names or follow and other in side(paper, code) and side(paper, code)[follow] == side(paper, code)[other])]


def chosen_of(known):
    """A type for argparse: names of `known`, separated by commas, in its order."""
    def names(text):
        asked = [t.strip() for t in text.split(",")]
        if set(asked) - set(known):
            raise argparse.ArgumentTypeError(f"{few(sorted(set(asked) - set(known)))}: choose from {', '.join(known)}")
        return tuple(k for k in known if k in asked)
    return names


def add_choices(a, choices, command):
    """The options --follow and --code of a command."""
    a("--follow", choices=("paper", "code"), help="all choices as the paper or as the authors' code (default: see "
      "`choices`)")
    a("--code", type=chosen_of(switches(choices, command)), action="extend", default=[], metavar="A,B", help="turn these to "
      "their other side, to see what they are worth (the verb `choices` says what each is): "
      + ", ".join(switches(choices, command)))


def show_choices(choices, program):
    """Print the table: what paper and authors' code say, what is done here, what --code NAME turns it to."""
    width, header = (21, 26, 28, 21, 20), ("command, name", "the paper", "the authors' code", "ours", "--code turns it to")
    rows = [(f"{c} {name}", paper, code, f"{ours} {tag}", {"code": "the code's", "paper": "the paper's"}.get(other, other))
            for c, name, paper, code, ours, other, tag in choices]
    for row in (header, *rows):
        cells = [textwrap.wrap(cell, w) for cell, w in zip(row, width)]
        for i in range(max(map(len, cells))):
            print(" ".join(f"{cell[i] if i < len(cell) else '':{w}}" for cell, w in zip(cells, width)).rstrip())
        print("-" * (sum(width) + len(width) - 1) if row is header else "")
    print(f"One or several: python {program} {choices[0][0]} COHORT --code NAME,..; a whole side: --follow paper|code."
          f"\nWhat each is worth on a cohort: python {program} audit [COHORT]")


AUDIT_NOTE = ("First row: the run of default settings. The others: the run with this choice alone turned to its other side, "
              "less the default run of the same seed; mean and 95 % interval over the seeds (Student's t). The patients are "
              "the same, so nothing here speaks of other patients.")


def saw(ledger, step, whom):
    """Leak ledger, {step: sorted list}: put down whom a step learned from, where it does. what_saw_whom reads it."""
    ledger[step] = sorted({*ledger.get(step, ()), *np.asarray(whom).tolist()})


def encoder_saw(cohort, source):
    """Patients whose tiles an encoder learned from: known of those of histcode.py pretrain, nobody here for ImageNet's and
    random weights; None where it is not known (files, features made elsewhere)."""
    made = {} if isinstance(source, Path) else load_json(Path(cohort) / "features" / source / "settings.json") or {}
    return [] if made.get("weights") in ("imagenet", "random") else made.get("encoder_saw")


def what_saw_whom(ledgers, tested, remarks):
    """Leak ledger of a run -> rows (step, patients seen, of them test patients of the fold, remark), and the steps that saw
    any of those, but for judges. ledgers: {step: patients} of each fold; tested: its test patients; remarks: {step: why it
    may, or None: it judges and teaches nothing}."""
    rows, leaks = [], []
    span = lambda values: "–".join(map(str, sorted({min(values), max(values)})))
    for step in dict.fromkeys(step for ledger in ledgers for step in ledger):
        seen, name = [set(ledger.get(step, ())) for ledger in ledgers], step.split(": ")[-1]
        test = [len(s & set(t)) for s, t in zip(seen, tested)]
        judges = name in remarks and remarks[name] is None
        rows.append((step, span(list(map(len, seen))), f"{span(test)} of {span(list(map(len, tested)))}",
                     "by design: it judges, nothing learns from it" if judges else
                     remarks.get(name, "**a leak**") if any(test) else ""))
        leaks += [step] if any(test) and not judges else []
    return rows, leaks


def ledger_lines(ledgers, tested, remarks, encoder):
    """(lines for the top of a report, its section "What saw whom"). encoder: of encoder_saw."""
    ledgers = [{**({"encoder, without labels": encoder} if encoder else {}), **ledger} for ledger in ledgers]
    remarks = {"encoder, without labels": "their tiles, no label or expression", **remarks}
    rows, leaks = what_saw_whom(ledgers, tested, remarks)
    return ([f"**Steps that saw test patients: {', '.join(leaks)}** (What saw whom, below).", ""] if leaks else [],
            ["## What saw whom", "", "Patients that each step of each fold learned from, put down where it did (least to most "
             "over the folds). Otsu's threshold, Macenko's stains and the k-means of super-tiles learn from one slide alone, "
             "Macenko's reference is published" + ("." if encoder is not None else "; whom the encoder learned from is not "
                                                   "known here."), "",
             table(("step", "patients", "test patients of its fold", ""), rows), ""])


def run_audit(folder, jobs, texts, settings, what, after=0):
    """Run the default and each choice alone, and write what a choice changes after each. Returns the exit status.

    jobs: {(command, "default" or choice, seed): a function -> ({measure: value}, seconds or None, exit status)}, which goes
    on where it stopped; texts {command: {choice: what it is turned to}}; settings: those all have in common, of which the
    folder's must be; what: a line for the report; after: how many runs come after these, for the time left. audit.csv keeps
    the choices of earlier commands.
    """
    claim_folder(folder, dict(settings, command="audit"), "audit.csv")
    done, status, path = {}, 0, folder / "audit.csv"
    rows = read_rows(path)[1] if path.is_file() else []
    try:
        for command, name, seed, measure, value, _, seconds in rows:
            {"default": "", **texts[command]}[name]                            # KeyError: none of ours
            done.setdefault((command, name, int(seed)), ({}, number(seconds)))[0][measure] = number(value)
        [done[c, "default", seed][0][m] for (c, _, seed), (values, _) in done.items() for m in values]
    except (KeyError, ValueError):
        raise InputError(f"{path}: not whole, or not of this program: delete it to begin again") from None
    for i, ((command, name, seed), job) in enumerate(jobs.items()):
        print(f"\n--- {command}, {name}, seed {seed} ({i + 1} of {len(jobs)})", flush=True)
        *done[command, name, seed], failed = job()
        status |= failed
        write_audit(folder, done, texts, what)
        spent, left = [s for _, s in done.values() if s is not None and not np.isnan(s)], len(jobs) - i - 1 + after
        if spent and left:
            print(f"{left} runs left, {clock(np.mean(spent) * left)} at the mean of the {len(spent)} done", flush=True)
    return status


def write_audit(folder, done, texts, what):
    """audit.csv, a row per run and measure, and audit.md, a row per choice: the difference from the default run of the same
    seed, its mean and 95 % interval over seeds (Student's t). done: {(command, choice, seed): ({measure: value}, seconds)}."""
    order = {(c, name): i for i, (c, name) in enumerate((c, name) for c in texts for name in ("default", *texts[c]))}
    keys = sorted(done, key=lambda k: (order[k[:2]], k[2]))
    change = {k: {m: v - done[k[0], "default", k[2]][0][m] for m, v in done[k][0].items()} for k in keys}
    text = lambda v: "" if v is None or np.isnan(v) else f"{v:.6g}"
    save_csv(folder / "audit.csv", ("command", "choice", "seed", "measure", "value", "change", "seconds"),
             ((*k, m, text(v), text(change[k][m]), text(done[k][1])) for k in keys for m, v in done[k][0].items()))
    lines = ["# What each choice is worth", "", what, ""]
    for command in dict.fromkeys(k[0] for k in keys):
        measures, rows = list(next(done[k][0] for k in keys if k[0] == command)), []
        for name in dict.fromkeys(k[1] for k in keys if k[0] == command):
            own = [k for k in keys if k[:2] == (command, name)]
            of, sign = ({k: done[k][0] for k in own}, "") if name == "default" else (change, "+")
            seconds = [done[k][1] for k in own]
            rows.append((name, texts[command].get(name, "as it is"),
                         *(over_seeds([of[k][m] for k in own], 1 if m in COUNTS else 3, sign) for m in measures),
                         ", ".join(str(k[2]) for k in own),
                         "" if None in seconds or np.isnan(seconds).any() else clock(np.mean(seconds))))
        lines += [f"## {command}", "", table(("choice", "turned to", *measures, "seeds", "time of one"), rows), ""]
    save_text(folder / "audit.md", lines)


def over_seeds(values, digits, sign=""):
    """'mean (95 % interval over seeds)', by Student's t."""
    v, text = np.array(values, float), lambda number: f"{number:{sign}.{digits}f}"
    half = special.stdtrit(len(v) - 1, .975) * v.std(ddof=1) / len(v) ** .5 if len(v) > 1 else 0
    return text(v.mean()) + (f" ({text(v.mean() - half)} to {text(v.mean() + half)})" if len(v) > 1 else "")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures: scores on the slide, the best and worst tiles, scores against counts  [HE2RNA Fig. 4]
# ---------------------------------------------------------------------------------------------------------------------
def need_matplotlib():
    try:
        import matplotlib
        matplotlib.use("Agg")                                                  # no window: clusters have none
        import matplotlib.pyplot as plt
        return plt
    except ImportError:
        raise InputError("the report's pictures need the package matplotlib: pip install matplotlib") from None


@contextmanager
def figure(path, *grid, **options):
    """Axes to draw a plot on, saved as a png at the end; grid and options are those of pyplot's subplots."""
    plt = need_matplotlib()
    fig, axes = plt.subplots(*grid, layout="constrained", **options)
    yield axes
    save_file(path, lambda f: fig.savefig(f, dpi=130, format="png"))
    plt.close(fig)


@contextmanager
def whole_folder(folder):
    """A folder that is there whole or not at all: yields where to write; at the end that takes the place of the old one,
    which lies beside until then. What killed processes have left beside goes; an old one goes back where there is no new."""
    mine = f".{folder.name}.{digest(platform.node())[:6]}"                      # another host's processes can't be asked for
    work, old = (folder.with_name(f"{mine}.{os.getpid()}.{end}") for end in ("tmp", "old"))

    def tidy():
        for path in list(folder.parent.iterdir()) if folder.parent.is_dir() else ():
            left = re.fullmatch(rf"{re.escape(mine)}\.(\d+)\.(tmp|old)", path.name)
            if left and (int(left[1]) == os.getpid() or started(int(left[1])) is None):
                if left[2] == "old" and not folder.exists():
                    os.replace(path, folder)
                shutil.rmtree(path, ignore_errors=True)
    tidy()
    try:
        yield work
        if folder.exists():
            os.replace(folder, old)
        os.replace(work, folder)
    finally:
        tidy()


def map_ground(home, into, source, name, coords, o):
    """What a map is drawn on: (the slide, its size (W, H), µm per pixel, edge of a tile in level-0 pixels); o.mpp where
    neither the slide nor samples.csv says, o.tile_um where nobody does. InputError without a slide file or coordinates, and
    where the tiles are not of this slide."""
    found = find_slides(home)
    if name not in found:
        raise InputError(f"no slide file {name}.* in {home}: a map is drawn over the slide")
    if coords is None:
        raise InputError(f"{features_file(source, name)} has no coordinates: a map needs them, from an .h5 of the same "
                         f"slide, such as {source.parent / 'h5_files' / name}.h5")
    slide, elsewhere = open_slide(found[name]), isinstance(source, Path)
    mpp = slide_mpp(slide, table_mpp(home).get(name, o.mpp), name)[0] if elsewhere else float(tiles_of(into, name)[0]["mpp"])
    tile = tile_edge(into, source, name, coords, o.tile_um and o.tile_um / mpp)
    check_places(coords, tile, slide.dimensions)
    return slide, slide.dimensions, mpp, tile


def tile_corners(coords, tile):
    """(n, 2) level-0 top-left, edge -> (n, 4, 2) corners of each tile, level-0 pixels, clockwise on the slide."""
    return np.asarray(coords, np.float64)[:, None] + tile * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])


def scale_bar_um(width):
    """The longest of 1, 2, 5, 10, 20, ... µm that is at most a third of `width` µm (and so at least 2/15 of it)."""
    steps = np.outer(10.0 ** np.arange(-2, 7), (1, 2, 5)).ravel()
    return float(steps[steps <= width / 3][-1])


def color_range(scores):
    """(low, high, which ends of the colour bar go on): SCORE_RANGE percentiles, each a tile's score; equal: the extremes."""
    low = np.percentile(scores, SCORE_RANGE[0], method="lower")
    high = np.percentile(scores, SCORE_RANGE[1], method="higher")
    if low == high:
        low, high = scores.min(), scores.max()
    beyond = (bool(scores.min() < low), bool(scores.max() > high))
    if low == high:
        low, high = low - .5, high + .5
    return low, high, {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]


def paper(plt, width, height, title):
    """A white figure: room of width x height inches under its title. Returns it and the upper end of the room, inches."""
    lines = textwrap.wrap(title, int(width * 11), break_on_hyphens=False) or [""]
    height += .1 + .2 * len(lines)
    fig = plt.figure(figsize=(width, height), dpi=PICTURE_DPI, facecolor="white")
    fig.text(.2 / width, 1 - .1 / height, "\n".join(lines), ha="left", va="top", fontsize=10, color=INK, parse_math=False)
    return fig, height - .1 - .2 * len(lines)


def place(fig, left, bottom, width, height):
    """Axes at a place given in inches, with a thin frame and no ticks."""
    W, H = fig.get_size_inches()
    ax = fig.add_axes((left / W, bottom / H, width / W, height / H), xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set(color=RULE, linewidth=.5)
    return ax


def draw_heatmap(path, rgb, size, mpp, coords, tile, scores, title, label, points=None, outlines=()):
    """The slide with its scale bar beside (wide slides: above) the same slide in grey under its tile scores, a PNG.

    rgb (h, w, 3) uint8 of the whole slide of size (W, H) level-0 pixels; mpp µm per level-0 pixel; coords (n, 2) level-0
    top-left; tile: edge in level-0 pixels; scores (n,) finite, label: their name and unit; points (m, 2) level-0 x, y,
    drawn on the slide; outlines: polygons, lists of rings (k, 2), drawn on both [HistCode Fig. 10]. Each tile is drawn
    where it lies, opaque: its colour is the colour bar's. [HE2RNA Fig. 4a]
    """
    plt = need_matplotlib()
    from matplotlib.collections import PolyCollection
    scores, (W, H) = np.asarray(scores, np.float64), size
    assert scores.shape == (len(coords),) and len(scores) and np.isfinite(scores).all(), (scores.shape, len(coords))
    wide = W > 1.6 * H
    w, h = np.maximum(np.array(size) / max(W, H) * PICTURE_IN * (1.5 if wide else 1), .02)      # inches of one picture
    slot, label = max(w, 2.8), textwrap.wrap(label, 45) or [""]                # a slot also holds what is written under it
    margin, above, bar_below, colors_below = .2, .28, .4, .5 + .14 * len(label)                 # inches
    if wide:
        fig, top = paper(plt, slot + 2 * margin, 2 * (above + h) + bar_below + colors_below, title)
        left, right = (margin, top - above - h), (margin, colors_below)
    else:
        fig, top = paper(plt, 2 * slot + 3 * margin, above + h + colors_below, title)
        left, right = (margin, colors_below), (2 * margin + slot, colors_below)

    pixels = max(1, round(w * PICTURE_DPI)), max(1, round(h * PICTURE_DPI))    # resampled here once: sharp, never aliased
    rgb = np.asarray(Image.fromarray(rgb).resize(pixels, Image.Resampling.LANCZOS))
    grey = np.repeat(rgb.mean(2, keepdims=True) * .45 + 255 * .55, 3, 2).astype(np.uint8)       # pale, so that colours lead
    if points is not None:
        rgb = (rgb * .5 + 255 * .5).astype(np.uint8)                           # paler, so that points are seen on nuclei too
    axes = []
    for corner, picture, caption in ((left, rgb, "slide" if points is None else f"slide and {len(points):,} points"),
                                     (right, grey, f"{len(scores):,} tile{'s' * (len(scores) > 1)}")):
        axes.append(place(fig, *corner, w, h))
        axes[-1].imshow(picture, extent=(0, W, H, 0), interpolation="nearest", aspect="auto")
        axes[-1].annotate(caption, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=8, color=INK)

    if points is not None and len(points):
        dot = np.clip(1e4 / len(points), .15, 6)                               # area in points², less where there are many
        axes[0].scatter(*np.asarray(points, np.float64).T, s=dot, c=POINT, linewidths=0)
    bar = scale_bar_um(max(W, H / 5) * mpp)                                    # of a very tall slide, a fifth of its height
    axes[0].plot([0, bar / mpp], [-.08 / h] * 2, transform=axes[0].get_xaxis_transform(), color=INK, lw=2.5,
                 solid_capstyle="butt", clip_on=False)                         # under the slide: legible on any
    axes[0].annotate(f"{bar / 1000:g} mm" if bar >= 1000 else f"{bar:g} µm", (0, 0), (0, -10), "axes fraction",
                     "offset points", va="top", fontsize=8, color=INK)

    low, high, ends = color_range(scores)
    tiles = PolyCollection(tile_corners(coords, np.ceil(tile)), array=scores, cmap=SCORE_COLORS, clim=(low, high),
                           antialiased=False, linewidths=0)                    # whole pixels: no seams between neighbours
    axes[1].add_collection(tiles, autolim=False)
    for ax in axes:
        for ring in (ring for rings in outlines or () for ring in rings):
            ax.plot(*np.vstack([ring, ring[:1]]).T, color=OUTLINE, lw=1.2)
        ax.set(xlim=(0, W), ylim=(H, 0))
    below = place(fig, right[0], right[1] - .2, 2.6, .1)
    colors = fig.colorbar(tiles, cax=below, orientation="horizontal", extend=ends)
    fig.text(right[0] / fig.get_figwidth(), (right[1] - .4) / fig.get_figheight(), "\n".join(label), va="top", fontsize=8,
             color=INK)
    colors.ax.tick_params(labelsize=7, length=2, pad=2, color=RULE, labelcolor=INK)
    colors.outline.set(color=RULE, linewidth=.5)
    if scores.min() == scores.max():
        colors.set_ticks([scores[0]], labels=[f"{scores[0]:.3g}".replace("-", "−")])
    save_file(path, lambda f: fig.savefig(f, format="png"))
    plt.close(fig)


def draw_gallery(path, slide, coords, tile, scores, title, counts=None, counts_name="", n=8, px=TILE_PX):
    """The n highest tiles, best first, over the n lowest, worst first, as the slide shows them; under each its score, a PNG.

    slide: from open_slide; coords (n, 2), tile and scores as draw_heatmap; counts (n,) and their name: "#T cells = 12".
    px: edge of a tile in the picture. Equal scores keep the order of the tiles. With fewer than 2n tiles each is shown
    once, the middle one above; one tile has no row of lowest. [HE2RNA Fig. 4d-e]
    """
    plt = need_matplotlib()
    scores = np.asarray(scores, np.float64)
    assert scores.shape == (len(coords),) and len(scores) and np.isfinite(scores).all(), (scores.shape, len(coords))
    order = np.argsort(-scores, kind="stable")
    n = min(n, (len(order) + 1) // 2)
    rows = [("highest", order[:n]), ("lowest", order[::-1][:min(n, len(order) - n)])]
    rows = [row for row in rows if len(row[1])]
    edge, gap, under, left = px / PICTURE_DPI, .08, .22 if counts is None else .36, .42        # inches
    fig, top = paper(plt, max(left + n * (edge + gap) + .12, 4), len(rows) * (edge + under + gap), title)
    for r, (name, which) in enumerate(rows):
        y = top - r * (edge + under + gap) - edge
        fig.text(.28 / fig.get_figwidth(), (y + edge / 2) / fig.get_figheight(), name, rotation=90, ha="center", va="center",
                 fontsize=9, color=INK)
        for c, i in enumerate(which):
            ax = place(fig, left + c * (edge + gap), y, edge, edge)
            ax.imshow(read_tiles(slide, coords[i:i + 1], tile, px)[0], interpolation="nearest")
            text = f"S = {scores[i]:.2f}".replace("-", "−") + ("" if counts is None else f"\n#{counts_name} = {counts[i]:g}")
            ax.annotate(text, (.5, 0), (0, -2), "axes fraction", "offset points", ha="center", va="top", fontsize=7.5,
                        linespacing=1.15, color=INK)
    save_file(path, lambda f: fig.savefig(f, format="png"))
    plt.close(fig)


def draw_scatter(path, scores, values, xlabel, ylabel, title):
    """Score of each tile against what was counted in it, with R; and the counts of the best tiles against all, a PNG.

    scores, values (n,) finite. Best: BEST_TILES, at most half of the tiles [ours: a slide may have fewer than 100]; of
    equal scores the first. Boxes: quartiles, whiskers from 5 to 95 %, the median written. [HE2RNA Fig. 4c]
    """
    plt = need_matplotlib()
    scores, values = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    assert scores.shape == values.shape and scores.ndim == 1 and len(scores), (scores.shape, values.shape)
    with np.errstate(all="ignore"):
        r = np.corrcoef(scores, values)[0, 1] if len(scores) > 1 and np.ptp(scores) and np.ptp(values) else np.nan
    best = np.argsort(-scores, kind="stable")[:max(1, min(BEST_TILES, len(scores) // 2))]
    fig, top = paper(plt, 7.2, 3.7, f"{title}: " + (f"R = {r:.2f}" if np.isfinite(r) else "no R, one side does not vary"))
    ax, boxes = place(fig, .7, .55, 3.7, top - .65), place(fig, 5.2, .55, 1.9, top - .65)
    for a in (ax, boxes):
        a.spines[["top", "right"]].set_visible(False)
        a.tick_params(labelsize=8, length=2.5, color=RULE, labelcolor=INK)
        a.xaxis.set_major_locator(plt.AutoLocator())
        a.yaxis.set_major_locator(plt.MaxNLocator(6, steps=(1, 2, 5, 10), integer=bool((values == values.round()).all())))
    dot, alpha = np.clip(2e4 / len(scores), 3, 16), float(np.clip(2e3 / len(scores), .15, .7))  # many: small and sheer
    ax.scatter(scores, values, s=dot, c=BLUE, alpha=alpha, linewidths=0)
    ax.scatter(scores[best], values[best], s=dot, c=ORANGE, linewidths=0)
    ax.set_xlabel(xlabel, fontsize=9, color=INK)
    ax.set_ylabel(ylabel, fontsize=9, color=INK)
    thin = dict(color=INK, lw=.7)
    drawn = boxes.boxplot([values[best], values], widths=.5, whis=(5, 95), showfliers=False, patch_artist=True,
                          medianprops=dict(color=INK, lw=1.5), whiskerprops=thin, capprops=thin)
    for i, (box, color, of) in enumerate(zip(drawn["boxes"], (ORANGE, BLUE), (values[best], values))):
        box.set(facecolor=color, alpha=.6, edgecolor=INK, linewidth=.7)
        boxes.annotate(f"{np.median(of):.4g}", (i + 1.29, np.median(of)), va="center", fontsize=8, color=INK)
    boxes.set(xlim=(.5, 2.75))
    boxes.set_xticks([1, 2], [f"{len(best):,} best" if len(best) > 1 else "the best", f"all {len(values):,}"])
    boxes.set_ylabel(ylabel, fontsize=9, color=INK)
    save_file(path, lambda f: fig.savefig(f, format="png"))
    plt.close(fig)


def tiles_geojson(coords, tile, measurements, names):
    """Tiles as a GeoJSON FeatureCollection that QuPath (0.4 and later) imports: a detection each, with its measurements.

    coords (n, 2) level-0 top-left; tile: edge in level-0 pixels; measurements (n, c) floats, names (c,) -> dict for json.
    What is no number (nan, infinite) is left out: JSON has no nan. Six digits. [ours]
    """
    measurements = np.asarray(measurements, np.float64)
    assert measurements.shape == (len(coords), len(names)) and len(set(names)) == len(names), (measurements.shape, names)
    return dict(type="FeatureCollection", features=[
        dict(type="Feature", geometry=dict(type="Polygon", coordinates=[[*corners, corners[0]]]),
             properties=dict(objectType="detection", measurements={
                 name: float(f"{value:.6g}") for name, value in zip(names, row) if np.isfinite(value)}))
        for corners, row in zip(tile_corners(coords, tile).tolist(), measurements.tolist())])


# ---------------------------------------------------------------------------------------------------------------------
# The simulated cohort: slides drawn from known cells, expression made from the same cells
# ---------------------------------------------------------------------------------------------------------------------
SIM_MPP = {"SIM-COLO": 0.4990, "SIM-BRST": 0.5040}    # µm/px: a scanner for each project          [ours]
TISSUE_SHARE = 0.64                    # of the slide inside the tissue outline                    [ours]
COARSE = 4                             # px; regions are planned on a map this much coarser        [ours]
OUTLINE_STEP = 2                       # of those pixels: the steps of a tumour's outline              [ours]
N_STAMPS = 64                          # nuclei drawn per kind and slide, one for each angle       [ours]
# Optical density of pure stain in R, G, B: haematoxylin, eosin [Ruifrok & Johnston 2001], eosin [Macenko 2009].
# The first eosin alone is more magenta than tissue is, so each slide's lies between the two.      [ours]
STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.216, 0.801, 0.558]])
# Nuclei: length, width (µm), spread (log SD), optical density, dark rim, nucleolus, room kept (µm) [ours]
NUCLEI = {"lymphocyte": (7.2, 6.6, .07, 1.20, .05, 0., 7), "tumour": (13., 9.5, .17, .80, .45, .6, 9),
          "stroma": (15., 3.8, .18, .95, .10, 0., 5), "epithelium": (9.5, 6., .07, .90, .20, 0., 5)}
DENSITY_FLOOR = 500.0                  # cells/mm² added before the logarithm: what other cells give [ours]
R_RANGE = (0.97, 0.50)                 # true R of the first and the last gene of a programme      [ours]
SPREAD, BASE = (.15, .50), (2., 6.)    # SD of log10 FPKM-UQ between samples; its mean             [ours]
# Genes by the content they follow, closest first; a minus falls as it rises                       [ours]
PROGRAMMES = {
    "lymphocyte": """CD3D CD3E CD3G CD247 CD19 C1QB NKG7 CD53 ARHGAP9 C1QA CD2 CD5 CD27 CD8A CD8B CD4 CD79A MS4A1 LCK
        ZAP70 GZMA GZMK GZMB PRF1 IL7R CCR7 CXCR3 CXCL9 CCL5 CD52 PTPRC CORO1A SELL TRAT1 SH2D1A CTLA4 PDCD1 ITK""",
    "tumour": """MKI67 TOP2A CCNB1 CCNE1 CHEK2 CDK1 BUB1 BUB1B AURKA AURKB PLK1 CCNA2 CCNB2 CDC20 CDC6 CDC25C CDC45
        MCM2 MCM3 MCM4 MCM5 MCM6 MCM7 MCM10 PCNA FOXM1 MYBL2 E2F1 E2F2 TYMS RRM2 TK1 BIRC5 CENPA CENPE CENPF KIF11
        KIF20A KIF23 KIF2C TPX2 NUSAP1 UBE2C TTK NDC80 EXO1 RAD51 GINS1 ORC1 TACC3""",
    "stroma": """COL1A1 COL3A1 FAP ACTA2 COL1A2 COL5A1 COL5A2 COL6A1 COL6A2 COL6A3 COL10A1 COL11A1 COL12A1 FN1 SPARC
        THBS1 THBS2 POSTN LUM DCN BGN FBN1 FBLN1 FBLN2 VCAN LOX LOXL1 LOXL2 MMP2 MMP11 MMP14 TIMP2 TIMP3 PDGFRA
        PDGFRB TAGLN MYL9 CALD1 TPM2 CNN1 THY1 S100A4 VIM INHBA CTHRC1 ASPN OGN SFRP2 SFRP4 PDPN""",
    "epithelium": """ZG16 CLCA4 GUCA2A GUCA2B CA1 CA2 CA4 AQP8 SLC26A3 SLC26A2 MS4A12 CEACAM7 CEACAM1 CLCA1 FCGBP KRT20
        TMIGD1 BEST4 OTOP2 VSIG2 ITLN1 PLAC8 SLC4A4 CDHR5 MYO1A PHGR1 LYPD8 TSPAN1 PIGR KRT5 KRT14 ELF5 LTF SCGB2A2
        SCGB1D2 TFF3 MUC2""",
    "msi": """-MLH1 -EPM2AIP1 RPL22L1 -RPL22 REG4 AGR2 MUC5AC TFF1 TFF2 AGR3 -AXIN2 -NKD1 -RNF43 -ASCL2 -CAB39L -PRR15
        -TNNC2 HOXC6 DUSP4 -PLAGL2""",
    "housekeeping": """ACTB GAPDH HPRT1 TBP PPIA RPLP0 RPL13A RPS18 UBC YWHAZ SDHA HMBS GUSB PGK1 EEF1A1 EIF4A2 PSMB2
        PSMB4 RAB7A REEP5 SNRPD3 VCP VPS29 CHMP2A EMC7 GPI PUM1 IPO8 POLR2A CYC1""",
    "noise": " ".join(f"NOISE{i:03d}" for i in range(1, 76)),
    "silent": "MAGEA1 MAGEA3 MAGEA4 MAGEA10 SSX1 SSX2 CTAG2 PAGE1 XAGE2 DEFB4A"}


def smooth_noise(rng, n, scale):
    """(n, n) float32 noise of mean 0 and SD 1 whose blobs are about `scale` pixels wide."""
    grid = ndimage.gaussian_filter(rng.standard_normal((int(2 * n / scale) + 6,) * 2, np.float32), 1)
    x, y = 1 + rng.random(2)
    box = (x, y, x + 2 * n / scale, y + 2 * n / scale)
    field = np.asarray(Image.fromarray(grid).resize((n, n), Image.Resampling.BICUBIC, box))
    return (field - field.mean()) / field.std()


def top_share(field, where, share):
    """Mask of that `share` of the True pixels of `where` in which `field` is highest."""
    return where & (field > np.quantile(field[where], 1 - share)) if where.any() else where


def scatter(rng, n, spacing):
    """(m, 2) x, y in an n x n square: a hexagonal grid with jitter, so that cells keep their distance."""
    row, col = np.mgrid[:int(n / spacing / .866) + 1, :int(n / spacing) + 1].astype(float)
    xy = np.stack([(col + row % 2 / 2) * spacing, row * spacing * .866], -1).reshape(-1, 2)
    xy += rng.uniform(-.32, .32, xy.shape) * spacing
    return xy[((xy >= 0) & (xy < n)).all(1)]


def at(field, xy):
    """The map's value at each point: field (n, n), xy (m, 2 or more) in its pixels -> (m,)."""
    col, row = np.clip(xy[:, :2].T.astype(int), 0, len(field) - 1)
    return field[row, col]


def nearest(points, n):
    """For each pixel of an (n, n) map: the nearest point's number and distance (px); borders between points."""
    seed = np.zeros((n, n), np.int32)
    seed[points[:, 1].astype(int), points[:, 0].astype(int)] = 1 + np.arange(len(points))
    distance, (row, col) = ndimage.distance_transform_edt(seed == 0, return_indices=True)
    label = seed[row, col] - 1
    return label, distance, (label != np.roll(label, 1, 0)) | (label != np.roll(label, 1, 1))


def gland_wall(theta, radius, shape):
    """Radius of a gland (µm) in the direction theta: a circle pulled to an oval and a trefoil."""
    return radius * (1 + shape[0] * np.cos(2 * theta + shape[1]) + shape[2] * np.cos(3 * theta + shape[3]))


def nucleus_stamps(rng, mpp, length, width, spread, density, rim, nucleolus, room):
    """(N_STAMPS, s, s) optical density of nuclei; number i lies at the angle pi i / N_STAMPS."""
    def draw(low, high):
        return rng.uniform(low, high, (N_STAMPS, 1, 1)).astype(np.float32)
    a, b = (d / 2 / mpp * np.exp(spread * draw(-1.7, 1.7)) for d in (length, width))     # half axes, px
    half = int(max(a.max(), b.max()) * 1.1) + 2
    y, x = np.mgrid[-half:half + 1, -half:half + 1].astype(np.float32)
    angle = np.pi * np.arange(N_STAMPS, dtype=np.float32)[:, None, None] / N_STAMPS
    u, v = (x * np.cos(angle) + y * np.sin(angle)) / a, (y * np.cos(angle) - x * np.sin(angle)) / b
    shape = (spread * draw(0, .6), draw(0, 6.3), spread * draw(0, .6), draw(0, 6.3))
    r = np.hypot(u, v) / gland_wall(np.arctan2(v, u), 1, shape)                           # 1 on the membrane
    chromatin = ndimage.gaussian_filter(rng.standard_normal(r.shape, np.float32), (0, 1.2, 1.2))
    shade = 1 - rim / 2 + rim * np.exp(-((1 - r) / .2) ** 2) + .8 * chromatin
    shade += nucleolus * np.exp(-(((u - draw(-.4, .4)) * a) ** 2 + ((v - draw(-.4, .4)) * b) ** 2) / 4)
    return np.clip((1 - r) * np.minimum(a, b) / 1.6 + .5, 0, 1) * shade.clip(.3) * density * draw(.75, 1.2)


def plan_tissue(rng, n, um, t):
    """Regions of a slide with the traits t: masks (n, n) of `um` µm pixels, and the nuclei of its glands."""
    def noise(scale_um):
        return smooth_noise(rng, n, scale_um / um)
    colon, mucinous = t["project"] == "SIM-COLO", t["msi"] == "MSI-H"
    y, x = (np.mgrid[:n, :n] + .5) / n - .5
    outline = .5 * noise(200) + .17 * noise(50) + .06 * noise(14) - 14 * (x ** 2 * 1.2 + y ** 2 * .85)
    tissue = top_share(outline, np.ones((n, n), bool), TISSUE_SHARE)
    big = noise(300) + .5 * noise(100)
    bed = top_share(big, tissue, t["tumour"])            # tumour and the stroma between its nests
    nest = top_share(noise(75) + .3 * noise(24) + .3 * big, bed, .74)
    depth = ndimage.distance_transform_edt(nest).astype(np.float32) * um
    # tumour glands: a lumen where a nest is deep; wide and full of mucin in MSI-H, rare in the breast
    lumen = (depth > (13 if mucinous else 18)) & (noise(60) > (-.3 if mucinous else .1 if colon else 1.3))
    fat = top_share(noise(170) - .4 * big, tissue & ~bed, t["fat"])
    septa = fat & (nearest(scatter(rng, n, 56 / um), n)[2] | ~ndimage.binary_erosion(fat))
    # normal glands: crypts of the colon, with goblet cells; small acini of the breast
    low, high, thick, pitch = (27, 36, 19, 82) if colon else (17, 24, 10.5, 54)
    centre = scatter(rng, n, pitch / um)
    centre = centre[at(top_share(noise(200) - .4 * big, tissue & ~bed & ~fat, t["glands"]), centre)]
    if not len(centre):                                  # none: one of no size, so that what follows holds
        centre, low, high = np.full((1, 2), n / 2), 0, 0
    radius = rng.uniform(low, high, len(centre))
    shape = rng.uniform(0, [[.13], [6.3], [.07], [6.3]], (4, len(centre)))
    label, distance, _ = nearest(centre, n)
    theta = np.arctan2(np.mgrid[:n, :n][0] - centre[label, 1], np.mgrid[:n, :n][1] - centre[label, 0])
    inside = np.where(tissue & ~nest & ~fat, gland_wall(theta, radius[label], shape[:, label]) - distance * um, -1)
    ring = [np.zeros((0, 3))]
    for (cx, cy), r, s in zip(centre, radius, shape.T):
        angle = np.arange(0, 2 * np.pi - .1, 6.4 / (r - 5))
        reach = (gland_wall(angle, r, s) - 6 + rng.uniform(-1, 1, len(angle))) / um
        ring.append(np.column_stack([cx + reach * np.cos(angle), cy + reach * np.sin(angle), angle]))
    ring = np.concatenate(ring)
    wall = (inside > 0) & (inside < thick)
    return dict(tissue=tissue, bed=bed, nest=nest & ~lumen, lumen=lumen, depth=depth, septa=septa, wall=wall,
                goblet=wall & (inside > 9) & (noise(11) > (.1 if colon else 9)), hole=inside >= thick,
                stroma=tissue & ~nest & ~fat & ~(inside > 0), ring=ring[at(wall, ring) & (at(inside, ring) < 9)])


def place_nuclei(rng, n, um, p, flow, t):
    """(m, 4) nuclei on the map p: x, y (map px), angle, kind; when two collide the earlier one stays."""
    rate = np.exp(1.25 * smooth_noise(rng, n, 80 / um) + .7 * smooth_noise(rng, n, 220 / um))     # clusters
    rate *= p["stroma"] + .25 * p["nest"] + .3 * p["septa"] + .05 * p["wall"]
    rate *= t["lymphocytes"] * p["tissue"].sum() / rate.sum()                                     # per mm²
    gy, gx = np.gradient(p["depth"])                     # tumour cells stand across the edge of their nest
    found = [np.column_stack([p["ring"], np.full(len(p["ring"]), 3)])]
    for kind, spacing, chance, turn, sway in (
            (0, 8.6, rate * .866 * 8.6 ** 2 / 1e6, flow, 3),
            (1, t["spacing"], .95 * (p["nest"] & (p["depth"] > 2.5)), np.arctan2(gy, gx), .35),
            (2, 17., .62 * p["stroma"] + .3 * p["septa"], flow, .35)):
        xy = scatter(rng, n, spacing / um)
        xy = xy[rng.random(len(xy)) < at(chance, xy).clip(0, .95)]
        found.append(np.column_stack([xy, at(turn, xy) + sway * rng.standard_normal(len(xy)), np.full(len(xy), kind)]))
    return np.concatenate(found)


def enlarge(field, size):
    """A coarse map at full resolution, bilinear: (n, n) -> (size, size) float32."""
    field = Image.fromarray(np.asarray(field, np.float32))
    return np.asarray(field.resize((field.width * COARSE,) * 2, Image.Resampling.BILINEAR))[:size, :size]


def stain_to_rgb(h, e, vectors, white):
    """Beer-Lambert: RGB = white * 10^-(h H + e E). h, e (y, x) amounts; vectors (2, 3) OD; white (3,)."""
    rgb = np.empty(h.shape + (3,), np.uint8)
    for c in range(3):
        rgb[..., c] = (white[c] * np.exp(-2.302585 * (h * vectors[0, c] + e * vectors[1, c])) + .5).clip(0, 255)
    return rgb


def trace(mask):
    """Outlines of a mask (h, w), as GeoJSON wants them: [[ring, hole, ...] of each 4-connected piece], a ring a closed list
    of pixel corners [x, y], without those on straight stretches."""
    pieces, polygons = ndimage.label(mask)[0], []
    for number, (rows, columns) in enumerate(ndimage.find_objects(pieces), 1):
        own, rings, leaving = np.pad(pieces[rows, columns] == number, 1), [], {}
        for (dy, dx), side, step in (((-1, 0), (0, 0), (1, 0)), ((0, 1), (1, 0), (0, 1)), ((1, 0), (1, 1), (-1, 0)),
                                     ((0, -1), (0, 1), (0, -1))):              # edges, the piece on their right
            for y, x in np.argwhere(own & ~np.roll(own, (-dy, -dx), (0, 1))).tolist():
                leaving.setdefault((x + side[0], y + side[1]), []).append(step)
        while leaving:
            at, (dx, dy), ring = next(iter(leaving)), (0, 0), []
            while at in leaving:
                ways = leaving[at]
                turn = ways.index((-dy, dx)) if (-dy, dx) in ways else 0       # pieces that touch at a corner stay apart
                if ways[turn] != (dx, dy):
                    ring.append([at[0] + columns.start - 1, at[1] + rows.start - 1])
                dx, dy = ways.pop(turn)
                if not ways:
                    del leaving[at]
                at = at[0] + dx, at[1] + dy
            rings.append([*ring, ring[0]])
        size = [sum(a * d - c * b for (a, b), (c, d) in zip(r, r[1:])) for r in rings]
        polygons.append([rings[i] for i in np.argsort(size)[::-1]])            # clockwise, y downwards: above 0; holes: below
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
    grain = ndimage.gaussian_filter(rng.standard_normal((256, 256), f32), .9, mode="wrap")
    grain = np.tile(grain / grain.std(), (edge_px // 256 + 1,) * 2)[:edge_px, :edge_px]
    # eosin and haematoxylin between the nuclei, on the coarse map
    gy, gx = np.gradient(across)
    nuclei = place_nuclei(rng, n, um, p, np.arctan2(gx, -gy), t)
    tumour, mucinous = nuclei[nuclei[:, 3] == 1], t["msi"] == "MSI-H"
    seam = nearest(tumour, n)[2] if len(tumour) else 0   # paler where two tumour cells meet
    cleft = (ndimage.distance_transform_edt(p["depth"] == 0) < 2.5) & (noise(45) > .3)    # shrinkage
    debris = p["lumen"] & (noise(14) + noise(60) > .9) & (not mucinous)
    cytoplasm = (1 + .16 * noise(16)) * (1 - .3 * seam)
    eosin = (.34 * p["nest"] + .28 * (p["wall"] & ~p["goblet"])) * cytoplasm + .32 * p["septa"] \
        + .03 * (p["hole"] | p["lumen"] | p["goblet"]) + .3 * debris
    basic = .12 * p["nest"] * cytoplasm + .07 * p["wall"] + .02 * p["stroma"] + .1 * debris \
        + .13 * mucinous * p["lumen"] * (1 + .4 * noise(20))
    fibrous, eosin, basic = (enlarge(ndimage.gaussian_filter(field.astype(f32), .6), edge_px)
                             for field in (p["stroma"] & ~cleft, eosin, basic))
    e = fibrous * (enlarge((.36 + .09 * noise(60)).clip(.12), edge_px) + .13 * fibre).clip(.03)
    e, h = (e + eosin) * (1 + .13 * grain), basic * (1 + .25 * grain) + .003 * grain + .004
    # nuclei, where there is room
    stamps = [(nucleus_stamps(rng, mpp, *row), max(1, round(row[-1] / 2 / um)), cell) for cell, row in NUCLEI.items()]
    number = (nuclei[:, 2] / np.pi * N_STAMPS + rng.integers(-2, 3, len(nuclei))).astype(int) % N_STAMPS
    free, points = np.ones((n, n), bool), []
    for (cx, cy, _, kind), i in zip(nuclei.tolist(), number.tolist()):
        (stamp, room, cell), row, col, px, py = stamps[int(kind)], int(cy), int(cx), int(cx * COARSE), int(cy * COARSE)
        s = stamp.shape[1] // 2
        if s <= px < edge_px - s and s <= py < edge_px - s and free[row, col]:
            free[max(row - room, 0):row + room + 1, max(col - room, 0):col + room + 1] = False
            patch = h[py - s:py + s + 1, px - s:px + s + 1]
            np.maximum(patch, stamp[i], out=patch)
            points.append((px, py, cell))
    e *= 1 - .3 * np.minimum(h, 1)                       # eosin has less to bind in a nucleus
    stain = dict(haematoxylin=rng.uniform(.82, 1.18), eosin=rng.uniform(.8, 1.25), mix=rng.uniform(.35, .8),
                 white=rng.uniform(239, 247))
    vectors = np.stack([STAINS[0], (1 - stain["mix"]) * STAINS[1] + stain["mix"] * STAINS[2]])
    vectors += .015 * rng.standard_normal((2, 3))        # a small turn of both
    vectors *= [[stain["haematoxylin"]], [stain["eosin"]]] / np.linalg.norm(vectors, axis=1, keepdims=True)
    rgb = stain_to_rgb(h, e, vectors.astype(f32), (stain["white"] + rng.uniform(-2, 2, 3)).astype(f32))
    return rgb, points, float(p["tissue"].sum() * um ** 2 / 1e6), stain, p["bed"]


def write_slide(path, rgb, mpp):
    """Tiled JPEG TIFF with levels 1, 1/2, 1/4, as OpenSlide's generic-tiff wants it; needs no TIFF package."""
    body, link = bytearray(b"II*\0" + bytes(4)), 4         # link: where the next directory's place is noted
    for factor in (1, 2, 4):
        level, places, sizes = Image.fromarray(rgb).reduce(factor), [], []
        for y in range(0, level.height, 256):
            for x in range(0, level.width, 256):
                buffer, tile = io.BytesIO(), Image.new("RGB", (256, 256), (243, 243, 243))
                tile.paste(level.crop((x, y, min(x + 256, level.width), min(y + 256, level.height))))
                tile.save(buffer, "JPEG", quality=85, subsampling="4:2:0")
                places.append(len(body))
                sizes.append(buffer.tell())
                body += buffer.getvalue()
        per_cm = (round(1e7 / mpp / factor), 1000)         # pixels per centimetre, a fraction
        tags = ((254, 4, [factor > 1]), (256, 4, [level.width]), (257, 4, [level.height]), (258, 3, [8, 8, 8]),
                (259, 3, [7]), (262, 3, [6]), (277, 3, [3]), (282, 5, per_cm), (283, 5, per_cm), (296, 3, [3]),
                (322, 4, [256]), (323, 4, [256]), (324, 4, places), (325, 4, sizes), (530, 3, [2, 2]))
        directory = struct.pack("<H", len(tags))
        for tag, kind, values in tags:                     # kind 3 short, 4 long, 5 fraction of two longs
            data = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
            directory += struct.pack("<HHI", tag, kind, len(values) // (2 if kind == 5 else 1))
            if len(data) > 4:                              # too long for the directory: its place instead
                body += bytes(len(body) % 2) + data
                data = struct.pack("<I", len(body) - len(data))
            directory += data.ljust(4, b"\0")
        body += bytes(len(body) % 2)
        body[link:link + 4] = struct.pack("<I", len(body))
        body += directory + bytes(4)
        link = len(body) - 4
    save_file(path, lambda f: f.write(body))


def plan_cohort(patients, seed, normal_in=4):
    """What samples.csv says of each slide and how its tissue is to look: a list of dicts of traits.

    Per project a fifth of the patients is MSI-H and a tenth MSI-L, a sixth has a second tumour slide and
    one in normal_in a normal one. Lymphocytes span a factor above 10 between patients.
    """
    rng, slides = np.random.default_rng([seed, 0]), []
    for number, project in enumerate(SIM_MPP):
        count = (patients + 1 - number) // 2
        high, low = max(1, round(.2 * count)), round(.1 * count)
        for i, msi in enumerate(rng.permutation(["MSI-H"] * high + ["MSI-L"] * low + ["MSS"] * (count - high - low))):
            share, spacing, lymphocytes = rng.uniform(.2, .75), rng.uniform(10.5, 15), 10 ** rng.uniform(2.1, 3.2)
            glands, fat = rng.uniform(0, .4), rng.uniform(.02, .15) if project == "SIM-COLO" else rng.uniform(.1, .45)
            for tumour, name in [(1, "DX1")] + [(1, "DX2")] * (i % 6 == 0) + [(0, "DX1")] * (i % normal_in == (normal_in > 1)):
                sample = f"S{2 * i + number + 1:03d}-{'01A' if tumour else '11A'}"
                slides.append(dict(
                    slide=f"{sample}-{name}", patient=sample[:4], project=project, sample=sample,
                    sample_type="Primary Tumor" if tumour else "Solid Tissue Normal", tumor=tumour, msi=str(msi),
                    tumour=share * rng.uniform(.85, 1.15) * tumour, spacing=spacing, fat=fat,
                    glands=glands if tumour else rng.uniform(.6, .9), lymphocytes=lymphocytes * 10 ** rng.normal(0, .06)
                    * (.4 if not tumour else 2.2 if msi == "MSI-H" else 1)))
    return slides


def planted_programmes(cohort, genes):
    """{programme: (G,) which genes are of it} of a simulated cohort; None of another."""
    path = Path(cohort) / "truth" / "genes.csv"
    if not path.is_file():
        return None
    header, rows = read_rows(path)
    programme = {row[header.index("gene")]: row[header.index("programme")] for row in rows}
    of = {p: np.array([programme.get(g) == p for g in genes]) for p in dict.fromkeys(programme.values())}
    return {p: which for p, which in of.items() if which.any()}


def simulate_expression(truth, seed):
    """Rows of expression.csv and of truth/genes.csv from those of truth/slides.csv.

    log10(1 + a) = base + effect * content + noise: content is the standardised log10 density of the programme's cells (or
    MSI-H tumour, 0/1), the mean of the sample's slides. A gene of spread SD has effect R SD and noise of sqrt(1 - R^2) SD,
    so that it correlates R with its content.
    """
    rng, genes, values = np.random.default_rng([seed, len(truth) + 1]), [], []
    samples = list(dict.fromkeys(row["sample"] for row in truth))
    for programme, names in PROGRAMMES.items():
        per_slide = [float(row["tumor"] and row["msi"] == "MSI-H") if programme == "msi" else
                     np.log10(row.get(f"{programme}_per_mm2", 0.) + DENSITY_FLOOR) for row in truth]
        content = np.array([np.mean([v for v, row in zip(per_slide, truth) if row["sample"] == s]) for s in samples])
        content = (content - content.mean()) / max(content.std(), 1e-9)
        for name, r in zip(names.split(), np.linspace(*R_RANGE, len(names.split()))):
            spread, base, sign = rng.uniform(*SPREAD), rng.uniform(*BASE), -1 if name[0] == "-" else 1
            if programme in ("housekeeping", "noise", "silent"):
                r, spread = 0., .05 if programme == "housekeeping" else spread
            effect, noise = sign * r * spread, np.sqrt(1 - r ** 2) * spread
            log = base + effect * content + noise * rng.standard_normal(len(samples))
            if programme == "silent":                    # on in a quarter of the samples: median 0
                log *= rng.permutation(len(samples)) < len(samples) / 4
            values.append((10 ** log.clip(0) - 1).tolist())
            genes.append(dict(gene=name.strip("-"), programme=programme, effect=effect, noise=float(noise), base=base,
                              true_r=float(sign * r)))
    names = [gene["gene"] for gene in genes]
    return [dict(sample=s, **dict(zip(names, row))) for s, row in zip(samples, zip(*values))], genes


SIM_README = """# A SIMULATED cohort: drawn, no patients

Redraw it: `tiling.simulate_cohort(folder, patients={patients}, seed={seed}, edge_px={edge_px}{more})`

Planted: four kinds of cells whose densities differ between slides and within them; a stain per slide, a scanner (mpp) per
project; genes that follow the cells of their own slides; MSI-H tumours with more lymphocytes, mucin and 20 genes of
their own; normal slides without tumour, each paired with a tumour.

- samples.csv: slide, patient, project, sample, sample_type, tumor 1/0, msi of the patient. Written last.
- points/: every nucleus drawn: x, y of its centre in level-0 pixels, cell.
- regions/: outlines of the tumours with the stroma between their nests, to {step} px; none for a normal slide.
- expression.csv: a row per sample, linear: log10(1+a) = base + effect * content + noise. content: log10(cells per mm2 + {floor:g})
  of the programme's cell (or MSI-H tumour, 0/1), mean of the sample's slides, standardised over samples.
- truth/slides.csv: cells, area inside the tissue outline (mm2), cells per mm2 of it, stain amounts, eosin mix, white.
- truth/genes.csv: programme, effect and noise (log10), base, true_r (expected R with content; 0 where none is followed).
"""


def simulate_cohort(folder, patients=64, seed=0, edge_px=1800, normal_in=4, workers=None):
    """Write a SIMULATED cohort with known truth (see its README.md) into `folder`.

    The same files for any number of workers. One already complete with the same settings is left as it is, one that was
    interrupted is drawn again. Raises InputError for a folder that holds anything else.
    """
    if patients < 4 or edge_px < 400 or seed < 0 or normal_in < 1:
        raise InputError(f"patients {patients}, edge_px {edge_px}, seed {seed}, normal_in {normal_in}: at least 4 patients, "
                         "400 px, seed 0 and 1")
    folder, slides, truth = Path(folder), plan_cohort(patients, seed, normal_in), []
    readme = folder / "README.md"
    text = SIM_README.format(patients=patients, seed=seed, edge_px=edge_px, floor=DENSITY_FLOOR,
                             more=f", normal_in={normal_in}" * (normal_in != 4), step=COARSE * OUTLINE_STEP)
    there = readme.read_text(errors="replace") if readme.is_file() else ""
    if folder.exists() and any(folder.iterdir()) and there != text:
        raise InputError(f"{folder} is " + ("a simulated cohort of other settings" if "SIMULATED" in there else
                         "not empty and not a simulated cohort") + ": give a new folder, or delete it")
    if (folder / "samples.csv").exists():
        return
    save_file(readme, lambda f: f.write(text.encode()))

    def draw(index):
        t = slides[index]
        rgb, points, area, stain, tumour = draw_slide(seed, index + 1, t, edge_px)
        write_slide(folder / "slides" / f"{t['slide']}.tif", rgb, SIM_MPP[t["project"]])
        save_csv(folder / "points" / f"{t['slide']}.csv", ("x", "y", "cell"), points)
        step = OUTLINE_STEP * COARSE
        shapes = [dict(type="Feature", properties=dict(objectType="annotation", classification=dict(name="Tumor")),
                       geometry=dict(type="Polygon", coordinates=[[[step * x, step * y] for x, y in ring] for ring in rings]))
                  for rings in trace(tumour[OUTLINE_STEP // 2::OUTLINE_STEP, OUTLINE_STEP // 2::OUTLINE_STEP])]
        if shapes:
            save_text(folder / "regions" / f"{t['slide']}.geojson",
                      [json.dumps(dict(type="FeatureCollection", features=shapes))])
        counts = {cell: sum(point[2] == cell for point in points) for cell in NUCLEI}
        return {**{k: t[k] for k in ("slide", "sample", "tumor", "msi")}, **counts, "tissue_mm2": area,
                **{f"{cell}_per_mm2": counts[cell] / area for cell in NUCLEI}, **stain}

    tick = progress("SIMULATED slides", len(slides), "slides")
    for _, row in ordered_map(draw, range(len(slides)), workers or os.cpu_count()):
        if isinstance(row, Exception):
            raise row
        truth.append(row)
        tick()
    expression, genes = simulate_expression(truth, seed)
    columns = ("slide", "patient", "project", "sample", "sample_type", "tumor", "msi")
    for name, rows in (("expression.csv", expression), ("truth/slides.csv", truth), ("truth/genes.csv", genes),
                       ("samples.csv", [{k: t[k] for k in columns} for t in slides])):         # last: it says "complete"
        save_csv(folder / name, rows[0], ([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in rows))


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------
def doctor(cohort, slides, o):
    """Say what is seen in each slide, without writing anything."""
    pick_device(o.device)                                                      # these three refuse what features would
    features_of(o)
    weights_identity(o.weights or "random", o.seed)
    found, failed, shared, given = find_slides(cohort), {}, tile_settings(cohort, o), table_mpp(cohort)
    jobs, px, rule = [name for name in slides if name in found], encoder_wants(o)["tile_px"], {**TISSUE, **shared}
    net = ResNet50(ENCODERS[o.encoder]) if o.encoder in ENCODERS else load_encoder(o.encoder, None, 0, pick_device(o.device))
    cut = ("Otsu" if rule["tissue_threshold"] == "otsu" else "fixed") + " threshold {:.3g} "
    cut += "OD" if rule["tissue"] == "stain" else "of saturation"
    failed.update({name: f"no file {name}.* in {cohort}" for name in slides if name not in found})

    def one(name):
        slide, mpp = open_slide(found[name]), given.get(name, shared["mpp"])
        arrays, _ = find_tiles(found[name], name, dict(shared, mpp=mpp))
        own = json.loads(str(arrays["settings"]))["mpp"] is None
        source = "the slide" if own else "samples.csv" if name in given else "--mpp"
        return slide, source, arrays, *best_level(slide, float(arrays["tile"]) / px)

    for name, got in counted("doctor", ordered_map(one, jobs, o.workers), "slides", len(jobs)):
        if isinstance(got, Exception):
            failed[name] = str(got)
            continue
        slide, source, a, level, d = got
        n, wanted = len(a["coords"]), shared["tile_um"] / px
        print(f"{name}: {slide.dimensions[0]:,} x {slide.dimensions[1]:,} px, "
              f"{slide.properties.get('openslide.vendor', 'plain image')}, {slide.level_count} level(s)\n"
              f"  mpp {a['mpp']:.4f} µm from {source}; read at level {level} "
              f"(downsample {d:g}, {a['mpp'] * d:.3f} µm/px), "
              f"{'resampled' if d * a['mpp'] <= wanted * 1.01 else 'RESAMPLED UP'} to {wanted:g}; "
              f"a tile is {shared['tile_um']:g} µm = {a['tile']:.1f} px\n"
              f"  {cut.format(a['threshold'])}, tissue {a['tissue']:.0%}; {a['found']:,} tiles"
              f"{f', {n:,} of them sampled' if n < a['found'] else ''}; features {n * net.n_features * 2 / 2**20:.1f} MiB"
              + "; ICC profile present: not applied" * has_profile(slide)
              + f"; turned upright: its orientation tag is {orientation(found[name])}" * (
                  isinstance(slide, openslide.ImageSlide) and orientation(found[name]) > 1)
              + ("; scanned: {2:,} x {3:,} px from ({0:,}, {1:,})".format(*slide_bounds(slide))
                 if slide_bounds(slide) != (0, 0, *slide.dimensions) else ""))
    return failed


def natural(text):
    """A whole number >= 0 that every generator of random numbers takes, for argparse."""
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > RANGES["seed"][1]:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number >= 0 and < 2**63")
    return int(text)


def saturation_level(text):
    """'otsu' or a level 0..255, for argparse."""
    try:
        level = text if text == "otsu" else float(text)
    except ValueError:
        level = -1
    if text != "otsu" and not 0 <= level < 255:
        raise argparse.ArgumentTypeError(f"{text!r} is neither otsu nor a saturation from 0 to 254")
    return level


class Help(argparse.HelpFormatter):
    """--help within two screens: usage names only what must be given; numbers are N or X, so that options fit a column;
    names of options and genes stay whole."""
    def add_usage(self, usage, actions, groups, prefix=None):
        named = [x for x in actions if x.required or not x.option_strings]
        rest = [argparse.Action(["[options]"], "", nargs=0, required=True)] * (len(named) < len(actions))
        super().add_usage(usage, rest + named, groups, prefix)

    def _get_default_metavar_for_optional(self, action):
        return {int: "N", natural: "N", float: "X"}.get(action.type) or super()._get_default_metavar_for_optional(action)

    def _split_lines(self, text, width):
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class RawHelp(Help, argparse.RawDescriptionHelpFormatter):
    """The same, the description as it is written."""


class Parser(argparse.ArgumentParser):
    """One to which an empty word, such as of an unset variable of the shell, is a mistake."""
    def _get_value(self, action, text):
        if text == "" and action.nargs != argparse.PARSER:                     # a verb's words are its own parser's
            raise argparse.ArgumentError(action, "an empty word was given (an unset variable of the shell?)")
        return super()._get_value(action, text)


def parsers(program, manual):
    """A program's parser, and where its verbs are added; `manual`: its description, lines as they are."""
    parser = Parser(prog=program, description=manual, formatter_class=RawHelp)
    return parser, parser.add_subparsers(dest="verb", required=True, parser_class=partial(Parser, formatter_class=Help))


def add_options(parser, of_run=False, encoder="resnet50"):
    """The options every command that needs slides shares; None means: as the folder was made, else the default.

    of_run: for slides that a trained run is applied to, whose features must be as the run's; encoder: the default, which
    decides the tile size, or None for a command that takes tiles alone.
    """
    kept = "" if of_run else " (default: as the folder's tiles were cut, else as said here)"
    a = parser.add_argument_group("slides, tiles and features" + kept).add_argument
    a("--mpp", type=float, help="µm per pixel at level 0 of slides whose file and samples.csv don't say; never a guess, "
      "since a tile must be the same size of tissue on every slide")
    if of_run:
        a("--into", metavar="DIR", help="where tiles and features of the slides are kept (default: their cohort or folder)")
        a("--weights", metavar="FILE", help="the encoder weights, or encoder, that the run was made with, if it was a file")
        a("--tile-um", type=float, help="edge of a tile, µm, of features made elsewhere whose files don't say")
        parser.set_defaults(min_tissue=None, max_tiles=None, encoder=None, colour=None,
                            **dict.fromkeys(TISSUE))
    else:
        um, most, cut = ((f"{TILE_UM:g}, HE2RNA's", f"{MAX_TILES}, HE2RNA's", "stain") if encoder == "resnet50" else
                         ("128, HistCode's", "all, HistCode's", "saturation"))
        a("--tile-um", type=float, help=f"edge of a tile, µm (default {um}, or the encoder file's)"
          + f"; read as {TILE_PX} px, or as that file says" * bool(encoder))
        a("--min-tissue", type=float, help=f"least share of tissue in a tile (default {MIN_TISSUE}); lower keeps fat and "
          "edges")
        a("--max-tiles", type=int, help=f"tiles per slide, sampled beyond: bounds time (default {most})")
        a("--tissue", choices=("stain", "saturation"), help="what Otsu cuts: stain, optical density without pen and black "
          "borders; saturation of HSV, as HistCode's code, which takes those, and an empty slide's colour noise, for tissue "
          f"(default {cut})")
        a("--tissue-threshold", type=saturation_level, metavar="X", help="with --tissue saturation: the level that tissue "
          "is above, 0..255 (HistCode: 8), or otsu (default)")
        a("--min-area", type=float, help="drop pieces of tissue smaller than X tiles: specks are dirt (default 0: none); "
          "HistCode's 100 squares of 512 level-0 px are 100 tiles of 128 µm at 0.25 µm/px, 400 at 0.5")
        a("--colour", choices=COLOURS if encoder else COLOURS[:2], help="macenko: stains to a common reference, so that "
          "features follow tissue, not the laboratory" + ("; stretch: each channel of a tile to 0..255, as HE2RNA's code, "
          "features in features/<encoder>-stretch (default: the encoder file's, else none" if encoder else " (default none")
          + ": HE2RNA has none, HistCode names no method)")
    if not encoder:
        parser.set_defaults(encoder="resnet50-stage3", weights=None, precision=None, features=None)
    elif not of_run:
        a("--encoder", metavar="NAME|FILE", default=encoder, help="resnet50: 2,048 features (HE2RNA's); resnet50-stage3: "
          "1,024 (HistCode's, not yet trained); a checkpoint of histcode.py pretrain; or a TorchScript file from "
          f"(B, 3, {TILE_PX}, {TILE_PX}), normalised as for ImageNet, to (B, D), or as FILE.json beside it says (README, "
          f"Encoders); it is code: run it only from whom you trust. Features go to features/<its name> (default {encoder})")
        a("--weights", metavar="W|FILE", help="imagenet (default; downloaded once, hash checked), a torchvision state_dict "
          "file, or random (seeded; to try the program)")
    if encoder:
        a("--features", metavar="DIR", help="CLAM/TRIDENT features (<slide>.h5 or .pt) instead of slides and encoder")
        a("--precision", choices=("auto", "bfloat16", "float32"), help="of the encoder; auto" + " (default)" * (not of_run)
          + ": bfloat16 where the hardware has it (within 1 %% of float32, several times as fast)"
          + ("; finetune: also of choosing tiles, float32 unless named (bfloat16 may swap tiles of nearly equal score)"
             if of_run else ""))
    a("--device", default="auto", help="auto (default: the GPU when there is one), cpu, cuda, cuda:1 ...")
    a("--workers", type=natural, default=min(8, os.cpu_count() or 1), help="threads that read ahead (default: cores, at "
      "most 8); no effect on results")
    a("--seed", type=natural, default=None, help="of every random draw (default 0)")
    parser.set_defaults(tile_seed=None, share=(0, 1))


def report_failures(failed, total, folder=None, share=(0, 1)):
    """Say which slides failed and why, also in FOLDER/failed.csv, which is gone where none did; each of several processes
    has its own. Returns the exit status: 0 all done, 1 some failed."""
    if folder:
        path = folder / ("failed.csv" if share[1] == 1 else f"failed-{share[0]}-of-{share[1]}.csv")
        for old in [path, *(folder.glob("failed-*-of-*.csv") if share[1] == 1 else ())]:
            old.unlink(missing_ok=True)
        if failed:
            save_csv(path, ("slide", "reason"), ((name, one_line(why)) for name, why in failed.items()))
    for name, why in failed.items():
        print(one_line(f"failed: {name}: {why}"), file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {total} slides failed", file=sys.stderr)
    return 1 if failed else 0


def say_error(e):
    why = f"{e.filename}: {e.strerror}" if isinstance(e, OSError) and e.filename and e.strerror else e
    print(one_line(f"error: {why}"), file=sys.stderr)


def run(main):
    """Run a command: a user's mistake is one line and status 2, SIGINT and SIGTERM one line and status 130 and 143."""
    caught = []

    def stop(number, _):
        caught.append(number)
        raise KeyboardInterrupt

    def dropped(what):                                                         # what is raised in a callback: again
        if caught and isinstance(what.exc_value, KeyboardInterrupt):
            threading.Timer(.05, signal.raise_signal, caught[-1:]).start()
        else:
            sys.__unraisablehook__(what)
    sys.unraisablehook = dropped
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")                 # µ and ± on any terminal
    try:
        sys.exit(main())
    except BaseException as e:
        if caught:                                                             # in a lock it comes out as another error
            print(f"\n{'terminated' if caught[0] == signal.SIGTERM else 'interrupted'}; the same command goes on from here",
                  file=sys.stderr)
            sys.exit(128 + caught[0])
        if not isinstance(e, (InputError, OSError)):
            raise
        say_error(e)
        sys.exit(2)


def main(argv=None):
    parser, verbs = parsers("tiling.py", __doc__)
    for verb, what in (("doctor", "say what is seen in each slide"), ("tiles", "tissue and tiles"),
                       ("features", "tiles, then features"), ("supertiles", "tiles, features, then super-tiles")):
        p = verbs.add_parser(verb, help=what, description=what)
        p.add_argument("cohort", help="folder with slides/ (and samples.csv), a folder of slides, or for doctor one slide")
        add_options(p)
    p = verbs.add_parser("export", help="tiles and features for other programs", description=export.__doc__,
                         formatter_class=RawHelp)
    p.add_argument("cohort", help="folder with slides/ (and samples.csv), or a folder of slides")
    p.add_argument("slide", nargs="*", help="names of slides (default: all)")
    p.add_argument("--h5", action="store_true", help="features for CLAM, TRIDENT and --features")
    p.add_argument("--geojson", action="store_true", help="tiles for QuPath 0.4 and later; those with scores are heatmap's "
                   "tiles.geojson")
    p.add_argument("--csv", action="store_true", help="features and places of tiles for AnnData and the like")
    add_options(p)
    what = "draw a simulated cohort with known truth"
    p = verbs.add_parser("simulate", help=what, description=what)
    p.add_argument("cohort", metavar="folder", help="the cohort folder to write")
    p.add_argument("--patients", type=int, default=64, help="in two projects, at least 4 (default 64)")
    p.add_argument("--normal-in", type=int, default=4, metavar="N", help="one patient in N has a normal slide too (default "
                   "4); 1: all, for differential expression")
    p.add_argument("--seed", type=natural, default=0, help="of every random draw (default 0)")
    o = parser.parse_args(argv)
    if o.verb == "simulate":
        simulate_cohort(o.cohort, o.patients, o.seed, normal_in=o.normal_in)
        return 0
    o.tile_seed, o.seed = o.seed, o.seed or 0
    cohort = Path(o.cohort)
    known = [r["slide"] for r in read_samples(cohort)] if (cohort / "samples.csv").exists() else None
    there = {} if known and o.features else find_slides(cohort)
    slides = known or list(there)
    if not slides:
        raise InputError(f"{cohort}: no slides ({' '.join(SLIDE_ENDINGS)}) in it or in its slides/")
    extra = sorted(set(there) - set(slides))
    if extra:
        print(f"{len(extra)} slide files are not in samples.csv and left out: {few(extra)}")
    if o.verb == "export" and o.slide:
        unknown = [name for name in o.slide if name not in slides]
        if unknown:
            raise InputError(f"{cohort} has no slide {few(unknown)}; it has {few(slides, 5)}")
        slides = list(dict.fromkeys(o.slide))
    start, (rank, world) = time.time(), share_of_slides()
    o.share, slides = (rank, world), slides[rank::world]
    make = dict(doctor=doctor, tiles=make_tiles, features=make_features, supertiles=make_supertiles, export=export)[o.verb]
    try:
        failed = make(cohort, slides, o)
    finally:
        release()
    if o.verb != "doctor":
        print(f"{o.verb}: {len(slides) - len(failed)} of {len(slides)} slides ready in {cohort / o.verb} "
              + f"(RANK {rank} of WORLD_SIZE {world}) " * (world > 1) + f"({clock(time.time() - start)})")
    wait_for_others(world)
    return report_failures(failed, len(slides), None if o.verb == "doctor" else cohort / o.verb, o.share)


if __name__ == "__main__":
    run(main)
