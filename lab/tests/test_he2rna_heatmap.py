"""lab.tests.test_he2rna_heatmap"""

import json
import re
import shutil

import h5py
import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import torch

from lab.cohort.tiles import tiles_of
from lab.commands.he2rna import main
from lab.files import InputError
from lab.he2rna.runs import model_of
from lab.tests.helpers import (
    read_csv,
    train,
    write_cohort,
    write_pyramid,
)


def test_heatmap_of_simulated_slides(mapped, capsys):
    run = mapped / "runs" / "he2rna"
    folds = {r["slide"]: r for r in read_csv(run / "folds.csv")}
    slide = sorted(folds)[0]
    assert (
        main(
            [
                "heatmap",
                str(run),
                slide,
                "--genes",
                "CD3D,CD3E",
                "--cells",
                "lymphocyte",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    folder = run / "heatmaps" / "CD3D-CD3E" / slide
    rows, coords = read_csv(folder / "tiles.csv"), tiles_of(mapped, slide)[0]["coords"]
    model = model_of(
        torch.load(run / f"fold{folds[slide]['test_fold']}.pt", weights_only=True), "cpu"
    ).eval()
    genes = torch.load(run / "fold0.pt", weights_only=True)["genes"]
    features = torch.from_numpy(
        np.load(mapped / "features" / "resnet50-stage3" / f"{slide}.npy")
    ).float()
    want = (
        model.tile_scores(features)[:, [genes.index("CD3D"), genes.index("CD3E")]].detach().numpy()
    )  # the one model held out
    assert [(int(r["x"]), int(r["y"])) for r in rows] == list(map(tuple, coords.tolist()))
    assert np.allclose([[float(r["CD3D"]), float(r["CD3E"])] for r in rows], want, atol=1e-4)
    assert np.allclose([float(r["score"]) for r in rows], want.mean(1), atol=1e-4)
    points = read_csv(mapped / "points" / f"{slide}.csv")
    tile = float(tiles_of(mapped, slide)[0]["tile"])
    for (x, y), r in list(zip(coords, rows))[:5]:
        for kind in ("all cells", "lymphocyte"):  # a pixel on the edge is one of two tiles'
            low, high = (
                sum(
                    x <= float(p["x"]) < x + t
                    and y <= float(p["y"]) < y + t
                    and kind in (p["cell"], "all cells")
                    for p in points
                )
                for t in (int(tile), int(tile) + 1)
            )
            assert low <= int(r[f"cells: {kind}"]) <= high
    ledger = read_csv(folder / "provenance.csv")
    prediction = sum(float(r["weight"]) * float(r["score"]) for r in ledger)
    z = np.load(run / "predictions.npz")
    assert prediction == pytest.approx(
        z["prediction"][z["slide"].tolist().index(slide), genes.index("CD3D")], abs=1e-5
    )
    assert sum(float(r["weight"]) for r in ledger) == pytest.approx(1, abs=1e-6)
    report = (folder / "report.md").read_text()
    assert (
        f"{prediction:.5f}"[:-1] in report
        and f"fold {folds[slide]['test_fold']}, which did not learn from its patient" in report
    )
    counts = np.array([int(r["cells: lymphocyte"]) for r in rows])
    r = scipy.stats.pearsonr(want.mean(1), counts)[0] if counts.std() else np.nan
    assert (
        f"| lymphocyte | {counts.sum()} | {r:.3f}" in report.replace(",", "")
        and "Mean of the genes over the slides" in report
    )
    shapes = json.loads((folder / "tiles.geojson").read_text())
    assert len(shapes["features"]) == len(coords) and {p.name for p in folder.iterdir()} == {
        "map.png",
        "gallery.png",
        "cells.png",
        "tiles.csv",
        "tiles.geojson",
        "provenance.csv",
        "report.md",
    }
    capsys.readouterr()
    assert (
        main(
            [
                "heatmap",
                str(run),
                slide,
                "--genes",
                "CD3D",
                "--cells",
                "lymphocyt",
                "--device",
                "cpu",
            ]
        )
        == 1
    )
    assert "no such class" in capsys.readouterr().err
    assert (
        main(
            [
                "heatmap",
                str(run),
                *sorted(folds)[:3],
                "--genes",
                "CD3D",
                "--all-models",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert (
        "models of folds 0, 1, 2" in capsys.readouterr().out
        and (run / "heatmaps" / "CD3D" / "summary.md").is_file()
    )


def test_spots_and_outlines_as_truth(tmp_path, capsys):
    """A run on .h5 features whose tiles lie on a painted slide; spots that follow the score, an outline around the best tiles."""
    rng = np.random.default_rng(4)
    write_cohort(tmp_path, rng, patients=9, tiles=64)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * 224
    (tmp_path / "slides").mkdir()
    for path in (tmp_path / "h5").iterdir():
        with h5py.File(path, "a") as h:
            x = h["features"][:64]
            del h["coords"], h["features"]
            x[:, :3] += 0.8 * np.sin(grid[:, :1] / 300)  # a pattern on the slide
            h["features"], h["coords"] = x, grid.astype(np.int32)
            h["coords"].attrs["patch_size_level0"] = 224
        write_pyramid(
            tmp_path / "slides" / f"{path.stem}.tif",
            np.full((1792, 1792, 3), (225, 150, 185), np.uint8),
        )
    assert train(tmp_path, "--epochs", "30", "--lr", "3e-3") == 0
    run = tmp_path / "runs" / "he2rna"
    heatmap = lambda *argv: main(["heatmap", str(run), *argv, "--genes", "G0", "--device", "cpu"])
    assert heatmap("s00_0") == 0
    score = np.array(
        [float(r["score"]) for r in read_csv(run / "heatmaps" / "G0" / "s00_0" / "tiles.csv")]
    )
    for d in ("spots", "regions"):
        (tmp_path / d).mkdir()
    for i, slide in enumerate(("s00_0", "s03_0")):
        rows = [
            f"{x + 100:.1f},{y + 7},{10**s - 1:.5f},{10 ** rng.normal():.4f},{s + rng.normal() * 0.01}"
            for (x, y), s in zip(grid, score)
        ]
        (tmp_path / "spots" / f"{slide}.csv").write_text(
            "\n".join(["x,y,G0,G5,T-cells", *rows, "9999,9999,1,1,1"]) + "\n"
        )
    best = [
        [
            [int(x), int(y)],
            [int(x) + 224, int(y)],
            [int(x) + 224, int(y) + 224],
            [int(x), int(y) + 224],
        ]
        for x, y in grid[score > np.median(score)]
    ]
    (tmp_path / "regions" / "s00_0.geojson").write_text(
        json.dumps(dict(type="MultiPolygon", coordinates=[[ring] for ring in best]))
    )
    assert heatmap("s00_0", "s03_0") == 0
    rows = {r["column"]: r for r in read_csv(run / "heatmaps" / "G0" / "s00_0" / "spots.csv")}
    assert (
        float(rows["G0"]["R"]) > 0.999
        and float(rows["G0"]["p"]) < 0.05
        and float(rows["T-cells"]["R"]) > 0.9
        and float(rows["G5"]["p"]) > 0.01
    )
    report = (run / "heatmaps" / "G0" / "s00_0" / "report.md").read_text()
    assert "64 of 65 spots lie on a tile: 2 genes" in report and "AUC of the scores 1.000" in report
    out = capsys.readouterr().out
    assert (
        re.search(r"spots of [12] slides, models of folds \d: (64|128) spots; 2 genes", out)
        and "outline AUC 1.000" in out
    )
    for table, words in (
        ("a,b\n1,2\n", "no columns x and y"),
        ("x,y,G0\nz,2,1\n", "x, y is no place"),
        ("x,y,G0\n1_0,2,1\n", "row 2: x, y is no place"),
    ):
        (tmp_path / "spots" / "s00_0.csv").write_text(table)
        assert heatmap("s00_0") == 1 and words in capsys.readouterr().err
    assert (
        run / "heatmaps" / "G0" / "s00_0" / "report.md"
    ).read_text() == report  # the earlier map stays


@pytest.mark.parametrize(
    "argv,words",
    [
        (["--genes", "CD3"], "no gene 'CD3'; nearest: .*CD3"),
        (["--genes", "CD3D", "--name", "a/b"], "not a path"),
        (["--genes", "CD3D", "--provenance", "CD3E"], "not one of --genes CD3D"),
    ],
)
def test_heatmap_says_one_line(mapped, argv, words):
    run, slide = mapped / "runs" / "he2rna", sorted((mapped / "slides").iterdir())[0]
    with pytest.raises(InputError, match=words):
        main(["heatmap", str(run), str(slide), *argv, "--device", "cpu"])


def test_the_map_takes_every_tile_where_training_took_a_sample(mapped):
    slide = sorted(r["slide"] for r in read_csv(mapped / "runs" / "he2rna" / "folds.csv"))[1]
    cohort, run = mapped.parent / "few", mapped.parent / "few" / "runs" / "he2rna"
    shutil.copytree(mapped, cohort)
    shutil.rmtree(run)
    assert (
        main(
            [
                "train",
                str(cohort),
                "--max-tiles",
                "3",
                "--encoder",
                "resnet50-stage3",
                "--folds",
                "3",
                "--epochs",
                "1",
                "--hidden",
                "8",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert main(["heatmap", str(run), slide, "--genes", "CD3D", "--device", "cpu"]) == 0
    every, few = (tiles_of(c, slide)[0]["coords"] for c in (mapped, cohort))
    assert (
        len(few) == 3 < len(every) == len(read_csv(run / "heatmaps" / "CD3D" / slide / "tiles.csv"))
    )


def test_heatmap_of_a_truncated_or_empty_slide_writes_nothing(mapped, tmp_path, capsys):
    source = sorted((mapped / "slides").iterdir())[2]
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "cut.tif").write_bytes(source.read_bytes()[: source.stat().st_size // 3])
    write_pyramid(tmp_path / "slides" / "empty.tif", np.full((1500, 1500, 3), 243, np.uint8))
    files = [str(tmp_path / "slides" / n) for n in ("cut.tif", "empty.tif")]
    for command in (
        ["heatmap", str(mapped / "runs" / "he2rna"), *files, "--genes", "CD3D", "--name", "bad"],
        ["predict", str(mapped / "runs" / "he2rna"), *files],
    ):
        assert main([*command, "--device", "cpu"]) == 1
        err = capsys.readouterr().err
        assert (
            "failed: cut" in err
            and "failed: empty: no 112 µm tile" in err
            and "2 of 2 slides failed" in err
        )
    assert [p.name for p in (mapped / "runs" / "he2rna" / "heatmaps" / "bad").iterdir()] == [
        "failed.csv"
    ] and not list(mapped.glob("runs/he2rna/predict/cut*"))
