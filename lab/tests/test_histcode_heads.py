"""lab.tests.test_histcode_heads"""

import argparse

import numpy as np
import pytest
import torch

import histcode
from lab.histcode.heads import apply_heads, mean_and_sd, sums_of, train_heads
from lab.histcode.networks import POOLINGS, SlideModel
from lab.tests.helpers import learn, planted_bags, some_networks, three_splits


def test_one_step_is_adam_on_the_cross_entropy_of_every_stream():
    bags, y = planted_bags(4)
    split = np.arange(2), np.array([2]), np.array([3])
    for name in ("DSMIL", "HistCode"):
        (got,) = learn(name, bags, y, [split], [3], epochs=1)
        (model,) = some_networks(name, bags, [split], [3])
        optimizer, loss = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-4), 0
        for i in (0, 1):
            streams = model(
                torch.from_numpy(bags[i])[None], torch.ones(1, len(bags[i]), dtype=torch.bool)
            )[0][0]
            loss = loss - streams.log_softmax(1)[:, y[i]].mean() / 2
        loss.backward()
        optimizer.step()
        assert all(
            torch.allclose(v, got["model"][k], atol=1e-6) for k, v in model.state_dict().items()
        )


def test_the_test_part_chooses_nothing():
    (bags, y), (train, valid, test) = planted_bags(), three_splits()[0]
    spoiled, other = [b.copy() for b in bags], y.copy()
    other[test] = 1 - y[test]
    for i in test:
        spoiled[i][:] = 99
    (a,) = learn("HistCode", bags, y, [(train, valid, test)], [1])
    (b,) = learn("HistCode", spoiled, other, [(train, valid, test)], [1])
    assert (
        a["epoch"] == b["epoch"]
        and torch.equal(a["losses"], b["losses"])
        and not torch.equal(a["tests"], b["tests"])
    )
    assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())


def test_features_are_standardised_over_the_training_tiles():
    bags, _ = planted_bags()
    bags = [np.c_[3 * b + 5, np.full(len(b), 7)] for b in bags]  # the last one is constant
    rows = [0, 3, 9]
    tiles = np.concatenate([bags[i] for i in rows])
    mean, sd = mean_and_sd(list(map(sums_of, bags)), rows)
    assert np.allclose(mean, tiles.mean(0)) and np.allclose(sd, tiles.std(0), atol=1e-7)
    model = SlideModel("mean", mean, sd)
    assert np.allclose(model.scale[:-1], 1 / tiles.std(0)[:-1], rtol=1e-5) and model.scale[-1] == 0


# ----- Networks: which epoch, and many on the same bags --------------------------------------------------------------
def regress(bags, y, parts, seeds, epochs=6, columns=None):
    """train_heads on squared errors: one output a network, column m of y (n, G) is network m's target."""
    o, sums = (
        argparse.Namespace(lr=2e-2, weight_decay=0, epochs=epochs, batch=2),
        list(map(sums_of, bags)),
    )
    columns, models = range(y.shape[1]) if columns is None else columns, []
    for m in columns:
        torch.manual_seed(m)
        models.append(SlideModel("HistCode", *mean_and_sd(sums, parts[0][0]), 1, (), 4))
    target = lambda rows: torch.from_numpy(
        np.float32([[[y[i, m]] for i in rows[0]] for m in columns])
    )
    return train_heads(
        models, bags.__getitem__, target, histcode.squared_error, parts, seeds, o, "cpu"
    )


def test_the_epoch_of_a_regression_has_the_lowest_loss():
    (bags, label), rng = planted_bags(), np.random.default_rng(0)
    y = np.c_[label + rng.normal(0, 1, 24), rng.normal(0, 1, 24)]
    done = regress(bags, y, [(np.arange(14), v := np.arange(14, 24), v)], [3], epochs=15)
    for m in range(2):
        losses = [
            np.mean([(t[i, 0].item() - y[v[i], m]) ** 2 for i in range(10)])
            for t in done["tests"][m]
        ]
        assert (
            np.allclose(losses, done["losses"][:, m], atol=1e-5)
            and done["epochs"][m] == 1 + int(np.argmin(losses)) < 15
        )


def test_networks_that_share_their_bags_are_those_trained_one_by_one():
    bags, label = planted_bags()
    y = np.c_[label, np.sin(np.arange(24)), [b.mean() for b in bags]]
    part = [(np.arange(13), np.arange(13, 18), np.arange(18, 24))]
    y[3, 1] = np.nan
    together = regress(bags, y, part, [9])
    for m in range(3):
        alone = regress(bags, y, part, [9], columns=[m])
        assert alone["epochs"][0] == together["epochs"][m]
        assert torch.allclose(together["tests"][m], alone["tests"][0], atol=1e-5)
        assert all(
            torch.allclose(v[m], alone["model"][k][0], atol=1e-4)
            for k, v in together["model"].items()
        )
        assert together["tests"][m].shape == (6, 6, 1)  # (epochs, n_test, C)


@pytest.mark.parametrize("name", POOLINGS)
def test_a_checkpoint_of_many_networks_speaks_as_each_of_them(name):
    bags, _ = planted_bags()
    models = some_networks(name, bags, [(np.arange(9), (), ())] * 5, range(5), embed=(5,))
    saved = dict(
        model={k: torch.stack([m.state_dict()[k] for m in models]) for k in models[0].state_dict()},
        pooling=name,
        outputs=2,
        embed=[5],
        hidden=8,
        n_features=6,
    )
    out, a = apply_heads(saved, torch.device("cpu"), block=2)(bags[6].astype(np.float16))
    assert out.shape == (5, 2) and a.shape == (5, len(bags[6]))
    for m, model in enumerate(models):
        want, attention = model(
            torch.from_numpy(bags[6])[None].half(), torch.ones(1, len(bags[6]), dtype=torch.bool)
        )
        assert torch.allclose(out[m], want[0, -1], atol=1e-5) and torch.allclose(
            a[m], attention[0], atol=1e-5
        )
