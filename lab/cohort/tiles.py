"""The tiles of a cohort's slides: tiles/<slide>.npz, and a picture <slide>.png to look at."""

import glob
import io
import json
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

import tiling
from lab.cohort.made import is_changed
from lab.cohort.samples import read_samples
from lab.cohort.slides import (
    find_slides,
    open_slide,
    passed_over,
    slide_mpp,
    two_scales,
    unnameable,
)
from lab.cohort.steps import begin, settle, work_through
from lab.encoders import encoder_wants
from lab.files import TISSUE, UNNAMED, InputError, few, fingerprint, save_file, whole_arrays
from lab.locks import release
from lab.progress import Room, counted
from lab.space import scale_bar_um

GREEN, BLUE = (0, 158, 115), (0, 114, 178)
PICTURE_PX, STRIP_PX = 1200, 64  # long edge of a slide's picture at least, and room below  [ours]
PICTURE_MOST = 4096  # of its long edge; the picture of a whole mount would take minutes  [ours]
GREY_RANGE = 30  # levels from which a picture without colours is one, no empty glass  [ours]
THUMBNAILS = Room(tiling.THUMBNAIL_PIXELS)  # of all workers together, as one large slide's  [ours]


def make_tiles(cohort, slides, o, into=None):
    """Make the missing tiles of slides, in COHORT/tiles or INTO/tiles -> {slide: why it failed}."""
    place = Path(into or cohort)
    folder = place / "tiles"
    shared, found = tile_settings(folder, o), find_slides(cohort)
    jobs, anew, failed = missing_tiles(cohort, place, slides, shared, found)
    if jobs:
        begin(folder, o.share, shared, anew)
    um_per_pixel = shared["tile_um"] / encoder_wants(o)["tile_px"]

    def cut(name):
        arrays, image = find_tiles(found[name], name, jobs[name])
        png = io.BytesIO()
        image.save(png, format="PNG")
        return arrays, png.getbuffer(), passed_over(found[name])

    for name, (arrays, png, skipped) in work_through("tiles", cut, list(jobs), o.workers, failed):
        if skipped:
            print(f"slide {name}: {skipped}")
        if arrays["mpp"] > um_per_pixel * 1.01:
            print(
                f"slide {name}: {arrays['mpp']:.3f} µm per pixel is coarser than the "
                f"{um_per_pixel:g} wanted: read at level 0 and resampled up"
            )
        save_file(folder / f"{name}.png", lambda file, png=png: file.write(png))
        save_file(folder / f"{name}.npz", partial(np.savez, **arrays))
    release(folder)
    given, own = {**dict.fromkeys(slides, shared["mpp"]), **table_mpp(cohort)}, []
    for name in slides:
        arrays, made = tiles_of(place, name)
        if name in failed or not arrays:
            continue
        if made.get("mpp") is None and two_scales(arrays["mpp"], given[name]):
            own.append(f"{name} {arrays['mpp']:.4g}, given {given[name]:g}")
        if len(arrays["coords"]) == 0:
            failed[name] = (
                f"no {shared['tile_um']:g} µm tile is {shared['min_tissue']:.0%} tissue: an empty "
                "slide or one smaller than a tile, or --min-tissue or --min-area is too high"
            )
    if own:
        print(
            f"warning: the files' µm per pixel are used, not those given in samples.csv or --mpp, "
            f"where they differ: {few(own)}; --force-mpp uses those given"
        )
    return failed


def missing_tiles(cohort, place, slides, shared, found):
    """({slide: settings of its tiles to be}, [(made as, wanted)] of those made anew, failures)."""
    given = table_mpp(cohort)
    jobs, anew, failed = {}, [], {}
    for name in counted("looking for tiles", slides, "slides"):
        if unnameable(name):
            failed[name] = unnameable(name)
            continue
        file = name in found and fingerprint(found[name])
        wanted = dict(shared, mpp=given.get(name, shared["mpp"]), file=file)
        arrays, made = tiles_of(place, name)
        if made:
            keep_idle(wanted, made, arrays)
        if made == wanted and not (file and are_old(place, name, found[name])):
            continue
        if not file:
            failed[name] = f"no file {name}.* in {Path(cohort) / 'slides'}"
            continue
        jobs[name] = wanted
        if made:
            anew.append((made, wanted))
    return jobs, anew, failed


