"""The studies of calibration and their table: `python -m lab.bench calibration`."""

import zlib

import numpy as np

from lab.calibration import fold_changes, intervals, nulls, space, splits

STUDIES = {
    "space": space.study,
    "intervals": intervals.study,
    "splits": splits.study,
    "nulls": nulls.study,
    "fold-changes": fold_changes.study,
}  # name: study(runs, rng) -> rows, each from a file beside this one


def rows_of(name, runs=1.0, seed=0):
    """The rows of a study; its draws depend on its name and the seed, not on what ran before."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return STUDIES[name](runs, rng)


def print_table(names=(), runs=1.0, seed=0):
    """Print the rows of some studies, or of all, as a table of Markdown, each when it is known."""
    print("| study | what | nominal | measured | standard error | |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for name in names or STUDIES:
        for row in rows_of(name, runs, seed):
            nominal = "–" if np.isnan(row.nominal) else f"{row.nominal:.3g}"
            numbers = f"{nominal} | {row.measured:.3f} | {row.error:.3f}"
            print(f"| {name} | {row.name} | {numbers} | {row.note} |", flush=True)
