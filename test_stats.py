"""test_all"""

import gzip
import itertools
import math
import os
import warnings
from fractions import Fraction

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats

import stats
from lab.gene_sets import read_sets
from lab.tests.helpers import (
    REAL_DATA,
    random_list_loop,
    same,
)


def tcga_table():
    if not REAL_DATA:
        pytest.skip("REAL_DATA is not set")
    with gzip.open(os.path.join(REAL_DATA, "tcga", "samples_description.tsv.gz"), "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    project, patient = rows[0].index("Project.ID"), rows[0].index("Case.ID")
    return np.array([r[patient] for r in rows[1:]]), np.array([r[project] for r in rows[1:]])


def cohort(rng, n_patients, n_projects):
    """Patients with 1 to 4 samples, rows shuffled, projects of uneven size."""
    organ = np.minimum(rng.geometric(0.3, n_patients) - 1, n_projects - 1)
    who = rng.permutation(np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients)))
    return np.array([f"TCGA-{w:04d}" for w in who]), np.array([f"P{organ[w]}" for w in who])


def patients_per_fold(patients, fold, k):
    return np.bincount([fold[patients == p][0] for p in np.unique(patients)], minlength=k)


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
    exact, other = (
        np.round(rng.normal(size=(2, 20000, 3)) * 64) / 64
    )  # survives the offset without rounding
    same(stats.pearson(exact + 2.0**46, other), stats.pearson(exact, other), 1e-14)
    same(stats.pearson(a * 1e200, b * 1e-200), truth, 1e-12)  # squares of these leave float64
    single = (a + 1e6).astype(np.float32)  # float32, summed in float64
    same(
        stats.pearson(single, b),
        [scipy.stats.pearsonr(single[:, g].astype(float), b[:, g])[0] for g in range(20)],
    )


@pytest.mark.parametrize("correlation", [stats.pearson, stats.spearman])
def test_a_gene_without_variation_has_no_correlation(correlation):
    rng = np.random.default_rng(3)
    n = 40
    y = rng.normal(size=n)
    wobble = 1 + rng.integers(-1, 2, n) * np.finfo(np.float64).eps
    wobble32 = (1 + rng.integers(-1, 2, n) * np.finfo(np.float32).eps).astype(np.float32)
    for column in [
        np.zeros(n),
        np.full(n, 0.1),
        0.1 * wobble,
        1e6 * wobble,
        -1e-9 * wobble,
        5 + 1e-13 * rng.random(n),
        np.full(n, 7),
        np.ones(n, bool),
        np.full(n, 0.1, np.float32),
        np.float32(5) * wobble32,
        np.r_[np.nan, y[1:]],
        np.r_[y[1:], np.nan],
        np.r_[y[1:], np.inf],
        np.r_[np.inf, y[1:]],
        np.r_[-np.inf, y[1:]],
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert math.isnan(correlation(column, y)) and math.isnan(correlation(y, column))
            table = correlation(
                np.stack([y, y], 1), np.stack([column, np.arange(n).astype(column.dtype)], 1)
            )
        assert np.isnan(table[0]) and (
            column.dtype == bool or not np.isnan(table[1])
        )  # its neighbour keeps its value
    assert (
        abs(correlation(np.r_[1.0, np.zeros(n - 1)], y)) <= 1
    )  # one sample that differs is variation
    assert not math.isnan(correlation(1 + 1e-9 * y, y))
    for few in (0, 1):
        assert np.isnan(correlation(np.ones((few, 3)), np.ones((few, 3)))).all()


def test_correlation_is_clipped_symmetric_and_blind_to_order_and_scale():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 100, 300))
    order = rng.permutation(100)
    for correlation in (stats.pearson, stats.spearman):
        r = correlation(a, b)
        same(correlation(a[order], b[order]), r, 1e-13)
        same(correlation(b, a), r, 1e-13)
        same(correlation(3 * a - 7, -2 * b), -r, 1e-12)
        assert np.abs(correlation(a, 0.3 * a)).max() <= 1 and np.abs(correlation(a, -a)).max() <= 1


def test_pearson_p_equals_scipy():
    rng = np.random.default_rng(5)
    for n in (3, 4, 10, 44, 1046):
        a, b = rng.normal(size=(2, n, 20))
        theirs = [
            scipy.stats.pearsonr(a[:, g], b[:, g], alternative="greater").pvalue for g in range(20)
        ]
        same(stats.pearson_p(stats.pearson(a, b), n), theirs)


def test_pearson_p_is_the_t_far_into_both_tails():
    for n in (5, 44, 1046, 10514):
        r = np.array([-0.9999, -0.5, -1e-3, 0, 1e-3, 0.1, 0.3, 0.6, 0.9, 0.99])
        t = r * np.sqrt((n - 2) / (1 - r * r))
        np.testing.assert_allclose(
            stats.pearson_p(r, n), scipy.stats.t.sf(t, n - 2), rtol=1e-8, atol=1e-290
        )
    assert 0 < stats.pearson_p(0.95, 400) < 1e-100
    edges = stats.pearson_p(np.array([1, -1, 0, np.nan]), 44)
    same(edges, [0, 1, 0.5, np.nan])
    assert np.isnan(stats.pearson_p(0.5, 2)) and np.isnan(stats.r_threshold(0.05, 2))
    same(
        stats.pearson_p(np.array([0.3, 0.3, 0.3]), np.array([2, 44, 1046])),
        [np.nan, *(stats.pearson_p(0.3, n) for n in (44, 1046))],
    )


