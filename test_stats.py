"""stats.py, function by function in its order.

Authorities: SciPy, scikit-learn where it is installed, counting everything, what the papers print.
"""

import gzip
import itertools
import math
import os
import warnings
from fractions import Fraction

import numpy as np
import pytest
import scipy.signal
import scipy.stats

import stats
from lab.gene_sets import read_sets
from lab.tests.helpers import REAL_DATA, same

FIRST_STEP = -math.expm1(math.log1p(-0.05) / 30839)  # Šidák's first p over the paper's genes


@pytest.fixture
def strict():
    """Every warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def nanmean(values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.nanmean(values, 0)


# ----- Correlation and its p ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64])
@pytest.mark.parametrize("n", [2, 3, 10, 301])
def test_pearson_and_spearman_equal_scipy(dtype, n):
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n, 600)) * 50  # more genes than one block
    b = a * rng.normal(size=600) + 80 * rng.normal(size=(n, 600))
    a, b = a.astype(dtype), b.astype(dtype)
    genes = [g for g in range(0, 600, 7) if np.ptp(a[:, g]) and np.ptp(b[:, g])]
    x, y = a.astype(np.float64), b.astype(np.float64)
    same(stats.pearson(a, b)[genes], [scipy.stats.pearsonr(x[:, g], y[:, g])[0] for g in genes])
    same(stats.spearman(a, b)[genes], [scipy.stats.spearmanr(x[:, g], y[:, g])[0] for g in genes])
    r = stats.pearson(a[:, genes[0]], b[:, genes[0]])
    assert isinstance(r, float) and r == pytest.approx(stats.pearson(a, b)[genes[0]], abs=1e-14)


def test_spearman_shares_ranks_on_ties():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 4, (30, 50)), rng.integers(0, 3, (30, 50)).astype(np.float32)
    same(stats.spearman(a, b), [scipy.stats.spearmanr(a[:, g], b[:, g])[0] for g in range(50)])


def test_pearson_keeps_its_digits_under_large_offsets():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 500, 20))
    truth = stats.pearson(a, b)
    same(stats.pearson(a + 2.0**20, b - 2.0**20), truth, 1e-8)  # what is lost is lost in the input
    exact, other = np.round(rng.normal(size=(2, 20000, 3)) * 64) / 64  # survives without rounding
    same(stats.pearson(exact + 2.0**46, other), stats.pearson(exact, other), 1e-14)
    same(stats.pearson(a * 1e200, b * 1e-200), truth, 1e-12)  # squares of these leave float64
    single = (a + 1e6).astype(np.float32)  # float32, summed in float64
    own = [scipy.stats.pearsonr(single[:, g].astype(float), b[:, g])[0] for g in range(20)]
    same(stats.pearson(single, b), own)


def columns_that_do_not_vary(n, y):
    rng = np.random.default_rng(3)
    wobble = 1 + rng.integers(-1, 2, n) * np.finfo(np.float64).eps
    wobble32 = (1 + rng.integers(-1, 2, n) * np.finfo(np.float32).eps).astype(np.float32)
    yield from (np.zeros(n), np.full(n, 0.1), np.full(n, 7), np.ones(n, bool))
    yield from (0.1 * wobble, 1e6 * wobble, -1e-9 * wobble, 5 + 1e-13 * rng.random(n))
    yield from (np.full(n, 0.1, np.float32), np.float32(5) * wobble32)
    for odd in (np.nan, np.inf, -np.inf):
        yield from (np.r_[odd, y[1:]], np.r_[y[1:], odd])


@pytest.mark.parametrize("correlation", [stats.pearson, stats.spearman])
def test_a_gene_without_variation_has_no_correlation(correlation, strict):
    n = 40
    y = np.random.default_rng(3).normal(size=n)
    for column in columns_that_do_not_vary(n, y):
        assert math.isnan(correlation(column, y)) and math.isnan(correlation(y, column))
        neighbour = np.arange(n).astype(column.dtype)
        table = correlation(np.stack([y, y], 1), np.stack([column, neighbour], 1))
        assert np.isnan(table[0]) and (column.dtype == bool or not np.isnan(table[1]))
    one = np.r_[1.0, np.zeros(n - 1)]  # one sample that differs is variation
    assert abs(correlation(one, y)) <= 1 and not math.isnan(correlation(1 + 1e-9 * y, y))
    for few in (0, 1):
        assert np.isnan(correlation(np.ones((few, 3)), np.ones((few, 3)))).all()
    with pytest.raises(ValueError, match="shapes"):
        correlation(np.ones((4, 2)), np.ones((4, 3)))


@pytest.mark.parametrize("correlation", [stats.pearson, stats.spearman])
def test_correlation_is_clipped_symmetric_and_blind_to_order_and_scale(correlation):
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 100, 300))
    order = rng.permutation(100)
    r = correlation(a, b)
    same(correlation(a[order], b[order]), r, 1e-13)
    same(correlation(b, a), r, 1e-13)
    same(correlation(3 * a - 7, -2 * b), -r, 1e-12)
    assert np.abs(correlation(a, 0.3 * a)).max() <= 1 and np.abs(correlation(a, -a)).max() <= 1


def test_pearson_p_equals_scipy():
    rng = np.random.default_rng(5)
    for n in (3, 4, 10, 44, 1046):
        a, b = rng.normal(size=(2, n, 20))
        tests = [scipy.stats.pearsonr(a[:, g], b[:, g], alternative="greater") for g in range(20)]
        same(stats.pearson_p(stats.pearson(a, b), n), [test.pvalue for test in tests])


def test_pearson_p_is_the_t_far_into_both_tails():
    r = np.array([-0.9999, -0.5, -1e-3, 0, 1e-3, 0.1, 0.3, 0.6, 0.9, 0.99])
    for n in (5, 44, 1046, 10514):
        t = r * np.sqrt((n - 2) / (1 - r * r))
        theirs = scipy.stats.t.sf(t, n - 2)
        np.testing.assert_allclose(stats.pearson_p(r, n), theirs, rtol=1e-8, atol=1e-290)
    assert 0 < stats.pearson_p(0.95, 400) < 1e-100
    same(stats.pearson_p(np.array([1, -1, 0, np.nan]), 44), [0, 1, 0.5, np.nan])
    assert np.isnan(stats.pearson_p(0.5, 2)) and np.isnan(stats.r_threshold(0.05, 2))
    several = stats.pearson_p(np.full(3, 0.3), np.array([2, 44, 1046]))
    same(several, [np.nan, stats.pearson_p(0.3, 44), stats.pearson_p(0.3, 1046)])


def test_the_papers_smallest_significant_r():
    """HE2RNA Results: R_sign = .64 for the 44 cases of DLBC, 30,839 genes."""
    assert f"{FIRST_STEP:.2e}" == "1.66e-06"
    thresholds = stats.r_threshold(FIRST_STEP, np.array([44, 1046]))
    assert [round(float(r), 3) for r in thresholds] == [0.637, 0.143]
    p = np.array([0.9, 0.5, 0.05, 1e-6, 1e-12])
    for n in (3, 10, 44, 1046):
        r = np.array([-0.1, 0, 0.1, 0.5])
        same(stats.r_threshold(stats.pearson_p(r, n), n), r, 1e-9)
        t = scipy.stats.t.isf(p, n - 2)
        same(stats.r_threshold(p, n), t / np.sqrt(n - 2 + t * t), 1e-9)
    for p, significant in ((1.6e-6, True), (1.7e-6, False)):  # of the best of 30,839 genes
        best = np.r_[stats.r_threshold(p, 44), np.zeros(30838)]
        assert (stats.holm_sidak(stats.pearson_p(best, 44))[0] < 0.05) == significant


# ----- Several tests at once ----------------------------------------------------------------------


def test_holm_sidak_equals_the_step_down_loop():
    rng = np.random.default_rng(6)
    for m in (1, 2, 5, 40):
        p = np.round(rng.random(m) ** 3, 2)  # with ties, zeros
        adjusted, highest = {}, 0
        for i, j in enumerate(sorted(range(m), key=lambda j: p[j])):
            highest = max(highest, 1 - (1 - p[j]) ** (m - i))
            adjusted[j] = highest
        same(stats.holm_sidak(p), [adjusted[j] for j in range(m)], 1e-12)


def test_holm_sidak_worked_example():
    """By hand, m = 3: 1-.99^3, 1-.96^2, and 1-.95^1 = .05 raised to the step before."""
    same(stats.holm_sidak([0.05, 0.01, 0.04]), [0.0784, 0.029701, 0.0784], 1e-12)


def test_benjamini_hochberg_equals_scipy():
    rng = np.random.default_rng(6)
    for m in (1, 2, 5, 400):
        p = np.round(rng.random(m) ** 3, 2)
        same(stats.benjamini_hochberg(p), scipy.stats.false_discovery_control(p))


def test_holm_sidak_equals_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(8).random(200) ** 4
    same(stats.holm_sidak(p), multitest.multipletests(p, method="holm-sidak")[1])


def test_adjusted_p_keeps_tiny_p_edges_and_nan(strict):
    p = stats.holm_sidak(np.array([1e-30, np.nan, 1.0, 0.0, 1.0]))
    assert np.isnan(p[1]) and p[2] == p[4] == 1 and p[3] == 0
    assert p[0] == pytest.approx(3e-30, rel=1e-12, abs=0)  # second of 4: exponent 3
    rng = np.random.default_rng(7)
    p = rng.random(50) ** 4
    gaps = np.insert(p, [0, 10, 50], np.nan)
    order = rng.permutation(50)
    for adjust in (stats.holm_sidak, stats.benjamini_hochberg):
        same(adjust(gaps)[~np.isnan(gaps)], adjust(p), 1e-15)
        assert np.isnan(adjust(gaps)[np.isnan(gaps)]).all()
        assert np.isnan(adjust([np.nan, np.nan])).all() and adjust([]).shape == (0,)
        assert (adjust(p) >= p).all() and (adjust(p) <= 1).all()
        assert (adjust(p[order]) == adjust(p)[order]).all()
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            adjust([0.5, 1.5])


# ----- Wilcoxon's tests ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 13, 30, 49, 50, 51, 400])
def test_signed_rank_equals_scipy(n):
    rng = np.random.default_rng(n)
    normal = {"method": "asymptotic", "correction": True}
    for shift in (0, 0.3, 3):
        x, y = rng.normal(size=(2, n))
        x += shift
        theirs = scipy.stats.wilcoxon(x, y, **({"method": "exact"} if n <= 50 else normal))
        same(stats.wilcoxon_signed_rank(x, y), theirs)
        same(stats.wilcoxon_signed_rank(y, x), theirs)
    steps = rng.choice([-2, -1, 1, 2, 3], n)  # no zero; ties from n = 4 on
    if len(set(abs(steps))) < n:
        same(stats.wilcoxon_signed_rank(steps, 0 * steps), scipy.stats.wilcoxon(steps, **normal))
    zeros = np.r_[0.0, 0.0, rng.normal(size=n)]  # no ties, two pairs without a difference
    same(stats.wilcoxon_signed_rank(zeros, 0 * zeros), scipy.stats.wilcoxon(zeros, **normal))
    both = rng.integers(0, 5, (2, n + 5))
    same(stats.wilcoxon_signed_rank(*both), scipy.stats.wilcoxon(*both, **normal))


@pytest.mark.parametrize("n", range(1, 9))
def test_signed_rank_equals_all_sign_patterns(n):
    d = np.random.default_rng(n).normal(size=n) + 0.5
    ranks = scipy.stats.rankdata(abs(d))
    patterns = itertools.product([False, True], repeat=n)
    sums = np.array([ranks[list(signs)].sum() for signs in patterns])
    w = ranks[d > 0].sum()
    p = min(1, 2 * min((sums <= w).mean(), (sums >= w).mean()))
    same(stats.wilcoxon_signed_rank(d, np.zeros(n)), (min(w, n * (n + 1) / 2 - w), p), 1e-14)


SIZES = [(1, 1), (1, 5), (2, 3), (4, 4), (7, 60), (8, 8), (8, 500), (9, 9), (9, 60), (60, 60)]


@pytest.mark.parametrize("n1, n2", SIZES)
def test_rank_sum_equals_scipy(n1, n2):
    rng = np.random.default_rng(n1 + n2)
    for x, y in [
        (rng.normal(size=n1), rng.normal(size=n2)),
        (rng.normal(size=n1) + 1.5, rng.normal(size=n2)),
        (rng.integers(0, 6, n1), rng.integers(0, 6, n2)),
        (np.arange(n1) + 1000.0, np.arange(n2)),
    ]:
        same(stats.wilcoxon_rank_sum(x, y), scipy.stats.mannwhitneyu(x, y))
        same(stats.wilcoxon_rank_sum(y, x), scipy.stats.mannwhitneyu(y, x))


@pytest.mark.parametrize("n1, n2", [(1, 1), (1, 7), (2, 6), (3, 3), (5, 3), (6, 5)])
def test_rank_sum_equals_all_choices_of_ranks(n1, n2):
    rng = np.random.default_rng(10 * n1 + n2)
    x, y = rng.normal(size=n1) + 0.7, rng.normal(size=n2)
    u = sum(i > j for i in x for j in y)
    choices = itertools.combinations(range(1, n1 + n2 + 1), n1)
    all_u = np.array([sum(ranks) - n1 * (n1 + 1) / 2 for ranks in choices])
    p = min(1, 2 * min((all_u <= u).mean(), (all_u >= u).mean()))
    same(stats.wilcoxon_rank_sum(x, y), (u, p), 1e-13)


def test_wilcoxon_edges_are_defined(strict):
    for n in (1, 5, 80):
        assert stats.wilcoxon_signed_rank(np.ones(n), np.ones(n)) == (0.0, 1.0)
        assert stats.wilcoxon_rank_sum(np.ones(n), np.ones(n)) == (n * n / 2, 1.0)
        assert stats.wilcoxon_signed_rank(np.ones(n), np.zeros(n))[1] <= 1  # all tied, not zero
    for x, y in (([], []), ([1.0, np.nan], [0.0, 0.0])):
        assert np.isnan(stats.wilcoxon_signed_rank(x, y)).all()
    for x, y in (([], [1.0]), ([1.0], []), ([1.0, np.nan], [0.0])):
        assert np.isnan(stats.wilcoxon_rank_sum(x, y)).all()


# ----- ROC and precision-recall -------------------------------------------------------------------


def test_roc_auc_equals_counting_all_pairs():
    rng = np.random.default_rng(9)
    for n in (2, 3, 10, 60):
        labels = rng.permutation(np.arange(n) < max(1, n // 3))
        for scores in (rng.normal(size=n) + labels, rng.integers(0, 4, n)):
            pairs = [(p > q) + 0.5 * (p == q) for p in scores[labels] for q in scores[~labels]]
            same(stats.roc_auc(labels, scores), np.mean(pairs), 1e-14)
            turned = stats.roc_auc(labels.astype(int).tolist(), (-scores).tolist())
            same(turned, 1 - np.mean(pairs), 1e-14)
    example = [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]  # scikit-learn's documented one
    assert stats.roc_auc(*example) == 0.75


def test_curves_equal_every_threshold():
    rng = np.random.default_rng(3)
    for n, levels in ((2, 9), (7, 3), (40, 6), (60, 10**6)):
        labels, scores = np.r_[1, 0, rng.integers(0, 2, n - 2)], rng.integers(0, levels, n) / 7
        cuts = np.unique(scores)[::-1]
        hits = np.array([(labels[scores >= cut] > 0).sum() for cut in cuts])
        chosen = np.array([(scores >= cut).sum() for cut in cuts])
        fpr, tpr = stats.roc_curve(labels, scores)
        recall, precision = stats.pr_curve(labels, scores)
        same(tpr, np.r_[0, hits / labels.sum()])
        same(fpr, np.r_[0, (chosen - hits) / (n - labels.sum())])
        same(recall, tpr)
        same(precision, np.r_[1, hits / chosen])
        same(np.trapezoid(tpr, fpr), stats.roc_auc(labels, scores))
        at = [(scores[labels > 0] >= s).sum() / (scores >= s).sum() for s in scores[labels > 0]]
        same(stats.pr_auc(labels, scores), np.mean(at))
    assert stats.pr_auc([0, 0, 1, 1], [1, 2, 3, 4]) == 1
    assert stats.pr_auc([0, 1, 0, 0], [2, 2, 2, 2]) == 0.25


@pytest.mark.parametrize("auc", [stats.roc_auc, stats.pr_auc])
def test_areas_without_both_classes_or_with_a_nan_are_none(auc):
    for labels, scores in (
        ([1, 1], [0.1, 0.2]),
        ([0, 0], [1, 2]),
        ([0], [1]),
        ([], []),
        ([0, 1, 1], [0.1, np.nan, 2]),
        ([0, 1, np.nan], [0, 1, 2]),
    ):
        assert math.isnan(auc(labels, scores))
    with pytest.raises(ValueError, match="twice is wanted"):
        auc([0, 1], [1, 2, 3])


def test_areas_and_curves_equal_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(10)
    for scores in (rng.normal(size=500), rng.integers(0, 8, 500) / 3):
        labels = rng.random(500) < 0.2
        same(stats.roc_auc(labels, scores), metrics.roc_auc_score(labels, scores), 1e-12)
        same(stats.pr_auc(labels, scores), metrics.average_precision_score(labels, scores), 1e-12)
        fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
        assert np.allclose(stats.roc_curve(labels, scores), (fpr, tpr))


# ----- Nulls of R ---------------------------------------------------------------------------------


def chance_r(rng, sizes, count):
    """R of unrelated normal samples: (1 + R) / 2 is a Beta; the mean of one R a fold."""
    return np.mean([2 * rng.beta(n / 2 - 1, n / 2 - 1, count) - 1 for n in sizes], 0)


def exact_tail(sizes, r):
    """P(mean of one chance R a fold >= r), by convolution on a fine grid."""
    grid, law = np.linspace(-1, 1, 2**15 + 1), np.ones(1)
    for n in sizes:
        pdf = scipy.stats.beta.pdf((grid + 1) / 2, n / 2 - 1, n / 2 - 1)
        law = scipy.signal.fftconvolve(law, pdf / pdf.sum())
    return law[np.linspace(-1, 1, len(law)) >= r].sum() / law.sum()


def test_null_fit_of_chance_is_the_analytic_t():
    rng = np.random.default_rng(0)
    for n in (10, 44, 1046):
        mean, fitted = stats.null_fit(chance_r(rng, [n], (10, 30839)))
        assert abs(mean) < 4 / math.sqrt(n * 308390) and fitted == pytest.approx(n, rel=0.02)
        ours = stats.null_threshold(FIRST_STEP, mean, fitted)
        assert ours == pytest.approx(stats.r_threshold(FIRST_STEP, n), abs=0.01)
    luad_alone = stats.null_threshold(FIRST_STEP, 0, 535)  # LUNG's printed R_sign
    assert round(float(luad_alone), 2) == 0.20


@pytest.mark.parametrize("sizes", [(9, 9, 9, 9, 8), (20,) * 5, (209,) * 5])
def test_null_p_of_a_mean_of_folds_is_near_the_exact_one(sizes):
    """Within a factor 2 at 1.7e-6, where counting N = 30,839 null R ends at 3e-5; a normal fit of
    Fisher's z is further off.
    """
    null = chance_r(np.random.default_rng(1), sizes, 308390)
    mean, n = stats.null_fit(null)
    sd_of_z = np.arctanh(null).std()
    for r in np.arange(0.5, 5, 0.5) / math.sqrt(sum(sizes)):
        exact, p = exact_tail(sizes, r), stats.null_p(r, mean, n)
        assert 0.5 < p / exact < 1.4
        if exact <= 1e-3:
            z = scipy.stats.norm.sf(np.arctanh(r) / sd_of_z)
            assert abs(math.log(p / exact)) < abs(math.log(z / exact)) + 0.1
        if exact >= 1e-4:
            assert np.mean(null >= r) == pytest.approx(p, rel=0.3)


def test_a_wide_or_shifted_null_raises_the_threshold():
    rng = np.random.default_rng(2)
    plain = rng.normal(size=20000) * 0.1
    mean, n = stats.null_fit(plain)
    same([mean, n], [plain.mean(), 1 + 1 / plain.var()], 0.02)  # a normal's tail is as its SD says
    same(stats.null_fit(plain + 0.2), [mean + 0.2, n], 1e-9)
    wide = rng.random(20000) < 0.1  # one gene in ten scatters three times as much
    mixed = np.where(wide, 3, 1) * plain
    mean, n = stats.null_fit(mixed)
    assert n < 1 + 1 / mixed.var() - 5
    assert (mixed > stats.null_threshold(0.01, mean, n)).mean() <= 0.0105
    r = np.array([0.1, 0.5, 0.9])
    same(stats.null_threshold(stats.null_p(r, 0.05, 40), 0.05, 40), r, 1e-9)


def test_null_edges(strict):
    for null in ([], [np.nan], [0.3], [0.3, 0.3, np.nan]):
        assert np.isnan(stats.null_fit(null)).all()
    table, flat = [[0.1, np.nan], [-0.1, 0.2]], [0.1, -0.1, 0.2]
    same(stats.null_fit(table), stats.null_fit(flat))
    same(stats.null_p(np.array([1, -1, np.nan]), 0, 44), [0, 1, np.nan])
    assert stats.null_p(-1, 0.1, 44) == 1 and stats.null_p(1, 0.1, 44) == 0
    assert 0 < stats.null_p(0.95, -0.06, 3.4) < 0.1
    assert np.isnan(stats.null_p([0.5], math.nan, math.nan)).all()
    assert np.isnan(stats.null_p(0.5, *stats.null_fit([-1, 1])))
    assert 0.9 < stats.null_threshold(1e-9, 0.9, 10) < 1
    assert np.isnan(stats.null_threshold(0.05, 0, 2))


def test_permutation_null_equals_the_loop():
    rng = np.random.default_rng(3)
    n, genes = 60, 300  # more genes than one block
    prediction, truth = rng.normal(size=(2, n, genes)).astype(np.float32)
    fold = rng.permutation(np.r_[np.arange(58) % 4, 7, 7])  # a fold of two does not count
    prediction[:, 5] = 1
    truth[fold == 1, 6] = 0
    truth[3, 7] = np.nan
    null = stats.permutation_null(prediction, truth, fold, 3, np.random.default_rng(4))
    shuffle = np.random.default_rng(4)
    for row in null:
        r = []
        for f in range(4):
            rows = np.flatnonzero(fold == f)
            moved = rows[shuffle.permutation(len(rows))]
            r.append(stats.pearson(prediction[moved], truth[rows]))
        same(row, nanmean(r), 1e-12)
    assert np.isnan(null[:, 5]).all() and not np.isnan(null[:, 6:8]).any()
    assert np.isnan(stats.permutation_null(prediction[:2], truth[:2], fold[:2], 2, rng)).all()


def test_permutation_null_scatters_as_permutations_do_and_ignores_signal():
    """R has mean 0 and variance 1 / (n - 1) exactly: five slides, all 120 orders."""
    rng = np.random.default_rng(5)
    x, y = rng.exponential(size=(2, 5))
    every = [stats.pearson(np.array(order), y) for order in itertools.permutations(x)]
    same([np.mean(every), np.var(every)], [0, 1 / 4], 1e-12)
    truth, fold = rng.exponential(size=(50, 60)), np.arange(50) % 5
    null = stats.permutation_null(truth, truth, fold, 1500, rng)
    same([null.mean(), null.var()], [0, 1 / 9 / 5], 0.003)
    r = stats.pearson(truth + 0.5 * rng.normal(size=truth.shape), truth)
    assert (stats.holm_sidak(stats.null_p(r, *stats.null_fit(null))) < 0.05).mean() > 0.9


def test_recurrent_counts():
    significant = np.random.default_rng(6).random((5, 40)) < 0.4
    per_gene, at_least = stats.recurrent(significant)
    assert per_gene.tolist() == [sum(column) for column in significant.T.tolist()]
    assert at_least.tolist() == [sum(g >= c for g in per_gene) for c in (1, 2, 3, 4, 5)]
    per_gene, at_least = stats.recurrent(np.zeros((0, 3), bool))
    assert per_gene.tolist() == [0, 0, 0] and at_least.tolist() == []


# ----- Gene sets ----------------------------------------------------------------------------------


def test_combine_sets():
    assert stats.combine_sets([("c", "a", "b"), ["b", "d", "b"], ("a", "e")]) == ("a", "b")
    assert stats.combine_sets([("c", "a")]) == ("c", "a")
    assert stats.combine_sets([]) == stats.combine_sets([(), ()]) == ()
    assert stats.combine_sets([("a", "a"), ("b",)]) == ()
    assert stats.combine_sets([("a", "b"), ("b", "c")], 1) == ("a", "b", "c")
    assert stats.combine_sets([("a", "b"), ("b",), ("b", "a")], 3) == ("b",)


def test_signatures_of_the_paper():
    """Table 2: six pathways of 18 sets; those of MSigDB that are here have the printed names."""
    assert len(stats.SIGNATURES) == 6 and sum(map(len, stats.SIGNATURES.values())) == 18
    if not REAL_DATA:
        pytest.skip("REAL_DATA is not set")
    files = ("h.all.v6.2", "c5.bp.v6.2", "c2.cp.kegg.v7.5.1")
    folder = os.path.join(REAL_DATA, "genesets")
    sets = read_sets([os.path.join(folder, f"{name}.symbols.gmt") for name in files])
    assert len(sets) == 50 + 4436 + 186
    missing = {name for names in stats.SIGNATURES.values() for name in names} - set(sets)
    assert {name.split("_")[0] for name in missing} == {"BIOCARTA", "REACTOME"}
    assert len(missing) == 6
    single = stats.SIGNATURES["B cell-mediated immunity"]
    assert len(stats.combine_sets([sets[name] for name in single])) == len(sets[single[0]])


def test_fisher_enrichment_equals_scipy_and_the_lady_tasting_tea():
    cups = range(8)  # Fisher 1935
    tea = [
        stats.fisher_enrichment([0, 1, 2, 3], found, cups) for found in ([0, 1, 2, 3], [0, 1, 2, 7])
    ]
    same(tea, [1 / 70, 17 / 70], 1e-12)
    rng = np.random.default_rng(7)
    for n in (1, 2, 9, 60, 500):
        for _ in range(15):
            sizes = rng.integers(0, n + 1, 2)
            hits, members = (set(rng.choice(n, size, replace=False).tolist()) for size in sizes)
            a = len(hits & members)
            table = [[a, len(hits) - a], [len(members) - a, n - len(hits | members)]]
            theirs = scipy.stats.fisher_exact(table, alternative="greater")[1]
            same(stats.fisher_enrichment(hits, members, range(n)), theirs, 1e-9)


@pytest.mark.parametrize(
    "overlap, size, n_hits, n",
    [
        (50, 100, 300, 2000),
        (120, 200, 156, 30839),
        (3, 200, 1500, 3000),
        (90, 200, 1500, 3000),
        (200, 200, 1500, 3000),
        (1, 5, 1, 5),
        (8, 9, 9, 10),
        (9, 9, 9, 10),
        (0, 0, 3, 9),
    ],
)
def test_hypergeometric_tail_is_exact_far_out_and_near_one(overlap, size, n_hits, n):
    ways = 0
    for k in range(overlap, min(size, n_hits) + 1):
        ways += math.comb(size, k) * math.comb(n - size, n_hits - k)
    exact = float(Fraction(ways, math.comb(n, n_hits)))
    ours = stats.hypergeometric_tail(overlap, size, n_hits, n)
    assert ours == pytest.approx(exact, rel=1e-8, abs=0)


def test_fisher_enrichment_edges():
    genes = ["a", "b", "c"]
    for hits, members, universe in [
        ([], ["a"], genes),
        (genes, ["a"], genes),
        (["a"], [], genes),
        (["a"], ["x"], genes),
        ([], [], []),
        (["a"], genes, genes),
    ]:
        assert stats.fisher_enrichment(hits, members, universe) == 1.0
    strangers_and_twice = stats.fisher_enrichment(["a", "a", "x"], ["a", "y", "a"], iter(genes))
    assert strangers_and_twice == pytest.approx(1 / 3)


def test_enrichment_is_fisher_of_each_set_and_leaves_out_what_cannot_be_tested():
    rng = np.random.default_rng(8)
    universe = [f"g{i}" for i in range(400)]
    sets = {}
    for i in range(50):
        sets[f"s{i}"] = [f"g{j}" for j in rng.choice(600, rng.integers(1, 80), replace=False)]
    sets |= {"empty": [], "not measured": ["x", "g599"], "planted": universe[:30]}
    hits = universe[:25] + universe[200:240] + ["x"]
    found = stats.enrichment(hits, sets, universe)
    for i, genes in enumerate(sets.values()):
        measured = set(genes) & set(universe)
        row = {key: values[i] for key, values in found.items()}
        if not measured:
            assert np.isnan([row["fold"], row["p"], row["bh"]]).all()
            assert row["size"] == row["expected"] == 0
            continue
        assert row["size"] == len(measured) and row["overlap"] == len(measured & set(hits))
        same(row["expected"], len(measured) * 65 / 400)
        same(row["fold"], row["overlap"] / row["expected"])
        same(row["p"], stats.fisher_enrichment(hits, genes, universe))
    tested = ~np.isnan(found["p"])
    assert tested.sum() >= 49 and not tested[50] and not tested[51]
    assert list(sets)[np.nanargmin(found["p"])] == "planted"
    same(found["bh"][tested], scipy.stats.false_discovery_control(found["p"][tested]))
    for hits in ([], universe):  # the overlap is forced
        forced = stats.enrichment(hits, sets, universe)
        assert (forced["p"][tested] == 1).all() and (forced["bh"][tested] == 1).all()
    assert np.isnan(stats.enrichment([], sets, universe)["fold"]).all()
    assert stats.enrichment(["a"], {}, ["a"])["p"].shape == (0,)
    assert np.isnan(stats.enrichment([], {"s": ["a"]}, [])["p"]).all()


def random_list_loop(r, significant, signature, n_lists, rng):
    """The direct way, one cancer and one signature: (R_p, f_p, R_o, f_o, p of R, p of f)."""
    genes = np.flatnonzero(~np.isnan(r))
    own = np.intersect1d(genes, signature)
    r_lists, f_lists = [], []
    for _ in range(n_lists):
        chosen = rng.choice(genes, len(own), replace=False)
        r_lists.append(r[chosen].mean())
        f_lists.append(significant[chosen].mean())
    r_p, f_p = r[own].mean(), significant[own].mean()
    p = [
        (1 + np.sum(np.array(lists) >= value - 1e-9)) / (1 + n_lists)
        for lists, value in ((r_lists, r_p), (f_lists, f_p))
    ]
    return r_p, f_p, np.mean(r_lists), np.mean(f_lists), *p


def test_random_list_test_equals_the_loop_and_the_hypergeometric():
    rng = np.random.default_rng(9)
    n_genes, cancers, n_lists = 500, 4, 4000
    r = 0.2 + 0.1 * rng.normal(size=(n_genes, cancers))
    r[:40] += 0.02  # a signature, weakly better
    r[rng.random(r.shape) < [0, 0, 0.2, 0.5]] = np.nan  # two cancers share their genes
    significant = r > 0.25
    members = np.zeros((3, n_genes), bool)
    for row, genes in zip(members, (slice(40), slice(100, 400), slice(490, None)), strict=True):
        row[genes] = True
    ours = stats.random_list_test(r, significant, members, n_lists, rng)
    for i, c in itertools.product(range(3), range(cancers)):
        row = {key: values[i, c] for key, values in ours.items()}
        genes = np.flatnonzero(~np.isnan(r[:, c]))
        own = np.intersect1d(genes, np.flatnonzero(members[i]))
        assert row["size"] == len(own)
        loop = random_list_loop(r[:, c], significant[:, c], np.flatnonzero(members[i]), 300, rng)
        same([row["r"], row["share"]], loop[:2], 1e-12)
        spread = r[genes, c].std() / math.sqrt(len(own)) * math.sqrt(1 - len(own) / len(genes))
        for mean, lists in ((row["r_random"], n_lists), (loop[2], 300)):
            assert abs(mean - r[genes, c].mean()) < 5 * spread / math.sqrt(lists) + 1e-12
        assert abs(row["share_random"] - significant[genes, c].mean()) < 0.01
        for p, counted in ((row["p_r"], loop[4]), (row["p_share"], loop[5])):
            assert abs(p - counted) < 5 * math.sqrt(p * (1 - p) / 300) + 1 / 300
        drawn = significant[own, c].sum(), len(own), significant[genes, c].sum(), len(genes)
        exact = stats.hypergeometric_tail(*drawn)
        room = 5 * math.sqrt(exact * (1 - exact) / n_lists) + 1 / n_lists
        assert abs(row["p_share"] - exact) < room


def test_random_list_p_equals_all_lists():
    """Eight genes, lists of three: all 56."""
    r = np.array([0.9, 0.1, 0.5, np.nan, 0.3, 0.7, 0.2, 0.4, 0.4])[:, None]
    every = np.array([np.mean(c) for c in itertools.combinations(np.delete(r[:, 0], 3), 3)])
    members = np.zeros((2, 9), bool)
    members[0, [0, 3, 4, 5]] = members[1, [2, 7, 8]] = True  # one without R, and one with ties
    ours = stats.random_list_test(r, r > 0.45, members, 20000, np.random.default_rng(10))
    for i, own in enumerate(([0.9, 0.3, 0.7], [0.5, 0.4, 0.4])):
        assert abs(ours["p_r"][i, 0] - np.mean(every >= np.mean(own) - 1e-12)) < 0.015


def test_random_lists_are_uniform_without_repeats_and_matched():
    rng = np.random.default_rng(11)
    bins = stats.expression_bins(rng.exponential(size=100), 5)
    assert np.bincount(bins).tolist() == [20] * 5
    for members, b in (
        (np.arange(30), bins),
        (np.arange(30), np.zeros(100, int)),
        (np.flatnonzero(bins == 2)[:9], bins),
    ):
        lists = stats.random_lists(members, b, 3000, rng)
        assert lists.shape == (3000, len(members))
        assert all(len(set(row)) == len(row) for row in lists.tolist())
        assert (np.sort(b[lists], 1) == np.sort(b[members])).all()  # as many of each bin
        share = np.bincount(b[members], minlength=5) / np.maximum(np.bincount(b, minlength=5), 1)
        expected = share[b] * 3000
        times = np.bincount(lists.ravel(), minlength=100)
        assert (np.abs(times - expected) < 5 * np.sqrt(expected) + 1e-9).all()
        assert len(np.unique(np.sort(lists, 1), axis=0)) > 2900
    level = np.array([3.0, 1.0, 1.0, 2.0, 9.0])
    assert stats.expression_bins(level, 5).tolist() == [3, 0, 1, 2, 4]
    assert stats.expression_bins(level, 1).tolist() == [0] * 5
    with pytest.raises(ValueError, match="no expression level"):
        stats.expression_bins([1.0, np.nan])


def test_matched_lists_take_away_what_expression_explains():
    rng = np.random.default_rng(12)
    level = rng.random(2000)
    r = (0.3 * level + 0.05 * rng.normal(size=2000))[:, None]  # R follows expression alone
    members = (rng.random(2000) < 0.1 * level)[None]
    plain = stats.random_list_test(r, r > 0.2, members, 2000, rng)
    matched = stats.random_list_test(r, r > 0.2, members, 2000, rng, stats.expression_bins(level))
    assert plain["p_r"] < 0.01 < matched["p_r"] and plain["r"] == matched["r"]
    assert abs(matched["r_random"] - matched["r"]) < 0.3 * abs(plain["r_random"] - plain["r"])


def test_random_list_edges(strict):
    rng = np.random.default_rng(13)
    r = rng.random((20, 3))
    r[:, 1] = np.nan  # a cancer without any R
    r[5:, 2] = np.nan
    members = np.zeros((4, 20), bool)  # none; every gene; five; not measured in cancer 2
    members[1] = members[2, :5] = members[3, 10:] = True
    ours = stats.random_list_test(r, r > 0.5, members, 50, rng)
    assert ours["size"].tolist() == [[0, 0, 0], [20, 0, 5], [5, 0, 5], [10, 0, 0]]
    for values in ours.values():
        assert (np.isnan(values) == (ours["size"] == 0)).all() or values is ours["size"]
    for i, c in ((1, 0), (1, 2), (2, 2)):  # the list itself, always
        assert ours["p_r"][i, c] == 1
    same(ours["r"][1, 0], ours["r_random"][1, 0])
    nothing = np.zeros((20, 1), bool)
    constant = stats.random_list_test(np.full((20, 1), 0.1), nothing, members[2:3], 50, rng)
    assert constant["p_r"] == constant["p_share"] == 1
    best = (np.arange(2000) > 1990)[None]
    ranks = np.arange(2000.0)[:, None]
    top = stats.random_list_test(ranks, np.zeros((2000, 1)), best, 999, rng)
    assert top["p_r"] == 1 / 1000  # never 0
    assert stats.random_list_test(r, r > 0.5, members[:0], 50, rng)["p_r"].shape == (0, 3)


# ----- Bootstrap over patients --------------------------------------------------------------------


def drawn_rows(patients, n_draws, seed):
    """The rows of each draw, by hand."""
    times = stats.patient_draws(patients, n_draws, np.random.default_rng(seed))
    return [np.repeat(np.arange(len(patients)), row) for row in times]


def test_patients_are_drawn_whole():
    who = np.random.default_rng(18).integers(0, 20, 50)
    times = stats.patient_draws(who, 60, np.random.default_rng(19))
    assert (times.sum(1) != 50).any()
    for row in times:
        assert all(len(set(row[who == p])) == 1 for p in set(who.tolist()))
        assert sum(row[who == p][0] for p in set(who.tolist())) == len(set(who.tolist()))


def test_bootstrap_equals_repeating_the_rows():
    rng = np.random.default_rng(18)
    who = rng.integers(0, 20, 50)
    labels, scores = rng.random(50) < 0.4, rng.integers(0, 9, 50)  # with ties
    rows = drawn_rows(who, 60, 19)
    for statistic in (stats.roc_auc, stats.pr_auc):
        ours = stats.bootstrap(statistic, (labels, scores), who, 60, np.random.default_rng(19))
        theirs = [statistic(labels[r], scores[r]) for r in rows]
        same(ours, np.nanpercentile(theirs, [2.5, 97.5]))
    ours = stats.bootstrap(np.mean, [scores], who, 60, np.random.default_rng(19))
    same(ours, np.percentile([scores[r].mean() for r in rows], [2.5, 97.5]))
    few = [1, 0, 0], [3, 1, 2]  # many draws have one class only
    same(stats.bootstrap(stats.roc_auc, few, ["a", "b", "c"], 200, rng), (1, 1))


@pytest.mark.parametrize(
    "labels, scores, patients",
    [
        ([1, 1], [0.1, 0.2], "ab"),
        ([1, 0], [0.1, 0.2], "aa"),
        ([1, 0], [0.1, np.nan], "ab"),
        ([1, 0, 0], [0.1, np.nan, 3], "abc"),
        ([], [], ""),
    ],
)
def test_bootstrap_edges(strict, labels, scores, patients):
    rng = np.random.default_rng(17)
    for statistic in (stats.roc_auc, stats.pr_auc):
        interval = stats.bootstrap(statistic, (labels, scores), list(patients), 20, rng)
        assert np.isnan(interval).all()


def test_bootstrap_r_equals_repeating_the_rows():
    rng = np.random.default_rng(14)
    who = rng.integers(0, 25, 60)
    truth = rng.normal(size=(60, 270)) + rng.normal(size=(25, 270))[who]
    prediction = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    prediction[:, 3] = 2
    truth[who % 3 == 1, 4] = 7
    fold = np.where(who == 24, 9, who % 3)
    low, high = stats.bootstrap_r(prediction, truth, who, fold, 40, np.random.default_rng(15))
    draws = []
    for drawn in drawn_rows(who, 40, 15):
        r = []
        for f in range(3):
            rows = drawn[fold[drawn] == f]
            r.append(stats.pearson(prediction[rows], truth[rows]))
        draws.append(nanmean(r))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same([low, high], np.nanpercentile(draws, [2.5, 97.5], axis=0), 1e-9)
    assert np.isnan([low[3], high[3]]).all() and not np.isnan(np.delete(low, 3)).any()


def test_bootstrap_r_is_as_wide_as_theory_and_sees_patients():
    rng = np.random.default_rng(16)
    truth = rng.normal(size=(400, 100))
    prediction = 0.5 * truth + math.sqrt(0.75) * rng.normal(size=truth.shape)
    low, high = stats.bootstrap_r(prediction, truth, np.arange(400), np.arange(400) % 5, 500, rng)
    theory = 2 * 1.96 * (1 - 0.5**2) / math.sqrt(400)
    assert np.mean(high - low) == pytest.approx(theory, rel=0.08)
    assert ((low < 0.5) & (high > 0.5)).mean() > 0.87
    four = np.arange(400) // 4  # four slides of a patient, all alike
    low, high = stats.bootstrap_r(prediction[four], truth[four], four, four % 5, 500, rng)
    assert np.mean(high - low) == pytest.approx(2 * theory, rel=0.15)


def test_bootstrap_r_edges(strict):
    rng = np.random.default_rng(17)
    x = rng.normal(size=(6, 2))
    one_patient = stats.bootstrap_r(x, x, ["a"] * 6, np.zeros(6), 20, rng)
    folds_of_one = stats.bootstrap_r(x, x, list("abcdef"), np.arange(6), 20, rng)
    assert np.isnan(one_patient).all() and np.isnan(folds_of_one).all()
    low, high = stats.bootstrap_r(x, x, list("abcdef"), np.zeros(6), 200, rng)
    same(low, [1, 1])  # draws of one patient have no R
    same(high, [1, 1])


# ----- HistCode's random baseline -----------------------------------------------------------------


def test_random_baseline_lies_in_the_range_and_correlates_with_nothing():
    rng = np.random.default_rng(20)
    truth = rng.exponential(size=(153, 2000))
    truth[0, 3] = np.nan
    baseline = stats.random_baseline(truth, rng)
    assert np.isnan(baseline[:, 3]).all()
    truth, baseline = np.delete(truth, 3, 1), np.delete(baseline, 3, 1)
    low, high = np.percentile(truth, [5, 95], axis=0)
    assert ((low <= baseline) & (baseline <= high)).all()
    place = ((baseline - low) / (high - low))[::7].ravel()
    assert scipy.stats.kstest(place, "uniform").pvalue > 1e-4
    r = stats.pearson(baseline, truth)
    same([r.mean(), r.std()], [0, 1 / math.sqrt(152)], 0.005)  # .081; Fig. 4 prints .15: n = 45
    assert (stats.random_baseline(np.ones((9, 2)), rng) == 1).all()  # a constant gene


def test_against_baseline_equals_scipy_gene_by_gene():
    rng = np.random.default_rng(21)
    truth = rng.normal(size=(80, 60))
    prediction = truth + rng.normal(size=60) + rng.normal(size=truth.shape)
    baseline = stats.random_baseline(truth, rng)
    prediction[:, 5], prediction[2, 6] = baseline[:, 5], np.nan
    prediction[:3, 7] = baseline[:3, 7]  # pairs without a difference
    ours = stats.against_baseline(prediction, truth, baseline)
    error, random_error = np.abs(prediction - truth), np.abs(baseline - truth)
    how = {"method": "asymptotic", "correction": True}
    for g in set(range(60)) - {5, 6}:
        p = scipy.stats.wilcoxon(prediction[:, g], baseline[:, g], **how).pvalue
        error_p = scipy.stats.wilcoxon(error[:, g], random_error[:, g], **how).pvalue
        same([ours["p"][g], ours["error_p"][g]], [p, error_p])
        d = error[:, g] - random_error[:, g]
        d, ranks = d[d != 0], scipy.stats.rankdata(abs(d[d != 0]))
        assert ours["better"][g] == (ranks[d < 0].sum() > ranks[d > 0].sum())
    assert ours["p"][5] == ours["error_p"][5] == 1 and not ours["better"][5]
    assert np.isnan([ours[key][6] for key in ("p", "bh", "error_p", "error_bh")]).all()
    assert not ours["better"][6]
    known = np.arange(60) != 6
    for p, bh in (("p", "bh"), ("error_p", "error_bh")):
        same(ours[bh][known], scipy.stats.false_discovery_control(ours[p][known]))


def test_the_papers_test_is_of_location_not_of_skill():
    rng = np.random.default_rng(22)
    even, skewed = rng.random((150, 40)), rng.exponential(size=(150, 40))
    perfect = stats.against_baseline(even, even, stats.random_baseline(even, rng))
    assert (perfect["bh"] > 0.05).mean() > 0.9
    assert (perfect["error_bh"] < 1e-10).all() and perfect["better"].all()
    mean = np.broadcast_to(skewed.mean(0), skewed.shape)  # predicts nothing
    useless = stats.against_baseline(mean, skewed, stats.random_baseline(skewed, rng))
    assert (useless["bh"] < 0.05).mean() > 0.9


def test_r_against_baseline_equals_scipy():
    rng = np.random.default_rng(23)
    a, b = rng.normal(size=200), rng.normal(size=150) + 0.3
    ours = stats.r_against_baseline(np.insert(a, [0, 9], np.nan), np.append(b, np.nan))
    same(ours, scipy.stats.mannwhitneyu(a, b))
    assert np.isnan(stats.r_against_baseline([np.nan], [0.1])).all()


# ----- Folds by patient ---------------------------------------------------------------------------


def cohort(rng, n_patients, n_projects):
    """Patients with 1 to 4 samples, rows shuffled, projects of uneven size."""
    project = np.minimum(rng.geometric(0.3, n_patients) - 1, n_projects - 1)
    who = rng.permutation(np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients)))
    return np.array([f"TCGA-{w:04d}" for w in who]), np.array([f"P{project[w]}" for w in who])


def tcga_table():
    """Patients and projects of TCGA's samples."""
    if not REAL_DATA:
        pytest.skip("REAL_DATA is not set")
    with gzip.open(os.path.join(REAL_DATA, "tcga", "samples_description.tsv.gz"), "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    project, patient = rows[0].index("Project.ID"), rows[0].index("Case.ID")
    return np.array([r[patient] for r in rows[1:]]), np.array([r[project] for r in rows[1:]])


def patients_per_fold(patients, fold, k):
    return np.bincount([fold[patients == p][0] for p in np.unique(patients)], minlength=k)


@pytest.mark.parametrize("n_patients, k", [(2, 2), (5, 5), (23, 5), (200, 3), (500, 10)])
def test_patient_folds_balance_every_project_and_do_not_see_row_order(n_patients, k):
    rng = np.random.default_rng(n_patients)
    patients, projects = cohort(rng, n_patients, 6)
    fold = stats.patient_folds(patients, projects, k, seed=1)
    assert fold.shape == patients.shape and fold.dtype.kind == "i" and set(fold) == set(range(k))
    assert len(set(zip(patients, fold, strict=True))) == n_patients
    for rows in [projects == projects, *(projects == name for name in np.unique(projects))]:
        assert np.ptp(patients_per_fold(patients[rows], fold[rows], k)) <= 1
    order = rng.permutation(len(patients))
    assert (stats.patient_folds(patients[order], projects[order], k, seed=1) == fold[order]).all()
    assert (stats.patient_folds(patients.tolist(), projects.tolist(), k, seed=1) == fold).all()
    if n_patients > 20:
        assert (stats.patient_folds(patients, projects, k, seed=2) != fold).any()


def test_a_patient_of_two_projects_counts_once_in_the_larger_first_by_name():
    patients = ["a", "a", "a", "b", "b", "c", "d"]
    projects = ["Z", "Z", "X", "Z", "X", "X", "Z"]  # a belongs to Z, b to X: X = b, c; Z = a, d
    for seed in range(20):
        fold = stats.patient_folds(patients, projects, 2, seed)
        assert fold[0] == fold[1] == fold[2] and fold[3] == fold[4]
        assert fold[3] != fold[5] and fold[0] != fold[6]


def test_folds_say_what_would_work():
    with pytest.raises(ValueError, match=r"5 folds of 3 patients.*from 2 to 3"):
        stats.patient_folds(["a", "b", "b", "c"], ["X"] * 4, 5, 0)
    with pytest.raises(ValueError, match="1 folds of 3 patients"):
        stats.patient_folds(["a", "b", "c"], ["X"] * 3, 1, 0)
    for nobody in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="at least 2 patients"):
            stats.patient_folds(nobody, nobody, 2, 0)
        with pytest.raises(ValueError, match="at least 2 patients"):
            stats.inner_split(nobody, nobody, 0.1, 0)
    with pytest.raises(ValueError, match="at least 5 patients; there are 4"):
        stats.authors_folds(["a", "b", "c", "d", "d"])


