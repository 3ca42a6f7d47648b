"""histcode.py pretrain: a run that goes on, that several processes share, and what it leaves."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

import histcode
import tiling
from lab.files import InputError
from lab.histcode import pretraining
from lab.histcode.settings import settle_options
from lab.tests.helpers import read_csv, relative, saved
from lab.tests.helpers_histcode import TINY, pretrain
from lab.weights import load_weights


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_interrupted_pretraining_ends_as_one_that_was_not(unlabelled, monkeypatch, capsys):
    argv = ("--epochs", "3", "--momentum-encoder", ".9", "--symmetric", "--cosine")
    assert pretrain(unlabelled, *argv, "--name", "whole") == 0
    real, epochs = pretraining.save_epoch, []

    def stop(folder, model, o, state, entry):
        real(folder, model, o, state, entry)
        epochs.append(entry["epoch"])
        if len(epochs) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "save_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(unlabelled, *argv, "--name", "cut")
    runs = unlabelled / "runs"
    with open(runs / "cut" / "log.jsonl", "a") as f:
        f.write('{"epoch": 3, "half')  # what a power cut leaves
    assert pretrain(unlabelled, *argv, "--name", "cut", "--workers", "3") == 0
    assert epochs == [1, 2, 3]
    cut, whole = (saved(runs / name / f"{name}.pt") for name in ("cut", "whole"))
    for part in ("encoder", "projection"):
        assert all(torch.equal(cut[part][k], whole[part][k]) for k in whole[part])
    assert cut["settings"] == whole["settings"]
    logs = [log_of(runs / name) for name in ("cut", "whole")]
    assert [entry["epoch"] for entry in logs[0]] == [1, 2, 3]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]
    assert logs[0][2]["lr"] < logs[0][0]["lr"] == 0.03
    capsys.readouterr()
    (runs / "cut" / "cut.pt").unlink()  # made again from the state
    assert pretrain(unlabelled, *argv, "--name", "cut") == 0
    assert "was ready" in capsys.readouterr().out
    again = saved(runs / "cut" / "cut.pt")["encoder"]
    assert torch.equal(again["conv1.weight"], whole["encoder"]["conv1.weight"])


def test_two_processes_equal_one(unlabelled):
    """Gathered embeddings, BatchNorm over both, summed gradients, one bank, keys of the batch.

    Of two steps: more would grow the rounding, up to .02 of a step in biases, where one part that
    is missing would be all of it.
    """
    argv = ["--epochs", "1", "--momentum-encoder", ".999", "--symmetric", "--lr", "3e-4"]
    argv += ["--workers", "1"]
    assert pretrain(unlabelled, *argv, "--name", "one") == 0
    port = str(20000 + os.getpid() % 20000)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    start = ["--weights", str(unlabelled / "start.pth")]
    command = [histcode.__file__, "pretrain", str(unlabelled), *start, *TINY, *argv]
    done = subprocess.run(
        [sys.executable, *torchrun, *command, "--name", "two"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch   1/1") == 1  # one of them prints
    one, two = (saved(unlabelled / "runs" / name / "state.pt") for name in ("one", "two"))
    before = histcode.Embedder(load_weights(3, start[1], 0)).state_dict()
    for part in ("model", "keys"):
        for name, value in one[part].items():
            moved = (value - before[name]).double().norm()
            off = (value - two[part][name]).double().norm()
            assert off < 0.1 * moved + 1e-7 * value.double().norm(), name  # the same way
            assert moved > 0 or part == "keys", name
    negatives = one["negatives"], two["negatives"]
    assert relative(negatives[1]["w"], negatives[0]["w"]) < 1e-4
    assert relative(negatives[1]["velocity"], negatives[0]["velocity"]) < 1e-3


def test_pretraining_stops_where_the_loss_is_lost_and_keeps_the_epoch_before(
    unlabelled, monkeypatch
):
    real, steps = histcode.info_nce, []

    def info_nce(*args):
        steps.append(1)
        return real(*args) * (float("nan") if len(steps) == 3 else 1)

    monkeypatch.setattr(histcode, "info_nce", info_nce)
    words = "epoch 2: loss .* at tiles of S0[^;]*; .*state.pt keeps epoch 1; a lower --lr"
    with pytest.raises(InputError, match=words):
        pretrain(unlabelled, "--epochs", "4", "--name", "lost")
    run = unlabelled / "runs" / "lost"
    assert saved(run / "state.pt")["epoch"] == 1 and saved(run / "lost.pt")
    assert len(log_of(run)) == 1


def test_the_encoder_file_is_what_tiling_takes(unlabelled):
    assert pretrain(unlabelled, "--epochs", "1", "--method", "simclr", "--seed", "1") == 0
    run = unlabelled / "runs" / "simclr"
    encoder = saved(run / "simclr.pt")
    tiling.ResNet50(3).load_state_dict(encoder.pop("encoder"))  # strict: torchvision's names
    shapes = [tuple(value.shape) for value in encoder.pop("projection").values()]
    assert shapes == [(1024, 1024), (1024,), (128, 1024), (128,)]
    assert "HistCode" in encoder.pop("source")
    settings = encoder.pop("settings")
    assert settings["seed"] == 1 and settings["epochs_done"] == 1
    patients = {row["patient"] for row in read_csv(unlabelled / "samples.csv")}
    assert encoder == {
        "version": 1,
        "method": "simclr",
        "stages": 3,
        "n_features": 1024,
        "mean": tiling.IMAGENET_MEAN,
        "std": tiling.IMAGENET_STD,
        "tile_px": 36,
        "tile_um": 128.0,
        "colour": "none",
        "patients": sorted(patients),
        "provenance": [],  # weights of a file, a cohort without simulate's README
    }
    assert "bank" not in (run / "config.json").read_text()


@pytest.mark.parametrize(
    "start, size, low, high",  # of its spread: untrained embeddings are alike
    [("random", 15, 0.9, 1), ("tiles", 8, 0, 0.5), ("training", 15, 0.1, 0.9)],
)
def test_the_bank_starts_at_random_from_tiles_or_is_filled(unlabelled, start, size, low, high):
    """Embeddings of tiles come in whole batches of 8; the first one of an epoch fills a half."""
    argv = ["--bank-from", start, "--bank-percent", "100", "--bank-size", "15"]
    argv += ["--epochs", "1", "--bank-lr", "0"]
    assert pretrain(unlabelled, *argv, "--name", start) == 0
    negatives = saved(unlabelled / "runs" / start / "state.pt")["negatives"]
    w = negatives["w"]
    assert w.shape == (size, 128) and negatives["filled"] == size
    assert torch.allclose(w.norm(dim=1), torch.ones(size), atol=1e-5)
    assert low < histcode.spread(w) < high


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--batch", "9999"], "don't fill a batch of 9999"),
        (["--batch-from", "slide"], "no slide gives the 8 tiles of its smallest batch"),
        (["--lr", "-1"], "--lr -1"),
        (["--lr", "nan"], "--lr nan"),
        (["--name", "a/b"], "not a path"),
        (["--view-px", "8"], "--view-px 8: must lie between 32"),
        (["--method", "simclr", "--bank-lr", "3"], "--bank-lr: not with --method simclr"),
        (["--weights", "nowhere.pth"], "--weights nowhere.pth"),
        (["--bank-percent", "101"], "--bank-percent 101"),
        (["--final-lr", ".001"], "--final-lr 0.001: only with --cosine"),
    ],
)
def test_pretrain_says_one_line(unlabelled, argv, words):
    with pytest.raises(InputError, match=words):
        pretrain(unlabelled, "--epochs", "1", "--name", "wrong", *argv)
    assert not (unlabelled / "runs" / "wrong").exists()


def test_processes_that_cannot_share_the_batches_of_one_slide_are_told(settled):
    o = argparse.Namespace(**settled("pretrain", "--batch-from", "slide"))
    o.follow, o.code = None, []
    settle_options(o, 4)
    with pytest.raises(InputError, match=r"16 processes can't share .* take 8 processes, or fewer"):
        settle_options(o, 16)


def test_a_run_of_other_settings_is_refused(unlabelled):
    assert pretrain(unlabelled, "--epochs", "1", "--name", "kept") == 0
    path = unlabelled / "runs" / "kept" / "kept.pt"
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"other settings .*lr 0.03 -> 0.02.*another --name"):
        pretrain(unlabelled, "--epochs", "1", "--name", "kept", "--lr", ".02")
    assert path.read_bytes() == before


def test_show_views_draws_and_stops(unlabelled, printed, capsys):
    assert pretrain(unlabelled, "--show-views", "--name", "seen") == 0
    folder = unlabelled / "runs" / "seen"
    assert sorted(path.name for path in folder.iterdir()) == ["views.png", "views.svg"]
    written = (folder / "views.svg").read_text()
    assert written.count("<image") >= 8 * 5  # of eight slides a tile and four views
    assert all(said in written for said in ("pair 1, view 1", "pair 2, view 2", "tile, 128 µm"))
    assert "20 µm" in written  # the scale
    with Image.open(folder / "views.png") as picture:
        assert min(picture.size) >= 1200


def test_a_collapse_is_said(unlabelled, monkeypatch, capsys):
    monkeypatch.setattr(pretraining, "COLLAPSED", 0.999)
    assert pretrain(unlabelled, "--epochs", "1", "--name", "fallen") == 0
    assert "COLLAPSE" in capsys.readouterr().out
    assert log_of(unlabelled / "runs" / "fallen")[0]["collapsed"]