def are_old(place, name, path):
    """Whether a slide has changed since its tiles were cut."""
    told = (place / "features").glob(f"*/{glob.escape(name)}.json")
    return is_changed(path, place / "tiles" / f"{name}.npz", told)


def keep_idle(wanted, made, arrays):
    """Take over, from tiles that are there, settings that had no part in them: they may differ."""
    forced = made.get("force_mpp")
    if wanted["mpp"] is None or (wanted["mpp"] == made.get("mpp") and not forced):
        wanted.pop("force_mpp", None)  # it has none of its own
    if made.get("mpp") is None and not wanted.get("force_mpp"):  # the slide has its own
        wanted["mpp"] = None
    wanted.update(coarser(arrays["size"], arrays["mpp"]))
    if len(arrays["coords"]) == arrays["found"]:  # nothing was sampled
        wanted["seed"] = made.get("seed")
    if not wanted["file"]:  # only the tiles were kept
        wanted["file"] = made.get("file")


def tile_settings(folder, o):
    """What the tiles of a folder are cut by. The usual rules of tissue are not named in it."""
    um = encoder_wants(o)["tile_um"]
    usual = dict(
        tile_um=um or tiling.TILE_UM,
        min_tissue=tiling.MIN_TISSUE,
        max_tiles=tiling.MAX_TILES,
        mpp=None,
        force_mpp=False,
        seed=o.seed,
        **TISSUE,
    )
    asked = {key: getattr(o, key) for key in usual} | {"seed": o.tile_seed}
    settings = settle(folder / "settings.json", asked, usual)
    if um not in (None, settings["tile_um"]):
        raise InputError(
            f"{o.encoder} learned from tiles of {um:g} µm, those of --tile-um or {folder} are of "
            f"{settings['tile_um']:g}: --tile-um {um:g} cuts them anew"
        )
    if settings["tissue"] == "stain":
        if o.tissue_threshold not in (None, "otsu"):
            raise InputError(
                f"--tissue-threshold {o.tissue_threshold:g} is a level of saturation: add --tissue "
                "saturation"
            )
        settings["tissue_threshold"] = "otsu"
    return {k: v for k, v in settings.items() if k not in UNNAMED or v != UNNAMED[k]}


def table_mpp(cohort):
    """{slide: mpp} of samples.csv; used, like --mpp, where the slide itself has none, or forced.

    It is read once, however many slides are asked for one by one.
    """
    path = Path(cohort) / "samples.csv"
    return mpp_of_table(path, path.stat().st_mtime_ns) if path.exists() else {}


@lru_cache(maxsize=16)
def mpp_of_table(path, _changed):
    given = {}
    for row in read_samples(path.parent):
        text = row.get("mpp")
        try:
            if text:
                given[row["slide"]] = float(text.replace("_", "x"))
        except ValueError:
            raise InputError(
                f"{path}: mpp {text!r} of slide {row['slide']} is not a number (µm per pixel, such "
                "as 0.25)"
            ) from None
    return given


def coarser(size, mpp):
    """The setting of slides so large that tissue is found on a coarser picture; {} of others."""
    um = float(tiling.thumbnail_um(size, mpp))
    return {"thumbnail_um": round(um, 3)} if um > tiling.THUMBNAIL_UM else {}


def find_tiles(path, name, settings):
    """(what tiles/<slide>.npz holds, a dict of arrays; its picture) of one slide."""
    slide = open_slide(path)
    mpp, source = slide_mpp(slide, settings["mpp"], name, settings.get("force_mpp"))
    settings = settings | coarser(slide.dimensions, mpp)
    if source == "slide":
        settings["mpp"] = None
        settings.pop("force_mpp", None)
    area = np.prod(slide.dimensions, dtype=float) * min(1, mpp / tiling.THUMBNAIL_UM) ** 2
    with THUMBNAILS.taken(area):
        return cut_tiles(slide, mpp, name, settings)


