"""The features of a slide's tiles, ours or made elsewhere: where they are, what they are.

`source` is an encoder's name, for ours in COHORT/features/<source>/, or the Path of a folder that
another program has made (lab/exchange/clam.py).
"""

from pathlib import Path

import numpy as np

import tiling
from lab.cohort.steps import check_setting
from lab.cohort.tiles import tiles_of
from lab.encoders import ENCODERS, features_folder
from lab.exchange.clam import edge_said, features_file, foreign
from lab.files import InputError, digest, load_json, reason, whole_arrays

FEW_ROWS = 64  # of features made elsewhere tell one file from another  [ours]


def features_of(o):
    """The source that options name."""
    if not o.features:
        return features_folder(o)
    if not Path(o.features).is_dir():
        raise InputError(f"--features {o.features}: no such folder")
    if o.tile_um is not None:
        check_setting("tile_um", o.tile_um, "--tile-um")
    return Path(o.features).resolve()


def source_name(o):
    """The name of the source's folder under supertiles/ and export/."""
    if not o.features:
        return features_folder(o)
    name = Path(o.features).resolve().name
    return f"{name}-h5" if name in ENCODERS else name


def load_features(cohort, source, name, check=True):
    """(features (n, D), coords (n, 2) level-0 pixels) of one slide.

    Ours are float16, memory-mapped. Made elsewhere they are of any float type, and coords is None
    where no file has them. check: look for what is not finite, which reads everything.
    """
    if isinstance(source, Path):
        path, features, coords, _ = foreign(source, name)
    else:
        path = Path(cohort) / "features" / source / f"{name}.npy"
        tiles = whole_arrays(Path(cohort) / "tiles" / f"{name}.npz", coords="inx")
        features, coords = load_array(path), tiles["coords"]
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
    elif check and not np.isfinite(features).all():
        tile = np.isfinite(features).all(1).argmin()
        why = f"NaN or infinite feature in tile {tile}"
    else:
        return features, coords
    raise InputError(f"{path}: {why}; wanted are numbers (n, D) and (n, 2)")


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


def features_made_by(cohort, source, name):
    """What tells a slide's features from others: the settings of ours; of a file made elsewhere,
    wherever it lies, its size, its coordinates and every so-manieth row. [ours]
    """
    if not isinstance(source, Path):
        return load_json(Path(cohort) / "features" / source / f"{name}.json")
    path, features, coords, _ = foreign(source, name, FEW_ROWS)
    content = digest(features, [] if coords is None else coords)
    return {"file": path.name, "bytes": path.stat().st_size, "content": content}


def tile_edge(cohort, source, name, coords, asked=None):
    """Edge of a slide's tiles in level-0 pixels: as the tiles or the file say, else as asked for.

    Where nobody says, it is the pitch of the grid, and that is printed.
    """
    if not isinstance(source, Path):
        return float(tiles_of(cohort, name)[0]["tile"])
    path, _, _, said = foreign(source, name, 1)
    edge = edge_said(said)
    if edge and asked and abs(edge / asked - 1) > 0.02:
        raise InputError(
            f"--tile-um: {path} says {edge:g} level-0 pixels for a tile, which is not {asked:g}: "
            "leave it out"
        )
    if edge or asked:
        return edge or asked
    steps = np.concatenate([np.diff(np.unique(axis)) for axis in coords.T])
    if len(steps) == 0:
        raise InputError(f"{path}: nothing says how large its one tile is: give --tile-um")
    pitch = float(steps.min())
    print(
        f"{path}: nothing says how large its tiles are: taken to be {pitch:g} level-0 pixels, the "
        "pitch of their grid; --tile-um says otherwise"
    )
    return pitch


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
    tiles = {key: made["tiles"][key] for key in made["tiles"] if key not in ("mpp", "file")}
    return about | tiles | {"tile_px": made.get("tile_px", tiling.TILE_PX)}
