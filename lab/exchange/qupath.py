"""QuPath: its frame of a slide, and tiles as GeoJSON that it imports."""

import uuid

import numpy as np

import tiling
from lab.cohort.slides import MPP_RANGE
from lab.files import number
from lab.provenance import entry

COLOURS = {  # of a class, RGB; of fifths those of matplotlib's viridis in their middle  [ours]
    "lowest fifth": (72, 36, 117),
    "second fifth": (53, 95, 141),
    "middle fifth": (33, 145, 140),
    "fourth fifth": (68, 191, 112),
    "highest fifth": (189, 223, 38),
    "Tile": (53, 95, 141),
}
FIFTHS = list(COLOURS)[:5]


def qupath_frame(slide, mpp):
    """(µm per pixel of x and y (2,), level-0 pixel of the origin (2,)) of QuPath's frame.

    It crops to what was scanned and takes each axis' own µm; `mpp` where the slide has none. All
    that we keep is in OpenSlide's frame: what comes from QuPath is moved by the origin, what goes
    there is moved back. [ours]
    """
    low, high = MPP_RANGE
    um = [number(slide.properties.get(f"openslide.mpp-{axis}", "")) for axis in "xy"]
    if not all(low <= value <= high for value in um):
        um = [mpp, mpp]
    return np.array(um), np.array(tiling.slide_bounds(slide)[:2])


def tile_corners(coords, tile):
    """(n, 2) top left, edge -> (n, 4, 2) corners of each tile, clockwise on the slide."""
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    return np.asarray(coords, np.float64)[:, None] + tile * unit


def tiles_geojson(coords, tile, measurements, names, words=(), of="", scores=None):
    """Tiles as a FeatureCollection for QuPath 0.4 to 0.7: detections with measurements.

    coords (n, 2), tile in QuPath's frame; measurements (n, c), names (c,) -> a dict for json. What
    is no number is left out, since JSON has no NaN; six digits, places to a hundredth of a pixel.
    words: of lab.provenance, as a member of the collection, which other readers pass over. of: what
    is shown of which slide: read again it has the same ids. scores (n,): tiles are classified by
    their fifths, in the colours of a map, else as Tile. [ours; RFC 7946, section 6.1]
    """
    kinds = ["Tile"] * len(coords) if scores is None else fifths(scores)
    features = []
    rings = rings_of(tile_corners(coords, tile))
    for i, (ring, row, kind) in enumerate(zip(rings, measurements, kinds, strict=True)):
        said = {}
        for name, value in zip(names, row, strict=True):
            if np.isfinite(value):
                said[name] = whole(float(f"{value:.6g}"))
        properties = {"objectType": "detection", "name": f"tile {i}"}
        if kind:
            properties["classification"] = {"name": kind, "color": COLOURS[kind]}
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{of}, tile {i}")),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {**properties, "measurements": said},
            }
        )
    return {"type": "FeatureCollection", **entry(words), "features": features}


def rings_of(corners):
    """(n, 4, 2) corners -> closed rings of numbers as short as can be."""
    for each in corners.round(2).tolist():
        ring = [[whole(x), whole(y)] for x, y in each]
        yield [*ring, ring[0]]


def whole(value):
    return int(value) if value.is_integer() else value


def fifths(scores):
    """The fifth that each score is in, "" for nan; equal scores are in one fifth."""
    known = ~np.isnan(scores)
    kinds = np.full(len(scores), "", object)
    if known.any():
        edges = np.quantile(scores[known], [0.2, 0.4, 0.6, 0.8])
        below, up_to = (np.searchsorted(edges, scores[known], side) for side in ("left", "right"))
        kinds[known] = np.array(FIFTHS, object)[(below + up_to) // 2]
    return kinds.tolist()
