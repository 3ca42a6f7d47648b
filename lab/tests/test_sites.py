"""Folds that divide no hospital, and how even folds are."""

import numpy as np
import pytest
import scipy.stats

import stats
from lab.cohort.sites import fold_balance, folds_by_site


def cohort(rng, n_patients, n_projects):
    """Patients with 1 to 4 samples, rows shuffled, projects of uneven size."""
    organ = np.minimum(rng.geometric(0.3, n_patients) - 1, n_projects - 1)
    who = rng.permutation(np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients)))
    return np.array([f"TCGA-{w:04d}" for w in who]), np.array([f"P{organ[w]}" for w in who])


def test_fold_balance_equals_scipy_and_counts_patients_once():
    patients, projects = cohort(np.random.default_rng(0), 200, 6)
    rng = np.random.default_rng(1)
    for by_lot in (False, True):
        fold = stats.patient_folds(patients, projects, 5, 0)
        if by_lot:
            _, which = np.unique(patients, return_inverse=True)
            fold = rng.integers(5, size=which.max() + 1)[which]
        counts, chi2, freedom, p = fold_balance(patients, projects, fold, 5)
        want = scipy.stats.chi2_contingency(np.array(list(counts.values())))
        assert (chi2, freedom, p) == (
            pytest.approx(want.statistic),
            want.dof,
            pytest.approx(want.pvalue),
        ) and (p > 0.999) != by_lot
        assert sum(map(sum, counts.values())) == len(set(patients))
    counts, chi2, freedom, p = fold_balance(
        ["a", "b", "b"], ["X", "X", "X"], [0, 1, 1], 3
    )  # one project, an empty fold
    assert counts["X"].tolist() == [1, 1, 0] and (chi2, freedom, p) == (0, 0, 1)


def test_site_folds_keep_sites_whole_and_as_even_as_any_single_move():
    rng = np.random.default_rng(0)
    size = rng.geometric(0.1, 60)
    sites, projects = (
        np.repeat(np.arange(60), size).astype(str),
        np.repeat(np.arange(60) % 4, size).astype(str),
    )
    patients = [f"p{i}" for i in range(len(sites))]

    def even(fold):
        """Squared distance from even, of each project and of all together."""
        distance = 0
        for rows in [np.ones(len(fold), bool), *(projects == name for name in "0123")]:
            counts = np.bincount(fold[rows], minlength=5)
            distance += ((counts - rows.sum() / 5) ** 2).sum() / rows.sum()
        return distance

    fold = folds_by_site(patients, projects, sites, 5, 0)
    for s in set(sites):
        assert len(set(fold[sites == s])) == 1
        for f in range(5):
            assert even(np.where(sites == s, f, fold)) >= even(fold) - 1e-9
    by_lot = [even(rng.integers(5, size=60)[sites.astype(int)]) for _ in range(200)]
    assert even(fold) < min(by_lot)
    order = rng.permutation(len(sites))
    assert (
        folds_by_site(np.array(patients)[order], projects[order], sites[order], 5, 0) == fold[order]
    ).all()
    with pytest.raises(ValueError, match="from 2 to 60"):
        folds_by_site(patients, projects, sites, 61, 0)
