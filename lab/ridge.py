"""Ridge regression in closed form: the probe's fit to frozen features, and eq. 8 without steps.

n rows, D features, C columns to predict. Features are standardised inside, so a penalty weighs the
squared weights of features of unit variance against the sum of squared errors. Penalty 0 gives, of
all least squares solutions, the smallest. Everything is float64.
"""

import numpy as np

from histcode import divisor

PENALTIES = tuple(10.0 ** np.arange(7))  # to choose from [ours]
RANK = 1e-10  # eigenvalues up to this share of the largest count as 0 [ours]


def scaling(x):
    """Mean and scale (D,) that standardise features x (n, D); constant ones become 0."""
    mean = x.mean(0)
    return mean, divisor(mean, x.std(0))


def solve(values, vectors, penalty, y):
    """(A + penalty I)^-1 y, y (n, C), by the eigenvectors of A; its pseudo-inverse if singular."""
    real = values > RANK * values[-1]
    basis = vectors[:, real]
    damped = values[real] + penalty
    return basis @ (basis.T @ y / damped[:, None])


def ridge(x, y, penalties):
    """Weights (P, D, C) and bias (P, C) for each of P penalties: x @ weights + bias predicts y.

    x (n, D), y (n, C). One eigendecomposition, of the smaller of z z' and z' z, serves them all.
    """
    mean, scale = scaling(x)
    z = (x - mean) / scale
    centred = y - y.mean(0)
    few_rows = len(z) < z.shape[1]
    if few_rows:
        values, vectors = np.linalg.eigh(z @ z.T)
    else:
        values, vectors = np.linalg.eigh(z.T @ z)
    weights = []
    for penalty in penalties:
        if few_rows:
            w = z.T @ solve(values, vectors, penalty, centred)
        else:
            w = solve(values, vectors, penalty, z.T @ centred)
        weights.append(w / scale[:, None])
    weights = np.stack(weights)
    return weights, y.mean(0) - mean @ weights


def smoother(x, new, penalty):
    """S (m, n): S @ y is the prediction of `ridge` for new (m, D) from x (n, D), for any y."""
    mean, scale = scaling(x)
    z = (x - mean) / scale
    z_new = (new - mean) / scale
    near = z @ z_new.T  # (n, m)
    values, vectors = np.linalg.eigh(z @ z.T)
    solution = solve(values, vectors, penalty, near - near.mean(0))
    return solution.T + 1 / len(x)


def best_penalty(x, y, penalties=PENALTIES):
    """The penalty whose leave-one-out predictions have the highest R2, mean over genes. [ours]

    x (n, D), y (n, G). With row i left out its error is error_i / (1 - H_ii), H the hat matrix. An
    R2 below 0 counts as 0: genes that nothing predicts, often most, would vote for predicting
    nothing. Genes with unknown values, and constant ones, have no vote. Of equals the largest wins.
    """
    y = y[:, ~np.isnan(y).any(0)]
    y = y[:, np.ptp(y, axis=0) > 0]
    if not y.shape[1]:
        return penalties[len(penalties) // 2]
    mean, scale = scaling(x)
    z = (x - mean) / scale
    values, vectors = np.linalg.eigh(z @ z.T)  # (n,), (n, n)
    values = values.clip(0)
    centred = y - y.mean(0)
    along = vectors.T @ centred
    quality = []
    for penalty in penalties:
        kept = values / (values + penalty)
        errors = centred - vectors @ (kept[:, None] * along)
        hat = 1 / len(y) + vectors**2 @ kept
        r2 = r_squared(y, y - errors / (1 - hat)[:, None])
        quality.append(r2.clip(0).mean())
    return max(zip(quality, penalties, strict=True))[1]


def r_squared(y, prediction):
    """1 - squared errors / squared deviations of each column; nan where y does not vary.

    y (n, C), prediction (..., n, C) -> (..., C)
    """
    errors = (y - prediction) ** 2
    deviations = (y - y.mean(0)) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = 1 - errors.sum(-2) / deviations.sum(0)
    return np.where(np.ptp(y, axis=0) > 0, r2, np.nan)
