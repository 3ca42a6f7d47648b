"""Folds of a cohort: who tests, who chooses the epoch, who is learned from, how even they are."""

import re

import numpy as np

import stats
from lab.cohort.sites import fold_balance, folds_by_site
from lab.files import InputError, few, save_csv, save_text
from lab.progress import table


def folds_of(samples, o):
    """Test fold of each sample: patients whole, projects evenly spread. (S,)"""
    patients = [s["patient"] for s in samples]
    projects = [s["project"] for s in samples]
    n = len(set(patients))
    if n < 3:
        why = "a fold needs one to test, one to validate and one to train on"
        raise InputError(f"{n} patients are too few: {why}")
    largest = -(-n // o.folds)
    if n < o.folds or n - largest < 2:
        mend = min(n, max(3, o.folds))
        raise InputError(f"{n} patients don't go into --folds {o.folds}: --folds {mend} would work")
    if "folds" in o.code:
        return authors_roles(patients)[0]
    if o.folds_by == "site":
        return site_folds(patients, projects, o)
    return stats.patient_folds(patients, projects, o.folds, o.seed)


def authors_roles(patients):
    """As in the authors' code, whatever the seed: the test fold of each sample (S,), and {patient:
    the folds whose epoch he or she chooses}. [HE2RNA code]
    """
    fold = np.zeros(len(patients), int)
    chooses = {patient: set() for patient in patients}
    for f, (_, valid, test) in enumerate(stats.authors_folds(patients)):
        fold[test] = f
        for row in valid:
            chooses[patients[row]].add(f)
    return fold, chooses


def site_folds(patients, projects, o):
    """As patient_folds, but no tissue source site, named in TCGA's barcodes, is divided. [ours]"""
    odd = sorted({p for p in patients if not re.match(r"TCGA-\w\w-", p)})
    if odd:
        raise InputError(
            f"--folds-by site: the patients {few(odd)} have no TCGA barcode (TCGA-XX-..., XX the "
            "site): leave --folds-by out"
        )
    sites = [p[5:7] for p in patients]
    used = len(set(sites))
    if used >= o.folds:
        fold = folds_by_site(patients, projects, sites, o.folds, o.seed)
        used = len(set(fold.tolist()))
    if used < o.folds:
        raise InputError(
            f"--folds-by site: the sites ({few(sorted(set(sites)))}) fill only {used} of --folds "
            f"{o.folds}: take fewer folds, or leave --folds-by out"
        )
    return fold


def check_folds(cohort, samples, fold, o, failed):
    """InputError where a fold leaves no two patients to learn from."""
    for f in range(o.folds):
        if len({s["patient"] for s, own in zip(samples, fold) if own != f}) < 2:
            raise InputError(
                f"{cohort}: fold {f} has fewer than 2 patients left to train and validate on, of "
                f"{len(samples)} slides of project {o.project or 'all'}; {len(failed)} failed"
            )


def split_folds(data, o):
    """Rows of each fold: [(train, valid, test)].

    Those that data.chooses names choose the epoch, where there are any: the models that
    fine-tuning starts from have not learned from them.
    """
    splits = []
    for f in range(o.folds):
        rest = np.flatnonzero(data.fold != f)
        who = data.patients[rest]
        valid = np.array([f in data.chooses.get(patient, ()) for patient in who])
        if o.valid and (valid.all() or not valid.any()):
            valid = stats.inner_split(who, data.projects[rest], o.valid, [o.seed, f])
        splits.append((rest[~valid], rest[valid], np.flatnonzero(data.fold == f)))
    return splits


def save_folds(folder, data, splits, by):
    """folds.csv: each slide's test fold, and the folds whose epoch it chooses; folds.md."""
    chooses = [[] for _ in data.slides]
    for f, (_, valid, _) in enumerate(splits):
        for row in valid:
            chooses[row].append(str(f))
    save_csv(
        folder / "folds.csv",
        ("slide", "patient", "project", "test_fold", "validates_folds"),
        zip(data.slides, data.patients, data.projects, data.fold, map(" ".join, chooses)),
    )
    counts, said = certificate(data, len(splits))
    save_text(folder / "folds.md", [f"# Folds of {folder.name}, by {by}", "", counts, "", said, ""])


def certificate(data, n_folds):
    """How even the folds are: (a table of each project's patients, a sentence with chi-square)."""
    counts, chi2, freedom, p = fold_balance(data.patients, data.projects, data.fold, n_folds)
    header = ("project", *(f"fold {f}" for f in range(n_folds)))
    said = "One project: nothing to spread evenly."
    if freedom:
        said = (
            f"Chi-square of projects against folds {chi2:.2f}, {freedom} degrees of freedom, "
            f"p = {p:.2g}: near 1 where the folds are more even than by lot, small where a fold "
            "has more of a project than others."
        )
    rows = [(name, *row) for name, row in counts.items()]
    return table(header, rows), f"Patients of each project. {said}"
