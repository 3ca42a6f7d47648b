"""python tiling.py export COHORT [SLIDE...] --h5 --pt --h5ad --geojson --csv: for other programs.

Tiles and features are made first where they are missing. Written are, in COHORT/export/<encoder>/:
--h5       h5_files/<slide>.h5: `features` (n, D) float32 and `coords` (n, 2) of level 0, as CLAM
           and TRIDENT keep them, with the attributes by which they find the tiles on the slide
--pt       pt_files/<slide>.pt: the features as a tensor, from which CLAM trains
--h5ad     <cohort>.h5ad: all tiles for anndata.io.read_h5ad, scanpy, squidpy and SpatialData
--geojson  <slide>.geojson: the tiles in QuPath's frame, each with its number
--csv      <slide>.csv: a row of features for each tile, six digits; <slide>.obs.csv: where it lies
[ours]
"""

import io
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lab.cohort.encoding import make_features
from lab.cohort.features import (
    features_made_by,
    features_of,
    load_features,
    mpp_said,
    place_tiles,
    source_name,
)
from lab.cohort.samples import read_samples
from lab.cohort.slides import find_slides, known_mpp, open_slide
from lab.cohort.steps import work_through
from lab.cohort.tiles import check_places, make_tiles, table_mpp, tiles_of
from lab.commands.tiling.over_slides import over_slides, tiling_options
from lab.exchange.clam import foreign, need_h5py
from lab.exchange.h5ad import need_anndata, write_h5ad
from lab.exchange.layout import SPEAK_OF_TILES, attributes_of, overlap_of
from lab.exchange.qupath import qupath_frame, tiles_geojson
from lab.files import InputError, save_csv, save_file, save_json
from lab.provenance import entry, marked, of_cohort, of_data


def options(parser):
    tiling_options(parser)
    a = parser.add_argument
    a("slide", nargs="*", help="names of slides (default: all)")
    a("--h5", action="store_true", help="features for CLAM, TRIDENT and --features")
    a("--pt", action="store_true", help="features alone, for CLAM's training")
    a(
        "--h5ad",
        action="store_true",
        help="features, places and samples.csv of all slides in one file, by the package anndata",
    )
    a(
        "--geojson",
        action="store_true",
        help="tiles for QuPath 0.4 to 0.7; those with scores are heatmap's tiles.geojson",
    )
    a("--csv", action="store_true", help="features and places of tiles for any program")


def run(o):
    if not (features_asked(o) or o.geojson):
        raise InputError("export what? --h5, --pt, --h5ad, --geojson, --csv")
    if o.h5 or o.h5ad:
        need_h5py()
    if o.h5ad:
        need_anndata()
        if o.share[1] > 1:
            raise InputError("--h5ad is one file: it is written by one process, without WORLD_SIZE")
    return over_slides(o, export)


def features_asked(o):
    return o.h5 or o.pt or o.h5ad or o.csv


def export(cohort, slides, o):
    """{slide: why it could not be exported}."""
    source, folder = features_of(o), cohort / "export" / source_name(o)
    make = make_features if features_asked(o) else make_tiles
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
            path = folder / "h5_files" / f"{name}.h5"
            save_file(path, lambda f: write_h5(f, tiles, said_of(tiles, source, slide, words)))
        if o.pt:
            features = torch.from_numpy(np.array(tiles.features, np.float32))
            save_file(folder / "pt_files" / f"{name}.pt", lambda f: torch.save(features, f))
        if o.geojson:
            write_geojson(folder, tiles, slide, of_cohort(cohort))
        if o.csv:
            write_csv(folder, tiles, words)
        return tiles

    names = [name for name in slides if name not in failed]
    done = work_through("export", write, names, o.workers, failed)
    first = next(done, None)
    if o.h5ad and first:
        path = folder / f"{cohort.resolve().name}.h5ad"
        every = (tiles for _, tiles in itertools.chain([first], done))
        save_file(path, lambda f: write_h5ad(f.name, every, table_of(cohort), words, failed))
    for _ in done:
        pass
    return failed


class Tiles(NamedTuple):
    """What is exported of a slide."""

    name: str
    features: np.ndarray | None  # (n, D)
    coords: np.ndarray  # (n, 2) level-0 pixels
    edge: float  # level-0 pixels
    mpp: float | None  # None where nobody says it
    made_by: dict | None


def read(cohort, source, name, slide, mpp, o):
    if o.features or features_asked(o):
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
    if not o.features:
        mpp = float(tiles_of(cohort, name)[0]["mpp"])
    made_by = features_made_by(cohort, source, name)
    return Tiles(name, features, coords, edge, mpp, made_by)


def table_of(cohort):
    """{slide: its row of samples.csv}"""
    there = (cohort / "samples.csv").exists()
    return {row["slide"]: row for row in read_samples(cohort)} if there else {}


def said_of(tiles, source, slide, words):
    """The attributes of a slide's coordinates, with what a file made elsewhere says besides."""
    said = {}
    if isinstance(source, Path):
        *_, there = foreign(source, tiles.name, 1)
        plain = (int, float, str, np.generic, np.ndarray)
        said = {key: value for key, value in there.items() if isinstance(value, plain)}
    overlap = overlap_of(said, tiles.edge)
    said = {key: value for key, value in said.items() if key not in SPEAK_OF_TILES}
    size = slide.dimensions if slide else None
    return said | attributes_of(tiles, overlap, size) | entry(words)


def write_h5(f, tiles, said):
    buffer = io.BytesIO()
    with need_h5py().File(buffer, "w") as h:
        h["features"] = np.asarray(tiles.features, np.float32)
        h["coords"] = np.asarray(tiles.coords, np.int64)
        h["coords"].attrs.update(said)
        h["features"].attrs.update(name=tiles.name, made_by=json.dumps(tiles.made_by))
    f.write(buffer.getvalue())


def write_geojson(folder, tiles, slide, words):
    _, origin = qupath_frame(slide, None)
    numbers = np.arange(len(tiles.coords))[:, None]
    place = tiles.coords - origin, tiles.edge
    shapes = tiles_geojson(*place, numbers, ["tile"], words, tiles.name)
    save_json(folder / f"{tiles.name}.geojson", shapes, indent=None)


def write_csv(folder, tiles, words):
    """Ids are words, so that no reader takes them for numbers; words: of lab.provenance."""
    name, features, coords, edge, *_ = tiles
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
