"""lab.commands.tiling.export"""

import io
import json

import numpy as np

from lab.cohort.features import features_of, load_features
from lab.cohort.make import make_features, make_tiles
from lab.cohort.slides import find_slides, open_slide, slide_mpp
from lab.cohort.steps import check_places, table_mpp, tiles_of
from lab.encoders import encoder_wants
from lab.exchange.clam import (
    features_file,
    features_made_by,
    foreign,
    need_h5py,
    say_twice,
    source_name,
    tile_edge,
)
from lab.exchange.qupath import qupath_frame, tiles_geojson
from lab.files import InputError, save_csv, save_file, save_json
from lab.progress import ordered_map, progress


def export(cohort, slides, o):
    """Tiles and features for other programs, in export/<encoder>/; what is missing is made first. [ours]

    --h5: h5_files/<slide>.h5, `features` (n, D) float32 and `coords` (n, 2) with the attributes of TRIDENT and CLAM.
    --geojson: <slide>.geojson, the tiles in QuPath's frame, each with its number.
    --csv: <slide>.csv, a row of features (six digits) for each tile, and <slide>.obs.csv, where it lies (level-0 pixels).
    They are written for anndata, which is not installed with this program and was not tried:
    a = anndata.read_csv("S.csv"); a.obs = pandas.read_csv("S.obs.csv", index_col=0)
    """
    source, found, given, px = (
        features_of(o),
        find_slides(cohort),
        table_mpp(cohort),
        encoder_wants(o)["tile_px"],
    )
    if not (o.h5 or o.geojson or o.csv):
        raise InputError("export what? --h5, --geojson, --csv")
    h5py = need_h5py() if o.h5 else None
    failed = (
        {} if o.features else (make_features if o.h5 or o.csv else make_tiles)(cohort, slides, o)
    )
    say_twice(source, slides)
    folder, ours = cohort / "export" / source_name(o), not o.features

    def attributes(name, tile):  # of the h5's coords
        if not ours:
            said = foreign(source, name, 1)[3]
            return {
                **{
                    k: v
                    for k, v in said.items()
                    if isinstance(v, (int, float, str, np.generic, np.ndarray))
                },
                "patch_size_level0": tile,
                "name": name,
            }
        mpp = float(tiles_of(cohort, name)[0]["mpp"])
        return dict(
            patch_size=px,
            patch_size_level0=tile,
            downsample=(tile / px,) * 2,
            overlap=0,
            name=name,
            mpp=mpp,
            level0_magnification=round(10 / mpp, 6),
            target_magnification=round(10 / mpp * px / tile, 6),
        )

    def write_h5(f, name, features, coords, tile):
        with h5py.File(buffer := io.BytesIO(), "w") as h:
            h["features"], h["coords"] = np.asarray(features, np.float32), coords
            h["coords"].attrs.update(attributes(name, tile))
            h["features"].attrs.update(
                name=name, made_by=json.dumps(features_made_by(cohort, source, name))
            )
        f.write(buffer.getvalue())

    def one(name):
        features, coords = (
            load_features(cohort, source, name)
            if not ours or o.h5 or o.csv
            else (None, tiles_of(cohort, name)[0]["coords"])
        )
        slide = open_slide(found[name]) if name in found else None
        if coords is None:
            raise InputError(
                f"{features_file(source, name)} has no coordinates, nor has an .h5 beside it"
            )
        if slide is None and o.geojson:
            raise InputError(
                f"no slide file {name}.* in {cohort}: it says where QuPath's pixels begin"
            )
        mpp = given.get(name, o.mpp)
        if o.tile_um and not ours and slide:
            mpp = slide_mpp(slide, mpp, name)[0]
        tile = tile_edge(
            cohort, source, name, coords, o.tile_um / mpp if o.tile_um and mpp else None
        )
        if slide:
            check_places(coords, tile, slide.dimensions)
        ids = [f"{name}:{i}" for i in range(len(coords))]  # no such name is a number to any reader
        if o.h5:
            save_file(
                folder / "h5_files" / f"{name}.h5",
                lambda f: write_h5(f, name, features, coords, tile),
            )
        if o.geojson:
            there = coords - qupath_frame(slide, None)[1]
            save_json(
                folder / f"{name}.geojson",
                tiles_geojson(there, tile, np.arange(len(ids))[:, None], ["tile"]),
            )
        if o.csv:
            save_csv(
                folder / f"{name}.csv",
                ("tile", *(f"f{j}" for j in range(features.shape[1]))),
                ((i, *(f"{v:.6g}" for v in row.tolist())) for i, row in zip(ids, features)),
            )
            save_csv(
                folder / f"{name}.obs.csv",
                ("tile", "slide", "x", "y", "edge"),
                ((i, name, x, y, f"{tile:.9g}") for i, (x, y) in zip(ids, coords.tolist())),
            )

    jobs = [name for name in slides if name not in failed]
    tick = progress("export", len(jobs), "slides")
    for name, got in ordered_map(one, jobs, o.workers):
        tick()
        failed.update({name: str(got) or type(got).__name__} if isinstance(got, Exception) else {})
    return failed
