"""Folds that divide no hospital, and how evenly folds hold the projects. [ours]"""

import numpy as np
from scipy import special

EQUAL = 1e-9  # prices nearer than this are equal: rounding


def folds_by_site(patients, projects, sites, k, seed):
    """Test fold of each sample: everybody from one site in one fold, projects as even as can be.

    A site leaves its stain and scanner on every slide; where it stands on both sides, that can pass
    for biology (Howard et al. 2021, doi:10.1038/s41467-021-24698-1). patients, projects, sites (n,)
    names -> (n,) int. The largest sites go first, each to the fold that stays most even; then
    single sites move while that helps. ValueError with fewer sites than folds.
    """
    names, site = np.unique(np.asarray(sites), return_inverse=True)
    if not 2 <= k <= len(names):
        raise ValueError(
            f"{k} folds of {len(names)} sites, which are never divided: k must be from 2 to "
            f"{len(names)}"
        )
    size, _ = patients_of(site, len(names), patients, projects)
    size = np.hstack([size, size.sum(1, keepdims=True)])  # and all projects together
    total = size.sum(0).clip(1)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-size[order, -1], kind="stable")]
    fold = np.full(len(names), -1)
    counts = np.zeros((k, size.shape[1]))
    moved = True
    while moved:
        moved = False
        for s in order:
            before = fold[s]
            if before >= 0:
                counts[before] -= size[s]
            # what the site adds to each fold's squared distance from even
            price = ((2 * counts * size[s] + size[s] ** 2) / total).sum(1)
            best = price.argmin()
            if before >= 0 and price[before] <= price[best] + EQUAL:
                best = before
            fold[s] = best
            counts[best] += size[s]
            moved |= bool(best != before)
    return fold[site]


def patients_of(group, n_groups, patients, projects):
    """Patients of each project in each group: (groups, projects), and the projects' names.

    group (n,) numbers. A patient of several projects or groups counts in the first.
    """
    one = np.unique(np.asarray(patients), return_index=True)[1]  # a row of each patient
    names, project = np.unique(np.asarray(projects)[one], return_inverse=True)
    counts = np.zeros((n_groups, len(names)), int)
    np.add.at(counts, (np.asarray(group)[one], project), 1)
    return counts, names


def fold_balance(patients, projects, fold, k):
    """How even folds are: ({project: patients in each fold (k,)}, chi-square of projects against
    folds, its degrees of freedom, p).

    p near 1: more even than by lot. Small expected counts make p rough.
    """
    counts, names = patients_of(fold, k, patients, projects)  # (k, projects)
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    chi2 = float((np.square(counts - expected) / np.where(expected > 0, expected, 1)).sum())
    used = np.count_nonzero(counts.sum(1))
    freedom = (len(names) - 1) * (used - 1)
    p = float(special.chdtrc(freedom, chi2)) if freedom else 1.0
    return dict(zip(names.tolist(), counts.T, strict=True)), chi2, freedom, p
