"""Where results come from, in words. Authority: what was drawn, and from which weights."""

import json
import shutil

import pytest
import torch

from lab import provenance
from lab.files import load_json
from lab.provenance import SIMULATED, TAUGHT, UNTRAINED, of_data, of_run
from lab.tests.helpers_histcode import pretrain


def test_a_simulated_cohort_is_known_by_its_readme_or_its_truth(drawn, tmp_path):
    assert provenance.is_simulated(drawn) and not provenance.is_simulated(tmp_path)
    (tmp_path / "README.md").write_text("Real slides.\n\nNot a SIMULATED cohort.\n")
    assert not provenance.is_simulated(tmp_path)
    shutil.copytree(drawn / "truth", tmp_path / "truth")  # its README.md was replaced
    assert provenance.of_cohort(tmp_path) == [SIMULATED]


def test_a_run_knows_what_it_came_from_wherever_it_lies(mapped, tmp_path):
    words = [SIMULATED, UNTRAINED]
    run = mapped / "runs" / "he2rna"
    config = load_json(run / "config.json")
    assert config["provenance"] == words == of_run(run, config)
    moved = tmp_path / "elsewhere" / "runs" / "mine"
    shutil.copytree(run, moved)
    assert of_run(moved, config) == words
    del config["provenance"]  # a run of an older program, by its cohort and its weights
    assert of_run(run, config) == of_run(moved, config) == words
    config["cohort"] = str(tmp_path / "gone")
    assert of_run(run, config) == words and of_run(moved, config) == [UNTRAINED]


def test_an_encoder_carries_the_slides_that_it_learned_from(unlabelled, drawn, tmp_path):
    """Into features and runs of another cohort, and for older files by where they lie."""
    readme = shutil.copy(drawn / "README.md", unlabelled)
    try:
        assert pretrain(unlabelled, "--epochs", "1", "--name", "taught") == 0
    finally:
        (unlabelled / "README.md").unlink()
    encoder = unlabelled / "runs" / "taught" / "taught.pt"
    assert readme and provenance.of_encoder(encoder) == [TAUGHT]
    features = tmp_path / "real" / "features" / "taught" / "settings.json"
    features.parent.mkdir(parents=True)
    features.write_text(json.dumps({"weights": str(encoder)}))
    assert of_data(tmp_path / "real", "taught") == [TAUGHT]
    features.write_text(json.dumps({"weights": "gone.pt", "provenance": [TAUGHT]}))
    assert of_data(tmp_path / "real", "taught") == [TAUGHT]
    saved = torch.load(encoder, weights_only=True)
    del saved["provenance"]
    saved["settings"]["weights"] = "random, seed 0"
    old = tmp_path / "c" / "runs" / "old" / "old.pt"
    old.parent.mkdir(parents=True)
    torch.save(saved, old)
    assert provenance.of_encoder(old) == []  # of a real cohort: it has learned from slides
    for name in ("README.md", "samples.csv"):
        shutil.copy(drawn / name, tmp_path / "c")
    assert provenance.of_encoder(old) == [provenance.FROM_RANDOM]


def test_of_what_was_made_elsewhere_nothing_is_said(tmp_path):
    assert of_data(tmp_path, tmp_path, "s0") == of_data(tmp_path, "resnet50") == []
    (tmp_path / "scripted.pt").write_bytes(b"no encoder")
    assert provenance.of_weights(str(tmp_path / "scripted.pt")) == []
    for weights in ("random_forest.pt", "random.pth sha256 0123", "randomised, seed 1"):
        assert provenance.of_weights(weights) == []
    assert provenance.of_weights("imagenet") == provenance.warning([]) == []


@pytest.mark.parametrize("words", [[], [SIMULATED, UNTRAINED]])
def test_words_stand_in_a_report_a_title_and_a_table(words):
    header, rows = provenance.marked(("gene", "R"), [("A", 1), ("B,1", 2)], words)
    said = "SIMULATED cohort; encoder with random weights"
    assert header == ("gene", "R", *["provenance"] * bool(words))
    assert list(rows) == [("A", 1, *[said] * bool(words)), ("B,1", 2, *[said] * bool(words))]
    assert provenance.warning(words)[:1] == (
        []
        if not words
        else [f"**{said}.** " + " ".join(provenance.MEANINGS[word] for word in words)]
    )
