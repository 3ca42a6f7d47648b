"""Fine-tuning keeps folds and output rows, learns from all tiles, and goes on where it stopped."""

import numpy as np
import torch

import he2rna
from lab.cohort.features import load_features
from lab.he2rna.runs import model_of
from lab.tests.helpers import read_csv, swap
from lab.tests.helpers_he2rna import direct, same_runs, train, tune, write_cohort


def checkpoint(run, fold):
    return torch.load(run / f"fold{fold}.pt", weights_only=True)


def test_folds_and_output_rows_are_the_runs(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(0), patients=24, per_patient=2)
    assert train(tmp_path, "--epochs", "3") == 0
    assert tune(tmp_path, "--project", "X", "--genes", "G4,G1", "--lr", "1e-12") == 0
    run, tuned = (tmp_path / "runs" / name for name in ("he2rna", "he2rna-X-finetuned"))
    before, after = ({r["slide"]: r for r in read_csv(f / "folds.csv")} for f in (run, tuned))
    assert set(after) == {slide for slide, row in before.items() if row["project"] == "X"}
    for slide, row in after.items():  # its test fold, and the folds whose epoch it chooses
        assert row == before[slide]
    for f in range(3):
        old, new = checkpoint(run, f), checkpoint(tuned, f)
        assert new["genes"] == ["G4", "G1"] and new["ks"] == [1, 5, 20]
        for layer, rows in (("layers.2.weight", [4, 1]), ("layers.0.weight", slice(None))):
            assert torch.allclose(new["model"][layer], old["model"][layer][rows], atol=1e-6)
    assert "fine-tuned on all tiles" in (tuned / "report.md").read_text()


def test_predictions_are_those_of_all_tiles_slide_by_slide(tmp_path):
    """Authority: the direct way, one slide after another."""
    write_cohort(tmp_path, np.random.default_rng(0), patients=12)
    assert train(tmp_path, "--epochs", "2") == 0
    for precision in ("float32", "bfloat16"):
        assert tune(tmp_path, "--name", precision, "--precision", precision) == 0
    z = np.load(tmp_path / "runs" / "float32" / "predictions.npz")
    for f in range(3):
        model = model_of(checkpoint(tmp_path / "runs" / "float32", f), "cpu")
        for row in np.flatnonzero(z["fold"] == f):
            tiles, _ = load_features(tmp_path, tmp_path / "h5", z["slide"][row])
            x = torch.from_numpy(tiles).float()[None]
            mask = torch.ones(x.shape[:2], dtype=torch.bool)
            every_k = torch.stack([direct(model, x, mask, k) for k in (1, 5, 20)])
            want = every_k.mean(0)[0].detach().numpy()
            assert np.allclose(z["prediction"][row], want, atol=1e-5)
    rounded = np.load(tmp_path / "runs" / "bfloat16" / "predictions.npz")
    assert np.allclose(rounded["prediction"], z["prediction"], atol=0.1)


def test_it_learns_and_one_that_was_stopped_ends_the_same(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(1), patients=30, tiles=60)
    assert train(tmp_path, "--epochs", "2", "--lr", "1e-4") == 0
    longer = ("--epochs", "12", "--lr", "3e-3")
    assert tune(tmp_path, "--name", "whole", *longer) == 0
    predict, calls = he2rna.predict, []

    def stop(*args, **more):
        calls.append(args)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return predict(*args, **more)

    swap(monkeypatch, "he2rna", "predict", stop)
    try:
        tune(tmp_path, "--name", "cut", *longer)
    except KeyboardInterrupt:
        assert len(calls) == 9
    monkeypatch.undo()
    assert tune(tmp_path, "--name", "cut", *longer) == 0
    runs = tmp_path / "runs"
    same_runs(runs / "whole", runs / "cut")
    assert mean_planted_r(runs / "cut") > max(0.5, mean_planted_r(runs / "he2rna"))


def mean_planted_r(run):
    rows = read_csv(run / "genes.csv")
    return np.mean([float(r["R"]) for r in rows if r["gene"] in ("G0", "G1", "G2")])
