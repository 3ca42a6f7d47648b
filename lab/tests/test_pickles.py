"""No pickle of a file that is read is run. The authority: it does run, for pickle and torch."""

import pickle
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.cohort.expression import read_expression
from lab.cohort.features import FEW_ROWS, load_array, load_features
from lab.cohort.tiles import make_tiles, tiles_of
from lab.commands.he2rna import main as he2rna_main
from lab.commands.histcode import main as histcode_main
from lab.encoders import load_encoder, read_encoder
from lab.exchange.clam import read_foreign
from lab.files import InputError, load_arrays, save_text
from lab.he2rna.spatial import predictions_of
from lab.locks import HELD
from lab.runs import load_checkpoint
from lab.tests.helpers import options, swap
from lab.tests.helpers_he2rna import train, write_cohort
from lab.tests.helpers_histcode import MODELS, diagnose, express, pretrain
from lab.weights import load_weights


class Bomb:
    """What a pickle may hold: a call that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_file_that_is_read_runs_its_pickle(
    tmp_path, two_slides, changed, unlabelled, monkeypatch
):
    """Everything that a program loads, replaced by a pickle that would make a file."""
    ran, bomb = tmp_path / "ran", tmp_path / "bomb.pt"
    torch.save({"model": {}, "version": 1, "x": Bomb(ran)}, bomb)
    torch.load(bomb, weights_only=False)
    assert ran.exists()
    ran.unlink()
    plain, arrays = pickle.dumps(Bomb(ran)), np.array([Bomb(ran)], object)
    contents = [bomb.read_bytes(), plain]
    write_cohort(tmp_path / "c", np.random.default_rng(0), patients=6)
    cohort, run = tmp_path / "c", tmp_path / "c" / "runs" / "he2rna"
    assert train(cohort, "--epochs", "1") == 0
    reads = [
        lambda p: load_checkpoint(p, "cpu"),
        lambda p: load_weights(4, str(p), 0),
        lambda p: read_encoder(p),
        lambda p: load_encoder(str(p), None, 0, "cpu"),
    ]
    for content in contents:
        bomb.write_bytes(content)
        for read in reads:
            with pytest.raises(InputError):
                read(bomb)
        whole = (run / "fold0.pt").read_bytes()
        (run / "fold0.pt").write_bytes(content)
        for command in (
            lambda: train(cohort, "--epochs", "1"),
            lambda: he2rna_main(["predict", str(run), "all"]),
            lambda: he2rna_main(["finetune", str(cohort), "he2rna"]),
        ):
            with pytest.raises(InputError, match=r"fold0.pt: not a whole checkpoint"):
                command()
        (run / "fold0.pt").write_bytes(whole)
    for save in (lambda p: np.save(p, arrays), lambda p: p.write_bytes(plain)):
        make_tiles(two_slides, ["a"], options("--workers", "1"))
        path = two_slides / "features" / "resnet50" / "a.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path)
        with pytest.raises(InputError, match="not a whole array"):
            load_array(path)
    other, encoders = (
        tmp_path / "p",
        tmp_path / "e",
    )  # what histcode reads, and what a training goes on from
    shutil.copytree(changed, other, ignore=shutil.ignore_patterns(*(set(MODELS) - {"linear"})))
    shutil.copytree(unlabelled, encoders, ignore=shutil.ignore_patterns("runs"))
    swap(
        monkeypatch,
        "lab.commands.histcode.diagnose",
        "write_report",
        lambda folder, *_: save_text(folder / "report.md", ["done"]),
    )
    assert diagnose(other, "--rotate", "--folds", "3", "--epochs", "1") == 0
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        swap(
            m,
            "lab.histcode.pretraining",
            "first_bank",
            lambda *_: signal.raise_signal(signal.SIGINT),
        )
        pretrain(encoders, "--epochs", "1")
    learned, judged, views = (
        other / "runs" / "linear",
        other / "runs" / "diagnosis",
        encoders / "runs" / "adco",
    )
    again = {
        run: lambda: train(cohort, "--epochs", "1"),
        learned: lambda: express(other, "--name", "linear"),
        judged: lambda: diagnose(other, "--rotate", "--folds", "3", "--epochs", "1"),
        views: lambda: pretrain(encoders, "--epochs", "1"),
    }
    torch.save(
        {"features": torch.zeros(3, 4), "coords": Bomb(ran)}, bomb
    )  # inside of what a file of features may be
    for content in (*contents, bomb.read_bytes()):
        for folder, name, state in (
            (run, "fold0.pt", "fold0.state.pt"),
            (learned, "fold0.pt", "fold0.0.state.pt"),
            (judged, "HistCode-r0-f0.pt", "HistCode-r0-f0.1.state.pt"),
            (views, None, "state.pt"),
        ):
            there = name and (folder / name).read_bytes()
            for spoiled in filter(None, (name, state)):
                (folder / name).unlink(missing_ok=True) if name else None
                (folder / spoiled).write_bytes(content)
                with pytest.raises(
                    InputError, match=f"{re.escape(spoiled)}: not a whole checkpoint"
                ):
                    again[folder]()
                if spoiled == name and folder != run:
                    with pytest.raises(InputError, match="not a whole checkpoint"):
                        histcode_main(["predict", str(folder), "all", "--device", "cpu"])
                (folder / spoiled).unlink()
            (folder / name).write_bytes(there) if name else None
        bomb.write_bytes(content)
        for read in (
            lambda: load_features(tmp_path, tmp_path, "bomb"),
            lambda: read_foreign(bomb, FEW_ROWS),
            lambda: histcode_main(["probe", str(encoders), str(bomb), "--device", "cpu"]),
            lambda: pretrain(encoders, "--weights", str(bomb), "--name", "b"),
        ):
            with pytest.raises(InputError):
                read()
    np.savez(
        tmp_path / "x.npz",
        expression=arrays,
        genes=arrays,
        slide=arrays,
        features=arrays,
        patients=arrays,
        msi=arrays,
        coords=arrays,
        settings=arrays,
    )
    for path in (
        tmp_path / "c" / "expression.npz",
        two_slides / "tiles" / "a.npz",
        run / "predictions.npz",
        tmp_path / "study.npz",
    ):
        shutil.copyfile(tmp_path / "x.npz", path)
    assert load_arrays(two_slides / "tiles" / "a.npz") is None
    (cohort / "expression.csv").unlink()
    for call in (
        lambda: read_expression(cohort),
        lambda: he2rna_main(["msi", str(tmp_path / "study.npz")]),
        lambda: predictions_of({"folder": run}),
    ):
        with pytest.raises(InputError):
            call()
    assert (
        make_tiles(two_slides, ["a"], options("--workers", "1")) == {}
        and tiles_of(two_slides, "a")[0] is not None
    )
    assert not ran.exists() and not HELD
