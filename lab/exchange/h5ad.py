"""AnnData: the tiles of a cohort as one .h5ad, as scanpy, squidpy and SpatialData read it.

X: features. obs: slide, tile (its number), edge (level-0 pixels) and the columns of samples.csv.
obsm["spatial"]: centres in level-0 pixels. uns["spatial"]: of each slide, as squidpy; and
uns["spatialdata_attrs"]: a tile is a row's region `slide`, instance `tile`.
"""

import json

import numpy as np

from lab.files import InputError
from lab.provenance import entry

KINDS = {"file": ("anndata", "0.1.0"), "X": ("array", "0.2.0")}  # of AnnData's on-disk format
CHUNK = 256  # rows of X that are read at once  [ours]


def need_anndata():
    try:
        import anndata.io
    except ImportError:
        raise InputError(
            "--h5ad needs the package anndata, 0.11 or later: pip install anndata"
        ) from None
    return anndata.io


def write_h5ad(path, every, samples, words, failed):
    """Write tiles, slide by slide: all features are never held at once.

    every: of each slide name, features, coords, edge, mpp, made_by; samples: {slide: its row of
    samples.csv}; a slide that has another number of features goes to `failed`.
    """
    import h5py

    io = need_anndata()
    kept = []
    with h5py.File(path, "w") as h:
        name_kind(h, "file")
        for tiles in every:
            n, D = tiles.features.shape
            if not kept:
                x = h.create_dataset("X", (0, D), np.float32, maxshape=(None, D), chunks=(CHUNK, D))
                name_kind(x, "X")
            if x.shape[1] != D:
                failed[tiles.name] = f"{D} features a tile, the slides before have {x.shape[1]}"
                continue
            x.resize(len(x) + n, 0)
            x[len(x) - n :] = tiles.features
            kept.append(tiles._replace(features=None))
        for name, part in about(kept, samples, words, x.shape[1]).items():
            io.write_elem(h, name, part)


def name_kind(group, what):
    group.attrs["encoding-type"], group.attrs["encoding-version"] = KINDS[what]


def about(kept, samples, words, n_features):
    """The parts of an AnnData but X."""
    import pandas as pd

    sizes = [len(tiles.coords) for tiles in kept]
    of_slides = {"slide": [tiles.name for tiles in kept]}
    for column in dict.fromkeys(column for row in samples.values() for column in row):
        of_slides[column] = [samples.get(name, {}).get(column, "") for name in of_slides["slide"]]
    obs = pd.DataFrame({c: pd.Categorical(np.repeat(v, sizes)) for c, v in of_slides.items()})
    obs["tile"] = np.concatenate([np.arange(n) for n in sizes])
    obs["edge"] = np.repeat([tiles.edge for tiles in kept], sizes)
    obs.index = obs["slide"].astype(str) + ":" + obs["tile"].astype(str)
    return {
        "obs": obs,
        "var": pd.DataFrame(index=[f"f{j}" for j in range(n_features)]),
        "obsm": {"spatial": np.concatenate([t.coords + t.edge / 2 for t in kept])},
        "uns": {
            "spatial": {tiles.name: library(tiles) for tiles in kept},
            "spatialdata_attrs": {
                "region": of_slides["slide"],
                "region_key": "slide",
                "instance_key": "tile",
            },
            **entry(words),
        },
    }


def library(tiles):
    """A slide as squidpy and scanpy know it, without its picture."""
    said = {"made_by": json.dumps(tiles.made_by)}
    if tiles.mpp:
        said["mpp"] = tiles.mpp
    scale = {"spot_diameter_fullres": tiles.edge, "tissue_hires_scalef": 1.0}
    return {"scalefactors": scale, "images": {}, "metadata": said}