def test_patient_folds_of_tcga():
    """11,564 samples: a fifth of every project's patients in every fold, to one patient; the
    authors' code is not balanced.
    """
    patients, projects = tcga_table()
    names = np.unique(projects)
    fold = stats.patient_folds(patients, projects, 5, seed=0)
    assert len(names) == 36
    assert len(set(zip(patients, fold, strict=True))) == len(set(patients)) > 10000
    one = np.unique(patients, return_index=True)[1]  # a row a patient

    def table(fold):
        rows = [np.bincount(fold[one][projects[one] == name], minlength=5) for name in names]
        return np.array(rows)  # (36, 5)

    ours = table(fold)
    assert np.abs(ours - ours.sum(1, keepdims=True) / 5).max() < 1
    assert np.ptp(ours.sum(0)) <= 1 and ours.min() >= 1
    for f, (_, _, test) in enumerate(stats.authors_folds(patients)):
        fold[test] = f
    theirs = table(fold)
    assert theirs.sum() == ours.sum() and np.ptp(theirs, axis=1).max() > 20


@pytest.mark.parametrize("share", [0.1, 0.5, 0.001, 0.999])
def test_inner_split_spreads_whole_patients_over_projects(share):
    rng = np.random.default_rng(11)
    for n_patients in (2, 3, 40, 300):
        patients, projects = cohort(rng, n_patients, 5)
        mask = stats.inner_split(patients, projects, share, seed=3)
        held = set(patients[mask])
        assert mask.dtype == bool and not held & set(patients[~mask])
        assert len(held) == min(max(round(share * n_patients), 1), n_patients - 1)
        for name in np.unique(projects):
            mine = set(patients[projects == name])
            assert abs(len(held & mine) - len(mine) * len(held) / n_patients) < 1
        order = rng.permutation(len(patients))
        again = stats.inner_split(patients[order], projects[order], share, seed=3)
        assert (again == mask[order]).all()
    assert len({tuple(stats.inner_split(patients, projects, 0.1, seed)) for seed in range(5)}) == 5
    eight = list("abcdefgh"), list("XYYYYYYY")  # the first project's only patient: 1 in 8
    assert 5 < sum(stats.inner_split(*eight, 0.125, seed)[0] for seed in range(200)) < 60


