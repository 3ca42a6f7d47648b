"""lab.tests.test_histcode_diagnose"""

import json
import re
import shutil

import h5py
import numpy as np
import pytest
import torch

from lab.cohort.features import load_features
from lab.commands.histcode import main
from lab.files import InputError
from lab.histcode.heads import apply_heads
from lab.histcode.networks import POOLINGS
from lab.histcode.splits import roles
from lab.runs import load_checkpoint
from lab.tests.helpers import read_csv, saved, swap, write_pyramid
from lab.tests.helpers_histcode import diagnose, pretrain, section, write_pairs, write_slides


def test_diagnose_slides_all_poolings_and_an_external_cohort(tmp_path, capsys):
    cohort = write_slides(tmp_path / "a", 24, labels=("normal", "tumor"), extra="gone,zz,X,\n")
    other = write_slides(tmp_path / "b", 9, "q", ("normal", "tumor"), seed=1)
    for path in (other / "h5").iterdir():
        shutil.copy(path, cohort / "h5")  # --features names one folder
    assert diagnose(cohort, "--rotate", "--table", "--external", str(other)) == 0
    said, run = capsys.readouterr().out, cohort / "runs" / "diagnosis"
    assert "1 slides without a label: gone" in said
    rows = read_csv(run / "predictions.csv")
    assert len(rows) == 6 * 32 and {r["pooling"] for r in rows} == set(POOLINGS)
    table = {r["pooling"]: r for r in read_csv(run / "table.csv")}
    assert list(table) == list(POOLINGS) and float(table["max"]["auc"]) > 0.9
    folds = {p: {(r["slide"], r["fold"]) for r in rows if r["pooling"] == p} for p in table}
    assert all(f == folds["max"] for f in folds.values())  # the same folds for all
    external = read_csv(run / "external.csv")
    assert len(external) == 6 * 12 and not {r["patient"] for r in external} & {
        r["patient"] for r in rows
    }
    saved = [load_checkpoint(run / f"max-r0-f{f}.pt", "cpu") for f in range(6)]
    for s, f in zip(saved, range(6)):
        assert (
            not set(s["train_patients"]) & (set(s["test_patients"]) | set(s["valid_patients"]))
            and len(s["test_patients"]) == 4
        )
    bag = load_features(other, cohort / "h5", "q00_0")[0]
    p = np.mean([apply_heads(s, "cpu")(bag)[0][0].softmax(0)[1].item() for s in saved])
    assert float(
        next(r for r in external if r["slide"] == "q00_0" and r["pooling"] == "max")["p_tumour"]
    ) == pytest.approx(p, abs=1e-5)
    assert (run / "curves.png").is_file() and "External" in (run / "report.md").read_text()


def test_without_rotation_half_of_the_patients_are_tested(tmp_path):
    cohort = write_slides(tmp_path / "a", 12)
    assert diagnose(cohort, "--name", "half", "--pooling", "mean") == 0
    rows = read_csv(cohort / "runs" / "half" / "predictions.csv")
    assert {r["fold"] for r in rows} == {"0", "1", "2"} and len({r["patient"] for r in rows}) == 6


