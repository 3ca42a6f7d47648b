"""Layers on the ends of the attention: eq. 8 with a penalty, labels, and p by shuffled patients.

P pairs (patients), G genes, x (P, 2D) means of the tiles of highest and of lowest attention.
"""

import math

import numpy as np
import torch

import stats
from histcode import divisor, known_alike, train_label_epochs
from lab.progress import counted, progress
from lab.ridge import ridge, smoother

SHUFFLES = 10**6  # R of shuffled patients behind a p, over all genes [ours]
LEAST_ORDERS = 199  # of the patients, however many the genes: a p of .005 can be [ours]
AT_ONCE = 2048  # columns of one product [ours]


def linear_layer(x, y, penalty=0.0):
    """`histcode.least_squares` [eq. 8] with a penalty of the squared standardised weights. [ours]

    x (n, 2D), y (n, G) with nan -> weights (2D, G), bias (G,)
    """
    weights = np.zeros((x.shape[1], y.shape[1]))
    bias = np.full(y.shape[1], np.nan)
    for rows, genes in counted("least squares", known_alike(y), "sets of genes"):
        solved = ridge(x[rows], y[np.ix_(rows, genes)], (penalty,))
        weights[:, genes], bias[genes] = (values[0] for values in solved)
    return weights, bias


def label_layer(x, label, train, valid, device, **training):
    """Weights (2D, G) and bias (G,) of the log odds of label 1, of the best epoch. [ours]

    That has the lowest loss on the validation rows, or is the last where there are none.
    label (P, G); training: what `histcode.train_label_epochs` takes.
    """
    center = x[train].mean(0)
    scale = divisor(center, x[train].std(0))
    z = torch.tensor((x - center) / scale, dtype=torch.float32, device=device)
    label = torch.tensor(label, dtype=torch.float32, device=device)
    lowest = math.inf
    for state in train_label_epochs(z, label, train, valid, **training):
        if state["loss"] < lowest or not len(valid):
            lowest = state["loss"]
            weights = state["weights"].cpu().double().numpy() / scale[:, None]
            bias = state["bias"].cpu().double().numpy() - center @ weights
    return weights, bias


def shuffled_p(r, baseline, ends, part, penalties, y, rng, n_orders=None):
    """p (G,) of R, and one p of all R against the baseline's: patients in another order.

    How often do the fold changes of the patients in another order give as high an R, of all genes
    together; and R that beat the baseline's as often, by U of `stats.r_against_baseline`? All folds
    are fitted anew for each order, which moves a patient's genes together: so they stay as
    correlated as they are. ends: x and penalties of each fold; part (P,); y (P, G); baseline (G,).
    The t would take the R of pooled held-out predictions for one R of P patients, but it scatters
    more: of chance genes 3 % have p < .01 on 160 pairs. [ours]
    """
    n_orders = n_orders or max(LEAST_ORDERS, math.ceil(SHUFFLES / y.shape[1]))
    orders = rng.permuted(np.tile(np.arange(len(y)), (n_orders, 1)), axis=1)
    steps = np.sort(baseline[~np.isnan(baseline)])
    null, won = [], np.zeros(n_orders)
    tick = progress("shuffled patients", n_orders * y.shape[1], "R", end=False)
    for rows, genes in known_alike(y):
        s = held_out_smoother([x[rows] for x in ends], part[rows], penalties)
        own = orders_among(orders, rows)
        for start in range(0, n_orders, step := max(1, AT_ONCE // len(genes))):
            moved = y[:, genes][own[start : start + step]]  # (step, n, genes)
            shape = moved.shape
            moved = moved.swapaxes(0, 1).reshape(len(rows), -1)
            null.append(stats.pearson(s @ moved, moved))
            won[start : start + step] += pairs_won(null[-1].reshape(shape[0], -1), steps)
            tick(moved.shape[1])
    null = np.sort(np.concatenate(null))
    null = null[~np.isnan(null)]
    reached = len(null) - np.searchsorted(null, r - stats.TIED)
    p = np.where(np.isnan(r), np.nan, (1 + reached) / (1 + len(null)))
    as_often = np.count_nonzero(won >= pairs_won(r[None], steps))
    return p, (1 + as_often) / (1 + n_orders)


def orders_among(orders, rows):
    """Orders (n_orders, P) of all patients as orders of some: (n_orders, n), numbers out of rows.

    A patient who is not among them passes the turn on. An order drawn from all of P is so one drawn
    from all of n, and moves whom it can as in P.
    """
    inside = np.zeros(orders.shape[1], bool)
    inside[rows] = True
    own = orders[:, rows]
    while not inside[own].all():
        own = np.where(inside[own], own, np.take_along_axis(orders, own, 1))
    return own


def pairs_won(r, steps):
    """U: how often R (n, G) is above those of the baseline, sorted; nan wins nothing. -> (n,)"""
    above = np.searchsorted(steps, r - stats.TIED)
    return np.where(np.isnan(r), 0, above).sum(1)


def held_out_smoother(ends, part, penalties):
    """S (n, n): S @ y are the held-out predictions of all folds, of y (n, C) in whichever order.

    A prediction is linear in y, so the fit to unit vectors serves every order.
    """
    s = np.zeros((len(part), len(part)))
    for f, (x, penalty) in enumerate(zip(ends, penalties, strict=True)):
        test = part == f
        if test.any() and not test.all():
            s[np.ix_(test, ~test)] = smoother(x[~test], x[test], penalty)
    return s
