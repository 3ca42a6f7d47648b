"""Who trains, who chooses the epoch, who tests: the folds of a run."""

from typing import NamedTuple

import numpy as np

import histcode
from lab.histcode.bags import refuse

MAY_SEE = {  # steps that may see test patients, and why; None: they judge and teach nothing
    "gene filter": "availability only: a gene needs fold changes, not all equal, in half of all "
    "pairs",
    "optimism table": None,
    "random baseline": None,
    "shuffled patients": None,
    "external cohort": None,
}


class Fold(NamedTuple):
    """One model to train: rows of the bags in each of its parts."""

    repeat: int
    number: int
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def roles(part, f, folds, code=()):
    """Rows that train, choose the epoch of, and test model f; `--code stop`: test rows choose."""
    return histcode.roles(part, f, folds, "stop" in code)


def check_folds(n, data, o):
    """Refuse more parts than there are patients."""
    if n >= o.folds:
        return
    mend = f"--folds {n} would work"
    if n < 3:
        mend = "one part tests, one validates, the others train: at least 3 are needed"
    refuse(data, f"{n} patients don't go into --folds {o.folds} parts; {mend}")


def folds_of(data, o):
    """The folds of all repeats, and each bag's part in each repeat (repeats, n)."""
    patients, y = data["patients"], data["y"]
    check_folds(len(set(patients.tolist())), data, o)
    parts, folds = [], []
    for repeat in range(o.repeats):
        part = histcode.split_patients(patients, y, o.folds, [o.seed, repeat])
        parts.append(part)
        for f in range(tested_parts(o.folds, o.rotate)):
            folds.append(Fold(repeat, f, *roles(part, f, o.folds, o.code)))
    for fold in folds:
        if y[fold.train].min() == y[fold.train].max():
            refuse(
                data,
                f"the training part of fold {fold.number} has {data['what']} of one class only: "
                f"{len(y)} {data['what']}, {y.sum()} {data['classes'][1]}, are too few for "
                f"--folds {o.folds}",
            )
    return folds, np.array(parts)


def tested_parts(parts, rotate):
    """How many parts test in turn: all, or half of them, as the paper's five tests of 10 %."""
    return parts if rotate else max(1, parts // 2)
