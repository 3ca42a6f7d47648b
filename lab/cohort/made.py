"""What was made from what: decided here for tiles, features, super-tiles and runs. [ours]

Each keeps what tells apart what it was made from, and every reader compares. Content decides; a
time only says where to look again, so that of a copy nothing is made anew. <slide>.json of features
has `cut`, its tiles, `slide`, all bytes of the slide's files, and `holds`, what <slide>.npy holds.
"""

import hashlib
import os
from contextlib import suppress

import numpy as np

from lab.files import digest, load_json
from lab.headers import parts_of

FOUND = ("stains", "cut", "slide", "holds")  # what a <slide>.json has that nobody asks for
AT_ONCE = 2**20  # bytes of a slide that are read  [ours]


def cut_of(tiles):
    """Tells the tiles of a slide from others: where they lie, their edge, µm per pixel."""
    coords = np.asarray(tiles["coords"], np.int64)
    return digest(coords, float(tiles["tile"]), float(tiles["mpp"]))


def held_by(array):
    """Type, shape and a digest of all numbers: rows that change places are another array."""
    return f"{array.dtype} {array.shape}, {digest(array)}"


def all_bytes(path):
    """A digest of all bytes of a slide's files."""
    h = hashlib.sha256()
    for part in (path, *parts_of(path)):
        with open(part, "rb") as f:
            while block := f.read(AT_ONCE):
                h.update(block)
    return h.hexdigest()[:16]


def of_these_tiles(side, tiles, settings):
    """Whether features, by their <slide>.json, are of the tiles that are there now."""
    if "cut" in side:
        return side["cut"] == cut_of(tiles)
    return side["tiles"] == settings  # of an earlier version


def is_changed(path, made, told):
    """Whether a slide was written since something was made of it, and is not as features tell.

    told: paths of the <slide>.json of its features. Where those are of an earlier version, and none
    knows its bytes, the slide is taken for the same; so is a copy, once it is read whole.
    """
    if not (path.is_file() and made.is_file() and is_newer(path, made)):
        return False
    said = {side: (load_json(side) or {}).get("slide") for side in told}
    if not any(said.values()):
        return not said
    now = all_bytes(path)
    same = [side for side in said if said[side] == now]
    for there in (made, *same) if same else ():
        keep_time(path, there)
    return not same


def is_newer(path, made):
    """Whether a file, or a part of a slide, was written after what was made of it."""
    return newest(path) > made.stat().st_mtime_ns


def newest(path):
    return max(part.stat().st_mtime_ns for part in (path, *parts_of(path)))


def keep_time(path, made):
    """Give what was made of a file the file's time, if later, so that it is not read again."""
    if is_newer(path, made):
        with suppress(OSError):  # of a folder that may only be read
            os.utime(made, ns=(newest(path),) * 2)
