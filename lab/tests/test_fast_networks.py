"""lab.tests.test_fast_networks"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lab.fast.networks import draw_networks, layers_of, train_networks
from lab.tests.helpers import one_by_one, swap


@pytest.mark.parametrize(
    "sizes, activations",
    [
        ((40, 16, 8, 1), ("sigmoid",) * 3),
        ((40, 12, 6, 30), ("sigmoid", "sigmoid", "linear")),
        ((40, 24, 6, 24, 40), ("relu",) * 3 + ("linear",)),
    ],
)
@pytest.mark.parametrize("block", [1, 10**9])
def test_networks_in_a_batch_are_those_trained_one_by_one(monkeypatch, sizes, activations, block):
    """50 epochs of 7 networks with 31, 38, 40, 41 ... rows (3 to 5 mini-batches of 10), against torch's autograd and Adam."""
    swap(monkeypatch, "lab.fast.networks", "MSI_BLOCK", {"cpu": block})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 40)).astype(np.float32)
    target = (
        (rng.random((60, 1)) < 0.3).astype(np.float32)
        if sizes[-1] == 1
        else rng.normal(size=(60, sizes[-1])).astype(np.float32)
    )
    trains = [rng.permutation(60)[:n] for n in (31, 38, 40, 41, 40, 9, 10)]
    inputs = lambda m: (x * np.float32(1 + m / 10), target)
    done = dict(
        train_networks(
            ThreadPoolExecutor(2),
            sizes,
            activations,
            inputs,
            trains,
            list(range(90, 97)),
            50,
            10,
            torch.device("cpu"),
            list,
        )
    )
    assert sorted(done) == list(range(7))
    for m, rows in enumerate(trains):
        for ours, theirs in zip(
            map(torch.from_numpy, done[m]),
            one_by_one(sizes, activations, *inputs(m), rows, 90 + m, 50, 10),
            strict=True,
        ):
            assert (ours - theirs).abs().max() < 1e-4
        first = layers_of(
            *draw_networks(sizes, [90 + m])[:2], activations, torch.from_numpy(inputs(m)[0])[None]
        )
        assert (
            np.abs(done[m][-1] - first[-1][0].numpy()).max() > 0.05
        )  # from where they began, a long way
