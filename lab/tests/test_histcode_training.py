"""HistCode's classifiers: interrupted, lost, each its own."""

import numpy as np
import pytest
import torch

from lab.commands.histcode import main
from lab.files import InputError, save_file
from lab.runs import load_checkpoint
from lab.tests.helpers import swap
from lab.tests.helpers_histcode import folds_in, learn, planted_bags, three_splits, write_bag_table


def test_interrupted_classifier_ends_as_one_that_was_not(tmp_path, monkeypatch):
    (bags, y), split = planted_bags(), three_splits()[:1]
    (whole,) = learn("MIL-RNN", bags, y, split, [4], epochs=5)
    state, save, saves = tmp_path / "state.pt", save_file, []

    def breaks(path, write):
        save(path, write)
        saves.append(path)
        if len(saves) == 2:
            raise KeyboardInterrupt

    swap(monkeypatch, "lab.files", "save_file", breaks)
    with pytest.raises(KeyboardInterrupt):
        learn("MIL-RNN", bags, y, split, [4], epochs=5, state_file=state)
    (again,) = learn("MIL-RNN", bags, y, split, [4], epochs=5, state_file=state)
    assert (
        len(saves) == 5
        and torch.equal(whole["losses"], again["losses"])
        and torch.equal(whole["tests"], again["tests"])
    )
    assert whole["epoch"] == again["epoch"] and all(
        torch.equal(v, again["model"][k]) for k, v in whole["model"].items()
    )


def test_a_bag_at_which_the_loss_is_lost_is_named_and_the_epoch_before_kept(tmp_path):
    (bags, y), splits = planted_bags(), three_splits()[:1]
    (whole,) = learn("HistCode", bags, y, splits, [4], epochs=3)
    odd, seen, original = int(splits[0][0][2]), [], list(bags)

    class Going(list):
        def __getitem__(self, i):
            seen.append(i)
            return super().__getitem__(i) * (
                np.float32("nan") if i == odd and seen.count(odd) == 2 else 1
            )

    with pytest.raises(
        InputError,
        match=rf"epoch 2: the loss is not finite any more, from {odd} on; .*s.pt keeps epoch 1",
    ):
        learn("HistCode", Going(bags), y, splits, [4], epochs=3, state_file=tmp_path / "s.pt")
    (again,) = learn("HistCode", original, y, splits, [4], epochs=3, state_file=tmp_path / "s.pt")
    assert all(torch.equal(v, again["model"][k]) for k, v in whole["model"].items())


def test_an_interruption_after_the_best_epoch_keeps_it(tmp_path, monkeypatch):
    (bags, y), (_, valid, _) = planted_bags(), three_splits()[0]
    y = y.copy()
    y[valid] = 1 - y[valid]  # the better it learns the worse: an early epoch is best
    (whole,) = learn("HistCode", bags, y, three_splits()[:1], [4], epochs=8)
    save, saves = save_file, []

    def breaks(path, write):
        save(path, write)
        saves.append(path)
        if len(saves) == 7:
            raise KeyboardInterrupt

    swap(monkeypatch, "lab.files", "save_file", breaks)
    with pytest.raises(KeyboardInterrupt):
        learn("HistCode", bags, y, three_splits()[:1], [4], epochs=8, state_file=tmp_path / "s.pt")
    (again,) = learn(
        "HistCode", bags, y, three_splits()[:1], [4], epochs=8, state_file=tmp_path / "s.pt"
    )
    assert whole["epoch"] == again["epoch"] < 7
    assert all(torch.equal(v, again["model"][k]) for k, v in whole["model"].items())


def test_per_gene_networks_are_each_its_own_and_joint_ones_share(changed):
    per, joint = (folds_in(changed / "runs" / name)[0] for name in ("per-gene", "joint"))
    w = per["model"]["head.pooling.w.weight"]
    assert (
        per["genes"] == ["UP0", "NO0", "HALF"]
        and w.shape == (3, 1, 4)
        and not torch.allclose(w[0], w[1])
    )
    assert len(per["epochs"]) == 3
    assert joint["model"]["head.pooling.w.weight"].shape == (1, 1, 4) and joint[
        "outputs"
    ] == 6 == len(joint["genes"])


def test_an_interrupted_table_of_bags_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_bag_table(tmp_path / "toy.csv")
    argv = [
        "diagnose",
        "--bags",
        "toy.csv",
        "--repeats",
        "1",
        "--folds",
        "3",
        "--epochs",
        "6",
        "--lr",
        "0.01",
        "--device",
        "cpu",
    ]
    assert main([*argv, "--name", "whole"]) == 0
    save = save_file

    def breaks(path, write):
        save(path, write)
        if str(path).endswith(".state.pt"):
            raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        swap(m, "lab.files", "save_file", breaks)
        main([*argv, "--name", "broken"])
    assert (
        list((tmp_path / "broken").glob("*.state.pt"))
        and main([*argv, "--name", "broken", "--bags", "./toy.csv"]) == 0
    )
    for path in (tmp_path / "whole").glob("*.pt"):
        a, b = (load_checkpoint(tmp_path / d / path.name, "cpu") for d in ("whole", "broken"))
        assert a["epoch"] == b["epoch"] and all(
            torch.equal(v, b["model"][k]) for k, v in a["model"].items()
        )
    assert not list((tmp_path / "broken").glob("*.state.pt"))
