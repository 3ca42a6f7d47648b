"""Where HistCode looks, against a pathologist's outline."""

import json
import re

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
from matplotlib.path import Path as Outline

import tiling
from lab.cohort.tiles import tiles_of
from lab.runs import load_checkpoint
from lab.tests.helpers import read_csv
from lab.tests.helpers_histcode import maps_of, spoken_by_hand


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_attention_on_the_slide_against_its_outline(looked_at, capsys):
    run, slides = looked_at / "runs" / "diagnosis", ["S001-01A-DX1", "S003-01A-DX1", "S001-11A-DX1"]
    capsys.readouterr()
    assert maps_of(looked_at, "diagnosis", *slides) == 0
    said, part, aucs = (
        capsys.readouterr().out,
        {r["slide"]: r["part_0"] for r in read_csv(run / "folds.csv")},
        [],
    )
    for slide in slides:
        folder, (arrays, _) = run / "heatmaps" / "diagnose" / slide, tiles_of(looked_at, slide)
        rows, coords, tile = read_csv(folder / "tiles.csv"), arrays["coords"], float(arrays["tile"])
        assert [(int(r["x"]), int(r["y"])) for r in rows] == list(
            map(tuple, coords.tolist())
        ) and len(rows) > 20
        a = np.array([float(r["attention"]) for r in rows])
        saved = load_checkpoint(run / f"HistCode-r0-f{part[slide]}.pt", "cpu")
        own = spoken_by_hand(saved, np.load(looked_at / "features" / "one" / f"{slide}.npy"))[1][0]
        assert (
            a.min() == 0
            and a.max() == 1
            and np.allclose(a, (own - own.min()) / np.ptp(own), atol=2e-4)
        )
        shapes = json.loads((folder / "tiles.geojson").read_text())["features"]
        assert len(shapes) == len(rows)
        assert {p.name for p in folder.iterdir()} == {
            *("map.png", "map.svg", "gallery.png", "gallery.svg"),
            *(() if slide.split("-")[1] == "11A" else ("cells.png", "cells.svg")),
            "tiles.csv",
            "tiles.geojson",
            "report.md",
        }
        picture = (folder / "map.svg").read_text()
        assert f"tumour against normal: attention on {slide}" in picture
        (line,) = [x for x in said.splitlines() if x.startswith(f"{slide}, diagnose:")]
        report = (folder / "report.md").read_text()
        assert (
            f"{len(rows)} tiles, 1 of 3 models" in line
            and "none of which learned from the slide's patient" in report
        )
        if slide.split("-")[1] == "11A":
            assert "outline" not in line and "inside" not in rows[0]
            continue
        region = json.loads((looked_at / "regions" / f"{slide}.geojson").read_text())["features"]
        rings = [[Outline(np.array(ring)) for ring in f["geometry"]["coordinates"]] for f in region]
        inside = [
            any(sum(r.contains_point(xy) for r in polygon) % 2 for polygon in rings)
            for xy in coords + tile / 2
        ]
        got = np.array([r["inside"] == "1" for r in rows])
        assert (got == inside).mean() > 0.98  # but for points on an edge
        up, down = a[got], a[~got]
        auc = np.mean([(x > y) + 0.5 * (x == y) for x in up for y in down])
        cut = tiling.otsu_threshold(a)
        dice, everywhere = (
            2 * ((a > cut) & got).sum() / ((a > cut).sum() + got.sum()),
            2 * got.sum() / (len(a) + got.sum()),
        )
        assert f"outline AUC {auc:.3f}, Dice {dice:.3f} (all tiles {everywhere:.3f})" in line
        assert f"AUC {auc:.3f}; Dice" in report
        points = read_csv(looked_at / "points" / f"{slide}.csv")
        held = sum(
            any(x <= float(p["x"]) < x + tile and y <= float(p["y"]) < y + tile for x, y in coords)
            for p in points
        )
        assert abs(sum(int(r["cells: all cells"]) for r in rows) - held) <= 0.01 * held
        counts = np.array([int(r["cells: tumour"]) for r in rows])
        assert f"tumour R {scipy.stats.pearsonr(a, counts)[0]:.3f}" in line
        aucs.append(auc)
    summary = (run / "heatmaps" / "diagnose" / "summary.md").read_text()
    assert summary.startswith("# diagnose: 3 slides")
    assert f"| {slides[0]} | " in summary and f"| {aucs[0]:.3f} | " in summary
    assert re.search(rf"\| mean \|.*\| {np.mean(aucs):.3f} \|", summary)
