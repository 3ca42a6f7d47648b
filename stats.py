"""The statistics of HE2RNA and HistCode, each written out.

HE2RNA    Schmauch et al. 2020, Nat Commun 11:3877, doi 10.1038/s41467-020-17678-4
          (tags name sections and figures of the preprint, bioRxiv doi 10.1101/760173)
HistCode  Huang et al. 2022, arXiv:2204.11994

Functions of arrays, without state; numpy and scipy alone (scipy for ranks, the gamma function and
the normal and beta laws). To copy one out, take along the imports and all names after "Needs:" in
its docstring; where it has no such line, the names in its body and in theirs.

    r = stats.pearson(predicted, measured)          # (n, G), (n, G) -> (G,)
    p = stats.holm_sidak(stats.pearson_p(r, n))     # significant where p < .05
    stats.r_threshold(1.66e-6, 44)                  # .637, the paper's R_sign of 44 slides
    fold = stats.patient_folds(patients, projects, 5, seed=0)     # fold 0 tests fold == 0

In order: correlation and its p; several tests at once; Wilcoxon's tests; ROC and precision-recall;
nulls of R; gene sets; intervals; HistCode's random baseline; folds by patient.

Without a function here: means, SD, and HE2RNA's 68 % bands over random splits (Fig. 5b); HistCode's
accuracy, and its fold changes by bins of R (Fig. 7); HistCode's five splits in 80/10/10 %, whose
test parts together hold at most half of the patients, so they are no `patient_folds`.

Glossary: n samples (slides), G genes, g genes of one block, m tests, k folds, P patients, C
cancers, S gene sets, s genes of one set, M models or permutations of a null. R, in code r: a
Pearson correlation; R_sign: the R from which a gene is significant in a cancer. fold: the number of
each sample's test fold (a ratio in `enrichment` alone). which: the place of each sample's name
among the sorted names. "nan" always means "no value": it is never 0, never significant, and never
counted as a test.

Tags: [HE2RNA ...], [HistCode ...] the paper says it; [HE2RNA code] only the authors' code does;
[SciPy] the rule of SciPy 1.17, followed so that numbers can be checked against it; [ours] we chose.
The tag of a section holds for each function in it that has none of its own.
"""

import functools
import math

import numpy as np
from scipy import special

CONSTANT = 1e-13  # relative spread of a float64 column that is only rounding [SciPy, which warns]
TIED = 1e-9  # a difference of R or of shares, or a relative variance, that is only rounding [ours]
MIN_R = 3  # samples, at least, of a fold that has an R [ours]
GENE_BLOCK = 256  # genes at a time: 20 MB for 10,000 samples [ours]
EXACT_SIGNED_RANK = 50  # pairs, at most, for the exact signed-rank test [SciPy]
EXACT_RANK_SUM = 8  # size of the smaller group, at most, for the exact rank-sum test [SciPy]
NULL_TAIL = 0.99  # quantile of a null that its fit must reach [ours]
N_LISTS = 10_000  # random gene lists a signature [HE2RNA Methods, Statistics and reproducibility]
LIST_BLOCK = 1000  # lists at a time, to spare memory [ours]
EXPRESSION_BINS = 25  # groups of genes of like mean expression [ours]
CERTAIN = 1 - 1e-9  # the largest R or share that has a logit here [ours]
INTERVAL = (0.025, 0.975)  # quantiles of a 95 % interval [ours]
BASELINE_RANGE = (0.05, 0.95)  # "5%-95% range of the real", read as quantiles [HistCode Results]
AUTHORS_FOLDS = 5  # of the cross-validation [HE2RNA Methods, Training and evaluation]
AUTHORS_VALID = 0.1  # share of the other patients, for early stopping [HE2RNA code]


# ----- Correlation and its p  [HE2RNA Results; HistCode Results] ----------------------------------


def pearson(a, b):
    """Pearson R of each gene: column j of a with column j of b.

    a, b (n, G) -> (G,) float64 in [-1, 1]; or (n,), (n,) -> float. nan where n < 2, and where one
    of the two columns is constant to rounding or holds a NaN or an infinity [ours]. Call it for one
    cancer at a time: over pooled cancers R measures the recognition of the organ [HE2RNA Methods,
    Training and evaluation]. The paper's R of a gene is the `mean_of_folds` of R in each test fold.

    Needs: CONSTANT, GENE_BLOCK, _cosines, gene_blocks, floats, unit_columns, _varies.
    """
    return _cosines(a, b, unit_columns)


def spearman(a, b):
    """Spearman rho of each gene: R of the ranks, where ties share their mean rank. As `pearson`.

    [HistCode Results, Fig. 6]

    Needs: CONSTANT, GENE_BLOCK, _cosines, gene_blocks, floats, rankdata, unit_columns, unit_ranks,
    _varies.
    """
    return _cosines(a, b, unit_ranks)


