"""Scores of tiles against cells, spots and the slides of a run. Authority: SciPy, and loops."""

import numpy as np
import pytest
import scipy.stats

from lab.files import InputError
from lab.he2rna.spatial import (
    against_cells,
    asked_first,
    group_rows,
    predictions_of,
    spot_rows,
    spot_summary,
)


def grid(n, tile=100):
    return np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) * tile


def test_scores_against_the_cells_of_each_class():
    rng = np.random.default_rng(0)
    coords = grid(8)
    n = rng.integers(0, 9, len(coords))
    points = np.repeat(coords + 50, n, axis=0)
    scores = n + rng.normal(size=len(n))
    counts, figures = against_cells(scores, {"all cells": points, "none": points[:0]}, coords, 100)
    assert (counts["all cells"] == n).all() and not counts["none"].any()
    r, p, rho, best, of_all = figures["all cells"]
    assert r == pytest.approx(scipy.stats.pearsonr(scores, n)[0])
    assert rho == pytest.approx(scipy.stats.spearmanr(scores, n)[0])
    assert p < 0.05
    highest = np.argsort(-scores)[: len(n) // 2]
    assert (best, of_all) == (np.median(n[highest]), np.median(n))
    assert np.isnan(figures["none"][0])


def test_spots_of_several_slides_share_their_columns():
    rng = np.random.default_rng(0)
    spots = []
    for columns in (("A", "T-cells", "B"), ("T-cells", "A")):
        scores = rng.normal(size=(36, 3))
        measured = np.add(scores, [0.01, 0.5, 9])
        pairs = {c: (scores[:, i], measured[:, i]) for i, c in enumerate(columns)}
        spots.append((grid(6), pairs))
    rows = spot_rows(spots)
    assert [name for name, *_ in rows] == ["A", "T-cells"]  # B was measured on one slide alone
    assert all(p <= 0.01 for *_, p in rows)
    together = [np.concatenate([pairs["A"][i] for _, pairs in spots]) for i in (0, 1)]
    assert rows[0][1] == pytest.approx(scipy.stats.pearsonr(*together)[0])
    said = spot_summary(rows, {"A"}, "A")
    asked, said = said.split("; ", 1)
    assert asked == f"A R {rows[0][1]:.3f} (p {rows[0][2]:.3f})"
    assert said.startswith(f"1 genes, mean R {rows[0][1]:.3f}, 1 above .2, 1 with p < 0.05")
    assert said.endswith(f"T-cells R {rows[1][1]:.3f} (p {rows[1][2]:.3f})")


def test_the_spots_of_the_asked_genes_come_first():
    rng = np.random.default_rng(1)
    pairs = {c: tuple(rng.normal(size=(2, 9))) for c in ("A", "CD3D", "B", "CD3E", "T-cells")}
    name, found, _ = asked_first(["B"], pairs)
    assert (name, list(found)) == ("B", ["B", "A", "CD3D", "CD3E", "T-cells"])
    name, found, there = asked_first(["CD3D", "CD3E", "CD3G"], pairs)  # CD3G was not measured
    assert name == "mean of CD3D, CD3E" == next(iter(found)) and there == ["CD3D", "CD3E"]
    for i in (0, 1):
        assert found[name][i] == pytest.approx((pairs["CD3D"][i] + pairs["CD3E"][i]) / 2)
    pairs["CD3E"][1][3] = np.nan  # a spot without a value
    assert asked_first(["CD3D", "CD3E"], pairs)[0] == "CD3D"
    assert asked_first(["CD247"], pairs)[0] == "T-cells"  # which it marks
    assert asked_first(["TP53"], pairs) == (None, pairs, [])


def run_of(folder, genes=300):
    config = {"seed": 0, "code": [], "folds": 3, "null": "t"}
    return {"folder": folder, "genes": [f"GENE{i}" for i in range(genes)], "config": config}


def test_the_groups_r_is_of_the_runs_slides(judged):
    folder, results = judged
    want = [(cancer, 30, f"{results[cancer]['r'][7]:.3f}") for cancer in "AB"]
    run = run_of(folder)
    assert [row[:3] for row in group_rows(run, predictions_of(run), [7])] == want


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("fold", lambda fold: fold.astype(str), "missing or not whole"),
        ("patient", lambda patient: patient[:0], "missing or not whole"),
        ("project", lambda project: project[1:], "missing or not whole"),
        ("genes", lambda genes: genes[::-1], "other genes"),
    ],
)
def test_predictions_that_are_damaged_are_refused(judged, name, change, words):
    folder, _ = judged
    path = folder / "predictions.npz"
    z = dict(np.load(path))
    np.savez(path, **{**z, name: change(z[name])})
    with pytest.raises(InputError, match=words):
        predictions_of(run_of(folder))
