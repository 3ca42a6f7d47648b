"""lab.tests.test_histcode_pairs"""

import argparse
import csv
import gzip
import io

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import torch

import histcode
import stats
from lab.files import InputError, save_csv
from lab.histcode.options import DRIVERS
from lab.histcode.pairs import (
    chosen_genes,
    driver_genes,
    fit_labels,
    least_squares,
    pair_features,
    pairs_of,
    shuffled_p,
)
from lab.progress import say_left_out
from lab.tests.helpers import change_table, real, swap


def test_ends_are_the_highest_and_lowest_tiles_and_never_share_one():
    rng = np.random.default_rng(0)
    for n, most in ((2, 100), (3, 100), (7, 3), (6, 3), (5, 3), (300, None)):
        a = rng.integers(0, max(3, n // 2), n) / 7  # ties
        high, low = histcode.ends_of(a, *([most] if most else []))
        count, order = (
            min(most or 100, n // 2),
            sorted(range(n), key=lambda i: (-a[i], i)),
        )  # HistCode: l = 100
        assert (
            high.tolist() == order[:count]
            and low.tolist() == order[n - count :]
            and not set(high) & set(low)
        )
        h = rng.normal(size=(n, 4)).astype(np.float16)
        if not most:
            want = [
                np.mean([float(h[i, k]) for i in rows]) for rows in (high, low) for k in range(4)
            ]
            assert np.allclose(pair_features(h, a), want, atol=1e-12)


def test_least_squares_is_lstsq_of_the_known_patients_of_each_gene():
    rng = np.random.default_rng(0)
    for n, d in ((30, 5), (6, 9)):  # one solution, and many: the smallest
        x, y = rng.normal(1, 2, (n, d)), rng.normal(size=(n, 5))
        y[:2, 1], y[3, 2], y[:, 4] = np.nan, np.nan, np.nan
        y[:2, 3] = np.nan
        weights, bias = least_squares(x, y)
        for j in range(4):
            known = ~np.isnan(y[:, j])
            mean, sd = x[known].mean(0), x[known].std(0)
            w = (
                np.linalg.lstsq(
                    (x[known] - mean) / sd, y[known, j] - y[known, j].mean(), rcond=1e-9
                )[0]
                / sd
            )
            assert np.allclose(weights[:, j], w) and bias[j] == pytest.approx(
                y[known, j].mean() - mean @ w
            )
        assert (weights[:, 4] == 0).all() and np.isnan(bias[4])
        z = (x - x.mean(0)) / x.std(0)  # normal equations with a penalty
        w = np.linalg.solve(z.T @ z + 2.5 * np.eye(d), z.T @ (y[:, 0] - y[:, 0].mean()))
        assert np.allclose(least_squares(x, y, 2.5)[0][:, 0] * x.std(0), w)


def adam_of_labels(z, label, rows, steps, rate=1e-3):
    """Logistic regression of one gene from 0 by Adam (Kingma & Ba 2015, algorithm 1) in NumPy: weights after each step."""
    w, m, v, after = np.zeros(z.shape[1] + 1), 0, 0, []
    rows = [i for i in rows if not np.isnan(label[i])]
    x = np.c_[z[rows], np.ones(len(rows))]
    for t in range(1, steps + 1):
        g = x.T @ (1 / (1 + np.exp(-x @ w)) - label[rows]) / len(rows)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - rate * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        after.append(w)
    return after


def test_labels_are_a_logistic_regression_stopped_on_the_validation_patients(monkeypatch):
    rng = np.random.default_rng(0)
    n, d, steps, rows = 40, 6, 30, np.arange(40)
    x = rng.normal(3, 2, (n, d))
    label = np.where(x[:, :1] + rng.normal(0, 2, (n, 1)) > 3, 1.0, 0.0)
    label[[1, 5, 26]] = np.nan
    swap(monkeypatch, "lab.histcode.pairs", "LABEL_EPOCHS", steps)
    swap(monkeypatch, "lab.histcode.pairs", "LABEL_RATE", 0.1)  # fast enough to overfit
    train, valid, test = rows[:16], rows[16:28], rows[28:]
    x[test], z = np.nan, (x - x[train].mean(0)) / x[train].std(0)
    after = adam_of_labels(z, label[:, 0], train, steps, 0.1)
    use = [i for i in valid if not np.isnan(label[i, 0])]
    losses = [
        np.mean([np.log1p(np.exp(-(2 * label[i, 0] - 1) * (z[i] @ w[:-1] + w[-1]))) for i in use])
        for w in after
    ]
    best = int(np.argmin(losses))
    for part, k in ((valid, best), (valid[:0], steps - 1)):
        weights, bias = fit_labels(x, label, train, part, torch.device("cpu"))
        own = z[:28] @ after[k][:-1] + after[k][-1]
        assert np.allclose(x[:28] @ weights[:, 0] + bias[0], own, atol=2e-3 * np.abs(own).max())
    assert 0 < best < steps - 2


def shuffled_cohort(n=40, d=60, G=60, seed=0):
    """Features by each of 4 folds' attention (they differ), parts, y of genes that follow nothing, some unknown."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.linspace(3, 0.1, d)
    y = rng.normal(size=(n, G))
    y[:7, :2] = np.nan
    return [x + 0.1 * rng.normal(size=x.shape) for _ in range(4)], np.arange(n) % 4, y


def held_out_r(xs, part, penalties, y):
    """R of pooled held-out predictions, every fold fitted by `least_squares`."""
    prediction = np.empty_like(y)
    for f, (x, p) in enumerate(zip(xs, penalties)):
        weights, bias = least_squares(x[part != f], y[part != f], p)
        prediction[part == f] = x[part == f] @ weights + bias
    return np.array(
        [
            scipy.stats.pearsonr(*v[:, ~np.isnan(v[1])])[0]
            for v in np.stack([prediction, y]).transpose(2, 0, 1)
        ]
    )


def test_shuffled_p_counts_orders_all_folds_fitted_anew(monkeypatch):
    (xs, part, y), penalties = shuffled_cohort(n=16, d=24, G=3), (0, 5.0, 0, 30.0)
    swap(monkeypatch, "lab.histcode.pairs", "SHUFFLES", 60)
    r, rng, null = held_out_r(xs, part, penalties, y), np.random.default_rng(3), []
    for rows, genes in (
        (np.arange(7, 16), [0, 1]),
        (np.arange(16), [2]),
    ):  # known of the same patients
        for order in rng.permuted(np.tile(rows, (20, 1)), axis=1):
            moved = np.full((16, len(genes)), np.nan)
            moved[rows] = y[np.ix_(order, genes)]
            null += held_out_r(xs, part, penalties, moved).tolist()
    want = [(1 + sum(v >= one - 1e-9 for v in null)) / 61 for one in r]
    assert np.allclose(shuffled_p(r, xs, part, penalties, y, np.random.default_rng(3)), want)
    assert np.isnan(shuffled_p(np.array([np.nan, 1, 1]), xs, part, penalties, y, rng)[0])


def test_shuffled_p_is_that_of_chance_where_the_t_is_too_bold(monkeypatch):
    swap(monkeypatch, "lab.histcode.pairs", "SHUFFLES", 20000)
    xs, part, y = shuffled_cohort(G=600)
    r = held_out_r(xs, part, (0,) * 4, y)
    p, t = shuffled_p(r, xs, part, (0,) * 4, y, np.random.default_rng(0)), stats.pearson_p(r, 40)
    assert (
        0.03 < (p < 0.05).mean() < 0.07 and (p < 0.01).mean() < 0.025 and (t < 0.01).mean() > 0.025
    )


def test_driver_genes_are_the_most_mutated_over_all_cohorts(tmp_path):
    path = tmp_path / "d.tsv"
    path.write_text(
        "COHORT\tSymbol\tMUTATIONS\nA\tTP53\t5.0\nB\tKRAS\t6\nB\tTP53\t2\nA\tAPC\t\nA\tPTEN\t6\nA\tZ\t.5\n"
    )
    assert driver_genes(path, 3) == ["TP53", "KRAS", "PTEN"]
    assert driver_genes(path, 99)[3:] == ["Z", "APC"]
    for text, words in (
        ("gene,samples\nTP53,3\n", "wanted columns symbol and mutations; it has gene, samples"),
        ("cohort,gene,mutations\nA,TP53,3\nB\n", "row 3: 1 fields, the header has 3"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=f"--drivers .*d.tsv.*{words}"):
            driver_genes(path, 3)


def test_intogens_most_mutated_drivers():
    path, total = real("genesets", "intogen_2020_drivers.tsv.gz"), {}
    for row in csv.DictReader(
        io.StringIO(gzip.decompress(path.read_bytes()).decode()), delimiter="\t"
    ):
        total[row["SYMBOL"]] = total.get(row["SYMBOL"], 0) + float(row["MUTATIONS"])
    got = driver_genes(path, DRIVERS)
    assert len(got) == len(set(got)) == 200 and got[0] == "TP53"
    assert min(total[g] for g in got) >= max(v for g, v in total.items() if g not in got)


def test_pairs_of_a_table_worked_by_hand(tmp_path, capsys):
    cohort = tmp_path / "c"
    cohort.mkdir()
    (cohort / "samples.csv").write_text(
        "slide,patient,project,sample,tumor\n"
        + "".join(
            f"{r}\n"
            for r in (
                "a1,A,X,sa,1",
                "a2,A,X,sa,1",
                "a0,A,X,na,0",
                "b1,B,X,sb,1",
                "b0,B,X,nb,0",
                "t1,TCGA-AA-0001,X,TCGA-AA-0001-01A,1",
                "c1,C,X,sc,1",
                "d0,D,X,nd,0",
                "e0,E,X,ne,0",
                "e1,E,X,se,",
                "u,U,X,su,",
            )
        )
    )
    ids = "sa na sb nb TCGA-AA-0001-01A TCGA-AA-0001-01B TCGA-AA-0001-11A sc nd ne se su TCGA-ZZ-9999-01A TCGA-ZZ-9999-11A"
    save_csv(
        cohort / "expression.csv",
        ("sample", "G", "H"),
        [(s, i, 2 * i) for i, s in enumerate(ids.split())],
    )
    p = pairs_of(cohort, argparse.Namespace(slides="tumour"))
    assert p["patients"].tolist() == ["A", "B", "TCGA-AA-0001"] and p["slides"] == [
        ["a1", "a2"],
        ["b1"],
        ["t1"],
    ]
    assert p["tumour"].tolist() == [
        [0, 0],
        [2, 4],
        [4.5, 9],
    ]  # two samples of a patient: their mean
    assert p["normal"].tolist() == [[1, 2], [3, 6], [6, 12]] and p["genes"] == [
        "G",
        "H",
    ]  # which has no slide
    assert [len(names) for names in p["left_out"].values()] == [1, 2, 1, 2, 2]
    assert list(p["left_out"].values()) == [
        ["C"],
        ["D", "E"],
        ["TCGA-ZZ-9999"],
        ["se", "su"],
        ["e1", "u"],
    ]
    say_left_out(p["left_out"])
    said = capsys.readouterr().out
    assert (
        "1 patients with tumour but no normal expression: C" in said
        and "2 patients with normal but no tumour" in said
    )
    assert [s["slide"] for s in p["known"]] == [
        "a1",
        "a2",
        "a0",
        "b1",
        "b0",
        "t1",
        "c1",
        "d0",
        "e0",
    ]
    assert p["tissue"].tolist() == [1, 1, 0, 1, 0, 1, 1, 0, 0]
    both = pairs_of(cohort, argparse.Namespace(slides="both"))
    assert both["slides"] == [["a1", "a2", "a0"], ["b1", "b0"], ["t1"]]
    change_table(
        cohort / "samples.csv",
        lambda rows: [[*r[:3], "sa" if r[0] == "b0" else r[3], r[4]] for r in rows],
    )
    with pytest.raises(InputError, match=r"samples.csv: sample sa is \('A', 1\) and \('B', 0\)"):
        pairs_of(cohort, argparse.Namespace(slides="both"))


def test_genes_without_a_fold_change_in_half_of_the_pairs_are_left_out(changed, tmp_path):
    cohort, o = (
        changed,
        argparse.Namespace(cohort="C", slides="tumour", drivers=None, genes="all", top=3),
    )
    p = pairs_of(cohort, o)
    assert [p["genes"][j] for j in chosen_genes(p, o)] == [
        "UP0",
        "UP1",
        "UP2",
        "NO0",
        "NO1",
        "HALF",
    ]
    assert ["OFF", "SAME"] in p["left_out"].values()
    (tmp_path / "d.csv").write_text("symbol,mutations\nUP1,3\nNO1,9\nZZ,8\nUP0,2\n")
    o.drivers = tmp_path / "d.csv"
    assert [p["genes"][j] for j in chosen_genes(p, o)] == [
        "NO1",
        "UP1",
    ]  # top three: ZZ is not there
    assert p["left_out"]["of the 3 driver genes, without expression"] == ["ZZ"]
