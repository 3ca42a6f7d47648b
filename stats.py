"""The statistics of HE2RNA and HistCode, each written out: correlation, multiple testing, Wilcoxon, ROC, folds.

HE2RNA    Schmauch et al. 2020, Nat Commun 11:3877, doi 10.1038/s41467-020-17678-4 (preprint bioRxiv 760173)
HistCode  2022; this file serves its per-gene Pearson and Spearman, its Wilcoxon tests and its ROC-AUC

Functions on arrays, no state, only numpy and scipy (scipy for ranks and for the normal and beta distributions):

    r = stats.pearson(predicted, measured)                   # (n, G), (n, G) -> (G,), nan where a gene does not vary
    q = stats.holm_sidak(stats.pearson_p(r, n))              # significant where q < .05; nan stays nan
    stats.r_threshold(1.66e-6, 44)                           # .637: the smallest significant R, the paper's R_sign
    fold = stats.patient_folds(patients, projects, 5, 0)     # test samples of fold 0: fold == 0

Glossary: n samples, G genes, m tests, k folds, P patients.
Tags: [HE2RNA Methods, ...] the paper says it; [HE2RNA code] only the authors' released code; [SciPy] the rule
of scipy 1.17, followed so that the numbers can be checked against it; [ours] nobody says it, we chose.
"nan" always means "no value": it is never 0, never significant, and never counted as a test.
"""

import functools
import gzip
import io
import math
import zlib

import numpy as np
from scipy import special
from scipy.spatial import cKDTree
from scipy.stats import rankdata

AUTHORS_FOLDS = 5  # of the cross-validation                             [HE2RNA Methods, Training]


AUTHORS_VALID = 0.1  # share of the other patients, for early stopping     [HE2RNA code]


EXACT_SIGNED_RANK = 50  # pairs, at most, for the exact signed-rank test      [SciPy]


EXACT_RANK_SUM = 8  # size of the smaller group, at most, exact rank sum  [SciPy]


CONSTANT = 1e-13  # relative spread that is only rounding, in float64   [SciPy, where it warns]


TIED = 1e-9  # a null R this close below R is R: only rounding            [ours]


GENE_BLOCK = 256  # genes at a time: 20 MB per float64 copy, n = 10,000 [ours]


MIN_R = 3  # samples, at least, behind an R: slides of a project in a fold                   [ours]


NULL_TAIL = 0.99  # quantile of the null the fit must not fall short of     [ours]


N_LISTS = (
    10_000  # random lists per signature                              [HE2RNA Methods, Statistics]
)


LIST_BLOCK = 1000  # of them at a time                                       [ours]


EXPRESSION_BINS = 25  # of genes of like mean expression, for matched lists     [ours]


N_DRAWS = 1000  # of a bootstrap                                          [ours]


INTERVAL = (0.025, 0.975)  # percentiles of the bootstrap                            [ours]


BASELINE_RANGE = (
    0.05,
    0.95,
)  # of the truth, for random predictions                [HistCode Results, Fig. 4]


