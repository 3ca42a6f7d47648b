"""The verb train: options, tables, features from elsewhere, folds, the ledger, the report."""

import argparse
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import scipy.stats
import torch

import he2rna
import stats
from lab.audit.choices import switches
from lab.audit.ledger import what_saw_whom
from lab.commands.he2rna import main
from lab.files import InputError, load_json
from lab.he2rna.choices import CHOICES
from lab.he2rna.folds import folds_of, split_folds
from lab.tests.helpers import read_csv, real, swap, tile_cloud, write_pyramid
from lab.tests.helpers_he2rna import same_runs, train, write_cohort

SMALL = ("--folds", "3", "--epochs", "2", "--hidden", "8", "--device", "cpu")
EPOCH = ("--epochs", "1")


def report_of(cohort, run="he2rna"):
    return (cohort / "runs" / run / "report.md").read_text()


def folds_of_run(cohort, run="he2rna"):
    return {r["slide"]: r for r in read_csv(cohort / "runs" / run / "folds.csv")}


# ----- Options and choices -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--code colour", "--code colour: features made elsewhere keep the colours"),
        ("--code folds", "--code folds means --folds 5: leave --folds 3 out"),
        ("--code epochs", "--code epochs means --valid 0: leave --valid 0.25 out"),
        ("--code folds --folds 5", "leave --valid 0.25 out"),
        ("--code folds --folds 5 --valid 0 --folds-by site", "leave --folds-by site out"),
        ("--folds-by site", "the patients p00, p01, .* have no TCGA barcode"),
        ("--name a/b", "the name of a folder, not a path"),
    ],
)
def test_options_that_gainsay_each_other_say_so(tmp_path, argv, words):
    write_cohort(tmp_path, np.random.default_rng(0))
    with pytest.raises(InputError, match=words):
        train(tmp_path, *argv.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("argv", ["--epochs 0", "--valid 1", "--lr 0", "--dropout nan", "--ks 1,0"])
def test_numbers_out_of_range_are_argparses_to_refuse(tmp_path, capsys, argv):
    with pytest.raises(SystemExit):
        train(tmp_path, *argv.split())
    option, value = argv.split()
    assert re.search(f"argument {option}: invalid .* value: '{value}'", capsys.readouterr().err)


def test_the_other_sides_of_a_run(tmp_path):
    """genes, epochs, bias, pooled and folds, in runs that learn next to nothing."""
    write_cohort(tmp_path, np.random.default_rng(5), patients=30)
    header, *rows = (tmp_path / "expression.csv").read_text().splitlines()
    for i in range(len(rows)):  # G5 is expressed in a third of the samples
        if i % 3:
            rows[i] = rows[i].rsplit(",", 1)[0] + ",0"
    (tmp_path / "expression.csv").write_text("\n".join([header, *rows]) + "\n")
    few_steps = ("--epochs", "2", "--lr", "1e-9", "--folds", "5", "--valid", ".1")
    turned = ["genes", "epochs", "bias", "pooled"]
    assert train(tmp_path, *few_steps, "--name", "ours") == 0
    theirs = ("--valid", "0", "--name", "turned", "--code", ",".join(turned))
    assert train(tmp_path, *few_steps, *theirs) == 0
    assert train(tmp_path, *few_steps, "--name", "folds", "--code", "folds") == 0

    runs = {name: tmp_path / "runs" / name for name in ("ours", "turned", "folds")}
    saved = {}
    for name, run in runs.items():
        saved[name] = [torch.load(run / f"fold{f}.pt", weights_only=True) for f in range(5)]
    check_genes_and_epochs(tmp_path, saved)
    check_bias(runs, saved)
    check_pooled(runs)
    check_authors_folds(tmp_path, saved["folds"])
    for choice in turned:
        assert f"{choice}: {switches(CHOICES, 'train')[choice]}" in report_of(tmp_path, "turned")
    assert load_json(runs["turned"] / "config.json")["code"] == turned
    for name, argv in (("ours", ("--code", "padding")), ("folds", ())):  # never a mix, either way
        with pytest.raises(InputError, match=r"other settings .*code \["):
            train(tmp_path, *few_steps, "--name", name, *argv)
    tuned = ["finetune", str(tmp_path), "turned", "--ks", "1,5", *EPOCH, "--device", "cpu"]
    assert main(tuned) == 0  # keeps its choices
    assert load_json(tmp_path / "runs" / "turned-finetuned" / "config.json")["code"] == turned
    ledger = "| turned: weights of the network | 24 | 0 of 6 |"
    assert ledger in report_of(tmp_path, "turned-finetuned")


def check_genes_and_epochs(cohort, saved):
    """Unfiltered genes; without validation all training patients learn, to the last epoch."""
    assert saved["ours"][0]["genes"] == [f"G{g}" for g in range(5)]
    assert saved["turned"][0]["genes"] == [f"G{g}" for g in range(6)]
    assert any(r["validates_folds"] for r in folds_of_run(cohort, "ours").values())
    assert not any(r["validates_folds"] for r in folds_of_run(cohort, "turned").values())
    for ours, turned in zip(saved["ours"], saved["turned"], strict=True):
        assert turned["note"]["best_epoch"] == 2
        assert len(turned["saw"]["weights of the network"]) == 24
        assert len(ours["saw"]["weights of the network"]) == 22
        assert len(ours["saw"]["choice of the epoch"]) == 2


def check_bias(runs, saved):
    """The last bias starts at the mean of the training targets, or not."""
    for name, at_the_mean in (("ours", True), ("turned", False)):
        z = np.load(runs[name] / "predictions.npz")
        for fold in saved[name]:
            learned = np.isin(z["patient"], fold["saw"]["weights of the network"])
            bias, mean = fold["model"]["layers.2.bias"].numpy(), z["truth"][learned].mean(0)
            assert np.allclose(bias, mean, atol=1e-3) == at_the_mean


def check_pooled(runs):
    """One R over the test slides of all folds. Authority: SciPy."""
    header = (runs["turned"] / "genes.csv").read_text().splitlines()[0]
    assert header.endswith("significant_bh,R_fold0")
    z = np.load(runs["turned"] / "predictions.npz")
    for row in read_csv(runs["turned"] / "genes.csv"):
        rows = z["project"] == row["project"]
        g = list(z["genes"]).index(row["gene"])
        r = scipy.stats.pearsonr(z["prediction"][rows, g], z["truth"][rows, g])[0]
        assert float(row["R"]) == pytest.approx(r, abs=1e-4)


def check_authors_folds(cohort, saved):
    """Set for set those of the authors' code."""
    rows = list(folds_of_run(cohort, "folds").values())
    patients = np.array([r["patient"] for r in rows])
    for f, (learned, valid, test) in enumerate(stats.authors_folds(patients)):
        assert [i for i, r in enumerate(rows) if r["test_fold"] == str(f)] == test.tolist()
        chooses = [i for i, r in enumerate(rows) if str(f) in r["validates_folds"].split()]
        assert chooses == valid.tolist()
        assert saved[f]["saw"]["weights of the network"] == sorted(patients[learned])


# ----- Tables and features -----------------------------------------------------------------------


def test_slides_without_features_or_expression_are_listed(tmp_path, capsys):
    write_cohort(tmp_path, np.random.default_rng(3))
    (tmp_path / "h5" / "s03_0.h5").unlink()
    *table, last = (tmp_path / "expression.csv").read_text().splitlines()
    (tmp_path / "expression.csv").write_text("\n".join([*table, "other" + last[5:]]) + "\n")
    assert train(tmp_path, *EPOCH) == 1
    said, report = capsys.readouterr(), report_of(tmp_path)
    assert "1 expression rows (slide) without a slide: other" in said.out
    for text in (said.out, report):
        assert "1 slides without expression: s11_0" in text
    assert "failed: s03_0: no file" in said.err
    assert "slide s03_0 failed" in report
    assert "10 slides of 10 patients" in report


def test_one_slide_of_another_encoder_and_too_few_left(tmp_path, capsys):
    write_cohort(tmp_path, np.random.default_rng(2), patients=6)
    for slide, features in (
        ("s00_0", np.arange(12.0).reshape(4, 3)),
        ("s01_0", np.eye(4, 8) * 1e6),
    ):
        with h5py.File(tmp_path / "h5" / f"{slide}.h5", "w") as h:
            h["features"], h["coords"] = features.astype(np.float32), tile_cloud(4)
    assert train(tmp_path, *EPOCH) == 1
    said = capsys.readouterr().err
    assert "failed: s00_0: 3 features a tile, most slides have 8" in said
    assert "s01_0.h5: features up to 1e+06 in 4 of 4 tiles" in said
    for i in (2, 3, 4):
        (tmp_path / "h5" / f"s0{i}_0.h5").unlink()
    with pytest.raises(InputError, match="fewer than 2 patients left to train and validate on"):
        train(tmp_path, *EPOCH, "--name", "few")


def test_names_belong_to_the_data_of_a_run_and_its_place_does_not(tmp_path):
    cohort = tmp_path / "moved"
    write_cohort(tmp_path / "c", np.random.default_rng(2))
    assert train(tmp_path / "c", *EPOCH) == 0
    (tmp_path / "c").rename(cohort)
    assert train(cohort, *EPOCH) == 0
    for name, old, new in (("expression.csv", "G0,G1", "G1,G0"), ("samples.csv", ",X", ",Z")):
        text = (cohort / name).read_text()
        (cohort / name).write_text(text.replace(old, new))
        with pytest.raises(InputError, match=r"other settings .data"):
            train(cohort, *EPOCH)
        (cohort / name).write_text(text)


def test_a_features_folder_may_be_named_as_an_encoder(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(2))
    (tmp_path / "h5").rename(tmp_path / "resnet50")
    monkeypatch.chdir(tmp_path)
    assert main(["train", ".", "--features", "resnet50", *SMALL]) == 0
    assert len(list((tmp_path / "supertiles" / "resnet50-h5").glob("*.npz"))) == 12


@pytest.fixture
def clam(tmp_path):
    """A cohort as CLAM leaves it: pt_files/ without coordinates, h5/ with them, one slide file."""
    write_cohort(tmp_path, np.random.default_rng(0), tiles=120)
    (tmp_path / "slides").mkdir()
    (tmp_path / "pt_files").mkdir()
    for path in (tmp_path / "h5").iterdir():
        with h5py.File(path, "a") as h:
            features = torch.from_numpy(h["features"][()])
            h["coords"][()] = np.stack(np.divmod(np.arange(len(features)), 12), 1) * 100
        torch.save(features, tmp_path / "pt_files" / f"{path.stem}.pt")
    pink = np.full((1400, 1200, 3), (225, 150, 185), np.uint8)
    write_pyramid(tmp_path / "slides" / "s00_0.tif", pink)
    return tmp_path


def test_pt_features_train_and_predict_and_maps_want_coordinates(clam, capsys):
    assert main(["train", str(clam), "--features", str(clam / "pt_files"), *SMALL]) == 0
    said = "12 slides have no coordinates, their super-tiles are runs of neighbouring rows: s00_0"
    assert said in capsys.readouterr().out
    assert "elsewhere (.pt)" in report_of(clam)
    run = clam / "runs" / "he2rna"
    assert main(["predict", str(run), "all", "--device", "cpu"]) == 0
    z = np.load(run / "predictions.npz")
    want = z["prediction"][z["slide"].tolist().index("s03_0")]
    rows = read_csv(run / "predict" / "s03_0.csv")
    assert np.allclose([float(r["log10_1p_fpkm_uq"]) for r in rows], want, atol=2e-5)
    slide = str(clam / "pt_files" / "s03_0.pt")
    assert main(["predict", str(run), slide, "--device", "cpu"]) == 0
    tune = ["finetune", str(clam), "he2rna", "--ks", "1,5", *EPOCH, "--device", "cpu"]
    assert main(tune) == 0
    capsys.readouterr()

    tuned = clam / "runs" / "he2rna-finetuned"
    heatmap = ["heatmap", str(tuned), "s00_0", "--genes", "G0", "--device", "cpu"]
    assert main(heatmap) == 1
    words = "s00_0.pt has no coordinates: a map needs them, from an .h5 of the same slide"
    assert words in capsys.readouterr().err
    (clam / "h5").rename(clam / "h5_files")
    assert main(heatmap) == 0
    assert "the pitch of their grid; --tile-um says otherwise" in capsys.readouterr().out
    assert main([*heatmap, "--tile-um", "40"]) == 0
    report = tuned / "heatmaps" / "G0" / "s00_0" / "report.md"
    assert "tiles of 40 µm" in report.read_text()


def test_coordinates_that_are_found_make_other_supertiles_and_a_copy_makes_none(clam, capsys):
    def made():
        paths = (clam / "supertiles").rglob("*.npz")
        return {path: path.stat().st_mtime_ns for path in paths}

    def train_on(folder):
        features = str(folder / "pt_files")
        assert main(["train", str(clam), "--features", features, *SMALL, "--name", "placed"]) == 0

    assert main(["train", str(clam), "--features", str(clam / "pt_files"), *SMALL]) == 0
    first = made()
    (clam / "h5").rename(clam / "h5_files")
    capsys.readouterr()
    train_on(clam)
    second = made()
    assert second.keys() == first.keys() and all(second[p] > first[p] for p in first)
    assert "no coordinates" not in capsys.readouterr().out
    for name in ("pt_files", "h5_files"):
        shutil.copytree(clam / name, clam / "copy" / name)
    train_on(clam / "copy")
    assert made() == second


# ----- Folds and the ledger ----------------------------------------------------------------------


def test_folds_need_patients():
    def folds(n, k):
        samples = []
        for i in range(2 * n):
            samples.append({"slide": str(i), "patient": f"p{i % n}", "project": "X"})
        return folds_of(samples, argparse.Namespace(folds=k, seed=0, code=[], folds_by="patient"))

    assert set(folds(5, 5)) == set(range(5))
    for n, k, words in (
        (4, 5, "4 patients don't go into --folds 5: --folds 4 would work"),
        (3, 2, "--folds 3 would work"),
        (2, 2, "too few"),
    ):
        with pytest.raises(InputError, match=words):
            folds(n, k)


def test_a_single_project_keeps_the_folds_of_all(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(2), patients=14, per_patient=2)
    assert train(tmp_path, *EPOCH, "--name", "all") == 0
    assert train(tmp_path, *EPOCH, "--name", "x", "--project", "X") == 0
    every, one = (folds_of_run(tmp_path, name) for name in ("all", "x"))
    assert len(every) == 28 and len(one) == 14
    for slide, row in one.items():
        assert row["test_fold"] == every[slide]["test_fold"]
    for slide, row in every.items():  # a patient's slides stay together
        assert row["test_fold"] == every[slide[:-1] + "0"]["test_fold"]


def test_the_certificate_of_the_folds(tmp_path):
    """Authority: SciPy's chi-square."""
    write_cohort(tmp_path, np.random.default_rng(2), patients=14)
    assert train(tmp_path, *EPOCH) == 0
    text = (tmp_path / "runs" / "he2rna" / "folds.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith(("| X", "| Y"))]
    counts = np.array([[int(n) for n in line.split("|")[2:5]] for line in lines])
    chi2, p = scipy.stats.chi2_contingency(counts)[:2]
    line = f"Chi-square of projects against folds {chi2:.2f}, 2 degrees of freedom, p = {p:.2g}"
    assert counts.sum() == 14 and "by patient" in text
    assert line in text and line in report_of(tmp_path)


def test_folds_by_site(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(2), patients=14, per_patient=2)
    sites = "AABBBCDDDDEFFG"
    table = (tmp_path / "samples.csv").read_text()
    named = re.sub(r",p(\d\d)", lambda m: f",TCGA-{sites[int(m[1])] * 2}-{m[1]}", table)
    (tmp_path / "samples.csv").write_text(named)
    assert train(tmp_path, *EPOCH, "--folds-by", "site") == 0
    folds = {}
    for row in folds_of_run(tmp_path).values():
        folds.setdefault(row["patient"][5:7], set()).add(row["test_fold"])
    assert len(folds) == 7 and all(len(of_site) == 1 for of_site in folds.values())
    assert set.union(*folds.values()) == {"0", "1", "2"}
    assert "by site" in report_of(tmp_path)
    with pytest.raises(InputError, match=r"the sites .* fill only 7 of --folds 8: take fewer"):
        train(tmp_path, "--name", "many", "--folds-by", "site", "--folds", "8")
    (tmp_path / "samples.csv").write_text(named.replace("TCGA-GG-13", "patient13"))
    with pytest.raises(InputError, match="the patients patient13 have no TCGA barcode"):
        train(tmp_path, "--name", "odd", "--folds-by", "site")


def ledger(cohort, run):
    """What a report says above its first section, and under What saw whom."""
    text = report_of(cohort, run)
    return text.split("\n## ")[0], text.split("## What saw whom")[1].split("## ")[0]


def test_the_ledger_says_what_saw_test_patients(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(2), patients=12, per_patient=2)
    assert train(tmp_path, *EPOCH) == 0
    assert train(tmp_path, *EPOCH, "--name", "none", "--code", "genes") == 0
    top, section = ledger(tmp_path, "he2rna")
    assert "**Steps that saw test patients: gene filter, decoys**" in top
    assert "| gene filter | 12 | 4 of 4 | as the paper words it" in section
    top, unfiltered = ledger(tmp_path, "none")
    assert "**Steps that saw test patients: decoys**" in top and "gene filter" not in unfiltered
    steps = ("start of the last bias", 6), ("weights of the network", 6), ("choice of the epoch", 2)
    for step, n in steps:
        for text in (section, unfiltered):
            assert f"| {step} | {n} | 0 of 4 |  |" in text
    assert "by design" in unfiltered


@pytest.mark.parametrize("step", ["weights of the network", "choice of the epoch"])
def test_the_ledger_catches_a_planted_leak(tmp_path, monkeypatch, step):
    write_cohort(tmp_path, np.random.default_rng(2), patients=12, per_patient=2)

    honest = split_folds

    def leaking(data, o):
        splits = []
        for learned, valid, test in honest(data, o):
            if step == "weights of the network":
                splits.append((np.r_[learned, test[:2]], valid, test))
            else:
                splits.append((learned, test, test))
        return splits

    swap(monkeypatch, "lab.he2rna.folds", "split_folds", leaking)
    assert train(tmp_path, *EPOCH, "--code", "genes,bias") == 0
    top, section = ledger(tmp_path, "he2rna")
    assert f"**Steps that saw test patients: decoys, {step}**" in top
    assert re.search(rf"\| {step} \| \d \| \d of 4 \| \*\*a leak\*\* \|", section)


def test_what_saw_whom():
    ledgers = [{"a": ["p", "q"], "c": ["q"]}, {"a": ["r"], "b": ["q"]}]
    rows, leaks = what_saw_whom(ledgers, [["q"], ["r", "s"]], {"c": None})
    assert leaks == ["a"]
    assert rows == [
        ("a", "1–2", "1 of 1–2", "**a leak**"),
        ("c", "0–1", "0–1 of 1–2", "by design: it judges, nothing learns from it"),
        ("b", "0–1", "0 of 1–2", ""),
    ]


# ----- The command itself, and a real cohort -----------------------------------------------------


def test_killed_training_goes_on(tmp_path):
    """SIGTERM of the real command; SIGKILL is tested with every step."""
    write_cohort(tmp_path, np.random.default_rng(1), patients=30)
    words = f"train {tmp_path} --features {tmp_path / 'h5'} --hidden 32 --folds 3 --epochs 20"
    command = [*words.split(), "--device", "cpu", "--name"]
    program = [sys.executable, he2rna.__file__, *command, "cut"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "epoch   1/20" in line:  # all others come a minute later, in a pipe
            process.terminate()
            break
    assert process.wait() == 143
    cut, whole = (tmp_path / "runs" / name for name in ("cut", "whole"))
    assert not (cut / "lock").exists()
    assert main([*command, "cut"]) == 0
    assert main([*command, "whole"]) == 0
    same_runs(whole, cut)


def test_real_breast_cohort_from_features_made_elsewhere(tmp_path):
    """her2st, whole sections held out: the signal is weak but there."""
    source = real("her2st")
    for name in ("samples.csv", "expression.csv.gz"):
        shutil.copyfile(source / name, tmp_path / name)
    few = "--folds 4 --epochs 12 --hidden 256,256 --lr 1e-3 --device cpu"
    assert main(["train", str(tmp_path), "--features", str(source / "h5"), *few.split()]) == 0
    rows = read_csv(tmp_path / "runs" / "he2rna" / "genes.csv")
    sections = {(r["patient"], r["test_fold"]) for r in folds_of_run(tmp_path).values()}
    assert len(sections) == 4
    assert {(r["n"], r["slides"], r["p_decoys"]) for r in rows if r["R_fold3"]} >= {("4", "45", "")}
    assert not any(r["p_decoys"] or r["p_t"] for r in rows)  # no fold has three patients
    assert np.mean([float(r["R"]) for r in rows if r["R"]]) > 0.03