def cut_tiles(slide, mpp, name, settings):
    """As find_tiles, of an open slide."""
    rule = {**TISSUE, **settings}
    size, tile = slide.dimensions, settings["tile_um"] / mpp
    rgb, scanned = tiling.thumbnail(slide, mpp)
    if np.ptp(rgb) > GREY_RANGE and not np.ptp(rgb, 2).any():
        raise InputError(
            f"slide {name} is grey: tissue is found by its colours. Is it one channel of several, "
            "or fluorescence?"
        )
    least = rule["min_area"] * tile**2 * scanned.size / np.prod(size, dtype=float)  # its pixels
    mask, threshold = tiling.find_tissue(
        rgb, scanned, rule["tissue"], rule["tissue_threshold"], least
    )
    every = tiling.tile_grid(mask, size, tile, settings["min_tissue"])
    coords = tiling.sample(every, settings["max_tiles"], settings["seed"])
    arrays = {
        "coords": coords,
        "tile": tile,
        "mpp": mpp,
        "threshold": threshold,
        "size": np.array(size),
        "tissue": mask.mean(),
        "found": len(every),
        "settings": json.dumps(settings),
    }
    return arrays, draw_tiles(rgb, mask, coords, tile, size, mpp)


def draw_tiles(rgb, mask, coords, tile, size, mpp):
    """The thumbnail with the outline of the tissue and the kept tiles, over scale and legend."""
    less = -(-max(mask.shape) // PICTURE_MOST)
    rgb = np.array(Image.fromarray(rgb).reduce(less))
    mask = mask[::less, ::less]
    rgb[mask ^ ndimage.binary_erosion(mask)] = GREEN
    image = Image.fromarray(rgb)
    grow = -(-PICTURE_PX // max(image.size))
    image = image.resize((image.width * grow, image.height * grow), Image.Resampling.NEAREST)
    pen, scale = ImageDraw.Draw(image), image.width / size[0]
    for corner in coords:
        box = [*corner * scale, *(corner + tile) * scale]
        pen.rectangle(box, outline=BLUE, width=2)
    sheet = Image.new("RGB", (max(image.width, PICTURE_PX), image.height + STRIP_PX), "white")
    sheet.paste(image)
    um = scale_bar_um(size[0] * mpp)
    length, pen = um / mpp * scale, ImageDraw.Draw(sheet)
    pen.rectangle([10, image.height + 14, 10 + length, image.height + 20], fill="black")
    bar = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} um"  # Pillow's font has no µ
    legend = {
        bar: "black",
        f"outline: tissue, {mask.mean():.0%} of the picture": GREEN,
        f"squares: {len(coords):,} tiles of {tile * mpp:.0f} um": BLUE,
    }
    left, font = 10, ImageFont.load_default(26)
    for text, color in legend.items():
        pen.text((left, image.height + 26), text, color, font)
        left = max(left + pen.textlength(text, font), 10 + length) + 40
    return sheet


def tiles_of(cohort, name):
    """(arrays of tiles/<slide>.npz, their settings); (None, None) where they are not whole."""
    try:
        arrays = whole_arrays(
            Path(cohort) / "tiles" / f"{name}.npz",
            **{"coords": "inx", "size": "ix", "tile": "f", "mpp": "f", "found": "i"},
            settings="U",
        )
        settings = json.loads(str(arrays["settings"]))
        check_places(arrays["coords"], arrays["tile"], arrays["size"])
    except (ValueError, RecursionError):  # InputError, too
        return None, None
    if not isinstance(settings, dict) or not 0 < arrays["mpp"] < np.inf:
        return None, None
    return arrays, settings


def check_places(coords, tile, size):
    """InputError where tiles (n, 2) and their edge do not lie on a slide of `size` (W, H)."""
    inside = (coords >= 0).all() and (coords + tile <= np.add(size, 1)).all()
    if not (tile > 0 and inside):
        raise InputError(
            "tiles reach beyond the slide of {:,} x {:,} px: are these the features of another "
            "slide?".format(*size)
        )
