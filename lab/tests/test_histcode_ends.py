"""Layers on the ends of the attention: eq. 8 with a penalty, labels, p by shuffled patients.

Authorities: NumPy's lstsq, the normal equations, Adam written out, and loops that fit every order.
"""

import numpy as np
import pytest
import scipy.stats
import torch

import histcode
import stats
from lab.histcode.ends import label_layer, linear_layer, orders_among, pairs_won, shuffled_p


@pytest.mark.parametrize("n, d", [(30, 5), (6, 9)])  # one solution; many, of which the smallest
def test_the_linear_layer_is_lstsq_of_the_known_patients_of_each_gene(n, d):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (n, d))
    y = rng.normal(size=(n, 5))
    y[:2, 1] = y[3, 2] = y[:2, 3] = y[:, 4] = np.nan
    weights, bias = linear_layer(x, y)
    for j in range(4):
        known = ~np.isnan(y[:, j])
        mean, sd = x[known].mean(0), x[known].std(0)
        target = y[known, j] - y[known, j].mean()
        w = np.linalg.lstsq((x[known] - mean) / sd, target, rcond=1e-9)[0] / sd
        assert np.allclose(weights[:, j], w)
        assert bias[j] == pytest.approx(y[known, j].mean() - mean @ w)
    assert (weights[:, 4] == 0).all() and np.isnan(bias[4])  # known of nobody
    for ours, plain in zip((weights, bias), histcode.least_squares(x, y), strict=True):
        assert np.allclose(ours[..., :4], plain[..., :4])


@pytest.mark.parametrize("n, d", [(30, 5), (6, 9)])
def test_a_penalty_is_that_of_the_normal_equations(n, d):
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 2, (n, d)), rng.normal(size=(n, 2))
    z = (x - x.mean(0)) / x.std(0)
    w = np.linalg.solve(z.T @ z + 2.5 * np.eye(d), z.T @ (y - y.mean(0)))
    assert np.allclose(linear_layer(x, y, 2.5)[0], w / x.std(0)[:, None])


def adam(x, label, steps, rate):
    """Weights and bias of a logistic regression after each step of Adam from 0.

    [Kingma & Ba 2015, algorithm 1]
    """
    x = np.c_[x, np.ones(len(x))]
    w, m, v = np.zeros(x.shape[1]), 0, 0
    for t in range(1, steps + 1):
        gradient = x.T @ (1 / (1 + np.exp(-x @ w)) - label) / len(x)
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        w = w - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        yield w


def test_labels_are_a_logistic_regression_of_the_best_epoch_on_the_validation_patients():
    rng = np.random.default_rng(0)
    n, d = 40, 6
    x = rng.normal(3, 2, (n, d))
    label = np.where(x[:, :1] + rng.normal(0, 2, (n, 1)) > 3, 1.0, 0.0)
    label[[1, 5, 26]] = np.nan
    train, valid, test = np.split(np.arange(n), [16, 28])
    x[test] = np.nan  # they teach nothing
    z = (x - x[train].mean(0)) / x[train].std(0)
    learns, chooses = (rows[~np.isnan(label[rows, 0])] for rows in (train, valid))
    after = list(adam(z[learns], label[learns, 0], 30, 0.1))  # fast enough to overfit
    losses = []
    for w in after:
        odds = z[chooses] @ w[:-1] + w[-1]
        losses.append(np.log1p(np.exp(-(2 * label[chooses, 0] - 1) * odds)).mean())
    best = int(np.argmin(losses))
    assert 0 < best < 28  # it is neither the first nor the last
    for part, epoch in ((valid, best), (valid[:0], 29)):
        settings = {"epochs": 30, "lr": 0.1}
        weights, bias = label_layer(x, label, train, part, torch.device("cpu"), **settings)
        want = z[:28] @ after[epoch][:-1] + after[epoch][-1]
        assert np.allclose(x[:28] @ weights[:, 0] + bias, want, atol=2e-3 * np.abs(want).max())


# ----- p by shuffled patients ---------------------------------------------------------------------