def test_stopping_on_test_chooses_by_the_test_part_and_is_called_a_leak(tmp_path):
    cohort = write_slides(tmp_path / "a", 24)
    assert (
        diagnose(cohort, "--name", "a") == 0
        and diagnose(cohort, "--name", "b", "--code", "stop") == 0
    )
    runs = {
        name: [
            load_checkpoint(p, "cpu")
            for p in sorted((cohort / "runs" / name).glob("HistCode-*.pt"))
        ]
        for name in "ab"
    }
    label = {r["slide"]: int(r["tumor"]) for r in read_csv(cohort / "samples.csv")}
    rows = [r for r in read_csv(cohort / "runs" / "b" / "predictions.csv")]
    for f, (a, b) in enumerate(zip(runs["a"], runs["b"])):
        assert (
            torch.equal(a["tests"], b["tests"]) and a["train_patients"] == b["train_patients"]
        )  # the same networks, epoch by epoch
        y = [label[r["slide"]] for r in rows if r["fold"] == str(f)]
        mistakes = [(e.argmax(1).numpy() != y).sum() for e in b["tests"]]
        assert b["epoch"] == max(e for e, n in enumerate(mistakes, 1) if n == min(mistakes))
        assert b["valid_patients"] == b["test_patients"] != a["valid_patients"] and set(
            b["test_patients"]
        ) <= set(b["learned_from"])
        assert (
            a["saw"]["choice of the epoch"] == a["valid_patients"]
            and a["saw"]["weights of the network"] == a["train_patients"]
        )
    (top, seen), (bad, leak) = (section(cohort / "runs" / name) for name in "ab")
    assert (
        "saw test patients" not in top
        and "| choice of the epoch | 4 | 0 of 4 |  |" in seen
        and "whom the encoder learned from is not known" in seen
    )
    assert (
        "**Steps that saw test patients: choice of the epoch**" in bad
        and "| choice of the epoch | 4 | 4 of 4 | **a leak** |" in leak
    )
    assert (
        "stop: the test part chooses it" in bad
        and "| optimism table | 4 | 4 of 4 | by design" in seen
        and "one tests and chooses the epoch" in bad
    )
    with pytest.raises(InputError, match="other settings .code .'stop'. -> "):
        diagnose(cohort, "--name", "b")


def test_a_planted_leak_of_a_diagnosis_is_caught(tmp_path, monkeypatch):
    cohort, honest = write_slides(tmp_path / "a", 24), roles

    def leaky(*a):
        train, valid, test = honest(*a)
        return np.r_[train, test[:1]], valid, test

    swap(monkeypatch, "lab.histcode.splits", "roles", leaky)
    assert diagnose(cohort, "--table") == 0
    top, seen = section(cohort / "runs" / "diagnosis")
    assert (
        "**Steps that saw test patients: weights of the network, standardisation of the features**"
        in top
    )
    assert (
        "| weights of the network | 17 | 1 of 4 | **a leak** |" in seen
        and "| choice of the epoch | 4 | 0 of 4 |" in seen
    )


def test_an_encoder_that_learned_from_test_patients_is_named(unlabelled, tmp_path):
    """From pretrain's checkpoint over the folder of features to the reports of what uses them."""
    assert pretrain(unlabelled, "--epochs", "1", "--name", "seer") == 0
    learned = saved(unlabelled / "runs" / "seer" / "seer.pt")["patients"]
    small = [
        "--label",
        "project",
        "--folds",
        "3",
        "--epochs",
        "1",
        "--hidden",
        "4",
        "--device",
        "cpu",
        "--precision",
        "float32",
        "--rotate",
    ]
    assert (
        main(
            [
                "diagnose",
                str(unlabelled),
                "--encoder",
                str(unlabelled / "runs" / "seer" / "seer.pt"),
                *small,
            ]
        )
        == 0
    )
    top, seen = section(unlabelled / "runs" / "diagnosis")
    assert "**Steps that saw test patients: encoder, without labels**" in top
    assert re.search(
        rf"\| encoder, without labels \| {len(learned)} \| (\S+) of \1 \| their tiles, no label or expression \|",
        seen,
    )


def test_slides_without_whole_features_are_named_and_left_out(tmp_path, capsys):
    cohort = write_slides(tmp_path / "a", 18)
    with h5py.File(cohort / "h5" / "p00_0.h5", "r+") as h:
        h["features"][2, 1] = np.nan
    (cohort / "h5" / "p01_1.h5").unlink()
    assert diagnose(cohort, "--pooling", "mean") == 1
    said = capsys.readouterr().err
    assert (
        "p00_0: " in said
        and "NaN or infinite feature in tile 2" in said
        and "p01_1: no file" in said
    )