SIGNATURES = {  # the genes in at least two of the sets           [HE2RNA Methods, GSEA signatures, Table 2]
    # MSigDB v6.2: HALLMARK_ in h.all, GO_ in c5.bp, KEGG_, BIOCARTA_ and REACTOME_ in c2.cp (each also a file of its own).
    # The paper prints ADAPTATIVE three times, and breaks long names; MSigDB has ADAPTIVE.
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


def pearson(a, b):
    """Pearson R of each gene: column j of a with column j of b.

    a, b (n, G) -> (G,) float64 in [-1, 1]; or (n,), (n,) -> float. Any number type, summed in float64.
    nan where n < 2.
    A gene has no R (nan) where it or its prediction is constant to rounding, or holds a NaN or an infinity. [ours]
    Within one cancer only: over pooled cancers R measures the recognition of the organ.
    [HE2RNA Methods, Training and evaluation]
    """
    return _correlate(a, b, ranked=False)


def spearman(a, b):
    """Spearman rho of each gene: Pearson R of the ranks, ties sharing their mean rank. As `pearson`."""
    return _correlate(a, b, ranked=True)


def _correlate(a, b, ranked):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape and a.ndim in (1, 2), (a.shape, b.shape)
    if a.ndim == 1:
        return float(_correlate(a[:, None], b[:, None], ranked)[0])
    r = np.full(a.shape[1], np.nan)  # (G,)
    for j in range(
        0, a.shape[1] if len(a) > 1 else 0, GENE_BLOCK
    ):  # blocks: no second copy of a cohort in memory
        x, y = a[:, j : j + GENE_BLOCK], b[:, j : j + GENE_BLOCK]  # (n, block)
        with np.errstate(all="ignore"):  # 0/0 and inf-inf only where the answer is nan
            varies = _varies(x) & _varies(y)  # before ranking, which magnifies rounding
            if ranked:
                x, y = rankdata(x, axis=0), rankdata(y, axis=0)
            cosine = (_unit(x) * _unit(y)).sum(0)
        r[j : j + GENE_BLOCK] = np.where(varies, np.clip(cosine, -1, 1), np.nan)
    return r


def _varies(x):
    """(n, G) -> (G,) bool: the column's spread is more than rounding. False with a NaN or an infinity."""
    rounding = max(CONSTANT, 4 * np.finfo(x.dtype).eps) if x.dtype.kind == "f" else CONSTANT
    low, high = x.min(0).astype(np.float64), x.max(0).astype(np.float64)
    return high - low > rounding * np.maximum(np.abs(low), np.abs(high))


def _unit(x):
    """(n, G) -> (n, G) float64: columns centred, then of length 1."""
    x = x - x[0].astype(
        np.float64
    )  # exact for nearly equal numbers, so a large offset costs no digits
    x -= x.mean(0)
    x /= np.abs(x).max(0)  # squares of 1e200 or 1e-200 stay in range
    x /= np.sqrt((x * x).sum(0))
    return x


def pearson_p(r, n):
    """One-sided p of Pearson R: the chance of an R at least as high when nothing is correlated ("analytic t").

    r (G,) or number, n samples behind *one* R (number or (G,)) -> p of the same shape. r = 1 -> 0, r = -1 -> 1;
    nan for nan r and for n < 3. t = R sqrt((n-2) / (1-R^2)) has n - 2 degrees of freedom, which is the same
    as (1-R)/2 ~ Beta(n/2 - 1, n/2 - 1): one formula, and p keeps its digits however small (1e-300 is not 0).
    The paper tests R > 0 against an untrained model [HE2RNA Methods, Statistics and reproducibility]; its
    printed thresholds are those of the t [ours: see r_threshold]. R of the mean of 5 folds is not one R.
    """
    n = np.asarray(n, np.float64)
    half = np.where(n >= 3, n / 2 - 1, np.nan)  # half the degrees of freedom
    return special.betainc(half, half, (1 - np.asarray(r, np.float64)) / 2)


def r_threshold(p, n):
    """The smallest R whose one-sided p (`pearson_p`) is at most p, with n samples; nan for n < 3. Shapes broadcast.

    R_sign of a cancer with m genes: the first Šidák step, p = 1 - (1 - .05)^(1/m) = 1.66e-6 for m = 30,839,
    so .637 at n = 44 (the paper prints .64) and .143 at n = 1,046 (the paper prints .20 for lung, which
    fits one subtype's n of about 520). [HE2RNA Results, against our formula]
    """
    n = np.asarray(n, np.float64)
    half = np.where(n >= 3, n / 2 - 1, np.nan)
    return 1 - 2 * special.betaincinv(half, half, np.asarray(p, np.float64))


def holm_sidak(p):
    """Holm–Šidák adjusted p: with all genes below alpha chosen, the chance of *any* false one is at most alpha.

    p (m,) in [0, 1] -> (m,), in the order given. NaN stays NaN and does not count in m. The i-th smallest becomes
    the running maximum of 1 - (1 - p_(i))^(m - i + 1). [HE2RNA Methods, Statistics and reproducibility]
    """
    p, order, adjusted = _ascending(p)  # (m,)
    with np.errstate(divide="ignore"):  # p = 1: log 0 = -inf, adjusted 1
        steps = -np.expm1(
            np.arange(len(p), 0, -1) * np.log1p(-p)
        )  # 1 - (1-p)^(m-i+1), digits kept for tiny p
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def benjamini_hochberg(p):
    """Benjamini–Hochberg adjusted p: of the genes below alpha, a share of at most alpha is expected to be false.

    p (m,) in [0, 1] -> (m,), in the order given. NaN stays NaN and does not count in m. The i-th smallest becomes
    the minimum over j >= i of p_(j) m / j. [HE2RNA Results]
    """
    p, order, adjusted = _ascending(p)  # (m,)
    steps = p * (len(p) / np.arange(1, len(p) + 1))
    adjusted[order] = np.minimum.accumulate(steps[::-1])[
        ::-1
    ]  # the last step is p_(m) <= 1: no clipping
    return adjusted


def _ascending(p):
    """(G,) -> the m real p sorted (m,), their places (m,), and (G,) NaN to be filled there."""
    p = np.asarray(p, np.float64)
    assert p.ndim == 1 and not ((p < 0) | (p > 1)).any(), (
        "p must be one list of numbers in [0, 1] or NaN"
    )
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    return p[order], order, np.full(p.shape, np.nan)


def wilcoxon_signed_rank(x, y):
    """Two-sided Wilcoxon signed-rank test of pairs: is x - y symmetric around 0?

    x, y (n,) -> (min(W+, W-), p); W+ the sum of the ranks of |x - y| where x > y. Pairs with x = y are dropped.
    Without equal pairs, without ties and with n <= 50: exact, as scipy.stats.wilcoxon(x, y, method="exact").
    Otherwise as method="asymptotic", correction=True: normal, variance less the ties, half a step of continuity.
    (SciPy's own "auto" has no correction, and permutes for n <= 13 with ties.) Differences in float64.
    All pairs equal: (0, 1.0). No pairs, or a NaN: (nan, nan). [ours]
    """
    d = np.asarray(x, np.float64) - np.asarray(y, np.float64)  # (n,)
    assert d.ndim == 1, d.shape
    if d.size == 0 or np.isnan(d).any():
        return math.nan, math.nan
    pairs, d = d.size, d[d != 0]
    n, size = d.size, np.abs(d)
    ranks, total = rankdata(size), n * (n + 1) / 2
    w = min(ranks[d > 0].sum(), total - ranks[d > 0].sum())  # the lower tail, W- = total - W+
    if n == 0:
        p = 1.0
    elif n == pairs <= EXACT_SIGNED_RANK and not _ties(size):
        p = 2 * _signed_rank_counts(n)[: int(w) + 1].sum() / 2.0**n
    else:
        variance = (n * (n + 1) * (2 * n + 1) - _ties(size) / 2) / 24
        p = _two_sided_normal(w - total / 2, variance)
    return float(w), min(float(p), 1.0)


def wilcoxon_rank_sum(x, y):
    """Two-sided Wilcoxon rank-sum (Mann–Whitney) test of two groups: is either one shifted?

    x (n1,), y (n2,) -> (U of x, p); U counts the pairs with x > y, a tie as half. As scipy.stats.mannwhitneyu(x, y):
    exact without ties and with min(n1, n2) <= 8, otherwise normal with ties and continuity corrected.
    All values equal: p = 1.0. An empty group, or a NaN: (nan, nan). [ours]
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert x.ndim == y.ndim == 1, (x.shape, y.shape)
    both, m, n = np.concatenate([x, y]), *sorted((x.size, y.size))
    if m == 0 or np.isnan(both).any():
        return math.nan, math.nan
    u = _pairs_won(x, y)
    lower, ties = min(u, m * n - u), _ties(both)
    if m <= EXACT_RANK_SUM and not ties:
        p = 2 * _rank_sum_counts(m, n)[: int(lower) + 1].sum() / math.comb(m + n, m)
    else:
        variance = m * n / 12 * (m + n + 1 - ties / ((m + n) * (m + n - 1)))
        p = _two_sided_normal(lower - m * n / 2, variance)
    return u, min(float(p), 1.0)


def _pairs_won(x, y):
    """U of x: over all pairs, 1 for x > y and 1/2 for x = y, from the rank sum of x."""
    return float(rankdata(np.concatenate([x, y]))[: x.size].sum() - x.size * (x.size + 1) / 2)


def _ties(values):
    """Sum of t^3 - t over the groups of t equal values: 0 without ties."""
    t = np.unique(values, return_counts=True)[1].astype(np.float64)
    return float((t**3 - t).sum())


def _two_sided_normal(below_mean, variance):
    """p of a lower-tail statistic (below_mean <= 0), moved half a step towards the mean; all tied: 1."""
    step = min(below_mean + 0.5, 0.0)  # never past the mean
    return 2 * special.ndtr(step / math.sqrt(variance)) if variance > 0 else 1.0


@functools.lru_cache(maxsize=None)  # the same n for every gene
def _signed_rank_counts(n):
    """(n(n+1)/2 + 1,): of all 2^n sign patterns, how many have W+ = w. Exact in float64 up to n = 52."""
    ways = np.ones(1)
    for rank in range(1, n + 1):  # sign - : w stays; sign + : w moves by rank
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    return ways


@functools.lru_cache(maxsize=64)
def _rank_sum_counts(m, n):
    """(mn + 1,): of all C(m+n, m) ways to place m among n, how many have U = u.

    The coefficients of q^u in the product over i = 1..m of (1 - q^(n+i)) / (1 - q^i): a factor above is a shifted
    subtraction, a factor below a cumulative sum with stride i. Summing all choices of ranks gives the same, slower.
    """
    ways = np.zeros(m * n + 1)
    ways[0] = 1
    for i in range(1, m + 1):
        ways[n + i :] -= ways[: -(n + i)].copy()
        for start in range(i):
            ways[start::i] = np.cumsum(ways[start::i])
    return ways


def roc_auc(labels, scores):
    """Area under the ROC curve: the chance that a positive scores above a negative, a tie counting half.

    labels (n,) bool or 0/1 (positive where above 0), scores (n,) -> float. The Mann–Whitney U over the number
    of pairs. nan with one class only, or with a NaN. [HE2RNA Methods, Statistics and reproducibility]
    """
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    assert labels.shape == scores.shape and labels.ndim == 1, (labels.shape, scores.shape)
    positive, negative = scores[labels > 0], scores[~(labels > 0)]
    if not positive.size or not negative.size or np.isnan(labels).any():
        return math.nan  # NaN scores: their ranks are nan
    return _pairs_won(positive, negative) / (positive.size * negative.size)


def roc_curve(labels, scores):
    """ROC as a staircase that steps at each score, ties in one step: false and true positive rate, both (steps + 1,), from
    (0, 0) to (1, 1). labels (n,) bool or 0/1, scores (n,), no NaN, both classes. Area by trapezoids: `roc_auc`."""
    above, all_above = _from_the_top(labels, scores)
    return (all_above - above) / (all_above - above)[-1], above / above[-1]


def pr_curve(labels, scores):
    """Recall and precision (steps + 1,) as the threshold falls, ties in one step; begins at recall 0 with precision 1."""
    above, all_above = _from_the_top(labels, scores)
    return above / above[-1], np.where(all_above > 0, above / np.maximum(all_above, 1), 1)


def pr_auc(labels, scores):
    """Area under the precision-recall curve as average precision: the mean over the positives of the precision at their
    score, as scikit-learn's average_precision_score; trapezoids would be too kind. nan with one class only, or with a NaN.
    Chance gives the share of the positives. [HistCode Figs. 2, 3]"""
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if np.isnan(labels).any() or np.isnan(scores).any() or len(set((labels > 0).tolist())) < 2:
        return math.nan
    recall, precision = pr_curve(labels, scores)
    return float((np.diff(recall) * precision[1:]).sum())


def _from_the_top(labels, scores):
    """(n,), (n,) -> positives and all samples at or above each score, from the highest down: (steps + 1,), from 0."""
    level = np.unique(-np.asarray(scores, np.float64), return_inverse=True)[1]  # ties share a level
    return tuple(
        np.r_[0, np.bincount(level, v).cumsum()]
        for v in (np.asarray(labels) > 0, np.ones(len(level)))
    )


def holder(points, coords, tile):
    """Which tile holds each point, -1 for none.

    points (m, 2) x, y in level-0 pixels, finite; coords (n, 2) level-0 top-left of tiles that do not overlap, on any
    grid or none; tile: edge in level-0 pixels, a real number -> (m,) int.
    A point lies in the pixel [x, x + 1) x [y, y + 1), and a tile holds the pixels from its top-left up to, not with, its
    far edges. So tiles whose real pitch was rounded down to whole pixels leave no gap. A pixel that two tiles share
    goes to the tile whose centre is nearer: each point has one tile. [ours]
    """
    points, coords = (
        np.asarray(points, np.float64).reshape(-1, 2),
        np.asarray(coords, np.float64).reshape(-1, 2),
    )
    if not len(points) or not len(coords):
        return np.full(len(points), -1)
    candidates = np.arange(1, min(4, len(coords)) + 1)  # no more than 4 squares meet in a point
    near = cKDTree(coords + tile / 2).query(points, candidates, p=np.inf)[1]  # (m, 4) nearest first
    inner = np.floor(points)[:, None] - coords[near]  # (m, 4, 2) pixels from the tile's top-left
    held = ((inner >= 0) & (inner < tile)).all(2)  # (m, 4)
    return np.where(held.any(1), near[np.arange(len(points)), held.argmax(1)], -1)


def count_points(points, coords, tile):
    """Points in each tile, as the T cells of the paper: (m, 2), (n, 2), edge -> (n,) int. As `holder`. [HE2RNA Fig. 4c]"""
    which = holder(points, coords, tile)
    return np.bincount(which[which >= 0], minlength=len(coords))


def shifts(coords_list, n, seed):
    """Null draws that keep the likeness of neighbours: each slide's values moved as a whole, to nowhere in particular.

    coords_list: (m_s, 2) locations of each slide s, m_s > 0, any unit -> yields n index arrays (sum m_s,): a[index] is
    a moved. Each slide's locations go round a torus (their bounding box and one spacing) by one random
    vector, and each location takes the value of the moved one now nearest. Values stay in their slide; some come
    twice, some never. Maps are moved, not shuffled: neighbours are alike, and a shuffle would make p too small. [ours]
    """
    rng, trees, first = np.random.default_rng(seed), [], 0
    for xy in coords_list:
        xy = np.asarray(xy, np.float64) - np.min(xy, axis=0)  # (m_s, 2)
        places = np.unique(xy, axis=0)
        spacing = np.median(cKDTree(places).query(places, [2])[0]) if len(places) > 1 else 1.0
        size = np.ptp(xy, axis=0) + spacing  # the torus, never 0 wide
        trees.append((xy, size, cKDTree(xy, boxsize=size), first))
        first += len(xy)
    for _ in range(n):
        yield np.concatenate(
            [
                tree.query((xy - rng.random(2) * size) % size)[1] + first
                for xy, size, tree, first in trees
            ]
        )


def shift_p(a, b, coords_list, n=999, seed=0, tick=lambda n: None):
    """Pearson R of scores and measured values over locations, and its one-sided p against shifted scores (`shifts`).

    a (m,) or (m, G) scores, b (m, G) or (m,) measured, over the locations of all slides end to end -> R (G,), p (G,):
    the share of the n + 1 draws, the unmoved one among them, whose R is at least R. nan where R is nan (`pearson`).
    It is always a that moves: one column moves at the price of one. A draw near no shift at all is a draw too, so p of a
    single slide can't fall much below 1 / m, however large n. What differs between slides moves with them: p is of the
    likeness within slides. Memory: 8 n m bytes and a few blocks of genes. tick is told how many genes a block had.
    [ours; the paper gives R alone, Fig. 4c]
    """
    a, b = (np.asarray(v)[:, None] if np.ndim(v) == 1 else np.asarray(v) for v in (a, b))
    m, G = b.shape
    assert a.shape in ((m, 1), (m, G)) and sum(map(len, coords_list)) == m, (
        a.shape,
        b.shape,
        list(map(len, coords_list)),
    )
    if m < 2:
        return np.full(G, np.nan), np.full(G, np.nan)
    draws = np.empty((n + 1, m), np.int32)
    draws[0], draws[1:] = np.arange(m), np.fromiter(shifts(coords_list, n, seed), (np.int32, m), n)
    r, p = np.full(G, np.nan), np.full(G, np.nan)
    with np.errstate(all="ignore"):  # 0/0 only where the answer is nan
        for j in range(0, G, GENE_BLOCK):
            block = slice(j, j + GENE_BLOCK)
            scores, measured = a[:, block] if a.shape[1] == G else a, b[:, block]
            x, y = _unit(scores), _unit(measured)  # (m, 1 or g), (m, g)
            null = np.array([_moved_r(x[draw], y) for draw in draws])  # (n + 1, g); the first is R
            varies = _varies(scores) & _varies(measured)
            r[block] = np.where(varies, np.clip(null[0], -1, 1), np.nan)
            reached = ~(null < null[0] - TIED)  # so is nan, of scores moved onto one value
            p[block] = np.where(varies, reached.mean(0), np.nan)
            tick(len(varies))
    return r, p


def _moved_r(x, y):
    """R of moved unit columns (m, 1 or g), whose repetitions left them neither centred nor of length 1, with unit y."""
    x = x - x.mean(0)
    return np.einsum("mg,mg->g", x, y) / np.sqrt(np.einsum("mg,mg->g", x, x))


def inside(points, polygons):
    """Whether each point lies in any of the polygons.

    points (m, 2); polygons: a list of polygons, each a list of rings (k, 2), closed or not: the outline and its holes,
    in any order and direction (`read_rings`) -> (m,) bool. Even-odd rule within a polygon: in where a ray to the right
    crosses its rings an odd number of times; union over polygons. Left and top edges are in, right and bottom ones out,
    so neighbours with a common edge never share a point. [ours]
    """
    points = np.asarray(points, np.float64).reshape(-1, 2)
    order = np.argsort(points[:, 1])
    x, y = points[order].T  # (m,) by ascending y
    within = np.zeros(len(points), bool)
    for rings in polygons:
        odd = np.zeros(len(points), bool)
        for ring in rings:
            ends = np.stack([ring, np.roll(ring, -1, 0)], 1).astype(np.float64)  # (k, 2 ends, x y)
            ends = np.where(
                ends[:, :1, 1:] <= ends[:, 1:, 1:], ends, ends[:, ::-1]
            )  # upper end first, from either side
            first, last = np.searchsorted(
                y, ends[:, :, 1]
            ).T  # (k,) points with y in [upper end, lower end)
            for i in np.flatnonzero(first < last):
                (x0, y0), (x1, y1), at = *ends[i], slice(first[i], last[i])
                odd[at] ^= x[at] < x0 + (y[at] - y0) * ((x1 - x0) / (y1 - y0))
        within |= odd
    return within[np.argsort(order)]


def read_rings(geojson):
    """Polygons of a GeoJSON value: a list of polygons, each a list of rings (k, 2) float, as `inside` takes them.

    geojson: the parsed file: a FeatureCollection, a list of Features (as QuPath writes), a Feature or a geometry. Polygon
    and MultiPolygon count, a hole is a ring of its polygon; lines, points and the rest are passed over. ValueError, one
    line, when no polygon is there or one can't be read.
    """
    features = geojson.get("features", geojson) if isinstance(geojson, dict) else geojson
    polygons = []
    for i, feature in enumerate(features if isinstance(features, list) else [features]):
        shape = feature.get("geometry", feature) if isinstance(feature, dict) else None
        kind = shape.get("type") if isinstance(shape, dict) else None
        if kind not in ("Polygon", "MultiPolygon"):
            continue
        try:
            for rings in [shape["coordinates"]] if kind == "Polygon" else shape["coordinates"]:
                polygons.append(
                    [
                        np.array([(x, y) for x, y, *_ in ring], np.float64).reshape(-1, 2)
                        for ring in rings
                    ]
                )
                if not all(
                    (np.abs(ring) < 1e9).all() for ring in polygons[-1]
                ):  # no slide has as many pixels
                    raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):  # of an integer of 400 digits
            raise ValueError(
                f"feature {i + 1}: the coordinates of its {kind} are not rings of x, y numbers"
            ) from None
    if not any(len(ring) > 2 for rings in polygons for ring in rings):
        raise ValueError("no Polygon or MultiPolygon in it: draw an outline, export it as GeoJSON")
    return polygons


def null_fit(null_r):
    """A null of many R, summed up as (mean, n): it scatters around its mean as one chance R over n samples does.

    null_r: R of every gene under untrained models (M, G) [HE2RNA Methods, Statistics and reproducibility], or of
    permuted slides (`permutation_null`), computed as the R it will judge: mean of the folds. nan does not count.
    Why a fit: N null R can't show a p below 1 / (N + 1), and the first Šidák step over 30,839 genes asks for 1.7e-6;
    correlated genes make N worth less than it is. Why this one: one chance R has variance 1 / (n - 1) and the law of
    `pearson_p`, and a mean of folds comes close (folds of 9, 9, 9, 9, 8 at p = 1.7e-6, by convolution: R .671; this fit
    .662; a normal fit of Fisher's z .644, its tail being too short for few samples; at five of 209 all three .143 to .144).
    The SD is at least the one at which the fit reaches the null's own 99 % quantile, for nulls with heavy tails. Assumed:
    all genes share one null. nan, nan without spread. An untrained model's n may be far below the number of slides:
    random features of a slide already follow expression, so this null is wider than chance. [ours]
    """
    null_r = np.asarray(null_r, np.float64)
    null_r = null_r[~np.isnan(null_r)]  # (N,)
    if null_r.size < 2 or np.ptp(null_r) == 0:
        return math.nan, math.nan
    mean = null_r.mean()
    tail = (np.quantile(null_r, NULL_TAIL) - mean) / special.ndtri(NULL_TAIL)
    return float(mean), float(1 + 1 / max(null_r.std(), tail) ** 2)


def null_p(r, mean, n):
    """One-sided p of R against a null of `null_fit`: the t with the null's n, around the null's mean. r (G,) -> (G,).

    R is moved by the mean as Fisher's z is (tanh(z - z0)), so that it stays between -1 and 1.

    nan for nan R, and for a null as wide as that of fewer than 3 samples (SD above .7), under which no R means anything.
    """
    r = np.asarray(r, np.float64)
    return pearson_p((r - mean) / (1 - r * mean), n)


def null_threshold(p, mean, n):
    """The smallest R whose `null_p` is at most p: R_sign of a cancer, for p of the first Šidák step.

    The paper's .20 for LUNG is a null of n = 530 or so in this sense; it had 1,046 slides. [HE2RNA Results]
    """
    r = r_threshold(p, n)
    return (r + mean) / (1 + r * mean)


def permutation_null(prediction, truth, fold, n_permutations, rng):
    """R of every gene when each slide is given another slide's prediction: (n_permutations, G), a null for `null_fit`.

    prediction, truth (n, G) of one cancer; fold (n,). Slides change places within their fold (any finer label keeps
    more fixed: fold and subtype, say), whole, so genes stay as correlated as they are; R is the mean of the folds, as in
    the result; folds of fewer than 3 slides don't count. Slides are exchanged as if each had its own patient. A fold's R
    over all orders has mean 0 and variance 1 / (n - 1) exactly, whatever the values: so without drawing any, `null_fit`
    is 0 and 1 + 1 / (variance of their mean); what is drawn shows the tails. The genes of one permutation share its luck,
    so few permutations err together, on the small side: take 50 or more. nan where R is nan. [ours]
    """
    folds = [rows for f in np.unique(fold) if len(rows := np.flatnonzero(fold == f)) >= MIN_R]
    shuffles = [[rng.permutation(len(rows)) for rows in folds] for _ in range(n_permutations)]
    r = np.full((n_permutations, truth.shape[1]), np.nan)
    for j in range(0, truth.shape[1] if folds else 0, GENE_BLOCK):
        total, count = 0, 0
        for i, x, y, varies in _fold_blocks(prediction, truth, folds, j):
            total = total + np.where(
                varies, [np.einsum("ng,ng->g", x[s[i]], y) for s in shuffles], 0
            )
            count = count + varies
        with np.errstate(invalid="ignore"):  # 0 / 0: no fold with a value
            r[:, j : j + GENE_BLOCK] = total / count
    return r


def _fold_blocks(prediction, truth, folds, j):
    """For each fold: (its number, x, y, varies): a block of genes from j on, columns centred and of length 1."""
    for i, rows in enumerate(folds):
        x, y = (
            prediction[rows, j : j + GENE_BLOCK],
            truth[rows, j : j + GENE_BLOCK],
        )  # (n of the fold, block)
        with np.errstate(all="ignore"):  # columns that don't vary become nan
            varies = _varies(x) & _varies(y)  # (block,)
            x, y = _unit(x), _unit(y)
        yield i, np.where(varies, x, 0), np.where(varies, y, 0), varies


def recurrent(significant):
    """Genes significant in several cancers: (P, G) bool -> in how many each gene is (G,), and at_least (P,).

    at_least[c - 1] counts the genes significant in at least c of the P cancers. [HE2RNA Fig. 2b]
    """
    cancers = np.count_nonzero(significant, axis=0)  # (G,)
    return cancers, (cancers >= np.arange(1, len(significant) + 1)[:, None]).sum(1)


def read_gmt(*paths):
    """{set name: (gene, ...)} of .gmt files, plain or gzip: a line per set, name, description, genes between tabs.

    Any line ends, with or without a byte order mark. A gene that stands twice in a set counts once; a set may be empty.
    A name that stands twice, in one file or two, must have the same genes and counts once. ValueError, one line with file
    and line, for everything else.
    """
    sets, places = {}, {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                data = file.read()
            text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
        except (gzip.BadGzipFile, EOFError, zlib.error) as e:
            raise ValueError(f"{path}: a damaged gzip file ({e})") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not a text file in UTF-8") from None
        found = False
        for number, line in enumerate(
            io.StringIO(text, newline=None), 1
        ):  # newline=None: \r\n and \r become \n
            name, *fields = (field.strip() for field in line.split("\t"))
            if not name and not any(fields):
                continue
            if not name or not fields:
                raise ValueError(
                    f"{path}, line {number}: wanted a name, a description and genes between tabs, "
                    f"found {line.strip()[:40]!r}"
                )
            genes = tuple(dict.fromkeys(g for g in fields[1:] if g))
            if set(genes) != set(sets.get(name, genes)):
                raise ValueError(
                    f"{path}, line {number}: set {name!r} stands in {places[name]} too, with different genes"
                )
            found = sets.setdefault(name, genes) is not None
            places.setdefault(name, f"{path}, line {number}")
        if not found:
            raise ValueError(f"{path}: no gene set in it")
    return sets


def combine_sets(sets, at_least=2):
    """The genes in at least two of several sets, in the order they come; of a single set, its genes. (sets) -> (gene, ...)

    [HE2RNA Methods, GSEA signatures]; B cell-mediated immunity has a single set there.
    """
    sets = [dict.fromkeys(genes) for genes in sets]  # once each, order kept
    return tuple(
        g
        for g in dict.fromkeys(g for genes in sets for g in genes)
        if sum(g in genes for genes in sets) >= min(at_least, len(sets))
    )


def fisher_enrichment(hits, gene_set, universe):
    """One-sided p of Fisher's exact test: the chance that so many of the hits are in the set, if hits fall anywhere.

    Three collections of names; universe: all tested genes. What is not in the universe does not count. 1.0 where the
    overlap is forced: no hits, no gene of the set tested, everything a hit. As scipy.stats.fisher_exact(...,
    alternative="greater"). [HE2RNA Methods, Statistics and reproducibility: "Fisher's exact tests"; one-sided: ours]
    """
    universe = set(universe)
    hits, members = universe.intersection(hits), universe.intersection(gene_set)
    return hypergeometric_tail(len(hits & members), len(members), len(hits), len(universe))


def hypergeometric_tail(overlap, size, n_hits, n):
    """P(at least `overlap` of `size` marked genes among n_hits drawn from n without replacement)."""
    if overlap <= max(0, size + n_hits - n):  # the least possible
        return 1.0
    k = np.arange(overlap, min(size, n_hits) + 1)  # what counts as so many, or more
    return float(
        min(
            1.0,
            np.exp(
                _log_ways(size, k) + _log_ways(n - size, n_hits - k) - _log_ways(n, n_hits)
            ).sum(),
        )
    )


def _log_ways(n, k):
    """log of the number of ways to choose k of n."""
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


def enrichment(hits, sets, universe):
    """`fisher_enrichment` of many sets {name: genes}: dict of arrays, one entry per set in the order of `sets`.

    size: genes of the set that were tested; overlap: those that are hits; expected: overlap by chance; fold: overlap over
    expected; p; bh: p corrected over the sets. A set without a tested gene has no p and is not counted as a test, since no
    outcome could have made it significant; p is 1 if there are no hits, or only hits. fold is nan without expectation.
    [HE2RNA Fig. 2c-e, HistCode Fig. 9]
    """
    universe = set(universe)
    hits = universe.intersection(hits)
    members = [universe.intersection(genes) for genes in sets.values()]
    size = np.array([len(m) for m in members], int)  # (sets,)
    overlap = np.array([len(m & hits) for m in members], int)
    expected = size * (len(hits) / max(len(universe), 1))
    p = np.array(
        [
            hypergeometric_tail(o, s, len(hits), len(universe)) if s else np.nan
            for o, s in zip(overlap, size)
        ],
        float,
    )  # (sets,)
    fold = np.divide(overlap, expected, out=np.full(len(p), np.nan), where=expected > 0)
    return dict(
        size=size, overlap=overlap, expected=expected, fold=fold, p=p, bh=benjamini_hochberg(p)
    )


def expression_bins(level, n_bins=EXPRESSION_BINS):
    """Bin of each gene, 0 to n_bins - 1, equally full, by its mean expression. level (m,) -> (m,) int. [ours]"""
    assert not np.isnan(level).any(), "every gene has an expression level"
    return (rankdata(level, method="ordinal").astype(int) - 1) * n_bins // max(len(level), 1)


def random_lists(members, bins, n_lists, rng):
    """Random gene lists like a signature: as long, with as many genes of each bin, no gene twice. (n_lists, s) int.

    members (s,) gene numbers; bins (m,) int of all genes to draw from (`expression_bins`, or all equal: any gene).
    Each list is a uniform draw: a bin's genes are shuffled and cut into hands, as cards.
    So lists of one shuffle share no gene, which leaves the expected count of lists, and p, as with independent ones. [ours]
    """
    hands = []
    for b, s in zip(*np.unique(bins[members], return_counts=True)):
        deck = np.flatnonzero(bins == b)
        per_deck = len(deck) // s
        decks = np.tile(deck, (-(-n_lists // per_deck), 1))
        rng.permuted(decks, axis=1, out=decks)  # each row shuffled by itself
        hands.append(decks[:, : per_deck * s].reshape(-1, s)[:n_lists])
    return np.hstack(hands)


def random_list_test(r, significant, members, n_lists, rng, bins=None):
    """Are a signature's genes better predicted than random lists of the same length? [HE2RNA Fig. 3]

    r, significant (m, P) of m genes in P cancers, nan and False where a gene has no R; members (S, m) bool, a signature per
    row; bins (m,): lists matched in `random_lists`, else of any genes. Returns a dict of (S, P): size, the signature's
    genes with an R; r and share, their mean R and the share significant (the paper's R_p, f_p); r_random and share_random,
    the same over the lists (R_o, f_o); p_r and p_share = (1 + lists that reach the signature) / (1 + n_lists), equality
    counting as reached. Without a gene with an R: nan. Lists are drawn, at equal length, from the genes with an R in that
    cancer; cancers with the same genes share their lists, so their p are correlated, each still right by itself.
    (The paper counts the lists above the signature only; counting the signature itself keeps p above 0. [ours]) p_share
    estimates `hypergeometric_tail`. The genes of a signature vary together, those of a random list do not: p tells whether
    these genes stand out, not whether their pathway would again, for which it is too small. By chance alone p < .05 in
    1.4 of 28 cancers.
    """
    r, significant = np.asarray(r, np.float64), np.asarray(significant, np.float64)
    bins = np.zeros(len(r), int) if bins is None else np.asarray(bins)
    names = "r", "share", "r_random", "share_random", "p_r", "p_share"
    out = {name: np.full((len(members), r.shape[1]), np.nan) for name in names}
    out["size"] = np.asarray(members, int) @ ~np.isnan(r)  # (S, P)
    patterns, which = np.unique(~np.isnan(r), axis=1, return_inverse=True)  # (m, patterns), (P,)
    for k, pattern in enumerate(patterns.T):
        genes, cancers = np.flatnonzero(pattern), np.flatnonzero(which == k)
        table = np.vstack(
            [r[np.ix_(genes, cancers)].T, significant[np.ix_(genes, cancers)].T]
        )  # (2 cancers, genes)
        for i in range(len(members)):
            own = np.flatnonzero(np.asarray(members[i], bool)[genes])
            if len(own):
                results = _against_lists(table, own, bins[genes], n_lists, rng)
                for name, value in zip(names, np.reshape(results, (6, -1))):
                    out[name][i, cancers] = value
    return out


def _against_lists(table, own, bins, n_lists, rng):
    """Mean of the columns `own` of each row of table (rows, m), that of random lists, and p: three of (rows,)."""
    observed, total, reached = table[:, own].mean(1), 0, 0
    for start in range(0, n_lists, LIST_BLOCK):
        lists = random_lists(own, bins, min(LIST_BLOCK, n_lists - start), rng)  # (block, s)
        means = np.stack([row[lists].mean(1) for row in table])  # (rows, block)
        total, reached = (
            total + means.sum(1),
            reached + (means >= observed[:, None] - TIED).sum(1),
        )  # equal: reached
    return observed, total / n_lists, (1 + reached) / (1 + n_lists)


def patient_draws(patients, n_draws, rng):
    """Bootstrap over patients: (n_draws, n) how often each sample's patient was drawn, with all samples. [ours]"""
    names, which = np.unique(np.asarray(patients), return_inverse=True)
    return rng.multinomial(len(names), np.full(len(names), 1 / max(len(names), 1)), n_draws)[
        :, which
    ].astype(float)


def bootstrap_r(prediction, truth, patients, fold, n_draws, rng):
    """95 % interval of every gene's R (mean of the folds) over patients drawn with replacement: (low (G,), high (G,)).

    prediction, truth (n, G) of one cancer; patients, fold (n,). R of a draw from five weighted sums, for all draws at once
    as matrix products. The models stay as they are: the interval tells of other patients, not of another training.
    Folds below 3 slides don't count; a fold whose draw does not vary gives that draw no R. nan where R is nan, and below 2
    patients. Percentiles of few patients are too narrow: below about 20 take the interval as a lower bound. [ours]
    """
    folds = [rows for f in np.unique(fold) if len(rows := np.flatnonzero(fold == f)) >= MIN_R]
    low, high = np.full((2, truth.shape[1]), np.nan)
    if len(set(patients)) < 2 or not folds:
        return low, high
    weights = patient_draws(patients, n_draws, rng)  # (draws, n)
    for j in range(0, truth.shape[1], GENE_BLOCK):
        total, count = 0, 0
        for i, x, y, varies in _fold_blocks(prediction, truth, folds, j):
            r = _weighted_r(x, y, weights[:, folds[i]])  # (draws, block)
            total, count = total + np.nan_to_num(r), count + ~np.isnan(r)
        with np.errstate(invalid="ignore"):
            low[j : j + GENE_BLOCK], high[j : j + GENE_BLOCK] = _interval(total / count)
    return low, high


def _weighted_r(x, y, weights):
    """R of each column with each row of weights: x, y (n, G) centred, weights (draws, n) -> (draws, G); nan if constant."""
    n = weights.sum(1)[:, None]  # (draws, 1)
    sx, sy, xx, yy, xy = (weights @ v for v in (x, y, x * x, y * y, x * y))  # (draws, G)
    varies = (n * xx - sx * sx > 1e-9 * n * xx) & (
        n * yy - sy * sy > 1e-9 * n * yy
    )  # else the same slide again
    with np.errstate(all="ignore"):
        r = (n * xy - sx * sy) / np.sqrt((n * xx - sx * sx) * (n * yy - sy * sy))
    return np.where(varies, np.clip(r, -1, 1), np.nan)


def bootstrap_auc(labels, scores, patients, n_draws, rng):
    """95 % interval of `roc_auc` over patients drawn with replacement: (low, high).

    labels, scores, patients (n,). Draws with one class only have no AUC and are left out. nan with one class only, with a
    NaN, and below 2 patients. [ours]
    """
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if len(set(patients)) < 2 or np.isnan(labels).any() or np.isnan(scores).any():
        return math.nan, math.nan
    positive, negative = _drawn_levels(labels, scores, patients, n_draws, rng)
    won = (positive * (np.cumsum(negative, axis=1) - negative / 2)).sum(
        1
    )  # (draws,) a tie is half won
    with np.errstate(invalid="ignore"):
        low, high = _interval((won / (positive.sum(1) * negative.sum(1)))[:, None])
    return float(low[0]), float(high[0])


def bootstrap_pr_auc(labels, scores, patients, n_draws, rng):
    """95 % interval of `pr_auc`, as `bootstrap_auc`."""
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if (
        len(set(patients)) < 2
        or np.isnan(labels).any()
        or np.isnan(scores).any()
        or len(set((labels > 0).tolist())) < 2
    ):
        return math.nan, math.nan
    positive, negative = (
        v[:, ::-1] for v in _drawn_levels(labels, scores, patients, n_draws, rng)
    )  # highest first
    with np.errstate(invalid="ignore"):
        precision = np.cumsum(positive, axis=1) / np.cumsum(positive + negative, axis=1)
        area = np.nansum(positive * precision, axis=1) / positive.sum(1)  # nan without positives
        low, high = _interval(np.where(negative.sum(1) > 0, area, np.nan)[:, None])
    return float(low[0]), float(high[0])


def bootstrap_mean(values, patients, n_draws, rng):
    """95 % interval of the mean of values (n,), an accuracy where they are hits, over patients drawn with replacement."""
    if len(set(patients)) < 2:
        return math.nan, math.nan
    weights = patient_draws(patients, n_draws, rng)
    low, high = _interval((weights @ np.asarray(values, np.float64) / weights.sum(1))[:, None])
    return float(low[0]), float(high[0])


def _drawn_levels(labels, scores, patients, n_draws, rng):
    """How often positives and negatives of each distinct score, ascending, were drawn: two (n_draws, levels)."""
    level = np.unique(scores, return_inverse=True)[1]  # ties share a level
    weights, order = patient_draws(patients, n_draws, rng), np.argsort(level, kind="stable")
    starts = np.flatnonzero(np.diff(level[order], prepend=-1))
    return tuple(
        np.add.reduceat((weights * v)[:, order], starts, axis=1)
        for v in (labels > 0, ~(labels > 0))
    )


def _interval(draws):
    """Percentiles over the draws that have a value: (draws, G) -> (low (G,), high (G,)); nan where none has.

    As np.nanquantile, linear between draws, which sorts gene by gene.
    """
    draws = np.sort(draws, axis=0)  # NaN last
    place = np.array(INTERVAL)[:, None] * np.maximum(
        np.count_nonzero(~np.isnan(draws), axis=0) - 1, 0
    )  # (2, G)
    below, above = (np.take_along_axis(draws, f(place).astype(int), 0) for f in (np.floor, np.ceil))
    return below + (place % 1) * (above - below)


def random_baseline(truth, rng):
    """Random predictions: uniform between the 5 % and the 95 % quantile of each gene's truth. (n, G) -> (n, G).

    A gene with a NaN has none. [HistCode Results, Fig. 4]. Their R with the truth has mean 0 and SD 1 / sqrt(n - 1); the
    paper's SD of .15 is that of n = 45, not of its 153 patients (.08).
    """
    low, high = np.quantile(np.asarray(truth, np.float64), BASELINE_RANGE, axis=0)  # (G,), (G,)
    return low + (high - low) * rng.random(truth.shape)


def against_baseline(prediction, truth, baseline):
    """Prediction against random baseline, gene by gene: dict of (G,) arrays. prediction, truth, baseline (n, G).

    p, bh: two-sided signed-rank test of prediction against baseline, Benjamini-Hochberg over genes, as the paper words it
    ("significantly different from random baseline" [HistCode Results]). It tests location, not skill: predicting the
    mean of a skewed gene is "significantly different", and a perfect prediction of a symmetric gene is not.
    error_p, error_bh: the same of |prediction - truth| against |baseline - truth|; better: True where the prediction's
    errors are the smaller by that test's rank sums. [ours] nan (and not better) for a gene with a NaN.
    """
    errors = np.abs(prediction - truth), np.abs(baseline - truth)  # 2 x (n, G)
    p, error_p = (
        np.array([wilcoxon_signed_rank(a, b)[1] for a, b in zip(x.T, y.T)], float)
        for x, y in ((prediction, baseline), errors)
    )
    d = errors[0] - errors[1]
    ranks = rankdata(np.abs(d), axis=0) - (d == 0).sum(0)  # of the pairs that differ
    return dict(
        p=p,
        bh=benjamini_hochberg(p),
        error_p=error_p,
        error_bh=benjamini_hochberg(error_p),
        better=(np.sign(d) * ranks).sum(0) < 0,
    )


def r_against_baseline(r, baseline_r):
    """Rank-sum test of two distributions of R over genes, nan left out: (U, p), two-sided. [HistCode Results, Fig. 4]

    Genes are correlated, so p is smaller than the evidence: it describes the two histograms. [ours]
    """
    r, baseline_r = np.asarray(r), np.asarray(baseline_r)
    return wilcoxon_rank_sum(r[~np.isnan(r)], baseline_r[~np.isnan(baseline_r)])


def patient_folds(patients, projects, k, seed):
    """Test fold of each sample, 0 to k-1: patients whole, projects evenly spread over the folds.

    patients, projects (n,) names -> (n,) int. Fold sizes in patients differ by at most 1, in each project and
    overall. The order of the samples does not matter. ValueError if k < 2 or there are fewer patients than folds.
    Both demands are the paper's [HE2RNA Methods, Training and evaluation]; how they are met is [ours]. For folds
    of one organ that agree with those of all, call this once for the whole cohort, then select. [same place]
    """
    which, order = _lay_out(patients, projects, np.random.default_rng(seed))  # (n,), (P,)
    if not 2 <= k <= len(order):
        mend = (
            f"k must be from 2 to {len(order)}"
            if len(order) > 1
            else "at least 2 patients are needed"
        )
        raise ValueError(f"{k} folds of {len(order)} patients, who are never divided: {mend}")
    fold = np.empty(len(order), int)
    fold[order] = np.arange(len(order)) % k  # dealt out like cards, project after project
    return fold[which]


def site_folds(patients, projects, sites, k, seed):
    """As patient_folds, but with everybody from one site in one fold, projects spread as evenly as that allows. [ours]

    A site leaves its stain and scanner on every slide; where it stands on both sides, that can pass for biology (Howard et
    al. 2021, doi:10.1038/s41467-021-24698-1). patients, projects, sites (n,) names -> (n,) int. Largest sites first, each to
    the fold that stays most even; then single sites move while that helps. ValueError with fewer sites than folds.
    """
    one = np.unique(np.asarray(patients), return_index=True)[1]  # (P,) a row of each patient
    _, organ = np.unique(np.asarray(projects), return_inverse=True)
    names, site = np.unique(np.asarray(sites), return_inverse=True)
    if not 2 <= k <= len(names):
        raise ValueError(
            f"{k} folds of {len(names)} sites, which are never divided: k must be from 2 to {len(names)}"
        )
    fold, size = (
        np.full(len(names), -1),
        np.zeros((len(names), organ.max() + 1)),
    )  # (sites, projects)
    np.add.at(size, (site[one], organ[one]), 1)
    size = np.hstack([size, size.sum(1, keepdims=True)])  # and all projects together
    total, counts = size.sum(0), np.zeros((k, size.shape[1]))
    # squared distance from even, relative to each project's size: what adding `new` to each fold costs
    cost = lambda new: ((2 * counts * new + new**2) / total.clip(1)).sum(1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    order = order[np.argsort(-size[order, -1], kind="stable")]
    moved = True
    while moved:
        moved = False
        for s in order:
            before = fold[s]
            if before >= 0:
                counts[before] -= size[s]
            price = cost(size[s])
            fold[s] = (
                before if before >= 0 and price[before] <= price.min() + 1e-9 else price.argmin()
            )
            counts[fold[s]] += size[s]
            moved |= fold[s] != before
    return fold[site]


def fold_balance(patients, projects, fold, k):
    """How even folds are: ({project: patients in each fold (k,)}, chi-square of projects against folds, its degrees of
    freedom, p).

    p near 1: more even than by lot. A patient of several projects counts in the first. Small expected counts make p rough.
    """
    one = np.unique(np.asarray(patients), return_index=True)[1]
    names, organ = np.unique(np.asarray(projects)[one], return_inverse=True)
    counts = np.zeros((len(names), k), int)
    np.add.at(counts, (organ, np.asarray(fold)[one]), 1)
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    chi2 = float((np.square(counts - expected) / np.where(expected > 0, expected, 1)).sum())
    freedom = (len(names) - 1) * (int((counts.sum(0) > 0).sum()) - 1)
    return (
        dict(zip(names.tolist(), counts)),
        chi2,
        freedom,
        float(special.chdtrc(freedom, chi2)) if freedom else 1.0,
    )


def inner_split(patients, projects, share, seed):
    """Validation mask for early stopping inside a training part: a share of the patients, spread over the projects.

    patients, projects (n,), share of the patients (.1 [HE2RNA code]) -> (n,) bool, True for validation. At least one
    patient, never all; each project's part is within one patient of the share. The order of samples does not matter.
    ValueError with fewer than 2 patients. Every (1/share)-th patient of the projects laid end to end. [ours]
    """
    rng = np.random.default_rng(seed)
    which, order = _lay_out(patients, projects, rng)  # (n,), (P,)
    if len(order) < 2:
        raise ValueError(f"a validation part needs at least 2 patients; there are {len(order)}")
    count = min(max(round(share * len(order)), 1), len(order) - 1)
    start = rng.integers(len(order))  # else the first project would always be hit
    chosen = (np.arange(count) * len(order) + start) // count  # (count,) evenly spaced places
    return np.isin(which, order[chosen])


def _lay_out(patients, projects, rng):
    """Patients shuffled inside their project, projects end to end.

    (n,), (n,) -> which patient each sample is (n,), and the order (P,). Patients and projects are numbered by
    sorted name, so row order has no say. A patient of several projects belongs to the one with most of
    his or her samples, the first by name if equal. [ours]
    """
    names, which = np.unique(np.asarray(patients), return_inverse=True)
    organs, organ = np.unique(np.asarray(projects), return_inverse=True)
    assert which.shape == organ.shape and which.ndim == 1, (which.shape, organ.shape)
    samples = np.zeros((len(names), len(organs)), int)
    np.add.at(samples, (which, organ), 1)  # (P, projects) samples of each patient
    order = rng.permutation(len(names))
    home = samples.argmax(1) if len(names) else order  # (P,) argmax takes the first of equals
    return which, order[np.argsort(home[order], kind="stable")]


def authors_folds(patients):
    """The splits of the HE2RNA authors' code: [(train, valid, test)] * 5, sorted index arrays into the samples.

    patients (n,) names. Sorted unique patients are cut by scikit-learn's KFold(5, shuffle=True, random_state=0); of
    the others, train_test_split(test_size=.1, random_state=0) takes the validation patients: 72/8/20. Projects
    are not looked at. Set for set the released ones when given their patients. ValueError below 5. [HE2RNA code]
    """
    names, which = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < AUTHORS_FOLDS:
        raise ValueError(
            f"the authors' splits need at least {AUTHORS_FOLDS} patients; there are {len(names)}"
        )
    shuffled, splits = np.arange(len(names)), []
    np.random.RandomState(0).shuffle(shuffled)  # the legacy generator, frozen by NumPy
    for test in np.array_split(shuffled, AUTHORS_FOLDS):  # the first P % 5 folds hold one more
        others = np.setdiff1d(shuffled, test)  # ascending, as KFold gives them
        others = others[np.random.RandomState(0).permutation(len(others))]
        n_valid = math.ceil(AUTHORS_VALID * len(others))
        parts = others[n_valid:], others[:n_valid], test
        splits.append(tuple(np.flatnonzero(np.isin(which, part)) for part in parts))
    return splits