def _cosines(a, b, unit):
    """R: the cosine of two columns, once `unit` has centred them and made them of length 1.

    unit: `unit_columns` for Pearson's R, `unit_ranks` for Spearman's.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim not in (1, 2):
        raise ValueError(f"R of arrays of shapes {a.shape} and {b.shape}: (n, G) twice is wanted")
    if a.ndim == 1:
        return float(_cosines(a[:, None], b[:, None], unit)[0])
    r = np.full(a.shape[1], np.nan)  # (G,)
    if len(a) < 2:
        return r
    for block in gene_blocks(a.shape[1]):
        x, y = unit(a[:, block]), unit(b[:, block])
        r[block] = np.clip((x * y).sum(0), -1, 1)
    return r


def gene_blocks(n_genes):
    """Slices of GENE_BLOCK genes, so that no second copy of a cohort stands in memory. [ours]"""
    for start in range(0, n_genes, GENE_BLOCK):
        yield slice(start, start + GENE_BLOCK)


def floats(x):
    """Any list of numbers as an array of float64."""
    return np.asarray(x, np.float64)


def unit_columns(x):
    """Columns centred, then of length 1; nan where one does not vary. (n, G) -> (n, G) float64."""
    varies = _varies(x)
    with np.errstate(all="ignore"):  # 0 / 0 and inf - inf only where the answer is nan
        x = x - floats(x[0])  # exact for nearly equal numbers, so a large offset costs no digits
        x -= x.mean(0)
        x /= np.abs(x).max(0)  # so that the squares of 1e200 and 1e-200 stay in range
        x /= np.sqrt((x * x).sum(0))
    x[:, ~varies] = np.nan
    return x


def rankdata(x, **how):
    """As scipy.stats.rankdata, which is imported here: all of scipy.stats takes half a second."""
    from scipy.stats import rankdata as ranks

    return ranks(x, **how)


def unit_ranks(x):
    """`unit_columns` of the ranks of each column. (n, G) -> (n, G) float64."""
    ranks = rankdata(x, axis=0)
    ranks[:, ~_varies(x)] = np.nan  # ranks would magnify what is only rounding
    return unit_columns(ranks)


def _varies(x):
    """Whether a column spreads by more than rounding; False with NaN or infinity. (G,) bool."""
    rounding = CONSTANT
    if x.dtype.kind == "f":  # float32 and float16 round sooner
        rounding = max(CONSTANT, 4 * np.finfo(x.dtype).eps)
    low, high = floats(x.min(0)), floats(x.max(0))  # (G,)
    size = np.maximum(np.abs(low), np.abs(high))
    with np.errstate(invalid="ignore"):  # inf - inf
        return high - low > rounding * size  # inf > inf, or any NaN: False


def pearson_p(r, n):
    """One-sided p of R: the chance of an R at least as high when nothing is correlated.

    r (G,) or a number; n samples behind one R, a number or (G,) -> p of the same shape; nan for nan
    and for n < 3. The paper compares R with those of an untrained model, but not in a formula
    [HE2RNA Methods, Statistics and reproducibility]; for that there is `null_p`. This textbook test
    gives the R_sign that the paper prints for 44 slides (`r_threshold`) [ours].
    For independent normal samples, Student's t = R sqrt((n - 2) / (1 - R^2)) has n - 2 degrees of
    freedom. That is the same as (1 - R) / 2 ~ Beta(n/2 - 1, n/2 - 1): one formula, whose p keeps
    its digits where it is 1e-300. Slides of one patient count singly, as in the paper, but are not
    independent: with many of them p is too small.

    Needs: floats, _beta_shape.
    """
    shape = _beta_shape(n)
    return special.betainc(shape, shape, (1 - floats(r)) / 2)


def r_threshold(p, n):
    """The smallest R whose one-sided p (`pearson_p`) is at most p. Shapes broadcast.

    R_sign of a cancer with m genes: the R of the first Holm–Šidák step, p = 1 - (1 - .05)^(1/m)
    [ours]. For 30,839 genes p is 1.66e-6. At n = 44 R_sign is .637, and the paper prints .64
    (two-sided it would be .652). At n = 1,046 it is .143, and the paper prints .20, which fits n
    from 507 to 560, as of one subtype (535, 511). Later steps ask for less: .139 after the 15,391
    genes there. [HE2RNA Results]

    Needs: floats, _beta_shape.
    """
    shape = _beta_shape(n)
    return 1 - 2 * special.betaincinv(shape, shape, floats(p))


def _beta_shape(n):
    """Both parameters of the beta law of (1 - R) / 2: half of n - 2, or nan for n < 3."""
    n = floats(n)
    return np.where(n >= 3, n / 2 - 1, np.nan)


def rows_of_folds(fold):
    """Rows of each fold that has enough of them (MIN_R) for an R: (n,) -> list of arrays. [ours]"""
    folds = [np.flatnonzero(fold == f) for f in np.unique(fold)]
    return [rows for rows in folds if len(rows) >= MIN_R]


def mean_of_folds(r):
    """Mean over the folds that have a value: (k, ...) -> (...), nan where none has.

    The paper's results are such means of its five runs. [HE2RNA Results]
    """
    r = np.array(r)
    count = (~np.isnan(r)).sum(0)
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.nansum(r, 0) / count


# ----- Several tests at once  [HE2RNA Results; Methods, Statistics and reproducibility] -----------


def holm_sidak(p):
    """Holm–Šidák adjusted p: the chance that any of those below alpha is false is at most alpha.

    p (m,) in [0, 1] -> (m,), in the order given. NaN stays NaN and does not count in m. The i-th
    smallest, p_(i), becomes the maximum over j <= i of 1 - (1 - p_(j))^(m - j + 1). Good for tests
    that are independent or rise and fall together. The paper's alpha is .05.

    Needs: floats, _ascending.
    """
    known, order, adjusted = _ascending(p)
    left = np.arange(len(known), 0, -1)  # m - i + 1, the tests not yet passed
    with np.errstate(divide="ignore"):  # log 0, where p = 1
        steps = -np.expm1(left * np.log1p(-known))  # keeps the digits of a tiny p
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def benjamini_hochberg(p):
    """Benjamini–Hochberg adjusted p: on average at most a share alpha of those below it is false.

    p (m,) in [0, 1] -> (m,), in the order given. NaN stays NaN and does not count in m. The i-th
    smallest, p_(i), becomes the minimum over j >= i of p_(j) m / j. [HE2RNA Results, Supplementary
    Fig. S2; HistCode Results]

    Needs: floats, _ascending.
    """
    known, order, adjusted = _ascending(p)
    rank = np.arange(1, len(known) + 1)
    steps = known * (len(known) / rank)
    from_the_last = np.minimum.accumulate(steps[::-1])
    adjusted[order] = from_the_last[::-1]
    return adjusted


def _ascending(p):
    """The m known p in ascending order, their places in p, and an array of NaN to be filled."""
    p = floats(p)
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise ValueError("p must be one list of numbers in [0, 1] or NaN")
    n_known = np.count_nonzero(~np.isnan(p))
    order = np.argsort(p)[:n_known]  # NaN sorts last
    return p[order], order, np.full(p.shape, np.nan)


def recurrent(significant):
    """In how many cancers each gene is significant (G,); how many genes are so in c or more (C,).

    significant (C, G) bool. The second, at place c - 1: the genes that are significant in c cancers
    or more. [HE2RNA Fig. 2b]
    """
    cancers = np.count_nonzero(significant, axis=0)  # (G,)
    c = np.arange(1, len(significant) + 1)
    at_least = (cancers >= c[:, None]).sum(1)  # (C,)
    return cancers, at_least


# ----- Wilcoxon's tests  [HE2RNA Methods, Statistics and reproducibility; HistCode Results] -------


def wilcoxon_signed_rank(x, y):
    """Two-sided signed-rank test of pairs: is x - y symmetric around 0?

    x, y (n,) -> (min(W+, W-), p); W+ sums the ranks of |x - y| over the pairs with x > y, W- over
    those with x < y; pairs with x = y are dropped. Exact for at most 50 pairs, if no |x - y| is 0
    or comes twice, as scipy.stats.wilcoxon(x, y, method="exact"); else normal, corrected for ties
    and by half a step for continuity, as with method="asymptotic", correction=True (SciPy's default
    is False) [ours]. All pairs equal: (0, 1); no pair, or a NaN: (nan, nan) [ours].
    HE2RNA says "Wilcoxon" only, of the AUC of two models over many splits (Fig. 5c): the same
    splits make pairs, so it is this test [ours].

    Needs: EXACT_SIGNED_RANK, floats, rankdata, _ties, _two_sided_normal, _signed_rank_counts.
    """
    d = floats(x) - floats(y)  # (n,)
    if d.size == 0 or np.isnan(d).any():
        return math.nan, math.nan
    n_pairs = d.size
    d = d[d != 0]
    n = d.size  # pairs that differ
    if n == 0:
        return 0.0, 1.0
    ranks = rankdata(np.abs(d))
    total = n * (n + 1) / 2
    plus = ranks[d > 0].sum()
    w = min(plus, total - plus)
    ties = _ties(ranks)
    if n == n_pairs <= EXACT_SIGNED_RANK and ties == 0:
        ways = _signed_rank_counts(n)
        p = 2 * ways[: int(w) + 1].sum() / 2.0**n
    else:
        variance = (n * (n + 1) * (2 * n + 1) - ties / 2) / 24
        p = _two_sided_normal(w - total / 2, variance)
    return float(w), min(float(p), 1.0)


def wilcoxon_rank_sum(x, y):
    """Two-sided rank-sum (Mann–Whitney) test of two groups: is either one shifted?

    x (n1,), y (n2,) -> (U, p), where U counts the pairs with x > y, a tie as half. As
    scipy.stats.mannwhitneyu(x, y): exact without ties where the smaller group has at most 8, else
    normal, corrected for ties and for continuity. An empty group, or a NaN: (nan, nan) [ours].

    Needs: EXACT_RANK_SUM, floats, rankdata, _pairs_won, _ties, _two_sided_normal,
    _rank_sum_counts.
    """
    x, y = floats(x), floats(y)
    both = np.concatenate([x, y])
    small, large = sorted((x.size, y.size))
    n = small + large
    if small == 0 or np.isnan(both).any():
        return math.nan, math.nan
    u = _pairs_won(x, y)
    lower = min(u, small * large - u)  # U of x or of y
    ties = _ties(both)
    if small <= EXACT_RANK_SUM and ties == 0:
        ways = _rank_sum_counts(small, large)
        p = 2 * ways[: int(lower) + 1].sum() / math.comb(n, small)
    else:
        variance = small * large / 12 * (n + 1 - ties / (n * (n - 1)))
        p = _two_sided_normal(lower - small * large / 2, variance)
    return u, min(float(p), 1.0)


def _pairs_won(x, y):
    """Mann–Whitney U: over all pairs, the sum of 1 for x > y and 1/2 for x = y."""
    ranks = rankdata(np.concatenate([x, y]))
    n = x.size
    return float(ranks[:n].sum() - n * (n + 1) / 2)  # less the ranks of x among themselves


def _ties(values):
    """Sum of t^3 - t over the groups of t equal values: 0 without ties."""
    _, counts = np.unique(values, return_counts=True)
    t = floats(counts)
    return float((t**3 - t).sum())


def _two_sided_normal(below_mean, variance):
    """p of a statistic that lies at or below its mean; 1 if all values are tied.

    below_mean: statistic - mean, which is moved half a step towards 0 for continuity.
    """
    if variance <= 0:
        return 1.0
    distance = min(below_mean + 0.5, 0.0)  # never past the mean
    return 2 * special.ndtr(distance / math.sqrt(variance))


@functools.cache  # every gene has the same n
def _signed_rank_counts(n):
    """Of all 2^n patterns of signs, how many have W+ = w, at place w: (n (n + 1) / 2 + 1,).

    Whole numbers below 2^53, thus exact in float64, to n = 52.
    """
    ways = np.ones(1)
    for rank in range(1, n + 1):
        minus = np.pad(ways, (0, rank))  # w stays
        plus = np.pad(ways, (rank, 0))  # w grows by the rank
        ways = minus + plus
    return ways


@functools.lru_cache(maxsize=64)  # a table can be long: not all are kept
def _rank_sum_counts(small, large):
    """Of all orders of the two groups, how many have U = u, at place u: (small * large + 1,).

    They are the coefficients of q^u in the Gaussian binomial, the product over i = 1..small of
    (1 - q^(large + i)) / (1 - q^i). To multiply by 1 - q^j subtracts the table shifted by j; to
    divide by 1 - q^i is a cumulative sum with stride i.
    """
    ways = np.zeros(small * large + 1)
    ways[0] = 1
    for i in range(1, small + 1):
        ways[large + i :] -= ways[: -(large + i)].copy()
        for start in range(i):
            ways[start::i] = np.cumsum(ways[start::i])
    return ways


def corrected_t(differences, tested_per_trained):
    """Two models over splits of the same samples: mean difference, its 95 % interval, and p.

    differences (J,), of each split; tested_per_trained: samples that a split tests over the others.
    -> mean, low, high, two-sided p; the last three nan for one split, and for equal differences.
    Splits share samples. The variance of their mean is not s^2 / J but at most about
    s^2 (1 / J + tested_per_trained), with J - 1 degrees of freedom [Nadeau & Bengio 2003]. Where
    each split draws n_B of n samples and works in these alone, n_B / (n - n_B) makes it Hoeffding's
    bound on the variance of a U-statistic. Wilcoxon's test over splits asks about these very
    samples, this one about others. [ours]

    Needs: INTERVAL, TIED, floats.
    """
    d = floats(differences)
    J = len(d)
    mean = d.mean()
    if J < 2 or np.ptp(d) <= TIED:
        return float(mean), math.nan, math.nan, math.nan
    error = d.std(ddof=1) * math.sqrt(1 / J + tested_per_trained)
    half = special.stdtrit(J - 1, INTERVAL[1]) * error
    p = 2 * special.stdtr(J - 1, -abs(mean) / error)
    return float(mean), float(mean - half), float(mean + half), float(p)


# ----- ROC and precision-recall  [HE2RNA Fig. 5; HistCode Figs. 2, 3] -----------------------------


def roc_auc(labels, scores):
    """Area under the ROC curve: the chance that a positive scores above a negative, a tie half.

    labels (n,) bool or 0/1, scores (n,) -> float: the Mann–Whitney U over the number of pairs. nan
    with one class only, or with a NaN. [HE2RNA Methods, Statistics and reproducibility; HistCode
    Results]

    Needs: floats, rankdata, _pairs_won, _two_classes.
    """
    labels, scores = _two_classes(labels, scores)
    if labels is None:
        return math.nan
    positive, negative = scores[labels], scores[~labels]
    return _pairs_won(positive, negative) / (positive.size * negative.size)


def pr_auc(labels, scores):
    """Average precision: the mean, over the positives, of the precision at their score.

    It is the area under the precision-recall curve in steps, as scikit-learn's
    average_precision_score; trapezoids would be too kind. Chance gives the share of the positives.
    Arguments and nan as in `roc_auc`. [the curves: HistCode Figs. 2, 3]

    Needs: floats, pr_curve, _from_the_top, _two_classes.
    """
    labels, scores = _two_classes(labels, scores)
    if labels is None:
        return math.nan
    recall, precision = pr_curve(labels, scores)
    return float((np.diff(recall) * precision[1:]).sum())


def roc_curve(labels, scores):
    """False and true positive rate as the threshold falls, from (0, 0) to (1, 1).

    labels (n,) bool or 0/1, both classes there; scores (n,) without NaN -> two (steps + 1,), one
    step for each different score. Trapezoids make the area `roc_auc`. [HistCode Figs. 2, 3]

    Needs: floats, _from_the_top.
    """
    positives, chosen = _from_the_top(labels, scores)
    negatives = chosen - positives
    return negatives / negatives[-1], positives / positives[-1]


def pr_curve(labels, scores):
    """Recall and precision as the threshold falls, from recall 0 and precision 1. As `roc_curve`.

    Needs: floats, _from_the_top.
    """
    positives, chosen = _from_the_top(labels, scores)
    precision = np.ones(len(chosen))
    precision[1:] = positives[1:] / chosen[1:]
    return positives / positives[-1], precision


def _two_classes(labels, scores):
    """Labels as (n,) bool and scores as float; None, None with one class only, or with a NaN."""
    labels, scores = floats(labels), floats(scores)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape}: (n,) twice is wanted")
    positive = labels > 0
    unknown = np.isnan(labels) | np.isnan(scores)
    if unknown.any() or positive.all() or not positive.any():
        return None, None
    return positive, scores


def _from_the_top(labels, scores):
    """How many positives, how many samples reach the threshold as it falls: two (steps + 1,)."""
    _, level = np.unique(-floats(scores), return_inverse=True)  # ties share a level
    positives = np.bincount(level, floats(labels) > 0)
    chosen = np.bincount(level)
    return np.r_[0, positives.cumsum()], np.r_[0, chosen.cumsum()]


# ----- Nulls of R  [HE2RNA Methods, Statistics and reproducibility] -------------------------------


def null_fit(null_r):
    """A null of many R, summed up as (mean, n): it scatters as a chance R over n samples does.

    null_r (M, G): R of every gene under M models that learned nothing (untrained as the paper's, or
    of `permutation_null`), computed like the R that they will judge (mean of the folds). nan does
    not count; (nan, nan) without spread. A chance R has variance 1 / (n - 1), so n = 1 + 1 / SD^2;
    the SD is that of the null, or larger so that the fit reaches the null's 99 % quantile.
    Why a fit: to count among N null R shows no p below 1 / (N + 1), and the first Holm–Šidák step
    asks for 1.7e-6. For five folds of 9 slides the fit errs by 1 % in R at that p, a normal fit of
    Fisher's z by 4 %. [the null: the paper; the fit: ours]

    Needs: NULL_TAIL, floats.
    """
    null_r = floats(null_r)
    null_r = null_r[~np.isnan(null_r)]  # (N,) of all genes together
    if null_r.size < 2 or np.ptp(null_r) == 0:
        return math.nan, math.nan
    mean = null_r.mean()
    reach = np.quantile(null_r, NULL_TAIL) - mean
    sd = max(null_r.std(), reach / special.ndtri(NULL_TAIL))
    return float(mean), float(1 + 1 / sd**2)


def null_p(r, mean, n):
    """One-sided p of R against a null (mean, n): `pearson_p` around the null's mean. (G,) -> (G,).

    The mean is taken off on the scale of Fisher's z: (r - mean) / (1 - r mean) is tanh(atanh r -
    atanh mean) and stays between -1 and 1. nan for nan, and for a null with n < 3, which is so wide
    that no R means anything. [ours]

    Needs: floats, pearson_p, _beta_shape.
    """
    r = floats(r)
    return pearson_p((r - mean) / (1 - r * mean), n)


def null_threshold(p, mean, n):
    """The smallest R whose `null_p` is at most p; R_sign with the p of `r_threshold`.

    The paper's .20 for LUNG's 1,046 slides is that of a null with mean 0 and n from 507 to 560.
    [.20: HE2RNA Results; the formula: ours]

    Needs: floats, r_threshold, _beta_shape.
    """
    r = r_threshold(p, n)
    return (r + mean) / (1 + r * mean)


def chance_of_false(n_genes, sizes, r):
    """The chance that any of so many genes reaches R by luck in folds of these sizes: a float.

    sizes: the samples of each fold; genes and folds independent, normal. The law of a fold's R has
    the density (1 - R^2)^(n/2 - 2); that of the sum of the folds is their convolution, taken by
    Fourier transform on a grid. For the warning of small folds, whose mean has other tails than one
    R: with R_sign of 30,839 genes .30 in five folds of 4, and .08 in five of 8. [ours]
    """
    from scipy.signal import fftconvolve

    edges = np.linspace(-1, 1, 2**13 + 1)
    law = np.ones(1)
    for n in sizes:
        shape = n / 2 - 1
        below = special.betainc(shape, shape, (1 + edges) / 2)
        law = fftconvolve(law, np.diff(below))
    half = 1 / 2**13  # of a step
    place = np.linspace(half - 1, 1 - half, len(law))  # of each step, as a mean
    tail = law[place >= r].sum()
    return float(-np.expm1(n_genes * np.log1p(-max(tail, 0))))


def patient_shuffle(patients, groups, rng):
    """The row that each sample takes its values from when patients change places: (n,) int.

    patients, groups (n,): a patient's samples get those of another one of the same group, in turn,
    and around again where there are fewer. So what is alike within a patient stays so, as it would
    not if samples moved singly. A patient of several groups is one in each. [ours]
    """
    source = np.arange(len(patients))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        _, which, samples = np.unique(patients[rows], return_inverse=True, return_counts=True)
        order = np.argsort(which, kind="stable")  # patient after patient
        first = np.cumsum(samples) - samples
        place = np.empty(len(rows), int)  # of a sample among those of its patient
        place[order] = np.arange(len(rows)) - first[which[order]]
        donor = rng.permutation(len(samples))[which]
        source[rows] = rows[order[first[donor] + place % samples[donor]]]
    return source


def permutation_null(prediction, truth, fold, n_permutations, rng, patients=None):
    """R of every gene when each slide is given another slide's prediction: (n_permutations, G).

    prediction, truth (n, G) of one cancer; fold, patients (n,), without patients each slide is one.
    In place of the paper's untrained models [ours]. Patients change places within their fold,
    whole, and so do genes, which stay as correlated as they are. R is the mean of the folds, as in
    the result. The genes of one permutation share its luck: take 50 or more. The models stay as
    they are, so folds count as independent; the models of all folds have learned from the same
    patients, and their R are not. nan where R is nan.

    Needs: patient_shuffle, mean_of_folds, pearson, rows_of_folds.
    """
    if patients is None:
        patients = np.arange(len(fold))
    null = np.full((n_permutations, truth.shape[1]), np.nan)
    folds = rows_of_folds(fold)
    for i in range(n_permutations if folds else 0):
        source = patient_shuffle(patients, fold, rng)
        r = [pearson(prediction[source[rows]], truth[rows]) for rows in folds]
        null[i] = mean_of_folds(r)
    return null


# ----- Gene sets  [HE2RNA Figs. 2c-e, 3; Methods, GSEA signatures; HistCode Fig. 9] ---------------

SIGNATURES = {  # MSigDB v6.2; where the paper prints ADAPTATIVE it is ADAPTIVE   [HE2RNA Table 2]
    "angiogenesis": (
        "HALLMARK_ANGIOGENESIS",
        "BIOCARTA_VEGF_PATHWAY",
        "KEGG_VEGF_SIGNALING_PATHWAY",
        "GO_ANGIOGENESIS",
    ),
    "hypoxia": (
        "HALLMARK_HYPOXIA",
        "BIOCARTA_HIF_PATHWAY",
        "GO_REGULATION_OF_CELLULAR_RESPONSE_TO_HYPOXIA",
    ),
    "DNA repair": ("HALLMARK_DNA_REPAIR", "REACTOME_DNA_REPAIR", "GO_DNA_REPAIR"),
    "cell cycle": (
        "BIOCARTA_CELLCYCLE_PATHWAY",
        "KEGG_CELL_CYCLE",
        "REACTOME_CELL_CYCLE",
        "GO_CELL_CYCLE",
    ),
    "B cell-mediated immunity": ("GO_B_CELL_MEDIATED_IMMUNITY",),
    "T cell-mediated immunity": (
        "REACTOME_ADAPTIVE_IMMUNE_SYSTEM",
        "GO_ADAPTIVE_IMMUNE_RESPONSE",
        "GO_REGULATION_OF_ADAPTIVE_IMMUNE_RESPONSE",
    ),
}


def combine_sets(sets, at_least=2):
    """Genes in at least two of several sets, in the order they come; all genes of a single set.

    B cell-mediated immunity has a single set in the paper. [HE2RNA Methods, GSEA signatures]
    """
    times = {}
    for genes in sets:
        for gene in dict.fromkeys(genes):  # once each, order kept
            times[gene] = times.get(gene, 0) + 1
    wanted = min(at_least, len(sets))
    return tuple(gene for gene in times if times[gene] >= wanted)


def fisher_enrichment(hits, gene_set, universe):
    """One-sided p of Fisher's exact test: the chance of at least so many hits in the set.

    Three collections of gene names; universe: all tested genes, names outside it don't count. By
    chance a hit may fall anywhere in it. 1 where the overlap is forced: no hits, no gene of the
    set, everything a hit. As scipy.stats.fisher_exact with alternative="greater". [HE2RNA Methods,
    Statistics and reproducibility; one-sided: ours]

    Needs: hypergeometric_tail, _log_ways.
    """
    universe = set(universe)
    hits, members = universe.intersection(hits), universe.intersection(gene_set)
    return hypergeometric_tail(len(hits & members), len(members), len(hits), len(universe))


def hypergeometric_tail(overlap, size, n_hits, n):
    """The chance that n_hits genes, drawn out of n, hold at least `overlap` of `size` marked ones.

    Needs: _log_ways.
    """
    if overlap <= max(0, size + n_hits - n):  # the least possible
        return 1.0
    marked = np.arange(overlap, min(size, n_hits) + 1)
    others = n_hits - marked
    log_p = _log_ways(size, marked) + _log_ways(n - size, others) - _log_ways(n, n_hits)
    return min(1.0, float(np.exp(log_p).sum()))


def _log_ways(n, k):
    """log of the number of ways to choose k of n."""
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


def enrichment(hits, sets, universe):
    """`fisher_enrichment` of many sets {name: genes}: a dict of (S,) arrays.

    hits: in the papers, the 156 genes that are significant in 12 cancers, those of LIHC or of BRCA
    with R > .4 [HE2RNA Fig. 2c-e, "1c-e" in Methods], or the 50 best [HistCode Fig. 9].
    size: genes of the set that were tested; overlap: those that are hits; expected: overlap by
    chance; fold: overlap over expected; p; bh: p corrected over the sets [ours]. A set without a
    tested gene has no p and is no test, since nothing could have made it significant.

    Needs: benjamini_hochberg, floats, hypergeometric_tail, _ascending, _log_ways.
    """
    universe = set(universe)
    hits = universe.intersection(hits)
    size, overlap = np.zeros((2, len(sets)), int)
    p, fold = np.full((2, len(sets)), np.nan)
    for i, genes in enumerate(sets.values()):
        members = universe.intersection(genes)
        size[i] = len(members)
        overlap[i] = len(members & hits)
        if members:
            p[i] = hypergeometric_tail(overlap[i], size[i], len(hits), len(universe))
    expected = size * (len(hits) / max(len(universe), 1))
    np.divide(overlap, expected, out=fold, where=expected > 0)
    return {
        "size": size,
        "overlap": overlap,
        "expected": expected,
        "fold": fold,
        "p": p,
        "bh": benjamini_hochberg(p),
    }


def expression_bins(level, n_bins=EXPRESSION_BINS):
    """Bin of each gene by its mean expression, equally full bins. level (G,) -> (G,) int. [ours]"""
    if np.isnan(level).any():
        raise ValueError("expression_bins: a gene has no expression level")
    rank = rankdata(level, method="ordinal").astype(int) - 1
    return rank * n_bins // max(len(level), 1)


def random_lists(members, bins, n_lists, rng):
    """Random gene lists like a signature: as many genes of each bin, none twice. (n_lists, s) int.

    members (s,) gene numbers; bins (G,) of all genes to draw from (`expression_bins`; all 0: any).
    A bin's genes are shuffled and cut into hands, as cards: one shuffle serves many lists. These
    share no gene, but each by itself is a uniform draw, so the expected count of any event is that
    of independent lists. [ours]
    """
    hands = []
    for b in np.unique(bins[members]):
        s = np.count_nonzero(bins[members] == b)
        deck = np.flatnonzero(bins == b)
        per_deck = len(deck) // s  # hands
        n_decks = math.ceil(n_lists / per_deck)
        decks = np.tile(deck, (n_decks, 1))
        rng.permuted(decks, axis=1, out=decks)  # each row shuffled by itself
        cut = decks[:, : per_deck * s].reshape(-1, s)
        hands.append(cut[:n_lists])
    return np.hstack(hands)


def random_list_test(r, significant, members, n_lists, rng, bins=None):
    """Are a signature's genes better predicted than random lists of the same length?

    r, significant (G, C), nan and False where a gene has no R; members (S, G) bool; bins (G,):
    lists are matched in them (`random_lists`) [ours]; None, as in the paper: any gene. A dict of
    (S, C):
      size                     genes of the signature that have an R
      r, share                 their mean R, and the share significant (the paper's R_p, f_p)
      r_random, share_random   the same, mean over the lists (R_o, f_o)
      p_r, p_share             (1 + lists that reach the signature) / (1 + n_lists) [in the paper
                               the share of lists above it; the 1 and the equal ones: ours]
    and nan, size apart, where a signature has no gene. Lists are drawn from all genes with an R in
    that cancer; cancers with the same genes share them. A signature's genes vary together and a
    random list's do not: p tells whether these genes stand out, and is too small for whether their
    pathway would again [ours]. [HE2RNA Fig. 3; Methods, Statistics and reproducibility]
    """
    r, significant = floats(r), floats(significant)
    members, known = np.asarray(members, bool), ~np.isnan(r)
    if bins is None:
        bins = np.zeros(len(r), int)
    shape = len(members), r.shape[1]
    names = "r", "share", "r_random", "share_random", "p_r", "p_share"
    out = {name: np.full(shape, np.nan) for name in names}
    out["size"] = members.astype(int) @ known
    patterns, pattern_of = np.unique(known, axis=1, return_inverse=True)  # (G, patterns), (C,)
    for number, pattern in enumerate(patterns.T):
        cancers = np.flatnonzero(pattern_of == number)  # c of them
        values = np.hstack([r[pattern][:, cancers], significant[pattern][:, cancers]])  # (g, 2c)
        for i, member in enumerate(members):
            own = np.flatnonzero(member[pattern])
            if own.size == 0:
                continue
            results = _against_lists(values.T, own, bins[pattern], n_lists, rng)
            # (3, 2c) -> (6, c): R, then share, of observed, random and p: the order of the names
            for name, value in zip(names, results.reshape(6, -1), strict=True):
                out[name][i, cancers] = value
    return out


def _against_lists(values, own, bins, n_lists, rng):
    """Each row of values, over the genes `own` and over random lists like them: (3, rows).

    values (rows, g). The three: mean of `own`, mean of the lists, p.
    """
    observed = values[:, own].mean(1)
    total, reached = np.zeros((2, len(values)))
    for start in range(0, n_lists, LIST_BLOCK):
        count = min(LIST_BLOCK, n_lists - start)
        lists = random_lists(own, bins, count, rng)  # (count, s)
        means = np.array([row[lists].mean(1) for row in values])  # (rows, count)
        total += means.sum(1)
        reached += (means >= observed[:, None] - TIED).sum(1)
    return np.array([observed, total / n_lists, (1 + reached) / (1 + n_lists)])


# ----- Intervals over patients, 95 %  [ours] ------------------------------------------------------


def r_interval(prediction, truth, patients, fold):
    """Interval of every gene's R, the mean of the folds: (low (G,), high (G,)).

    prediction, truth (n, G) of one cancer; patients, fold (n,). Fisher's z of R, with the jackknife
    SD of patients: that of the R within folds, by a t. It tells of other patients, not of another
    training. The models of each fold have learned from the others' patients, so that their R
    depend: the variance of several folds is 2 - |R| times as large (measured: 2 where nothing can
    be learned, 1.1 to 1.7 at R .5). nan where R is nan, and with no more patients than folds + 1.

    Holds the true R in .93 to .97, of 10 patients in one fold to 200 in five, one slide or four a
    patient: `python -m lab.bench calibration --only intervals`.
    """
    low, high = np.full((2, truth.shape[1]), np.nan)
    folds = rows_of_folds(fold)
    patients = np.asarray(patients)
    freedom = -len(folds) - 1
    for rows in folds:
        freedom += len(set(patients[rows]))
    if freedom < 1:
        return low, high
    t = special.stdtrit(freedom, INTERVAL[1])
    for block in gene_blocks(truth.shape[1]):
        r, sums, less = [], [], []
        for rows in folds:
            x, y = prediction[rows, block], truth[rows, block]
            r.append(pearson(x, y))
            of_all, of_each = _products(x, y, patients[rows])
            sums.append(of_all)
            less.append(of_each)
        r = mean_of_folds(r)
        xx, yy, xy = np.sum(sums, 0)[:, None] - np.concatenate(less, 1)  # (P, g) without each
        with np.errstate(all="ignore"):
            left_out = _fisher_z(xy / np.sqrt(xx * yy))
        variance = (len(left_out) - 1) * left_out.var(0)
        if len(folds) > 1:
            variance *= 2 - np.abs(r)
        half = t * np.sqrt(variance)
        low[block] = np.tanh(_fisher_z(r) - half)
        high[block] = np.tanh(_fisher_z(r) + half)
    return low, high


def _fisher_z(r):
    return np.arctanh(np.clip(r, -CERTAIN, CERTAIN))


def _products(x, y, patients):
    """Sums of x x, y y and x y about their means (3, g), and what each patient takes (3, P, g)."""
    x = floats(x) - x.mean(0)
    y = floats(y) - y.mean(0)
    names, which = np.unique(patients, return_inverse=True)
    member = floats(np.arange(len(names))[:, None] == which)  # (P, n)
    left = np.maximum(len(x) - member.sum(1), 1)[:, None]  # slides without the patient's
    sums, taken = [], []
    for u, v in ((x, x), (y, y), (x, y)):
        product = u * v
        sums.append(product.sum(0))
        taken.append(member @ product + (member @ u) * (member @ v) / left)
    return np.array(sums), np.array(taken)


def auc_interval(labels, scores, patients):
    """Interval of the ROC-AUC: (low, high), (nan, nan) where it has none.

    Newcombe's: the AUC whose law (Hanley and McNeil's, of exponential scores) reaches the observed
    one; it is there for an AUC of 1 too. The law is widened to DeLong's variance of these scores
    where that is larger, and by what the patients' slides share. [Newcombe 2006, Stat Med 25:559,
    method 5; DeLong 1988; Obuchowski 1997 for patients; that the larger one counts: ours]

    Holds the true AUC in .93 to .98, of 20 to 200 patients with 2 positives or half of them, AUC .5
    to .95, also where one class scatters twice as much or a patient has slides of both: measured as
    for `r_interval`.
    """
    auc = roc_auc(labels, scores)
    if np.isnan(auc) or len(set(patients)) < 2:
        return math.nan, math.nan
    positive = floats(labels) > 0
    m, n = positive.sum(), (~positive).sum()
    alone = auc_variance(labels, scores, np.arange(m + n))
    together = auc_variance(labels, scores, patients)
    patients = np.asarray(patients)
    wider = 1.0
    for of in (positive, ~positive):
        wider = max(wider, of.sum() / len(set(patients[of])))
    if min(alone, together) > 0:
        wider = max(together / alone, together / _auc_law(auc, m, n))
    z = special.ndtri(INTERVAL[1])
    ends = []
    for end in (0.0, 1.0):  # by bisection: the last value whose law reaches the AUC
        inner = auc
        for _ in range(60):
            middle = (inner + end) / 2
            reached = (middle - auc) ** 2 <= z * z * wider * _auc_law(middle, m, n)
            if reached:
                inner = middle
            else:
                end = middle
        ends.append(float(inner))
    return tuple(ends)


def _auc_law(auc, m, n):
    """Variance of the AUC of m positives and n negatives. [Newcombe 2006, method 5]"""
    others = (m + n) / 2 - 1
    shared = (1 - auc) / (2 - auc) + auc / (1 + auc)
    return auc * (1 - auc) * (1 + others * shared) / (m * n)


def auc_variance(labels, scores, patients):
    """DeLong's variance of the ROC-AUC, of whole patients. [Obuchowski 1997, Biometrics 53:567]

    0 where a class has one patient.
    """
    labels, scores = _two_classes(labels, scores)
    which = np.unique(np.asarray(patients), return_inverse=True)[1]
    ranks = rankdata(scores)
    everyone = which.max() + 1
    variance = 0.0
    sums = []
    for of in (labels, ~labels):
        won = (ranks[of] - rankdata(scores[of])) / (~of).sum()  # against the other class
        each = (won - won.mean()) / of.sum()
        of_patients = np.bincount(which[of], each, everyone)
        count = len(set(which[of]))
        variance += count / max(count - 1, 1) * np.square(of_patients).sum()
        sums.append(of_patients)
    both = sums[0] @ sums[1]  # of patients with slides of both classes
    return variance - 2 * everyone / max(everyone - 1, 1) * both


# ----- HistCode's random baseline  [HistCode Results, Fig. 4] -------------------------------------


def random_baseline(truth, rng):
    """Random predictions, uniform between the 5 % and the 95 % quantile of each gene's truth.

    (n, G) -> (n, G). Their R with the truth has mean 0 and SD 1 / sqrt(n - 1): the paper's .15 is
    that of n = 45, not of its 153 patients (.08).
    """
    low, high = np.quantile(floats(truth), BASELINE_RANGE, axis=0)  # (G,), (G,)
    return low + (high - low) * rng.random(truth.shape)


def against_baseline(prediction, truth, baseline):
    """Prediction against random baseline, gene by gene: a dict of (G,). All three (n, G).

    p, bh: signed-rank test of prediction against baseline, Benjamini–Hochberg over genes, as the
    paper words it ("significantly different from random baseline"; which Wilcoxon it does not say).
    It tests location, not skill: a perfect prediction of a symmetric gene is not "different".
    error_p, error_bh: the same test of the two absolute errors; better: W+ < W- there, so the
    prediction errs less [all three ours]. nan, and not better, for a gene with a NaN.
    """
    error = np.abs(prediction - truth)
    random_error = np.abs(baseline - truth)
    p = _signed_rank_p(prediction, baseline)
    error_p = _signed_rank_p(error, random_error)
    d = error - random_error
    equal = (d == 0).sum(0)  # they have the lowest ranks
    ranks = rankdata(np.abs(d), axis=0) - equal  # among the pairs that differ
    return {
        "p": p,
        "bh": benjamini_hochberg(p),
        "error_p": error_p,
        "error_bh": benjamini_hochberg(error_p),
        "better": (np.sign(d) * ranks).sum(0) < 0,  # W+ - W-
    }


def _signed_rank_p(x, y):
    """p of `wilcoxon_signed_rank`, column by column: (n, G), (n, G) -> (G,)."""
    p = []
    for j in range(x.shape[1]):
        p.append(wilcoxon_signed_rank(x[:, j], y[:, j])[1])
    return np.array(p)


def r_against_baseline(r, baseline_r):
    """Rank-sum test of the R of all genes against those of the baseline, nan left out: (U, p).

    Genes are correlated, so p is smaller than the evidence: it describes two histograms [ours].
    [HistCode Results, Fig. 4]
    """
    r, baseline_r = floats(r), floats(baseline_r)
    r = r[~np.isnan(r)]
    baseline_r = baseline_r[~np.isnan(baseline_r)]
    return wilcoxon_rank_sum(r, baseline_r)


# ----- Folds by patient  [HE2RNA Methods, Training and evaluation] --------------------------------


def patient_folds(patients, projects, k, seed):
    """Test fold of each sample, 0 to k - 1: patients whole, projects evenly spread over the folds.

    patients, projects (n,) names -> (n,) int; a single project is one name n times. In each project
    and overall, folds differ by at most one patient. The order of the samples does not matter.
    ValueError with fewer patients than folds. Both demands are those of Methods (Results has slides
    "randomly assigned"); that patients are dealt out like cards is [ours]. For folds of one organ
    that agree with those of all, as the paper's do, call this for the whole cohort, then select.

    Needs: _end_to_end.
    """
    which, order = _end_to_end(patients, projects, np.random.default_rng(seed))
    n_patients = len(order)
    if n_patients < 2:
        raise ValueError(f"{k} folds of {n_patients} patients: at least 2 patients are needed")
    if not 2 <= k <= n_patients:
        raise ValueError(
            f"{k} folds of {n_patients} patients, who are never divided: k must be from 2 to "
            f"{n_patients}"
        )
    fold = np.empty(n_patients, int)
    fold[order] = np.arange(n_patients) % k
    return fold[which]


def inner_split(patients, projects, share, seed):
    """Validation samples for early stopping inside a training part: a share of its patients.

    patients, projects (n,) names -> (n,) bool. At least one patient, never all; each project's part
    is within one patient of the share (.1 [HE2RNA code]). The order of the samples does not matter.
    Every (1/share)-th patient of the projects laid end to end, from a random one on. [ours]

    Needs: _end_to_end.
    """
    rng = np.random.default_rng(seed)
    which, order = _end_to_end(patients, projects, rng)
    n_patients = len(order)
    if n_patients < 2:
        raise ValueError(f"a validation part needs at least 2 patients; there are {n_patients}")
    wanted = max(round(share * n_patients), 1)
    count = min(wanted, n_patients - 1)
    start = rng.integers(n_patients)  # else the first project would always be hit
    chosen = (np.arange(count) * n_patients + start) // count  # evenly spaced places
    return np.isin(which, order[chosen])


def _end_to_end(patients, projects, rng):
    """Patients shuffled inside their project, projects end to end.

    (n,), (n,) -> which (n,), the patient of each sample, and order (P,) of the patients. Patients
    are numbered by sorted name, so that the order of rows has no say. A patient of several projects
    belongs to the one with most of his or her samples, the first by name if equal. [ours]
    """
    names, which = np.unique(np.asarray(patients), return_inverse=True)
    projects, project = np.unique(np.asarray(projects), return_inverse=True)
    samples = np.zeros((len(names), len(projects)), int)  # of each patient in each project
    np.add.at(samples, (which, project), 1)
    order = rng.permutation(len(names))
    if len(names) == 0:  # argmax needs one; the callers refuse it in words
        return which, order
    home = samples.argmax(1)  # (P,) the first of equals
    return which, order[np.argsort(home[order], kind="stable")]


def authors_folds(patients):
    """The splits of the HE2RNA authors' code: a list of 5 (train, valid, test), sorted row numbers.

    patients (n,) names. The sorted patients are cut by scikit-learn's KFold(5, shuffle=True,
    random_state=0); train_test_split(test_size=.1, random_state=0) takes validation patients from
    the others: 72/8/20 % of the patients. Projects are not looked at, though Methods spreads them
    evenly. The same sets as those that the authors released. [HE2RNA code]

    Needs: AUTHORS_FOLDS, AUTHORS_VALID.
    """
    names, which = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < AUTHORS_FOLDS:
        raise ValueError(
            f"the authors' splits need at least {AUTHORS_FOLDS} patients; there are {len(names)}"
        )
    shuffled = np.arange(len(names))
    np.random.RandomState(0).shuffle(shuffled)  # the legacy generator, frozen by NumPy
    splits = []
    for test in np.array_split(shuffled, AUTHORS_FOLDS):  # the first P % 5 hold one more
        others = np.setdiff1d(shuffled, test)  # ascending, as KFold gives them
        others = others[np.random.RandomState(0).permutation(len(others))]
        n_valid = math.ceil(AUTHORS_VALID * len(others))
        parts = others[n_valid:], others[:n_valid], test
        rows = [np.flatnonzero(np.isin(which, part)) for part in parts]
        splits.append(tuple(rows))
    return splits
