"""Figures of a diagnosis: of each test fold, of all folds pooled, and the optimistic ones."""

import math

import numpy as np
from scipy import special

import stats


def probabilities(saved):
    """(epochs, n) of the positive class, of a fold's test samples after every epoch."""
    return saved["tests"].double().softmax(2)[:, :, 1].numpy()


def kept(saved):
    """(n,) probabilities of the positive class of a fold's test bags, by the epoch kept."""
    return probabilities(saved)[saved["epoch"] - 1]


def best_cut(y, p):
    """The highest accuracy that any threshold on p gives: choosing it on test samples claims it."""
    if y.min() == y.max():
        return 1.0
    fpr, tpr = stats.roc_curve(y, p)
    return float((tpr * y.mean() + (1 - fpr) * (1 - y.mean())).max())


def figures_of(y, saved):
    """Figures of one test fold, y (n,): those of the epoch kept, and the optimistic ones."""
    every, p = probabilities(saved), kept(saved)
    return {
        "accuracy": ((p > 0.5) == y).mean(),
        "auc": stats.roc_auc(y, p),
        "pr_auc": stats.pr_auc(y, p),
        "best_epoch": ((every > 0.5) == y).mean(1).max(),
        "best_threshold": best_cut(y, p),
        "best_epoch_auc": max(stats.roc_auc(y, epoch) for epoch in every),
    }


def with_interval(y, p, patients):
    """(value, low, high) of accuracy, ROC-AUC and PR-AUC: 95 % intervals over patients."""
    hits = (p > 0.5) == y
    return [
        (hits.mean(), *share_interval(hits, patients)),
        (stats.roc_auc(y, p), *stats.auc_interval(y, p, patients)),
        (stats.pr_auc(y, p), *pr_interval(y, p, patients)),
    ]


def share_interval(hits, patients):
    """95 % interval of a share of hits (n,): Wilson's, of as many slides as count. [ours]

    So many would scatter as the patients' do; where all slides are alike, one a patient.
    """
    _, which = np.unique(patients, return_inverse=True)
    count = which.max() + 1
    if count < 2:
        return math.nan, math.nan
    share = hits.mean()
    scatter = np.square(np.bincount(which, hits - share) / len(hits)).sum() * count / (count - 1)
    n = share * (1 - share) / scatter if scatter > 0 else count
    z = special.ndtri(stats.INTERVAL[1])
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(center - half, 0.0), min(center + half, 1.0)


def pr_interval(y, p, patients):
    """95 % interval of the PR-AUC: its logit and the jackknife SD of patients, by a t. [ours]

    The t is that of the positive patients. The SD is that of the area, brought to the logit's scale
    by its slope: the logits themselves fly apart where a patient left out makes an area of 1. No
    lower end is above that of so many hits without a miss, which an area of 1 has. With few
    positives PR-AUC is too high itself: the interval is wide, and holds .95 to 1.
    """
    value, positives = stats.pr_auc(y, p), len(set(patients[y > 0]))
    if np.isnan(value) or positives < 2:
        return math.nan, math.nan
    left_out = [stats.pr_auc(y[patients != who], p[patients != who]) for who in set(patients)]
    left_out = np.array(left_out)[~np.isnan(left_out)]
    highest = stats.INTERVAL[0] ** (1 / positives)
    if value == 1:
        return highest, 1.0
    error = math.sqrt((len(left_out) - 1) * left_out.var()) / (value * (1 - value))
    half = special.stdtrit(positives - 1, stats.INTERVAL[1]) * error
    low, high = special.expit(special.logit(value) + np.array([-half, half]))
    return min(low, highest), high


def mean_sd(values):
    """Mean and SD of the figures that there are: a test fold of one class has no AUC."""
    values = np.array(values)
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan
    return values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan
