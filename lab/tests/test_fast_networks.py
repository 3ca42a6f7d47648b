"""Networks trained at once are those of the method, trained one after another."""

import numpy as np
import pytest
import torch
from torch import nn

import he2rna
from lab.fast import networks

RECIPES = {
    "classifier": he2rna.Recipe(2, (40, 16, 8, 1), (nn.Sigmoid,) * 3, 50, 10),
    "expression": he2rna.Recipe(0, (40, 12, 6, 30), (nn.Sigmoid, nn.Sigmoid, nn.Identity), 50, 10),
    "autoencoder": he2rna.Recipe(
        1, (40, 24, 6, 24, 40), (nn.ReLU, nn.Identity, nn.ReLU, nn.Identity), 50, 10
    ),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("block", [1, 10**9])
def test_networks_in_blocks_are_those_trained_one_by_one(monkeypatch, name, block):
    """Authority: torch's layers, losses, autograd and Adam. 1 to 5 mini-batches an epoch."""
    monkeypatch.setitem(networks.BLOCK, "cpu", block)
    recipe = RECIPES[name]._replace(keras=block == 1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 40)).astype(np.float32)
    target = None
    if name == "classifier":
        target = (rng.random((60, 1)) < 0.3).astype(np.float32)
    if name == "expression":
        target = rng.normal(size=(60, 30)).astype(np.float32)
    lessons = []
    for m, n in enumerate((31, 38, 40, 41, 40, 9, 10)):
        rows = rng.permutation(60)[:n]
        lessons.append(he2rna.Lesson(x * np.float32(1 + m / 10), target, rows, rows, 90 + m))
    device = torch.device("cpu")
    with networks.threads(device) as pool:
        ours = list(networks.train_networks(recipe, lessons, pool, device))
    plain = list(he2rna.train_networks(recipe, lessons))
    untrained = list(he2rna.train_networks(recipe._replace(epochs=0), lessons))
    for own, theirs, first in zip(ours, plain, untrained, strict=True):
        for a, b in zip(own, theirs, strict=True):
            assert np.abs(a - b).max() < 1e-4
        assert np.abs(own[1] - first[1]).max() > 0.05  # from where they began, a long way
