"""lab.cohort.places"""

import gzip
import json
import zlib

import numpy as np

import stats
from lab.files import InputError, few, number, read_rows

FAR = 1e9  # pixels or µm from the corner of a slide: no place on it                    [ours]


TABLES = (
    ".csv",
    ".csv.gz",
    ".tsv",
    ".tsv.gz",
    ".txt",
)  # of places on a slide                [ours]


SHAPES = (".geojson", ".geojson.gz")  #                                     [ours]


def found_one(folder, slide, endings):
    """The path of <slide> with one of the endings in a folder, None where there is none; InputError where there are two."""
    paths = [p for e in endings if (p := folder / f"{slide}{e}").is_file()]
    if len(paths) > 1:
        raise InputError(f"{folder}: {paths[0].name} and {paths[1].name} are both there; keep one")
    return paths[0] if paths else None


def read_places(folder, slide, mpp, origin=(0, 0)):
    """What is known of places on a slide: (cells {class: (m, 2)}, spots ((m, 2), {column: (m,)})), each or None.

    points/<slide>.csv: x, y in level-0 pixels, and a column cell, class or Classification; or as QuPath exports detections:
    "Centroid X px" or "µm" in its own frame (mpp and origin of `qupath_frame`), also as .geojson. spots/<slide>.csv: x, y
    and measured columns. .tsv, .txt and .gz are read too.
    """
    cells = spots = None
    for what in ("points", "spots"):
        path = found_one(folder / what, slide, (*TABLES, *SHAPES) if what == "points" else TABLES)
        if path is None:
            continue
        if path.name.endswith(SHAPES):
            kinds, xy = shape_centres(path)
            cells = cells_by_class(kinds, xy + origin)
            continue
        header, rows = read_rows(path)
        at = {c.lower().replace("μ", "µ").replace(" um", " µm"): j for j, c in enumerate(header)}
        places = next(
            (
                ([at[c + axis + u] for axis in "xy"], scale, start)
                for c, u, scale, start in (
                    ("", "", 1, (0, 0)),
                    ("centroid ", " px", 1, origin),
                    ("centroid ", " µm", 1 / np.asarray(mpp), origin),
                )
                if all(c + axis + u in at for axis in "xy")
            ),
            None,
        )
        if places is None:
            raise InputError(f"{path}: no columns x and y (level-0 pixels); it has {few(header)}")
        columns, scale, start = places
        short_row = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
        if short_row is not None:
            raise InputError(
                f"{path}: row {short_row + 2} has {len(rows[short_row])} fields, the header has {len(header)}"
            )
        images = sorted({row[at["image"]] for row in rows}) if "image" in at else []
        if len(images) > 1:
            raise InputError(
                f"{path}: rows of {len(images)} images ({few(images, 3)}); give those of {slide} alone"
            )
        xy = np.array([[number(row[j]) for j in columns] for row in rows], float).reshape(-1, 2)
        there = (np.abs(xy) < FAR).all(1)
        if not there.all():
            raise InputError(f"{path}: row {2 + int(np.argmin(there))}: x, y is no place")
        xy = xy * scale + start
        if what == "spots":
            values = {
                c: np.array([number(row[j]) for row in rows])
                for j, c in enumerate(header)
                if j not in columns
            }
            spots = (
                xy,
                {c: v for c, v in values.items() if np.isfinite(v).any()},
            )  # barcodes and the like measure nothing
            continue
        kind = next((at[c] for c in ("cell", "class", "classification") if c in at), None)
        cells = cells_by_class([row[kind] if kind is not None else "" for row in rows], xy)
    return cells, spots


def cells_by_class(kinds, xy):
    """{class: (m, 2)} of the classes (n,) of places (n, 2), "all cells" first; "" is no class."""
    kinds = np.array(kinds, str)
    return {"all cells": xy, **{str(c): xy[kinds == c] for c in np.unique(kinds) if c}}


