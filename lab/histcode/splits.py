"""Who trains, who chooses the epoch, who tests."""

import numpy as np

import histcode
from lab.histcode.bags import refuse


def roles(part, f, folds, code=()):
    """Rows that train, choose the epoch of, and test model f; with `stop` turned the test rows choose it."""
    follows = (f + 1) % folds
    chooses = f if "stop" in code else follows
    return tuple(
        np.flatnonzero(rows)
        for rows in ((part != f) & (part != follows), part == chooses, part == f)
    )


def check_folds(n, d, o):
    if n < o.folds:
        refuse(
            d,
            f"{n} patients don't go into --folds {o.folds} parts; "
            + (
                f"--folds {n} would work"
                if n > 2
                else "one part tests, one validates, the others train: at least 3 are needed"
            ),
        )


def folds_of(d, o):
    """[(repeat, fold, train, valid, test)] and each sample's part in each repeat (repeats, n)."""
    check_folds(len(set(d["patients"].tolist())), d, o)
    parts = np.array(
        [
            histcode.split_patients(d["patients"], d["y"], o.folds, [o.seed, r])
            for r in range(o.repeats)
        ]
    )
    jobs = [
        (r, f, *roles(part, f, o.folds, o.code))
        for r, part in enumerate(parts)
        for f in range(o.folds if o.rotate else max(1, o.folds // 2))
    ]
    for r, f, train, *_ in jobs:
        if len(set(d["y"][train])) < 2:
            refuse(
                d,
                f"the training part of fold {f} has {d['what']} of one class only: {len(d['y'])} {d['what']}, "
                f"{d['y'].sum()} {d['classes'][1]}, are too few for --folds {o.folds}",
            )
    return jobs, parts
