"""QuPath: its frame of a slide, and tiles as GeoJSON that it imports."""

import numpy as np

import tiling
from lab.cohort.slides import MPP_RANGE
from lab.files import number
from lab.provenance import entry


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


def tiles_geojson(coords, tile, measurements, names, words=()):
    """Tiles as a FeatureCollection for QuPath 0.4 and later: detections with measurements.

    coords (n, 2), tile in QuPath's frame; measurements (n, c), names (c,) -> a dict for json. What
    is no number is left out, since JSON has no NaN. Six digits. words: of lab.provenance, as a
    member of the collection, which other readers pass over. [ours; RFC 7946, section 6.1]
    """
    features = []
    for corners, row in zip(tile_corners(coords, tile).tolist(), measurements, strict=True):
        said = {}
        for name, value in zip(names, row, strict=True):
            if np.isfinite(value):
                said[name] = float(f"{value:.6g}")
        ring = [*corners, corners[0]]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "detection", "measurements": said},
            }
        )
    return {"type": "FeatureCollection", **entry(words), "features": features}