def read_geojson(path):
    """The Features (dicts) of a GeoJSON file, .gz or not: a FeatureCollection, a list of Features (as QuPath writes), a
    Feature or a bare geometry. InputError when it is not whole JSON."""
    try:
        data = path.read_bytes()
        value = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as e:
        raise InputError(f"{path}: not whole GeoJSON ({e})") from None
    value = value.get("features", value) if isinstance(value, dict) else value
    features = [
        f if "geometry" in f else dict(geometry=f)
        for f in (value if isinstance(value, list) else [value])
        if isinstance(f, dict)
    ]
    for i, f in enumerate(features):
        for k in ("geometry", "properties"):
            if not isinstance(f.get(k, {}), dict | None):
                raise InputError(
                    f"{path}: feature {i + 1}: its {k} is {str(f[k])[:20]}, no JSON object"
                )
    return features


def shape_class(feature):
    """The class that QuPath gave a Feature: classification.name, or names of a derived one ("Tumor: Positive"); "" none."""
    said = (feature.get("properties") or {}).get("classification") or ""
    said = said.get("name") or said.get("names") or "" if isinstance(said, dict) else said
    return ": ".join(map(str, said)) if isinstance(said, list) else str(said)


def read_regions(folder, slide, kind=None):
    """(path, Features) of regions/<slide>.geojson, of one class or all; Features are None where there is no such file, or
    none of the class in it, which is said."""
    path = found_one(folder / "regions", slide, SHAPES)
    shapes = read_geojson(path) if path else None
    if shapes and kind:
        classes = sorted(set(map(shape_class, shapes)))
        shapes = [f for f in shapes if shape_class(f) == kind] or None
        if not shapes:
            print(
                f"{path}: no region of class {kind}; it has {few(list(filter(None, classes))) or 'no classes'}"
            )
    return path, shapes


def shape_centres(path):
    """(classes (m,), places (m, 2)) of a GeoJSON file's cells: each Point, each point of a MultiPoint, and the centroid of
    each Polygon and MultiPolygon that is not an annotation (QuPath's outlines of regions)."""
    kinds, places = [], [np.zeros((0, 2))]
    for i, feature in enumerate(read_geojson(path)):
        shape, own = feature["geometry"] or {}, feature.get("properties") or {}
        kind = str(
            own.get("objectType") or own.get("object_type") or feature.get("id") or ""
        )  # id: before QuPath 0.3
        try:
            places_of = dict(
                Point=lambda c: [c[:2]],
                MultiPoint=lambda c: [p[:2] for p in c],
                Polygon=lambda c: [centroid([c])],
                MultiPolygon=lambda c: [centroid(c)],
            )
            with np.errstate(all="ignore"):  # of vertices near 1e308: refused below
                xy = places_of.get(shape.get("type"), lambda c: [])(shape.get("coordinates"))
            xy = np.asarray(xy, float).reshape(-1, 2)
            if not (np.abs(xy) < FAR).all():
                raise ValueError
        except (TypeError, ValueError, IndexError, OverflowError):  # of an integer of 400 digits
            raise InputError(
                f"{path}: feature {i + 1}: its {shape.get('type')} has no x, y numbers"
            ) from None
        if "Point" in str(shape.get("type")) or "annotation" not in kind.lower():
            places.append(xy)
            kinds += [shape_class(feature)] * len(xy)
    return kinds, np.concatenate(places)


def centroid(polygons):
    """Centre of gravity (2,) of polygons, each a list of rings of x, y: its outline and its holes, in any direction."""
    area, moment = 0.0, np.zeros(2)
    for rings in polygons:
        for i, ring in enumerate(rings):
            first = np.array(ring[0][:2], float)  # far from the origin digits would be lost
            p = np.array([c[:2] for c in ring], float) - first  # (k, 2)
            q = np.roll(p, -1, 0)
            cross = p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1]
            size = cross.sum() / 2
            sign = np.sign(size) * (-1 if i else 1)
            area, moment = (
                area + sign * size,
                moment + sign * ((p + q).T @ cross / 6 + size * first),
            )
    return moment / area if area > 0 else np.mean([c[:2] for c in polygons[0][0]], 0)


def read_outlines(folder, slide, origin, kind=None):  # same in histcode.py
    """Polygons of regions/<slide>.geojson, of one class or all, as stats.inside takes them; None where there are none."""
    path, shapes = read_regions(folder, slide, kind)
    try:
        return (
            None
            if shapes is None
            else [[ring + origin for ring in rings] for rings in stats.read_rings(shapes)]
        )
    except ValueError as e:
        raise InputError(f"{path}: {e}") from None
