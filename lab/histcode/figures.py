"""Figures of a diagnosis: of each test fold, of all folds pooled, and the optimistic ones."""

import numpy as np

import stats


def probabilities(saved):
    """(epochs, n) of the positive class, of a fold's test samples after every epoch."""
    return saved["tests"].double().softmax(2)[:, :, 1].numpy()


def best_cut(y, p):
    """The highest accuracy that any threshold on p gives: choosing it on test samples claims it."""
    if y.min() == y.max():
        return 1.0
    fpr, tpr = stats.roc_curve(y, p)
    return float((tpr * y.mean() + (1 - fpr) * (1 - y.mean())).max())


def figures_of(y, saved):
    """Figures of one test fold, y (n,): those of the epoch kept, and the optimistic ones."""
    every = probabilities(saved)
    p = every[saved["epoch"] - 1]
    return {
        "accuracy": ((p > 0.5) == y).mean(),
        "auc": stats.roc_auc(y, p),
        "pr_auc": stats.pr_auc(y, p),
        "best_epoch": ((every > 0.5) == y).mean(1).max(),
        "best_threshold": best_cut(y, p),
        "best_epoch_auc": max(stats.roc_auc(y, epoch) for epoch in every),
    }


def with_interval(y, p, patients, seed):
    """(value, low, high) of accuracy, ROC-AUC and PR-AUC: 95 % bootstrap intervals by patient."""
    rng = np.random.default_rng(seed)
    hits = (p > 0.5) == y
    return [
        (hits.mean(), *stats.bootstrap(np.mean, [hits], patients, stats.N_DRAWS, rng)),
        (
            stats.roc_auc(y, p),
            *stats.bootstrap(stats.roc_auc, [y, p], patients, stats.N_DRAWS, rng),
        ),
        (stats.pr_auc(y, p), *stats.bootstrap(stats.pr_auc, [y, p], patients, stats.N_DRAWS, rng)),
    ]


def mean_sd(values):
    """Mean and SD of the figures that there are: a test fold of one class has no AUC."""
    values = np.array(values)
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan
    return values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan
