"""python tiling.py export. Authorities: h5py, json and csv read it back, as other programs do;
scikit-learn learns from it; anndata where it is installed, since without it none is written.
"""

import csv
import json
import sys
import uuid

import h5py
import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lab.cohort.features import load_features, place_tiles
from lab.cohort.tiles import tiles_of
from lab.commands.tiling import main
from lab.files import InputError
from lab.provenance import of_data

STAGE3 = ("--encoder", "resnet50-stage3", "--device", "cpu")


@pytest.fixture
def exported(two_slides, capsys):
    """(cohort, its export folder, features, coords and edge of slide a)."""
    formats = ("--h5", "--pt", "--geojson", "--csv")
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
    assert (said["name"], said["overlap"], said["unit"]) == ("a", 0, "px")
    whole = ("patch_level", "patch_size", "patch_size_level0", "level0_magnification")
    assert [said[key] for key in whole] == [0, tile, tile, 20]
    assert all(isinstance(said[key], np.integer) for key in (*whole, "target_magnification"))
    assert said["provenance"] == "encoder with random weights"
    assert of_data(cohort, folder, "a") == [said["provenance"]]  # of --features, read back
    assert said["target_magnification"] == 20 and list(said["downsample"]) == [1, 1]
    assert said["tile_size_um"] == pytest.approx(112) and said["mpp"] == pytest.approx(0.5)
    trained_from = torch.load(folder / "pt_files" / "a.pt", weights_only=True)
    assert trained_from.dtype == torch.float32 and np.array_equal(trained_from, features)
    for source in (folder, folder / "h5_files"):
        got, places = load_features(cohort, source, "a")
        assert np.array_equal(got, features)
        assert np.array_equal(places, coords)
        assert place_tiles(cohort, source, "a", coords)[1] == tile


def test_geojson_has_a_detection_for_each_tile(exported):
    _, folder, _, coords, tile = exported
    text = (folder / "a.geojson").read_text()
    shapes = json.loads(text)
    assert shapes["type"] == "FeatureCollection" and " " not in text.replace("tile ", "")
    assert len({shape["id"] for shape in shapes["features"]}) == len(coords)
    for i, (shape, (x, y)) in enumerate(zip(shapes["features"], coords.tolist(), strict=True)):
        assert shape["type"] == "Feature"
        assert uuid.UUID(shape["id"])
        said = {"objectType": "detection", "name": f"tile {i}", "measurements": {"tile": i}}
        said["classification"] = {"name": "Tile", "color": [53, 95, 141]}
        assert shape["properties"] == said
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
        (["--h5ad"], "needs the package anndata, 0.11 or later: pip install anndata"),
        (["c", "--h5"], "has no slide c; it has a, b"),
        (["--h5", "--features", "{}", "--tile-um", "-3"], "--tile-um -3.0, which can't be"),
    ],
)
def test_what_cannot_be_exported_is_said(two_slides, monkeypatch, argv, words):
    monkeypatch.setitem(sys.modules, "anndata.io", None)
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
        said = dict(h["coords"].attrs)
    assert said["patch_size"] == said["patch_size_level0"] == 200  # .5 µm per pixel, no more 256
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
    assert np.array_equal(coords, px) and place_tiles(two_slides, folder, "a", coords)[1] == 224
    assert capsys.readouterr().out == ""


# ----- Other people's packages --------------------------------------------------------------------


def test_anndata_reads_all_tiles_of_a_cohort(two_slides):
    anndata = pytest.importorskip("anndata")
    (two_slides / "samples.csv").write_text("slide,patient,project,msi\na,P1,X,MSS\nb,P2,X,\n")
    (two_slides / "h5").mkdir()
    drawn, xy = np.random.default_rng(0), np.stack(np.divmod(np.arange(6), 3), 1) * 200
    for name, n in (("a", 6), ("b", 4)):
        with h5py.File(two_slides / "h5" / f"{name}.h5", "w") as h:
            h["features"], h["coords"] = drawn.normal(size=(n, 3)).astype(np.float32), xy[:n]
    features = ("--features", str(two_slides / "h5"), "--device", "cpu")
    assert main(["export", str(two_slides), "--h5ad", *features]) == 0
    table = anndata.io.read_h5ad(two_slides / "export" / "h5" / f"{two_slides.name}.h5ad")
    assert table.shape == (10, 3) and table.obs_names.is_unique
    for name, n in (("a", 6), ("b", 4)):
        own = table[table.obs["slide"] == name]
        assert np.array_equal(own.X, load_features(two_slides, two_slides / "h5", name)[0])
        assert np.array_equal(own.obsm["spatial"], xy[:n] + 100)  # the centres
        assert list(own.obs["tile"]) == list(range(n)) and set(own.obs["edge"]) == {200}
    assert list(table.obs["patient"].unique()) == ["P1", "P2"]
    assert list(table.uns["spatialdata_attrs"]["region"]) == ["a", "b"]


def test_scikit_learn_takes_features_and_folds(mapped):
    """A Pipeline over the run's own folds, on the means of its features."""
    run = mapped / "runs" / "he2rna"
    folds = list(csv.DictReader((run / "folds.csv").open()))
    x = [load_features(mapped, "resnet50-stage3", row["slide"])[0].mean(0) for row in folds]
    predictions = np.load(run / "predictions.npz")
    y = predictions["truth"]
    assert list(predictions["patient"]) == [row["patient"] for row in folds]
    fold = np.array([int(row["test_fold"]) for row in folds])
    groups = [row["patient"] for row in folds]
    splits = PredefinedSplit(fold)
    for train, test in splits.split():
        assert not {groups[i] for i in train} & {groups[i] for i in test}
    model = make_pipeline(StandardScaler(), Ridge(100.0))
    assert np.isfinite(cross_val_predict(model, np.float64(x), y, cv=splits)).all()
