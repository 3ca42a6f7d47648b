"""Figures of pooled predictions."""

import numpy as np

import stats


def with_interval(y, p, patients, seed):
    """[(name, value, low, high)] of pooled predictions: accuracy, ROC-AUC, PR-AUC with 95 % patient-bootstrap intervals."""
    rng, hits = np.random.default_rng(seed), (p > 0.5) == y
    return [
        ("accuracy", hits.mean(), *stats.bootstrap_mean(hits, patients, stats.N_DRAWS, rng)),
        ("ROC-AUC", stats.roc_auc(y, p), *stats.bootstrap_auc(y, p, patients, stats.N_DRAWS, rng)),
        ("PR-AUC", stats.pr_auc(y, p), *stats.bootstrap_pr_auc(y, p, patients, stats.N_DRAWS, rng)),
    ]
