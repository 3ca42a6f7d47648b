"""The features of a slide's tiles, ours or made elsewhere: where they are, what they are.

`source` is an encoder's name, for ours in COHORT/features/<source>/, or the Path of a folder that
another program has made (lab/exchange/clam.py).
"""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import tiling
from lab.cohort.made import cut_of, held_by, is_newer, of_these_tiles
from lab.cohort.steps import check_setting
from lab.cohort.tiles import tiles_of
from lab.encoders import ENCODERS, features_folder
from lab.exchange.clam import features_file, foreign
from lab.exchange.layout import number_said, place
from lab.files import InputError, differences, digest, load_json, reason

FEW_ROWS = 64  # of features made elsewhere tell one file from another  [ours]
BLOCK = 64  # tiles that are looked at together, within a processor's own memory  [ours]
LARGEST = float(np.finfo(np.float16).max)  # super-tiles are kept in float16
SMALLEST = float(np.finfo(np.float16).tiny)  # below it float16 has fewer digits, then none


def features_of(o):
    """The source that options name."""
    if not o.features:
        return features_folder(o)
    if not Path(o.features).is_dir():
        raise InputError(f"--features {o.features}: no such folder")
    if o.tile_um is not None:
        check_setting("tile_um", o.tile_um, "--tile-um")
    return Path(o.features).resolve()


class There(NamedTuple):
    """A folder of our features: the options that name it, and of how many slides it has some."""

    encoder: str
    colour: str | None
    slides: int


def features_there(cohort):
    """{name of a folder under features/: There}, but for those whose encoder is gone."""
    there = {}
    for path in sorted((Path(cohort) / "features").glob("*/settings.json")):
        made, name = load_json(path) or {}, path.parent.name
        colour = "stretch" if made.get("colour") == "stretch" else None
        encoder = name.removesuffix("-stretch") if colour else name
        if encoder not in ENCODERS:
            encoder = str(made.get("weights"))
        slides = len(list(path.parent.glob("*.npy")))
        if slides and (encoder in ENCODERS or Path(encoder).is_file()):
            there[name] = There(encoder, colour, slides)
    return there


def source_name(o):
    """The name of the source's folder under supertiles/ and export/."""
    if not o.features:
        return features_folder(o)
    name = Path(o.features).resolve().name
    return f"{name}-h5" if name in ENCODERS else name


def load_features(cohort, source, name, check=True):
    """(features (n, D), coords (n, 2)) of one slide.

    Ours are float16, memory-mapped, and their coords level-0 pixels. Made elsewhere they are of any
    float type; coords are in the unit of their file (place_tiles makes them pixels), and None where
    no file has them. check: look for features that can't be meant, which reads everything.
    """
    if isinstance(source, Path):
        path, features, coords, _ = foreign(source, name)
        said = None
    else:
        path = place_of(cohort, source, name)
        coords, said = tiles_described(cohort, source, name)
        features = load_array(path)
    if features.dtype not in (np.float16, np.float32):
        with np.errstate(over="ignore"):  # beyond float32: infinite, and refused below
            features = features.astype(np.float32)
    placed = coords is None or coords.shape == (len(features), 2)
    if features.ndim != 2 or not placed:
        why = f"features {features.shape} and coords {np.shape(coords)} don't fit"
    elif features.size == 0:
        why = f"no tiles, or no features: {features.shape}"
    elif coords is not None and not np.isfinite(coords).all():
        why = "NaN or infinite coords"
    else:
        why = wrong_or_other(path, features, said) if check else None
        if why is None:
            return features, coords
        raise InputError(f"{path}: {why}")
    mend = "" if isinstance(source, Path) else "; delete it to have it made again"
    raise InputError(f"{path}: {why}; wanted are numbers (n, D) and (n, 2){mend}")


def tiles_described(cohort, source, name):
    """(coords (n, 2), what the features hold) of a slide, as tiles/ and features/ say it."""
    npy, npz = place_of(cohort, source, name), Path(cohort) / "tiles" / f"{name}.npz"
    tiles, settings = tiles_of(cohort, name)
    if tiles is None:
        raise InputError(f"{npz} is missing or not whole: run the command that made it again")
    side = made_as(npy.parent, name)
    if not side:
        raise InputError(
            f"{npy}: no whole {name}.json beside it says what made it; delete it to have it made "
            "again"
        )
    if not of_these_tiles(side, tiles, settings):
        changed = differences(side["tiles"], settings) or "others under the same settings"
        raise InputError(
            f"{npy} is of other tiles than {npz} has now ({changed}): `tiling.py features` makes "
            "it anew; a run's verbs make both as the run's with --into another folder"
        )
    return tiles["coords"], side.get("holds")


FRESH = 2  # seconds in which a file may change again and have the same time  [ours]
AT = " at "  # between what tells features and what tells their places
LOOKED_AT = {}  # {(file, its size and times): (why its features can't be meant, what it holds)}


def looked_at(path, features):
    """As LOOKED_AT, of a slide's features: all are read once, however often they are asked for."""
    state = state_of(path)
    found = LOOKED_AT.get(state) or (wrong_features(features), held_by(features))
    if time.time() - path.stat().st_mtime > FRESH:
        LOOKED_AT[state] = found
    return found


def state_of(path):
    there = path.stat()
    return path, there.st_size, there.st_mtime_ns, there.st_ctime_ns


def wrong_or_other(path, features, said=None):
    """Why a slide's features can't be meant, or are not those of which `said` was said."""
    why, holds = looked_at(path, features)
    if said not in (None, holds):
        return (
            f"it holds {holds}, and {path.stem}.json beside it is of {said}: it was changed or "
            "exchanged; bring it back, or delete it to have it made again"
        )
    return why


def wrong_features(features):
    """Why a slide's features (n, D) can't be meant, or None. They are never clipped."""
    n, D = features.shape
    most, least = magnitudes(features)
    if not np.isfinite(most).all():
        return f"NaN or infinite feature in tile {np.isfinite(most).argmin()}"
    large = np.flatnonzero(most > LARGEST)
    if len(large):
        return (
            f"features up to {most.max():.3g} in {len(large):,} of {n:,} tiles, the first is tile "
            f"{large[0]}, are beyond float16 ({LARGEST:g}): scale those of all slides down alike"
        )
    level = np.flatnonzero(most == least)
    level = level[(features[level] == features[level, :1]).all(1)]
    if len(level) and D > 1:
        return (
            f"all features of {len(level):,} of {n:,} tiles are {features[level[0], 0]:g}, the "
            f"first is tile {level[0]}: an extraction that was cut off, or padding? Make the file "
            "anew, or leave such tiles out"
        )
    small = np.flatnonzero(most < SMALLEST)
    if len(small) and D > 1:
        return (
            f"all features of {len(small):,} of {n:,} tiles, the first is tile {small[0]}, are "
            f"below float16's smallest normal number ({SMALLEST:.3g}): scale those of all slides "
            "up alike"
        )
    if n > 1 and np.ptp(most) == 0 and (features == features[0]).all():
        return f"the features of all its {n:,} tiles are the same"
    return None


def magnitudes(features):
    """The largest and the smallest magnitude of each tile's features; not finite where one is not.

    Bits of positive numbers are ordered as these, NaN above all; they are read ten times faster
    than float16.
    """
    bits = {2: np.uint16, 4: np.uint32}[features.itemsize]
    most, least = np.empty((2, len(features)), bits)
    for i in range(0, len(features), BLOCK):
        block = np.abs(features[i : i + BLOCK]).view(bits)
        block.max(1, out=most[i : i + BLOCK])
        block.min(1, out=least[i : i + BLOCK])
    return most.view(features.dtype), least.view(features.dtype)


def place_of(cohort, source, name):
    """Where our features of a slide are."""
    return Path(cohort) / "features" / source / f"{name}.npy"


def load_array(path):
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.float16:
            raise ValueError(f"{array.dtype}, not float16")
    except Exception as e:  # of a damaged header anything may come
        raise InputError(
            f"{path}: not a whole array ({reason(e)}); delete it to have it made again"
        ) from None
    return array


