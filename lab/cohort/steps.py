"""lab.cohort.steps"""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

import tiling
from lab.cohort.samples import read_samples
from lab.cohort.slides import MPP_RANGE, open_slide, slide_mpp
from lab.encoders import COLOURS, encoder_wants
from lab.files import TISSUE, InputError, load_json, whole_arrays, within

RANGES = dict(
    tile_um=(1.0, 1e4),
    min_tissue=(0.0, 1.0),
    max_tiles=(1, 10**9),
    mpp=MPP_RANGE,
    min_area=(0.0, 1e9),
    tissue_threshold=(0.0, 255.0),
    seed=(0, 2**63 - 1),
    k=(1, 10**4),
)  # whole where the ends are  [ours]

# Constants
TILE_UM = 112.0  # edge of a tile, µm                      [HE2RNA Methods, Preprocessing]


MAX_TILES = 8000  # tiles per slide, a random sample        [HE2RNA Methods, Preprocessing]


def find_tiles(path, name, settings):
    """(what tiles/<slide>.npz holds as a dict of arrays, its picture) of one slide."""
    slide = open_slide(path)
    mpp, source = slide_mpp(slide, settings["mpp"], name)
    settings = dict(settings, mpp=settings["mpp"] if source == "given" else None)
    tile = settings["tile_um"] / mpp
    rgb, opaque = tiling.thumbnail(slide, mpp)
    rule = {**TISSUE, **settings}
    least = (
        rule["min_area"] * tile**2 * opaque.size / np.prod(slide.dimensions, dtype=float)
    )  # pixels of the thumbnail
    mask, threshold = tiling.find_tissue(
        rgb, opaque, rule["tissue"], rule["tissue_threshold"], least
    )
    coords = tiling.tile_grid(mask, slide.dimensions, tile, settings["min_tissue"], None)
    n = len(coords)
    if n > settings["max_tiles"]:
        coords = tiling.tile_grid(
            mask,
            slide.dimensions,
            tile,
            settings["min_tissue"],
            settings["max_tiles"],
            settings["seed"],
        )
    arrays = dict(
        coords=coords,
        tile=np.float64(tile),
        mpp=np.float64(mpp),
        threshold=np.float64(threshold),
        size=np.array(slide.dimensions, np.int64),
        tissue=np.float64(mask.mean()),
        found=np.int64(n),
        settings=np.array(json.dumps(settings)),
    )
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


def half_supertiles(features, coords, k, seed):
    """supertiles with means in float16, as a run's models see them. InputError where they don't fit."""
    means, mask, cluster = tiling.supertiles(features, coords, k, seed)
    if np.abs(means).max() > np.finfo(np.float16).max:
        raise InputError(
            f"features up to {np.abs(means).max():.3g} are beyond float16; scale them down"
        )
    return means.astype(np.float16), mask, cluster


# The three steps over a cohort. Each makes what is missing and returns {slide: why it failed}; the others go on.
def settle(path, asked, default):
    """Settings of a folder of results: what is asked for, else what its settings.json says, else the default.

    So a later command without options goes on as the folder was begun. InputError where that file says what can't be. [ours]
    """
    before = load_json(path) or {}
    words = dict(tissue=("stain", "saturation"), colour=COLOURS, precision=("float32", "bfloat16"))
    for k, v in default.items():
        said = before.get(k, v)
        if (
            asked.get(k) is None
            and said != v
            and not (
                within(said, *RANGES[k])
                if k in RANGES
                else said in words[k]
                if k in words
                else isinstance(said, str)
            )
        ):
            raise InputError(
                f"{path}: {k} is {said!r}, which can't be: mend it, or delete the file for the defaults"
            )
    return {
        k: asked[k] if asked.get(k) is not None else before.get(k, v) for k, v in default.items()
    }