def chance(n, d, G):
    """Features by the attention of each of 4 folds (they differ), parts, y that follows nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * np.linspace(3, 0.1, d)
    y = rng.normal(size=(n, G))
    y[:7, :2] = np.nan
    return [x + 0.1 * rng.normal(size=x.shape) for _ in range(4)], np.arange(n) % 4, y


def held_out_r(ends, part, penalties, y):
    """R of each gene of the pooled held-out predictions, every fold fitted by `linear_layer`."""
    prediction = np.empty_like(y)
    for f, (x, penalty) in enumerate(zip(ends, penalties, strict=True)):
        weights, bias = linear_layer(x[part != f], y[part != f], penalty)
        prediction[part == f] = x[part == f] @ weights + bias
    known = ~np.isnan(y)
    genes = range(y.shape[1])
    return np.array(
        [scipy.stats.pearsonr(prediction[known[:, j], j], y[known[:, j], j])[0] for j in genes]
    )


def induced(order, rows):
    """Each of the rows follows the order until it meets one of them: their own order."""
    own = []
    for row in rows:
        to = order[row]
        while to not in rows:
            to = order[to]
        own.append(to)
    return own


@pytest.mark.parametrize("tied", [False, True])
def test_shuffled_p_counts_orders_with_all_folds_fitted_anew(monkeypatch, tied):
    """Every order by hand: all folds fitted to it, and the genes of a patient moved together.

    tied: one patient differs from all others, so that orders give the R itself but for rounding.
    """
    monkeypatch.setattr("lab.histcode.ends.SHUFFLES", 60)
    monkeypatch.setattr("lab.histcode.ends.LEAST_ORDERS", 1)
    ends, part, y = chance(n=16, d=24, G=3)
    if tied:
        y = np.where(np.isnan(y), np.nan, y == np.nanmax(y, 0))
    penalties = (0, 5.0, 0, 30.0)
    r = held_out_r(ends, part, penalties, y)
    baseline = np.array([-0.1, 0.2, np.nan])
    orders = np.random.default_rng(3).permuted(np.tile(np.arange(16), (20, 1)), axis=1)
    null = []
    for order in orders:
        moved = np.full((16, 3), np.nan)
        for rows, genes in ((np.arange(7, 16), [0, 1]), (np.arange(16), [2])):
            moved[np.ix_(rows, genes)] = y[np.ix_(induced(order, rows), genes)]
        null.append(held_out_r(ends, part, penalties, moved))
    null = np.array(null)
    assert (abs(null - r[:, None, None]) < 1e-9).any() == tied
    p, p_of_all = shuffled_p(r, baseline, ends, part, penalties, y, np.random.default_rng(3))
    assert np.allclose(p, [(1 + (null >= one - 1e-9).sum()) / 61 for one in r])
    won = [stats.r_against_baseline(each, baseline)[0] for each in [r, *null]]
    assert p_of_all == pytest.approx(sum(u >= won[0] for u in won) / 21)
    none = np.array([np.nan, 1, 1])
    rng = np.random.default_rng(3)
    assert np.isnan(shuffled_p(none, baseline, ends, part, penalties, y, rng)[0][0])


def test_a_tie_wins_nothing_nor_does_what_is_unknown():
    """By hand; 1e-12 is rounding."""
    steps = np.array([0.1, 0.15, 0.3])
    r = np.array([[0.1, 0.2, np.nan], [0.1 + 1e-12, 0.3 - 1e-12, 0.15], [0.31, -1, 0.11]])
    assert pairs_won(r, steps).tolist() == [0 + 2, 0 + 2 + 1, 3 + 0 + 1]


def test_orders_of_some_patients_are_uniform():
    """All 24 orders of 4 of 6 patients, each in a 24th of 24,000 draws."""
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(np.arange(6), (24000, 1)), axis=1)
    own, times = np.unique(orders_among(orders, np.array([0, 2, 3, 5])), axis=0, return_counts=True)
    assert len(own) == 24 and (np.sort(own, 1) == [0, 2, 3, 5]).all()
    assert scipy.stats.chisquare(times).pvalue > 0.001


def test_shuffled_p_is_that_of_chance_where_the_t_is_too_bold(monkeypatch):
    monkeypatch.setattr("lab.histcode.ends.SHUFFLES", 20000)
    ends, part, y = chance(n=40, d=60, G=600)
    r = held_out_r(ends, part, (0,) * 4, y)
    p, _ = shuffled_p(r, r, ends, part, (0,) * 4, y, np.random.default_rng(0))
    assert 0.03 < (p < 0.05).mean() < 0.07 and (p < 0.01).mean() < 0.025
    assert (stats.pearson_p(r, 40) < 0.01).mean() > 0.025
