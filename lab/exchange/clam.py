"""Features that CLAM, TRIDENT, STAMP and others have made: <slide>.h5 or .pt. No pickled code is
run.

.h5: data sets `features` (STAMP: `feats`) and `coords` with their attributes; .pt: a tensor of
features, or a dict of these. Each is (n, ...) or (1, n, ...). lab/exchange/layout.py knows what the
coordinates are.
"""

import zipfile

import numpy as np
import torch

from lab.cohort.slides import unnameable
from lab.exchange.layout import data_set, edges_said
from lab.files import InputError, as_named, few, is_bomb, reason

FOREIGN = {".h5": "h5_files", ".pt": "pt_files"}  # endings, and CLAM's folders for them


def features_file(source, name):
    """The file of a slide's features: in the folder, or in CLAM's h5_files/ or pt_files/ in it.

    An .h5 goes first, since it has coordinates.
    """
    if unnameable(name):
        raise InputError(unnameable(name))
    for ending, inner in FOREIGN.items():
        for folder in (source, source / inner):
            path = as_named(folder / f"{name}{ending}")
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
        there = [key for key, value in said.items() if value is None or torch.is_tensor(value)]
        raise InputError(
            f"{path}: no `features` in it; it has {few(there) or 'nothing'}: give one that name"
        )
    for other in (f"h5_files/{name}.h5", f"patches/{name}.h5", f"patches/{name}_patches.h5"):
        beside = path.parent.parent / other
        lacking = coords is None or not edges_said(said)
        if lacking and beside != path and beside.is_file():
            _, _, places, more = read_foreign(beside, 1)
            if places is not None and len(places) == n:
                coords = places if coords is None else coords
                said = {**more, **said}
    return path, features, coords, said


def read_foreign(path, few_rows=0):
    """(features or None, n, coords or None, a dict of what else is said) of one file.

    It is opened without a lock, which some file systems don't know: it is only read.
    """
    try:
        if path.suffix == ".h5":
            with need_h5py().File(path, locking=False) as held:
                features, coords, said = parts_of(held)
                return *numbers_in(features, coords, few_rows), said
        mapped = zipfile.is_zipfile(path)
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if torch.is_tensor(held):
            held = {"features": held}
        features = held.get(data_set(held))
        return *numbers_in(features, held.get("coords"), few_rows), held
    except InputError:
        raise
    except Exception as e:  # h5py's, torch's and pickle's errors share no class
        mend = ": unset HDF5_USE_FILE_LOCKING" if "lock file" in str(e) else ""
        raise InputError(
            f"{path}: not features of CLAM or TRIDENT, or a tensor that loads without running code "
            f"({reason(e)}){mend}"
        ) from None


def parts_of(held):
    """The data sets of features and of coords of an open .h5, None where they are not there, and
    what else is said: all attributes, and None for each data set.
    """
    parts = {}
    held.visititems(parts.__setitem__)
    said = dict.fromkeys([*held, *(name for name in parts if hasattr(parts[name], "shape"))])
    for part in (held, *parts.values()):
        said.update(part.attrs)
    return own(held, data_set(held)), own(held, "coords"), said


def own(held, name):
    """A data set of an .h5 that holds its numbers itself; None where there is none.

    No link is followed: behind it may lie any file of this machine, or one that has moved, of which
    HDF5 reads zeros without a word.
    """
    links = held.id.links
    if not name or not links.exists(name.encode()):
        return None
    is_link = links.get_info(name.encode()).type != need_h5py().h5l.TYPE_HARD
    part = None if is_link else held[name]
    if not is_link and not hasattr(part, "shape"):
        return None
    if is_link or part.is_virtual or part.external:
        raise InputError(
            f"{held.filename}: its `{name}` lie elsewhere, behind a link or in another file, which "
            "is not followed: copy the numbers into this one"
        )
    if is_bomb(part.nbytes, part.id.get_storage_size()):
        raise InputError(f"{held.filename}: its `{name}` {part.shape} are far larger than the file")
    return part


def numbers_in(features, coords, few_rows):
    """(features or None, n, coords or None) as numpy, whatever the file was."""
    n = 0
    if features is not None:
        features, n = rows(features, few_rows)
    if coords is not None:
        coords, _ = rows(coords)
    return features, n, coords


def rows(value, few_rows=0):
    """(every so-manieth row of a dataset or tensor as numpy, the number of all rows)."""
    one_slide = value.ndim == 3 and value.shape[0] == 1
    n = value.shape[1 if one_slide else 0]
    every = slice(None, None, max(1, n // few_rows) if few_rows else 1)
    value = value[(0, every) if one_slide else every]
    if torch.is_tensor(value) and is_bomb(value.nbytes, value.untyped_storage().nbytes()):
        raise ValueError(f"its numbers {tuple(value.shape)} are far larger than the file")
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
