"""Decoys of fold changes: genes of shuffled patients, learned beside the others, and p by their R.

P pairs (patients), G genes, m decoys; y (P, G) = log10(fc + 1), nan where unknown. What a decoy is
and why it holds: `he2rna.draw_decoys`. Here R is over all pairs, so decoys are shuffled over all.
"""

import numpy as np
import torch

import he2rna
import histcode
import stats

DRAW = 20  # tells the seed of the decoys from those of parts and networks [ours]


def targets_beside(y, count, seed):
    """The genes and behind them decoys (P, G + m); what is unknown moves with its patient."""
    one = np.full(len(y), "all")
    return np.hstack([y, he2rna.draw_decoys(y, np.arange(len(y)), one, count, [seed, DRAW])])


def loss_beside(n_genes, n_decoys):
    """`histcode.squared_error` of genes and decoys by `he2rna.decoy_share`; None without decoys."""
    if not n_decoys:
        return None
    share = he2rna.decoy_share(n_genes, n_genes + n_decoys)

    def loss(outputs, y):
        decoys = histcode.squared_error(outputs[..., n_genes:], y[..., n_genes:])
        return loss_of_genes(n_genes)(outputs, y) + share * decoys

    return loss


def loss_of_genes(n_genes):
    """`histcode.squared_error` of the genes alone."""

    def loss(outputs, y):
        return histcode.squared_error(outputs[..., :n_genes], y[..., :n_genes])

    return loss


def add_outputs(head, count):
    """Give a PooledClassifier so many outputs more, drawn after those that it has."""
    if not count:
        return
    more = torch.nn.Linear(head.classify.in_features, count)
    weight = torch.cat([head.classify.weight.data, more.weight.data])
    bias = torch.cat([head.classify.bias.data, more.bias.data])
    head.classify = torch.nn.Linear(*weight.T.shape, device="meta")
    head.classify.weight = torch.nn.Parameter(weight)
    head.classify.bias = torch.nn.Parameter(bias)


def without(saved, n_genes, per_gene):
    """The checkpoint of networks that learned decoys too, as of the genes alone."""
    model = {}
    for name, values in saved["model"].items():
        if per_gene:
            values = values[:n_genes]
        elif name.startswith("head.classify."):
            values = values[:, :n_genes]
        model[name] = values.clone()
    if per_gene:
        epochs, losses = saved["epochs"][:n_genes].clone(), saved["losses"][:, :n_genes].clone()
        return saved | {"model": model, "epochs": epochs, "losses": losses}
    return saved | {"model": model, "outputs": n_genes}


def r_of_known(prediction, y):
    """R of each column over the pairs that it is known of -> R (G,), their number (G,)"""
    r = np.full(y.shape[1], np.nan)
    for rows, genes in histcode.known_alike(y):
        if len(rows) >= stats.MIN_R:
            block = np.ix_(rows, genes)
            r[genes] = stats.pearson(prediction[block], y[block])
    return r, (~np.isnan(y)).sum(0)


def decoy_p(r, n, null_r, null_n, bends):
    """One-sided p (G,) of R, known of n pairs, under decoys' R (m,) of null_n: `stats.null_fit`.

    A chance R of n pairs has variance 1 / (n - 1) times what training adds: so decoys of few pairs
    tell of genes of many. bends: the network has few genes, and the bound of `he2rna.evaluate`. The
    null's mean is below 0: pooled over the folds, pairs that their fold's training mean
    underestimates are those of a high fold change. [ours]
    """
    most = n.max()
    known = ~np.isnan(null_r)
    null_r, null_n = null_r[known], null_n[known]
    mean = null_r.mean() if len(null_r) else np.nan
    mean, fitted = stats.null_fit(mean + (null_r - mean) * np.sqrt((null_n - 1) / (most - 1)))
    law = 1 + (fitted - 1) * (n - 1) / (most - 1)
    if bends:
        law = np.minimum(law, 1 + (n - 1) / 2)
    return stats.null_p(r, mean, law)
