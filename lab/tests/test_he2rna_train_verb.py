"""The verb train: options, tables, features from elsewhere, the ledger, the report."""

import argparse
import csv
import re
import subprocess
import sys
import shutil

import h5py
import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import torch

import he2rna
from lab.audit.ledger import what_saw_whom
from lab.commands.he2rna import main
from lab.files import InputError
from lab.he2rna.folds import folds_of, split_folds
from lab.tests.helpers import (
    read_csv,
    real,
    same_runs,
    swap,
    tile_cloud,
    train,
    write_cohort,
    write_pyramid,
)


@pytest.mark.parametrize(
    "argv, words",
    [
        (("--code", "colour"), "--code colour: features made elsewhere keep the colours"),
        (("--code", "folds"), "--code folds means --folds 5: leave --folds 3 out"),
        (("--code", "epochs"), "--code epochs means --valid 0: leave --valid 0.25 out"),
        (("--code", "folds", "--folds", "5"), "leave --valid 0.25 out"),
        (
            ("--code", "folds", "--folds", "5", "--valid", "0", "--folds-by", "site"),
            "leave --folds-by site out",
        ),
        (
            ("--folds-by", "site"),
            "--folds-by site: the patients p00, p01, .* no TCGA barcode",
        ),
    ],
)
def test_switches_that_gainsay_options_say_so(tmp_path, argv, words):
    write_cohort(tmp_path, np.random.default_rng(0))
    with pytest.raises(InputError, match=words):
        train(tmp_path, *argv)
    assert not (tmp_path / "runs").exists()


def test_the_ledger_says_what_saw_test_patients_and_catches_a_planted_leak(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(2), patients=12, per_patient=2)
    section = lambda name: (
        (tmp_path / "runs" / name / "report.md")
        .read_text()
        .split("## What saw whom")[1]
        .split("## ")[0]
    )
    top = lambda name: (tmp_path / "runs" / name / "report.md").read_text().split("\n## ")[0]
    assert (
        train(tmp_path, "--epochs", "1") == 0
        and train(tmp_path, "--epochs", "1", "--name", "none", "--code", "genes") == 0
    )
    assert "**Steps that saw test patients: gene filter**" in top(
        "he2rna"
    ) and "| gene filter | 12 | 4 of 4 | as the paper words it" in section("he2rna")
    for step, n in (
        ("start of the last bias", 6),
        ("weights of the network", 6),
        ("choice of the epoch", 2),
    ):
        assert f"| {step} | {n} | 0 of 4 |  |" in section(
            "he2rna"
        ) and f"| {step} | {n} | 0 of 4 |  |" in section("none")
    assert (
        "saw test patients" not in top("none")
        and "gene filter" not in section("none")
        and "by design" in section("none")
    )
    honest = split_folds
    for step, leak in (
        ("weights of the network", lambda rows, valid, test: (np.r_[rows, test[:2]], valid, test)),
        ("choice of the epoch", lambda rows, valid, test: (rows, test, test)),
    ):
        name = step.split()[0]
        swap(
            monkeypatch,
            "lab.he2rna.folds",
            "split_folds",
            lambda *a: [leak(*split) for split in honest(*a)],
        )
        assert train(tmp_path, "--epochs", "1", "--name", name, "--code", "genes,bias") == 0
        assert f"**Steps that saw test patients: {step}**" in top(name) and re.search(
            rf"\| {step} \| \d \| \d of 4 \| \*\*a leak\*\* \|", section(name)
        )
    rows, leaks = what_saw_whom(
        [dict(a=["p", "q"], c=["q"]), dict(a=["r"], b=["q"])], [["q"], ["r", "s"]], dict(c=None)
    )
    assert rows == [
        ("a", "1–2", "1 of 1–2", "**a leak**"),
        ("c", "0–1", "0–1 of 1–2", "by design: it judges, nothing learns from it"),
        ("b", "0–1", "0 of 1–2", ""),
    ] and leaks == ["a"]


