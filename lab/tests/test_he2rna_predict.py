"""lab.tests.test_he2rna_predict"""

import json
import re
import shutil

import h5py
import numpy as np
import pytest
import torch

from lab.cohort.features import load_features
from lab.commands.he2rna import main
from lab.files import InputError
from lab.he2rna.runs import model_of
from lab.runs import load_checkpoint
from lab.tests.helpers import mixed_up, read_csv, tile_cloud, train, tune, write_cohort


def test_a_checkpoint_of_another_run_is_named(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(0), patients=6)
    run = tmp_path / "runs" / "he2rna"
    assert (
        train(tmp_path, "--epochs", "1") == 0
        and train(tmp_path, "--epochs", "1", "--hidden", "8", "--name", "small") == 0
    )
    other = load_checkpoint(tmp_path / "runs" / "small" / "fold1.pt", "cpu")
    for wrong, why in (
        (other, "run or fold"),
        ({k: v for k, v in other.items() if k != "run"}, "network"),  # made before runs had an id
        (torch.load(run / "fold0.pt", weights_only=True), "run or fold"),
    ):
        torch.save(wrong, run / "fold1.pt")
        with pytest.raises(
            InputError,
            match=f"fold1.pt: not a whole checkpoint of this run .of another {why}.; delete it",
        ):
            train(tmp_path, "--epochs", "1")
    for value in ([1, 2], dict(weights=1)):
        torch.save(value, run / "fold1.pt")
        for command in (
            lambda: train(tmp_path, "--epochs", "1"),
            lambda: main(["predict", str(run), "all"]),
        ):
            with pytest.raises(InputError, match="fold1.pt: not a whole checkpoint of this run"):
                command()
    (run / "fold1.pt").unlink()
    assert train(tmp_path, "--epochs", "1") == 0
    mixed_up(run, lambda: main(["predict", str(run), "all"]), "patient")


def test_predictions_of_padding_and_relu_runs_are_those_of_their_models(tmp_path, capsys):
    """Cross-validation and predict agree, though predict sees a slide alone: the padding is the model's."""
    write_cohort(tmp_path, np.random.default_rng(3), patients=12)
    assert (
        train(
            tmp_path,
            "--epochs",
            "1",
            "--folds",
            "5",
            "--valid",
            ".1",
            "--follow",
            "code",
            "--code",
            "k",
        )
        == 0
    )
    run = tmp_path / "runs" / "he2rna"
    assert json.loads((run / "config.json").read_text())["code"] == [
        "genes",
        "padding",
        "relu",
        "k",
        "folds",
    ]
    assert "without colour, for features made elsewhere" in capsys.readouterr().out
    z = np.load(run / "predictions.npz")
    assert z["prediction"].min() >= 0 and main(["predict", str(run), "all", "--device", "cpu"]) == 0
    for slide, want in zip(z["slide"], z["prediction"]):
        got = [float(r["log10_1p_fpkm_uq"]) for r in read_csv(run / "predict" / f"{slide}.csv")]
        assert np.allclose(got, want, atol=2e-5)


def test_predict_gives_what_cross_validation_gave_and_knows_whom_the_models_saw(tmp_path, capsys):
    write_cohort(tmp_path, np.random.default_rng(3), patients=12, per_patient=2)
    assert train(tmp_path, "--epochs", "2") == 0 and tune(tmp_path, "--name", "tuned") == 0
    for name in ("he2rna", "tuned"):
        run = tmp_path / "runs" / name
        assert main(["predict", str(run), "all", "--device", "cpu", "--representation"]) == 0
        z = np.load(run / "predictions.npz")
        for slide, want, fold in zip(z["slide"], z["prediction"], z["fold"]):
            rows = read_csv(run / "predict" / f"{slide}.csv")
            assert [r["gene"] for r in rows] == z["genes"].tolist()
            assert np.allclose([float(r["log10_1p_fpkm_uq"]) for r in rows], want, atol=2e-5)
            assert np.allclose(
                [float(r["fpkm_uq"]) for r in rows],
                np.maximum(10 ** want.astype(float) - 1, 0),
                rtol=1e-4,
            )
            h = np.load(run / "predict" / f"{slide}.representation.npz")
            assert h["folds"].tolist() == [fold] and h["each"].shape == (1, 16)
            model = model_of(torch.load(run / f"fold{fold}.pt", weights_only=True), "cpu").eval()
            x = torch.from_numpy(load_features(tmp_path, tmp_path / "h5", slide)[0]).float().mean(0)
            for layer in model.layers[:-1]:
                x = layer(x).relu()
            assert np.allclose(h["mean"], x.detach().numpy(), atol=1e-4)
    capsys.readouterr()
    new = tmp_path / "new" / "h5"  # a slide of one tile, of nobody the run knows
    new.mkdir(parents=True)
    with h5py.File(new / "stranger.h5", "w") as h:
        h["features"], h["coords"] = np.ones((1, 8), np.float16), np.zeros((1, 2), np.int32)
    shutil.copyfile(tmp_path / "h5" / "s00_0.h5", new / "s00_0.h5")
    shutil.copytree(new, tmp_path / "other")  # as wide, but of whose encoder?
    with pytest.raises(InputError, match="learned from features in a folder h5"):
        main(
            [
                "predict",
                str(tmp_path / "runs" / "he2rna"),
                str(tmp_path / "other" / "stranger.h5"),
                "--device",
                "cpu",
            ]
        )
    for run in ("he2rna", "tuned"):
        assert (
            main(
                [
                    "predict",
                    str(tmp_path / "runs" / run),
                    str(new / "stranger.h5"),
                    str(new / "s00_0.h5"),
                    "--device",
                    "cpu",
                ]
            )
            == 0
        )
        out = capsys.readouterr().out
        assert "stranger: 1 tiles, models of folds 0, 1, 2" in out and re.search(
            r"s00_0: 30 tiles, models of folds \d \(", out
        )
        rows = read_csv(tmp_path / "runs" / run / "predict" / "stranger.csv")
        models = [
            model_of(
                torch.load(tmp_path / "runs" / run / f"fold{f}.pt", weights_only=True), "cpu"
            ).eval()
            for f in range(3)
        ]
        want = sum(m.tile_scores(torch.ones(1, 1, 8))[0, 0] for m in models).detach().numpy() / 3
        assert np.allclose([float(r["log10_1p_fpkm_uq"]) for r in rows], want, atol=1e-4)
    for scale, words in (
        (1e6, "features up to 1e+06 are beyond float16; scale them down"),
        (6e4, "not finite: features up to 6e+04 are of another scale"),
    ):
        with h5py.File(new / "large.h5", "w") as h:
            h["features"], h["coords"] = np.full((3, 8), scale, np.float32), tile_cloud(3)
        assert (
            main(
                [
                    "predict",
                    str(tmp_path / "runs" / "he2rna"),
                    str(new / "large.h5"),
                    str(new / "s00_0.h5"),
                    "--device",
                    "cpu",
                ]
            )
            == 1
        )
        said = capsys.readouterr()
        assert "failed: large: " in said.err and words in said.err and "s00_0: 30 tiles" in said.out
        assert not (tmp_path / "runs" / "he2rna" / "predict" / "large.csv").exists()
