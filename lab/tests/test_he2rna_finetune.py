"""lab.tests.test_he2rna_finetune"""

import json

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import torch

import stats
from lab.audit.choices import switches
from lab.commands.he2rna import main
from lab.files import InputError
from lab.he2rna.choices import CHOICES
from lab.tests.helpers import read_csv, train, write_cohort


def test_a_runs_switches_have_two_sides(tmp_path, capsys):
    """genes, folds, epochs, bias and pooled in runs of one epoch that learn next to nothing, so that the start is seen."""
    write_cohort(tmp_path, np.random.default_rng(5), patients=30)
    lines = (
        (tmp_path / "expression.csv").read_text().splitlines()
    )  # G5 is expressed in a third of the samples
    lines = [
        lines[0],
        *(
            line if i % 3 == 0 else line.rsplit(",", 1)[0] + ",0"
            for i, line in enumerate(lines[1:])
        ),
    ]
    (tmp_path / "expression.csv").write_text("\n".join(lines) + "\n")
    few_steps = ("--epochs", "2", "--lr", "1e-9", "--folds", "5", "--valid", ".1")
    assert train(tmp_path, *few_steps) == 0
    assert (
        train(
            tmp_path,
            *few_steps,
            "--valid",
            "0",
            "--name",
            "b",
            "--code",
            "genes,epochs,bias,pooled",
        )
        == 0
    )
    assert train(tmp_path, *few_steps, "--name", "c", "--code", "folds") == 0
    runs = {name: tmp_path / "runs" / name for name in ("he2rna", "b", "c")}
    folds = {name: read_csv(run / "folds.csv") for name, run in runs.items()}
    saved = {
        name: [torch.load(run / f"fold{f}.pt", weights_only=True) for f in range(5)]
        for name, run in runs.items()
    }
    assert saved["he2rna"][0]["genes"] == [f"G{g}" for g in range(5)] and saved["b"][0][
        "genes"
    ] == [f"G{g}" for g in range(6)]
    assert all(r["validates_folds"] == "" for r in folds["b"]) and any(
        r["validates_folds"] for r in folds["he2rna"]
    )
    for f in range(5):
        assert (
            saved["b"][f]["note"]["best_epoch"] == 2
            and len(saved["b"][f]["saw"]["weights of the network"]) == 24
        )
        assert (
            len(saved["he2rna"][f]["saw"]["weights of the network"]) == 22
            and len(saved["he2rna"][f]["saw"]["choice of the epoch"]) == 2
        )
    z = {name: np.load(run / "predictions.npz") for name, run in runs.items()}
    for name, learned in (("he2rna", True), ("b", False)):
        for f, one in enumerate(saved[name]):
            rows = np.isin(z[name]["patient"], one["saw"]["weights of the network"])
            assert (
                np.allclose(
                    one["model"]["layers.2.bias"].numpy(), z[name]["truth"][rows].mean(0), atol=1e-3
                )
                == learned
            )
    patients = [r["patient"] for r in folds["c"]]
    for f, (rows, valid, test) in enumerate(stats.authors_folds(patients)):  # set for set
        assert [r["test_fold"] == str(f) for r in folds["c"]] == np.isin(
            np.arange(30), test
        ).tolist()
        assert [str(f) in r["validates_folds"].split() for r in folds["c"]] == np.isin(
            np.arange(30), valid
        ).tolist()
        assert saved["c"][f]["saw"]["weights of the network"] == sorted(patients[i] for i in rows)
    assert [r["test_fold"] for r in folds["c"]] != [r["test_fold"] for r in folds["he2rna"]]
    header = {name: (run / "genes.csv").read_text().splitlines()[0] for name, run in runs.items()}
    assert header["he2rna"].endswith("R_fold0,R_fold1,R_fold2,R_fold3,R_fold4") and header[
        "b"
    ].endswith("significant_bh,R_fold0")
    for r in read_csv(runs["b"] / "genes.csv"):  # one R over all folds
        at, g = z["b"]["project"] == r["project"], list(z["b"]["genes"]).index(r["gene"])
        assert float(r["R"]) == pytest.approx(
            scipy.stats.pearsonr(z["b"]["prediction"][at, g], z["b"]["truth"][at, g])[0], abs=1e-4
        )
    report = (runs["b"] / "report.md").read_text()
    for c in ("genes", "epochs", "bias", "pooled"):
        assert f"{c}: {switches(CHOICES, 'train')[c]}" in report
    assert json.loads((runs["b"] / "config.json").read_text())["code"] == [
        "genes",
        "epochs",
        "bias",
        "pooled",
    ]
    for name, argv in (("he2rna", ("--code", "padding")), ("c", ())):  # never a mix, either way
        with pytest.raises(InputError, match=r"other settings .*code \["):
            train(tmp_path, *few_steps, "--name", name, *argv)
    assert (
        main(["finetune", str(tmp_path), "b", "--epochs", "1", "--ks", "1,5", "--device", "cpu"])
        == 0
    )  # keeps its switches
    assert json.loads((tmp_path / "runs" / "b-finetuned" / "config.json").read_text())["code"] == [
        "genes",
        "epochs",
        "bias",
        "pooled",
    ]
    assert (
        "| b: weights of the network | 24 | 0 of 6 |"
        in (tmp_path / "runs" / "b-finetuned" / "report.md").read_text()
    )
