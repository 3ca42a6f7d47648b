"""GeoJSON as QuPath writes it, and as others do: points and polygons, and what is passed over."""

import io
import json
import re
import sys
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab.files import PIECE, InputError, few, opened, refuse_bomb
from lab.progress import reading

FAR = 1e9  # pixels or µm from the corner of a slide: no place on it      [ours]
SHAPES = (".geojson", ".geojson.gz", ".json", ".json.gz", ".zip")
VALUE = 2**27  # characters of a feature, which is held whole  [ours]
DEEPEST = 100  # lists in lists that hold features  [ours]
BLANKS = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder()
OPEN = "open rings"  # they are taken as closed


class Feature(NamedTuple):
    """What a GeoJSON feature holds: points (m, 2), and polygons, each its outline and its holes."""

    kind: str  # the class that QuPath gave it, "Tumor" or derived "Tumor: Positive"
    is_annotation: bool  # an outline of a region, no cell
    points: np.ndarray
    polygons: list


def read_geojson(path, passed, is_ours=None):
    """Yield the Features of a file in any wrapping, also in a .zip; one at a time, for memory.

    passed: a Counter to which is added what is passed over. A geometry collection gives a Feature
    for each of its geometries. is_ours: tells which of several files in a .zip is wanted, by name.
    """
    path = Path(path)
    number = 0
    try:
        with in_zip(path, is_ours) if is_zip(path) else opened(path, reading(path)) as f:
            for value in values_in(Pieces(f)):
                for feature in unwrapped(value):
                    number += 1
                    yield from named_shapes(f"{path}: feature {number}", feature, passed)
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as e:
        raise InputError(f"{path}: not whole GeoJSON ({e})") from None
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as e:  # encrypted, unknown
        raise InputError(f"{path}: not a whole .zip ({e})") from None


def named_shapes(name, feature, passed):
    """The Features of a GeoJSON feature; InputError where it has places that are none."""
    if not isinstance(feature, dict):
        passed["no feature"] += 1
        return []
    try:
        return list(shapes_of(feature, passed))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise InputError(f"{name} has no x, y numbers, or is no feature of GeoJSON") from None


def is_zip(path):
    return path.suffix.lower() == ".zip"


@contextmanager
def in_zip(path, is_ours):
    """The one GeoJSON file in a .zip, or the one that is ours, open for reading bytes."""
    with zipfile.ZipFile(path) as packed:
        every = [each for each in packed.infolist() if is_shapes(each.filename)]
        ours = [each for each in every if is_ours and is_ours(Path(each.filename).name)]
        inside = every if len(every) == 1 else ours
        if len(inside) != 1:
            names = few([each.filename for each in every or packed.infolist()]) or "nothing"
            raise InputError(f"{path}: wanted is one .geojson of the slide; it holds {names}")
        refuse_bomb(path, inside[0].file_size, inside[0].compress_size)
        with packed.open(inside[0]) as f:
            yield f


def is_shapes(name):
    """Whether a name in a .zip is that of GeoJSON, and none of those that macOS adds."""
    path = Path(name)
    return path.suffix.lower() in (".geojson", ".json") and not path.name.startswith(".")


class Pieces:
    """A JSON text that is read on in pieces; what was taken from it is let go."""

    def __init__(self, f):
        encoding = json.detect_encoding(f.peek(4)[:4])
        self.file = io.TextIOWrapper(f, encoding, errors="surrogatepass", newline="")
        self.text, self.at, self.gone = "", 0, 0

    def more(self):
        """Read on, twice as far with a value that is not whole -> whether there was more."""
        held = self.text[self.at :]
        if len(held) > VALUE:
            raise ValueError(f"a value at character {self.gone + self.at:,} has over {VALUE:,}")
        piece = self.file.read(max(PIECE, len(held)))
        if piece:
            self.gone += self.at
            self.text, self.at = held + piece, 0
        return bool(piece)

    def sign(self):
        """The next character that is no blank, "" at the end."""
        while True:
            self.at = BLANKS.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def is_next(self, *wanted):
        """Whether the next sign is one of those wanted, which it then takes."""
        found = self.sign() in wanted
        self.at += found
        return found

    def take(self, *wanted):
        """Take the next sign, which must be one of those wanted."""
        sign = self.sign()
        if sign not in wanted:
            raise ValueError(
                f"{' or '.join(wanted)} is wanted at character {self.gone + self.at:,}"
            )
        self.at += 1
        return sign

    def value(self):
        """Take the next value."""
        self.sign()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or not self.more():  # a number may go on
                    self.at = end
                    return value
            except json.JSONDecodeError as e:
                if not self.more():
                    at = self.gone + e.pos
                    raise ValueError(f"{e.msg}, character {at:,}") from None


def values_in(pieces):
    """Yield the values of lists, also of lists in them and of "features", one at a time; and what
    else a JSON text holds, as a whole.
    """
    if not pieces.is_next("{"):
        yield from items(pieces)
    else:
        whole = {}
        is_open = not pieces.is_next("}")
        while is_open:
            key = pieces.value() if pieces.sign() == '"' else pieces.take('"')
            pieces.take(":")
            if key == "features":
                whole = None
                yield from items(pieces)
            elif whole is None:
                pieces.value()
            else:
                whole[key] = pieces.value()
            is_open = pieces.take(",", "}") == ","
        if whole is not None:
            yield whole
    if pieces.sign():
        raise ValueError(f"more than one value, character {pieces.gone + pieces.at:,}")


