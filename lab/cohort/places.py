"""Truth about places on a slide: cells in points/, spots in spots/, outlines in regions/.

Files are <slide>.csv, .tsv, .txt (also .gz) or .geojson, as people write them or QuPath exports
them. All places come out as x, y in level-0 pixels.
"""

import json
import zlib
from typing import NamedTuple

import numpy as np

from lab.files import InputError, few, number, read_rows, unpacked

FAR = 1e9  # pixels or µm from the corner of a slide: no place on it      [ours]
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt")
SHAPES = (".geojson", ".geojson.gz")
CLASSES = ("cell", "class", "classification")  # columns that name a cell's class


def read_places(folder, slide, mpp, origin=(0, 0)):
    """What is known of a slide: cells {class: (m, 2)} and spots ((m, 2), {column: (m,)}), or None.

    mpp and origin: QuPath's own frame, in which its exports are (`qupath_frame`).
    """
    return read_cells(folder, slide, mpp, origin), read_spots(folder, slide, mpp, origin)


def read_cells(folder, slide, mpp, origin):
    """{class: (m, 2)} of points/<slide>, "all cells" first; None where there is no such file."""
    path = found_one(folder / "points", slide, (*TABLES, *SHAPES))
    if path is None:
        return None
    if path.name.endswith(SHAPES):
        kinds, xy = shape_centres(path)
        return cells_by_class(kinds, xy + origin)
    xy, columns = read_place_table(path, slide, mpp, origin)
    named = {name.lower(): texts for name, texts in columns.items()}
    kinds = next((named[c] for c in CLASSES if c in named), [""] * len(xy))
    return cells_by_class(kinds, xy)


def read_spots(folder, slide, mpp, origin):
    """((m, 2), {column: (m,)}) of spots/<slide>, columns with numbers; None without such a file."""
    path = found_one(folder / "spots", slide, TABLES)
    if path is None:
        return None
    xy, columns = read_place_table(path, slide, mpp, origin)
    values = {name: np.array(list(map(number, texts))) for name, texts in columns.items()}
    return xy, {name: v for name, v in values.items() if np.isfinite(v).any()}


def found_one(folder, slide, endings):
    """The file <slide> with one of the endings, None where there is none; two are refused."""
    paths = [folder / f"{slide}{ending}" for ending in endings]
    paths = [path for path in paths if path.is_file()]
    if len(paths) > 1:
        raise InputError(f"{folder}: {paths[0].name} and {paths[1].name} are both there; keep one")
    return paths[0] if paths else None


def cells_by_class(kinds, xy):
    """{class: (m, 2)} of the classes (n,) of places (n, 2), "all cells" first; "" is no class."""
    kinds = np.array(kinds, str)
    cells = {"all cells": xy}
    for kind in np.unique(kinds):
        if kind:
            cells[str(kind)] = xy[kinds == kind]
    return cells


# ----- Tables -------------------------------------------------------------------------------------


def read_place_table(path, slide, mpp, origin):
    """Places (m, 2) of a table, and its other columns {name: texts}."""
    header, rows = read_rows(path, even=True)
    columns = {name: [row[j] for row in rows] for j, name in enumerate(header)}
    known = {plain(name): name for name in header}
    images = sorted(set(columns[known["image"]])) if "image" in known else []
    if len(images) > 1:
        raise InputError(
            f"{path}: rows of {len(images)} images ({few(images, 3)}); give those of {slide} alone"
        )
    names, scale, start = place_columns(path, known, mpp, origin)
    texts = [columns.pop(name) for name in names]
    xy = np.array([[number(text) for text in column] for column in texts]).T.reshape(-1, 2)
    there = (np.abs(xy) < FAR).all(1)
    if not there.all():
        raise InputError(f"{path}: row {2 + int(np.argmin(there))}: x, y is no place")
    return xy * scale + start, columns


def plain(name):
    """A column's name in lower case, with the micro sign that QuPath writes, not its likes."""
    return name.lower().replace("μ", "µ").replace(" um", " µm")


