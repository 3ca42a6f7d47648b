"""Truth about places on a slide: cells in points/, spots in spots/, outlines in regions/.

Files are <slide>.csv, .tsv, .txt (also .gz) or .geojson, as people write them or QuPath exports
them. All places come out as x, y in level-0 pixels.
"""

import json
import zlib

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
    header, rows = read_rows(path)
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise InputError(
                f"{path}: row {i + 2} has {len(row)} fields, the header has {len(header)}"
            )
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


def read_outlines(folder, slide, origin, kind=None):
    """Polygons of regions/<slide>.geojson as `lab.space.inside` takes them; None where there are
    none.

    kind: those of one class; where the file has none of it, that is said.
    """
    path = found_one(folder / "regions", slide, SHAPES)
    if path is None:
        return None
    features = read_geojson(path)
    if kind:
        classes = sorted({shape_class(f) for f in features} - {""})
        features = [f for f in features if shape_class(f) == kind]
        if not features:
            print(f"{path}: no region of class {kind}; it has {few(classes) or 'no classes'}")
            return None
    polygons = []
    for i, feature in enumerate(features):
        shape = feature["geometry"] or {}
        if shape.get("type") in ("Polygon", "MultiPolygon"):
            polygons += in_words(path, i, shape, polygons_of)
    if not any(len(ring) > 2 for rings in polygons for ring in rings):
        raise InputError(
            f"{path}: no Polygon or MultiPolygon in it: draw an outline, export it as GeoJSON"
        )
    return [[ring + origin for ring in rings] for rings in polygons]


def shape_centres(path):
    """Classes (m,) and places (m, 2) of a GeoJSON file's cells: points, and centroids of polygons.

    An annotation's polygon is QuPath's outline of a region, and no cell.
    """
    kinds, places = [], [np.zeros((0, 2))]
    for i, feature in enumerate(read_geojson(path)):
        shape = feature["geometry"] or {}
        xy = in_words(path, i, shape, centres_of)
        if "Point" in str(shape.get("type")) or not is_annotation(feature):
            places.append(xy)
            kinds += [shape_class(feature)] * len(xy)
    return kinds, np.concatenate(places)


def read_geojson(path):
    """The Features (dicts) of a GeoJSON file: a FeatureCollection, a list of Features (as QuPath
    writes), a Feature or a bare geometry.
    """
    try:
        value = json.loads(unpacked(path))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as e:
        raise InputError(f"{path}: not whole GeoJSON ({e})") from None
    if isinstance(value, dict):
        value = value.get("features", value)
    features = []
    for f in value if isinstance(value, list) else [value]:
        if isinstance(f, dict):
            features.append(f if "geometry" in f else {"geometry": f})
    for i, f in enumerate(features):
        for key in ("geometry", "properties"):
            if not isinstance(f.get(key, {}), dict | None):
                odd = str(f[key])[:20]
                raise InputError(f"{path}: feature {i + 1}: its {key} is {odd}, no JSON object")
    return features


def shape_class(feature):
    """The class that QuPath gave a Feature, "Tumor" or derived "Tumor: Positive"; "" none."""
    said = (feature.get("properties") or {}).get("classification") or ""
    if isinstance(said, dict):
        said = said.get("name") or said.get("names") or ""
    if isinstance(said, list):
        said = ": ".join(map(str, said))
    return str(said)


def is_annotation(feature):
    """Whether QuPath calls a Feature an annotation; before its version 0.3 the id said so."""
    own = feature.get("properties") or {}
    kind = own.get("objectType") or own.get("object_type") or feature.get("id") or ""
    return "annotation" in str(kind).lower()


def in_words(path, i, shape, function):
    """function(shape), where a shape that has no x, y numbers is the user's mistake."""
    try:
        return function(shape)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        kind = shape.get("type")
        raise InputError(f"{path}: feature {i + 1}: its {kind} has no x, y numbers") from None


def centres_of(shape):
    """Places (m, 2) of a geometry: its points, or the centroid of its polygons; else none."""
    kind = shape.get("type")
    if kind == "Point":
        return points_of([shape["coordinates"]])
    if kind == "MultiPoint":
        return points_of(shape["coordinates"])
    if kind in ("Polygon", "MultiPolygon"):
        return centroid(polygons_of(shape))[None]
    return np.zeros((0, 2))


def polygons_of(shape):
    """Polygons of a geometry, each a list of rings (k, 2): its outline and its holes."""
    polygons = shape["coordinates"]
    if shape["type"] == "Polygon":
        polygons = [polygons]
    return [[points_of(ring) for ring in rings] for rings in polygons]


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
