"""Intervals over patients, of R (`stats.r_interval`), ROC-AUC (`stats.auc_interval`), accuracy and
PR-AUC (`lab.histcode.figures`): the share of cohorts whose interval holds the true value.
"""

import math

import numpy as np
from scipy import special

import stats
from lab.calibration import nulls, share
from lab.histcode.figures import pr_interval, share_interval
from lab.ridge import ridge

COHORTS = 400  # of a row
GENES = 50  # of a cohort, in a row of R
ALIKE = 0.6  # share of the variance that a patient's slides have in common


def study(runs, rng):
    """The rows of R, learned by nobody and by a linear learner, of AUC, accuracy and PR-AUC."""
    n = max(2, round(COHORTS * runs))
    few = max(2, n // 8)
    for patients, slides, folds in ((10, 1, 1), (20, 1, 1), (200, 1, 1), (10, 4, 1)):
        for r in (0.0, 0.4, 0.8):
            yield given_row(patients, slides, folds, r, few, rng)
    for patients, slides in ((15, 1), (25, 1), (50, 1), (40, 4)):
        for signal in (0.0, 0.2, 1.0):
            yield learned_row(patients, slides, 20, signal, few, rng)
    for patients, signal in ((100, 0.0), (100, 1.0), (200, 0.2)):
        yield learned_row(patients, 1, 200, signal, few, rng)
    for patients, slides in ((60, 1), (40, 4)):
        yield network_row(patients, slides, few, rng)
    for patients, positive in ((20, 2), (30, 5), (30, 15), (60, 6), (100, 50), (200, 20)):
        for auc in (0.5, 0.7, 0.85, 0.95):
            yield auc_row(
                f"{positive} of {patients} patients positive", positive, patients, auc, n, rng
            )
    for auc in (0.7, 0.9):
        name = "17 of 100 patients positive, these scatter twice as much"
        yield auc_row(name, 17, 100, auc, n, rng, spread=2)
        yield auc_row("15 of 50 patients positive, 3 slides each", 15, 50, auc, n, rng, slides=3)
        yield paired_row(30, auc, n, rng)
    for patients, accuracy in ((20, 0.9), (60, 0.7), (60, 0.95)):
        for slides in (1, 3):
            yield accuracy_row(patients, slides, accuracy, n, rng)
    for positive, patients, auc in ((5, 30, 0.9), (15, 30, 0.7), (40, 200, 0.8), (100, 200, 0.95)):
        yield pr_row(positive, patients, auc, few, rng)


def covered(low, high, true):
    """Whether each interval holds the true value; NaN where there is none."""
    held = (low <= true) & (true <= high)
    return np.where(np.isnan(low), np.nan, held)


def values(patients, slides, genes, rng):
    """Normal values (patients * slides, genes), alike within patients; and whose they are."""
    who = np.repeat(np.arange(patients), slides)
    own = rng.normal(size=(len(who), genes))
    if slides == 1:
        return own, who
    common = rng.normal(size=(patients, genes))[who]
    return math.sqrt(ALIKE) * common + math.sqrt(1 - ALIKE) * own, who


def given_row(patients, slides, folds, r, n, rng):
    """R of predictions of a given true R, by models that know none of the patients."""
    hits = []
    for _ in range(n):
        y, who = values(patients, slides, GENES, rng)
        noise, _ = values(patients, slides, GENES, rng)
        prediction = r * y + math.sqrt(1 - r * r) * noise
        hits.append(covered(*stats.r_interval(prediction, y, who, who % folds), r))
    return share(f"R {r:g}, {patients} patients x {slides} slides, {folds} fold", 0.95, hits)


def learned_row(patients, slides, features, signal, n, rng, folds=5):
    """R of ridge regressions of each fold; true is the mean R of these models in all patients."""
    hits, true = [], []
    for _ in range(n):
        x, who = values(patients, slides, features, rng)
        noise, _ = values(patients, slides, GENES, rng)
        slopes = rng.normal(size=(features, GENES)) * math.sqrt(signal / features)
        y = x @ slopes + noise
        fold = who % folds
        prediction, r = np.zeros(y.shape), []
        for f in range(folds):
            train, test = fold != f, fold == f
            learned = ridge(x[train], y[train], [features])[0][0]
            prediction[test] = x[test] @ learned
            length = np.sqrt(np.square(learned).sum(0) * (np.square(slopes).sum(0) + 1))
            r.append((learned * slopes).sum(0) / length)
        true.append(np.mean(r))
        hits.append(covered(*stats.r_interval(prediction, y, who, fold), np.mean(r, 0)))
    name = f"R {np.mean(true):.2f} of ridge on {features} features, {patients} patients x {slides}"
    return share(f"{name}, {folds} folds", 0.95, hits)


def network_row(patients, slides, n, rng):
    """R of the trained network, of genes that follow nothing: true is 0."""
    hits = []
    for _ in range(n):
        cohort = nulls.draw_cohort(rng, patients=patients, slides=slides)
        fold = stats.patient_folds(cohort.patients, cohort.projects, 5, int(rng.integers(2**31)))
        genes = cohort.y.shape[1]
        predicted = nulls.cross_validate(cohort, cohort.y, fold, nulls.network, rng, 0, genes)
        interval = stats.r_interval(predicted, cohort.y, cohort.patients, fold)
        hits.append(covered(*interval, 0)[cohort.nothing])
    return share(f"R 0 of the network, {patients} patients x {slides}, 5 folds", 0.95, hits)


def auc_row(name, positive, patients, auc, n, rng, slides=1, spread=1.0):
    """AUC of normal scores; `spread`: SD of the positives, where that of the negatives is 1."""
    hits = []
    away = special.ndtri(auc) * math.sqrt(1 + spread**2)
    for _ in range(n):
        scores, who = values(patients, slides, 1, rng)
        labels = who < positive
        scores = np.where(labels, spread * scores[:, 0] + away, scores[:, 0])
        hits.append(covered(*stats.auc_interval(labels, scores, who), auc))
    return share(f"AUC {auc:g}, {name}", 0.95, hits)


def paired_row(patients, auc, n, rng):
    """AUC of a tumour and a normal slide of each patient."""
    hits = []
    labels = np.arange(2 * patients) % 2 == 0
    for _ in range(n):
        scores, who = values(patients, 2, 1, rng)
        scores = scores[:, 0] + labels * special.ndtri(auc) * math.sqrt(2)
        hits.append(covered(*stats.auc_interval(labels, scores, who), auc))
    return share(f"AUC {auc:g}, a slide of each class of {patients} patients", 0.95, hits)


def accuracy_row(patients, slides, accuracy, n, rng):
    """Accuracy of slides, alike within patients."""
    hits = []
    for _ in range(n):
        scores, who = values(patients, slides, 1, rng)
        right = scores[:, 0] < special.ndtri(accuracy)
        hits.append(covered(*share_interval(right, who), accuracy))
    return share(f"accuracy {accuracy:g}, {patients} patients x {slides} slides", 0.95, hits)


def pr_row(positive, patients, auc, n, rng):
    """PR-AUC of normal scores; true is that of very many patients."""
    away = special.ndtri(auc) * math.sqrt(2)
    many = rng.random(200_000) < positive / patients
    true = stats.pr_auc(many, rng.normal(size=len(many)) + away * many)
    hits = []
    for _ in range(n):
        who = np.arange(patients)
        labels = who < positive
        scores = rng.normal(size=patients) + away * labels
        hits.append(covered(*pr_interval(labels, scores, who), true))
    return share(f"PR-AUC {true:.2f}, {positive} of {patients} patients positive", 0.95, hits)