def place_columns(path, known, mpp, origin):
    """(names of the columns of x and y, what a unit is in pixels, where they begin).

    x, y: level-0 pixels of ours; QuPath's: Centroid X px or µm, in its own frame.
    """
    for before, after, scale, start in (
        ("", "", 1, (0, 0)),
        ("centroid ", " px", 1, origin),
        ("centroid ", " µm", 1 / np.asarray(mpp), origin),
    ):
        wanted = [before + axis + after for axis in "xy"]
        if all(name in known for name in wanted):
            return [known[name] for name in wanted], scale, start
    raise InputError(
        f"{path}: no columns x and y (level-0 pixels); it has {few(list(known.values()))}"
    )


# ----- GeoJSON ------------------------------------------------------------------------------------


class Feature(NamedTuple):
    """What a GeoJSON feature holds: points (m, 2), and polygons, each its outline and its holes."""

    kind: str  # the class that QuPath gave it, "Tumor" or derived "Tumor: Positive"
    is_annotation: bool  # an outline of a region, no cell
    points: np.ndarray
    polygons: list


def read_outlines(folder, slide, origin, kind=None):
    """Polygons of regions/<slide>.geojson as `lab.space.inside` takes them, or None.

    kind: those of one class; where the file has none of it, that is said.
    """
    path = found_one(folder / "regions", slide, SHAPES)
    if path is None:
        return None
    features = read_geojson(path)
    if kind:
        classes = sorted({f.kind for f in features} - {""})
        features = [f for f in features if f.kind == kind]
        if not features:
            print(f"{path}: no region of class {kind}; it has {few(classes) or 'no classes'}")
            return None
    polygons = [[ring + origin for ring in rings] for f in features for rings in f.polygons]
    if not any(len(ring) > 2 for rings in polygons for ring in rings):
        raise InputError(
            f"{path}: no Polygon or MultiPolygon in it: draw an outline, export it as GeoJSON"
        )
    return polygons


def shape_centres(path):
    """Classes (m,) and places (m, 2) of a file's cells: points, and centroids of polygons."""
    kinds, places = [], [np.zeros((0, 2))]
    for f in read_geojson(path):
        xy = f.points
        if f.polygons and not f.is_annotation:
            xy = centroid(f.polygons)[None]
        places.append(xy)
        kinds += [f.kind] * len(xy)
    return kinds, np.concatenate(places)


def read_geojson(path):
    """Features of a FeatureCollection, of a list of them (as QuPath writes), or of one of them."""
    try:
        value = json.loads(unpacked(path))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as e:
        raise InputError(f"{path}: not whole GeoJSON ({e})") from None
    if isinstance(value, dict):
        value = value.get("features", value)
    features = []
    for feature in value if isinstance(value, list) else [value]:
        if isinstance(feature, dict):
            try:
                features.append(feature_of(feature))
            except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
                number = len(features) + 1
                raise InputError(
                    f"{path}: feature {number} has no x, y numbers, or is no feature of GeoJSON"
                ) from None
    return features


def feature_of(feature):
    """A Feature of GeoJSON, or of a bare geometry."""
    shape = feature.get("geometry", feature) or {}
    own = feature.get("properties") or {}
    points, polygons = np.zeros((0, 2)), []
    if shape.get("type") == "Point":
        points = points_of([shape["coordinates"]])
    elif shape.get("type") == "MultiPoint":
        points = points_of(shape["coordinates"])
    elif shape.get("type") == "Polygon":
        polygons = [shape["coordinates"]]
    elif shape.get("type") == "MultiPolygon":
        polygons = shape["coordinates"]
    polygons = [[points_of(ring) for ring in rings] for rings in polygons]
    object_type = own.get("objectType") or own.get("object_type")
    object_type = object_type or feature.get("id") or ""  # before QuPath 0.3 the id said it
    return Feature(class_of(own), "annotation" in str(object_type).lower(), points, polygons)


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
