"""histcode.py expression: runs of each model, what they know, what they write, what they refuse.

Authorities: SciPy for every figure of a gene, SlideModel and NumPy for predictions.
"""

import argparse
import json
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

import he2rna
import histcode
import stats
from lab.files import InputError, save_file
from lab.histcode import expression
from lab.histcode.decoys import decoy_p, loss_beside, loss_of_genes, r_of_known, targets_beside
from lab.histcode.expression import compared_over_parts, judge, r_of_parts, r_within_folds
from lab.histcode.expression_report import COLUMNS, enriched_lines
from lab.histcode.splits import roles
from lab.ridge import PENALTIES
from lab.tests.helpers import read_csv, swap
from lab.tests.helpers_histcode import (
    MODELS,
    change_table,
    express,
    folds_in,
    opening_of,
    section,
    spoken_by_hand,
    tiles_in,
    write_pairs,
)

LEARNED = (  # beside the networks
    *("weights", "bias", "label_weights", "label_bias"),
    *("epochs", "losses", "penalty"),
)


@pytest.fixture
def cohort(changed, tmp_path):
    """The cohort of the finished runs, without them."""
    shutil.copytree(changed, tmp_path / "c", ignore=shutil.ignore_patterns("runs"))
    return tmp_path / "c"


@pytest.fixture
def quiet(monkeypatch):
    """Runs without a report, and per-gene networks in two blocks, as in the finished runs."""
    swap(monkeypatch, "lab.histcode.expression_report", "write_report", lambda *_: None)
    swap(monkeypatch, "lab.histcode.expression", "networks_at_once", lambda *_: 2)
    swap(monkeypatch, "lab.histcode.ends", "SHUFFLES", 2000)


def predictions(cohort, name):
    return np.load(cohort / "runs" / name / "predictions.npz")


# ----- Figures ------------------------------------------------------------------------------------


def test_genes_are_judged_as_scipy_judges_them(monkeypatch):
    S, rng = scipy.stats, np.random.default_rng(0)
    n, G = 20, 6
    y = rng.normal(size=(n, G))
    prediction = y + rng.normal(0, [0.5, 1, 2, 5, 1, 1], (n, G))
    label = (rng.random((n, G)) < 0.7).astype(float)
    y[:3, 1] = y[5:, 2] = y[2:, 3] = label[:4, 0] = label[:, 5] = np.nan
    guess = rng.random((n, G)) < 0.5
    part = np.arange(n) // 4 % 4  # parts of 8, 4, 4, 4
    swap(monkeypatch, "stats", "random_baseline", lambda truth, rng: np.sin(7 * truth))
    pairs = SimpleNamespace(y=y, label=label)
    study = SimpleNamespace(pairs=pairs, bags={"part": part}, targets=y)
    o = SimpleNamespace(seed=0, per_gene=False)
    found = judge(study, [{}], prediction, guess, o)  # no ends, no decoys: p is the t's
    assert found["n"].tolist() == [20, 17, 5, 2, 20, 20]
    assert all(np.isnan(found[k][3]) for k in ("r", "rho", "p", "error_p", "better", "baseline"))
    tested = [0, 1, 2, 4, 5]
    for j in tested:
        known = ~np.isnan(y[:, j])
        p, t = prediction[known, j], y[known, j]
        random = np.sin(7 * t)
        d = np.abs(p - t) - np.abs(random - t)
        ranks = S.rankdata(np.abs(d))
        want = {
            "r": S.pearsonr(p, t)[0],
            "rho": S.spearmanr(p, t)[0],
            "p": S.pearsonr(p, t, alternative="greater")[1],
            "baseline": S.pearsonr(random, t)[0],
            "location_p": S.wilcoxon(p, random)[1],
            "error_p": S.wilcoxon(np.abs(p - t), np.abs(random - t))[1],
            "better": ranks[d < 0].sum() > ranks[d > 0].sum(),
            "fc": (10**t - 1).mean(),
        }
        for name, value in want.items():
            assert found[name][j] == pytest.approx(float(value), rel=1e-6), (name, j)
        labelled = ~np.isnan(label[:, j])
        hits, share = np.nan, np.nan
        if labelled.any():
            share = label[labelled, j].mean()
            hits = np.mean(guess[labelled, j] == label[labelled, j])
        got = [found[name][j] for name in ("accuracy", "positive", "majority")]
        assert np.allclose(got, (hits, share, max(share, 1 - share)), equal_nan=True)
    for bh, p in (("bh", "p"), ("location_bh", "location_p"), ("error_bh", "error_p")):
        want = S.false_discovery_control(found[p][tested])
        assert np.allclose(found[bh][tested], want, rtol=1e-6) and np.isnan(found[bh][3])
    for j in range(3):
        rows = [np.flatnonzero(part == f) for f in range(4)]
        known = [i for i in rows if not np.isnan(y[i, j]).any()]
        want = [S.pearsonr(prediction[i, j], y[i, j])[0] for i in known] or [np.nan]
        assert found["r_folds"][j] == pytest.approx(np.mean(want), nan_ok=True)
    assert np.isnan(r_within_folds(prediction[:4], y[:4], np.arange(4))).all()  # no R of one


