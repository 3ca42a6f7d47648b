"""lab.tests.test_histcode_expression"""

import json
import shutil

import h5py
import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import torch
from PIL import Image

from lab.commands.histcode.expression import GENE_COLUMNS, enrich_best, fold_r
from lab.files import InputError, save_file
from lab.histcode.bags import left_out_lines
from lab.histcode.pairs import judge_genes, pair_features
from lab.histcode.splits import roles
from lab.tests.helpers import (
    MODELS,
    change_table,
    express,
    folds_in,
    read_csv,
    section,
    swap,
    write_pairs,
)


def test_genes_are_judged_as_scipy_judges_them(monkeypatch):
    rng = np.random.default_rng(0)
    n, G = 20, 6
    y = rng.normal(size=(n, G))
    prediction, label = (
        y + rng.normal(0, [0.5, 1, 2, 5, 1, 1], (n, G)),
        (rng.random((n, G)) < 0.7).astype(float),
    )
    y[:3, 1], y[5:, 2], y[2:, 3], label[:4, 0], label[:, 5] = np.nan, np.nan, np.nan, np.nan, np.nan
    guess = rng.random((n, G)) < 0.5
    swap(monkeypatch, "stats", "random_baseline", lambda truth, rng: np.sin(7 * truth))
    f, S = judge_genes(prediction, y, guess, label, None), scipy.stats
    assert f["n"].tolist() == [20, 17, 5, 2, 20, 20]
    assert all(np.isnan(f[k][3]) for k in ("r", "rho", "p", "error_p", "better", "baseline"))
    tested = [0, 1, 2, 4, 5]
    for j in tested:
        p, t = (v[~np.isnan(y[:, j]), j] for v in (prediction, y))
        error, base = np.abs(p - t), np.abs(np.sin(7 * t) - t)
        d = error - base
        ranks = S.rankdata(np.abs(d))
        want = dict(
            r=S.pearsonr(p, t)[0],
            rho=S.spearmanr(p, t)[0],
            p=min(1, 2 * S.pearsonr(p, t, alternative="greater")[1]),
            baseline=S.pearsonr(np.sin(7 * t), t)[0],
            location_p=S.wilcoxon(p, np.sin(7 * t))[1],
            error_p=S.wilcoxon(error, base)[1],
            better=ranks[d < 0].sum() > ranks[d > 0].sum(),
        )
        for k, v in want.items():
            assert f[k][j] == pytest.approx(float(v), rel=1e-6), (k, j)
        known = ~np.isnan(label[:, j])
        hits = [guess[i, j] == label[i, j] for i in range(n) if known[i]]
        share = label[known, j].mean() if known.any() else np.nan
        assert np.allclose(
            (f["accuracy"][j], f["positive"][j], f["majority"][j]),
            (np.mean(hits) if hits else np.nan, share, max(share, 1 - share)),
            equal_nan=True,
        )
    for k, p in (("bh", "p"), ("location_bh", "location_p"), ("error_bh", "error_p")):
        assert np.allclose(
            f[k][tested], S.false_discovery_control(f[p][tested]), rtol=1e-6
        ) and np.isnan(f[k][3])
    r = fold_r(prediction[:, :3], y[:, :3], part := np.arange(n) // 4 % 4)  # folds of 8, 4, 4, 4
    for j in range(3):
        rows = [np.flatnonzero(part == f) for f in range(4)]
        want = [
            S.pearsonr(prediction[i, j], y[i, j])[0] for i in rows if not np.isnan(y[i, j]).any()
        ]
        assert r[j] == pytest.approx(np.mean(want)) if want else np.isnan(r[j])
    assert np.isnan(fold_r(prediction[:4], y[:4], np.arange(4))).all()  # folds of one have no R


def test_each_pairs_tiles_are_read_once_a_fold(tmp_path, monkeypatch):
    cohort, read, real = write_pairs(tmp_path / "c"), [], pair_features
    swap(
        monkeypatch,
        "lab.histcode.pairs",
        "pair_features",
        lambda h, a: (read.append(h), real(h, a))[1],
    )
    swap(monkeypatch, "lab.commands.histcode.expression", "write_expression", lambda *_: None)
    assert express(cohort) == 0
    patients, z = 9, np.load(cohort / "runs" / "expression" / "predictions.npz")
    assert (
        len(z["patient"]) == patients and len(read) == 3 * patients + patients
    )  # predict_pair makes its own


@pytest.mark.parametrize("name", ["linear", "joint", "per-gene"])
def test_the_test_patients_features_and_expression_teach_the_fold_nothing(
    changed, tmp_path, monkeypatch, name
):
    before, run = folds_in(changed / "runs" / name), changed / "runs" / name
    test, f = before[1]["test_patients"], 1
    cohort = tmp_path / "c"
    shutil.copytree(changed, cohort, ignore=shutil.ignore_patterns("runs"))
    for r in read_csv(run / "folds.csv"):
        if r["patient"] in test:
            with h5py.File(cohort / "h5" / f"{r['slide']}.h5", "r+") as h:
                h["features"][:] = h["features"][:] * 3 - 1
    other = lambda row: [
        row[0],
        *(float(v) * (3 + j % 2) for j, v in enumerate(row[1:7])),
        *row[7:],
    ]
    theirs = [f"{patient}-01A" for patient in test]
    change_table(
        cohort / "expression.csv", lambda rows: [other(r) if r[0] in theirs else r for r in rows]
    )
    swap(monkeypatch, "lab.commands.histcode.expression", "write_expression", lambda *_: None)
    swap(monkeypatch, "lab.commands.histcode.expression", "GENES_AT_ONCE", 2)
    assert express(cohort, "--name", name, *MODELS[name]) == 0
    z, old = (np.load(c / "runs" / name / "predictions.npz") for c in (cohort, changed))
    own = z["part"] == f
    assert all(
        not np.allclose(z[k][own], old[k][own], equal_nan=True) for k in ("truth", "prediction")
    )
    after = folds_in(cohort / "runs" / name)
    kept = ("weights", "bias", "label_weights", "label_bias", "epochs")
    own = lambda s: dict(s["model"], **{k: s[k] for k in kept if k in s})
    same = lambda a, b: all(torch.equal(v, own(b)[k]) for k, v in own(a).items())
    assert same(before[f], after[f]) and not same(
        before[2], after[2]
    )  # they are the third fold's training part


@pytest.mark.parametrize("name", ["linear", "joint", "per-gene"])
def test_an_interrupted_expression_ends_as_one_that_was_not(changed, tmp_path, monkeypatch, name):
    cohort = tmp_path / "c"
    shutil.copytree(changed, cohort, ignore=shutil.ignore_patterns("runs"))
    swap(monkeypatch, "lab.commands.histcode.expression", "write_expression", lambda *_: None)
    swap(monkeypatch, "lab.commands.histcode.expression", "GENES_AT_ONCE", 2)
    save, saves = save_file, []

    def breaks(path, write):
        save(path, write)
        saves.append(path.name)
        if len(saves) == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as m:
        swap(m, "lab.files", "save_file", breaks)
        with pytest.raises(KeyboardInterrupt):
            express(cohort, "--name", name, *MODELS[name])
    there = {p.name for p in (cohort / "runs" / name).glob("fold*.pt")}  # the next one is begun
    assert there == (
        {"fold0.pt", "fold1.0.state.pt"}
        if name == "per-gene"
        else {"fold0.pt", "fold1.pt", "fold2.0.state.pt"}
    )
    done = (cohort / "runs" / name / "fold0.pt").stat().st_mtime_ns
    assert express(cohort, "--name", name, *MODELS[name]) == 0
    assert (cohort / "runs" / name / "fold0.pt").stat().st_mtime_ns == done
    z, old = (np.load(c / "runs" / name / "predictions.npz") for c in (cohort, changed))
    assert all(np.array_equal(z[k], old[k], equal_nan=z[k].dtype.kind == "f") for k in old.files)
    assert not list(cohort.glob("runs/*/*.state.pt"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", ["linear", "joint", "per-gene"])
def test_a_gene_that_no_training_patient_of_a_fold_knows_stops_nothing(
    changed, tmp_path, monkeypatch, name
):
    cohort, z = tmp_path / "c", np.load(changed / "runs" / name / "predictions.npz")
    shutil.copytree(changed, cohort, ignore=shutil.ignore_patterns("runs"))
    gone = {
        f"{who}-11A" for who in z["patient"][z["part"] == 2]
    }  # fold 0 tests 0, validates 1, trains on 2
    change_table(
        cohort / "expression.csv",
        lambda rows: [[*r[:4], "0", *r[5:]] if r[0] in gone else r for r in rows],
    )
    swap(monkeypatch, "lab.commands.histcode.expression", "write_expression", lambda *_: None)
    assert express(cohort, "--name", name, *MODELS[name]) == 0
    new = np.load(cohort / "runs" / name / "predictions.npz")
    at, first = new["genes"].tolist().index("NO0"), new["part"] == 0
    assert (
        np.isfinite(np.delete(new["prediction"], at, 1)).all()
        and np.isnan(new["truth"][new["part"] == 2, at]).all()
    )
    others = [j for j in range(len(new["genes"])) if j != at]
    if name != "joint":  # there all genes share their tiles
        assert np.array_equal(
            new["prediction"][first][:, others], z["prediction"][first][:, others]
        )


def test_what_a_run_of_expression_writes(changed, capsys):
    run = changed / "runs" / "linear"
    rows, z = read_csv(run / "genes.csv"), np.load(run / "predictions.npz")
    assert list(rows[0]) == ["gene", *GENE_COLUMNS] and {r["gene"] for r in rows} == set(z["genes"])
    r = [float(row["R"]) for row in rows]
    assert r == sorted(r, reverse=True)
    for row in rows:
        j = z["genes"].tolist().index(row["gene"])
        known = ~np.isnan(z["truth"][:, j])
        truth, prediction, label = z["truth"][known, j], z["prediction"][known, j], z["label"][:, j]
        hits = z["predicted_label"][:, j][~np.isnan(label)] == label[~np.isnan(label)]
        want = dict(
            n=known.sum(),
            R=scipy.stats.pearsonr(prediction, truth)[0],
            spearman=scipy.stats.spearmanr(prediction, truth)[0],
            mean_fc=(10**truth - 1).mean(),
            accuracy=hits.mean(),
            share_label_1=np.nanmean(label),
            majority=max(np.nanmean(label), 1 - np.nanmean(label)),
        )
        assert all(
            float(row[k]) == pytest.approx(v, rel=2e-4, abs=1e-6) for k, v in want.items()
        ), row["gene"]
    report = (run / "report.md").read_text()
    for name in ("r", "accuracy", "fold_change", "scatter"):
        assert Image.open(run / f"{name}.png").size > (300, 300) and f"({name}.png)" in report
    assert (
        "9 pairs of tumour and matched normal tissue, 6 genes" in report
        and "always the commoner label" in report
    )
    assert "OFF, SAME" in report and "- model: linear" in report and "planted" not in report


def rewritten(name, change):
    return lambda cohort: change_table(cohort / name, change)


@pytest.mark.parametrize(
    "argv, words, spoil",
    [
        (*mistake, None)[:3]
        for mistake in (
            (["--ridge", "1", "--model", "attention"], "--ridge: with --model linear"),
            (["--ridge", "auto", "--model", "attention"], "--ridge: with --model linear"),
            (["--ridge", "-1"], "--ridge -1: must lie between 0"),
            (["--per-gene"], "--per-gene: with --model attention"),
            (["--pooling", "max"], "--pooling max: with --model attention"),
            (["--gmt", "nowhere.gmt"], "--gmt: .*No such file.*nowhere.gmt"),
            (["--name", "a/b"], "--name a/b: the name of a folder, not a path"),
            (["--genes", "UP9"], "the expression table has no gene 'UP9'; nearest: UP"),
            (["--folds", "12"], "9 patients don't go into --folds 12"),
            (["--genes", "UP0", "--drivers", "x"], "--drivers and --genes both"),
            (["--drivers", "nowhere.tsv"], "nowhere.tsv: can't be read"),
            (
                ["--drivers", "samples.csv"],
                "--drivers samples.csv: wanted columns symbol and mutations; it has slide, patient",
            ),
            (
                ["--drivers", "d.csv"],
                "--drivers d.csv: none of its genes .TP53. is in the expression table, which has UP0",
                lambda c: (c / "d.csv").write_text("gene,mutations\nTP53,3\n"),
            ),
            (["--genes", "OFF,SAME"], "no gene of 2 has a fold change in half of the 9 pairs"),
            (
                [],
                "trains on slides of one class only .tumour.*--model attention does without",
                rewritten("samples.csv", lambda rows: [r for r in rows if r[4] == "1"]),
            ),
            (
                [],
                "samples.csv: tumor of slide s0_1 is 'perhaps'; wanted 1 or 0",
                rewritten("samples.csv", lambda rows: [[*r[:4], "perhaps"] for r in rows]),
            ),
            (
                [],
                "samples.csv line 2: slide a/s0_1 is a path",
                rewritten("samples.csv", lambda rows: [["a/" + r[0], *r[1:]] for r in rows]),
            ),
            (
                [],
                "0 patients have tumour and normal .*9 have tumour, 0 normal",
                rewritten("expression.csv", lambda rows: rows[::2]),
            ),
            (
                [],
                "expression.csv.*UP2",
                rewritten("expression.csv", lambda rows: [[*r[:3], "-1", *r[4:]] for r in rows]),
            ),
            ([], "c: no expression.csv", lambda c: (c / "expression.csv").unlink()),
        )
    ],
)
def test_expression_says_one_line(tmp_path, monkeypatch, argv, words, spoil):
    cohort = write_pairs(tmp_path / "c")
    monkeypatch.chdir(cohort)
    if spoil:
        spoil(cohort)
    with pytest.raises(InputError, match=words) as e:
        express(cohort, *argv)
    assert "\n" not in str(e.value) and not (cohort / "runs").exists()


def test_slides_of_one_tile_or_nan_are_left_out_with_their_pair_and_named(
    tmp_path, monkeypatch, capsys
):
    cohort = write_pairs(tmp_path / "c", 12)
    with h5py.File(cohort / "h5" / "s1_1.h5", "r+") as h:
        x, coords = h["features"][:1], h["coords"][:1]
        del h["features"], h["coords"]
        h["features"], h["coords"] = x, coords
    with h5py.File(cohort / "h5" / "s3_1.h5", "r+") as h:
        h["features"][4, 2] = np.nan
    left = []
    swap(
        monkeypatch,
        "lab.commands.histcode.expression",
        "write_expression",
        lambda *given: left.append(left_out_lines(given[3])),
    )
    assert express(cohort) == 1
    said = capsys.readouterr()
    assert "s1_1: 1 tile; the highest and the lowest by attention need two" in said.err
    assert "2 of 20 slides failed" in said.err
    assert "s3_1: " in said.err and "s3_1.h5: NaN or infinite feature in tile 4" in said.err
    assert "2 pairs of which a slide failed: TCGA-AA-0001, TCGA-AA-0003" in said.out
    assert "10 pairs, 6 genes, 18 slides" in said.out
    assert any("s1_1 failed: 1 tile" in line for line in left[0])
    z = np.load(cohort / "runs" / "expression" / "predictions.npz")
    assert len(z["patient"]) == 10 and np.isfinite(z["prediction"]).all()


def test_a_run_of_expression_with_other_settings_is_refused(changed, tmp_path, monkeypatch):
    cohort = tmp_path / "c"
    shutil.copytree(changed, cohort)
    before = {p.name: p.read_bytes() for p in (cohort / "runs" / "ridge").iterdir()}
    for argv, words in (
        (["--ridge", "3"], "ridge"),
        (["--epochs", "4"], "epochs"),
        (["--genes", "UP0,UP1"], "genes"),
        (["--seed", "1"], "seed"),
        (["--slides", "both"], "slides"),
        (["--model", "attention", "--ridge", "0"], "model"),
    ):
        with pytest.raises(InputError, match=f"other settings .*{words}.*choose another --name"):
            express(cohort, "--name", "ridge", "--ridge", "auto", *argv)
    twice = lambda row: [row[0], *(2 * float(v) for v in row[1:])]
    change_table(cohort / "expression.csv", lambda rows: [*rows[:-2], twice(rows[-2]), rows[-1]])
    with pytest.raises(InputError, match="other settings .*data"):
        express(cohort, "--name", "ridge", "--ridge", "auto")
    assert before == {p.name: p.read_bytes() for p in (cohort / "runs" / "ridge").iterdir()}


def test_the_ledger_of_expression_and_stopping_on_test(changed, tmp_path, monkeypatch):
    cohort = tmp_path / "c"
    shutil.copytree(changed, cohort)
    swap(monkeypatch, "lab.histcode.pairs", "SHUFFLES", 2000)
    top, seen = section(cohort / "runs" / "linear")
    assert (
        "**Steps that saw test patients: gene filter**" in top
        and "| gene filter | 9 | 3 of 3 | availability only" in seen
        and "leak" not in seen
    )
    for step in (
        "attention: weights of the network",
        "attention: choice of the epoch",
        "labels: choice of the epoch",
        "standardisation of the features",
    ):
        assert f"| {step} | 3 | 0 of 3 |  |" in seen
    assert (
        "| least squares | 6 | 0 of 3 |  |" in seen
        and "| shuffled patients | 3 | 3 of 3 | by design" in seen
    )
    assert [s["saw"]["penalty"] for s in folds_in(cohort / "runs" / "ridge")] == [
        s["saw"]["least squares"] for s in folds_in(cohort / "runs" / "ridge")
    ]
    assert (
        express(cohort, "--name", "b", "--code", "stop") == 0
        and express(cohort, "--name", "c", "--model", "attention", "--code", "stop") == 0
    )
    top, seen = section(cohort / "runs" / "b")
    assert (
        "test patients: gene filter, attention: choice of the epoch, labels: choice of the epoch**"
        in top
        and "stop: the test part" in top
    )
    assert (
        "| least squares | 6 | 0 of 3 |  |" in seen
        and "| attention: weights of the network | 3 | 0 of 3 |  |" in seen
    )
    top, seen = section(cohort / "runs" / "c")
    assert (
        "test patients: gene filter, choice of the epoch**" in top
        and "| start of the last bias | 3 | 0 of 3 |  |" in seen
    )
    z = np.load(cohort / "runs" / "c" / "predictions.npz")
    joint = folds_in(cohort / "runs" / "joint")
    for f, s in enumerate(folds_in(cohort / "runs" / "c")):
        assert s["valid_patients"] == s["test_patients"] and set(s["test_patients"]) <= set(
            s["learned_from"]
        )
        test = z["part"] == f
        error = (np.where(np.isnan(z["truth"]), 0, z["prediction"] - z["truth"])[test] ** 2).sum(
            1
        ) / (~np.isnan(z["truth"][test])).sum(1)
        assert s["losses"].min().item() == pytest.approx(
            error.mean(), rel=1e-3
        ) and not torch.equal(s["losses"], joint[f]["losses"])
    with pytest.raises(InputError, match="other settings .code .'stop'. -> "):
        express(cohort, "--name", "c", "--model", "attention")
    honest = roles
    swap(
        monkeypatch,
        "lab.histcode.splits",
        "roles",
        lambda *a: (lambda train, valid, test: (train, np.r_[valid, test[:1]], test))(*honest(*a)),
    )
    assert express(cohort, "--name", "leaky") == 0
    assert "| least squares | 7 | 1 of 3 | **a leak** |" in section(cohort / "runs" / "leaky")[1]


def test_expressions_choices_are_runs_of_their_options(changed, tmp_path, monkeypatch):
    cohort = tmp_path / "c"
    shutil.copytree(changed, cohort)
    swap(monkeypatch, "lab.commands.histcode.expression", "GENES_AT_ONCE", 2)
    swap(monkeypatch, "lab.commands.histcode.expression", "write_expression", lambda *_: None)
    assert express(cohort, "--name", "a", "--code", "model", "--genes", "UP0,NO0,HALF") == 0
    assert express(cohort, "--name", "b", "--code", "embed,slides", "--genes", "UP0") == 0
    assert (
        express(cohort, "--name", "c", "--embed", "512", "--slides", "both", "--genes", "UP0") == 0
    )
    z = {
        name: np.load(cohort / "runs" / name / "predictions.npz")["prediction"]
        for name in ("a", "b", "c", "per-gene")
    }
    assert (
        np.array_equal(z["a"], z["per-gene"])
        and np.array_equal(z["b"], z["c"])
        and folds_in(cohort / "runs" / "b")[0]["embed"] == [512]
    )
    config = json.loads((cohort / "runs" / "b" / "config.json").read_text())
    assert config["code"] == ["embed", "slides"] and config["slides"] == "both"


def test_gene_sets_of_the_best_genes_are_fishers(tmp_path, monkeypatch, capsys):
    swap(monkeypatch, "lab.commands.histcode.expression", "BEST_GENES", 4)
    ranked = [f"G{i}" for i in range(12)]
    sets = dict(
        first=("G0", "G1", "G2", "X"), mixed=("G3", "G4", "G11"), none=("Y",), last=("G9", "G10")
    )
    text = enrich_best(tmp_path, ranked, sets)
    rows = {r["set"]: r for r in read_csv(tmp_path / "enrichment.csv")}
    assert list(rows) == ["first", "mixed", "last"]  # by p; of the fourth no gene was tested
    for name, (hits, size) in dict(first=(3, 3), mixed=(1, 3), last=(0, 2)).items():
        p = scipy.stats.fisher_exact(
            [[hits, size - hits], [4 - hits, 12 - 4 - size + hits]], "greater"
        )[1]
        r = rows[name]
        assert (int(r["hits"]), int(r["genes tested"])) == (hits, size) and float(
            r["p"]
        ) == pytest.approx(p, rel=1e-3)
        assert (
            float(r["expected"]) == pytest.approx(size * 4 / 12, rel=1e-3)
            and len(r["hit genes"].split()) == hits
        )
    assert rows["first"]["hit genes"] == "G0 G1 G2" and (tmp_path / "enrichment.png").is_file()
    assert "of 3 sets with a tested gene" in capsys.readouterr().out
    assert any("| first | 3 | 3 | 1.0 |" in line for line in text)
