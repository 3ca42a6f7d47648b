"""python tiling.py export COHORT [SLIDE...] --h5 --geojson --csv: for other programs. [ours]

Tiles and features are made first where they are missing. Written are, in COHORT/export/<encoder>/:
--h5       h5_files/<slide>.h5: `features` (n, D) float32 and `coords` (n, 2), as CLAM and TRIDENT
--geojson  <slide>.geojson: the tiles in QuPath's frame, each with its number
--csv      <slide>.csv: a row of features for each tile, six digits; <slide>.obs.csv: where it lies.
           Written for anndata, which is not installed with this program and was not tried:
           a = anndata.read_csv("S.csv"); a.obs = pandas.read_csv("S.obs.csv", index_col=0)
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab.cohort.encoding import make_features
from lab.cohort.features import (
    features_made_by,
    features_of,
    load_features,
    source_name,
    tile_edge,
)
from lab.cohort.slides import find_slides, open_slide, slide_mpp
from lab.cohort.steps import work_through
from lab.cohort.tiles import check_places, make_tiles, table_mpp, tiles_of
from lab.commands.tiling.over_slides import over_slides, tiling_options
from lab.encoders import encoder_wants
from lab.exchange.clam import foreign, need_h5py
from lab.exchange.qupath import qupath_frame, tiles_geojson
from lab.files import InputError, save_csv, save_file, save_json


def options(parser):
    tiling_options(parser)
    a = parser.add_argument
    a("slide", nargs="*", help="names of slides (default: all)")
    a("--h5", action="store_true", help="features for CLAM, TRIDENT and --features")
    a(
        "--geojson",
        action="store_true",
        help="tiles for QuPath 0.4 and later; those with scores are heatmap's tiles.geojson",
    )
    a("--csv", action="store_true", help="features and places of tiles for AnnData and the like")


def run(o):
    if not (o.h5 or o.geojson or o.csv):
        raise InputError("export what? --h5, --geojson, --csv")
    if o.h5:
        need_h5py()
    return over_slides(o, export)


def export(cohort, slides, o):
    """{slide: why it could not be exported}."""
    source, folder = features_of(o), cohort / "export" / source_name(o)
    make = make_features if o.h5 or o.csv else make_tiles
    failed = {} if o.features else make(cohort, slides, o)
    found, given = find_slides(cohort), table_mpp(cohort)

    def write(name):
        tiles = read(cohort, source, name, found.get(name), given.get(name, o.mpp), o)
        if o.h5:
            said = attributes(cohort, source, tiles, encoder_wants(o)["tile_px"])
            made_by = json.dumps(features_made_by(cohort, source, name))
            path = folder / "h5_files" / f"{name}.h5"
            save_file(path, lambda f: write_h5(f, tiles, said, made_by))
        if o.geojson:
            write_geojson(folder / f"{name}.geojson", tiles, found.get(name))
        if o.csv:
            write_csv(folder, tiles)

    names = [name for name in slides if name not in failed]
    for _ in work_through("export", write, names, o.workers, failed):
        pass
    return failed


@dataclass
class Tiles:
    """What is exported of a slide."""

    name: str
    features: np.ndarray | None  # (n, D)
    coords: np.ndarray  # (n, 2)
    edge: float

    def ids(self):  # no reader takes them for numbers
        return [f"{self.name}:{i}" for i in range(len(self.coords))]


def read(cohort, source, name, path, mpp, o):
    ours = not o.features
    if ours and not (o.h5 or o.csv):
        features, coords = None, tiles_of(cohort, name)[0]["coords"]
    else:
        features, coords = load_features(cohort, source, name)
    if coords is None:
        raise InputError(f"slide {name} has no coordinates, nor has an .h5 beside its features")
    slide = open_slide(path) if path else None
    if o.tile_um and not ours and slide:
        mpp, _ = slide_mpp(slide, mpp, name)
    asked = o.tile_um / mpp if o.tile_um and mpp else None
    edge = tile_edge(cohort, source, name, coords, asked)
    if slide:
        check_places(coords, edge, slide.dimensions)
    return Tiles(name, features, coords, edge)


def attributes(cohort, source, tiles, px):
    """What TRIDENT and CLAM say of coordinates; of features made elsewhere, what their file has."""
    said = {"patch_size_level0": tiles.edge, "name": tiles.name}
    if isinstance(source, Path):
        *_, there = foreign(source, tiles.name, 1)
        plain = (int, float, str, np.generic, np.ndarray)
        return {k: v for k, v in there.items() if isinstance(v, plain)} | said
    mpp = float(tiles_of(cohort, tiles.name)[0]["mpp"])
    return said | {
        "patch_size": px,
        "downsample": (tiles.edge / px,) * 2,
        "overlap": 0,
        "mpp": mpp,
        "level0_magnification": round(10 / mpp, 6),
        "target_magnification": round(10 / mpp * px / tiles.edge, 6),
    }


def write_h5(f, tiles, said, made_by):
    buffer = io.BytesIO()
    with need_h5py().File(buffer, "w") as h:
        h["features"], h["coords"] = np.asarray(tiles.features, np.float32), tiles.coords
        h["coords"].attrs.update(said)
        h["features"].attrs.update(name=tiles.name, made_by=made_by)
    f.write(buffer.getvalue())


def write_geojson(path, tiles, slide):
    if slide is None:
        raise InputError(f"no slide file {tiles.name}.*: it says where QuPath's pixels begin")
    _, origin = qupath_frame(open_slide(slide), None)
    numbers = np.arange(len(tiles.coords))[:, None]
    save_json(path, tiles_geojson(tiles.coords - origin, tiles.edge, numbers, ["tile"]))


def write_csv(folder, tiles):
    columns = ("tile", *(f"f{j}" for j in range(tiles.features.shape[1])))
    rows = []
    places = []
    for i, row, (x, y) in zip(tiles.ids(), tiles.features, tiles.coords.tolist(), strict=True):
        rows.append((i, *(f"{v:.6g}" for v in row.tolist())))
        places.append((i, tiles.name, x, y, f"{tiles.edge:.9g}"))
    save_csv(folder / f"{tiles.name}.csv", columns, rows)
    save_csv(folder / f"{tiles.name}.obs.csv", ("tile", "slide", "x", "y", "edge"), places)
