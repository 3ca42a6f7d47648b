"""Bags to learn from: labels of slides, and tables of instances; diagnosing a table end to end."""

import argparse

import numpy as np
import pytest

from lab.cohort.samples import barcode
from lab.commands import histcode
from lab.commands.histcode import main
from lab.commands.histcode.options import layers
from lab.files import InputError
from lab.histcode.bags import bags_of_table, tissue_of
from lab.tests.helpers import read_csv, real, status_of
from lab.tests.helpers_histcode import write_bag_table


def test_musk1_has_its_92_bags_and_166_features():
    data = bags_of_table(
        argparse.Namespace(bags=str(real("mil", "musk1.csv")), positive=None, negative=None)
    )
    assert len(data["names"]) == 92 and data["y"].sum() == 47 and data["classes"] == ("0", "1")
    assert data["bag"](0).shape[1] == 166 and sum(tiles for tiles, *_ in data["sums"]) == 476


@pytest.mark.parametrize(
    "column, words, kinds",
    [
        ("tumor", "1 0 Tumor normal yes NA unknown", [1, 0, 1, 0, 1, None, None]),
        ("tumor", "1.0 0.0 01", [1, 0, 1]),
        ("sample_type", "Primary+Tumor Solid+Tissue+Normal Metastatic", [1, 0, None]),
    ],
)
def test_tissue_is_read_from_a_column(tmp_path, column, words, kinds):
    words = words.replace("+", "_").split()
    samples = [{"slide": f"s{i}", column: w.replace("_", " ")} for i, w in enumerate(words)]
    assert tissue_of([*samples, {"slide": "empty", column: ""}], tmp_path) == [*kinds, None]


def test_tissue_is_read_from_barcodes_where_no_column_says_it(tmp_path):
    names = (
        ("TCGA-AA-0001-11A-DX1", ""),
        ("x", "TCGA-AA-0001-01A"),
        ("TCGA-AA-0001-06A", ""),
        ("x", ""),
    )
    rows = [{"slide": slide, "sample": sample} for slide, sample in names]
    assert tissue_of(rows, tmp_path) == [0, 1, None, None]
    with pytest.raises(InputError, match=r"no column tumor .1, 0. or sample_type, and no TCGA"):
        tissue_of(rows[3:], tmp_path)
    both = {"slide": "TCGA-AA-0001-11A", "tumor": "1", "sample_type": "Solid Tissue Normal"}
    assert tissue_of([both], tmp_path) == [1]  # the column tumor speaks first
    wrong = [{"slide": "s0", "tumor": "1"}, {"slide": "s1", "tumor": "maybe"}]
    with pytest.raises(InputError, match=r"samples.csv: tumor of slide s1 is 'maybe'; wanted 1 or"):
        tissue_of(wrong, tmp_path)


@pytest.mark.parametrize(
    "name, want",
    [
        ("TCGA-AB-12CD-01A-DX1", ("TCGA-AB-12CD", 1)),
        ("TCGA-AB-12CD-11", ("TCGA-AB-12CD", 0)),
        ("TCGA-AB-12CD-06A", ("TCGA-AB-12CD", None)),
        ("xTCGA-AB-12CD-01A", (None, None)),
        ("TCGA-AB-12C-01A", (None, None)),
    ],
)
def test_a_tcga_barcode_says_patient_and_tissue(name, want):
    assert barcode(name) == want


@pytest.mark.parametrize(
    "text, want",
    [
        ("64,32", (64, 32)),
        ("0", ()),
        ("100000", (100000,)),
        ("64,0", "1 to 100,000 wide"),
        ("x", "x"),
        *((n, "1 to 100,000 wide|2..63") for n in ("100001", "8,100000000000", "1" * 25)),
    ],
)
def test_embed_is_layers_that_can_be(text, want):
    if isinstance(want, tuple):
        assert layers(text) == want
    else:
        with pytest.raises((argparse.ArgumentTypeError, ValueError), match=want):
            layers(text)


TOY = "diagnose --bags toy.csv --folds 5 --epochs 12 --lr 0.01 --device cpu"


