"""AdCo learns: on drawn pictures, beside SimCLR and beside an AdCo written from its paper alone."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import histcode
from lab.histcode import toy

STEPS = 100


@pytest.fixture(scope="module")
def shapes():
    return toy.draw_shapes(toy.PICTURES, 0), toy.draw_shapes(toy.TESTED, 1)


class PaperAdCo:
    """Hu et al. 2021, arXiv:2011.08435, section 3, by autograd for both players, in pairs of loops.

    L(theta, N) = mean_i -log exp(q_i.q'_i / tau) / (exp(q_i.q'_i / tau) + sum_k exp(q_i.n_k / tau))
    (eq. 1); the network goes down it (eq. 3), the negatives n_k, of unit length, go up (eq. 4).
    others: beside the n_k, the q' of the other images, as in the released code.
    """

    def __init__(self, network, negatives, tau=0.12, rates=(toy.RATE, 0.021), others=True):
        self.network = network
        self.n = negatives.clone().requires_grad_()
        self.tau = tau
        self.others = others
        self.memory = [torch.zeros_like(p) for p in (*network.parameters(), self.n)]
        self.rates = [-rates[0]] * (len(self.memory) - 1) + [rates[1]]  # down, and up

    def loss(self, q, q2):
        n = self.n / self.n.norm(dim=1, keepdim=True)
        total = 0
        for i in range(len(q)):
            against = [q[i] @ n.T]
            if self.others:
                others = torch.arange(len(q)) != i
                against.append(q2[others] @ q[i])
            similar = torch.cat([(q[i] @ q2[i])[None], *against]) / self.tau
            total = total - torch.log_softmax(similar, 0)[0]
        return total / len(q)

    def step(self, x, x2):
        """Both move at once, by momentum .9 and a weight decay of .0001."""
        players = [*self.network.parameters(), self.n]
        loss = self.loss(self.network(x), self.network(x2))
        gradients = torch.autograd.grad(loss, players)
        with torch.no_grad():
            for p, g, v, rate in zip(players, gradients, self.memory, self.rates, strict=True):
                towards = g if rate < 0 else g - 2e-4 * p  # what it shrinks by, either way
                v.mul_(0.9).add_(towards + 1e-4 * p)
                p.add_(rate * v)
        return loss.item()


def of_paper(pictures, steps, **options):
    model = toy.embedder(0).train()
    adco = PaperAdCo(model, histcode.random_bank(toy.NEGATIVES, seed=0), **options)
    views = toy.views_of(pictures, 0, steps, 1)
    return model, [adco.step(x1, x2) for x1, x2 in views]


@pytest.mark.parametrize("others", [True, False])
def test_adco_takes_the_steps_of_one_written_from_its_paper(shapes, others):
    (pictures, _), _ = shapes
    theirs, losses = of_paper(pictures, 6, others=others)
    ours, state = toy.learn(pictures, 0, toy.bank(in_batch=others), 6)
    assert state["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    start = dict(toy.embedder(0).named_parameters())
    after = dict(theirs.named_parameters())
    for name, value in ours.named_parameters():
        moved = (value - start[name]).norm()
        assert (value - after[name]).norm() < 0.02 * moved + 1e-5, name
    rate = histcode.BANK_RATE * toy.NEGATIVES / histcode.BANK_SIZE
    assert rate == pytest.approx(0.021, rel=0.01)


def test_adco_learns_as_much_as_simclr(shapes):
    """What SimCLR reaches, less what seeds scatter by (.05 of three seeds)."""
    taught, tested = shapes
    start = toy.accuracy(toy.embedder(0).encoder, taught, tested)
    reached = {}
    for name in ("SimCLR", "AdCo, the defaults"):
        negatives, options = toy.ARMS[name]
        model, state = toy.learn(taught[0], 0, negatives, STEPS, **options)
        reached[name] = toy.accuracy(model.encoder, taught, tested)
        assert state["spread"] > 0.2
    simclr, adco = reached.values()
    assert adco > simclr - 0.1 and min(simclr, adco) > start + 0.1, (start, reached)


def test_eq_1_alone_flees_the_bank_to_one_place(shapes):
    """The collapse that the defaults keep from: all in one place, and the loss likes it."""
    (pictures, _), _ = shapes
    _, state = toy.learn(pictures, 0, toy.bank(in_batch=False), 40)
    _, ours = toy.learn(pictures, 0, toy.bank(), 40)
    assert state["spread"] < 0.15 and state["spread"] < ours["spread"] / 2, ours["spread"]
    even = math.log(1 + toy.NEGATIVES)  # where the negatives are as near as the key
    assert state["loss"] < 0.3 * even


def test_pictures_show_their_classes():
    pictures, classes = toy.draw_shapes(600, 3)
    assert np.bincount(classes, minlength=12).min() > 20
    plain = classes % len(toy.TEXTURES) == 0
    rough = F.avg_pool2d(pictures.permute(0, 3, 1, 2).float(), 2, 1)
    edges = (rough.diff(dim=3).abs() > 25).float().mean((1, 2, 3)).numpy()
    assert edges[plain].mean() < 0.6 * edges[~plain].mean()
    cross = classes // len(toy.TEXTURES) == 3
    purple = (pictures[..., 1] < 135).float().mean((1, 2)).numpy()
    assert purple[plain & cross].mean() < purple[plain & (classes == 3)].mean()  # than a square
    same, again = toy.draw_shapes(600, 3)
    assert torch.equal(pictures, same) and (classes == again).all()
