"""Edges of stats.py, and what is ours alone: intervals, random lists, inner splits.

The rest is in test_all.py. Authorities: SciPy, exact fractions, counting everything.
"""

import itertools
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats

import stats
from lab.tests.helpers import patients_of_projects, same


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


# ----- Correlation and its p ---------------------------------------------------------------------


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


# ----- Several tests at once ---------------------------------------------------------------------


def test_holm_sidak_worked_example():
    """By hand, m = 3: 1-.99^3, 1-.96^2, and 1-.95^1 = .05 raised to the step before."""
    same(stats.holm_sidak([0.05, 0.01, 0.04]), [0.0784, 0.029701, 0.0784], 1e-12)


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


# ----- Wilcoxon's tests --------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 9))
def test_signed_rank_equals_all_sign_patterns(n):
    d = np.random.default_rng(n).normal(size=n) + 0.5
    ranks = scipy.stats.rankdata(abs(d))
    patterns = itertools.product([False, True], repeat=n)
    sums = np.array([ranks[list(signs)].sum() for signs in patterns])
    w = ranks[d > 0].sum()
    p = min(1, 2 * min((sums <= w).mean(), (sums >= w).mean()))
    same(stats.wilcoxon_signed_rank(d, np.zeros(n)), (min(w, n * (n + 1) / 2 - w), p), 1e-14)


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


# ----- ROC and precision-recall ------------------------------------------------------------------


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


# ----- Nulls of R --------------------------------------------------------------------------------


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


# ----- Gene sets ---------------------------------------------------------------------------------


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


def test_enrichment_of_nothing_and_of_everything():
    universe = [f"g{i}" for i in range(40)]
    sets = {"some": universe[:9], "all": universe, "empty": [], "not measured": ["x"]}
    tested = np.array([True, True, False, False])
    for hits in ([], universe):  # the overlap is forced
        forced = stats.enrichment(hits, sets, universe)
        assert (forced["p"][tested] == 1).all() and (forced["bh"][tested] == 1).all()
        assert np.isnan(forced["p"][~tested]).all()
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


# ----- Intervals over patients --------------------------------------------------------------------


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
def test_auc_interval_edges(strict, labels, scores, patients):
    assert np.isnan(stats.auc_interval(labels, scores, list(patients))).all()


def test_intervals_of_few_patients(strict):
    low, high = stats.auc_interval([1, 0], [0.2, 0.1], ["a", "b"])  # one of each, and no more
    assert low < 0.4 and high == 1
    three = stats.auc_interval([1, 1, 1, 0, 0], [3, 3, 3, 1, 2], list("aaabc"))
    assert three[0] < stats.auc_interval([1, 1, 1, 0, 0], [3, 3, 3, 1, 2], list("abcde"))[0]


def test_r_interval_sees_patients_and_has_edges(strict):
    rng = np.random.default_rng(16)
    truth = rng.normal(size=(100, 40))
    prediction = 0.5 * truth + rng.normal(size=truth.shape)
    patients, fold = np.arange(100), np.arange(100) % 5
    ours = stats.r_interval(prediction, truth, patients, fold)
    four = np.arange(400) // 4  # four slides of a patient, all alike
    same(stats.r_interval(prediction[four], truth[four], four, four % 5), ours, 1e-9)
    prediction[:, 3], truth[7, 4] = 2, np.nan
    low, high = stats.r_interval(prediction, truth, patients, fold)
    assert np.isnan([low[3:5], high[3:5]]).all() and not np.isnan(np.delete(low, [3, 4])).any()
    x = rng.normal(size=(6, 2))
    one_patient = stats.r_interval(x, x, ["a"] * 6, np.zeros(6))
    folds_of_one = stats.r_interval(x, x, list("abcdef"), np.arange(6))
    assert np.isnan(one_patient).all() and np.isnan(folds_of_one).all()
    same(stats.r_interval(x, x, list("abcdef"), np.zeros(6)), np.ones((2, 2)), 1e-6)


# ----- Folds by patient --------------------------------------------------------------------------


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


@pytest.mark.parametrize("share", [0.1, 0.5, 0.001, 0.999])
def test_inner_split_spreads_whole_patients_over_projects(share):
    rng = np.random.default_rng(11)
    for n_patients in (2, 3, 40, 300):
        patients, projects = patients_of_projects(rng, n_patients, 5)
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
