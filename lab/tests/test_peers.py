"""What python -m lab.bench peers compares by, and what it says of packages that are not there."""

import numpy as np
import pytest

from lab.bench import peers


def test_areas_of_tiles_are_compared_whatever_their_grid():
    """By hand: squares moved by half of their edge share a third; half as wide, a quarter."""
    one = np.array([[0, 0], [160, 320]])
    area = peers.covered(one, 160.0, 160.0)
    assert len(area) == 2 * peers.GRID**2
    assert peers.jaccard(
        area, peers.covered(one + np.array([80, 0]), 160.0, 160.0)
    ) == pytest.approx(1 / 3)
    assert peers.jaccard(area, peers.covered(one, 80.0, 160.0)) == pytest.approx(1 / 4)


def test_masks_of_two_sizes_are_compared():
    mask = np.random.default_rng(0).random((30, 20)) > 0.5
    large = mask.repeat(3, 0).repeat(5, 1)
    assert peers.overlap(peers.at_size(large, mask.shape), mask) == 1
    assert peers.overlap(peers.at_size(mask, large.shape), large) == 1


def test_a_peer_that_is_not_there_is_named_with_its_mend(monkeypatch, capsys):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(peers.importlib, "import_module", missing)
    peers.bench_peers(slide="a.svs")
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == len(peers.INSTALL)
    for row, (package, mend) in zip(rows, peers.INSTALL.items(), strict=True):
        assert f"| not measured: No module named '{package}' | {mend} |" in row
        assert row.count("|") == 6


def test_logistic_regression_learns_drawn_bags(monkeypatch):
    """Better than chance, from the mean alone of bags in which one instance tells."""
    bags, y = peers.bags_of(None)
    assert len(bags) == len(y) == 92 and y.sum() == 46
    monkeypatch.setattr(peers, "accuracy_of_networks", lambda *_: 0.5)
    _, ours, theirs, *_ = peers.baseline_row(None)
    assert ours.startswith("accuracy 0.500, ")
    assert float(theirs.split()[1].rstrip(",")) > 0.5
