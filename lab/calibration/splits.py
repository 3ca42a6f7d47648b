"""Two models over splits of the same patients, and genes that are not independent."""

from functools import partial

import numpy as np
import torch

import he2rna
import stats
from lab.calibration import share
from lab.fast.networks import threads, train_networks
from lab.histcode.ends import held_out_smoother, shuffled_p
from lab.histcode.expression import compared_over_parts, r_of_parts

ALPHA = 0.05
PATIENTS, HIGH, FEATURES = 60, 15, 8  # of a study of MSI, and what is known of a slide
SPLITS, REPEATS, HIDDEN = 10, 2, (16, 8)  # of small classifiers, for time
PAIRS, GENES, PROGRAMMES, PARTS = 60, 60, 3, 6  # of a study of fold changes
ORDERS = 99


def study(runs, rng):
    """Yield the rows: MSI's arms, HistCode's R as a whole, the cells of an ablation."""
    n = max(2, round(30 * runs))
    for noise, what in ((1, "equal arms"), (30, "the other arm knows next to nothing")):
        p = np.array([p_of_arms(noise, rng) for _ in range(n)])
        note = f"MSI: {PATIENTS} patients, {SPLITS} splits, half in A; {what}"
        nominal = ALPHA if noise == 1 else 1
        yield share("corrected t over splits", nominal, p[:, 0] < ALPHA, note)
        yield share("Wilcoxon over splits (the paper's)", nominal, p[:, 1] < ALPHA, note)
    note = f"HistCode: {PAIRS} pairs, {GENES} genes of {PROGRAMMES} programmes"
    p = np.array([p_of_genes(rng) for _ in range(5 * n)])
    said = f"{note}; nothing to find"
    yield share("R against random predictions, patients shuffled", ALPHA, p[:, 0] < ALPHA, said)
    yield share("the same by rank-sum over genes (the paper's)", ALPHA, p[:, 1] < ALPHA, said)
    p = np.array([p_of_cells(rng) for _ in range(5 * n)])
    said = f"{note}; two encoders worth the same"
    yield share("ablation, corrected t over test parts", ALPHA, p[:, 0] < ALPHA, said)
    yield share("ablation, signed-rank over genes", ALPHA, p[:, 1] < ALPHA, said)


def p_of_arms(noise, rng):
    """p by the corrected t and by Wilcoxon's test, of two arms that see the same patients.

    Each has features of its own, which tell the same of a patient but for their noise.
    """
    high = np.arange(PATIENTS) < HIGH
    patients = rng.normal(size=(PATIENTS, FEATURES))
    patients[:, 0] += 3 * high
    arms = [seen(patients, sd, FEATURES, rng) for sd in (1, noise)]
    device = torch.device("cpu")
    with threads(device) as pool:
        train = partial(train_networks, pool=pool, device=device)
        aucs = np.array([aucs_of_split(arms, high, train, rng) for _ in range(SPLITS)])
    p = stats.corrected_t(aucs[:, 0] - aucs[:, 1], 1)[3]  # as many in B as in A
    return p, he2rna.arms_p(*aucs.T)


def seen(patients, noise, width, rng):
    """Features (n, width) of patients (n, d): turned into more dimensions, and noise.

    What is only turned tells as much: two such features are worth the same.
    """
    n_known = patients.shape[1]
    mixture = np.linalg.qr(rng.normal(size=(width, n_known)))[0].T * (width / n_known) ** 0.5
    features = patients @ mixture + noise * rng.normal(size=(len(patients), width))
    return features.astype(np.float32)


def aucs_of_split(arms, high, train, rng):
    """AUC of each arm's classifiers in one division, as `he2rna.direct_arm` makes them."""
    in_a = he2rna.hospital_a(high, 1 / 2, rng)
    b = np.flatnonzero(~in_a)
    seed = [int(rng.integers(2**31))]
    tests = he2rna.folds_in_b(b, high[b], seed, repeats=REPEATS)
    aucs = []
    for x in arms:
        hospitals = he2rna.Hospitals(x, None, high, [], [b[~test] for test in tests], seed, train)
        scores = he2rna.classify(hospitals, [x] * len(tests), HIDDEN)[:, :, b]
        aucs.append(he2rna.fold_aucs(scores, np.arange(len(b)), high[b], tests).mean())
    return aucs


def p_of_genes(rng):
    """p of all R against random predictions, where features know nothing of the genes."""
    programmes = rng.normal(size=(PAIRS, PROGRAMMES))
    y = seen(programmes, 0.5, GENES, rng)
    part, penalties = np.arange(PAIRS) % PARTS, (10.0,) * PARTS
    ends = [rng.normal(size=(PAIRS, FEATURES))] * PARTS
    r = stats.pearson(held_out_smoother(ends, part, penalties) @ y, y)
    baseline = stats.pearson(stats.random_baseline(y, rng), y)
    _, p = shuffled_p(r, baseline, ends, part, penalties, y, rng, ORDERS)
    return p, stats.r_against_baseline(r, baseline)[1]


def p_of_cells(rng):
    """p of two encoders that see the same programmes, each with noise of its own."""
    programmes = rng.normal(size=(PAIRS, PROGRAMMES))
    y = seen(programmes, 0.5, GENES, rng)
    part, penalties = np.arange(PAIRS) % PARTS, (10.0,) * PARTS
    over_genes, by_part = [], []
    for _ in range(2):
        ends = [seen(programmes, 1, FEATURES, rng)] * PARTS
        prediction = held_out_smoother(ends, part, penalties) @ y
        over_genes.append(stats.pearson(prediction, y))
        by_part.append(r_of_parts(prediction, y, part))
    return compared_over_parts(*by_part)[3], stats.wilcoxon_signed_rank(*over_genes)[1]
