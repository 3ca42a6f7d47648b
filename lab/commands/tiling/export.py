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
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab.cohort.encoding import make_features
from lab.cohort.features import (
    features_made_by,
    features_of,
    load_features,
    mpp_said,
    place_tiles,
    source_name,
)
from lab.cohort.slides import find_slides, known_mpp, open_slide
from lab.cohort.steps import work_through
from lab.cohort.tiles import check_places, make_tiles, table_mpp, tiles_of
from lab.commands.tiling.over_slides import over_slides, tiling_options
from lab.encoders import encoder_wants
from lab.exchange.clam import foreign, need_h5py
from lab.exchange.qupath import qupath_frame, tiles_geojson
from lab.files import InputError, save_csv, save_file, save_json
from lab.provenance import entry, marked, of_cohort, of_data


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
    words = of_data(cohort, source, next(iter(slides), None))

    def write(name):
        slide = open_slide(found[name]) if name in found else None
        mpp = given.get(name, o.mpp)
        if o.features:
            given_mpp = mpp or mpp_said(source, name)
            mpp = known_mpp(found.get(name), given_mpp, name, o.force_mpp)
        tiles = read(cohort, source, name, slide, mpp, o)
        if o.h5:
            said = attributes(cohort, source, tiles, encoder_wants(o)["tile_px"])
            said.update(entry(words))
            made_by = json.dumps(features_made_by(cohort, source, name))
            path = folder / "h5_files" / f"{name}.h5"
            save_file(path, lambda f: write_h5(f, tiles, said, made_by))
        if o.geojson:
            _, origin = qupath_frame(slide, None)
            numbers = np.arange(len(tiles.coords))[:, None]
            place = tiles.coords - origin, tiles.edge
            shapes = tiles_geojson(*place, numbers, ["tile"], of_cohort(cohort))
            save_json(folder / f"{name}.geojson", shapes)
        if o.csv:
            write_csv(folder, tiles, words)

    names = [name for name in slides if name not in failed]
    for _ in work_through("export", write, names, o.workers, failed):
        pass
    return failed


class Tiles(NamedTuple):
    """What is exported of a slide."""

    name: str
    features: np.ndarray | None  # (n, D)
    coords: np.ndarray  # (n, 2)
    edge: float


def read(cohort, source, name, slide, mpp, o):
    if o.features or o.h5 or o.csv:
        features, coords = load_features(cohort, source, name)
    else:
        features, coords = None, tiles_of(cohort, name)[0]["coords"]
    if coords is None:
        raise InputError(f"slide {name} has no coordinates, nor has an .h5 beside its features")
    if slide is None and o.geojson:
        raise InputError(f"no slide file {name}.*: it says where QuPath's pixels begin")
    if o.features and o.tile_um and not mpp:
        raise InputError(f"slide {name}: --tile-um needs its µm per pixel: give --mpp")
    asked = o.tile_um / mpp if o.tile_um and mpp else None
    coords, edge = place_tiles(cohort, source, name, coords, mpp, asked)
    if slide:
        check_places(coords, edge, slide.dimensions)
    return Tiles(name, features, coords, edge)


def attributes(cohort, source, tiles, px):
    """What TRIDENT and CLAM say of coordinates; of features made elsewhere, what their file has."""
    said = {"patch_size_level0": tiles.edge, "unit": "px", "name": tiles.name}
    if isinstance(source, Path):
        *_, there = foreign(source, tiles.name, 1)
        plain = (int, float, str, np.generic, np.ndarray)
        return {key: value for key, value in there.items() if isinstance(value, plain)} | said
    mpp = float(tiles_of(cohort, tiles.name)[0]["mpp"])
    downsample = tiles.edge / px
    return said | {
        "patch_size": px,
        "downsample": (downsample, downsample),
        "overlap": 0,
        "mpp": mpp,
        "level0_magnification": round(10 / mpp, 6),
        "target_magnification": round(10 / mpp / downsample, 6),
    }


def write_h5(f, tiles, said, made_by):
    buffer = io.BytesIO()
    with need_h5py().File(buffer, "w") as h:
        h["features"], h["coords"] = np.asarray(tiles.features, np.float32), tiles.coords
        h["coords"].attrs.update(said)
        h["features"].attrs.update(name=tiles.name, made_by=made_by)
    f.write(buffer.getvalue())


def write_csv(folder, tiles, words):
    """Ids are words, so that no reader takes them for numbers; words: of lab.provenance."""
    name, features, coords, edge = tiles
    ids = [f"{name}:{i}" for i in range(len(coords))]
    numbers = ([f"{value:.6g}" for value in row.tolist()] for row in features)
    columns = [f"f{j}" for j in range(features.shape[1])]
    rows = ([i, *row] for i, row in zip(ids, numbers, strict=True))
    save_csv(folder / f"{name}.csv", ["tile", *columns], rows)
    places = (
        [i, name, x, y, f"{edge:.9g}"] for i, (x, y) in zip(ids, coords.tolist(), strict=True)
    )
    header = ("tile", "slide", "x", "y", "edge")
    save_csv(folder / f"{name}.obs.csv", *marked(header, places, words))
