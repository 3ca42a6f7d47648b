"""lab.tests.test_he2rna_train"""

import argparse
import csv
import json
import math
import re
import shutil

import h5py
import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import torch

import he2rna
import tiling
from lab.audit.ledger import what_saw_whom
from lab.cohort.features import load_features
from lab.cohort.make import make_features
from lab.cohort.steps import tiles_of
from lab.commands.he2rna import main as he2rna_main
from lab.commands.histcode import main as histcode_main
from lab.files import InputError, load_arrays, save_file
from lab.he2rna.bags import in_memory as bags_in_memory
from lab.he2rna.folds import folds_of, split_folds
from lab.he2rna.runs import load_run, model_of
from lab.runs import versions
from lab.tests.helpers import (
    MODELS,
    direct,
    express,
    folder_bytes,
    options,
    pretrain,
    read_csv,
    real,
    run_study,
    same_runs,
    study,
    swap,
    tile_cloud,
    tiny_encoder,
    train,
    tune,
    write_bag_table,
    write_cohort,
    write_pyramid,
)


def test_training_finds_what_was_planted_and_only_that(tmp_path, capsys):
    write_cohort(tmp_path, np.random.default_rng(0), patients=60)
    assert train(tmp_path, "--epochs", "60", "--lr", "3e-3", "--batch", "8") == 0
    run = tmp_path / "runs" / "he2rna"
    with open(run / "genes.csv") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 12 and {r["n"] for r in rows} == {"30"}
    for r in rows:
        assert (
            (float(r["R"]) > 0.75 and r["significant_hs"] == "1")
            if r["gene"] in ("G0", "G1", "G2")
            else r["significant_hs"] == "0"
        )
    z = np.load(run / "predictions.npz")  # the table again, from the saved predictions, by SciPy
    for r in rows:
        g, fold_r = list(z["genes"]).index(r["gene"]), []
        for f in range(3):
            at = (z["project"] == r["project"]) & (z["fold"] == f)
            fold_r.append(scipy.stats.pearsonr(z["prediction"][at, g], z["truth"][at, g])[0])
        assert [float(r[f"R_fold{f}"]) for f in range(3)] == pytest.approx(fold_r, abs=1e-5)
        t = np.mean(fold_r) * math.sqrt(28 / (1 - np.mean(fold_r) ** 2))
        assert float(r["R"]) == pytest.approx(np.mean(fold_r), abs=1e-5) and float(
            r["p_t"]
        ) == pytest.approx(scipy.stats.t.sf(t, 28), rel=1e-3)
    with open(run / "folds.csv") as f:
        folds = list(csv.DictReader(f))
    assert (
        all(r["test_fold"] not in r["validates_folds"].split() for r in folds)
        and len({r["slide"] for r in folds}) == 60
    )
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {e["fold"] for e in log} == {0, 1, 2} and log[-1]["loss"] < log[0]["loss"]
    report = (run / "report.md").read_text()
    assert (
        "seed: 0" in report
        and all(f"{package}: {version}" in report for package, version in versions().items())
        and (run / "scatter.png").stat().st_size > 10000
    )
    saved = torch.load(run / "fold0.pt", weights_only=True)
    assert saved["genes"] == [f"G{g}" for g in range(6)] and set(saved["test_patients"]) == {
        r["patient"] for r in folds if r["test_fold"] == "0"
    }
    assert "at most" in capsys.readouterr().out


def test_without_validation_patients_the_last_epoch_is_kept(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(8))
    assert (
        train(tmp_path, "--epochs", "4", "--valid", "0") == 0
        and tune(tmp_path, "--project", "Y", "--epochs", "3") == 0
    )
    for name, epochs in (("he2rna", 4), ("he2rna-Y-finetuned", 3)):
        run = tmp_path / "runs" / name
        assert {r["validates_folds"] for r in read_csv(run / "folds.csv")} == {""}
        for f in range(3):
            note = torch.load(run / f"fold{f}.pt", weights_only=True)["note"]
            assert (
                note["best_epoch"] == note["epochs"] == epochs
                and "none: the last" in (run / "report.md").read_text()
            )