def items(pieces):
    """The values of a list, and of lists in it; or the one value that is no list."""
    depth = 0
    while True:
        if pieces.is_next("["):
            depth += 1
            if depth > DEEPEST:
                raise ValueError(f"lists in lists, over {DEEPEST} deep")
            is_empty = pieces.sign() == "]"
            if not is_empty:
                continue
        else:
            yield pieces.value()
        while depth and pieces.is_next("]"):
            depth -= 1
        if not depth:
            return
        pieces.take(",")


def unwrapped(value):
    """The features of a FeatureCollection, of a list, of lists of these, or of one alone."""
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, dict) and "features" in each:
            each = each["features"]
        if isinstance(each, list):
            todo += reversed(each)
        else:
            yield each


def shapes_of(feature, passed):
    """The Features of a GeoJSON feature, or of a bare geometry; what is none goes to `passed`."""
    own = feature.get("properties") or {}
    object_type = own.get("objectType") or own.get("object_type")
    object_type = object_type or feature.get("id") or ""  # before QuPath 0.3 the id said it
    said = class_of(own), "annotation" in str(object_type).lower()
    is_bare = "geometry" not in feature and feature.get("type") != "Feature"
    todo = [feature if is_bare else feature.get("geometry")]
    while todo:
        shape = todo.pop()
        if isinstance(shape, dict) and "geometries" in shape:
            todo += reversed(shape["geometries"] or [])
            continue
        points, polygons = places_in(shape, passed)
        if len(points) or polygons:
            yield Feature(*said, points, polygons)


def places_in(shape, passed):
    """Points (m, 2) and polygons of one geometry."""
    kind = shape.get("type") if shape else None
    points, polygons = np.zeros((0, 2)), []
    if kind in ("Point", "MultiPoint"):
        places = shape["coordinates"]
        points = points_of([places] if kind == "Point" and places != [] else places)
    elif kind in ("Polygon", "MultiPolygon"):
        every = shape["coordinates"]
        for rings in [every] if kind == "Polygon" else every:
            rings = [points_of(ring) for ring in rings]
            if rings and len(rings[0]):
                polygons.append([ring for ring in rings if len(ring)])
                passed[OPEN] += sum(map(is_open, polygons[-1]))
    else:
        passed[kind or "without geometry"] += 1
        return points, polygons
    if not len(points) and not polygons:
        passed[f"empty {kind}"] += 1
    return points, polygons


def is_open(ring):
    return bool((ring[0] != ring[-1]).any())


def class_of(own):
    """A feature's class by its properties, "" for none."""
    said = own.get("classification") or ""
    if isinstance(said, dict):
        said = said.get("name") or said.get("names") or ""
    return sys.intern(": ".join(map(str, said)) if isinstance(said, list) else str(said))


def points_of(coordinates):
    """(k, 2) of a list of x, y, perhaps with more numbers; ValueError for what is no place."""
    try:
        xy = np.array(coordinates, np.float64)
    except (TypeError, ValueError):  # of uneven length
        xy = None
    if xy is None or xy.ndim != 2 or xy.shape[1] < 2:
        xy = np.array([(x, y) for x, y, *_ in coordinates], np.float64).reshape(-1, 2)
    xy = np.ascontiguousarray(xy[:, :2])
    if not np.abs(xy).max(initial=0) < FAR:
        raise ValueError(coordinates)
    return xy


def centroids(shapes):
    """Centres of gravity (m, 2) of shapes. Each is a list of polygons, each of these its outline
    and its holes, in any direction.
    """
    if not shapes:
        return np.zeros((0, 2))
    rings, of_shape, is_hole = [], [], []
    for i, polygons in enumerate(shapes):
        for polygon in polygons:
            rings += polygon
            of_shape += [i] * len(polygon)
            is_hole += [False] + [True] * (len(polygon) - 1)
    sizes = np.array([len(ring) for ring in rings])
    ends = sizes.cumsum()
    starts = ends - sizes
    p = np.concatenate(rings)
    first = p[starts]  # far from the origin digits would be lost
    p = p - np.repeat(first, sizes, 0)
    q = np.roll(p, -1, 0)
    q[ends - 1] = 0  # back to the first
    cross = p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1]
    size = np.add.reduceat(cross, starts) / 2
    sign = np.sign(size) * np.where(is_hole, -1, 1)  # a hole is taken away
    moment = np.add.reduceat((p + q) * cross[:, None], starts) / 6 + size[:, None] * first
    area, x, y = (np.bincount(of_shape, sign * each, len(shapes)) for each in (size, *moment.T))
    with np.errstate(invalid="ignore", divide="ignore"):
        centres = np.stack([x, y], 1) / area[:, None]
    for i in np.flatnonzero(~(area > 0)):  # a line or a point
        centres[i] = shapes[i][0][0].mean(0)
    return centres
