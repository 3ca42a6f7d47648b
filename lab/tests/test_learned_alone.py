"""Whatever is chosen is chosen from training patients: others' values change none of it.

What MSI's and expression's networks see: test_he2rna_msi.py, test_histcode_expression.py.
"""

import shutil

import h5py
import numpy as np
import pytest
import torch

import he2rna
import stats
from lab.histcode import probe
from lab.histcode.ends import label_layer
from lab.tests.helpers import read_csv, saved, swap
from lab.tests.helpers_he2rna import train, tune, write_cohort
from lab.tests.helpers_histcode import change_table, diagnose, learn, planted_bags, write_slides

ROWS = np.arange(60)
TRAIN, VALID, TEST = ROWS[:30], ROWS[30:45], ROWS[45:]


def numbers():
    """x (60, 6), and y (60, 3) that it tells in part."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6))
    return x, x[:, :3] + rng.normal(size=(60, 3))


# ----- Places where something is chosen: (its arrays, its test rows, what it chooses) -------------


def penalty_of_the_probe():
    """Predictions tell it: those of fold 0, which y of fold 0 must not change."""
    x, y = numbers()
    test = np.flatnonzero(stats.patient_folds(ROWS, np.zeros(60), 5, 0) == 0)

    def chosen(y):
        seen = []
        original = probe.r_squared
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(probe, "r_squared", lambda *a: (seen.append(a), original(*a))[1])
            probe.linear_probe(x, y, ROWS)
        return [seen[-1][1][test]]

    return {"y": y}, test, chosen


def epoch_and_scale_of_labels():
    x, y = numbers()

    def chosen(x, label):
        return label_layer(x, label, TRAIN, VALID, "cpu", epochs=30, lr=0.1)

    return {"x": x, "label": 1.0 * (y > 0)}, TEST, chosen


def scale_of_inputs():
    x, _ = numbers()
    return {"x": x}, TEST, lambda x: [he2rna.standardise(x, TRAIN)[TRAIN]]


def epoch_of_he2rna():
    x, y = numbers()

    def chosen(x, y):
        torch.manual_seed(0)
        model = he2rna.HE2RNA(6, 3, (8,), ks=(1,), dropout=0).start_at(y[TRAIN].mean(0))
        bags = he2rna.bags_of(x[:, None].astype(np.float32))
        rows = np.zeros(60), TRAIN, VALID
        arguments = bags, y.astype(np.float32), *rows
        *_, state = he2rna.train_epochs(model, *arguments, epochs=20, patience=3, lr=0.03)
        assert 1 < state["best_epoch"] < 17
        return [state["best_epoch"], *state["best"].values()]

    return {"x": x, "y": y}, TEST, chosen


def epoch_and_scale_of_slides():
    bags, y = planted_bags(60, shift=1.0)

    def chosen(bags, y):
        (got,) = learn("HistCode", list(bags), y, [(TRAIN, VALID, TEST)], [1], epochs=8)
        return [got["epoch"], got["losses"], *got["model"].values()]

    as_one = np.empty(60, object)
    as_one[:] = bags
    return {"bags": as_one, "y": y}, TEST, chosen


PLACES = (
    penalty_of_the_probe,
    epoch_and_scale_of_labels,
    scale_of_inputs,
    epoch_of_he2rna,
    epoch_and_scale_of_slides,
)


def other(name, values):
    """Other values, far from those there were."""
    if name in ("label", "y") and set(np.unique(values)) <= {0, 1}:
        return 1 - values
    return [9 - 5 * one for one in values] if values.dtype == object else 9 - 5 * values


@pytest.mark.parametrize("place", PLACES)
def test_test_values_choose_nothing(place):
    arrays, test, chosen = place()
    before = [np.asarray(one) for one in chosen(**arrays)]
    for name in arrays:
        for rows, stays in ((test, True), (np.setdiff1d(ROWS, test)[::2], False)):
            values = arrays[name].copy()
            values[rows] = other(name, values[rows])
            after = [np.asarray(one) for one in chosen(**{**arrays, name: values})]
            same = all(map(np.array_equal, before, after))
            assert same == stays, (name, stays)


# ----- Verbs --------------------------------------------------------------------------------------


def change_features(cohort, slides):
    for slide in slides:
        with h5py.File(cohort / "h5" / f"{slide}.h5", "r+") as h:
            h["features"][:] = h["features"][:] * 3 - 1


def learned(path):
    """All that a checkpoint holds, but for times and for what is of its test patients."""
    kept = saved(path)
    note = {k: v for k, v in kept.get("note", {}).items() if k != "seconds"}
    numbers = [*kept["model"].values(), kept.get("losses", torch.zeros(1))]
    return note, kept.get("epoch"), kept["saw"], [one.tolist() for one in numbers]


def of_fold(run, fold, column):
    return [row for row in read_csv(run / "folds.csv") if row[column] == str(fold)]


def test_train_and_finetune_choose_nothing_by_test_patients(tmp_path, monkeypatch):
    swap(monkeypatch, "lab.he2rna.report", "write_report", lambda *_: None)
    swap(monkeypatch, "lab.he2rna.report_plots", "draw_null", lambda *_: None)
    a, b = tmp_path / "a", tmp_path / "b"
    write_cohort(a, np.random.default_rng(0), patients=24)
    argv = "--decoys", "0", "--null", "t", "--epochs", "6", "--patience", "2", "--lr", "1e-2"

    def runs(cohort):
        assert train(cohort, *argv) == 0
        assert tune(cohort, "--project", "Y", "--null", "t", "--decoys", "0") == 0

    shutil.copytree(a, b)
    runs(a)
    tests = of_fold(a / "runs" / "he2rna", 0, "test_fold")
    slides = [row["slide"] for row in tests]
    change_features(b, slides)

    def others(rows):
        return [
            [r[0], *(f"{float(v) * 7 + 3:g}" for v in r[1:])] if r[0] in slides else r for r in rows
        ]

    change_table(b / "expression.csv", others)
    runs(b)
    for run in ("he2rna", "he2rna-Y-finetuned"):
        for f in range(3):
            same = learned(a / "runs" / run / f"fold{f}.pt") == learned(
                b / "runs" / run / f"fold{f}.pt"
            )
            assert same == (f == 0), (run, f)


def test_diagnose_chooses_nothing_by_test_patients(tmp_path, monkeypatch):
    swap(monkeypatch, "lab.histcode.diagnose_report", "write_report", lambda *_: None)
    a, b = write_slides(tmp_path / "a", 18), tmp_path / "b"
    shutil.copytree(a, b)
    assert diagnose(a, "--folds", "4", "--rotate") == 0
    run = a / "runs" / "diagnosis"
    change_features(b, [row["slide"] for row in of_fold(run, 0, "part_0")])
    assert diagnose(b, "--folds", "4", "--rotate") == 0
    for f in range(4):
        name = f"HistCode-r0-f{f}.pt"
        assert (learned(run / name) == learned(b / "runs" / "diagnosis" / name)) == (f == 0)