def test_interrupted_training_ends_as_one_that_was_not(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(1), patients=30)
    assert train(tmp_path, "--epochs", "5", "--name", "whole") == 0
    original, calls = save_file, [0]
    for fatal in (2, 3, 5, 4, 6, 2):  # after the first state, between states, at a fold's end

        def save(path, write):
            calls[0] += 1
            if calls[0] == fatal:
                raise KeyboardInterrupt
            original(path, write)

        calls[0] = 0
        swap(monkeypatch, "lab.files", "save_file", save)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "--epochs", "5", "--name", "cut")
    swap(monkeypatch, "lab.files", "save_file", original)
    assert train(tmp_path, "--epochs", "5", "--name", "cut", "--workers", "3") == 0
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")
    assert (
        train(tmp_path, "--epochs", "5", "--name", "cut") == 0
    )  # a finished run is only reported again
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")
    with pytest.raises(InputError, match="epochs 5 -> 6.*--name"):
        train(tmp_path, "--epochs", "6", "--name", "cut")
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.state.pt"))


def test_a_loss_that_is_not_finite_stops_with_the_slide_and_keeps_the_epoch_before(
    tmp_path, monkeypatch
):
    write_cohort(tmp_path, np.random.default_rng(1))
    argv = ("--epochs", "3", "--batch", "1")
    assert train(tmp_path, *argv, "--name", "whole") == 0
    whole, seen = bags_in_memory, []

    def in_memory(x, mask):
        def bags(rows):
            one, m = whole(x, mask)(rows)
            seen.append(int(rows[0]))
            wrong = seen.count(seen[-1]) == 2 and seen[-1] == odd
            return one * float("nan") if wrong else one, m

        return bags

    odd = int(
        np.flatnonzero(
            [
                r["test_fold"] != "0" and r["validates_folds"].split() != ["0"]
                for r in read_csv(tmp_path / "runs" / "whole" / "folds.csv")
            ]
        )[0]
    )
    swap(
        monkeypatch, "lab.he2rna.bags", "in_memory", in_memory
    )  # one slide goes wrong when it is seen again, in epoch 2
    with pytest.raises(
        InputError,
        match=rf"fold 0 epoch 2: loss .* at the slides s{odd:02d}_0; .*fold0.state.pt keeps epoch 1; a lower --lr",
    ):
        train(tmp_path, *argv, "--name", "cut")
    assert torch.load(tmp_path / "runs" / "cut" / "fold0.state.pt", weights_only=True)["epoch"] == 1
    swap(monkeypatch, "lab.he2rna.bags", "in_memory", whole)
    assert train(tmp_path, *argv, "--name", "cut") == 0
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")


@pytest.mark.parametrize(
    "argv, words",
    [
        (("--code", "colour"), "--code colour: --features .* were made elsewhere"),
        (("--code", "folds"), "the authors' are 5 folds; leave --folds 3 out"),
        (("--code", "epochs"), "none is left to choose an epoch; leave --valid 0.25 out"),
        (("--code", "folds", "--folds", "5"), "leave --valid 0.25 out"),
        (
            ("--code", "folds", "--folds", "5", "--valid", "0", "--folds-by", "site"),
            "leave --folds-by site out",
        ),
        (
            ("--folds-by", "site"),
            "--folds-by site: samples.csv has the patients p00, p01, .* no TCGA barcode",
        ),
    ],
)
def test_switches_that_gainsay_options_say_so(tmp_path, argv, words):
    write_cohort(tmp_path, np.random.default_rng(0))
    with pytest.raises(InputError, match=words):
        train(tmp_path, *argv)
    assert not (tmp_path / "runs").exists()


