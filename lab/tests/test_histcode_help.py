"""lab.tests.test_histcode_help"""

import os

import numpy as np
import pytest

from lab.commands.histcode import main
from lab.files import InputError
from lab.tests.helpers import read_csv, write_bag_table


def test_diagnose_a_table_of_bags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_bag_table(tmp_path / "toy.csv", header=True)
    argv = [
        "diagnose",
        "--bags",
        "toy.csv",
        "--repeats",
        "2",
        "--folds",
        "5",
        "--epochs",
        "12",
        "--lr",
        "0.01",
        "--device",
        "cpu",
    ]
    assert main(argv) == 0
    rows = read_csv(tmp_path / "toy-diagnosis" / "predictions.csv")
    assert (
        len(rows) == 60 and len({(r["bag"], r["repeat"]) for r in rows}) == 60
    )  # each bag tested once in each repeat
    assert np.mean([r["label"] == r["predicted"] for r in rows]) > 0.85
    (table,) = read_csv(tmp_path / "toy-diagnosis" / "table.csv")
    accuracy = np.mean(
        [
            np.mean(
                [
                    r["label"] == r["predicted"]
                    for r in rows
                    if (r["repeat"], r["fold"]) == (str(a), str(b))
                ]
            )
            for a in range(2)
            for b in range(5)
        ]
    )
    assert float(table["accuracy"]) == pytest.approx(accuracy, abs=1e-4) and table["folds"] == "10"
    assert float(table["best_epoch"]) >= float(table["accuracy"]) <= float(table["best_threshold"])
    report = (tmp_path / "toy-diagnosis" / "report.md").read_text()
    assert all(
        word in report
        for word in (
            "Optimism",
            "best threshold on test",
            "Always the commoner class",
            "no comparison",
        )
    )
    before = (tmp_path / "toy-diagnosis" / "predictions.csv").read_bytes()
    (tmp_path / "toy-diagnosis" / "HistCode-r1-f3.pt").unlink()
    assert "repeat 0" in capsys.readouterr().out and main(argv) == 0
    said = capsys.readouterr().out
    assert "repeat 1 fold 3" in said and "repeat 0" not in said  # the one that was missing alone
    after = read_csv(tmp_path / "toy-diagnosis" / "predictions.csv")
    assert (
        all(abs(float(a["p_1"]) - float(b["p_1"])) < 1e-4 for a, b in zip(rows, after)) and before
    )
    with pytest.raises(InputError, match="other settings.*epochs"):
        main([*argv, "--epochs", "13"])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda rows: [["1", *r[1:]] for r in rows], "every label is 1; a classifier needs two"),
        (
            lambda rows: [[str(i % 3), r[1], *r[2:]] for i, r in enumerate(rows)],
            "3 labels .*--positive",
        ),
        (lambda rows: [*rows, ["1", "b0", *rows[0][2:]]], "bag b0 has both labels"),
        (
            lambda rows: [*rows[:4], [*rows[4][:3], "nan", *rows[4][4:]], *rows[5:]],
            "row 5: field 4 is 'nan', not a finite number",
        ),
        (
            lambda rows: [*rows[:4], [*rows[4][:3], "", *rows[4][4:]], *rows[5:]],
            "row 5: field 4 is '', not a finite",
        ),
        (
            lambda rows: [*rows[:4], [*rows[4][:3], "1_0", *rows[4][4:]], *rows[5:]],
            "row 5: field 4 is '1_0', not a finite",
        ),
        (lambda rows: [*rows[:4], rows[4][:-1], *rows[5:]], "row 5: 7 fields, row 1 has 8"),
        (lambda rows: [["", *rows[0][1:]], *rows[1:]], "row 1: label '', bag 'b0'"),
        (
            lambda rows: [[*rows[0][:2], *["nan"] * 6], *rows[1:]],
            "row 1: field 3 is 'nan'",
        ),  # no header
        (
            lambda rows: [*rows[:4], [*rows[4][:3], "1e39", *rows[4][4:]], *rows[5:]],
            "row 5: field 4 is '1e39', not a finite",
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
        main(["diagnose", "--bags", "toy.csv", "--folds", "5", "--epochs", "1", "--device", "cpu"])
    assert os.listdir(tmp_path) == ["toy.csv"]