def test_folds_by_site_and_the_certificate_of_a_run(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(2), patients=14, per_patient=2)
    assert train(tmp_path, "--epochs", "1") == 0
    text = (tmp_path / "runs" / "he2rna" / "folds.md").read_text()
    assert (
        "by patient" in text
        and text.splitlines()[4:6] == ["| X | 3 | 2 | 2 |", "| Y | 2 | 3 | 2 |"]
        or "| X |" in text
    )
    counts = np.array(
        [
            [int(v) for v in line.split("|")[2:5]]
            for line in text.splitlines()
            if line.startswith(("| X", "| Y"))
        ]
    )
    chi2, p = scipy.stats.chi2_contingency(counts)[:2]
    line = f"Chi-square of projects against folds {chi2:.2f}, 2 degrees of freedom, p = {p:.2g}"
    assert (
        counts.sum() == 14
        and line in text
        and line in (tmp_path / "runs" / "he2rna" / "report.md").read_text()
    )
    table = (tmp_path / "samples.csv").read_text()
    named = re.sub(r",p(\d\d)", lambda m: f",TCGA-{'AABBBCDDDDEFFG'[int(m[1])] * 2}-{m[1]}", table)
    (tmp_path / "samples.csv").write_text(named)
    assert train(tmp_path, "--epochs", "1", "--name", "site", "--folds-by", "site") == 0
    of = {}
    for r in read_csv(tmp_path / "runs" / "site" / "folds.csv"):
        of.setdefault(r["patient"][5:7], set()).add(r["test_fold"])
    assert (
        len(of) == 7
        and all(len(v) == 1 for v in of.values())
        and set.union(*of.values()) == {"0", "1", "2"}
    )
    assert (
        "by site" in (tmp_path / "runs" / "site" / "report.md").read_text()
        and "by site" in (tmp_path / "runs" / "site" / "folds.md").read_text()
    )
    with pytest.raises(InputError, match="the sites .* fill only 7 of --folds 8: take fewer"):
        train(tmp_path, "--name", "many", "--folds-by", "site", "--folds", "8")
    (tmp_path / "samples.csv").write_text(named.replace("TCGA-GG-13", "patient13"))
    with pytest.raises(InputError, match="the patients patient13 have no TCGA barcode"):
        train(tmp_path, "--name", "odd", "--folds-by", "site")


def test_folds_need_patients(tmp_path):
    sample = lambda n: [dict(slide=str(i), patient=f"p{i % n}", project="X") for i in range(2 * n)]
    o = argparse.Namespace(folds=5, seed=0, code=[], folds_by="patient")
    assert set(folds_of(sample(5), o)) == set(range(5))
    for n, k, words in (
        (4, 5, "4 patients don't go into --folds 5: --folds 4 would work"),
        (3, 2, "--folds 3 would work"),
        (2, 2, "too few"),
    ):
        with pytest.raises(InputError, match=words):
            folds_of(sample(n), argparse.Namespace(folds=k, seed=0))


def test_a_single_project_keeps_the_folds_of_all(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(2), patients=14, per_patient=2)
    folds = {}
    for name, more in (("all", ()), ("x", ("--project", "X"))):
        assert train(tmp_path, "--epochs", "1", "--name", name, *more) == 0
        with open(tmp_path / "runs" / name / "folds.csv") as f:
            folds[name] = {r["slide"]: r["test_fold"] for r in csv.DictReader(f)}
    assert (
        len(folds["all"]) == 28
        and len(folds["x"]) == 14
        and folds["x"].items() <= folds["all"].items()
    )
    for s in folds["all"]:
        assert folds["all"][s] == folds["all"][s[:-1] + "0"]  # a patient's slides stay together


def test_names_belong_to_the_data_of_a_run_and_its_place_does_not(tmp_path):
    write_cohort(tmp_path / "c", np.random.default_rng(2))
    assert train(tmp_path / "c", "--epochs", "1") == 0
    (tmp_path / "c").rename(tmp_path / "moved")
    assert train(tmp_path / "moved", "--epochs", "1") == 0
    for name, old, new in (("expression.csv", "G0,G1", "G1,G0"), ("samples.csv", ",X", ",Z")):
        text = (tmp_path / "moved" / name).read_text()
        (tmp_path / "moved" / name).write_text(text.replace(old, new))
        with pytest.raises(InputError, match="other settings .data"):
            train(tmp_path / "moved", "--epochs", "1")
        (tmp_path / "moved" / name).write_text(text)


