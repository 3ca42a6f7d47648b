"""lab.tests.test_he2rna_finetune"""

import json

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import torch

import he2rna
import stats
from lab.audit.choices import switches
from lab.cohort.features import load_features
from lab.commands.he2rna import main
from lab.files import InputError
from lab.he2rna.choices import CHOICES
from lab.he2rna.runs import model_of
from lab.tests.helpers import (
    direct,
    read_csv,
    same_runs,
    swap,
    train,
    tune,
    write_cohort,
)


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
