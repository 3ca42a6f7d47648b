"""Diagnosing slides end to end: poolings, folds, leaks, another cohort, features from elsewhere."""

import json
import re
import shutil

import h5py
import numpy as np
import pytest
import torch

import stats
from lab.cohort.features import load_features
from lab.commands.histcode import main
from lab.files import InputError
from lab.histcode.diagnose_report import against_chance, honest_table, is_of_table_1
from lab.histcode.heads import apply_heads
from lab.histcode.networks import POOLINGS
from lab.histcode.splits import roles
from lab.runs import load_checkpoint
from lab.tests.helpers import read_csv, saved, swap, write_pyramid
from lab.tests.helpers_histcode import (
    diagnose,
    opening_of,
    pretrain,
    section,
    write_pairs,
    write_slides,
)

SMALL = ["--epochs", "2", "--lr", "0.01", "--hidden", "4", "--device", "cpu", "--folds", "3"]


def models_of(run, pooling, n):
    return [load_checkpoint(run / f"{pooling}-r0-f{f}.pt", "cpu") for f in range(n)]


def test_diagnose_slides_all_poolings_and_an_external_cohort(tmp_path, capsys):
    cohort = write_slides(tmp_path / "a", 24, labels=("normal", "tumor"), extra="gone,zz,X,\n")
    other = write_slides(tmp_path / "b", 9, "q", ("normal", "tumor"), seed=1)
    for path in (other / "h5").iterdir():
        shutil.copy(path, cohort / "h5")  # --features names one folder
    assert diagnose(cohort, "--rotate", "--table", "--external", str(other)) == 0
    assert "1 slides without a label: gone" in capsys.readouterr().out
    run = cohort / "runs" / "diagnosis"
    rows = read_csv(run / "predictions.csv")
    assert len(rows) == 6 * 32
    table = {r["pooling"]: r for r in read_csv(run / "table.csv")}
    assert tuple(table) == POOLINGS and float(table["max"]["auc"]) > 0.9
    folds = [{(r["slide"], r["fold"]) for r in rows if r["pooling"] == p} for p in POOLINGS]
    assert all(each == folds[0] for each in folds)  # the same folds for all
    models = models_of(run, "max", 6)
    for model in models:
        assert not {*model["train_patients"]} & {*model["test_patients"], *model["valid_patients"]}
        assert len(model["test_patients"]) == 4
    external = read_csv(run / "external.csv")
    assert len(external) == 6 * 12
    assert not {r["patient"] for r in external} & {r["patient"] for r in rows}
    bag = load_features(other, cohort / "h5", "q00_0")[0]
    p = np.mean([apply_heads(model, "cpu")(bag)[0][0].softmax(0)[1].item() for model in models])
    (row,) = [r for r in external if r["slide"] == "q00_0" and r["pooling"] == "max"]
    assert float(row["p_tumour"]) == pytest.approx(p, abs=1e-5)
    report = (run / "report.md").read_text()
    assert (run / "curves.png").is_file() and "## External" in report
    assert report.startswith("# Diagnosis of tumour against normal: diagnosis\n")
    opening = opening_of(report)
    assert opening["Patients"].startswith("24 patients, 32 slides: ")
    assert f"ROC-AUC {auc_of(rows, 'HistCode'):.3f} (" in opening["Found"]
    assert f"max {auc_of(rows, 'max'):.3f}" in opening["Found"]
    assert "see the external cohort" in opening["Not to be concluded"]
    assert "paper's" not in report  # the task is not that of Table 1


def auc_of(rows, pooling):
    own = [row for row in rows if row["pooling"] == pooling]
    labels = [row["label"] == "tumour" for row in own]
    return stats.roc_auc(np.array(labels), np.array([float(row["p_tumour"]) for row in own]))


@pytest.mark.parametrize(
    "classes, what, words, beside",
    [
        (("TCGA-LUAD", "TCGA-LUSC"), "slides", [], True),
        (("LUSC", "luad"), "slides", [], True),
        (("LUAD", "not LUAD"), "slides", [], False),
        (("normal", "tumour"), "slides", [], False),
        (("LUAD", "LUSC"), "bags", [], False),
        (("LUAD", "LUSC"), "slides", ["SIMULATED cohort"], False),
    ],
)
def test_the_papers_figures_stand_beside_its_own_task_alone(classes, what, words, beside):
    assert is_of_table_1({"classes": classes, "what": what}, words) is beside
    figures = dict.fromkeys(("accuracy", "auc", "pr_auc"), (0.5, 0.1))
    shown = honest_table({"HistCode": figures}, np.array([0, 1]), beside)
    assert ("0.9630, 0.9765" in shown) is ("no comparison" in shown) is beside


@pytest.mark.parametrize(
    "bounds, said",
    [
        ((0.9, 0.6, 1.0), "lies above it"),
        ((0.6, 0.4, 0.8), "holds it"),
        ((0.2, 0.1, 0.4), "lies below it"),
        ((0.9, np.nan, np.nan), "there is no interval"),
    ],
)
def test_a_diagnosis_says_whether_its_interval_holds_chance(bounds, said):
    assert said in against_chance(*bounds)