def test_a_table_of_bags_is_diagnosed_and_what_is_there_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_bag_table(tmp_path / "toy.csv", header=True)
    argv = [*TOY.split(), "--repeats", "2"]
    assert main(argv) == 0
    run = tmp_path / "toy-diagnosis"
    rows = read_csv(run / "predictions.csv")
    assert len(rows) == len({(r["bag"], r["repeat"]) for r in rows}) == 60  # each once a repeat
    hits = {}
    for r in rows:
        hits.setdefault((r["repeat"], r["fold"]), []).append(r["label"] == r["predicted"])
    accuracy = np.mean([np.mean(fold) for fold in hits.values()])
    (table,) = read_csv(run / "table.csv")
    assert table["folds"] == "10" and accuracy > 0.85
    assert float(table["accuracy"]) == pytest.approx(accuracy, abs=1e-4)
    assert float(table["best_epoch"]) >= float(table["accuracy"]) <= float(table["best_threshold"])
    report = (run / "report.md").read_text()
    for words in ("Optimism", "best threshold on test", "Always the commoner", "| lr | 0.0"):
        assert words in report
    assert report.startswith("# Diagnosis of 1 against 0: toy-diagnosis\n\n- **Asked.** Can bags")
    assert "paper's" not in report and "SIMULATED" not in report
    (run / "HistCode-r1-f3.pt").unlink()
    assert "repeat 0" in capsys.readouterr().out and main(argv) == 0
    said = capsys.readouterr().out
    assert "repeat 1 fold 3" in said and "repeat 0" not in said  # the one that was missing alone
    for before, after in zip(rows, read_csv(run / "predictions.csv"), strict=True):
        assert abs(float(before["p_1"]) - float(after["p_1"])) < 1e-4
    with pytest.raises(InputError, match=r"other settings.*epochs"):
        main([*argv, "--epochs", "13"])


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--encoder resnet50", "--encoder"),
        ("--label stage --tile-um 99 --max-tiles 0", "--label, --tile-um, --max-tiles"),
        ("--features h5 --tissue stain --min-area 0", "--tissue, --min-area, --features"),
        ("--external b --weights random", "--external, --weights"),
        ("--code folds", "--code folds"),
    ],
)
def test_options_that_only_fit_a_cohort_are_refused_by_name(
    tmp_path, monkeypatch, capsys, argv, words
):
    monkeypatch.chdir(tmp_path)
    write_bag_table(tmp_path / "toy.csv")
    status, said = status_of(capsys, histcode, *TOY.split(), *argv.split())
    assert status == 2 and len(said) == 1 and "toy.csv" in said[0]
    assert said[0].startswith(f"error: {words}: only with a cohort folder; ")
    assert not (tmp_path / "toy-diagnosis").exists()


def with_field(value, field=3, line=4):
    """The rows with one field changed."""

    def change(rows):
        rows[line] = [*rows[line][:field], value, *rows[line][field + 1 :]]
        return rows

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda rows: [["1", *r[1:]] for r in rows], "every label is 1; a classifier needs two"),
        (
            lambda rows: [[str(i % 3), *r[1:]] for i, r in enumerate(rows)],
            "3 labels .*--positive",
        ),
        (lambda rows: [*rows, ["1", "b0", *rows[0][2:]]], "bag b0 has both labels"),
        (with_field("nan"), "row 5: field 4 is 'nan', not a finite number"),
        (with_field(""), "row 5: field 4 is '', not a finite"),
        (with_field("1e39"), "row 5: field 4 is '1e39', not a finite"),
        (with_field("", 0, 0), "row 1: label '', bag 'b0'"),
        (lambda rows: [*rows[:4], rows[4][:-1], *rows[5:]], "row 5: 7 fields, row 1 has 8"),
        (
            lambda rows: [[*rows[0][:2], *["nan"] * 6], *rows[1:]],
            "row 1: field 3 is 'nan'",  # and no header
        ),
        (lambda rows: [[*r, r[0]] for r in rows], "column 9 is the label again"),
        (lambda rows: [r[:2] for r in rows], "wanted a table with the columns label, bag"),
        (
            lambda rows: [r for r in rows if r[1] in ("b0", "b1", "b2")],
            "3 patients don't go into --folds 5",
        ),
        (lambda rows: [r for r in rows if r[0] == "0" or r[1] == "b1"], "one class only"),
    ],
)
def test_mistakes_in_a_table_of_bags_are_told(tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    rows = change(write_bag_table(tmp_path / "toy.csv"))
    (tmp_path / "toy.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    with pytest.raises(InputError, match=words):
        main(TOY.split())
    assert not (tmp_path / "toy-diagnosis").exists()
