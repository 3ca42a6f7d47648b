"""Does an encoder learn? Cells in a tile from its frozen features, by ridge regression. [ours]"""

import math

import numpy as np
import torch
from torch import nn

import stats
import tiling
from lab import space
from lab.histcode.epochs import choose_tiles, read_batches
from lab.ridge import PENALTIES, r_squared, ridge
from lab.weights import load_weights

PROBE_FOLDS = 5  # at most, of the groups [ours]
INNER = 0.2  # of a training part's groups choose the penalty [ours]


def linear_probe(x, y, groups, seed=0):
    """R2 (C,) of y (n, C) from features x (n, D), every row predicted by a fit to other groups.

    The penalty of each column is the best on a fifth of the groups of each training part, fitted
    to the others. The predictions of all folds are pooled before R2. It takes 3 groups (patients).
    """
    x = np.asarray(x, np.float64)
    groups = np.asarray(groups)
    alike = np.zeros(len(groups))  # no strata
    folds = min(PROBE_FOLDS, len(np.unique(groups)))
    fold = stats.patient_folds(groups, alike, folds, seed)
    prediction = np.empty_like(y)
    columns = np.arange(y.shape[1])
    for f in range(folds):
        train = np.flatnonzero(fold != f)
        chooses = stats.inner_split(groups[train], alike[train], INNER, [seed, f])
        fit, valid = train[~chooses], train[chooses]
        weights, bias = ridge(x[fit], y[fit], PENALTIES)
        r2 = r_squared(y[valid], x[valid] @ weights + bias[:, None])  # (penalties, C)
        best = np.nan_to_num(r2).argmax(0)  # (C,)
        weights, bias = ridge(x[train], y[train], PENALTIES)
        predicted = x[fold == f] @ weights + bias[:, None]  # (penalties, m, C)
        prediction[fold == f] = predicted[best, :, columns].T
    return r_squared(y, prediction)


def cell_content(cells, spots, coords, tile):
    """{class: (n,)}, what is known of each tile of a slide, nan where nothing is; or None.

    Of cells the number of each class in the tile; else of spots the mean of their columns
    fraction:... over those whose centre is in the tile.
    """
    if cells is not None:
        return points_in_tiles(cells, coords, tile)
    if spots is not None:
        return spots_in_tiles(*spots, coords, tile)
    return None


def points_in_tiles(cells, coords, tile):
    """Numbers of cells; of unnamed ones where no class has a name, {} where there are none."""
    named = [kind for kind in cells if kind != "all cells"]
    if not named and len(cells["all cells"]):
        named = ["all cells"]
    content = {}
    for kind in named:
        content[kind] = space.count_points(cells[kind], coords, tile).astype(float)
    return content


def spots_in_tiles(xy, columns, coords, tile):
    """Mean fractions of the spots in each tile."""
    which = space.holder(xy, coords, tile)  # tile of each spot, -1 for none
    held = which >= 0
    n = np.bincount(which[held], minlength=len(coords))
    content = {}
    for name, values in columns.items():
        if name.startswith("fraction:"):
            total = np.bincount(which[held], values[held], len(coords))
            with np.errstate(invalid="ignore"):
                content[name.removeprefix("fraction:")] = total / n
    return content


@torch.no_grad()
def untrained(data, stages, seed, device, workers, n=64):
    """Random weights whose BatchNorm has seen about n tiles of these slides, in one batch.

    That is what a run has before it has learned: the statistics alone are worth something, which
    must not be counted as learning.
    """
    net = load_weights(stages, "random", seed).to(device)
    counts = np.array([len(coords) for coords in data["coords"]])
    per_slide = np.full(len(counts), math.ceil(n / len(counts)))
    chosen = choose_tiles(counts, per_slide, seed, 0)[:n]
    (tiles,) = read_batches(data, chosen, [np.arange(len(chosen))], workers=workers)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()  # load_weights left momentum None: one batch
    pixels = torch.from_numpy(tiles).to(device)
    net.train()(tiling.normalise(pixels))
    return net.eval()
