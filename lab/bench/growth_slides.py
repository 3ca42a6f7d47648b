"""What grows with the area of a slide: tissue and tiles of one, as `tiling.py tiles` finds them.

The slides are drawn as TIFFs whose tiles are a few JPEGs that the file holds once and names again
and again: 10^10 pixels in a megabyte, read and decoded as if each were another.
"""

import io
import struct
from functools import partial

import numpy as np
from PIL import Image
from scipy import ndimage

TILE = 512  # edge of the file's own tiles
MPP = 0.25
SHORT, LONG, RATIONAL = 3, 4, 5  # types of values, by the numbers of tags [TIFF 6.0]
KINDS = {
    258: SHORT,
    259: SHORT,
    262: SHORT,
    277: SHORT,
    282: RATIONAL,
    283: RATIONAL,
    296: SHORT,
    530: SHORT,
}
WIDTH = {SHORT: "<u2", LONG: "<u4", RATIONAL: "<u4"}
JPEG, YCBCR, CENTIMETRE = 7, 6, 3  # of compression, colours, resolution [TIFF 6.0]
H_E = ((225, 150, 185), (110, 75, 150))  # what tissue is drawn in


def draw_slide(folder, megapixels, factor=4, ratio=1.0, mpp=MPP):
    """slide.tif, `ratio` times as wide as high; each level is `factor` smaller, 0: no others."""
    high = int((megapixels * 1e6 / ratio) ** 0.5)
    sizes = [(int(high * ratio), high)]
    while factor and min(sizes[-1]) > 4 * TILE:
        sizes.append(tuple(edge // factor for edge in sizes[-1]))
    parts, offset, at = [], 8, []
    for jpeg in drawn_tiles():
        at.append((offset, len(jpeg)))
        parts.append(jpeg + b"\0" * (len(jpeg) % 2))
        offset += len(parts[-1])
    last = 4  # where the place of the next directory is to be written
    data = bytearray(b"II*\0\0\0\0\0" + b"".join(parts))
    for level, size in enumerate(sizes):
        last = add_directory(data, last, size, np.array(at), level, mpp * sizes[0][0] / size[0])
    (folder / "slide.tif").write_bytes(data)


def drawn_tiles():
    """Two JPEGs: glass, and tissue."""
    rng = np.random.default_rng(0)
    cells = ndimage.gaussian_filter(rng.random((TILE, TILE)), 3, mode="wrap") > 0.51
    for picture in (np.full((TILE, TILE, 3), 243), np.array(H_E)[cells.astype(int)]):
        noisy = picture + rng.normal(0, 2, picture.shape)
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
        yield file.getvalue()


def add_directory(data, last, size, at, level, mpp):
    """One level at the end of a TIFF -> where the place of the next one is to be written."""
    columns, rows = (-(-edge // TILE) for edge in size)
    y, x = np.mgrid[:rows, :columns] * TILE / np.max(size) * 6 % 2 - 1  # round pieces, side by side
    offsets, lengths = at[(x**2 + y**2 < 0.6).astype(int)].reshape(-1, 2).T
    resolution = round(1e4 / mpp * 1000), 1000  # pixels a centimetre
    width, height = size
    tags = {
        254: [int(level > 0)],
        256: [width],
        257: [height],
        258: [8, 8, 8],
        259: [JPEG],
        262: [YCBCR],
        277: [3],
        282: resolution,
        283: resolution,
        296: [CENTIMETRE],
        322: [TILE],
        323: [TILE],
        324: offsets,
        325: lengths,
        530: [2, 2],
    }
    entries = []
    for tag, values in tags.items():
        kind = KINDS.get(tag, LONG)
        packed = np.array(values, WIDTH[kind]).tobytes()
        count = len(values)
        if kind == RATIONAL:
            count = 1
        if len(packed) > 4:
            place = len(data)
            data += packed + b"\0" * (len(packed) % 2)
            packed = struct.pack("<I", place)
        entries.append(struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0"))
    struct.pack_into("<I", data, last, len(data))
    data += struct.pack("<H", len(entries)) + b"".join(entries)
    data += b"\0\0\0\0"
    return len(data) - 4


def cut_tiles(folder):
    from lab.cohort.tiles import find_tiles

    settings = {"mpp": None, "tile_um": 112.0, "min_tissue": 0.5, "max_tiles": 8000, "seed": 0}
    return lambda: find_tiles(folder / "slide.tif", "slide", settings)


def case(*sizes, **slide):
    drawn = partial(draw_slide, **slide)
    return "megapixels", drawn, cut_tiles, {1: sizes[:2], 10: sizes[2:3], 100: sizes[3:]}


CASES = {  # as those of growth
    "tiles of a slide, levels 1, 4, 16": case(100, 400, 1600, 10_000),
    "tiles of a slide of one level": case(100, 400, 1600, 10_000, factor=0),
    "tiles of glass, up to 100 x 200 mm": case(1250, 5000, 20_000, 320_000, ratio=2.0),
}
