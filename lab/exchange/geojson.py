"""GeoJSON as QuPath writes it, and as others do: points and polygons, and what is passed over."""

import json
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab.files import InputError, few, unpacked

FAR = 1e9  # pixels or µm from the corner of a slide: no place on it      [ours]
SHAPES = (".geojson", ".geojson.gz", ".json", ".json.gz", ".zip")
LARGEST = 2**32  # bytes of a file in a .zip  [ours]
OPEN = "open rings"  # they are taken as closed


class Feature(NamedTuple):
    """What a GeoJSON feature holds: points (m, 2), and polygons, each its outline and its holes."""

    kind: str  # the class that QuPath gave it, "Tumor" or derived "Tumor: Positive"
    is_annotation: bool  # an outline of a region, no cell
    points: np.ndarray
    polygons: list


def read_geojson(path, is_ours=None):
    """(Features, a Counter of what was passed over) of a file in any wrapping, also in a .zip.

    A geometry collection gives a Feature for each of its geometries. is_ours: tells which of
    several files in a .zip is wanted, by its name.
    """
    path = Path(path)
    try:
        data = in_zip(path, is_ours) if path.suffix.lower() == ".zip" else unpacked(path)
        value = json.loads(data)
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as e:
        raise InputError(f"{path}: not whole GeoJSON ({e})") from None
    features, passed = [], Counter()
    for number, feature in enumerate(unwrapped(value), 1):
        if not isinstance(feature, dict):
            passed["no feature"] += 1
            continue
        try:
            features += shapes_of(feature, passed)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
            raise InputError(
                f"{path}: feature {number} has no x, y numbers, or is no feature of GeoJSON"
            ) from None
    return features, passed


def in_zip(path, is_ours):
    """The bytes of the one GeoJSON file in a .zip, or of the one that is ours."""
    try:
        with zipfile.ZipFile(path) as packed:
            every = [each for each in packed.infolist() if is_shapes(each.filename)]
            ours = [each for each in every if is_ours and is_ours(Path(each.filename).name)]
            inside = every if len(every) == 1 else ours
            if len(inside) != 1:
                names = few([each.filename for each in every or packed.infolist()]) or "nothing"
                raise InputError(f"{path}: wanted is one .geojson of the slide; it holds {names}")
            if inside[0].file_size > LARGEST:
                raise InputError(f"{path}: {inside[0].filename} has {inside[0].file_size:,} bytes")
            return packed.read(inside[0])
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as e:  # encrypted, unknown
        raise InputError(f"{path}: not a whole .zip ({e})") from None


def is_shapes(name):
    """Whether a name in a .zip is that of GeoJSON, and none of those that macOS adds."""
    path = Path(name)
    return path.suffix.lower() in (".geojson", ".json") and not path.name.startswith(".")


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
    return ": ".join(map(str, said)) if isinstance(said, list) else str(said)


def points_of(coordinates):
    """(k, 2) of a list of x, y, perhaps with more numbers; ValueError for what is no place."""
    xy = np.array([(x, y) for x, y, *_ in coordinates], np.float64).reshape(-1, 2)
    if not (np.abs(xy) < FAR).all():
        raise ValueError(coordinates)
    return xy


def centroid(polygons):
    """Centre of gravity (2,) of polygons, each its outline and its holes, in any direction."""
    area, moment = 0.0, np.zeros(2)
    for rings in polygons:
        for i, ring in enumerate(rings):
            first = ring[0]  # far from the origin digits would be lost
            p = ring - first  # (k, 2)
            q = np.roll(p, -1, 0)
            cross = p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1]
            size = cross.sum() / 2
            sign = np.sign(size) * (-1 if i else 1)  # a hole is taken away
            area += sign * size
            moment += sign * ((p + q).T @ cross / 6 + size * first)
    return moment / area if area > 0 else polygons[0][0].mean(0)