def test_without_rotation_half_of_the_patients_are_tested(tmp_path):
    cohort = write_slides(tmp_path / "a", 12)
    assert diagnose(cohort, "--name", "half", "--pooling", "mean") == 0
    rows = read_csv(cohort / "runs" / "half" / "predictions.csv")
    assert {r["fold"] for r in rows} == {"0", "1", "2"} and len({r["patient"] for r in rows}) == 6


# ----- Who saw whom -----


def test_stopping_on_test_chooses_by_the_test_part_and_is_called_a_leak(tmp_path):
    cohort = write_slides(tmp_path / "a", 24)
    assert diagnose(cohort, "--name", "a") == diagnose(cohort, "--name", "b", "--code", "stop") == 0
    a, b = cohort / "runs" / "a", cohort / "runs" / "b"
    label = {r["slide"]: int(r["tumor"]) for r in read_csv(cohort / "samples.csv")}
    rows = read_csv(b / "predictions.csv")
    for f, (own, leaky) in enumerate(
        zip(models_of(a, "HistCode", 3), models_of(b, "HistCode", 3), strict=True)
    ):
        assert torch.equal(own["tests"], leaky["tests"])  # the same networks, epoch by epoch
        assert own["train_patients"] == leaky["train_patients"]
        y = [label[r["slide"]] for r in rows if r["fold"] == str(f)]
        wrong = [(answers.argmax(1).numpy() != y).sum() for answers in leaky["tests"]]
        assert leaky["epoch"] == max(e for e, n in enumerate(wrong, 1) if n == min(wrong))
        assert leaky["valid_patients"] == leaky["test_patients"] != own["valid_patients"]
        assert {*leaky["test_patients"]} <= {*leaky["learned_from"]}
        assert own["saw"]["choice of the epoch"] == own["valid_patients"]
        assert own["saw"]["weights of the network"] == own["train_patients"]
    top, seen = section(a)
    assert "saw test patients" not in top and "| choice of the epoch | 4 | 0 of 4 |  |" in seen
    assert "whom the encoder learned from is not known" in seen
    assert "| optimism table | 4 | 4 of 4 | by design" in seen
    top, seen = section(b)
    assert "**Steps that saw test patients: choice of the epoch**" in top
    assert "| choice of the epoch | 4 | 4 of 4 | **a leak** |" in seen
    assert "stop: the test part chooses it" in top and "one tests and chooses the epoch" in top
    with pytest.raises(InputError, match=r"other settings .code .'stop'. -> "):
        diagnose(cohort, "--name", "b")


def test_a_planted_leak_of_a_diagnosis_is_caught(tmp_path, monkeypatch):
    honest = roles

    def leaky(*a):
        train, valid, test = honest(*a)
        return np.r_[train, test[:1]], valid, test

    cohort = write_slides(tmp_path / "a", 24)
    swap(monkeypatch, "lab.histcode.splits", "roles", leaky)
    assert diagnose(cohort, "--table") == 0
    top, seen = section(cohort / "runs" / "diagnosis")
    leaks = "weights of the network, standardisation of the features"
    assert f"**Steps that saw test patients: {leaks}**" in top
    assert "| weights of the network | 17 | 1 of 4 | **a leak** |" in seen
    assert "| choice of the epoch | 4 | 0 of 4 |" in seen


def test_an_encoder_that_learned_from_test_patients_is_named(unlabelled):
    """From pretrain's checkpoint over the folder of features to the reports of what uses them."""
    assert pretrain(unlabelled, "--epochs", "1", "--name", "seer") == 0
    encoder = unlabelled / "runs" / "seer" / "seer.pt"
    learned = saved(encoder)["patients"]
    argv = ["--label", "project", "--rotate", "--precision", "float32", *SMALL]
    assert main(["diagnose", str(unlabelled), "--encoder", str(encoder), *argv]) == 0
    top, seen = section(unlabelled / "runs" / "diagnosis")
    assert "**Steps that saw test patients: encoder, without labels**" in top
    row = rf"\| encoder, without labels \| {len(learned)} \| (\S+) of \1 \| their tiles, no label"
    assert re.search(row, seen)


# ----- What is left out or refused -----


