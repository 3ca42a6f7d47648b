"""lab.exchange.clam"""

import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from lab.cohort.steps import tiles_of
from lab.encoders import ENCODERS, features_folder
from lab.files import InputError, digest, few, load_json
from lab.progress import say_left_out

FOREIGN = {
    ".h5": "h5_files",
    ".pt": "pt_files",
}  # features made elsewhere, and where CLAM keeps them, first first  [ours]


FEW_ROWS = 64  # of such features tell one file from another                                [ours]


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

    def rows(value, few=0):  # of a dataset or tensor, as numpy, and n
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
    wanted = (
        "a tensor, or a dict with `features`, that loads without running code"
        if torchs
        else ("a CLAM/TRIDENT file with `features` and `coords`")
    )
    try:
        if torchs:
            held = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
        with (
            nullcontext(held if isinstance(held, dict) else dict(features=held))
            if torchs
            else h5py.File(path) as held
        ):
            features, n = rows(held["features"], few) if "features" in held else (None, 0)
            coords = rows(held["coords"])[0] if held.get("coords") is not None else None
            said = (
                held
                if torchs
                else {k: v for part in (held, *held.values()) for k, v in part.attrs.items()}
            )
    except Exception as e:  # h5py's, torch's and pickle's errors share no class
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"{path}: not {wanted} ({why})") from None
    return features, n, coords, said


def need_h5py():
    try:
        import h5py

        return h5py
    except ImportError:
        raise InputError(
            "reading and writing .h5 features needs the package h5py: pip install h5py"
        ) from None


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
        for beside in (
            path.parent.parent / inner / f"{name}{end}" for end in (".h5", "_patches.h5")
        ):
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
    return dict(
        file=path.name,
        bytes=path.stat().st_size,
        content=digest(features, [] if coords is None else coords),
    )


def tile_edge(cohort, source, name, coords, asked=None):
    """Edge of a slide's tiles in level-0 pixels: ours say; of features made elsewhere the file does (`edge_said`), else it
    is what was `asked` for, else the pitch of their grid, and that is said."""
    if not isinstance(source, Path):
        return float(tiles_of(cohort, name)[0]["tile"])
    path, _, _, said = foreign(source, name, 1)
    edge = edge_said(said)
    if edge and asked and abs(edge / asked - 1) > 0.02:
        raise InputError(
            f"--tile-um: {path} says {edge:g} level-0 pixels for a tile, which is not {asked:g}: leave it out"
        )
    if edge or asked:
        return edge or asked
    steps = np.concatenate([np.diff(np.unique(axis)) for axis in coords.T])
    if not len(steps):
        raise InputError(f"{path}: nothing says how large its one tile is: give --tile-um")
    print(
        f"{path}: nothing says how large its tiles are: taken to be {steps.min():g} level-0 pixels, the pitch of their "
        "grid; --tile-um says otherwise"
    )
    return float(steps.min())


def source_name(o):
    """The folder name under supertiles/: the encoder's, or that of the .h5 folder. Where it is also that of an encoder
    file, each makes the super-tiles anew, never a mix."""
    name = Path(o.features).resolve().name if o.features else features_folder(o)
    return f"{name}-h5" if o.features and name in ENCODERS else name


def say_twice(source, slides):
    """Say which slides have features made elsewhere as .h5 and as .pt."""
    there = lambda name, end: any(
        (source / d / f"{name}{end}").is_file() for d in ("", FOREIGN[end])
    )
    say_left_out(
        {
            f"slides have .h5 and .pt in {source}, the .h5 is taken": [
                name
                for name in slides
                if isinstance(source, Path) and all(there(name, end) for end in FOREIGN)
            ]
        }
    )
