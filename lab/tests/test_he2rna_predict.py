"""Prediction with a run's models, and whose features they may be asked about.

Authorities: the run's own cross-validation, and the checkpoints' models asked directly.
"""

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
from lab.files import InputError, load_json
from lab.he2rna.runs import load_run, model_of
from lab.provenance import SIMULATED, UNTRAINED
from lab.tests.helpers import copy_of, folder_bytes, options, read_csv, tile_cloud, tiny_encoder
from lab.tests.helpers_he2rna import mixed_up, train, tune, write_cohort

EPOCH = ("--epochs", "1")
SMALL = ("--folds", "3", "--epochs", "1", "--hidden", "8", "--device", "cpu")


def predict(run, *argv):
    return main(["predict", str(run), *map(str, argv), "--device", "cpu"])


def predicted(run, slide, column="log10_1p_fpkm_uq"):
    return [float(r[column]) for r in read_csv(run / "predict" / f"{slide}.csv")]


def checkpoint(run, fold):
    return torch.load(run / f"fold{fold}.pt", weights_only=True)


# ----- Checkpoints ----------------------------------------------------------------------------


def test_a_checkpoint_of_another_run_or_fold_is_refused(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(0), patients=6)
    run = tmp_path / "runs" / "he2rna"
    assert train(tmp_path, *EPOCH) == 0
    assert train(tmp_path, *EPOCH, "--hidden", "8", "--name", "small") == 0
    other = checkpoint(tmp_path / "runs" / "small", 1)
    unmarked = {key: value for key, value in other.items() if key != "run"}
    for wrong, why in (
        (other, r".of another run or fold."),
        (checkpoint(run, 0), r".of another run or fold."),
        (unmarked, r".of another network."),
        ([1, 2], ""),
        ({"weights": 1}, ""),
    ):
        torch.save(wrong, run / "fold1.pt")
        with pytest.raises(InputError, match=f"fold1.pt: not a whole checkpoint of this run {why}"):
            train(tmp_path, *EPOCH)
    with pytest.raises(InputError, match=r"fold1.pt: not a whole checkpoint of this run"):
        predict(run, "all")
    (run / "fold1.pt").unlink()
    assert train(tmp_path, *EPOCH) == 0
    mixed_up(run, lambda: predict(run, "all"), "patient")


