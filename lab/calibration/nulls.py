"""p of R under the nulls of `he2rna.evaluate`, of genes that follow nothing on the slides: a linear
learner, and the trained network itself; several slides a patient, genes that vary together, genes
with outliers or mostly zero, two cancers, few genes.
"""

from typing import NamedTuple

import numpy as np
import torch

import he2rna
import stats
from lab.calibration import share

FEATURES, TILES, LATENT = 12, 4, 6  # of a simulated slide; directions in which slides differ
KS = (1, 2, 4)
TRAINING = {"epochs": 20, "lr": 1e-2, "batch": 16}  # enough for the network to learn by heart
RUNS = 40  # simulated cohorts of a row
NULLS = ("decoys", "t", "permutation")


class Cohort(NamedTuple):
    """Slides, and genes of which some follow nothing."""

    x: np.ndarray  # (S, T, D)
    y: np.ndarray  # (S, G)
    patients: np.ndarray
    projects: np.ndarray
    nothing: np.ndarray  # (G,) bool


def draw_cohort(
    rng,
    patients=60,
    slides=1,
    real=40,
    nothing=40,
    together=0.0,
    kind="normal",
    projects=("X",),
):
    """A cohort whose slides differ in LATENT directions, which real genes follow.

    slides: of a patient, half as alike as they are to themselves; together: share of variance that
    the genes which follow nothing have in common; kind: their law, normal, outliers, zeros or
    mixed. Genes differ in variance by up to a hundred.
    """
    number = np.arange(patients)
    scale = 0.8 ** np.arange(LATENT)
    own = rng.normal(size=(patients, LATENT)) * scale
    who = number.repeat(slides)
    z = own[who]
    if slides > 1:
        z = np.sqrt(0.5) * (z + rng.normal(size=z.shape) * scale)
    project = np.where(number % 3 < 2, 0, len(projects) - 1)  # the first is twice as large
    mean = z @ rng.normal(size=(LATENT, FEATURES))
    mean += rng.normal(size=(len(projects), FEATURES))[project[who]]
    x = mean[:, None] + 0.5 * rng.normal(size=(len(who), TILES, FEATURES))

    signal = own @ rng.normal(size=(LATENT, real))
    signal /= signal.std(0) + 1e-9
    close = rng.uniform(0.2, 0.9, real)
    follows = close * signal + np.sqrt(1 - close**2) * rng.normal(size=signal.shape)
    chance = np.sqrt(1 - together) * rng.normal(size=(patients, nothing))
    chance += np.sqrt(together) * rng.normal(size=(patients, 1))
    laws = {"outliers": np.sinh(1.5 * chance) / 3, "zeros": np.maximum(chance - 0.7, 0)}
    chance = laws.get(kind, chance)
    if kind == "mixed":
        chance[:, ::3], chance[:, 1::3] = laws["outliers"][:, ::3], laws["zeros"][:, 1::3]
    y = np.hstack([follows, chance]) * 0.3 * np.exp(0.6 * rng.normal(size=real + nothing))
    y += rng.normal(size=(len(projects), y.shape[1]))[project]
    return Cohort(
        x.astype(np.float32),
        y[who].astype(np.float32),
        who,
        np.array(projects)[project[who]],
        np.arange(y.shape[1]) >= real,
    )


def network(cohort, both, rows, f, n_genes, rng):
    """Predictions of the test slides by a trained network."""
    train, valid, test = rows
    bags = he2rna.bags_of(list(cohort.x))
    torch.manual_seed(int(rng.integers(2**62)))
    model = he2rna.HE2RNA(FEATURES, both.shape[1], (24,), KS).start_at(both[train].mean(0))
    seed = int(rng.integers(2**62))
    for state in he2rna.train_epochs(
        model,
        bags,
        both,
        cohort.projects,
        train,
        valid,
        seed=(seed, f),
        n_genes=n_genes,
        **TRAINING,
    ):
        last = state
    model.load_state_dict(last["best"])
    return he2rna.predict(model, bags, test)