def test_words_that_say_nothing_are_left_out_and_all_others_counted(tmp_path, capsys):
    cohort = write_slides(tmp_path / "a", 18, labels=("Negative", "Positive"))
    table = cohort / "samples.csv"
    rows = table.read_text()
    changed = {
        "p00_0,p00,X,": "Equivocal",
        "p02_0,p02,X,": "[Not Evaluated]",
        "p04_0,p04,X,": "Low",
    }
    for row, word in changed.items():
        rows = rows.replace(f"{row}Negative", row + word)
    table.write_text(rows.replace("p01_1,p01,X,Positive", "p01_1,p01,X,positive "))
    argv = ["--label", "tumor", "--pooling", "mean", "--name", "er"]
    assert diagnose(cohort, *argv, "--positive", "POSITIVE") == 0
    said = capsys.readouterr().out
    nothing = "2 slides without a label (Equivocal 1, [Not Evaluated] 1): p00_0, p02_0"
    line = "positive: Positive 11, positive 1; negative: Negative 9, Low 1"
    assert nothing in said and line in said
    report = (cohort / "runs" / "er" / "report.md").read_text()
    assert f"Labels: {line}." in report and f"- {nothing}" in report
    argv = ["--label", "tumor", "--positive", "Positive", "--negative", "negative"]
    for path in (cohort / "h5").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="16 patients don't go into --folds 18"):
        diagnose(cohort, *argv, "--folds", "18")  # said before features are looked for


def test_slides_without_whole_features_are_named_and_left_out(tmp_path, capsys):
    cohort = write_slides(tmp_path / "a", 18)
    with h5py.File(cohort / "h5" / "p00_0.h5", "r+") as h:
        h["features"][2, 1] = np.nan
    (cohort / "h5" / "p01_1.h5").unlink()
    assert diagnose(cohort, "--pooling", "mean") == 1
    said = capsys.readouterr().err
    for words in ("p00_0: ", "NaN or infinite feature in tile 2", "p01_1: no file"):
        assert words in said


def test_where_too_few_slides_are_left_each_says_why(tmp_path, capsys):
    cohort = write_slides(tmp_path / "a", 9)
    for path in sorted((cohort / "h5").iterdir())[:6]:
        path.unlink()
    with pytest.raises(InputError, match="patients don't go into --folds 6"):
        diagnose(cohort)
    said = capsys.readouterr().err
    assert said.count("no file") == 6 and "6 of 12 slides failed" in said
    assert not (cohort / "runs").exists()


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
    a = write_slides(tmp_path / "a", 12, labels=("LUAD", "LUSC"))
    b = write_slides(tmp_path / "b", 12, "q", ("KIRC", "LUSC"), seed=1)
    for path in (b / "h5").iterdir():
        shutil.copy(path, a / "h5")
    with pytest.raises(InputError, match=r"labels of .* are KIRC, LUSC, of .* LUAD, LUSC"):
        diagnose(a, "--label", "tumor", "--external", str(b))


def test_a_patient_of_both_cohorts_is_no_test(tmp_path):
    a, b = write_slides(tmp_path / "a", 12), write_slides(tmp_path / "b", 12)
    with pytest.raises(InputError, match=r"p00.*patients of both"):
        diagnose(a, "--external", str(b))
    assert not (a / "runs").exists()


def test_features_made_elsewhere_in_every_verb(tmp_path, capsys):
    """CLAM's .pt files, whose coordinates come from its .h5 files, in all five verbs."""
    cohort = write_pairs(tmp_path / "c")
    (cohort / "uni" / "pt_files").mkdir(parents=True)
    (cohort / "slides").mkdir()
    for path in (cohort / "h5").iterdir():
        with h5py.File(path, "a") as h:
            features = torch.from_numpy(h["features"][()])
            torch.save(features, cohort / "uni" / "pt_files" / f"{path.stem}.pt")
            del h["features"]
            h["coords"][()] = np.stack(np.divmod(np.arange(len(h["coords"])), 4), 1) * 100
    write_pyramid(cohort / "slides" / "s0_1.tif", np.full((900, 900, 3), (225, 150, 185), np.uint8))
    uni, conch = cohort / "uni", cohort / "conch"
    assert main(["diagnose", str(cohort), "--rotate", "--features", str(uni), *SMALL]) == 0
    assert main(["expression", str(cohort), "--features", str(uni), *SMALL]) == 0
    shutil.copytree(uni, conch)
    assert main(["ablation", str(cohort), "--encoders", str(uni), str(conch), *SMALL]) == 0
    rows = read_csv(cohort / "runs" / "ablation" / "table.csv")
    table = {(r["encoder"], r["pooling"]): r["median R"] for r in rows}
    assert {encoder for encoder, _ in table} == {"uni", "conch"}
    assert table["uni", "mean"] == table["conch", "mean"]
    for name in ("diagnosis", "expression"):
        assert main(["predict", str(cohort / "runs" / name), "all", "--device", "cpu"]) == 0
    capsys.readouterr()
    run = cohort / "runs" / "diagnosis"
    heatmap = ["heatmap", str(run), "s0_1", "--device", "cpu", "--tile-um", "50"]
    assert main(heatmap) == 1
    assert "s0_1.pt has no coordinates: a map needs them" in capsys.readouterr().err
    (cohort / "h5").rename(uni / "patches")  # only coordinates in them
    assert main(heatmap) == 0
    path = run / "heatmaps" / "diagnose" / "s0_1" / "tiles.geojson"
    shapes = json.loads(path.read_text())["features"]
    assert len(shapes) == 9
    assert shapes[1]["geometry"]["coordinates"][0][:2] == [[0, 100], [100, 100]]
