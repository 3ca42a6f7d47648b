"""lab.tests.test_he2rna_finetune"""

import numpy as np
import torch

import he2rna
from lab.cohort.features import load_features
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