def tile_settings(cohort, o):
    for k in ("tile_um", "min_tissue", "max_tiles", "mpp", "min_area"):
        if getattr(o, k) is not None and not within(getattr(o, k), *RANGES[k]):
            raise InputError(
                "--{} {}: must lie between {:g} and {:g}".format(
                    k.replace("_", "-"), getattr(o, k), *RANGES[k]
                )
            )
    um, folder = encoder_wants(o)["tile_um"], Path(cohort) / "tiles"
    asked = dict(
        tile_um=o.tile_um,
        min_tissue=o.min_tissue,
        max_tiles=o.max_tiles,
        mpp=o.mpp,
        seed=o.tile_seed,
        **{k: getattr(o, k) for k in TISSUE},
    )
    settings = settle(
        folder / "settings.json",
        asked,
        dict(
            tile_um=um or TILE_UM,
            min_tissue=tiling.MIN_TISSUE,
            max_tiles=MAX_TILES,
            mpp=None,
            seed=o.seed,
            **TISSUE,
        ),
    )
    if um not in (None, settings["tile_um"]):
        raise InputError(
            f"{o.encoder} learned from tiles of {um:g} µm, "
            + ("--tile-um is" if o.tile_um else f"those in {folder} are of")
            + f" {settings['tile_um']:g}: --tile-um {um:g} cuts them anew"
        )
    if settings["tissue"] == "stain":
        if o.tissue_threshold not in (None, "otsu"):
            raise InputError(
                f"--tissue-threshold {o.tissue_threshold:g} is a level of saturation: add --tissue saturation"
            )
        settings["tissue_threshold"] = "otsu"
    return {
        k: v for k, v in settings.items() if k not in TISSUE or v != TISSUE[k]
    }  # as before these options


def table_mpp(cohort):
    """{slide: mpp} of samples.csv; used, like --mpp for the others, where the slide itself has none."""
    given = {}
    for row in read_samples(cohort) if (Path(cohort) / "samples.csv").exists() else []:
        try:
            given.update(
                {row["slide"]: float(row["mpp"].replace("_", "x"))} if row.get("mpp") else {}
            )
        except ValueError:
            raise InputError(
                f"{Path(cohort) / 'samples.csv'}: mpp {row['mpp']!r} of slide {row['slide']} is not a number "
                "(µm per pixel, such as 0.25)"
            ) from None
    return given


def tiles_of(cohort, name):
    """(arrays of tiles/<slide>.npz, the settings that made them), or (None, None) where they are not there or not whole."""
    try:
        arrays = whole_arrays(
            Path(cohort) / "tiles" / f"{name}.npz",
            coords="inx",
            size="ix",
            tile="f",
            mpp="f",
            found="i",
            settings="U",
        )
        settings = json.loads(str(arrays["settings"]))
        check_places(arrays["coords"], arrays["tile"], arrays["size"])
    except (ValueError, RecursionError):  # InputError, too
        return None, None
    return (
        (arrays, settings)
        if isinstance(settings, dict) and 0 < arrays["mpp"] < np.inf
        else (None, None)
    )


def check_places(coords, tile, size):
    """InputError where tiles, coords (n, 2) and their edge, are not of a slide of `size` (W, H); all level-0 pixels."""
    if not (tile > 0 and (coords >= 0).all() and (coords + tile <= np.add(size, 1)).all()):
        raise InputError(
            "tiles reach beyond the slide of {:,} x {:,} px: are these the features of another "
            "slide?".format(*size)
        )


def in_the_way(folder, name, *endings):
    """What keeps a slide's files from being written: a folder of the name of one; None where nothing does."""
    return next(
        (
            f"{path} is a folder: move it away"
            for e in endings
            if (path := folder / f"{name}{e}").is_dir()
        ),
        None,
    )


def made_as(folder, name):
    """The settings that made a slide's features of a folder, as <slide>.json says; {} where it is not there or not whole."""
    side = load_json(folder / f"{name}.json") or {}
    return (
        side if {"encoder", "weights"} <= set(side) and isinstance(side.get("tiles"), dict) else {}
    )
