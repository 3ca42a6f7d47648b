"""The audit of HistCode: what it says is the difference of the runs that it made."""

import json
import shutil
from itertools import product

import numpy as np
import pytest

from lab.commands.histcode import expression, main
from lab.files import InputError
from lab.tests.helpers import read_csv, swap
from lab.tests.helpers_histcode import TINY, write_pairs


@pytest.fixture
def runs(monkeypatch):
    """Names of the runs of expression; the audit is interrupted in the fourth, once."""
    names, real = [], expression.run

    def spied(o):
        names.append(o.name)
        if len(names) == 4:
            raise KeyboardInterrupt
        return real(o)

    monkeypatch.setattr(expression, "run", spied)
    return names


NAMES = ("default", "again", "slides")
CHOICES = ("default", "again", "tissue", "lr")


def wins(a, b):
    return (a > b) + (a == b) / 2


def measured(folder, command):
    """{measure: value} of a run, from its tables."""
    if command == "expression":
        rows = read_csv(folder / "genes.csv")
        hits = sum(float(row["bh"]) < 0.05 for row in rows)
        return {"R": np.mean([float(row["R"]) for row in rows]), "BH": hits}
    rows = read_csv(folder / "predictions.csv")
    of = {True: [], False: []}
    for row in rows:
        of[row["label"] == "tumour"].append(float(row["p_tumour"]))
    auc = np.mean([wins(a, b) for a, b in product(of[True], of[False])])
    accuracy = np.mean([row["label"] == row["predicted"] for row in rows])
    return {"accuracy": accuracy, "AUC": auc}


def test_audit_goes_on_where_it_stopped_and_is_the_runs_difference(
    tmp_path, monkeypatch, runs, capsys
):
    cohort = write_pairs(tmp_path / "c", 12)
    folder = cohort / "runs" / "histcode-audit"
    own = f"--features {cohort / 'h5'} --epochs 2 --folds 3 --device cpu --hidden 4"
    swap(monkeypatch, "lab.histcode.ends", "SHUFFLES", 2000)
    words = ["audit", str(cohort), "--seeds", "2", "--code", "lr,folds,slides"]
    words += [f"--diagnose={own} --lr .01", f"--expression={own}"]
    with pytest.raises(KeyboardInterrupt):
        main(words)
    said = capsys.readouterr().out
    assert "without pretrain's lr: " in said
    assert "11 runs left, " in said
    assert len(read_csv(folder / "audit.csv")) == 2 * 6 + 2 * 3
    assert main(words) == 0
    every = [f"expression-{name}-seed{seed}" for name in NAMES for seed in (0, 1)]
    assert runs == [*every[:4], *every[3:]]
    first, text = (folder / "audit.csv").read_bytes(), (folder / "audit.md").read_text()
    assert main(words) == 0
    assert len(runs) == 7
    assert (folder / "audit.csv").read_bytes() == first
    assert (folder / "audit.md").read_text() == text

    rows = read_csv(folder / "audit.csv")
    assert len(rows) == 2 * 12
    for row in rows:
        command, seed, measure = row["command"], row["seed"], row["measure"]
        value = measured(folder / f"{command}-{row['choice']}-seed{seed}", command)[measure]
        default = measured(folder / f"{command}-default-seed{seed}", command)[measure]
        assert float(row["value"]) == pytest.approx(value, abs=1e-4)
        assert float(row["change"]) == pytest.approx(value - default, abs=2e-4)
        assert float(row["seconds"]) > 0
    assert "| slides | tiles of the normal slides too |" in text
    with pytest.raises(InputError, match="--diagnose --lr '1: no closing quotation"):
        main([*words, "--diagnose=--lr '1"])


def test_without_known_cells_pretraining_cannot_be_measured(tmp_path):
    with pytest.raises(InputError, match=r"--code lr: nothing is left to turn: .*spots/ to probe"):
        main(["audit", str(write_pairs(tmp_path / "d")), "--code", "lr"])


def test_audit_of_pretraining_probes_the_same_tiles(unlabelled, tmp_path):
    cohort = tmp_path / "c"
    shutil.copytree(unlabelled, cohort, ignore=shutil.ignore_patterns("runs", "features", "tiles"))
    own = " ".join(TINY) + f" --epochs 1 --weights {cohort / 'start.pth'} --tile-um 100"
    words = ["audit", str(cohort), "--seeds", "1", "--code", "lr,tissue", f"--pretrain={own}"]
    assert main([*words, "--probe=--tiles-per-slide 3"]) == 0
    folder = cohort / "runs" / "histcode-audit"
    other = folder / "tissue"
    rows = read_csv(folder / "audit.csv")
    assert [row["choice"] for row in rows] == [c for c in CHOICES for _ in "12"]
    tiles = set()
    for name, home in (("default", cohort), ("tissue", other), ("lr", cohort)):
        run = home / "runs" / "histcode-audit" / f"pretrain-{name}-seed0"
        (probed,) = read_csv(run / "probe.csv")
        tiles.add(probed["tiles"])
        spread = json.loads((run / "log.jsonl").read_text())["spread"]
        got = {row["measure"]: float(row["value"]) for row in rows if row["choice"] == name}
        wanted = {"R2 of the cells": float(probed["mean"]), "spread": spread}
        assert got == pytest.approx(wanted, rel=1e-5)
        config = json.loads((run / "config.json").read_text())
        assert config["lr"] == (0.001 if name == "lr" else 0.03)
        assert config["tile_um"] == 100
        assert config["code"] == ([] if name == "default" else [name])
    assert len(tiles) == 1
    a, b = (json.loads((home / "tiles" / "settings.json").read_text()) for home in (cohort, other))
    assert b == {**a, "tissue_threshold": 8.0}
    assert (other / "slides").is_symlink()
