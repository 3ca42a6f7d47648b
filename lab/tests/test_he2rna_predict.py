"""lab.tests.test_he2rna_predict"""

import json
import re
import shutil

import h5py
import numpy as np
import pytest
import torch

import he2rna
import tiling
from lab.cohort.encoding import make_features
from lab.cohort.features import load_features
from lab.commands.he2rna import main
from lab.files import InputError
from lab.he2rna.bags import in_memory as bags_in_memory
from lab.he2rna.runs import load_run, model_of
from lab.runs import load_checkpoint
from lab.tests.helpers import (
    folder_bytes,
    mixed_up,
    options,
    read_csv,
    tile_cloud,
    tiny_encoder,
    train,
    tune,
    write_cohort,
)


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


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_run_on_an_encoder_file_wants_that_file(drawn, tmp_path):
    cohort, file = tmp_path / "c", tmp_path / "tiny.pt"
    shutil.copytree(drawn, cohort)
    tiny_encoder(file), tiny_encoder(tmp_path / "other.pt", 1)
    assert (
        main(
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
    predict = lambda *argv: main(["predict", str(run), *map(str, argv), "--device", "cpu"])
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
        main(["heatmap", str(run), slide.stem, "--genes", "CD3D", "--device", "cpu"]) == 0
    )  # all tiles: made with the file
    assert len(np.load(cohort / "all-tiles" / "features" / "tiny" / f"{slide.stem}.npy")) > 2
    assert (
        main(
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
        main(["train", str(cohort), *small]) == 0
        and main(["train", str(cohort), *small, "--name", "s", "--code", "colour"]) == 0
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
        main(
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
        main(
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
        main(["train", str(cohort), *small, "--colour", "stretch"])


def test_features_of_another_kind_are_refused_naming_both(mapped, tmp_path, capsys):
    run, slide = mapped / "runs" / "he2rna", sorted((mapped / "slides").iterdir())[0]
    predict = lambda *argv: main(["predict", str(run), *map(str, argv), "--device", "cpu"])
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
        main(
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
        main(["predict", str(run), slide, str(other), "--precision", "bfloat16", "--device", "cpu"])
        == 0
    )
    rows = read_csv(run / "predict" / f"{slide}.csv")
    assert np.allclose([float(r["log10_1p_fpkm_uq"]) for r in rows], z["prediction"][0], atol=2e-5)
    assert (
        main(
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
    assert main(["heatmap", str(run), slide, "--genes", "CD3D", "--device", "cpu"]) == 0
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
        main(
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
        main(
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
        main(
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
