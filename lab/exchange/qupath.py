"""lab.exchange.qupath"""

import numpy as np

import tiling
from lab.cohort.slides import MPP_RANGE
from lab.files import number


def qupath_frame(slide, mpp):
    """(µm per pixel of x and y, level-0 pixel of the origin (2,)) of QuPath's frame of a slide: it crops to what was scanned
    and takes each axis' own µm; `mpp` where the slide has none. All that we keep is in OpenSlide's frame; the centroids and
    GeoJSON that come from QuPath are moved by the origin, and the GeoJSON that goes there is moved back. [ours]"""
    own = [number(slide.properties.get(f"openslide.mpp-{axis}", "")) for axis in "xy"]
    um = own if all(MPP_RANGE[0] <= m <= MPP_RANGE[1] for m in own) else [mpp, mpp]
    return np.array(um), np.array(tiling.slide_bounds(slide)[:2])


def tile_corners(coords, tile):
    """(n, 2) level-0 top-left, edge -> (n, 4, 2) corners of each tile, level-0 pixels, clockwise on the slide."""
    return np.asarray(coords, np.float64)[:, None] + tile * np.array(
        [[0, 0], [1, 0], [1, 1], [0, 1]]
    )


def tiles_geojson(coords, tile, measurements, names):
    """Tiles as a GeoJSON FeatureCollection that QuPath (0.4 and later) imports: a detection each, with its measurements.

    coords (n, 2) level-0 top-left; tile: edge in level-0 pixels; measurements (n, c) floats, names (c,) -> dict for json.
    What is no number (nan, infinite) is left out: JSON has no nan. Six digits. [ours]
    """
    measurements = np.asarray(measurements, np.float64)
    assert measurements.shape == (len(coords), len(names)) and len(set(names)) == len(names), (
        measurements.shape,
        names,
    )
    return dict(
        type="FeatureCollection",
        features=[
            dict(
                type="Feature",
                geometry=dict(type="Polygon", coordinates=[[*corners, corners[0]]]),
                properties=dict(
                    objectType="detection",
                    measurements={
                        name: float(f"{value:.6g}")
                        for name, value in zip(names, row)
                        if np.isfinite(value)
                    },
                ),
            )
            for corners, row in zip(tile_corners(coords, tile).tolist(), measurements.tolist())
        ],
    )
