"""Networks trained as one against histcode.train_slide_epochs, which trains one after another."""

import copy

import numpy as np
import pytest
import torch

import histcode
from lab.histcode.heads import mean_and_sd, sums_of, train_heads
from lab.histcode.networks import POOLINGS, SlideModel
from lab.tests.helpers import options
from lab.tests.helpers_histcode import learn, planted_bags, some_networks, three_splits

TRAINING = {"epochs": 3, "batch": 2, "lr": 1e-2, "weight_decay": 1e-4}


def close(a, b):
    """Adam makes steps of gradients that are nothing but rounding: hence a fiftieth of its rate."""
    return all(torch.allclose(value, b[name], atol=2e-4) for name, value in a.items())


@pytest.mark.parametrize("name", POOLINGS)
def test_networks_trained_as_one_are_those_of_the_plain_loop(name):
    bags, y = planted_bags()
    splits, seeds = three_splits(), [5, 6, 7]
    together = learn(name, bags, y, splits, seeds)
    models = some_networks(name, bags, splits, seeds)
    for fast, model, (train, valid, test), seed in zip(
        together, models, splits, seeds, strict=True
    ):
        losses, answers = [], []
        for state in histcode.train_slide_epochs(
            model, bags, torch.from_numpy(y), train, valid, seed=seed, **TRAINING
        ):
            losses.append(state["loss"])
            answers.append(histcode.predict_slides(model, bags, test)[:, 0])
        assert np.allclose(losses, fast["losses"], atol=1e-4)
        assert torch.allclose(torch.stack(answers), fast["tests"], atol=1e-4)
        assert state["best_epoch"] == fast["epoch"] and close(state["best"], fast["model"])


def test_genes_that_share_their_slides_are_those_of_the_plain_loop():
    """One network for each gene, all on the same bags; some fold changes are not known."""
    bags, label = planted_bags()
    y = np.stack([label, np.sin(np.arange(24)), [bag.mean() for bag in bags]], 1)
    y[3, 1] = np.nan
    train, valid, test = np.arange(13), np.arange(13, 18), np.arange(18, 24)
    scale = mean_and_sd([sums_of(bag) for bag in bags], train)
    models = []
    for gene in range(3):
        torch.manual_seed(gene)
        models.append(SlideModel("HistCode", *scale, 1, (), 4))
    alone = copy.deepcopy(models)

    def target(rows):
        return torch.from_numpy(np.float32(y[rows[0]].T[:, :, None]))  # (M, b, 1)

    o = options()
    vars(o).update(TRAINING)
    part = (train, valid, test)
    done = train_heads(
        models, bags.__getitem__, target, histcode.squared_error, [part], [9], o, "cpu"
    )
    regression = {"loss": histcode.squared_error, "judge": histcode.squared_error}
    for gene, model in enumerate(alone):
        own = torch.from_numpy(np.float32(y[:, [gene]]))
        losses = []
        for state in histcode.train_slide_epochs(
            model, bags, own, train, valid, seed=9, **regression, **TRAINING
        ):
            losses.append(state["loss"])
        assert np.allclose(losses, done["losses"][:, gene], atol=1e-5)
        assert state["best_epoch"] == done["epochs"][gene] == 1 + np.argmin(losses)
        assert close(state["best"], {k: v[gene] for k, v in done["model"].items()})
        assert done["tests"][gene].shape == (3, len(test), 1)


def test_a_state_handed_back_goes_on_and_ends_the_same():
    bags, y = planted_bags()
    train, valid, _ = three_splits()[0]

    def states(model, epochs, state=None, **more):
        training = {**TRAINING, "epochs": epochs, "state": state, **more}
        y_ = torch.from_numpy(y)
        return list(histcode.train_slide_epochs(model, bags, y_, train, valid, **training))

    whole, half, fresh = some_networks("HistCode", bags, [(train, valid, ())] * 3, [1] * 3)
    (*_, end) = states(whole, 5)
    (*_, middle) = states(half, 2)
    (*_, resumed) = states(fresh, 5, copy.deepcopy(middle))
    assert resumed["epoch"] == 5 and resumed["best_epoch"] == end["best_epoch"]
    (*_, still) = states(some_networks("HistCode", bags, [(train, valid, ())], [1])[0], 3, lr=0)
    assert still["best_epoch"] == 3  # of equal epochs the last
    assert all(torch.equal(v, end["model"][k]) for k, v in resumed["model"].items())


@pytest.mark.parametrize(
    "target, loss",
    [
        ([0, 1], {}),
        ([[0.5], [0.1]], {"loss": histcode.squared_error, "judge": histcode.squared_error}),
    ],
    ids=["classes", "fold changes"],
)
def test_the_plain_loop_stops_on_a_loss_that_is_not_finite(target, loss):
    """Of a regression no epoch would be the best: nan is below nothing."""
    bags = [np.full((3, 4), np.inf, np.float32), np.ones((2, 4), np.float32)]
    model = histcode.PooledClassifier(histcode.mean_pooling, 4, outputs=2 - bool(loss))
    states = histcode.train_slide_epochs(model, bags, torch.tensor(target), [0], [1], **loss)
    with pytest.raises(FloatingPointError, match="epoch 1: loss or weights are not finite"):
        next(states)
