"""python tiling.py export. Authorities: h5py, json and csv read it back, as other programs do."""

import csv
import json

import h5py
import numpy as np
import pytest
import torch

from lab.cohort.features import load_features, tile_edge
from lab.cohort.tiles import tiles_of
from lab.commands.tiling import main
from lab.files import InputError
from lab.provenance import of_data

STAGE3 = ("--encoder", "resnet50-stage3", "--device", "cpu")


@pytest.fixture
def exported(two_slides, capsys):
    """(cohort, its export folder, features, coords and edge of slide a)."""
    formats = ("--h5", "--geojson", "--csv")
    assert main(["export", str(two_slides), *formats, *STAGE3, "--weights", "random"]) == 0
    assert "export: 2 of 2 slides ready" in capsys.readouterr().out
    features = np.load(two_slides / "features" / "resnet50-stage3" / "a.npy")
    tiles, _ = tiles_of(two_slides, "a")
    folder = two_slides / "export" / "resnet50-stage3"
    return two_slides, folder, features, tiles["coords"], float(tiles["tile"])


def test_h5_is_read_as_clam_and_trident_do_and_as_features_made_elsewhere(exported):
    cohort, folder, features, coords, tile = exported
    with h5py.File(folder / "h5_files" / "a.h5") as h:
        assert h["features"].dtype == np.float32
        assert np.array_equal(h["features"][:], features)
        assert np.array_equal(h["coords"][:], coords)
        assert "random, seed 0" in h["features"].attrs["made_by"]
        said = dict(h["coords"].attrs)
    assert (said["name"], said["overlap"], said["patch_size"]) == ("a", 0, 224)
    assert said["patch_size_level0"] == tile
    assert said["provenance"] == "encoder with random weights"
    assert of_data(cohort, folder, "a") == [said["provenance"]]  # of --features, read back
    assert said["patch_size"] * said["downsample"][0] == pytest.approx(tile)
    assert said["level0_magnification"] == pytest.approx(20)
    assert said["target_magnification"] == pytest.approx(20)
    for source in (folder, folder / "h5_files"):
        got, places = load_features(cohort, source, "a")
        assert np.array_equal(got, features)
        assert np.array_equal(places, coords)
        assert tile_edge(cohort, source, "a", coords) == tile


def test_geojson_has_a_detection_for_each_tile(exported):
    _, folder, _, coords, tile = exported
    shapes = json.loads((folder / "a.geojson").read_text())
    assert shapes["type"] == "FeatureCollection"
    assert len(shapes["features"]) == len(coords)
    for i, (shape, (x, y)) in enumerate(zip(shapes["features"], coords.tolist(), strict=True)):
        assert shape["type"] == "Feature"
        assert shape["properties"] == {"objectType": "detection", "measurements": {"tile": i}}
        ring = [[x, y], [x + tile, y], [x + tile, y + tile], [x, y + tile], [x, y]]
        assert shape["geometry"] == {"type": "Polygon", "coordinates": [ring]}


def test_csv_is_as_anndata_takes_it(exported):
    """anndata takes a first column for names when it is no number."""
    _, folder, features, coords, _ = exported
    table = list(csv.reader((folder / "a.csv").open()))
    places = list(csv.reader((folder / "a.obs.csv").open()))
    ids = [row[0] for row in table]
    assert ids == [row[0] for row in places] == ["tile", *(f"a:{i}" for i in range(len(coords)))]
    with pytest.raises(ValueError):
        float(ids[1])
    numbers = np.array([row[1:] for row in table[1:]], float)
    assert np.allclose(numbers, features, rtol=1e-5)
    assert places[0] == ["tile", "slide", "x", "y", "edge", "provenance"]
    assert places[1][-1] == "encoder with random weights"
    assert np.array_equal(np.array([row[2:4] for row in places[1:]], int), coords)


