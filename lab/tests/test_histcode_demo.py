"""HistCode's commands without a cohort: simulated pairs, the features that are there, and maps."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lab.commands.histcode import main, pretrain
from lab.commands.histcode.options import settle_encoder
from lab.files import InputError, load_json, save_json
from lab.tests.helpers import swap

LITTLE = ["--epochs", "2", "--folds", "3", "--hidden", "4", "--lr", "0.01", "--device", "cpu"]


@pytest.fixture
def at_the_pairs(looked_at, tmp_path, monkeypatch):
    """A folder with demo-pairs/, small, with features of an encoder's file; its maps aren't drawn.

    -> the slides that were mapped
    """
    shutil.copytree(looked_at, tmp_path / "demo-pairs", symlinks=True)
    shutil.rmtree(tmp_path / "demo-pairs" / "runs")
    monkeypatch.chdir(tmp_path)
    mapped = []
    swap(monkeypatch, "lab.show.slide_map", "write_map", lambda _, done, *__: mapped.append(done))
    return mapped


def test_diagnose_and_expression_take_the_features_there_and_map_a_patient(at_the_pairs, capsys):
    encoded = {path.name for path in Path("demo-pairs", "features").iterdir()}
    assert main(["diagnose", *LITTLE]) == 0
    said = capsys.readouterr().out
    assert "a SIMULATED one, in demo-pairs/" in said
    assert "features: those in demo-pairs/features/one, of 14 slides" in said
    assert main(["expression", *LITTLE, "--genes", "CD3D,MKI67,COL1A1"]) == 0
    made = Path("demo-pairs")
    assert {path.name for path in (made / "features").iterdir()} == encoded  # nothing else is
    slides = {done.name for done in at_the_pairs}
    assert {"S001-01A-DX1", "S001-11A-DX1"} <= slides and {s[:4] for s in slides} == {"S001"}
    config = load_json(made / "runs" / "expression" / "config.json")
    assert config["ridge"] == "auto" and config["features"]["source"] == "one"
    assert (made / "runs" / "diagnosis" / "report.md").is_file()


@pytest.mark.parametrize(
    "there, taken",
    [
        ({"resnet50": 3}, ("resnet50", None)),
        ({"resnet50-stage3": 2, "resnet50": 2}, ("resnet50-stage3", None)),
        ({"resnet50-stage3": 1, "resnet50": 3}, ("resnet50", None)),
        ({"resnet50-stretch": 3}, ("resnet50", "stretch")),
        ({"gone": 3, "empty": 0}, ("resnet50-stage3", None)),
    ],
)
def test_without_an_encoder_that_of_most_slides_is_taken(tmp_path, settled, there, taken):
    for name, slides in there.items():
        folder = tmp_path / "features" / name
        folder.mkdir(parents=True)
        colour = "stretch" if "stretch" in name else "none"
        save_json(folder / "settings.json", {"weights": "random", "colour": colour})
        for i in range(slides):
            np.save(folder / f"{i}.npy", np.zeros(1))
    o = SimpleNamespace(**settled("diagnose") | {"cohort": tmp_path})
    settle_encoder(o, {})
    assert (o.encoder, o.colour, o.weights) == (*taken, None)


def test_pretrain_has_its_budget_and_mistakes_are_told_before_anything_is_drawn(
    at_the_pairs, tmp_path, monkeypatch
):
    def told(cohort, slides, o):
        raise InputError(f"{cohort} {o.weights} {o.tile_px} {o.view_px} {o.epochs}")

    swap(monkeypatch, "lab.histcode.tiles", "find_data", told)
    monkeypatch.setattr(pretrain, "embedder", lambda o: None)
    with pytest.raises(InputError, match="demo-pairs random 72 64 9"):
        main(["pretrain", "--epochs", "9", "--device", "cpu"])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for verb, *argv in (["diagnose", "--folds", "1"], ["expression", "--ridge", "-1"]):
        with pytest.raises(InputError, match=" ".join(argv)):
            main([verb, *argv])
    with pytest.raises(InputError, match="--epochs 0"):
        main(["pretrain", "--epochs", "0", "--device", "cpu"])
    assert not any((tmp_path / "empty").iterdir())