def test_padding_and_relu_change_nothing_where_all_scores_are_positive(tmp_path):
    """Genes far above 0, the last bias at their mean: neither a zero nor a ReLU has a say, in trained or untrained models."""
    write_cohort(tmp_path, np.random.default_rng(4), patients=24)
    for name, argv in (("a", ()), ("b", ("--code", "padding,relu"))):
        assert train(tmp_path, "--epochs", "3", "--name", name, *argv) == 0
    a, b = (np.load(tmp_path / "runs" / name / "predictions.npz")["prediction"] for name in "ab")
    assert np.allclose(a, b, atol=1e-4) and a.min() > 0.5
    a, b = (np.load(tmp_path / "runs" / name / "null.npz") for name in "ab")
    assert all(np.allclose(a[k], b[k], atol=1e-3) for k in "XY") and np.isfinite(a["X"]).all()


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
    with pytest.raises(
        InputError, match="7 sites .* don't go into --folds 8: --folds 7 would work"
    ):
        train(tmp_path, "--name", "many", "--folds-by", "site", "--folds", "8")
    (tmp_path / "samples.csv").write_text(named.replace("TCGA-GG-13", "patient13"))
    with pytest.raises(InputError, match="the patient patient13, no TCGA barcode"):
        train(tmp_path, "--name", "odd", "--folds-by", "site")


def numbers_of(run):
    """All that a run has learned and predicted, as one row of numbers: its checkpoints' tensors and predictions.npz, or MSI's AUCs."""
    if (run / "results.csv").is_file():
        return np.array([float(r["auc"]) for r in read_csv(run / "results.csv")])
    paths, z = (
        sorted(run.glob("state.pt")) or sorted(run.glob("*.pt")),
        load_arrays(run / "predictions.npz") or {},
    )  # pretraining: its state
    tensors = [
        v
        for p in paths
        for one in [torch.load(p, weights_only=True)]
        for part in (one["model"], one)
        for v in part.values()
        if torch.is_tensor(v)
    ]
    return np.concatenate(
        [v.double().numpy().ravel() for v in tensors]
        + [z[k].ravel() for k in ("prediction", "predicted_label") if k in z]
    )