def test_tiles_alone_need_no_features(two_slides):
    assert main(["export", str(two_slides), "b", "--geojson", *STAGE3]) == 0
    assert [path.name for path in (two_slides / "export").rglob("*.*")] == ["b.geojson"]
    assert not (two_slides / "features").exists()


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "export what"),
        (["c", "--h5"], "has no slide c; it has a, b"),
        (["--h5", "--features", "{}", "--tile-um", "-3"], "--tile-um -3.0, which can't be"),
    ],
)
def test_what_cannot_be_exported_is_said(two_slides, argv, words):
    argv = [text.format(two_slides) for text in argv]
    with pytest.raises(InputError, match=words):
        main(["export", str(two_slides), *argv, *STAGE3])


def export_pt(cohort, *argv):
    features = ("--features", str(cohort / "pt"), "--device", "cpu")
    return main(["export", str(cohort), *features, "--tile-um", "100", *argv])


def test_export_of_features_made_elsewhere(two_slides, capsys):
    """A .pt with coordinates becomes an .h5 with its attributes; --tile-um stands in for others."""
    (two_slides / "pt").mkdir()
    features = torch.arange(12.0).reshape(4, 3)
    coords = torch.tensor([[0, 0], [300, 0], [0, 300], [300, 300]])
    saved = {"features": features, "coords": coords, "patch_size": 256, "note": None}
    torch.save(saved, two_slides / "pt" / "a.pt")
    torch.save(features, two_slides / "pt" / "b.pt")
    assert export_pt(two_slides, "--h5", "--geojson") == 1
    said = capsys.readouterr().err
    assert "failed: b: slide b has no coordinates, nor has an .h5 beside" in said
    with h5py.File(two_slides / "export" / "pt" / "h5_files" / "a.h5") as h:
        assert np.array_equal(h["features"][:], features)
        assert np.array_equal(h["coords"][:], coords)
        assert h["coords"].attrs["patch_size"] == 256
        edge = h["coords"].attrs["patch_size_level0"]
    assert edge == pytest.approx(200, rel=1e-3)  # .5 µm per pixel
    shapes = json.loads((two_slides / "export" / "pt" / "a.geojson").read_text())
    assert len(shapes["features"]) == 4


@pytest.mark.parametrize("far", [-300, 10**18, 2**62])
def test_tiles_that_do_not_lie_on_the_slide_are_refused(two_slides, capsys, far):
    (two_slides / "pt").mkdir()
    coords = torch.tensor([[0, 0], [300, 0], [0, 300], [300, 300]]) + far
    saved = {"features": torch.arange(12.0).reshape(4, 3), "coords": coords}
    torch.save(saved, two_slides / "pt" / "a.pt")
    assert export_pt(two_slides, "--csv") == 1
    why = "failed: a: tiles reach beyond the slide of 1,600 x 1,280 px"
    assert why in capsys.readouterr().err


def test_micrometres_of_stamp_are_exported_as_pixels(two_slides, capsys):
    """A slide of 0.5 µm per pixel; what is written says its unit and reads back as it is."""
    px = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2) * 224
    said = {"unit": "um", "tile_size_um": 112.0, "tile_size_px": 224, "extractor": "x"}
    (two_slides / "stamp").mkdir()
    with h5py.File(two_slides / "stamp" / "a.h5", "w") as h:
        h["feats"], h["coords"] = np.random.default_rng(0).random((20, 6)), px * 0.5
        h.attrs.update(said)
    argv = ["export", str(two_slides), "a", "--features", str(two_slides / "stamp"), "--h5"]
    assert main(argv) == 0
    assert "0.5 µm are a level-0 pixel" in capsys.readouterr().out
    folder = two_slides / "export" / "stamp"
    _, coords = load_features(two_slides, folder, "a")
    assert np.array_equal(coords, px) and tile_edge(two_slides, folder, "a", coords) == 224
    assert capsys.readouterr().out == ""
