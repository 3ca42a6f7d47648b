"""Sections and donors that stand out from the other slides of a run. [ours]

A network learns such a difference as readily as biology, and folds tell it: their losses differ
many times over, and R of all slides together is not that within folds.
"""

import numpy as np

from lab.runs import read_log

APART = 0.2  # share of the variance of all genes between a patient's slides and the others  [ours]
TIMES = 5  # and so many times the other patients' median  [ours]
FEWEST = 100  # genes that can tell: a few vary together, and one patient far off is chance  [ours]
UNEVEN = 3  # times that the largest loss of the folds is the smallest  [ours]


def who_stands_apart(y, patients, projects):
    """[(cancer, patient, slides, of how many, share, that of others)] of patients who stand apart.

    The share of the variance of the expression y (S, G), over all genes, that lies between their
    slides and the others of the cancer; and the median of the other patients' shares.
    """
    found = []
    for cancer in np.unique(projects) if y.shape[1] >= FEWEST else ():
        rows = np.flatnonzero(projects == cancer)
        names, which = np.unique(patients[rows], return_inverse=True)
        n, n_all = np.bincount(which), len(rows)
        if len(names) < 3:
            continue
        off = y[rows] - y[rows].mean(0)
        between = [np.square(off[which == i].mean(0)).sum() for i in range(len(names))]
        share = between * n * n_all / (n_all - n) / max(np.vdot(off, off), np.finfo(float).tiny)
        for i in np.flatnonzero(share > APART):
            others = np.median(np.delete(share, i))
            if share[i] > TIMES * others:
                found.append((str(cancer), str(names[i]), int(n[i]), n_all, share[i], others))
    return found


def apart_said(apart):
    """A sentence for each patient who stands apart."""
    for cancer, patient, n, n_all, share, others in apart:
        yield (
            f"{cancer}: the expression of {patient} ({n} of {n_all} slides) is apart from the "
            f"others': {share:.0%} of the variance of all genes lies between them, of the other "
            f"patients {others:.0%} at the median. A section, donor or batch would differ so; R "
            "within folds keeps it out, R over all slides together does not."
        )


def losses_said(folder, ledgers, apart):
    """A sentence on training losses that differ much between the folds of a run, if they do.

    They are of the last epoch that all folds have. ledgers: of each fold, whom its network learned
    from.
    """
    each = {}
    for entry in read_log(folder):
        if "fold" in entry and "loss" in entry:
            each.setdefault(entry["fold"], {})[entry["epoch"]] = entry["loss"]
    epochs = set.intersection(*map(set, each.values())) if len(each) > 1 else ()
    if not epochs:
        return
    losses = {fold: by_epoch[max(epochs)] for fold, by_epoch in sorted(each.items())}
    low, high = min(losses.values()), max(losses.values())
    if not 0 < low * UNEVEN <= high:
        return
    said = ", ".join(f"{loss:.2g} (fold {fold})" for fold, loss in losses.items())
    at = f"at epoch {max(epochs)}"
    yield f"The training losses of the folds differ {high / low:.0f}-fold {at}: {said}."
    learned = [ledger.get("weights of the network", ()) for ledger in ledgers]
    for _, patient, *_ in apart:
        without = [str(fold) for fold in losses if patient not in learned[fold]]
        yield f"The networks of folds {', '.join(without)} did not learn from {patient}."