@pytest.mark.parametrize(
    "command, module, name",
    [
        ("train", "lab.fast.topk", "BLOCK_SCORES"),
        ("msi", "lab.fast.networks", "MSI_BLOCK"),
        ("expression", "lab.commands.histcode.expression", "GENES_AT_ONCE"),
        ("diagnose", "lab.histcode.training", "BAGS_AT_ONCE"),
        ("pretrain", None, None),
    ],
)
def test_the_seed_decides_and_blocks_do_not(
    changed, unlabelled, tmp_path, monkeypatch, small, command, module, name
):
    """Blocks of one gene, network or bag, of all at once, and the usual ones: the same weights and predictions to 2e-6 (5e-7 was found; MSI's AUCs
    exactly). The same seed gives the same again, bit for bit; another seed others."""
    monkeypatch.chdir(tmp_path)
    write_cohort(tmp_path / "c", np.random.default_rng(0)), write_bag_table(tmp_path / "toy.csv")
    shutil.copytree(changed, tmp_path / "p", ignore=shutil.ignore_patterns("runs"))
    (
        swap(monkeypatch, "lab.commands.histcode.expression", "write_expression", lambda *_: None),
        swap(monkeypatch, "lab.commands.histcode.diagnose", "write_diagnosis", lambda *_: None),
    )
    swap(monkeypatch, "lab.he2rna.msi_report", "write_msi_report", lambda *_: None)
    go = {
        "train": lambda run, *argv: train(
            tmp_path / "c", "--epochs", "2", "--null-models", "1", "--name", run, *argv
        ),
        "msi": lambda run, *argv: run_study(
            tmp_path,
            study(np.random.default_rng(0)),
            "--splits",
            "1",
            "--ratios",
            "1/2",
            "--repeats",
            "1",
            *argv,
            name=run,
        ),
        "expression": lambda run, *argv: express(
            tmp_path / "p", "--name", run, *MODELS["per-gene"], *argv
        ),
        "diagnose": lambda run, *argv: histcode_main(
            [
                *"diagnose --bags toy.csv --repeats 1 --folds 3 --epochs 3 --lr .01 --device cpu".split(),
                "--name",
                run,
                *argv,
            ]
        ),
        "pretrain": lambda run, *argv: pretrain(
            unlabelled, "--epochs", "1", "--tiles-per-slide", "1", "--name", f"{run}-seed", *argv
        ),
    }[command]
    folder = {"train": tmp_path / "c" / "runs", "expression": tmp_path / "p" / "runs"}.get(
        command, tmp_path
    )

    def numbers(run, *argv):
        go(run, *argv)
        return numbers_of(
            unlabelled / "runs" / f"{run}-seed" if command == "pretrain" else folder / run
        )

    usual, seeded = numbers("usual"), numbers("other", "--seed", "1")
    assert (
        len(usual) >= 15
        and usual.shape == seeded.shape
        and np.abs(usual - seeded).max() > 0.01
        and (usual == numbers("again")).all()
    )
    for i, block in enumerate((1, 2**40) if name else ()):
        sizes = {"MSI_BLOCK": dict(cpu=block), "GENES_AT_ONCE": min(block, 16)}
        swap(monkeypatch, module, name, sizes.get(name, block))
        assert np.abs(numbers(f"block{i}") - usual).max() <= (0 if command == "msi" else 2e-6)


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
    assert he2rna_main(["train", str(tmp_path), *argv]) == 0
    run, said = tmp_path / "runs" / "he2rna", capsys.readouterr().out
    assert (
        "12 slides have no coordinates, their super-tiles are runs of neighbouring rows: s00_0"
        in said
        and "elsewhere (.pt)" in said
    )
    assert he2rna_main(["predict", str(run), "all", "--device", "cpu"]) == 0
    z, rows = np.load(run / "predictions.npz"), read_csv(run / "predict" / "s03_0.csv")
    assert np.allclose(
        [float(r["log10_1p_fpkm_uq"]) for r in rows],
        z["prediction"][z["slide"].tolist().index("s03_0")],
        atol=2e-5,
    )
    assert (
        he2rna_main(
            ["predict", str(run), str(tmp_path / "pt_files" / "s03_0.pt"), "--device", "cpu"]
        )
        == 0
    )
    assert (
        he2rna_main(
            ["finetune", str(tmp_path), "he2rna", "--epochs", "1", "--ks", "1,5", "--device", "cpu"]
        )
        == 0
    )
    heatmap = lambda *more: he2rna_main(
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
        he2rna_main(["train", str(tmp_path), *argv, "--name", "placed"]) == 0
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
        he2rna_main(["train", str(tmp_path), *argv, "--name", "placed"]) == 0
    )  # a copy: nothing is made anew
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_features_folder_named_as_an_encoder(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(2))
    (tmp_path / "h5").rename(tmp_path / "resnet50")
    monkeypatch.chdir(tmp_path)
    assert (
        he2rna_main(
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


def test_half_written_leftovers(tmp_path):
    """What a full disk or a power cut can leave: a half log line, a half checkpoint, no config."""
    write_cohort(tmp_path, np.random.default_rng(2))
    run = tmp_path / "runs" / "he2rna"
    assert train(tmp_path, "--epochs", "2") == 0
    with open(run / "log.jsonl", "a") as f:
        f.write('{"fold": 2, "ep')
    (run / "fold2.pt").unlink()
    assert train(tmp_path, "--epochs", "2") == 0
    (run / "fold1.pt").write_bytes((run / "fold1.pt").read_bytes()[:1000])
    with pytest.raises(InputError, match="fold1.pt: not a whole checkpoint"):
        train(tmp_path, "--epochs", "2")
    (run / "config.json").unlink()
    with pytest.raises(InputError, match="no config.json"):
        train(tmp_path, "--epochs", "2")


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


def test_fine_tuning_keeps_folds_and_output_rows_and_reads_from_disk_as_from_memory(
    tmp_path, capsys
):
    write_cohort(tmp_path, np.random.default_rng(0), patients=24, per_patient=2)
    assert train(tmp_path, "--epochs", "3") == 0
    assert tune(tmp_path, "--project", "X", "--genes", "G4,G1", "--lr", "1e-12") == 0
    run, tuned = tmp_path / "runs" / "he2rna", tmp_path / "runs" / "he2rna-X-finetuned"
    before, after = (
        {r["slide"]: r for r in read_csv(folder / "folds.csv")} for folder in (run, tuned)
    )
    assert set(after) == {s for s, r in before.items() if r["project"] == "X"}
    assert all(
        r == before[s] for s, r in after.items()
    )  # test folds and those that choose the epoch
    for f in range(3):
        old, new = (
            torch.load(folder / f"fold{f}.pt", weights_only=True) for folder in (run, tuned)
        )
        assert new["genes"] == ["G4", "G1"] and new["ks"] == [1, 5, 20]
        assert torch.allclose(
            new["model"]["layers.2.weight"], old["model"]["layers.2.weight"][[4, 1]], atol=1e-6
        )
        assert torch.allclose(
            new["model"]["layers.0.weight"], old["model"]["layers.0.weight"], atol=1e-6
        )
    z, want = np.load(tuned / "predictions.npz"), {}  # all tiles, the direct way, slide by slide
    for f in range(3):
        model = model_of(torch.load(tuned / f"fold{f}.pt", weights_only=True), "cpu").eval()
        for slide in z["slide"][z["fold"] == f]:
            features = torch.from_numpy(load_features(tmp_path, tmp_path / "h5", slide)[0]).float()[
                None
            ]
            mask = torch.ones(1, features.shape[1], dtype=torch.bool)
            want[slide] = (
                torch.stack([direct(model, features, mask, k) for k in (1, 5, 20)])
                .mean(0)[0]
                .detach()
                .numpy()
            )
    assert np.allclose(z["prediction"], [want[s] for s in z["slide"]], atol=1e-5)
    assert "fine-tuned on all tiles" in (tuned / "report.md").read_text()
    assert tune(tmp_path, "--name", "again", "--precision", "bfloat16") == 0
    assert len(np.load(tmp_path / "runs" / "again" / "predictions.npz")["genes"]) == 6


def test_fine_tuning_learns_and_an_interrupted_one_goes_on(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(1), patients=30, tiles=60)
    assert train(tmp_path, "--epochs", "2", "--lr", "1e-4") == 0
    real_predict = he2rna.predict
    for name in ("a", "b"):
        calls = []

        def stop(*args, **kwargs):
            calls.append(0)
            if name == "b" and len(calls) == 9:
                raise KeyboardInterrupt
            return real_predict(*args, **kwargs)

        swap(monkeypatch, "he2rna", "predict", stop)
        try:
            tune(tmp_path, "--name", name, "--epochs", "12", "--lr", "3e-3")
        except KeyboardInterrupt:
            swap(monkeypatch, "he2rna", "predict", real_predict)
            tune(tmp_path, "--name", name, "--epochs", "12", "--lr", "3e-3")
    monkeypatch.undo()
    same_runs(tmp_path / "runs" / "a", tmp_path / "runs" / "b")
    r = {
        name: np.mean(
            [
                float(row["R"])
                for row in read_csv(tmp_path / "runs" / name / "genes.csv")
                if row["gene"] in ("G0", "G1", "G2")
            ]
        )
        for name in ("he2rna", "a")
    }
    assert r["a"] > max(0.5, r["he2rna"])


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_run_on_an_encoder_file_wants_that_file(drawn, tmp_path):
    cohort, file = tmp_path / "c", tmp_path / "tiny.pt"
    shutil.copytree(drawn, cohort)
    tiny_encoder(file), tiny_encoder(tmp_path / "other.pt", 1)
    assert (
        he2rna_main(
            [
                "train",
                str(cohort),
                "--encoder",
                str(file),
                "--colour",
                "macenko",
                "--tissue",
                "saturation",
                "--folds",
                "3",
                "--epochs",
                "1",
                "--max-tiles",
                "2",
                "--hidden",
                "8",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    run, slide = cohort / "runs" / "he2rna", sorted((cohort / "slides").iterdir())[0]
    made = json.loads((run / "config.json").read_text())["features"]
    assert (
        made["source"] == "tiny"
        and made["weights"].startswith("tiny.pt sha256")
        and (made["colour"], made["tissue"], made["tile_px"]) == ("macenko", "saturation", 224)
    )
    new = tmp_path / "new" / "slides" / "x.tif"
    new.parent.mkdir(parents=True)
    shutil.copyfile(slide, new)
    predict = lambda *argv: he2rna_main(["predict", str(run), *map(str, argv), "--device", "cpu"])
    with pytest.raises(
        InputError,
        match="learned with weights tiny.pt sha256 .*: give that file with --weights FILE",
    ):
        predict(new)
    with pytest.raises(InputError, match="weights other.pt sha256 .*, the run has tiny.pt sha256"):
        predict(new, "--weights", tmp_path / "other.pt")
    assert predict(slide) == 0 and predict(new, "--weights", file) == 0
    side = json.loads((tmp_path / "new" / "features" / "tiny" / "x.json").read_text())
    assert (
        side["colour"] == "macenko"
        and side["tiles"]["tissue"] == "saturation"
        and side["weights"] == made["weights"]
    )
    assert np.array_equal(
        *(
            np.load(d / "features" / "tiny" / f"{n}.npy")
            for d, n in ((cohort, slide.stem), (tmp_path / "new", "x"))
        )
    )
    assert (
        he2rna_main(["heatmap", str(run), slide.stem, "--genes", "CD3D", "--device", "cpu"]) == 0
    )  # all tiles: made with the file
    assert len(np.load(cohort / "all-tiles" / "features" / "tiny" / f"{slide.stem}.npy")) > 2
    assert (
        he2rna_main(
            [
                "finetune",
                str(cohort),
                "he2rna",
                "--epochs",
                "1",
                "--genes",
                "CD3D",
                "--device",
                "cpu",
            ]
        )
        == 0
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_run_on_stretched_tiles_stretches_those_of_new_slides(drawn, tmp_path):
    cohort = tmp_path / "c"
    shutil.copytree(drawn, cohort)
    tiny_encoder(tmp_path / "tiny.pt")
    small = (
        "--encoder",
        str(tmp_path / "tiny.pt"),
        "--folds",
        "3",
        "--epochs",
        "1",
        "--max-tiles",
        "2",
        "--hidden",
        "8",
        "--device",
        "cpu",
    )
    assert (
        he2rna_main(["train", str(cohort), *small]) == 0
        and he2rna_main(["train", str(cohort), *small, "--name", "s", "--code", "colour"]) == 0
    )
    made = [
        json.loads((cohort / "runs" / name / "config.json").read_text()) for name in ("he2rna", "s")
    ]
    assert [m["features"]["source"] for m in made] == ["tiny", "tiny-stretch"] and [
        m["features"]["colour"] for m in made
    ] == ["none", "stretch"]
    assert [m["code"] for m in made] == [[], ["colour"]]
    slide, new = sorted((cohort / "slides").iterdir())[0], tmp_path / "new" / "slides" / "x.tif"
    new.parent.mkdir(parents=True)
    shutil.copyfile(slide, new)
    run = cohort / "runs" / "s"
    assert (
        he2rna_main(
            [
                "predict",
                str(run),
                str(slide),
                str(new),
                "--device",
                "cpu",
                "--weights",
                str(tmp_path / "tiny.pt"),
            ]
        )
        == 0
    )
    assert np.array_equal(
        *(
            np.load(d / "features" / "tiny-stretch" / f"{n}.npy")
            for d, n in ((cohort, slide.stem), (tmp_path / "new", "x"))
        )
    )
    assert (
        he2rna_main(
            [
                "heatmap",
                str(run),
                slide.stem,
                "--genes",
                "CD3D",
                "--device",
                "cpu",
                "--weights",
                str(tmp_path / "tiny.pt"),
            ]
        )
        == 0
    )
    assert (
        len(np.load(cohort / "all-tiles" / "features" / "tiny-stretch" / f"{slide.stem}.npy")) > 2
    )
    with pytest.raises(InputError, match="other settings"):  # the default's folder
        he2rna_main(["train", str(cohort), *small, "--colour", "stretch"])


def test_features_of_another_kind_are_refused_naming_both(mapped, tmp_path, capsys):
    run, slide = mapped / "runs" / "he2rna", sorted((mapped / "slides").iterdir())[0]
    predict = lambda *argv: he2rna_main(["predict", str(run), *map(str, argv), "--device", "cpu"])
    for argv, words in (
        ((slide, "--weights", "imagenet"), "imagenet.*random, seed 0"),
        ((slide, "--features", tmp_path), "leave --features out"),
        ((slide, "--tile-um", "100"), "options: tile_um 100.0, the run has 112.0"),
        (("nobody",), "neither a slide file nor a slide of the run"),
        ((slide, slide), "asked for twice$"),
        ((slide, slide.stem), "asked for twice"),
    ):
        with pytest.raises(InputError, match=words):
            predict(*argv)
    other = tmp_path / "other"
    (other / "slides").mkdir(parents=True)
    shutil.copyfile(slide, other / "slides" / "x.tif")
    o = options("--encoder", "resnet50-stage3", "--tile-um", "150")
    assert make_features(other, ["x"], o) == {}
    before = folder_bytes(other, ".npy")
    with pytest.raises(InputError, match="tile_um 150.0, the run has 112.0"):
        predict(other / "slides" / "x.tif")
    (other / "tiles" / "settings.json").unlink()
    side = other / "features" / "resnet50-stage3" / "x.json"
    side.write_text(side.read_text().replace("seed 0", "seed 7").replace("150.0", "112.0"))
    with pytest.raises(InputError, match="weights random, seed 7, the run has random, seed 0"):
        predict(other / "slides" / "x.tif")
    assert folder_bytes(other, ".npy") == before and not (run / "predict").exists()
    assert (
        predict(other / "slides" / "x.tif", "--into", tmp_path / "into", "--weights", "random") == 0
    )  # made elsewhere, as the run's
    z, rows = np.load(run / "predictions.npz"), read_csv(run / "predict" / "x.csv")
    models = load_run(run)["folds"]
    features, coords = load_features(tmp_path / "into", "resnet50-stage3", "x")
    means, mask, _ = tiling.supertiles(features, coords)
    x, mask = torch.from_numpy(means.astype(np.float16))[None], torch.from_numpy(mask)[None]
    want = np.mean(
        [he2rna.predict(model_of(m, "cpu"), bags_in_memory(x, mask), [0])[0] for m in models], 0
    )
    assert np.allclose([float(r["log10_1p_fpkm_uq"]) for r in rows], want, atol=2e-5) and len(
        rows
    ) == len(z["genes"])
    config = json.loads((run / "config.json").read_text())
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / "config.json").write_text(json.dumps({**config, "version": 1}))
    with pytest.raises(InputError, match="version 1 .* reads version 3"):
        load_run(old)
    (old / "config.json").write_text(json.dumps(config))
    (old / "fold1.pt").unlink()
    with pytest.raises(InputError, match="fold1.pt is missing: the run is not finished"):
        load_run(old)


def test_what_is_ready_is_used_and_a_moved_cohort_is_found(mapped, tmp_path, capsys):
    """Features made with another seed or precision than a command would choose stay as they are; the run goes with its cohort."""
    cohort = tmp_path / "c"
    shutil.copytree(mapped, cohort)
    shutil.rmtree(cohort / "runs")
    shutil.rmtree(cohort / "features")
    o = options("--encoder", "resnet50-stage3", "--seed", "3", "--precision", "float32")
    assert make_features(cohort, [r["slide"] for r in read_csv(cohort / "samples.csv")], o) == {}
    assert (
        he2rna_main(
            [
                "train",
                str(cohort),
                "--encoder",
                "resnet50-stage3",
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
    moved = tmp_path / "moved"
    cohort.rename(moved)
    run, before = (
        moved / "runs" / "he2rna",
        {
            p: (p.read_bytes(), p.stat().st_mtime_ns)
            for p in moved.rglob("*")
            if p.is_file() and "runs" not in p.parts
        },
    )
    z = np.load(run / "predictions.npz")
    slide, other = z["slide"][0], tmp_path / "slides" / "new.tif"
    other.parent.mkdir()
    shutil.copyfile(mapped / "slides" / f"{slide}.tif", other)
    assert (
        he2rna_main(
            ["predict", str(run), slide, str(other), "--precision", "bfloat16", "--device", "cpu"]
        )
        == 0
    )
    rows = read_csv(run / "predict" / f"{slide}.csv")
    assert np.allclose([float(r["log10_1p_fpkm_uq"]) for r in rows], z["prediction"][0], atol=2e-5)
    assert (
        he2rna_main(
            [
                "finetune",
                str(moved),
                "he2rna",
                "--project",
                "SIM-COLO",
                "--genes",
                "CD3D",
                "--epochs",
                "1",
                "--precision",
                "bfloat16",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert he2rna_main(["heatmap", str(run), slide, "--genes", "CD3D", "--device", "cpu"]) == 0
    assert before == {
        p: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in moved.rglob("*")
        if p.is_file() and "runs" not in p.parts
    }
    weights = json.loads((tmp_path / "features" / "resnet50-stage3" / "new.json").read_text())[
        "weights"
    ]
    assert weights == "random, seed 3" and not cohort.exists()
    tuned = (
        moved / "runs" / "he2rna-SIM-COLO-finetuned"
    )  # it never saw this project, but what it came from did
    stranger = next(r for r in read_csv(run / "folds.csv") if r["project"] == "SIM-BRST")
    capsys.readouterr()
    assert (
        he2rna_main(
            [
                "predict",
                str(tuned),
                str(moved / "slides" / f"{stranger['slide']}.tif"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert (
        f"models of folds {stranger['test_fold']} (the others learned from its patient)"
        in capsys.readouterr().out
    )
    shutil.rmtree(run)  # trained otherwise: the old fine-tuning is another's
    assert (
        he2rna_main(
            [
                "train",
                str(moved),
                "--encoder",
                "resnet50-stage3",
                "--folds",
                "3",
                "--epochs",
                "2",
                "--hidden",
                "8",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    with pytest.raises(InputError, match="from_run"):
        he2rna_main(
            [
                "finetune",
                str(moved),
                "he2rna",
                "--project",
                "SIM-COLO",
                "--genes",
                "CD3D",
                "--epochs",
                "1",
                "--device",
                "cpu",
            ]
        )


def test_the_map_takes_every_tile_where_training_took_a_sample(mapped):
    slide = sorted(r["slide"] for r in read_csv(mapped / "runs" / "he2rna" / "folds.csv"))[1]
    cohort, run = mapped.parent / "few", mapped.parent / "few" / "runs" / "he2rna"
    shutil.copytree(mapped, cohort)
    shutil.rmtree(run)
    assert (
        he2rna_main(
            [
                "train",
                str(cohort),
                "--max-tiles",
                "3",
                "--encoder",
                "resnet50-stage3",
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
    assert he2rna_main(["heatmap", str(run), slide, "--genes", "CD3D", "--device", "cpu"]) == 0
    every, few = (tiles_of(c, slide)[0]["coords"] for c in (mapped, cohort))
    assert (
        len(few) == 3 < len(every) == len(read_csv(run / "heatmaps" / "CD3D" / slide / "tiles.csv"))
    )


def test_real_breast_cohort_from_features_made_elsewhere(tmp_path):
    """her2st, whole sections held out: the signal is weak but there."""
    source = real("her2st")
    for name in ("samples.csv", "expression.csv.gz"):
        shutil.copyfile(source / name, tmp_path / name)
    assert (
        he2rna_main(
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
