"""lab/ridge.py against the normal equations, scikit-learn and refits that leave one row out."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lab.ridge import PENALTIES, best_penalty, r_squared, ridge, smoother


def predictions(x, y, penalties, new):
    weights, bias = ridge(x, y, penalties)
    return new @ weights + bias[:, None]


@pytest.mark.parametrize("n", [50, 6])  # more rows than features, and fewer
def test_ridge_equals_the_normal_equations(n):
    rng = np.random.default_rng(0)
    x, new = rng.normal(2, 3, (n, 8)), rng.normal(2, 3, (5, 8))
    y = rng.normal(size=(n, 2))
    x[:, 3] = new[:, 3] = 7  # a constant feature gets no weight
    varies = np.arange(8) != 3
    center, sd = x[:, varies].mean(0), x[:, varies].std(0)
    z, z_new = (x[:, varies] - center) / sd, (new[:, varies] - center) / sd
    penalties = (0, 0.5, 40.0)
    for got, penalty in zip(predictions(x, y, penalties, new), penalties, strict=True):
        inverse = np.linalg.pinv(z.T @ z + penalty * np.eye(7))  # 0: the smallest solution
        weights = inverse @ z.T @ (y - y.mean(0))
        assert np.allclose(got, z_new @ weights + y.mean(0))


def test_ridge_equals_scikit_learn():
    rng = np.random.default_rng(0)
    for shape in ((50, 8), (6, 8)):
        x, y = rng.normal(2, 3, shape), rng.normal(size=(shape[0], 2))
        for got, penalty in zip(predictions(x, y, (0.5, 40.0), x), (0.5, 40.0), strict=True):
            theirs = make_pipeline(StandardScaler(), Ridge(penalty)).fit(x, y)
            assert np.allclose(got, theirs.predict(x))


@pytest.mark.parametrize("shape", [(30, 80), (30, 12), (9, 9), (1, 4), (4, 1)])
def test_penalty_0_is_the_pseudo_inverse_also_of_equal_rows(shape):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=shape), rng.normal(size=(shape[0], 3))
    x[:3] = x[-3:]  # the same features, other values
    sd = x.std(0)
    z = (x - x.mean(0)) / np.where(sd > 1e-9, sd, np.inf)
    weights = np.linalg.pinv(z, rcond=1e-5) @ (y - y.mean(0))
    assert np.allclose(predictions(x, y, (0,), x)[0], z @ weights + y.mean(0), atol=1e-7)


@pytest.mark.parametrize("n", [12, 60])
def test_smoother_is_ridge_whatever_y_is(n):
    rng = np.random.default_rng(0)
    x, new = rng.normal(2, 3, (n, 30)), rng.normal(2, 3, (5, 30))
    y = rng.normal(size=(n, 4))
    x[:, 3] = new[:, 3] = 7
    for penalty in (0, 25.0):
        wanted = predictions(x, y, (penalty,), new)[0]
        assert np.allclose(smoother(x, new, penalty) @ y, wanted)


def refitted_r2(x, y, penalty):
    """Mean over columns of the R2, at least 0, of predicting each row from a fit to all others."""
    left_out = np.empty_like(y)
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        center = x[rest].mean(0)
        z, target = x[rest] - center, y[rest] - y[rest].mean(0)
        weights = np.linalg.solve(z.T @ z + penalty * np.eye(x.shape[1]), z.T @ target)
        left_out[i] = y[rest].mean(0) + (x[i] - center) @ weights
    return r_squared(y, left_out).clip(0).mean()


def test_best_penalty_is_that_of_leaving_each_patient_out_in_turn():
    chosen = []
    n = 24
    for seed in range(12):
        rng = np.random.default_rng(seed)
        d = (4, 40)[seed % 2]
        x = rng.normal(size=(n, d))
        y = x[:, :3] * (seed // 2) + rng.normal(0, 2, (n, 3)) * [1, 5, 2]
        z = (x - x.mean(0)) / x.std(0)  # the scale is that of all rows
        wanted = max((refitted_r2(z, y, p), p) for p in PENALTIES)[1]
        chosen.append(wanted)
        x = np.c_[x * 3 + 1, np.full(n, 5.0)]  # scale, offset and a constant change nothing
        unknown = np.where(np.arange(n) == 3, np.nan, rng.normal(size=n) * 1e3)
        assert best_penalty(x, y) == wanted
        assert best_penalty(x, np.c_[y, unknown, np.ones(n)]) == wanted
    assert len(set(chosen)) > 2
    assert best_penalty(x, np.ones((n, 1))) == PENALTIES[3]  # nobody votes


def test_r_squared_worked_by_hand():
    y = np.array([[0.0, 1], [2, 1], [4, 1]])
    prediction = np.array([y, np.zeros((3, 2)), y + np.array([1, 0])])
    got = r_squared(y, prediction)
    assert got[:, 0].tolist() == [1, 1 - 20 / 8, 1 - 3 / 8] and np.isnan(got[:, 1]).all()
