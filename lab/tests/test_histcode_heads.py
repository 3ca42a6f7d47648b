"""Networks on frozen features: what a step is, what chooses the epoch, what is standardised."""

import numpy as np
import pytest
import torch

from lab.histcode.heads import apply_heads, mean_and_sd, sums_of
from lab.histcode.networks import POOLINGS, SlideModel
from lab.tests.helpers_histcode import learn, planted_bags, some_networks, three_splits


@pytest.mark.parametrize("name", ["DSMIL", "HistCode"])
def test_one_step_is_torchs_adam_on_the_cross_entropy_of_every_stream(name):
    bags, y = planted_bags(4)
    split = np.arange(2), np.array([2]), np.array([3])
    (got,) = learn(name, bags, y, [split], [3], epochs=1)
    (model,) = some_networks(name, bags, [split], [3])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-4)
    loss = 0
    for i in (0, 1):
        mask = torch.ones(1, len(bags[i]), dtype=torch.bool)
        streams = model(torch.from_numpy(bags[i])[None], mask)[0][0]
        loss = loss - streams.log_softmax(1)[:, y[i]].mean() / 2
    loss.backward()
    optimizer.step()
    for key, value in model.state_dict().items():
        assert torch.allclose(value, got["model"][key], atol=1e-6)


def test_the_test_part_chooses_nothing():
    bags, y = planted_bags()
    train, valid, test = three_splits()[0]
    spoiled = [bag.copy() for bag in bags]
    other = y.copy()
    other[test] = 1 - y[test]
    for i in test:
        spoiled[i][:] = 99
    (a,) = learn("HistCode", bags, y, [(train, valid, test)], [1])
    (b,) = learn("HistCode", spoiled, other, [(train, valid, test)], [1])
    assert a["epoch"] == b["epoch"] and torch.equal(a["losses"], b["losses"])
    assert not torch.equal(a["tests"], b["tests"])
    assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())


def test_features_are_standardised_over_the_training_tiles():
    bags, _ = planted_bags()
    bags = [np.c_[3 * bag + 5, np.full(len(bag), 7)] for bag in bags]  # the last one is constant
    rows = [0, 3, 9]
    tiles = np.concatenate([bags[i] for i in rows])
    mean, sd = mean_and_sd([sums_of(bag) for bag in bags], rows)
    assert np.allclose(mean, tiles.mean(0)) and np.allclose(sd, tiles.std(0), atol=1e-7)
    model = SlideModel("mean", mean, sd)
    assert np.allclose(model.scale[:-1], 1 / tiles.std(0)[:-1], rtol=1e-5) and model.scale[-1] == 0


@pytest.mark.parametrize("name", POOLINGS)
def test_a_checkpoint_of_many_networks_speaks_as_each_of_them(name):
    bags, _ = planted_bags()
    models = some_networks(name, bags, [(np.arange(9), (), ())] * 5, range(5), embed=(5,))
    states = [model.state_dict() for model in models]
    weights = {key: torch.stack([state[key] for state in states]) for key in states[0]}
    shape = {"outputs": 2, "embed": [5], "hidden": 8, "n_features": 6}
    apply = apply_heads({"model": weights, "pooling": name, **shape}, torch.device("cpu"), block=2)
    out, a = apply(bags[6].astype(np.float16))
    assert out.shape == (5, 2) and a.shape == (5, len(bags[6]))
    mask = torch.ones(1, len(bags[6]), dtype=torch.bool)
    for m, model in enumerate(models):
        want, attention = model(torch.from_numpy(bags[6])[None].half(), mask)
        assert torch.allclose(out[m], want[0, -1], atol=1e-5)
        assert torch.allclose(a[m], attention[0], atol=1e-5)