def linear(cohort, both, rows, f, n_genes, rng):
    """Predictions of the test slides by ridge regression on the mean tile."""
    train, valid, test = rows
    train = np.r_[train, valid]
    mean = cohort.x.mean(1)
    x = mean - mean[train].mean(0)
    normal = x[train].T @ x[train] + 0.01 * len(train) * np.eye(x.shape[1])
    return x[test] @ np.linalg.solve(normal, x[train].T @ (both[train] - both[train].mean(0)))


def cross_validate(cohort, both, fold, learner, rng, fold_seed, n_genes, valid=0.0):
    """Predictions of each slide by the learner that saw the patients of the other folds."""
    who = cohort.patients, cohort.projects
    prediction = np.zeros_like(both)
    for f in range(fold.max() + 1):
        train, choose, test = he2rna.split(fold, f, *who, share=valid or 0.1, seed=fold_seed)
        if not valid:
            train, choose = np.r_[train, choose], choose[:0]
        prediction[test] = learner(cohort, both, (train, choose, test), f, n_genes, rng)
    return prediction


def judge_cohort(cohort, learner, rng, n_decoys=60, valid=0.0, n_folds=5):
    """Cross-validate a learner on genes and decoys -> `he2rna.evaluate`'s results."""
    y, fold_seed, G = cohort.y, int(rng.integers(2**31)), cohort.y.shape[1]
    who = cohort.patients, cohort.projects
    fold = stats.patient_folds(*who, n_folds, fold_seed)
    both = np.hstack([y, he2rna.draw_decoys(y, *who, n_decoys, fold_seed)])
    prediction = cross_validate(cohort, both, fold, learner, rng, fold_seed, G, valid)
    null = he2rna.r_of_cancers(prediction[:, G:], both[:, G:], fold, cohort.projects, n_folds)
    more = {"patients": cohort.patients, "decoys": null}
    return he2rna.evaluate(prediction[:, :G], y, fold, cohort.projects, n_folds, **more)


def rows_of_design(name, learner, runs, rng, design, nulls=NULLS, **judging):
    """Of each cancer and null: the share of p < .05 among genes that follow nothing, and of cohorts
    in which any of them is significant by Holm–Šidák.
    """
    below, found = {}, {}
    for _ in range(runs):
        cohort = draw_cohort(rng, **design)
        for cancer, e in judge_cohort(cohort, learner, rng, **judging).items():
            where = "" if len(design.get("projects", "X")) == 1 else f", {cancer}"
            for null in nulls:
                p = e["all_p"][null][cohort.nothing]
                below.setdefault((where, null), []).append(p < he2rna.ALPHA)
                any_of = (stats.holm_sidak(p) < he2rna.ALPHA).any()
                found.setdefault((where, null), []).append(any_of)
    for (where, null), hits in below.items():
        yield share(f"{name}{where}: p, {null}", he2rna.ALPHA, hits)
        note = "upper bound"
        yield share(f"{name}{where}: any by HS, {null}", he2rna.ALPHA, found[where, null], note)


DESIGNS = {  # name: (learner, cohort, judging)
    "linear learner, 200 slides": (linear, {"patients": 200, "real": 0, "nothing": 300}, {}),
    "network, 60 slides, half of the genes real": (network, {}, {}),
    "the same, an epoch chosen": (network, {}, {"valid": 0.2}),
    "network, 200 slides": (network, {"patients": 200}, {}),
    "network, 40 patients with 4 slides each": (network, {"patients": 40, "slides": 4}, {}),
    "network, genes that vary together": (network, {"together": 0.5}, {}),
    "network, genes with outliers": (network, {"kind": "outliers"}, {}),
    "network, genes that are mostly zero": (network, {"kind": "zeros"}, {}),
    "network, two cancers": (network, {"patients": 90, "projects": ("X", "Y")}, {}),
    "network, 4 genes": (network, {"real": 2, "nothing": 2}, {}),
}


def study(runs, rng):
    """Yield the rows of DESIGNS."""
    for name, (learner, design, judging) in DESIGNS.items():
        n = max(2, round(runs * RUNS))
        yield from rows_of_design(name, learner, n, rng, design, **judging)
