"""lab.tests.test_he2rna_report"""

import csv
import re

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats

import he2rna
import stats
from he2rna import evaluate, separate
from lab.audit.choices import flipped, switches
from lab.commands.he2rna import main
from lab.he2rna.choices import CHOICES
from lab.he2rna.evaluation import judged_in, write_genes


def test_choices_are_one_table_and_wrong_names_list_the_right_ones(tmp_path, capsys):
    assert main(["choices"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 120
    names = [(c, name) for c, name, *_ in CHOICES]
    assert len(set(names)) == len(names) == 17 and all(f"{c} {name}" in said for c, name in names)
    assert all(re.fullmatch(r"\[(HE2RNA.*|ours)\]", row[-1]) for row in CHOICES)
    for command, right in (
        ("train", "colour, genes, padding, relu, k, folds, epochs, bias, merged, pooled"),
        ("audit", "colour, genes, padding"),
        ("msi", "scaling, genes, autoencoder, epochs, msi-l"),
    ):
        with pytest.raises(SystemExit):
            main([command, str(tmp_path), "--code", "genes,colours"])
        assert f"colours: choose from {right}" in capsys.readouterr().err
    assert flipped(CHOICES, "train", (), "paper") == ["k", "epochs"] and flipped(
        CHOICES, "train", ["bias"], None
    ) == ["bias"]
    assert flipped(CHOICES, "train", ["k"], "code") == [
        "colour",
        "genes",
        "padding",
        "relu",
        "k",
        "folds",
    ]
    assert flipped(CHOICES, "msi", (), "paper") == ["genes"] and flipped(
        CHOICES, "msi", (), "code"
    ) == list(switches(CHOICES, "msi"))


def test_pooled_and_merged_have_two_sides():
    """Each fold's predictions are right but for its own offset: R is 1 in each fold, and less over all."""
    rng = np.random.default_rng(0)
    y, fold = rng.normal(size=(40, 3)).astype(np.float32), np.arange(40) % 4
    prediction, projects = y + 5 * fold[:, None], np.repeat(["LUAD", "LUSC"], 20)
    for code, want in (((), 1), (("pooled",), None)):
        within, k = judged_in(fold, dict(folds=4, code=code))
        r = evaluate(prediction, y, within, projects, k)["LUNG"]["r"]
        assert r == pytest.approx(
            [want or scipy.stats.pearsonr(prediction[:, g], y[:, g])[0] for g in range(3)]
        ) and (want or r.max() < 0.6)
    names = ["LUNG", "LUAD", "LUSC", "LIHC"]
    assert separate(names) == ["LUNG", "LIHC"] and separate(names, merged=False) == [
        "LUAD",
        "LUSC",
        "LIHC",
    ]
    assert separate(["LUAD", "LIHC"], merged=False) == separate(["LUAD", "LIHC"]) == ["LUAD", "LIHC"]


def test_evaluation_equals_scipy_and_a_constant_gene_has_no_value(tmp_path):
    rng = np.random.default_rng(0)
    y, fold, projects = (
        rng.normal(size=(60, 5)),
        np.arange(60) % 3,
        np.array(["X"] * 40 + ["Y"] * 18 + ["Z"] * 2),
    )
    p = y * 0.5 + rng.normal(size=y.shape)
    p[:, 2], y[:40, 3], p[(fold == 1) & (projects == "X"), 4] = (
        1.25,
        0,
        7,
    )  # no value: everywhere; in X; in one fold of X
    results = evaluate(p, y, fold, projects, 3)
    for name in "XY":
        e = results[name]
        for g in range(5):
            folds = []
            for f in range(3):
                at = (fold == f) & (projects == name)
                if np.ptp(y[at, g]) > 0 and np.ptp(p[at, g]) > 0:
                    folds.append(scipy.stats.pearsonr(p[at, g], y[at, g])[0])
            assert e["r"][g] == pytest.approx(np.mean(folds)) if folds else np.isnan(e["r"][g])
        full = (projects == name).sum()
        assert e["slides"] == full and e["n"].tolist() == [
            full,
            full,
            0,
            full if name == "Y" else 0,
            full if name == "Y" else 40 - 13,
        ]
        assert np.isnan(e["p"][2]) and not np.isnan(e["r"][4])
        assert (
            e["p"][0] == pytest.approx(stats.pearson_p(e["r"][0], full))
            and e["all_p"]["permutation"][0] >= e["p"][0]
        )
    assert np.isnan(results["Z"]["r"]).all()  # two slides: no R at all
    write_genes(tmp_path / "genes.csv", ["A", "B,1", "C", "D", "E"], results)
    with open(tmp_path / "genes.csv") as f:
        rows = list(csv.DictReader(f))
    empty = [(r["gene"], r["project"]) for r in rows if r["R"] == ""]
    assert sorted(empty) == sorted(
        [("C", "X"), ("D", "X"), ("C", "Y"), *((g, "Z") for g in ("A", "B,1", "C", "D", "E"))]
    )
    assert (
        len(rows) == 15
        and "nan" not in (tmp_path / "genes.csv").read_text()
        and all(r["significant_hs"] == "0" for r in rows if r["R"] == "")
    )


def test_the_permutation_null_holds_for_noise_in_small_folds():
    """Noise, 12 slides in 5 folds: the mean of folds is not one R; permuted slides scatter as it does. Authority: drawing them."""
    rng, tests, found, uniform = np.random.default_rng(0), 3000, 0, []
    for n, k in ((12, 5), (20, 5), (45, 5)):
        y, p, fold = *rng.normal(size=(2, n, tests)), np.arange(n) % k
        e = evaluate(p, y, fold, np.array(["X"] * n), k, null="permutation")["X"]
        found += (e["hs"] < 0.05).sum()
        uniform.append((e["p"] < 0.05).mean())
        mean, m = stats.null_fit(stats.permutation_null(p, y, fold, 50, rng))
        assert mean == pytest.approx(0, abs=0.01) and e["fits"]["permutation"][1] == pytest.approx(
            m, rel=0.1
        )
    assert found <= 3 and all(0.03 < u < 0.075 for u in uniform)


def test_merged_cancers_count_once():
    assert separate(["LUNG", "LUAD", "LUSC", "BRCA"]) == ["LUNG", "BRCA"] and separate(
        ["LUAD", "BRCA"]
    ) == ["LUAD", "BRCA"]