def test_the_papers_smallest_significant_r():
    """HE2RNA Results: R_sign = .64 for the 44 cases of DLBC, 30,839 genes; method.md H12."""
    p = 1 - (1 - 0.05) ** (1 / 30839)
    assert f"{p:.2e}" == "1.66e-06"
    assert [round(float(r), 3) for r in stats.r_threshold(p, np.array([44, 1046]))] == [
        0.637,
        0.143,
    ]
    for n in (3, 10, 44, 1046):
        r = np.array([-0.1, 0, 0.1, 0.5])
        same(stats.r_threshold(stats.pearson_p(r, n), n), r, 1e-9)
        t = scipy.stats.t.isf([0.9, 0.5, 0.05, 1e-6, 1e-12], n - 2)
        same(
            stats.r_threshold(np.array([0.9, 0.5, 0.05, 1e-6, 1e-12]), n),
            t / np.sqrt(n - 2 + t * t),
            1e-9,
        )
    best = np.r_[
        stats.r_threshold(1.6e-6, 44), np.zeros(30838)
    ]  # the best of the 30,839 genes, on either side
    assert stats.holm_sidak(stats.pearson_p(best, 44))[0] < 0.05
    best[0] = stats.r_threshold(1.7e-6, 44)
    assert stats.holm_sidak(stats.pearson_p(best, 44))[0] > 0.05


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


def test_adjusted_p_keeps_tiny_p_edges_and_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = stats.holm_sidak(np.array([1e-30, np.nan, 1.0, 0.0, 1.0]))
    assert np.isnan(p[1]) and p[2] == p[4] == 1 and p[3] == 0
    assert p[0] == pytest.approx(3e-30, rel=1e-12, abs=0)  # second of 4: exponent 3
    for adjust in (stats.holm_sidak, stats.benjamini_hochberg):
        rng = np.random.default_rng(7)
        p = rng.random(50) ** 4
        gaps = np.insert(p, [0, 10, 50], np.nan)
        same(adjust(gaps)[~np.isnan(gaps)], adjust(p), 1e-15)
        assert np.isnan(adjust(gaps)[np.isnan(gaps)]).all()
        assert np.isnan(adjust([np.nan, np.nan])).all() and adjust([]).shape == (0,)
        assert (adjust(p) >= p).all() and (adjust(p) <= 1).all()
        order = rng.permutation(50)
        assert (adjust(p[order]) == adjust(p)[order]).all()
        with pytest.raises(ValueError, match="in .0, 1."):
            adjust([0.5, 1.5])


def test_benjamini_hochberg_equals_scipy():
    rng = np.random.default_rng(8)
    for m in (1, 2, 17, 1000):
        for p in (rng.random(m), np.round(rng.random(m) ** 4, 2), np.ones(m), np.zeros(m)):
            same(stats.benjamini_hochberg(p), scipy.stats.false_discovery_control(p), 1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 14, 30, 49, 50, 51, 60, 400])
def test_signed_rank_equals_scipy(n):
    rng = np.random.default_rng(n)
    for shift in (0, 0.3, 3):
        x, y = rng.normal(size=(2, n))
        x += shift
        method = "exact" if n <= 50 else "asymptotic"
        theirs = scipy.stats.wilcoxon(x, y, method=method, correction=True)
        same(stats.wilcoxon_signed_rank(x, y), theirs)
        same(stats.wilcoxon_signed_rank(y, x), theirs)
    steps = rng.choice([-2, -1, 1, 2, 3], n)  # no zero; ties from n = 4 on
    if len(set(abs(steps))) < n:
        same(
            stats.wilcoxon_signed_rank(steps, np.zeros(n)),
            scipy.stats.wilcoxon(steps, method="asymptotic", correction=True),
        )
    zeros = np.r_[0.0, 0.0, rng.normal(size=n)]  # no ties, two zeros
    same(
        stats.wilcoxon_signed_rank(zeros, 0 * zeros),
        scipy.stats.wilcoxon(zeros, method="asymptotic", correction=True),
    )
    both = rng.integers(0, 5, (2, n + 5))
    same(
        stats.wilcoxon_signed_rank(*both),
        scipy.stats.wilcoxon(*both, method="asymptotic", correction=True),
    )


@pytest.mark.parametrize("n", range(1, 9))
def test_signed_rank_equals_all_sign_patterns(n):
    rng = np.random.default_rng(n)
    d = rng.normal(size=n) + 0.5
    ranks = scipy.stats.rankdata(abs(d))
    sums = np.array(
        [ranks[np.array(signs, bool)].sum() for signs in itertools.product([0, 1], repeat=n)]
    )
    w = ranks[d > 0].sum()
    p = min(1, 2 * min((sums <= w).mean(), (sums >= w).mean()))
    same(stats.wilcoxon_signed_rank(d, np.zeros(n)), (min(w, n * (n + 1) / 2 - w), p), 1e-14)


@pytest.mark.parametrize(
    "m,n",
    [(1, 1), (1, 5), (2, 3), (4, 4), (7, 60), (8, 8), (8, 9), (8, 500), (9, 9), (9, 60), (60, 60)],
)
def test_rank_sum_equals_scipy(m, n):
    rng = np.random.default_rng(m + n)
    for x, y in [
        (rng.normal(size=m), rng.normal(size=n)),
        (rng.normal(size=m) + 1.5, rng.normal(size=n)),
        (rng.integers(0, 6, m), rng.integers(0, 6, n)),
        (np.arange(m) + 1000.0, np.arange(n)),
    ]:
        same(stats.wilcoxon_rank_sum(x, y), scipy.stats.mannwhitneyu(x, y))
        same(stats.wilcoxon_rank_sum(y, x), scipy.stats.mannwhitneyu(y, x))


@pytest.mark.parametrize("m,n", [(1, 1), (1, 7), (2, 6), (3, 3), (4, 4), (5, 3), (6, 5)])
def test_rank_sum_equals_all_choices_of_ranks(m, n):
    rng = np.random.default_rng(10 * m + n)
    x, y = rng.normal(size=m) + 0.7, rng.normal(size=n)
    u = sum(i > j for i in x for j in y)
    all_u = np.array(
        [sum(c) - m * (m + 1) / 2 for c in itertools.combinations(range(1, m + n + 1), m)]
    )
    p = min(1, 2 * min((all_u <= u).mean(), (all_u >= u).mean()))
    same(stats.wilcoxon_rank_sum(x, y), (u, p), 1e-13)


