"""What the headers of slide files say: which files are one slide, and the pages of a TIFF."""

import functools
import struct
from typing import NamedTuple

HEADER = 2**18  # bytes of a DICOM file that hold its series                   [ours]
LONG_KINDS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR")
LONG_KINDS += (b"UT", b"UV")  # whose length has four bytes                    [DICOM PS3.5, 7.1.2]
OPEN = 0xFFFFFFFF  # the length of a sequence that ends with a mark            [DICOM PS3.5, 7.5]
SYNTAX, SERIES = (0x0002, 0x0010), (0x0020, 0x000E)  # tags                    [DICOM PS3.6]
IMPLICIT = b"1.2.840.10008.1.2"  # the syntax whose elements don't say their kinds
LISTS = (".vms", ".vmu")  # Hamamatsu's, which name the files of a slide
MOST_PAGES = 10_000  # of a TIFF  [ours]
REDUCED = 1  # bit of a page's kind  [TIFF 6.0]
KIND, WIDTH, HEIGHT, BITS = 254, 256, 257, 258  # numbers of tags  [TIFF 6.0]


# ----- Slides of several files --------------------------------------------------------------------


def parts_of(path):
    """The other files of a slide of several, sorted: of a DICOM series, a .mrxs, a .vms or .vmu."""
    kind, parts = path.suffix.lower(), []
    if kind == ".dcm":
        series = series_of(path)
        parts = [p for p in path.parent.glob("*.[dD][cC][mM]") if series and series_of(p) == series]
    elif kind == ".mrxs":
        parts = path.with_suffix("").glob("*")
    elif kind in LISTS:
        parts = listed(path)
    return sorted(p for p in parts if p != path and p.is_file())


def listed(path):
    """The files beside a .vms or .vmu that it names, such as ImageFile(1,0)=a.jpg."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    names = {line.partition("=")[2].strip() for line in lines}
    return [path.parent / name for name in names if name and "/" not in name]


def series_of(path):
    """The SeriesInstanceUID of a DICOM file, "" where it has none."""
    try:
        state = path.stat()
        return read_series(path, state.st_size, state.st_mtime_ns)
    except (OSError, struct.error):
        return ""


@functools.lru_cache(maxsize=2**16)
def read_series(path, *_):
    with open(path, "rb") as f:
        data = f.read(HEADER)
    if data[128:132] != b"DICM":
        return ""
    at, depth, syntax = 132, 0, b""
    while at + 12 <= len(data):
        group, element = struct.unpack_from("<HH", data, at)
        if group == 0xFFFE:  # an item begins or ends, or with E0DD a sequence
            depth -= element == 0xE0DD
            at += 8
            continue
        length, start = length_of(data, at, group != 2 and syntax == IMPLICIT)
        value = data[start : start + length].strip(b"\0 ")
        if depth == 0 and (group, element) == SERIES:
            return value.decode("ascii", "replace")
        if (group, element) == SYNTAX:
            syntax = value
        depth += length == OPEN
        at = start if length == OPEN else start + length
    return ""


def length_of(data, at, implicit):
    """(length of a DICOM element's value, where the value begins)."""
    if implicit:
        return struct.unpack_from("<I", data, at + 4)[0], at + 8
    if data[at + 4 : at + 6] in LONG_KINDS:
        return struct.unpack_from("<I", data, at + 8)[0], at + 12
    return struct.unpack_from("<H", data, at + 6)[0], at + 8


# ----- Pages of a TIFF ----------------------------------------------------------------------------


class Layout(NamedTuple):
    """How numbers stand in a directory, in struct's letters."""

    count: str
    entry: str
    place: str


VERSIONS = {42: Layout("H", "HHI4s", "I"), 43: Layout("Q", "HHQ8s", "Q")}  # TIFF 6.0, BigTIFF


class Page(NamedTuple):
    """What a directory of a TIFF says of its picture."""

    width: int
    height: int
    reduced: bool  # a smaller picture of another page
    bits: int  # of a channel


def tiff_pages(path):
    """The pages of a TIFF in their order, [] of other files. ValueError where a page is missing."""
    pages, seen = [], set()
    with open(path, "rb") as f:
        order = {b"II": "<", b"MM": ">"}.get(f.read(2))
        version = unpack(f, order + "H")[0] if order else 0
        if version not in VERSIONS:
            return []
        place = VERSIONS[version].place
        f.seek(8 if version == 43 else 4)
        (at,) = unpack(f, order + place)
        while at and at not in seen and len(pages) < MOST_PAGES:
            seen.add(at)
            f.seek(at)
            try:
                page, at = read_page(f, order, VERSIONS[version])
            except struct.error:
                raise ValueError(
                    f"its page {len(pages) + 1} is not in the file, which was cut off or not "
                    "written to its end"
                ) from None
            pages.append(page)
    return pages


def read_page(f, order, layout):
    """(a Page, where the next one begins, 0 after the last)."""
    (n,) = unpack(f, order + layout.count)
    tags = {}
    for _ in range(n):
        tag, kind, count, value = unpack(f, order + layout.entry)
        tags[tag] = kind, count, value
    (after,) = unpack(f, order + layout.place)
    kind, count, value = tags.get(BITS, (3, 1, b"\x01\0" * 4))
    if 2 * count > len(value):  # it lies elsewhere
        f.seek(struct.unpack(order + layout.place, value)[0])
        value = f.read(2)
    sizes = [number(order, tags[tag]) if tag in tags else 0 for tag in (WIDTH, HEIGHT, KIND)]
    (bits,) = struct.unpack_from(order + "H", value)
    return Page(*sizes[:2], bool(sizes[2] & REDUCED), bits), after


def number(order, tag):
    kind, _, value = tag
    return struct.unpack_from(order + {3: "H", 16: "Q"}.get(kind, "I"), value)[0]


def unpack(f, form):
    return struct.unpack(form, f.read(struct.calcsize(form)))
