"""p of R of HistCode's networks on fold changes, of genes that follow nothing on the slides.

Through lab.histcode.expression: folds, attention, the epoch chosen, decoys; no files of a cohort.
"""

import contextlib
import io
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import histcode
import stats
from lab.calibration import share
from lab.calibration.nulls import draw_cohort
from lab.histcode.decoys import targets_beside
from lab.histcode.expression import Study, judge, train_attention
from lab.histcode.heads import sums_of
from lab.histcode.pairs import Pairs

ALPHA = 0.05
RUNS = 20  # simulated cohorts of a row
TRAINING = {"epochs": 15, "lr": 1e-2, "weight_decay": 1e-5, "batch": 8, "hidden": 8, "embed": ()}
FOLDS = 5


def study_of(rng, decoys, unknown=0.0, **design):
    """A Study in memory, and which of its genes follow nothing (G,).

    unknown: the largest share of pairs that a gene has no fold change of.
    """
    cohort = draw_cohort(rng, **design)
    y = np.float64(cohort.y)
    y[rng.random(y.shape) < rng.uniform(0, unknown, y.shape[1])] = np.nan
    patients = np.array([f"P{who}" for who in cohort.patients])
    genes = [f"G{j}" for j in range(y.shape[1])]
    pairs = Pairs(patients, [], genes, y, np.where(np.isnan(y), np.nan, y > 0), {}, {})
    bags = {
        "names": patients,
        "patients": patients,
        "bag": cohort.x.__getitem__,
        "sums": [sums_of(x) for x in cohort.x],
        "n_features": cohort.x.shape[2],
        "part": rng.permutation(np.arange(len(patients)) % FOLDS),
    }
    seed = int(rng.integers(2**31))
    return Study(pairs, {}, bags, targets_beside(y, decoys, seed)), cohort.nothing


def judged(study, rng, per_gene=False, pooling="attention"):
    """What `judge` finds of a Study whose folds are trained here."""
    o = SimpleNamespace(**TRAINING, folds=FOLDS, code=[], per_gene=per_gene, pooling=pooling)
    o.seed = int(rng.integers(2**31))
    prediction, folds = np.empty(study.pairs.y.shape), []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        for f in range(FOLDS):
            path = Path(folder) / f"fold{f}.pt"
            folds.append(train_attention(study, f, path, o, torch.device("cpu")))
            prediction[study.bags["part"] == f] = folds[f]["prediction"]
    return judge(study, folds, prediction, histcode.label_of(prediction), o)


def rows_of_design(name, runs, rng, decoys=200, unknown=0.0, network=None, **design):
    """Shares of p < .05 among genes that follow nothing, and of cohorts with any such gene by HS.

    p_t is one-sided; twice it is what decided before there were decoys.
    """
    found = []
    for _ in range(runs):
        study, nothing = study_of(rng, decoys, unknown, **design)
        e = judged(study, rng, **(network or {}))
        found.append((e["p"][nothing], e["p_t"][nothing], np.minimum(1, 2 * e["p_t"][nothing])))
    for what, p in zip(("decoys", "t", "twice the t's"), zip(*found, strict=True), strict=True):
        yield share(f"{name}: p, {what}", ALPHA, [below(one) for one in p])
        any_of = [(stats.holm_sidak(one) < ALPHA).any() for one in p]
        yield share(f"{name}: any by HS, {what}", ALPHA, any_of, "upper bound")


def below(p):
    return np.where(np.isnan(p), np.nan, p < ALPHA)


DESIGNS = {
    "attention, 60 pairs, half of the genes real": {},
    "attention, 60 pairs, nothing real, 200 genes": {"real": 0, "nothing": 200},
    "attention, 160 pairs": {"patients": 160},
    "attention, fold changes unknown": {"unknown": 0.5, "patients": 80},
    "attention, genes with outliers and zeros": {"kind": "mixed"},
    "attention, genes that vary together": {"together": 0.5},
    "mean pooling": {"network": {"pooling": "mean"}},
    "attention, 4 genes": {"real": 2, "nothing": 2},
    "a network a gene": {"real": 4, "nothing": 12, "decoys": 50, "network": {"per_gene": True}},
}


def study(runs, rng):
    """Yield the rows of DESIGNS."""
    for name, design in DESIGNS.items():
        yield from rows_of_design(name, max(2, round(runs * RUNS)), rng, **design)
