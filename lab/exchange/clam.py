"""Features that CLAM, TRIDENT and others have made: <slide>.h5 or .pt. No pickled code is run.

.h5: datasets `features` and `coords` with their attributes; .pt: a tensor of features, or a dict of
these. Each is (n, ...) or (1, n, ...). Coordinates are level-0 pixels.
"""

import zipfile

import numpy as np
import torch

from lab.files import InputError, few, reason

FOREIGN = {".h5": "h5_files", ".pt": "pt_files"}  # endings, and CLAM's folders for them


def features_file(source, name):
    """The file of a slide's features: in the folder, or in CLAM's h5_files/ or pt_files/ in it.

    An .h5 goes first, since it has coordinates.
    """
    for ending, inner in FOREIGN.items():
        for folder in (source, source / inner):
            path = folder / f"{name}{ending}"
            if path.is_file():
                return path
    raise InputError(f"no file {source / name}.h5 or .pt")


def foreign(source, name, few_rows=0):
    """(path, features (n, D), coords (n, 2) or None, what is said of the tiles) of a slide.

    few_rows: only about so many rows of the features, evenly spread. What the file lacks,
    coordinates or the size of its tiles, is taken from the .h5 of the same slide and as many tiles
    beside it: CLAM keeps them in h5_files/ and patches/, TRIDENT in patches/<slide>_patches.h5.
    """
    path = features_file(source, name)
    features, n, coords, said = read_foreign(path, few_rows)
    if features is None:
        raise InputError(f"{path}: no `features` in it; it has {few(list(said)) or 'nothing'}")
    for other in (f"h5_files/{name}.h5", f"patches/{name}.h5", f"patches/{name}_patches.h5"):
        beside = path.parent.parent / other
        lacking = coords is None or edge_said(said) is None
        if lacking and beside != path and beside.is_file():
            _, _, places, more = read_foreign(beside, 1)
            if places is not None and len(places) == n:
                coords = places if coords is None else coords
                said = {**more, **said}
    return path, features, coords, said


def read_foreign(path, few_rows=0):
    """(features or None, n, coords or None, a dict of what else is said) of one file."""
    try:
        if path.suffix == ".h5":
            with need_h5py().File(path) as held:
                said = dict.fromkeys(held)
                for part in (held, *held.values()):
                    said.update(part.attrs)
                return *numbers_in(held, few_rows), said
        mapped = zipfile.is_zipfile(path)
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if torch.is_tensor(held):
            held = {"features": held}
        return *numbers_in(held, few_rows), held
    except Exception as e:  # h5py's, torch's and pickle's errors share no class
        raise InputError(
            f"{path}: not features of CLAM or TRIDENT, or a tensor that loads without running code "
            f"({reason(e)})"
        ) from None


def numbers_in(held, few_rows):
    """(features or None, n, coords or None), whatever the file was."""
    features, n, coords = None, 0, held.get("coords")
    if "features" in held:
        features, n = rows(held["features"], few_rows)
    if coords is not None:
        coords, _ = rows(coords)
    return features, n, coords


def rows(value, few_rows=0):
    """(every so-manieth row of a dataset or tensor as numpy, the number of all rows)."""
    one_slide = value.ndim == 3 and value.shape[0] == 1
    n = value.shape[1 if one_slide else 0]
    every = slice(None, None, max(1, n // few_rows) if few_rows else 1)
    value = value[(0, every) if one_slide else every]
    if torch.is_tensor(value) and value.dtype == torch.bfloat16:
        value = value.float()
    value = np.asarray(value)
    if value.dtype.kind not in "fiu":
        raise ValueError(f"{value.dtype} in place of numbers")
    return value, n


def need_h5py():
    try:
        import h5py
    except ImportError:
        raise InputError(
            "reading and writing .h5 features needs the package h5py: pip install h5py"
        ) from None
    return h5py


def edge_said(said):
    """Edge of a tile in level-0 pixels, or None where it is not said.

    By TRIDENT's patch_size_level0, by its patch_size and magnifications, or by CLAM's patch_size
    and downsample.
    """
    size, downsample = number_said(said, "patch_size"), number_said(said, "downsample")
    target = number_said(said, "target_magnification")
    if not downsample and target:
        downsample = number_said(said, "level0_magnification") / target
    if not downsample and "patch_level" in said and number_said(said, "patch_level") == 0:
        downsample = 1.0
    edge = number_said(said, "patch_size_level0") or size * downsample
    return edge if 0 < edge < np.inf else None


def number_said(said, key):
    """The first number of an attribute, 0 where there is none."""
    try:
        return max(0.0, float(np.ravel(said[key])[0]))
    except (KeyError, IndexError, TypeError, ValueError):
        return 0.0
