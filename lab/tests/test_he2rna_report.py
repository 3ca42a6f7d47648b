"""The table of choices, what a report counts, and the folds of a run."""

import csv
import re
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

import he2rna
import stats
from lab.audit.choices import flipped, switches
from lab.commands.he2rna import main
from lab.he2rna.choices import CHOICES
from lab.he2rna.evaluation import judged_in, write_genes
from lab.he2rna.report import small_folds

TRAIN = ["colour", "genes", "padding", "relu", "k", "folds", "epochs", "subtypes"]
TRAIN += ["bias", "merged", "pooled"]
MSI = ["draw", "few-tiles", "scaling", "genes", "autoencoder", "epochs", "start", "msi-l"]


def test_choices_are_one_table(capsys):
    assert main(["choices"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 120
    names = [(c.command, c.name) for c in CHOICES]
    assert len(set(names)) == len(names) == 29
    assert all(f"{command} {name}" in said for command, name in names)
    assert all(re.fullmatch(r"\[(HE2RNA.*|ours)\]", c.tag) for c in CHOICES)
    assert list(switches(CHOICES, "train")) == TRAIN
    assert list(switches(CHOICES, "msi")) == MSI


@pytest.mark.parametrize(
    "command, right", [("train", TRAIN), ("audit", TRAIN[:3]), ("msi", MSI)], ids=str
)
def test_a_wrong_choice_lists_the_right_ones(tmp_path, capsys, command, right):
    with pytest.raises(SystemExit):
        main([command, str(tmp_path), "--code", "genes,colours"])
    assert f"colours: choose from {', '.join(right)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, names, follow, turned",
    [
        ("train", ["bias"], None, ["bias"]),
        ("train", [], "paper", ["k", "epochs"]),
        ("train", ["k"], "code", [*TRAIN[:6], "subtypes"]),
        ("msi", [], "paper", ["genes"]),
        ("msi", [], "code", MSI),
    ],
)
def test_a_side_turns_the_choices_that_differ_from_it(command, names, follow, turned):
    assert flipped(CHOICES, command, names, follow) == turned


def test_pooled_is_one_r_over_all_folds():
    """Right predictions but for each fold's own offset: R is 1 in each fold, and less over all."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(40, 3)).astype(np.float32)
    fold = np.arange(40) % 4
    prediction = y + 5 * fold[:, None]
    projects = np.repeat(["LUAD", "LUSC"], 20)
    by_hand = [scipy.stats.pearsonr(prediction[:, g], y[:, g])[0] for g in range(3)]
    for code, want in (([], [1, 1, 1]), (["pooled"], by_hand)):
        within, n_folds = judged_in(fold, {"folds": 4, "code": code})
        results = he2rna.evaluate(prediction, y, within, projects, n_folds)
        assert results["LUNG"]["r"] == pytest.approx(want)
    assert max(by_hand) < 0.6


def test_a_gene_without_r_is_an_empty_cell_of_genes_csv(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(60, 4))
    fold, projects = np.arange(60) % 3, np.repeat(["X", "Y", "Z"], [40, 18, 2])
    prediction = y * 0.5 + rng.normal(size=y.shape)
    prediction[:, 2] = 1.25  # constant everywhere
    y[:40, 3] = 0  # constant in X
    results = he2rna.evaluate(prediction, y, fold, projects, 3)
    write_genes(tmp_path / "genes.csv", ["A", "B,1", "C", "D"], results)
    with open(tmp_path / "genes.csv") as f:
        rows = list(csv.DictReader(f))
    without = {(r["gene"], r["project"]) for r in rows if r["R"] == ""}
    two_slides = {(gene, "Z") for gene in ("A", "B,1", "C", "D")}
    assert without == {("C", "X"), ("D", "X"), ("C", "Y"), *two_slides}
    assert len(rows) == 12
    assert "nan" not in (tmp_path / "genes.csv").read_text()
    assert all(r["significant_hs"] == "0" for r in rows if r["R"] == "")


def test_each_fold_is_asked_whether_it_is_small():
    """Cancers of 40 patients: one fold of 4 is warned of, though the folds' mean size is 8."""
    rng = np.random.default_rng(0)
    fold = np.r_[np.repeat(range(5), [4, 9, 9, 9, 9]), np.arange(40) % 5]
    patients, projects = np.arange(80).repeat(2), np.repeat(["X", "Y"], 80)
    data = SimpleNamespace(fold=fold.repeat(2), patients=patients, projects=projects)
    y, prediction = rng.normal(size=(2, 160, 300))
    results = he2rna.evaluate(prediction, y, data.fold, projects, 5, patients=patients)
    config = {"code": [], "folds": 5}
    (said,) = small_folds(results, config, data)
    assert "X has folds of 4, 9, 9, 9, 9 test patients" in said
    chance = stats.chance_of_false(300, (4, 9, 9, 9, 9), results["X"]["r_sign"]["permutation"])
    assert f"in {chance:.2f} of studies" in said and 0.03 < chance < 0.12