def test_a_run_of_another_version_or_not_finished_is_refused(mapped, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(mapped / "runs" / "he2rna", run)
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"version": 5', '"version": 1'))
    with pytest.raises(InputError, match=r"version 1 .* reads version 5"):
        load_run(run)
    (run / "config.json").write_text(text)
    (run / "fold1.pt").unlink()
    with pytest.raises(InputError, match=r"fold1.pt is missing: the run is not finished"):
        load_run(run)


# ----- What is predicted ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_runs_once(tmp_path_factory):
    """A cohort with a run and its fine-tuning, both asked about all slides."""
    cohort = tmp_path_factory.mktemp("two") / "c"
    write_cohort(cohort, np.random.default_rng(3), patients=12, per_patient=2)
    assert train(cohort, "--epochs", "2") == 0 and tune(cohort, "--name", "tuned") == 0
    for name in ("he2rna", "tuned"):
        assert predict(cohort / "runs" / name, "all", "--representation") == 0
    return cohort


two_runs = copy_of("two_runs_once")


@pytest.mark.parametrize("name", ["he2rna", "tuned"])
def test_predict_gives_what_cross_validation_gave(two_runs, name):
    run = two_runs / "runs" / name
    z = np.load(run / "predictions.npz")
    for slide, want, fold in zip(z["slide"], z["prediction"], z["fold"], strict=True):
        genes = [r["gene"] for r in read_csv(run / "predict" / f"{slide}.csv")]
        assert genes == z["genes"].tolist()
        assert np.allclose(predicted(run, slide), want, atol=2e-5)
        linear = np.maximum(10 ** want.astype(float) - 1, 0)
        assert np.allclose(predicted(run, slide, "fpkm_uq"), linear, rtol=1e-4)
        h = np.load(run / "predict" / f"{slide}.representation.npz")
        assert h["folds"].tolist() == [fold] and h["each"].shape == (1, 16)
        features, _ = load_features(two_runs, two_runs / "h5", slide)
        x = torch.from_numpy(features).float().mean(0)
        for layer in model_of(checkpoint(run, fold), "cpu").layers[:-1]:
            x = layer(x).relu()
        assert np.allclose(h["mean"], x.detach().numpy(), atol=1e-4)


def write_slide(path, features):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as h:
        h["features"], h["coords"] = features, tile_cloud(len(features))


@pytest.mark.parametrize("name", ["he2rna", "tuned"])
def test_a_stranger_is_spoken_of_by_all_models_and_a_patient_by_one(
    two_runs, tmp_path, capsys, name
):
    run, folder = two_runs / "runs" / name, tmp_path / "h5"
    tile = np.linspace(-1, 2.5, 8, dtype=np.float16)[None]
    write_slide(folder / "stranger.h5", tile)
    shutil.copyfile(two_runs / "h5" / "s00_0.h5", folder / "s00_0.h5")
    assert predict(run, folder / "stranger.h5", folder / "s00_0.h5") == 0
    said = capsys.readouterr().out
    assert "stranger: 1 tiles, models of folds 0, 1, 2" in said
    assert re.search(r"s00_0: 30 tiles, models of folds \d \(the others learned from", said)
    models = [model_of(checkpoint(run, f), "cpu") for f in range(3)]
    scores = [
        model.tile_scores(torch.from_numpy(tile).float())[0].detach().numpy() for model in models
    ]
    assert np.allclose(predicted(run, "stranger"), np.mean(scores, 0), atol=1e-4)
    shutil.copytree(folder, tmp_path / "other")  # as wide, but of whose encoder?
    with pytest.raises(InputError, match="learned from features in a folder h5"):
        predict(run, tmp_path / "other" / "stranger.h5")


def test_another_slide_of_the_same_name_has_a_result_of_its_own(two_runs, tmp_path, capsys):
    """Another cohort's s00_0 and the run's, in one command: neither overwrites the other."""
    run, other = two_runs / "runs" / "he2rna", tmp_path / "h5" / "s00_0.h5"
    write_slide(other, np.random.default_rng(1).normal(size=(5, 8)).astype(np.float16))
    before = predicted(run, "s00_0")
    assert predict(run, "s00_0", other) == 0
    said = capsys.readouterr().out
    assert predicted(run, "s00_0") == before
    (name,) = re.findall(r"(s00_0-\w{6}): 5 tiles, models of folds 0, 1, 2 ->", said)
    assert predicted(run, name) != before
    with pytest.raises(InputError, match="slide s00_0 is asked for twice"):
        predict(run, other, other)
    (tmp_path / "samples.csv").write_text("slide,patient,project\ns00_0,p00,X\n")
    assert predict(run, other) == 0  # of a patient of the run, by its table
    assert re.search(r"models of folds \d \(the others learned", capsys.readouterr().out)


@pytest.mark.parametrize(
    "scale, words",
    [
        (1e6, "features up to 1e+06 in 3 of 3 tiles, the first is tile 0, are beyond float16"),
        (6e4, "not finite: features up to 6e+04 are of another scale"),
    ],
)
def test_features_of_another_scale_fail_and_the_others_go_on(
    two_runs, tmp_path, capsys, scale, words
):
    run, folder = two_runs / "runs" / "he2rna", tmp_path / "h5"
    write_slide(folder / "large.h5", np.linspace(0.97, 1, 24).reshape(3, 8) * scale)
    shutil.copyfile(two_runs / "h5" / "s00_0.h5", folder / "s00_0.h5")
    assert predict(run, folder / "large.h5", folder / "s00_0.h5") == 1
    said = capsys.readouterr()
    assert "failed: large" in said.err and words in said.err
    assert "s00_0: 30 tiles" in said.out
    assert not (run / "predict" / "large.csv").exists()


def test_the_authors_padding_and_relu_go_with_the_model(tmp_path, capsys):
    """Cross-validation and predict agree, though predict sees a slide alone."""
    write_cohort(tmp_path, np.random.default_rng(3), patients=12)
    theirs = "--epochs 1 --folds 5 --valid .1 --follow code --code k"
    assert train(tmp_path, *theirs.split()) == 0
    assert "without colour, for features made elsewhere" in capsys.readouterr().out
    run = tmp_path / "runs" / "he2rna"
    code = load_json(run / "config.json")["code"]
    assert code == ["genes", "padding", "relu", "k", "folds", "subtypes"]
    assert predict(run, "all") == 0
    z = np.load(run / "predictions.npz")
    assert z["prediction"].min() >= 0
    for slide, want in zip(z["slide"], z["prediction"], strict=True):
        assert np.allclose(predicted(run, slide), want, atol=2e-5)


# ----- Features as the run's ------------------------------------------------------------------


@pytest.fixture
def new_slide(tmp_path):
    """A function that copies a slide into a folder of its own, as x."""

    def copy(slide):
        path = tmp_path / "new" / "slides" / f"x{slide.suffix}"
        path.parent.mkdir(parents=True)
        shutil.copyfile(slide, path)
        return path

    return copy


def features(folder, source, name):
    return np.load(folder / "features" / source / f"{name}.npy")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_run_on_an_encoder_file_wants_that_file(drawn, new_slide, tmp_path, capsys):
    cohort, file, other = tmp_path / "c", tmp_path / "tiny.pt", tmp_path / "other.pt"
    shutil.copytree(drawn, cohort)
    tiny_encoder(file)
    tiny_encoder(other, 1)
    made_so = ("--colour", "macenko", "--tissue", "saturation", "--max-tiles", "2")
    assert main(["train", str(cohort), "--encoder", str(file), *made_so, *SMALL]) == 0
    run, slide = cohort / "runs" / "he2rna", min((cohort / "slides").iterdir())
    made = load_json(run / "config.json")["features"]
    assert made["source"] == "tiny" and made["weights"].startswith("tiny.pt sha256")
    assert [made[k] for k in ("colour", "tissue", "tile_px")] == ["macenko", "saturation", 224]
    new = new_slide(slide)
    with pytest.raises(InputError, match=r"learned with weights tiny.pt sha256 .* --weights FILE"):
        predict(run, new)
    with pytest.raises(InputError, match=r"weights other.pt sha256 .*, the run has tiny.pt sha256"):
        predict(run, new, "--weights", other)
    assert predict(run, slide) == 0
    assert predict(run, new, "--weights", file) == 0
    home = new.parents[1]
    side = load_json(home / "features" / "tiny" / "x.json")
    assert side["weights"] == made["weights"] and side["colour"] == "macenko"
    assert side["tiles"]["tissue"] == "saturation"
    assert (features(cohort, "tiny", slide.stem) == features(home, "tiny", "x")).all()
    # a map wants all tiles, which are made with the file, and its code is run if it is named
    heatmap = ["heatmap", str(run), slide.stem, "--genes", "CD3D", "--device", "cpu"]
    assert main(heatmap) == 1
    assert "tiny.pt is TorchScript, which is code, and this" in capsys.readouterr().err
    assert main([*heatmap, "--weights", str(file)]) == 0
    assert len(features(cohort / "all-tiles", "tiny", slide.stem)) > 2
    tuned = ["finetune", str(cohort), "he2rna", *EPOCH, "--genes", "CD3D", "--device", "cpu"]
    assert main(tuned) == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_run_on_stretched_tiles_stretches_those_of_new_slides(drawn, new_slide, tmp_path):
    cohort, file = tmp_path / "c", tmp_path / "tiny.pt"
    shutil.copytree(drawn, cohort)
    tiny_encoder(file)
    command = ["train", str(cohort), "--encoder", str(file), "--max-tiles", "2", *SMALL]
    assert main(command) == 0
    assert main([*command, "--name", "s", "--code", "colour"]) == 0
    for name, code, source, colour in (
        ("he2rna", [], "tiny", "none"),
        ("s", ["colour"], "tiny-stretch", "stretch"),
    ):
        config = load_json(cohort / "runs" / name / "config.json")
        assert config["code"] == code
        assert config["features"]["source"] == source and config["features"]["colour"] == colour
    run, slide = cohort / "runs" / "s", min((cohort / "slides").iterdir())
    new = new_slide(slide)
    assert predict(run, slide, new, "--weights", file) == 0
    ours = features(cohort, "tiny-stretch", slide.stem)
    assert (ours == features(new.parents[1], "tiny-stretch", "x")).all()
    heatmap = ["heatmap", str(run), slide.stem, "--genes", "CD3D", "--weights", str(file)]
    assert main([*heatmap, "--device", "cpu"]) == 0
    assert len(features(cohort / "all-tiles", "tiny-stretch", slide.stem)) > 2
    with pytest.raises(InputError, match="other settings"):  # the default's folder
        main([*command, "--colour", "stretch"])


@pytest.mark.parametrize(
    "argv, words",
    [
        (("SLIDE", "--weights", "imagenet"), "imagenet.*random, seed 0"),
        (("SLIDE", "--features", "/"), "leave --features out"),
        (("SLIDE", "--tile-um", "100"), "tile_um 100.0, the run has 112.0"),
        (("nobody",), "neither a slide file nor a slide of the run"),
        (("SLIDE", "SLIDE"), "asked for twice"),
        (("SLIDE", "STEM"), "asked for twice"),
    ],
)
def test_other_features_than_the_runs_are_refused(mapped, argv, words):
    slide = min((mapped / "slides").iterdir())
    argv = [{"SLIDE": slide, "STEM": slide.stem}.get(word, word) for word in argv]
    with pytest.raises(InputError, match=words):
        predict(mapped / "runs" / "he2rna", *argv)


def test_features_of_another_kind_stay_and_are_made_anew_elsewhere(mapped, new_slide, tmp_path):
    run, source = mapped / "runs" / "he2rna", "resnet50-stage3"
    slide = new_slide(min((mapped / "slides").iterdir()))
    home = slide.parents[1]
    assert make_features(home, ["x"], options("--encoder", source, "--tile-um", "150")) == {}
    before = folder_bytes(home, ".npy")
    with pytest.raises(InputError, match=r"tile_um 150.0, the run has 112.0"):
        predict(run, slide)
    (home / "tiles" / "settings.json").unlink()
    side = home / "features" / source / "x.json"
    side.write_text(side.read_text().replace("seed 0", "seed 7").replace("150.0", "112.0"))
    with pytest.raises(InputError, match="weights random, seed 7, the run has random, seed 0"):
        predict(run, slide)
    assert folder_bytes(home, ".npy") == before

    into = tmp_path / "into"
    assert predict(run, slide, "--into", into, "--weights", "random") == 0  # made as the run's
    means, mask, _ = tiling.supertiles(*load_features(into, source, "x"))
    bag = torch.from_numpy(means[mask].astype(np.float16))[None]

    def bags(rows):
        return bag, torch.ones(bag.shape[:2], dtype=torch.bool)

    models = [model_of(saved, "cpu") for saved in load_run(run)["folds"]]
    want = np.mean([he2rna.predict(model, bags, [0])[0] for model in models], 0)
    assert np.allclose(predicted(run, "x"), want, atol=2e-5)


@pytest.fixture
def moved_cohort(mapped, tmp_path):
    """A run on features of another seed and precision than are usual, in a cohort that moved."""
    cohort, source = tmp_path / "c", "resnet50-stage3"
    shutil.copytree(mapped, cohort, ignore=shutil.ignore_patterns("runs", "features"))
    slides = [r["slide"] for r in read_csv(cohort / "samples.csv")]
    o = options("--encoder", source, "--seed", "3", "--precision", "float32")
    assert make_features(cohort, slides, o) == {}
    assert main(["train", str(cohort), "--encoder", source, *SMALL]) == 0
    return cohort.rename(tmp_path / "moved")


def fine_tune(cohort):
    chosen = ("--project", "SIM-COLO", "--genes", "CD3D", "--precision", "bfloat16")
    return main(["finetune", str(cohort), "he2rna", *EPOCH, *chosen, "--device", "cpu"])


def test_what_is_ready_is_used_and_a_moved_cohort_is_found(moved_cohort, new_slide, capsys):
    run = moved_cohort / "runs" / "he2rna"

    def made():
        paths = [p for p in moved_cohort.rglob("*") if p.is_file() and "runs" not in p.parts]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}

    before = made()
    z = np.load(run / "predictions.npz")
    slide = z["slide"][0]
    new = new_slide(moved_cohort / "slides" / f"{slide}.tif")
    assert predict(run, slide, new, "--precision", "bfloat16") == 0
    assert np.allclose(predicted(run, slide), z["prediction"][0], atol=2e-5)
    assert fine_tune(moved_cohort) == 0
    assert main(["heatmap", str(run), slide, "--genes", "CD3D", "--device", "cpu"]) == 0
    assert made() == before
    side = load_json(new.parents[1] / "features" / "resnet50-stage3" / "x.json")
    assert side["weights"] == "random, seed 3"
    tuned = load_json(moved_cohort / "runs" / "he2rna-SIM-COLO-finetuned" / "config.json")
    assert tuned["provenance"] == [SIMULATED, UNTRAINED]
    said = "model of a SIMULATED cohort; encoder with random weights"
    for name, words in ((slide, f"{said}; SIMULATED slide"), ("x", said)):
        (columns,) = {tuple(row) for row in read_csv(run / "predict" / f"{name}.csv")}
        assert columns == ("gene", "log10_1p_fpkm_uq", "fpkm_uq", "provenance")
        rows = read_csv(run / "predict" / f"{name}.csv")
        assert {row["provenance"] for row in rows} == {words}
    told = f"{said}; SIMULATED slide. The model has learned from drawn slides"
    assert capsys.readouterr().out.count(told) == 2  # once a command


def test_a_fine_tuned_run_knows_whom_the_run_before_has_seen(moved_cohort, capsys):
    run = moved_cohort / "runs" / "he2rna"
    assert fine_tune(moved_cohort) == 0
    tuned = moved_cohort / "runs" / "he2rna-SIM-COLO-finetuned"
    row = next(r for r in read_csv(run / "folds.csv") if r["project"] == "SIM-BRST")
    capsys.readouterr()
    assert predict(tuned, moved_cohort / "slides" / f"{row['slide']}.tif") == 0
    words = f"models of folds {row['test_fold']} (the others learned from its patient)"
    assert words in capsys.readouterr().out
    shutil.rmtree(run)  # trained otherwise: the old fine-tuning is another's
    again = ["train", str(moved_cohort), "--encoder", "resnet50-stage3", *SMALL, "--epochs", "2"]
    assert main(again) == 0
    with pytest.raises(InputError, match="from_run"):
        fine_tune(moved_cohort)
