"""lab.histcode.probe"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import histcode
import stats
import tiling
from lab import space
from lab.cohort.places import read_places
from lab.histcode.epochs import read_batches
from lab.ridge import PENALTIES, r_squared, ridge
from lab.weights import load_weights

STAGES = 3  # "the first four main layers (the output ... is 1024)"  [HistCode Methods]


PROBE_FOLDS = 5  #                                          [ours]


def linear_probe(x, y, groups, folds=PROBE_FOLDS, seed=0, penalties=PENALTIES):
    """R2 (C,) of y (n, C) from features x (n, D) by ridge, every row predicted by a fit to other groups (patients).

    The penalty of each column is the best on a fifth of the groups of each training part, fitted to the others. The held-out
    predictions of all folds are pooled before R2. Needs at least 3 groups; folds are at most their number.
    """
    x, y, groups = np.asarray(x, np.float64), np.asarray(y, np.float64), np.asarray(groups)
    alike, prediction = np.zeros(len(groups)), np.empty_like(y)
    fold = stats.patient_folds(groups, alike, min(folds, len(np.unique(groups))), seed)
    for f in np.unique(fold):
        rest = np.flatnonzero(fold != f)
        inner = stats.inner_split(groups[rest], alike[rest], 0.2, [seed, f])
        weights, bias = ridge(x[rest[~inner]], y[rest[~inner]], penalties)
        tried = x[rest[inner]] @ weights + bias[:, None]  # (penalties, m, C)
        best = np.nan_to_num(r_squared(y[rest[inner]], tried), nan=0).argmax(0)  # (C,)
        weights, bias = ridge(x[rest], y[rest], penalties)
        each = np.arange(y.shape[1])
        prediction[fold == f] = x[fold == f] @ weights[best, :, each].T + bias[best, each]
    return r_squared(y, prediction)


def cell_content(cohort, name, coords, tile, mpp, origin=(0, 0)):
    """What is known of each tile: {class: (n,)} of one slide, nan where nothing is known of the tile; or None.

    points/<slide>.csv: points of each class in the tile; else spots/<slide>.csv: columns fraction:..., the mean of the
    spots whose centre lies in the tile.
    """
    cells, spots = read_places(Path(cohort), name, mpp, origin)
    if cells is not None:
        kinds = {c: xy for c, xy in cells.items() if c != "all cells"} or (
            cells if len(cells["all cells"]) else {}
        )
        return {c: space.count_points(xy, coords, tile).astype(float) for c, xy in kinds.items()}
    if spots is None:
        return None
    which = space.holder(spots[0], coords, tile)  # (m,) tile of each spot, -1 for none
    held = which >= 0
    n = np.bincount(which[held], minlength=len(coords))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            c.removeprefix("fraction:"): np.bincount(which[held], v[held], len(coords)) / n
            for c, v in spots[1].items()
            if c.startswith("fraction:")
        }


@torch.no_grad()
def untrained(data, o, device, n=64):
    """Random weights with BatchNorm statistics from about n tiles of these slides, one batch: what a run has before it has
    learned. The statistics alone are worth something, which must not be counted as learning."""
    net, counts = (
        load_weights(STAGES, "random", o.seed).to(device),
        np.array([len(c) for c in data["coords"]]),
    )
    chosen = histcode.choose_tiles(counts, np.full(len(counts), -(-n // len(counts))), o.seed, 0)[
        :n
    ]
    tiles = next(read_batches(data, chosen, np.arange(len(chosen)), len(chosen), workers=o.workers))
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()  # load_weights left momentum None: one batch
    net.train()(tiling.normalise(torch.from_numpy(tiles).to(device)))
    return net.eval()