def test_pt_features_train_and_predict_and_maps_want_coordinates(tmp_path, capsys):
    """CLAM's pt_files/ for every verb; their super-tiles are runs of rows; with its h5_files/ beside, maps too."""
    write_cohort(tmp_path, np.random.default_rng(0), tiles=120)
    (tmp_path / "slides").mkdir(), (tmp_path / "pt_files").mkdir()
    for path in (tmp_path / "h5").iterdir():
        with h5py.File(path, "a") as h:
            torch.save(
                torch.from_numpy(h["features"][()]), tmp_path / "pt_files" / f"{path.stem}.pt"
            )
            h["coords"][()] = np.stack(np.divmod(np.arange(len(h["coords"])), 12), 1) * 100
    write_pyramid(
        tmp_path / "slides" / "s00_0.tif", np.full((1400, 1200, 3), (225, 150, 185), np.uint8)
    )
    argv = [
        "--features",
        str(tmp_path / "pt_files"),
        "--folds",
        "3",
        "--epochs",
        "2",
        "--hidden",
        "8",
        "--device",
        "cpu",
    ]
    assert main(["train", str(tmp_path), *argv]) == 0
    run, said = tmp_path / "runs" / "he2rna", capsys.readouterr().out
    assert (
        "12 slides have no coordinates, their super-tiles are runs of neighbouring rows: s00_0"
        in said
        and "elsewhere (.pt)" in (run / "report.md").read_text()
    )
    assert main(["predict", str(run), "all", "--device", "cpu"]) == 0
    z, rows = np.load(run / "predictions.npz"), read_csv(run / "predict" / "s03_0.csv")
    assert np.allclose(
        [float(r["log10_1p_fpkm_uq"]) for r in rows],
        z["prediction"][z["slide"].tolist().index("s03_0")],
        atol=2e-5,
    )
    assert (
        main(["predict", str(run), str(tmp_path / "pt_files" / "s03_0.pt"), "--device", "cpu"]) == 0
    )
    assert (
        main(
            ["finetune", str(tmp_path), "he2rna", "--epochs", "1", "--ks", "1,5", "--device", "cpu"]
        )
        == 0
    )
    heatmap = lambda *more: main(
        [
            "heatmap",
            str(tmp_path / "runs" / "he2rna-finetuned"),
            "s00_0",
            "--genes",
            "G0",
            "--device",
            "cpu",
            *more,
        ]
    )
    capsys.readouterr()
    assert heatmap() == 1
    assert re.search(
        "s00_0.pt has no coordinates: a map needs them, from an .h5 of the same slide, such as .*h5_files",
        capsys.readouterr().err,
    )
    (tmp_path / "h5").rename(tmp_path / "h5_files")
    assert (
        heatmap() == 0
        and "the pitch of their grid; --tile-um says otherwise" in capsys.readouterr().out
    )
    assert heatmap("--tile-um", "40") == 0
    assert (
        "tiles of 40 µm"
        in (
            tmp_path / "runs" / "he2rna-finetuned" / "heatmaps" / "G0" / "s00_0" / "report.md"
        ).read_text()
    )
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "supertiles").rglob("*.npz")}
    assert (
        main(["train", str(tmp_path), *argv, "--name", "placed"]) == 0
    )  # coordinates found: other super-tiles
    assert (
        all(p.stat().st_mtime_ns > t for p, t in before.items())
        and "no coordinates" not in capsys.readouterr().out
    )
    shutil.copytree(tmp_path / "pt_files", tmp_path / "copy" / "pt_files")
    shutil.copytree(tmp_path / "h5_files", tmp_path / "copy" / "h5_files")
    before = {p: p.stat().st_mtime_ns for p in before}
    argv[1] = str(tmp_path / "copy" / "pt_files")
    assert (
        main(["train", str(tmp_path), *argv, "--name", "placed"]) == 0
    )  # a copy: nothing is made anew
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_features_folder_named_as_an_encoder(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(2))
    (tmp_path / "h5").rename(tmp_path / "resnet50")
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "train",
                ".",
                "--features",
                "resnet50",
                "--folds",
                "3",
                "--epochs",
                "1",
                "--hidden",
                "8",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert len(list((tmp_path / "supertiles" / "resnet50-h5").glob("*.npz"))) == 12


