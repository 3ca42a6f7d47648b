"""lab.tests.test_tiling_export"""

import csv
import json
import shutil

import h5py
import numpy as np
import pytest
import torch

from lab.cohort.features import load_features
from lab.cohort.steps import tiles_of
from lab.commands.tiling import main
from lab.exchange.clam import tile_edge
from lab.files import InputError


def test_export_is_read_back_by_h5py_json_and_csv(two_slides, capsys):
    """--h5 as CLAM's and TRIDENT's programs read it, and as we do; GeoJSON in QuPath's form; a table as anndata.read_csv takes one."""
    o = ["--encoder", "resnet50-stage3", "--device", "cpu"]
    run = lambda *argv: main(["export", str(two_slides), *argv, *o])
    assert run("--h5", "--geojson", "--csv", "--weights", "random") == 0  # from nothing but slides
    assert "export: 2 of 2 slides ready" in capsys.readouterr().out
    folder, tiles = two_slides / "export" / "resnet50-stage3", tiles_of(two_slides, "a")[0]
    features, coords, tile = (
        np.load(two_slides / "features" / "resnet50-stage3" / "a.npy"),
        tiles["coords"],
        float(tiles["tile"]),
    )
    with h5py.File(folder / "h5_files" / "a.h5") as h:
        assert (
            np.array_equal(h["features"][:], features)
            and h["features"].dtype == np.float32
            and np.array_equal(h["coords"][:], coords)
        )
        said = dict(h["coords"].attrs)
        assert (
            said["patch_size"] == 224
            and said["patch_size_level0"] == tile
            and said["patch_size"] * said["downsample"][0] == pytest.approx(tile)
        )
        assert said["level0_magnification"] == pytest.approx(20) and said[
            "target_magnification"
        ] == pytest.approx(20)
        assert (said["overlap"], said["name"]) == (0, "a")
        assert "random, seed 0" in h["features"].attrs["made_by"]
    for source in (folder, folder / "h5_files"):
        got = load_features(two_slides, source, "a")
        assert (
            np.array_equal(got[0], features)
            and np.array_equal(got[1], coords)
            and tile_edge(two_slides, source, "a", coords) == tile
        )
    shapes = json.loads((folder / "a.geojson").read_text())
    assert shapes["type"] == "FeatureCollection" and [
        f["properties"]["measurements"] for f in shapes["features"]
    ] == [{"tile": i} for i in range(len(coords))]
    for f, (x, y) in zip(shapes["features"], coords.tolist()):
        assert (
            f["type"] == "Feature"
            and f["properties"]["objectType"] == "detection"
            and f["geometry"]["type"] == "Polygon"
        )
        assert f["geometry"]["coordinates"] == [
            [[x, y], [x + tile, y], [x + tile, y + tile], [x, y + tile], [x, y]]
        ]
    table, obs = (list(csv.reader(open(folder / name))) for name in ("a.csv", "a.obs.csv"))
    assert (
        [row[0] for row in table]
        == [row[0] for row in obs]
        == ["tile", *(f"a:{i}" for i in range(len(coords)))]
    )
    assert obs[0] == ["tile", "slide", "x", "y", "edge"]
    assert len(set(map(len, table))) == 1 and np.allclose(
        np.array([row[1:] for row in table[1:]], float), features, rtol=1e-5
    )
    assert np.array_equal(np.array([row[2:4] for row in obs[1:]], int), coords)
    for text in (
        row[0] for row in table[1:]
    ):  # anndata takes a first column for names when it is no number
        with pytest.raises(ValueError):
            float(text)
    shutil.rmtree(two_slides / "export"), shutil.rmtree(two_slides / "features")
    assert (
        run("b", "--geojson") == 0
        and [p.name for p in (two_slides / "export").rglob("*.*")] == ["b.geojson"]
        and not (two_slides / "features").exists()
    )
    for argv, words in (([], "export what"), (["c", "--h5"], "has no slide c; it has a, b")):
        with pytest.raises(InputError, match=words):
            run(*argv)


def test_export_of_features_made_elsewhere(two_slides, capsys):
    """A .pt with coordinates becomes an .h5; without them it fails with its reason; attributes go on, --tile-um stands in for them."""
    (two_slides / "pt").mkdir()
    features, coords = (
        torch.arange(12.0).reshape(4, 3),
        torch.tensor([[0, 0], [300, 0], [0, 300], [300, 300]]),
    )
    torch.save(
        dict(features=features, coords=coords, patch_size=256, note=None),
        two_slides / "pt" / "a.pt",
    )
    torch.save(features, two_slides / "pt" / "b.pt")
    run = lambda *argv: main(
        ["export", str(two_slides), "--features", str(two_slides / "pt"), "--device", "cpu", *argv]
    )
    with pytest.raises(InputError, match="--tile-um -3: must lie between 1 and 10000"):
        run("--h5", "--tile-um", "-3")
    assert run("--h5", "--geojson", "--tile-um", "100") == 1  # .5 µm per pixel
    assert (
        "failed: b: " in (said := capsys.readouterr()).err
        and "has no coordinates, nor has an .h5 beside it" in said.err
    )
    with h5py.File(two_slides / "export" / "pt" / "h5_files" / "a.h5") as h:
        assert np.array_equal(h["features"][:], features) and np.array_equal(h["coords"][:], coords)
        assert (
            h["coords"].attrs["patch_size_level0"] == pytest.approx(200, rel=1e-3)
            and h["coords"].attrs["patch_size"] == 256
        )
    assert (
        len(json.loads((two_slides / "export" / "pt" / "a.geojson").read_text())["features"]) == 4
    )
    for far in (-300, 10**18, 2**62):  # not of this slide, as heatmap says
        torch.save(
            dict(features=features, coords=coords + far, patch_size=256), two_slides / "pt" / "a.pt"
        )
        assert (
            run("--csv", "--tile-um", "100") == 1
            and "failed: a: tiles reach beyond the slide of 1,600 x 1,280 px"
            in capsys.readouterr().err
        )