def made_as(folder, name):
    """The settings of a slide's features, as <slide>.json says; {} where it is not whole."""
    side = load_json(folder / f"{name}.json") or {}
    whole = {"encoder", "weights"} <= set(side) and isinstance(side.get("tiles"), dict)
    return side if whole else {}


def content_of(made):
    """What tells a slide from others, of its `features_made_by`: its features, or its file."""
    made = made or {}
    return made.get("content") or (made.get("tiles") or {}).get("file") or None


def features_made_by(cohort, source, name, before=None, product=None):
    """What tells a slide's features from others: what <slide>.json says of ours; of a file made
    elsewhere, wherever it lies, its size, its coordinates and all its numbers. [ours]

    before: what was told of them when `product` was made. At the same sample it is taken for the
    truth, unless the file was written since.
    """
    if not isinstance(source, Path):
        return load_json(place_of(cohort, source, name).with_suffix(".json"))
    made = sample_of(source, name)
    path = features_file(source, name)
    if isinstance(before, dict) and made.items() <= before.items() and not is_newer(path, product):
        return before
    known = LOOKED_AT.get(state_of(path))
    _, holds = known or looked_at(path, load_features(cohort, source, name, check=False)[0])
    coords = foreign(source, name, 1)[2]
    at = "" if coords is None else AT + digest(coords)
    return {**made, "content": digest(holds) + at}


def sample_of(source, name):
    """What tells a file of features made elsewhere at a glance: its name and size, and a digest of
    its coordinates and every so-manieth row.
    """
    path, features, coords, _ = foreign(source, name, FEW_ROWS)
    sample = digest(features, [] if coords is None else coords)
    return {"file": path.name, "bytes": path.stat().st_size, "sample": sample}


def are_same(learned, now):
    """Whether two features, as `learned_as` tells them, are the same, places that both know too."""
    if AT in learned and AT in now:
        return learned == now
    return learned.split(AT)[0] == now.split(AT)[0]


def learned_as(cohort, source, name, made=None):
    """What a run remembers of a slide's features: what they hold, of files made elsewhere; how ours
    were made and of which tiles. made: as features_made_by.

    Precision and rounding are left out: another machine may make them again.
    """
    made = made or features_made_by(cohort, source, name)
    if "content" in made:
        return made["content"]
    how = {key: made.get(key) for key in ("encoder", "weights", "colour", "tile_px")}
    cut = made.get("cut") or cut_of(tiles_of(cohort, name)[0])
    return digest(how, made["tiles"].get("file"), cut)


def place_tiles(cohort, source, name, coords, mpp=None, asked=None):
    """(coords (n, 2), edge of a tile), both in level-0 pixels, of one slide.

    The edge is as the tiles or their file say, else as asked for, else the pitch of the grid; what
    is unusual is printed. mpp: µm per pixel of the slide, None where nobody knows.
    """
    if not isinstance(source, Path):
        return coords, float(tiles_of(cohort, name)[0]["tile"])
    path, _, _, said = foreign(source, name, 1)
    try:
        coords, edge, unusual = place(said, coords, mpp, asked)
    except InputError as e:
        raise InputError(f"{path}: {e}") from None
    for sentence in unusual:
        print(f"{path}: {sentence}")
    return coords, edge


def mpp_said(source, name):
    """µm per level-0 pixel that a file of features made elsewhere says, None where it doesn't."""
    return number_said(foreign(source, name, 1)[3], "mpp") or None


def provenance(cohort, o, slides):
    """What a run's features are, for its config and report."""
    name = source_name(o)
    about = {
        "source": name,
        "supertiles": load_json(Path(cohort) / "supertiles" / name / "settings.json"),
    }
    if o.features:
        path = features_file(features_of(o), slides[0])
        return about | {"made": f"elsewhere ({path.suffix})"}
    made = made_as(Path(cohort) / "features" / name, slides[0])
    for key in ("weights", "precision", "colour"):
        about[key] = made[key]
    tiles = {
        key: made["tiles"][key] for key in made["tiles"] if key not in ("mpp", "force_mpp", "file")
    }
    return about | tiles | {"tile_px": made.get("tile_px", tiling.TILE_PX)}