def test_one_slide_of_another_encoder_and_too_few_left(tmp_path, capsys):
    write_cohort(tmp_path, np.random.default_rng(2), patients=6)
    with h5py.File(tmp_path / "h5" / "s00_0.h5", "w") as h:
        h["features"], h["coords"] = np.ones((4, 3), np.float16), tile_cloud(4)
    with h5py.File(tmp_path / "h5" / "s01_0.h5", "w") as h:
        h["features"], h["coords"] = np.full((4, 8), 1e6, np.float32), tile_cloud(4)
    assert train(tmp_path, "--epochs", "1") == 1
    said = capsys.readouterr().err
    assert (
        "failed: s00_0: 3 features a tile, most slides have 8" in said
        and "failed: s01_0: features up to 1e+06 are beyond float16" in said
    )
    for i in (2, 3, 4):
        (tmp_path / "h5" / f"s0{i}_0.h5").unlink()
    with pytest.raises(InputError, match="fewer than 2 patients left to train and validate on"):
        train(tmp_path, "--epochs", "1", "--name", "few")


def test_slides_without_features_or_expression_are_listed(tmp_path, capsys):
    write_cohort(tmp_path, np.random.default_rng(3))
    (tmp_path / "h5" / "s03_0.h5").unlink()
    table = (tmp_path / "expression.csv").read_text().splitlines()
    (tmp_path / "expression.csv").write_text(
        "\n".join([*table[:-1], "other" + table[-1][5:]]) + "\n"
    )
    assert train(tmp_path, "--epochs", "1") == 1
    said, report = capsys.readouterr(), (tmp_path / "runs" / "he2rna" / "report.md").read_text()
    assert (
        "1 slides without expression: s11_0" in said.out
        and "1 expression rows (slide) without a slide: other" in said.out
    )
    assert (
        "failed: s03_0: no file" in said.err
        and "slide s03_0 failed" in report
        and "1 slides without expression: s11_0" in report
    )
    assert "10 slides of 10 patients" in report


def test_real_breast_cohort_from_features_made_elsewhere(tmp_path):
    """her2st, whole sections held out: the signal is weak but there."""
    source = real("her2st")
    for name in ("samples.csv", "expression.csv.gz"):
        shutil.copyfile(source / name, tmp_path / name)
    assert (
        main(
            [
                "train",
                str(tmp_path),
                "--features",
                str(source / "h5"),
                "--folds",
                "4",
                "--epochs",
                "12",
                "--hidden",
                "256,256",
                "--device",
                "cpu",
                "--lr",
                "1e-3",
            ]
        )
        == 0
    )
    with open(tmp_path / "runs" / "he2rna" / "genes.csv") as f:
        rows = list(csv.DictReader(f))
    with open(tmp_path / "runs" / "he2rna" / "folds.csv") as f:
        assert len({(r["patient"], r["test_fold"]) for r in csv.DictReader(f)}) == 4
    assert (
        max(int(r["n"]) for r in rows) == 45
        and np.mean([float(r["R"]) for r in rows if r["R"]]) > 0.03
    )


def test_killed_training_goes_on(tmp_path):
    """SIGTERM of the real command; SIGKILL is tested with every step."""
    write_cohort(tmp_path, np.random.default_rng(1), patients=30)
    command = [
        sys.executable,
        he2rna.__file__,
        "train",
        str(tmp_path),
        "--features",
        str(tmp_path / "h5"),
        "--hidden",
        "32",
        "--folds",
        "3",
        "--epochs",
        "20",
        "--device",
        "cpu",
        "--name",
        "cut",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "epoch   1/20" in line:  # all others a minute later, in a pipe
            process.terminate()
            break
    assert process.wait(60) == 143 and not (tmp_path / "runs" / "cut" / "lock").exists()
    assert main(command[2:]) == 0 and main([*command[2:-1], "whole"]) == 0
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")