def test_inner_split_of_tcga():
    patients, projects = tcga_table()
    mask = stats.inner_split(patients, projects, 0.1, seed=0)
    for name in np.unique(projects):
        mine = projects == name
        held, all_of_it = len(set(patients[mask & mine])), len(set(patients[mine]))
        assert abs(held - all_of_it / 10) < 1.01


PINNED_FOLDS = [([9], [4, 6, 11]), ([9], [2, 8, 10]), ([3], [1, 7]), ([2], [3, 9]), ([3], [0, 5])]


def test_authors_folds_pinned():
    """Validation and test patients by scikit-learn 1.7, written down."""
    patients = np.array(list("lkjihgfedcba"))  # sorted inside: a = 0 ... l = 11
    number = np.array([ord(p) - ord("a") for p in patients])
    splits = stats.authors_folds(patients)
    numbers = [(sorted(number[v].tolist()), sorted(number[t].tolist())) for _, v, t in splits]
    assert numbers == PINNED_FOLDS
    for split in splits:
        assert sorted(np.concatenate(split).tolist()) == list(range(12))


@pytest.mark.parametrize("n_patients", [5, 6, 13, 44, 70, 87, 333, 1000])
def test_authors_folds_equal_scikit_learn(n_patients):
    selection = pytest.importorskip("sklearn.model_selection")
    patients, _ = cohort(np.random.default_rng(n_patients), n_patients, 3)
    names = np.unique(patients)
    folds = selection.KFold(5, shuffle=True, random_state=0).split(names)
    for ours, (others, test) in zip(stats.authors_folds(patients), folds, strict=True):
        train, valid = selection.train_test_split(names[others], test_size=0.1, random_state=0)
        for rows, theirs in zip(ours, (train, valid, names[test]), strict=True):
            assert set(patients[rows]) == set(theirs)
            assert (rows == np.flatnonzero(np.isin(patients, theirs))).all()
