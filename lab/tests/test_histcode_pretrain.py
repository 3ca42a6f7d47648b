"""lab.tests.test_histcode_pretrain"""

import argparse
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import histcode
import tiling
from lab.files import InputError
from lab.histcode.epochs import read_batches
from lab.histcode.pretraining import first_bank, save_encoder
from lab.histcode.pretraining import train_step as pretraining_train_step
from lab.tests.helpers import (
    TINY,
    data_of,
    pretrain,
    random_resnet,
    read_csv,
    relative,
    saved,
    swap,
)
from lab.weights import load_weights


def test_pretraining_stops_where_the_loss_is_lost_and_keeps_the_epoch_before(
    unlabelled, monkeypatch
):
    real_step, steps = pretraining_train_step, []

    def train_step(*args):
        steps.append(1)
        return (float("nan"), *real_step(*args)[1:]) if len(steps) == 3 else real_step(*args)

    swap(monkeypatch, "lab.histcode.pretraining", "train_step", train_step)
    with pytest.raises(
        InputError,
        match=r"epoch 2 step 1: loss .* at tiles of S0[^;]*; .*state.pt keeps epoch 1; a lower --lr",
    ):
        pretrain(unlabelled, "--epochs", "4", "--name", "lost")
    run = unlabelled / "runs" / "lost"
    assert (
        saved(run / "state.pt")["epoch"] == 1
        and saved(run / "lost.pt")
        and len((run / "log.jsonl").read_text().splitlines()) == 1
    )


def test_interrupted_pretraining_ends_as_one_that_was_not(unlabelled, monkeypatch, capsys):
    argv = ("--epochs", "3", "--momentum-encoder", ".9", "--symmetric", "--cosine")
    assert pretrain(unlabelled, *argv, "--name", "whole") == 0
    real_save, epochs = save_encoder, []

    def stop(path, model, o, epoch):
        real_save(path, model, o, epoch)
        epochs.append(epoch)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    swap(monkeypatch, "lab.histcode.pretraining", "save_encoder", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(unlabelled, *argv, "--name", "cut")
    run = unlabelled / "runs" / "cut"
    with open(run / "log.jsonl", "a") as f:
        f.write('{"epoch": 3, "half')  # what a power cut leaves
    assert pretrain(unlabelled, *argv, "--name", "cut", "--workers", "3") == 0 and epochs == [
        1,
        2,
        1,
        2,
        3,
    ]
    a, b = saved(run / f"{run.name}.pt"), saved(unlabelled / "runs" / "whole" / "whole.pt")
    assert all(
        torch.equal(a[part][k], b[part][k]) for part in ("encoder", "projection") for k in b[part]
    )
    logs = [
        [
            json.loads(line)
            for line in (unlabelled / "runs" / n / "log.jsonl").read_text().splitlines()
        ]
        for n in ("cut", "whole")
    ]
    assert [e["epoch"] for e in logs[0]] == [1, 2, 3] and [e["loss"] for e in logs[0]] == [
        e["loss"] for e in logs[1]
    ]
    assert logs[0][2]["lr"] < logs[0][0]["lr"] == 0.03 and a["settings"] == b["settings"]
    capsys.readouterr()
    (run / "cut.pt").unlink()  # made again from the state
    assert (
        pretrain(unlabelled, *argv, "--name", "cut") == 0 and "was ready" in capsys.readouterr().out
    )
    assert torch.equal(
        saved(run / "cut.pt")["encoder"]["conv1.weight"], b["encoder"]["conv1.weight"]
    )


def test_two_processes_equal_one(unlabelled, tmp_path):
    """Whole: gathered embeddings, BatchNorm over both, summed gradients, averaged bank gradient, in-batch keys. Two
    steps: more grow the rounding, up to .02 of a step in biases, where one part missing would be all of it."""
    argv = ["--epochs", "1", "--in-batch", "--symmetric", "--lr", "3e-4", "--workers", "1"]
    assert pretrain(unlabelled, *argv, "--name", "one") == 0
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-port",
            str(20000 + os.getpid() % 20000),
            histcode.__file__,
            "pretrain",
            str(unlabelled),
            "--weights",
            str(unlabelled / "start.pth"),
            *TINY,
            *argv,
            "--name",
            "two",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch   1/1") == 1  # one of them prints
    one, two = (saved(unlabelled / "runs" / n / "state.pt") for n in ("one", "two"))
    start = histcode.Embedder(load_weights(3, str(unlabelled / "start.pth"), 0)).state_dict()
    for name, w in one["model"].items():
        moved, off = ((w - other).double().norm() for other in (start[name], two["model"][name]))
        assert moved > 0 and off < 0.1 * moved + 1e-7 * w.double().norm(), (
            name
        )  # the same way, not only near
    assert (
        relative(two["bank"], one["bank"]) < 1e-4
        and relative(two["velocity"], one["velocity"]) < 1e-3
    )


def test_the_encoder_file_is_what_tiling_takes(unlabelled):
    assert pretrain(unlabelled, "--epochs", "1", "--method", "simclr", "--seed", "1") == 0
    e = saved(unlabelled / "runs" / "simclr" / "simclr.pt")
    net = tiling.ResNet50(3)
    net.load_state_dict(e["encoder"])  # strict: torchvision's names, nothing else
    assert set(e) == {
        "version",
        "source",
        "method",
        "encoder",
        "stages",
        "n_features",
        "projection",
        "mean",
        "std",
        "tile_px",
        "tile_um",
        "colour",
        "settings",
        "patients",
    }
    assert e["patients"] == sorted({r["patient"] for r in read_csv(unlabelled / "samples.csv")})
    assert (
        e["version"],
        e["method"],
        e["stages"],
        e["n_features"],
        e["tile_px"],
        e["tile_um"],
    ) == (1, "simclr", 3, 1024, 36, 128.0)
    assert [tuple(v.shape) for v in e["projection"].values()] == [
        (1024, 1024),
        (1024,),
        (128, 1024),
        (128,),
    ] and "HistCode" in e["source"]
    assert (
        tuple(e["mean"]) == tiling.IMAGENET_MEAN
        and e["settings"]["seed"] == 1
        and e["settings"]["epochs_done"] == 1
    )
    assert not (unlabelled / "runs" / "simclr" / "config.json").read_text().count("bank")


def test_the_bank_starts_from_each_slides_tiles_or_at_random(unlabelled):
    data = data_of(unlabelled)
    counts = np.array([len(c) for c in data["coords"]])
    o = argparse.Namespace(
        bank_percent=30.0,
        bank_size=10**6,
        seed=0,
        batch=8,
        pool=1000,
        view_px=32,
        precision="float32",
        workers=1,
    )
    model = histcode.Embedder(random_resnet(3))
    full = int(np.ceil(0.3 * counts).sum())
    bank = first_bank(model, data, counts, o, torch.device("cpu"), 0, 1)
    assert bank.shape == (full // 8 * 8, 128) and torch.allclose(
        bank.norm(dim=1), torch.ones(len(bank)), atol=1e-5
    )
    o.bank_size = 9
    assert len(first_bank(model, data, counts, o, torch.device("cpu"), 0, 1)) == 8
    o.bank_percent, o.bank_size = 0, 50
    bank = first_bank(model, data, counts, o, torch.device("cpu"), 0, 1)
    assert (
        bank.shape == (50, 128)
        and torch.allclose(bank.norm(dim=1), torch.ones(50))
        and histcode.spread(bank) > 0.9
    )


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--batch", "9999"], "don't fill a batch of 9999"),
        (["--lr", "-1"], "--lr -1"),
        (["--lr", "nan"], "--lr nan"),
        (["--name", "a/b"], "not a path"),
        (["--view-px", "8"], "--view-px 8: must lie between 32"),
        (["--method", "simclr", "--bank-lr", "3"], "--bank-lr: not with --method simclr"),
        (["--weights", "nowhere.pth"], "--weights nowhere.pth"),
        (["--bank-percent", "101"], "--bank-percent 101"),
    ],
)
def test_pretrain_says_one_line(unlabelled, argv, words):
    with pytest.raises(InputError, match=words):
        pretrain(unlabelled, "--epochs", "1", "--name", "wrong", *argv)
    assert not (unlabelled / "runs" / "wrong").exists()