def test_where_too_few_slides_are_left_each_says_why(tmp_path, capsys):
    cohort = write_slides(tmp_path / "a", 9)
    for path in sorted((cohort / "h5").iterdir())[:6]:
        path.unlink()
    with pytest.raises(InputError, match="patients don't go into --folds 6"):
        diagnose(cohort)
    said = capsys.readouterr().err
    assert (
        said.count("no file") == 6
        and "6 of 12 slides failed" in said
        and not (cohort / "runs").exists()
    )


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--label", "stage"], "no column stage; it has slide, patient, project, tumor"),
        (["--label", "project"], "every label is X"),
        (["--label", "tumor", "--positive", "2"], "--positive 2: the labels of .* are 0, 1"),
        (["--positive", "1"], "with --label COLUMN"),
        (["--folds", "40"], "12 patients don't go into --folds 40"),
        (["--folds", "2"], "--folds 2: must lie between 3"),
        (["--lr", "0"], "--lr 0: must lie"),
        (["--name", "a/b"], "not a path"),
        (["--bags", "x.csv"], "either a cohort folder or --bags"),
    ],
)
def test_diagnose_says_one_line(tmp_path, argv, words):
    cohort = write_slides(tmp_path / "a", 12)
    with pytest.raises(InputError, match=words):
        diagnose(cohort, *argv)
    assert not (cohort / "runs").exists()


def test_an_external_cohort_of_other_labels_is_no_test(tmp_path):
    a, b = (
        write_slides(tmp_path / "a", 12, labels=("LUAD", "LUSC")),
        write_slides(tmp_path / "b", 12, "q", ("KIRC", "LUSC")),
    )
    for path in (b / "h5").iterdir():
        shutil.copy(path, a / "h5")
    with pytest.raises(InputError, match="labels of .* are KIRC, LUSC, of .* LUAD, LUSC"):
        diagnose(a, "--label", "tumor", "--external", str(b))


def test_a_patient_of_both_cohorts_is_no_test(tmp_path):
    a, b = write_slides(tmp_path / "a", 12), write_slides(tmp_path / "b", 12)
    with pytest.raises(InputError, match="p00.*patients of both"):
        diagnose(a, "--external", str(b))
    assert not (a / "runs").exists()


def test_features_made_elsewhere_in_every_verb(tmp_path, capsys):
    """diagnose, expression, ablation, predict and heatmap on CLAM's .pt files, whose coordinates come from its .h5 files."""
    cohort = write_pairs(tmp_path / "c")
    (cohort / "uni" / "pt_files").mkdir(parents=True), (cohort / "slides").mkdir()
    for path in (cohort / "h5").iterdir():
        with h5py.File(path, "a") as h:
            torch.save(
                torch.from_numpy(h["features"][()]), cohort / "uni" / "pt_files" / f"{path.stem}.pt"
            )
            del h["features"]
            h["coords"][()] = np.stack(np.divmod(np.arange(len(h["coords"])), 4), 1) * 100
    write_pyramid(cohort / "slides" / "s0_1.tif", np.full((900, 900, 3), (225, 150, 185), np.uint8))
    source, small = (
        str(cohort / "uni"),
        ["--epochs", "2", "--lr", "0.01", "--hidden", "4", "--device", "cpu", "--folds", "3"],
    )
    assert main(["diagnose", str(cohort), "--rotate", "--features", source, *small]) == 0
    assert main(["expression", str(cohort), "--features", source, *small]) == 0
    shutil.copytree(cohort / "uni", cohort / "conch")
    assert main(["ablation", str(cohort), "--encoders", source, str(cohort / "conch"), *small]) == 0
    table = {
        (r["encoder"], r["pooling"]): r["median R"]
        for r in read_csv(cohort / "runs" / "ablation" / "table.csv")
    }
    assert (
        set(e for e, _ in table) == {"uni", "conch"}
        and table["uni", "mean"] == table["conch", "mean"]
    )
    for run in ("diagnosis", "expression"):
        assert main(["predict", str(cohort / "runs" / run), "all", "--device", "cpu"]) == 0
    heatmap = lambda: main(
        [
            "heatmap",
            str(cohort / "runs" / "diagnosis"),
            "s0_1",
            "--device",
            "cpu",
            "--tile-um",
            "50",
        ]
    )
    capsys.readouterr()
    assert (
        heatmap() == 1 and "s0_1.pt has no coordinates: a map needs them" in capsys.readouterr().err
    )
    (cohort / "h5").rename(cohort / "uni" / "patches")  # only coordinates in them
    assert heatmap() == 0
    shapes = json.loads(
        (
            cohort / "runs" / "diagnosis" / "heatmaps" / "diagnose" / "s0_1" / "tiles.geojson"
        ).read_text()
    )["features"]
    assert len(shapes) == 9 and shapes[1]["geometry"]["coordinates"][0][:2] == [
        [0, 100],
        [100, 100],
    ]