def test_wilcoxon_edges_are_defined():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in (1, 5, 80):
            assert stats.wilcoxon_signed_rank(np.ones(n), np.ones(n)) == (0.0, 1.0)
            assert stats.wilcoxon_rank_sum(np.ones(n), np.ones(n)) == (n * n / 2, 1.0)
            assert stats.wilcoxon_signed_rank(np.ones(n), np.zeros(n))[1] <= 1  # all tied, not zero
        for result in [
            stats.wilcoxon_signed_rank([], []),
            stats.wilcoxon_rank_sum([], [1.0]),
            stats.wilcoxon_rank_sum([1.0], []),
            stats.wilcoxon_signed_rank([1.0, np.nan], [0.0, 0.0]),
            stats.wilcoxon_rank_sum([1.0, np.nan], [0.0]),
        ]:
            assert np.isnan(result).all()


def test_roc_auc_equals_counting_all_pairs():
    rng = np.random.default_rng(9)
    for n in (2, 3, 10, 60):
        labels = rng.permutation(np.arange(n) < max(1, n // 3))
        for scores in (rng.normal(size=n) + labels, rng.integers(0, 4, n)):
            pairs = [(p > q) + 0.5 * (p == q) for p in scores[labels] for q in scores[~labels]]
            same(stats.roc_auc(labels, scores), np.mean(pairs), 1e-14)
            same(
                stats.roc_auc(labels.astype(int).tolist(), (-scores).tolist()),
                1 - np.mean(pairs),
                1e-14,
            )
    assert (
        stats.roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    )  # scikit-learn's documented example
    assert (
        math.isnan(stats.roc_auc([1, 1], [0.1, 0.2]))
        and math.isnan(stats.roc_auc([0], [1]))
        and math.isnan(stats.roc_auc([], []))
    )
    assert math.isnan(stats.roc_auc([0, 1, 1], [0.1, np.nan, 2])) and math.isnan(
        stats.roc_auc([0, 1, np.nan], [0, 1, 2])
    )


def test_roc_auc_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(10)
    for scores in (rng.normal(size=500), rng.integers(0, 8, 500)):
        labels = rng.random(500) < 0.2
        same(stats.roc_auc(labels, scores), metrics.roc_auc_score(labels, scores), 1e-12)


def test_roc_and_pr_curves_equal_every_threshold():
    rng = np.random.default_rng(3)
    for n, levels in ((2, 9), (7, 3), (40, 6), (60, 10**6)):
        labels, scores = np.r_[1, 0, rng.integers(0, 2, n - 2)], rng.integers(0, levels, n) / 7
        cuts = np.unique(scores)[::-1]
        hits, chosen = (
            np.array([(part & (scores >= c)).sum() for c in cuts])
            for part in (labels > 0, labels >= 0)
        )
        fpr, tpr = stats.roc_curve(labels, scores)
        recall, precision = stats.pr_curve(labels, scores)
        same(tpr, np.r_[0, hits / labels.sum()])
        same(fpr, np.r_[0, (chosen - hits) / (n - labels.sum())])
        same(recall, tpr)
        same(precision, np.r_[1, hits / chosen])
        same(np.trapezoid(tpr, fpr), stats.roc_auc(labels, scores))
        at = [(scores[labels > 0] >= s).sum() / (scores >= s).sum() for s in scores[labels > 0]]
        same(stats.pr_auc(labels, scores), np.mean(at))
    assert (
        stats.pr_auc([0, 0, 1, 1], [1, 2, 3, 4]) == 1
        and stats.pr_auc([0, 1, 0, 0], [2, 2, 2, 2]) == 0.25
    )
    assert all(
        np.isnan(stats.pr_auc(*bad))
        for bad in (
            ([1, 1], [1, 2]),
            ([0, 0], [1, 2]),
            ([0, 1], [1, np.nan]),
            ([0, np.nan], [1, 2]),
        )
    )


def test_pr_auc_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    for n in (20, 200):
        labels, scores = np.r_[0, 1, rng.integers(0, 2, n - 2)], rng.integers(0, n // 4, n) / 3
        assert stats.pr_auc(labels, scores) == pytest.approx(
            metrics.average_precision_score(labels, scores), abs=1e-12
        )
        fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
        assert np.allclose(stats.roc_curve(labels, scores), (fpr, tpr))


@pytest.mark.parametrize("n_patients,k", [(2, 2), (5, 5), (23, 5), (200, 3), (500, 10)])
def test_patient_folds_balance_every_project_and_do_not_see_row_order(n_patients, k):
    rng = np.random.default_rng(n_patients)
    patients, projects = cohort(rng, n_patients, 6)
    fold = stats.patient_folds(patients, projects, k, seed=1)
    assert fold.shape == patients.shape and fold.dtype.kind == "i" and set(fold) == set(range(k))
    for p in np.unique(patients):
        assert len(set(fold[patients == p])) == 1
    for mine in [np.ones(len(patients), bool)] + [projects == o for o in np.unique(projects)]:
        assert np.ptp(patients_per_fold(patients[mine], fold[mine], k)) <= 1
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


def test_patient_folds_say_what_would_work():
    with pytest.raises(ValueError, match="5 folds of 3 patients.*from 2 to 3"):
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
    """11,564 samples: a fifth of every project's patients in every fold, to one patient; the authors' code is not balanced."""
    patients, projects = tcga_table()
    fold = stats.patient_folds(patients, projects, 5, seed=0)
    assert len(np.unique(projects)) == 36
    assert len(set(zip(patients, fold))) == len(set(patients)) > 10000
    one = np.unique(patients, return_index=True)[1]  # a row per patient
    table = np.array(
        [np.bincount(fold[one][projects[one] == o], minlength=5) for o in np.unique(projects)]
    )  # (36, 5)
    assert np.abs(table - table.sum(1, keepdims=True) / 5).max() < 1 and np.ptp(table.sum(0)) <= 1
    assert table.min() >= 1
    theirs = np.array(
        [
            np.bincount(
                np.searchsorted(np.unique(projects), projects[np.intersect1d(test, one)]),
                minlength=36,
            )
            for _, _, test in stats.authors_folds(patients)
        ]
    ).T
    assert theirs.sum() == table.sum() and np.ptp(theirs, axis=1).max() > 20


@pytest.mark.parametrize("share", [0.1, 0.5, 0.001, 0.999])
def test_inner_split_spreads_whole_patients_over_projects(share):
    rng = np.random.default_rng(11)
    for n_patients in (2, 3, 40, 300):
        patients, projects = cohort(rng, n_patients, 5)
        mask = stats.inner_split(patients, projects, share, seed=3)
        held = set(patients[mask])
        assert mask.dtype == bool and not held & set(patients[~mask])
        assert len(held) == min(max(round(share * n_patients), 1), n_patients - 1)
        for o in np.unique(projects):
            mine = set(patients[projects == o])
            assert abs(len(held & mine) - len(mine) * len(held) / n_patients) < 1
        order = rng.permutation(len(patients))
        assert (
            stats.inner_split(patients[order], projects[order], share, seed=3) == mask[order]
        ).all()
    assert len({tuple(stats.inner_split(patients, projects, 0.1, seed)) for seed in range(5)}) == 5
    single = [
        stats.inner_split(list("abcdefgh"), list("XYYYYYYY"), 0.125, seed)[0] for seed in range(200)
    ]
    assert 5 < sum(single) < 60  # the first project's only patient: 1 in 8


def test_inner_split_of_tcga():
    patients, projects = tcga_table()
    mask = stats.inner_split(patients, projects, 0.1, seed=0)
    for o in np.unique(projects):
        mine = np.unique(patients[projects == o])
        assert abs(len(np.unique(patients[mask & (projects == o)])) - len(mine) / 10) < 1.01


PINNED_FOLDS = [([9], [4, 6, 11]), ([9], [2, 8, 10]), ([3], [1, 7]), ([2], [3, 9]), ([3], [0, 5])]


def test_authors_folds_pinned():
    patients = np.array(list("lkjihgfedcba"))  # sorted inside: a = 0 ... l = 11
    number = np.array([ord(p) - ord("a") for p in patients])
    splits = stats.authors_folds(patients)
    assert [
        (sorted(number[v].tolist()), sorted(number[t].tolist())) for _, v, t in splits
    ] == PINNED_FOLDS
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
        for index, theirs in zip(ours, (train, valid, names[test])):
            assert set(patients[index]) == set(theirs)
            assert (index == np.flatnonzero(np.isin(patients, theirs))).all()


def chance_r(rng, sizes, count):
    """R of unrelated normal samples: (1 + R) / 2 is a Beta; the mean of one R per fold."""
    return np.mean([2 * rng.beta(n / 2 - 1, n / 2 - 1, count) - 1 for n in sizes], 0)


def exact_tail(sizes, r):
    """P(mean of one chance R per fold >= r), by convolution on a fine grid."""
    grid, law = np.linspace(-1, 1, 2**15 + 1), np.ones(1)
    for n in sizes:
        pdf = scipy.stats.beta.pdf((grid + 1) / 2, n / 2 - 1, n / 2 - 1)
        law = scipy.signal.fftconvolve(law, pdf / pdf.sum())
    return law[np.linspace(-1, 1, len(law)) >= r].sum() / law.sum()


def test_null_fit_of_chance_is_the_analytic_t():
    rng, first = np.random.default_rng(0), -np.expm1(np.log1p(-0.05) / 30839)
    for n in (10, 44, 1046):
        mean, fitted = stats.null_fit(chance_r(rng, [n], (10, 30839)))
        assert abs(mean) < 4 / math.sqrt(n * 308390) and fitted == pytest.approx(n, rel=0.02)
        assert stats.null_threshold(first, mean, fitted) == pytest.approx(
            stats.r_threshold(first, n), abs=0.01
        )
    assert (
        round(float(stats.null_threshold(first, 0, 535)), 2) == 0.20
    )  # LUNG's printed R_sign: LUAD's 535 slides alone


@pytest.mark.parametrize("sizes", [(9, 9, 9, 9, 8), (20,) * 5, (209,) * 5])
def test_null_p_of_a_mean_of_folds_is_near_the_exact_one(sizes):
    """Within a factor 2 at 1.7e-6, where counting N = 30,839 null R ends at 3e-5; a normal fit of Fisher's z is further off."""
    null = chance_r(np.random.default_rng(1), sizes, 308390)
    mean, n = stats.null_fit(null)
    for r in np.arange(0.5, 5, 0.5) / math.sqrt(sum(sizes)):
        exact = exact_tail(sizes, r)
        p, z = stats.null_p(r, mean, n), scipy.stats.norm.sf(np.arctanh(r) / np.arctanh(null).std())
        assert 0.5 < p / exact < 1.4 and (
            exact > 1e-3 or abs(math.log(p / exact)) < abs(math.log(z / exact)) + 0.1
        )
        counted = np.mean(null >= r)
        assert exact < 1e-4 or counted == pytest.approx(p, rel=0.3)


def test_a_wide_or_shifted_null_raises_the_threshold():
    rng = np.random.default_rng(2)
    plain = rng.normal(size=20000) * 0.1
    mean, n = stats.null_fit(plain)
    same(
        [mean, n], [plain.mean(), 1 + 1 / plain.var()], 0.02
    )  # the tail of a normal is where its SD says
    same(stats.null_fit(plain + 0.2), [mean + 0.2, n], 1e-9)
    mixed = (
        np.where(rng.random(20000) < 0.1, 3, 1) * plain
    )  # one gene in ten scatters three times as much
    mean, n = stats.null_fit(mixed)
    assert (
        n < 1 + 1 / mixed.var() - 5
        and (mixed > stats.null_threshold(0.01, mean, n)).mean() <= 0.0105
    )
    r = np.array([0.1, 0.5, 0.9])
    same(stats.null_threshold(stats.null_p(r, 0.05, 40), 0.05, 40), r, 1e-9)


def test_null_edges():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for null in ([], [np.nan], [0.3], [0.3, 0.3, np.nan]):
            assert np.isnan(stats.null_fit(np.array(null, float))).all()
        same(
            stats.null_fit(np.array([[0.1, np.nan], [-0.1, 0.2]])),
            stats.null_fit(np.array([0.1, -0.1, 0.2])),
        )
        same(stats.null_p(np.array([1, -1, np.nan]), 0, 44), [0, 1, np.nan])
        assert (
            stats.null_p(-1, 0.1, 44) == 1
            and stats.null_p(1, 0.1, 44) == 0
            and 0 < stats.null_p(0.95, -0.06, 3.4) < 0.1
        )
        assert np.isnan(stats.null_p([0.5], math.nan, math.nan)).all() and np.isnan(
            stats.null_p(0.5, *stats.null_fit([-1, 1]))
        )
        assert 0.9 < stats.null_threshold(1e-9, 0.9, 10) < 1 and np.isnan(
            stats.null_threshold(0.05, 0, 2)
        )


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
            r.append(stats.pearson(prediction[rows[shuffle.permutation(len(rows))]], truth[rows]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(row, np.nanmean(r, 0), 1e-12)
    assert np.isnan(null[:, 5]).all() and not np.isnan(null[:, 6:8]).any()
    assert np.isnan(stats.permutation_null(prediction[:2], truth[:2], fold[:2], 2, rng)).all()


def test_permutation_null_scatters_as_permutations_do_and_ignores_signal():
    """Over permutations R has mean 0 and variance 1 / (n - 1), exactly, whatever the values: five slides, all 120 orders."""
    rng = np.random.default_rng(5)
    x, y = rng.exponential(size=(2, 5))
    every = [stats.pearson(np.array(order), y) for order in itertools.permutations(x)]
    same([np.mean(every), np.var(every)], [0, 1 / 4], 1e-12)
    truth, fold = rng.exponential(size=(50, 60)), np.arange(50) % 5
    null = stats.permutation_null(truth, truth, fold, 1500, rng)
    same([null.mean(), null.var()], [0, 1 / 9 / 5], 0.003)
    p = stats.null_p(
        stats.pearson(truth + 0.5 * rng.normal(size=truth.shape), truth), *stats.null_fit(null)
    )
    assert (stats.holm_sidak(p) < 0.05).mean() > 0.9


def test_recurrent_counts():
    significant = np.random.default_rng(6).random((5, 40)) < 0.4
    per_gene, at_least = stats.recurrent(significant)
    assert per_gene.tolist() == [sum(column) for column in significant.T.tolist()]
    assert at_least.tolist() == [sum(g >= c for g in per_gene) for c in (1, 2, 3, 4, 5)]
    per_gene, at_least = stats.recurrent(np.zeros((0, 3), bool))
    assert per_gene.tolist() == [0, 0, 0] and at_least.tolist() == []


def test_fisher_enrichment_equals_scipy_and_the_lady_tasting_tea():
    cups = range(8)
    assert stats.fisher_enrichment([0, 1, 2, 3], [0, 1, 2, 3], cups) == pytest.approx(
        1 / 70, rel=1e-12
    )  # Fisher 1935
    assert stats.fisher_enrichment([0, 1, 2, 3], [0, 1, 2, 7], cups) == pytest.approx(
        17 / 70, rel=1e-12
    )
    rng = np.random.default_rng(7)
    for n in (1, 2, 9, 60, 500):
        for _ in range(15):
            hits, members = (
                rng.choice(n, rng.integers(0, n + 1), replace=False).tolist() for _ in range(2)
            )
            a = len(set(hits) & set(members))
            table = [[a, len(hits) - a], [len(members) - a, n - len(hits) - len(members) + a]]
            ours = stats.fisher_enrichment(hits, members, range(n))
            same(ours, scipy.stats.fisher_exact(table, alternative="greater")[1], 1e-9)


def test_hypergeometric_tail_is_exact_far_out_and_near_one():
    for overlap, size, n_hits, n in [
        (50, 100, 300, 2000),
        (120, 200, 156, 30839),
        (3, 200, 1500, 3000),
        (90, 200, 1500, 3000),
        (200, 200, 1500, 3000),
        (1, 5, 1, 5),
        (8, 9, 9, 10),
        (9, 9, 9, 10),
        (0, 0, 3, 9),
    ]:
        exact = Fraction(
            sum(
                math.comb(size, k) * math.comb(n - size, n_hits - k)
                for k in range(overlap, min(size, n_hits) + 1)
            ),
            math.comb(n, n_hits),
        )
        assert stats.hypergeometric_tail(overlap, size, n_hits, n) == pytest.approx(
            float(exact), rel=1e-8, abs=0
        )


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
    assert stats.fisher_enrichment(["a", "a", "x"], ["a", "y", "a"], iter(genes)) == pytest.approx(
        1 / 3
    )  # strangers, twice


def test_enrichment_is_fisher_of_each_set_and_leaves_out_what_cannot_be_tested():
    rng = np.random.default_rng(8)
    universe = [f"g{i}" for i in range(400)]
    sets = {
        f"s{i}": [f"g{j}" for j in rng.choice(600, rng.integers(1, 80), replace=False)]
        for i in range(50)
    }
    sets |= {"empty": [], "not measured": ["x", "g599"], "planted": universe[:30]}
    hits = universe[:25] + universe[200:240] + ["x"]
    table = stats.enrichment(hits, sets, universe)
    for i, (name, genes) in enumerate(sets.items()):
        measured = set(genes) & set(universe)
        if not measured:
            assert (
                np.isnan([table[k][i] for k in ("fold", "p", "bh")]).all()
                and table["size"][i] == table["expected"][i] == 0
            )
            continue
        assert table["size"][i] == len(measured) and table["overlap"][i] == len(
            measured & set(hits)
        )
        same(table["expected"][i], len(measured) * 65 / 400)
        same(table["fold"][i], table["overlap"][i] / table["expected"][i])
        same(table["p"][i], stats.fisher_enrichment(hits, genes, universe))
    tested = ~np.isnan(table["p"])
    assert tested.sum() >= 49 and not tested[50] and not tested[51]
    assert list(sets)[np.nanargmin(table["p"])] == "planted"
    same(table["bh"][tested], scipy.stats.false_discovery_control(table["p"][tested]))
    for hits in ([], universe):  # the overlap is forced
        table = stats.enrichment(hits, sets, universe)
        assert (table["p"][tested] == 1).all() and (table["bh"][tested] == 1).all()
    assert np.isnan(stats.enrichment([], sets, universe)["fold"]).all()
    assert (
        stats.enrichment(["a"], {}, ["a"])["p"].shape == (0,)
        and np.isnan(stats.enrichment([], {"s": ["a"]}, [])["p"]).all()
    )


def test_combine_sets():
    assert stats.combine_sets([("c", "a", "b"), ["b", "d", "b"], {"a", "e"}]) == ("a", "b")
    assert (
        stats.combine_sets([("c", "a")]) == ("c", "a")
        and stats.combine_sets([]) == ()
        and stats.combine_sets([(), ()]) == ()
    )
    assert stats.combine_sets([("a", "a"), ("b",)]) == () and stats.combine_sets(
        [("a", "b"), ("b", "c")], 1
    ) == ("a", "b", "c")
    assert stats.combine_sets([("a", "b"), ("b",), ("b", "a")], 3) == ("b",)


def test_signatures_of_the_paper():
    """Table 2: six pathways of 18 sets; those of MSigDB that are here have the printed names."""
    assert len(stats.SIGNATURES) == 6 and sum(map(len, stats.SIGNATURES.values())) == 18
    if not REAL_DATA:
        pytest.skip("REAL_DATA is not set")
    sets = {}
    for file in ("h.all.v6.2", "c5.bp.v6.2", "c2.cp.kegg.v7.5.1"):
        sets |= read_sets([os.path.join(REAL_DATA, "genesets", f"{file}.symbols.gmt")])
    assert len(sets) == 50 + 4436 + 186
    missing = {s for names in stats.SIGNATURES.values() for s in names} - set(sets)
    assert {s.split("_")[0] for s in missing} == {"BIOCARTA", "REACTOME"} and len(missing) == 6
    assert len(
        stats.combine_sets([sets[s] for s in stats.SIGNATURES["B cell-mediated immunity"]])
    ) == len(sets["GO_B_CELL_MEDIATED_IMMUNITY"])


def test_random_list_test_equals_the_loop_and_the_hypergeometric():
    rng = np.random.default_rng(9)
    m, cancers, n_lists = 500, 4, 4000
    r = 0.2 + 0.1 * rng.normal(size=(m, cancers))
    r[:40] += 0.02  # a signature, weakly better
    r[rng.random((m, cancers)) < [0, 0, 0.2, 0.5]] = np.nan  # two cancers share their genes
    significant = r > 0.25
    members = np.zeros((3, m), bool)
    members[0, :40], members[1, 100:400], members[2, 490:] = True, True, True
    ours = stats.random_list_test(r, significant, members, n_lists, rng)
    for i, c in itertools.product(range(3), range(cancers)):
        genes = np.flatnonzero(~np.isnan(r[:, c]))
        own = np.intersect1d(genes, np.flatnonzero(members[i]))
        assert ours["size"][i, c] == len(own)
        theirs = random_list_loop(r[:, c], significant[:, c], np.flatnonzero(members[i]), 300, rng)
        same([ours["r"][i, c], ours["share"][i, c]], theirs[:2], 1e-12)
        spread = (
            r[genes, c].std() / math.sqrt(len(own)) * math.sqrt(1 - len(own) / len(genes)) + 1e-12
        )
        assert abs(ours["r_random"][i, c] - r[genes, c].mean()) < 5 * spread / math.sqrt(n_lists)
        assert abs(theirs[2] - r[genes, c].mean()) < 5 * spread / math.sqrt(300)
        assert abs(ours["share_random"][i, c] - significant[genes, c].mean()) < 0.01
        for p, loop in ((ours["p_r"][i, c], theirs[4]), (ours["p_share"][i, c], theirs[5])):
            assert abs(p - loop) < 5 * math.sqrt(p * (1 - p) / 300) + 1 / 300
        exact = stats.hypergeometric_tail(
            significant[own, c].sum(), len(own), significant[genes, c].sum(), len(genes)
        )
        assert (
            abs(ours["p_share"][i, c] - exact)
            < 5 * math.sqrt(exact * (1 - exact) / n_lists) + 1 / n_lists
        )


def test_random_list_p_equals_all_lists():
    """Eight genes, lists of three: all 56."""
    r = np.array([0.9, 0.1, 0.5, np.nan, 0.3, 0.7, 0.2, 0.4, 0.4])[:, None]
    rest = np.delete(r[:, 0], 3)
    every = np.array([np.mean(c) for c in itertools.combinations(rest, 3)])
    members = np.zeros((2, 9), bool)
    members[0, [0, 3, 4, 5]], members[1, [2, 7, 8]] = True, True  # one without R, and one with ties
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
        assert lists.shape == (3000, len(members)) and all(
            len(set(row)) == len(row) for row in lists.tolist()
        )
        assert (np.sort(b[lists], 1) == np.sort(b[members])).all()  # the same number of each bin
        expected = (
            np.bincount(b[members], minlength=5) / np.maximum(np.bincount(b, minlength=5), 1)
        )[b] * 3000
        assert (
            np.abs(np.bincount(lists.ravel(), minlength=100) - expected)
            < 5 * np.sqrt(expected) + 1e-9
        ).all()
        assert len(np.unique(np.sort(lists, 1), axis=0)) > 2900
    level = np.array([3.0, 1.0, 1.0, 2.0, 9.0])
    assert (
        stats.expression_bins(level, 5).tolist() == [3, 0, 1, 2, 4]
        and stats.expression_bins(level, 1).tolist() == [0] * 5
    )


def test_matched_lists_take_away_what_expression_explains():
    rng = np.random.default_rng(12)
    level = rng.random(2000)
    r = (0.3 * level + 0.05 * rng.normal(size=2000))[
        :, None
    ]  # R follows expression, and nothing else
    members = (rng.random(2000) < 0.1 * level)[None]
    plain = stats.random_list_test(r, r > 0.2, members, 2000, rng)
    matched = stats.random_list_test(r, r > 0.2, members, 2000, rng, stats.expression_bins(level))
    assert plain["p_r"] < 0.01 < matched["p_r"] and plain["r"] == matched["r"]
    assert abs(matched["r_random"] - matched["r"]) < 0.3 * abs(plain["r_random"] - plain["r"])


def test_random_list_edges():
    rng = np.random.default_rng(13)
    r = rng.random((20, 3))
    r[:, 1] = np.nan  # a cancer without any R
    r[5:, 2] = np.nan
    members = np.zeros((4, 20), bool)
    members[1], members[2, :5], members[3, 10:] = (
        True,
        True,
        True,
    )  # empty; every gene; five; not measured in cancer 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = stats.random_list_test(r, r > 0.5, members, 50, rng)
    assert ours["size"].tolist() == [[0, 0, 0], [20, 0, 5], [5, 0, 5], [10, 0, 0]]
    for key in ("r", "share", "r_random", "share_random", "p_r", "p_share"):
        assert (np.isnan(ours[key]) == (ours["size"] == 0)).all()
    assert (
        ours["p_r"][1, 0] == ours["p_r"][1, 2] == ours["p_r"][2, 2] == ours["p_share"][1, 0] == 1
    )  # the list itself, always
    same(ours["r"][1, 0], ours["r_random"][1, 0])
    constant = stats.random_list_test(
        np.full((20, 1), 0.1), np.zeros((20, 1), bool), members[2:3], 50, rng
    )
    assert constant["p_r"] == constant["p_share"] == 1
    best = stats.random_list_test(
        np.arange(2000.0)[:, None],
        np.zeros((2000, 1), bool),
        (np.arange(2000) > 1990)[None],
        999,
        rng,
    )
    assert best["p_r"] == 1 / 1000  # never 0
    assert stats.random_list_test(r, r > 0.5, members[:0], 50, rng)["p_r"].shape == (0, 3)


def test_bootstrap_r_equals_repeating_the_rows():
    rng = np.random.default_rng(14)
    who = rng.integers(0, 25, 60)
    truth = rng.normal(size=(60, 270)) + rng.normal(size=(25, 270))[who]
    prediction = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    prediction[:, 3], truth[who % 3 == 1, 4], fold = 2, 7, np.where(who == 24, 9, who % 3)
    low, high = stats.bootstrap_r(prediction, truth, who, fold, 40, np.random.default_rng(15))
    times = stats.patient_draws(who, 40, np.random.default_rng(15)).astype(int)
    draws = []
    for t in times:
        r = []
        for f in range(3):
            rows = np.repeat(np.flatnonzero(fold == f), t[fold == f])
            r.append(stats.pearson(prediction[rows], truth[rows]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draws.append(np.nanmean(r, 0))
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
    assert (
        np.mean(high - low) == pytest.approx(theory, rel=0.08)
        and ((low < 0.5) & (0.5 < high)).mean() > 0.87
    )
    four = np.arange(400) // 4  # four slides of a patient, all alike
    copies = stats.bootstrap_r(prediction[four], truth[four], four, four % 5, 500, rng)
    assert np.mean(copies[1] - copies[0]) == pytest.approx(2 * theory, rel=0.15)


def test_bootstrap_edges():
    rng = np.random.default_rng(17)
    x = rng.normal(size=(6, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for patients, fold in (
            (["a"] * 6, np.zeros(6)),
            (list("abcdef"), np.arange(6)),
        ):  # one patient; folds of one slide
            assert np.isnan(stats.bootstrap_r(x, x, patients, fold, 20, rng)).all()
        low, high = stats.bootstrap_r(
            x, x, list("abcdef"), np.zeros(6), 200, rng
        )  # draws of one patient have no R
        same(low, 1) and same(high, 1)
        for labels, scores, patients in (
            ([1, 1], [0.1, 0.2], "ab"),
            ([1, 0], [0.1, 0.2], "aa"),
            ([1, 0], [0.1, np.nan], "ab"),
            ([], [], ""),
        ):
            assert np.isnan(
                stats.bootstrap(stats.roc_auc, (labels, scores), list(patients), 20, rng)
            ).all()


def test_bootstrap_auc_equals_repeating_the_rows():
    rng = np.random.default_rng(18)
    who = rng.integers(0, 20, 50)
    labels, scores = rng.random(50) < 0.4, rng.integers(0, 9, 50)  # with ties
    times = stats.patient_draws(who, 60, np.random.default_rng(19)).astype(int)
    aucs = [stats.roc_auc(np.repeat(labels, t), np.repeat(scores, t)) for t in times]
    same(
        stats.bootstrap(stats.roc_auc, (labels, scores), who, 60, np.random.default_rng(19)),
        np.nanpercentile(aucs, [2.5, 97.5]),
    )
    assert (times.sum(1) != 50).any() and all(
        len(set(t[who == p])) == 1 for t in times for p in set(who.tolist())
    )
    few = [1, 0, 0], [3, 1, 2], ["a", "b", "c"]  # many draws have one class only
    same(stats.bootstrap(stats.roc_auc, few[:2], few[2], 200, rng), (1, 1))


def test_bootstraps_of_pr_auc_and_means_equal_repeating_the_rows():
    rng = np.random.default_rng(21)
    who = np.array(list("aabbbcdefgh"))
    labels, scores = np.array([0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0]), rng.integers(0, 5, 11) / 3
    draws = stats.patient_draws(who, 80, np.random.default_rng(5)).astype(int)
    again = [np.repeat(np.arange(11), d) for d in draws]
    same(
        stats.bootstrap(stats.pr_auc, (labels, scores), who, 80, np.random.default_rng(5)),
        np.nanpercentile([stats.pr_auc(labels[r], scores[r]) for r in again], [2.5, 97.5]),
    )
    same(
        stats.bootstrap(np.mean, [scores], who, 80, np.random.default_rng(5)),
        np.percentile([scores[r].mean() for r in again], [2.5, 97.5]),
    )
    assert np.isnan(
        stats.bootstrap(stats.pr_auc, ([1, 1, 1], [1, 2, 3]), list("abc"), 9, rng)
    ).all()
    assert (
        np.isnan(stats.bootstrap(stats.pr_auc, ([0, 1], [1, 2]), list("aa"), 9, rng)).all()
        and np.isnan(stats.bootstrap(np.mean, [[1, 0]], "aa", 9, rng)).all()
    )


def test_random_baseline_lies_in_the_range_and_correlates_with_nothing():
    rng = np.random.default_rng(20)
    truth = rng.exponential(size=(153, 2000))
    truth[0, 3] = np.nan
    baseline = stats.random_baseline(truth, rng)
    low, high = np.nanpercentile(truth, [5, 95], axis=0)
    genes = np.delete(np.arange(2000), 3)
    assert (
        np.isnan(baseline[:, 3]).all() and ((low <= baseline) & (baseline <= high))[:, genes].all()
    )
    position = ((baseline - low) / (high - low))[:, genes]
    assert scipy.stats.kstest(position[::7].ravel(), "uniform").pvalue > 1e-4
    r = stats.pearson(baseline, truth)[genes]
    same([r.mean(), r.std()], [0, 1 / math.sqrt(152)], 0.005)  # .081; Fig. 4 prints .15: n = 45
    assert (
        stats.random_baseline(np.ones((9, 2)), rng) == 1
    ).all()  # a constant gene, a constant guess


def test_against_baseline_equals_scipy_gene_by_gene():
    rng = np.random.default_rng(21)
    truth = rng.normal(size=(80, 60))
    prediction = truth + rng.normal(size=60) + rng.normal(size=truth.shape)
    baseline = stats.random_baseline(truth, rng)
    prediction[:, 5], prediction[2, 6] = baseline[:, 5], np.nan
    prediction[:3, 7] = baseline[:3, 7]  # pairs without a difference
    ours = stats.against_baseline(prediction, truth, baseline)
    errors = np.abs(prediction - truth), np.abs(baseline - truth)
    for g in range(60):
        if g == 5:
            assert ours["p"][g] == ours["error_p"][g] == 1 and not ours["better"][g]
        elif g == 6:
            assert (
                np.isnan([ours[k][g] for k in ("p", "bh", "error_p", "error_bh")]).all()
                and not ours["better"][g]
            )
        else:
            how = dict(method="asymptotic", correction=True)
            same(ours["p"][g], scipy.stats.wilcoxon(prediction[:, g], baseline[:, g], **how).pvalue)
            same(
                ours["error_p"][g],
                scipy.stats.wilcoxon(errors[0][:, g], errors[1][:, g], **how).pvalue,
            )
            d = errors[0][:, g] - errors[1][:, g]
            d, ranks = d[d != 0], scipy.stats.rankdata(abs(d[d != 0]))
            assert ours["better"][g] == (ranks[d < 0].sum() > ranks[d > 0].sum())
    real = np.arange(60) != 6
    for p, bh in (("p", "bh"), ("error_p", "error_bh")):
        same(ours[bh][real], scipy.stats.false_discovery_control(ours[p][real]))


def test_the_papers_test_is_of_location_not_of_skill():
    rng = np.random.default_rng(22)
    even, skewed = rng.random((150, 40)), rng.exponential(size=(150, 40))
    perfect = stats.against_baseline(even, even, stats.random_baseline(even, rng))
    assert (
        (perfect["bh"] > 0.05).mean() > 0.9
        and (perfect["error_bh"] < 1e-10).all()
        and perfect["better"].all()
    )
    mean = np.broadcast_to(skewed.mean(0), skewed.shape)  # predicts nothing
    assert (
        stats.against_baseline(mean, skewed, stats.random_baseline(skewed, rng))["bh"] < 0.05
    ).mean() > 0.9


def test_r_against_baseline_equals_scipy():
    rng = np.random.default_rng(23)
    a, b = rng.normal(size=200), rng.normal(size=150) + 0.3
    same(
        stats.r_against_baseline(np.insert(a, [0, 9], np.nan), np.append(b, np.nan)),
        scipy.stats.mannwhitneyu(a, b),
    )
    assert np.isnan(stats.r_against_baseline([np.nan], [0.1])).all()