def test_a_run_of_other_settings_is_refused(unlabelled):
    assert pretrain(unlabelled, "--epochs", "1", "--name", "kept") == 0
    before = (unlabelled / "runs" / "kept" / "kept.pt").read_bytes()
    with pytest.raises(InputError, match="other settings .*lr 0.03 -> 0.02.*another --name"):
        pretrain(unlabelled, "--epochs", "1", "--name", "kept", "--lr", ".02")
    assert (unlabelled / "runs" / "kept" / "kept.pt").read_bytes() == before


def test_show_views_draws_and_stops(unlabelled, capsys):
    assert pretrain(unlabelled, "--show-views", "--name", "seen") == 0
    assert [p.name for p in (unlabelled / "runs" / "seen").iterdir()] == ["views.png"]
    assert Image.open(unlabelled / "runs" / "seen" / "views.png").size[1] > 1000


def test_a_collapse_is_said(unlabelled, monkeypatch, capsys):
    swap(monkeypatch, "lab.histcode.pretraining", "COLLAPSED", 0.999)
    assert pretrain(unlabelled, "--epochs", "1", "--name", "fallen") == 0
    assert (
        "COLLAPSE" in capsys.readouterr().out
        and json.loads((unlabelled / "runs" / "fallen" / "log.jsonl").read_text())["collapsed"]
    )


def test_a_slide_that_breaks_off_is_named(unlabelled, tmp_path):
    shutil.copytree(unlabelled, tmp_path / "c", ignore=shutil.ignore_patterns("runs"))
    data_of(tmp_path / "c")
    path = sorted((tmp_path / "c" / "slides").iterdir())[0]
    whole = path.read_bytes()
    data = data_of(tmp_path / "c")
    path.write_bytes(whole[: len(whole) // 2])
    chosen = np.stack([np.zeros(len(data["coords"][0]), int), np.arange(len(data["coords"][0]))], 1)
    with pytest.raises(InputError, match=f"{path.stem}.*(take it out|not a readable)"):
        list(read_batches(data, chosen, np.arange(len(chosen)), len(chosen)))