def test_r_of_parts_is_scipys_where_there_are_three_pairs():
    rng = np.random.default_rng(0)
    y, prediction = rng.normal(size=(2, 9, 4))
    part = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    each = [
        [scipy.stats.pearsonr(prediction[part == f, j], y[part == f, j])[0] for j in range(4)]
        for f in (0, 2)
    ]
    assert np.allclose(r_of_parts(prediction, y, part), each)
    assert r_of_parts(prediction, y, np.arange(9) // 2).shape == (0, 4)


def test_models_are_compared_over_the_test_parts():
    """Nadeau and Bengio's standard error, written out; unknown R of a part don't count."""
    r, other = np.random.default_rng(0).normal(0.1, 0.2, (2, 5, 7))
    r[1, 2:] = other[4] = np.nan
    d = r - other
    each = np.array([d[0].mean(), d[1, :2].mean(), d[2].mean(), d[3].mean()])
    error = np.sqrt((1 / 4 + 1 / 3) * each.var(ddof=1))
    t = scipy.stats.t(3, each.mean(), error)
    mean, low, high, p = compared_over_parts(r, other)
    assert (mean, low, high) == pytest.approx((each.mean(), *t.interval(0.95)))
    assert p == pytest.approx(2 * min(t.cdf(0), t.sf(0)))
    assert np.isnan(compared_over_parts(r[3:], other[3:])).all()


def test_gene_sets_of_the_best_genes_are_fishers(tmp_path, monkeypatch, capsys):
    swap(monkeypatch, "lab.histcode.expression_report", "BEST_GENES", 4)
    genes = [f"G{i}" for i in range(13)]
    r = np.r_[np.linspace(0.9, 0.1, 12), np.nan]  # the last one is not tested
    sets = {
        "last": ("G9", "G10"),
        "mixed": ("G3", "G4", "G11"),
        "none": ("Y", "G12"),
        "first": ("G0", "G1", "G2", "X"),
    }
    text = enriched_lines(tmp_path, genes, r, sets, ["SIMULATED cohort"])
    rows = {row["set"]: row for row in read_csv(tmp_path / "enrichment.csv")}
    assert list(rows) == ["first", "mixed", "last", "none"] and rows["none"]["p"] == ""
    for name, hits, size in (("first", 3, 3), ("mixed", 1, 3), ("last", 0, 2)):
        table = [[hits, size - hits], [4 - hits, 12 - 4 - size + hits]]
        row = rows[name]
        assert (int(row["hits"]), int(row["genes tested"])) == (hits, size)
        want = scipy.stats.fisher_exact(table, "greater")[1]
        assert float(row["p"]) == pytest.approx(want, rel=1e-3)
        assert float(row["expected"]) == pytest.approx(size * 4 / 12, rel=1e-3)
        assert len(row["hit genes"].split()) == hits
    assert rows["first"]["hit genes"] == "G0 G1 G2" and (tmp_path / "enrichment.png").is_file()
    assert "4 best of 12 tested genes; 0 of 3 sets with a tested gene" in capsys.readouterr().out
    assert any("| first | 3 | 3 | 1.0 |" in line for line in text)


# ----- What a run knows ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_pair_is_predicted_by_the_model_that_did_not_know_its_patient(changed, name):
    run = changed / "runs" / name
    saved, z = folds_in(run), predictions(changed, name)
    part = {r["patient"]: int(r["part"]) for r in read_csv(run / "folds.csv")}
    assert len(saved) == 3 and sorted(z["patient"]) == sorted(part)
    assert [part[who] for who in z["patient"]] == z["part"].tolist()
    for f, s in enumerate(saved):
        assert s["kind"] == ("linear" if name in ("linear", "ridge") else "attention")
        tested = {who for who in part if part[who] == f}
        assert tested == set(s["test_patients"]) == set(part) - set(s["learned_from"])
        assert not set(s["train_patients"]) & set(s["valid_patients"])
        assert set(s["train_patients"]) | set(s["valid_patients"]) == set(s["learned_from"])
        assert s["genes"] == z["genes"].tolist()
        assert s["penalty"] in PENALTIES if name == "ridge" else s.get("penalty", 0) == 0
    expression = {r["sample"]: r for r in read_csv(changed / "expression.csv")}
    for i, who in enumerate(z["patient"]):
        h = tiles_in(changed, f"s{int(who[-4:])}_1")
        assert np.allclose(z["prediction"][i], spoken_by_hand(saved[part[who]], h)[0], atol=2e-5)
        pair = []
        for end in ("01A", "11A"):
            pair.append(np.array([np.float32(expression[f"{who}-{end}"][g]) for g in z["genes"]]))
        y, label = histcode.fold_change(*pair)
        assert np.allclose(z["truth"][i], y, equal_nan=True, atol=1e-6)
        assert np.array_equal(z["label"][i], label, equal_nan=True)


def test_each_pairs_tiles_are_read_once_a_fold(tmp_path, monkeypatch, quiet):
    cohort, read, end_features = write_pairs(tmp_path / "c"), [], histcode.end_features

    def counting(h, a):
        read.append(len(h))
        return end_features(h, a)

    monkeypatch.setattr(histcode, "end_features", counting)
    assert express(cohort) == 0
    assert len(predictions(cohort, "expression")["patient"]) == 9 and len(read) == 3 * 9


def learned(saved):
    return saved["model"] | {k: torch.as_tensor(saved[k]) for k in LEARNED if k in saved}


def learned_the_same(a, b):
    b = learned(b)
    return all(torch.equal(value, b[name]) for name, value in learned(a).items())


@pytest.mark.parametrize("name", ["linear", "ridge", "joint", "per-gene"])
def test_the_test_patients_features_and_expression_teach_the_fold_nothing(
    changed, cohort, quiet, name
):
    f, before = 1, folds_in(changed / "runs" / name)
    more = MODELS[name]
    if name == "joint":  # decoys give the values of test patients to others
        more = [*more, "--decoys", "0"]
        assert express(cohort, "--name", "before", *more) == 0
        before = folds_in(cohort / "runs" / "before")
    tested = before[f]["test_patients"]
    for r in read_csv(changed / "runs" / name / "folds.csv"):
        if r["patient"] in tested:
            with h5py.File(cohort / "h5" / f"{r['slide']}.h5", "r+") as h:
                h["features"][:] = h["features"][:] * 3 - 1

    def others(rows):
        for r in rows:
            if r[0] in [f"{patient}-01A" for patient in tested]:
                r[1:7] = [float(v) * (3 + j % 2) for j, v in enumerate(r[1:7])]
        return rows

    change_table(cohort / "expression.csv", others)
    assert express(cohort, "--name", name, *more) == 0
    new, old = predictions(cohort, name), predictions(changed, name)
    own = new["part"] == f
    for key in ("truth", "prediction"):
        assert not np.allclose(new[key][own], old[key][own], equal_nan=True)
    after = folds_in(cohort / "runs" / name)
    assert learned_the_same(before[f], after[f])
    assert not learned_the_same(before[2], after[2])  # which trains on them


@pytest.mark.parametrize(
    "name, last, there",
    [
        ("linear", "fold2.0.state.pt", {"fold0.pt", "fold1.pt", "fold2.0.state.pt"}),
        ("joint", "fold1.pt", {"fold0.pt", "fold1.pt", "fold1.0.206.state.pt"}),
        ("per-gene", "fold1.0.2.state.pt", {"fold0.pt", "fold1.0.2.state.pt"}),
    ],
)
def test_an_expression_stopped_after_a_file_ends_as_one_that_was_not(
    changed, cohort, quiet, monkeypatch, name, last, there
):
    save = save_file

    def breaks(path, write):
        save(path, write)
        if path.name == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as m:
        swap(m, "lab.files", "save_file", breaks)
        with pytest.raises(KeyboardInterrupt):
            express(cohort, "--name", name, *MODELS[name])
    run = cohort / "runs" / name
    assert {path.name for path in run.glob("fold*.pt")} == there
    done = (run / "fold0.pt").stat().st_mtime_ns
    assert express(cohort, "--name", name, *MODELS[name]) == 0
    assert (run / "fold0.pt").stat().st_mtime_ns == done
    new, old = predictions(cohort, name), predictions(changed, name)
    for key in old.files:
        assert np.array_equal(new[key], old[key], equal_nan=new[key].dtype.kind == "f"), key
    assert not list(run.glob("*.state.pt"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", ["linear", "joint", "per-gene"])
def test_a_gene_that_no_training_patient_of_a_fold_knows_stops_nothing(
    changed, cohort, quiet, name
):
    old = predictions(changed, name)  # fold 0 tests part 0, validates 1, trains on 2
    gone = {f"{who}-11A" for who in old["patient"][old["part"] == 2]}

    def without(rows):
        return [[*r[:4], "0", *r[5:]] if r[0] in gone else r for r in rows]

    change_table(cohort / "expression.csv", without)
    assert express(cohort, "--name", name, *MODELS[name]) == 0
    new = predictions(cohort, name)
    gene = new["genes"].tolist().index("NO0")
    others = [j for j in range(len(new["genes"])) if j != gene]
    assert np.isfinite(new["prediction"][:, others]).all()
    assert np.isnan(new["truth"][new["part"] == 2, gene]).all()
    if name != "joint":  # there all genes share their tiles
        first, z = new["part"] == 0, new["prediction"]
        assert np.array_equal(z[first][:, others], old["prediction"][first][:, others])


def test_the_ledger_of_expression_and_stopping_on_test(changed, cohort, monkeypatch):
    swap(monkeypatch, "lab.histcode.ends", "SHUFFLES", 2000)
    top, seen = section(changed / "runs" / "linear")
    assert "**Steps that saw test patients: gene filter**" in top and "leak" not in seen
    for row in (
        "gene filter | 9 | 3 of 3 | availability only",
        "attention: weights of the network | 3 | 0 of 3 |  |",
        "attention: choice of the epoch | 3 | 0 of 3 |  |",
        "attention: standardisation of the features | 3 | 0 of 3 |  |",
        "labels: choice of the epoch | 3 | 0 of 3 |  |",
        "least squares | 6 | 0 of 3 |  |",
        "shuffled patients | 3 | 3 of 3 | by design",
    ):
        assert f"| {row}" in seen
    for saved in folds_in(changed / "runs" / "ridge"):
        assert saved["saw"]["penalty"] == saved["saw"]["least squares"]
    attention = ("--model", "attention")
    assert express(cohort, "--name", "b", "--code", "stop") == 0
    assert express(cohort, "--name", "c", *attention, "--code", "stop") == 0
    top, seen = section(cohort / "runs" / "b")
    steps = "gene filter, attention: choice of the epoch, labels: choice of the epoch**"
    assert f"test patients: {steps}" in top and "stop: the test part" in top
    assert "| least squares | 6 | 0 of 3 |  |" in seen
    assert "| attention: weights of the network | 3 | 0 of 3 |  |" in seen
    top, seen = section(cohort / "runs" / "c")
    assert "test patients: gene filter, decoys, choice of the epoch**" in top
    assert "| decoys | 9 | 3 of 3 | each value given to another patient" in seen
    assert "| start of the last bias | 3 | 0 of 3 |  |" in seen
    z, joint = predictions(cohort, "c"), folds_in(changed / "runs" / "joint")
    for f, saved in enumerate(folds_in(cohort / "runs" / "c")):
        assert saved["valid_patients"] == saved["test_patients"]
        assert set(saved["test_patients"]) <= set(saved["learned_from"])
        test = z["part"] == f
        error = np.nanmean((z["prediction"] - z["truth"])[test] ** 2, 1)  # of each pair
        kept = saved["losses"][saved["epochs"] - 1]  # chosen by genes and decoys
        assert kept.item() == pytest.approx(error.mean(), rel=1e-3)
        assert not torch.equal(saved["losses"], joint[f]["losses"])
    with pytest.raises(InputError, match=r"other settings .code .'stop'. -> "):
        express(cohort, "--name", "c", *attention)


def test_a_leak_is_told(cohort, monkeypatch, quiet):
    honest = roles

    def leaky(*given):
        train, valid, test = honest(*given)
        return train, np.r_[valid, test[:1]], test

    swap(monkeypatch, "lab.histcode.splits", "roles", leaky)
    assert express(cohort, "--name", "leaky") == 0
    saved = folds_in(cohort / "runs" / "leaky")[0]
    for step in ("least squares", "attention: choice of the epoch"):
        assert len(set(saved["saw"][step]) & set(saved["test_patients"])) == 1
    assert set(saved["learned_from"]) & set(saved["test_patients"])


# ----- What a run writes --------------------------------------------------------------------------


def test_what_a_run_of_expression_writes(changed):
    run, z = changed / "runs" / "linear", predictions(changed, "linear")
    rows = read_csv(run / "genes.csv")
    assert list(rows[0]) == ["gene", *COLUMNS] and {r["gene"] for r in rows} == set(z["genes"])
    r = [float(row["R"]) for row in rows]
    assert r == sorted(r, reverse=True)
    for row in rows:
        j = z["genes"].tolist().index(row["gene"])
        known = ~np.isnan(z["truth"][:, j])
        truth, prediction, label = z["truth"][known, j], z["prediction"][known, j], z["label"][:, j]
        there = ~np.isnan(label)
        want = {
            "n": known.sum(),
            "R": scipy.stats.pearsonr(prediction, truth)[0],
            "spearman": scipy.stats.spearmanr(prediction, truth)[0],
            "mean_fc": (10**truth - 1).mean(),
            "accuracy": (z["predicted_label"][there, j] == label[there]).mean(),
            "share_label_1": label[there].mean(),
            "majority": max(label[there].mean(), 1 - label[there].mean()),
        }
        for name, value in want.items():
            assert float(row[name]) == pytest.approx(value, rel=2e-4, abs=1e-6), (row["gene"], name)
    report = (run / "report.md").read_text()
    for name in ("r", "accuracy", "fold_change", "scatter"):
        assert Image.open(run / f"{name}.png").size > (300, 300) and f"({name}.png)" in report
    assert "9 pairs of tumour and matched normal tissue, 6 genes" in report
    assert "always the commoner label" in report and "OFF, SAME" in report
    assert "| model | linear |" in report and "planted" not in report
    assert "SIMULATED" not in report and "provenance" not in read_csv(run / "genes.csv")[0]
    opening = opening_of(report)
    hits = sum(float(row["bh"] or 1) < 0.05 for row in rows)
    n = sum(row["R"] != "" for row in rows)
    assert opening["Found"].startswith(f"{hits} of {n} genes are predicted better than chance")
    assert "patients shuffled" in opening["Null"] and "9 pairs" in opening["Patients"]


@pytest.mark.parametrize("per_gene", [False, True])
def test_decoys_of_a_run_decide_and_stay_out_of_its_models(cohort, per_gene):
    """p by hand from the folds' predictions of the decoys; p_t is SciPy's."""
    usual = ("--model", "attention", "--genes", "UP0,HALF", "--epochs", "1")
    argv = [*usual, *["--per-gene"] * per_gene]
    assert express(cohort, "--name", "run", *argv) == 0
    run, z = cohort / "runs" / "run", predictions(cohort, "run")
    n_decoys = 50 if per_gene else he2rna.MIN_DECOYS
    y, part = z["truth"], z["part"]
    truth = targets_beside(y, n_decoys, 0)[:, 2:]
    prediction = np.empty(truth.shape)
    for f, saved in enumerate(folds_in(run)):
        prediction[part == f] = saved["decoys"]
        assert len(spoken_by_hand(saved, tiles_in(cohort, "s0_1"))[0]) == 2
        assert len(saved["epochs"]) == len(saved["losses"].T) == 1 + per_gene
    r, n = r_of_known(z["prediction"], y)
    p = decoy_p(r, n, *r_of_known(prediction, truth), not per_gene)
    of_gene = {row["gene"]: row for row in read_csv(run / "genes.csv")}
    for j, gene in enumerate(z["genes"]):
        known = ~np.isnan(y[:, j])
        t = scipy.stats.pearsonr(z["prediction"][known, j], y[known, j], alternative="greater")
        assert float(of_gene[gene]["p"]) == pytest.approx(p[j], rel=1e-3)
        assert float(of_gene[gene]["p_t"]) == pytest.approx(t[1], rel=1e-3)
    assert f"of {n_decoys} genes whose patients changed places" in (run / "report.md").read_text()


@pytest.mark.parametrize("argv", [("--model", "attention", "--decoys", "7"), ("--decoys", "50")])
def test_decoys_that_are_too_few_or_of_no_network_are_refused(cohort, argv):
    with pytest.raises(InputError, match="--decoys"):
        express(cohort, *argv)
    assert not (cohort / "runs").exists()


def test_p_by_decoys_is_that_of_their_law():
    """Decoys that are chance R of 30 pairs: p of genes is SciPy's t of as many, or of 60."""
    n = 30
    r = stats.r_threshold((np.arange(4000) + 0.5) / 4000, n)  # chance R, evenly
    for m in (n, 60):
        one = np.array([0.1, 0.3, 0.5])
        p = decoy_p(one, np.full(3, m), r, np.full(4000, n), bends=False)
        assert np.allclose(p, stats.pearson_p(one, m), rtol=0.03)
    bound = decoy_p(one, np.full(3, n), r, np.full(4000, n), bends=True)
    assert np.allclose(bound, stats.pearson_p(one, 1 + (n - 1) / 2), rtol=0.03)
    assert np.isnan(decoy_p(one, np.full(3, n), r * np.nan, np.full(4000, 2), False)).all()


def test_the_loss_weighs_decoys_and_what_is_told_is_of_the_genes():
    """By hand."""
    rng = np.random.default_rng(0)
    outputs, y = (torch.from_numpy(rng.normal(size=shape)) for shape in ((3, 1, 7), (3, 7)))
    y[0, 1] = torch.nan
    error = (outputs[:, 0] - y) ** 2
    for n_genes, share in ((6, 1 / 6), (2, 1)):
        genes = error[:, :n_genes].nanmean(1)
        assert torch.allclose(loss_of_genes(n_genes)(outputs, y), genes)
        whole = genes + share * error[:, n_genes:].nanmean(1)
        assert torch.allclose(loss_beside(n_genes, 7 - n_genes)(outputs, y), whole)
    assert loss_beside(6, 0) is None


def test_slides_of_one_tile_or_nan_are_left_out_with_their_pair_and_named(
    tmp_path, monkeypatch, capsys
):
    cohort = write_pairs(tmp_path / "c", 12)
    with h5py.File(cohort / "h5" / "s1_1.h5", "r+") as h:
        one = {name: h[name][:1] for name in ("features", "coords")}
        for name, values in one.items():
            del h[name]
            h[name] = values
    with h5py.File(cohort / "h5" / "s3_1.h5", "r+") as h:
        h["features"][4, 2] = np.nan
    swap(monkeypatch, "lab.histcode.ends", "SHUFFLES", 2000)
    assert express(cohort) == 1
    said = capsys.readouterr()
    assert "s1_1: 1 tile; the highest and the lowest by attention need two" in said.err
    assert "2 of 20 slides failed" in said.err
    assert "s3_1.h5: NaN or infinite feature in tile 4" in said.err
    assert "2 pairs of which a slide failed: TCGA-AA-0001, TCGA-AA-0003" in said.out
    assert "10 pairs, 6 genes, 18 slides" in said.out
    assert "- s1_1 failed: 1 tile" in (cohort / "runs" / "expression" / "report.md").read_text()
    z = predictions(cohort, "expression")
    assert len(z["patient"]) == 10 and np.isfinite(z["prediction"]).all()


def test_expressions_choices_are_runs_of_their_options(changed, cohort, quiet):
    both = ("--embed", "512", "--slides", "both", "--genes", "UP0")
    own = ("--genes", "UP0,NO0,HALF", "--decoys", "0")
    assert express(cohort, "--name", "a", "--code", "model", *own) == 0
    assert express(cohort, "--name", "b", "--code", "embed,slides", "--genes", "UP0") == 0
    assert express(cohort, "--name", "c", *both) == 0
    a, b, c = (predictions(cohort, name)["prediction"] for name in "abc")
    assert np.array_equal(a, predictions(changed, "per-gene")["prediction"])
    assert np.array_equal(b, c)
    assert folds_in(cohort / "runs" / "b")[0]["embed"] == [512]
    config = json.loads((cohort / "runs" / "b" / "config.json").read_text())
    assert config["code"] == ["embed", "slides"] and config["slides"] == "both"


# ----- What is refused ----------------------------------------------------------------------------


def rewritten(name, change):
    return lambda cohort: change_table(cohort / name, change)


MISTAKES = [
    ("--ridge 1 --model attention", "--ridge: with --model linear"),
    ("--ridge auto --model attention", "--ridge: with --model linear"),
    ("--ridge -1", "--ridge -1: must lie between 0"),
    ("--per-gene", "--per-gene, --pooling: with --model attention"),
    ("--pooling max", "--per-gene, --pooling: with --model attention"),
    ("--gmt nowhere.gmt", "--gmt: nowhere.gmt: No such file"),
    ("--name a/b", "--name a/b: the name of a folder, not a path"),
    ("--genes UP9", "the expression table has no gene 'UP9'; nearest: UP"),
    ("--folds 12", "9 patients don't go into --folds 12"),
    ("--genes UP0 --drivers x", "--drivers and --genes both"),
    ("--drivers nowhere.tsv", "nowhere.tsv: can't be read"),
    ("--drivers samples.csv", "samples.csv: wanted columns symbol and mutations; it has slide"),
    ("--drivers d.csv", "d.csv: none of its genes .TP53. is in the expression table, which has UP"),
    ("--genes OFF,SAME", "no gene of 2 has a fold change in half of the 9 pairs"),
]
SPOILT = [
    (
        rewritten("samples.csv", lambda rows: [r for r in rows if r[4] == "1"]),
        "trains on slides of one class only .tumour.*--model attention does without",
    ),
    (
        rewritten("samples.csv", lambda rows: [[*r[:4], "perhaps"] for r in rows]),
        "samples.csv: tumor of slide s0_0 is 'perhaps'; wanted 1 or 0",
    ),
    (
        rewritten("samples.csv", lambda rows: [["a/" + rows[0][0], *rows[0][1:]], *rows[1:]]),
        "samples.csv (line|row) 2: slide a/s0_1 is a path",
    ),
    (
        rewritten("expression.csv", lambda rows: rows[::2]),
        "0 patients have tumour and normal .*9 have tumour, 0 normal",
    ),
    (
        rewritten("expression.csv", lambda rows: [[*r[:3], "-1", *r[4:]] for r in rows]),
        "expression.csv.*UP2",
    ),
    (lambda cohort: (cohort / "expression.csv").unlink(), "c: no expression.csv"),
]


@pytest.mark.parametrize(
    "argv, spoil, words",
    [(argv, None, words) for argv, words in MISTAKES] + [("", *spoilt) for spoilt in SPOILT],
)
def test_expression_says_one_line(tmp_path, monkeypatch, argv, spoil, words):
    cohort = write_pairs(tmp_path / "c")
    (cohort / "d.csv").write_text("gene,mutations\nTP53,3\n")
    monkeypatch.chdir(cohort)
    if spoil:
        spoil(cohort)
    with pytest.raises(InputError, match=words) as e:
        express(cohort, *argv.split())
    assert "\n" not in str(e.value) and not (cohort / "runs").exists()


def test_a_run_of_expression_with_other_settings_is_refused(changed, tmp_path):
    cohort = tmp_path / "c"
    shutil.copytree(changed, cohort)
    run = cohort / "runs" / "ridge"
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for argv, words in (
        ("--ridge 3", "ridge"),
        ("--epochs 4", "epochs"),
        ("--genes UP0,UP1", "genes"),
        ("--seed 1", "seed"),
        ("--slides both", "slides"),
        ("--model attention --ridge 0", "model"),
    ):
        with pytest.raises(InputError, match=f"other settings .*{words}.*choose another --name"):
            express(cohort, "--name", "ridge", "--ridge", "auto", *argv.split())

    def twice(rows):
        rows[-2][1:] = [2 * float(v) for v in rows[-2][1:]]
        return rows

    change_table(cohort / "expression.csv", twice)
    with pytest.raises(InputError, match=r"other settings .*data"):
        express(cohort, "--name", "ridge", "--ridge", "auto")
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}


def test_a_checkpoint_of_an_older_program_is_told(changed, tmp_path):
    cohort = tmp_path / "c"
    shutil.copytree(changed, cohort)
    path = cohort / "runs" / "linear" / "fold1.pt"
    saved = torch.load(path, weights_only=True)
    del saved["prediction"]
    torch.save(saved, path)
    with pytest.raises(
        InputError, match=r"fold1.pt: not a whole checkpoint .*delete it to have it"
    ):
        express(cohort, "--name", "linear")


@pytest.mark.parametrize(
    "features, tiles, hidden", [(256, 50, 64), (1024, 300, 256), (64, 8000, 64)]
)
def test_networks_that_train_together_fit_memory(features, tiles, hidden):
    """As many as both bounds allow: V, U, w and the last layer; what V and U make of 2 bags."""
    o = argparse.Namespace(pooling="attention", embed=(), hidden=hidden, batch=2)
    bags = {"n_features": features, "sums": [(9,), (tiles,)]}
    many = expression.networks_at_once(bags, o)
    parameters = 2 * features * hidden + hidden + features + 1
    sizes = [many * parameters, many * 2 * tiles * 2 * hidden]
    bounds = [expression.PARAMETERS_AT_ONCE, expression.ACTIVATIONS_AT_ONCE]
    assert all(size <= bound for size, bound in zip(sizes, bounds, strict=True))
    one_more = [size * (many + 1) / many for size in sizes]
    assert any(size > bound for size, bound in zip(one_more, bounds, strict=True))
    o.hidden = 2**20
    assert expression.networks_at_once(bags, o) == 1


def test_blocks_of_genes_are_all_genes_and_then_all_decoys():
    blocks = expression.gene_blocks(5, 3, 2)
    assert np.concatenate(blocks).tolist() == list(range(8))
    assert max(map(len, blocks)) == 2
    assert all(block.max() < 5 or block.min() >= 5 for block in blocks)
    assert [len(block) for block in expression.gene_blocks(5, 3, None)] == [8]
    assert [len(block) for block in expression.gene_blocks(5, 0, 9)] == [5]
