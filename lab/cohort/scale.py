"""On which scale a table of expression stands: all that comes after its reading is linear. [ours]

A table of logarithms that is taken as linear is logged again, and every number after that is wrong
with no sign of it. So what looks like one is refused until --scale says what it holds.
"""

import math
import re

import numpy as np

from lab.files import InputError

BASES = {"log2": 2.0, "log10": 10.0, "ln": math.e}
UNITS = ("FPKM-UQ", "FPKM", "TPM", "CPM", "RPKM", "counts")
LOGS_BELOW = 35  # log2 of TCGA's highest FPKM-UQ is 29; linear tables have a tail far above
STRAY = 0.0005  # share of a row's values that may be no gene's, such as an age or a total
FEWEST = 10  # strong genes that tell whether a row is the logarithm of what the others hold
SPREAD = 2  # of their ratios to that logarithm, upper over lower quartile; of linear values larger
ADDED = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5)  # what is added before a logarithm, beside 1
HOW = (
    "of logarithms say which: --scale log2, log10 or ln (of 1 + a; log2+0.001 of 0.001 + a); of "
    "linear values, such as a panel of weak genes, --scale linear"
)


def to_linear(a, scale, path, ids, genes):
    """A table a (n, G) as linear values, in place; ids, genes: the names of rows and columns.

    scale: linear, log2, log10 or ln, with what was added before the logarithm if that was not 1
    (log2+0.001); None: not said, so the table must look linear.
    """
    if scale in (None, "linear"):
        refuse_negative(a, path, ids, genes)
        if scale is None:
            refuse_logs(a, path, ids)
        return a
    base, added = base_of(scale)
    lowest = a.min()
    floor = added != 1 and is_log_of(lowest, base, added)  # rounded: zero all the same
    for i, row in enumerate(a):
        none = row == lowest if floor else np.zeros(len(row), bool)
        with np.errstate(over="ignore"):
            linear = np.where(none, 0, np.power(base, row, dtype=np.float64) - added)
        odd = (linear < -0.01 * added) | (linear > 2.0**LOGS_BELOW)
        if odd.any():
            j = int(odd.argmax())
            raise InputError(
                f"{path}: gene {genes[j]} of {ids[i]} is {row[j]:g}, which no {scale} of "
                f"expression is{floor_of(a)}: is --scale {scale} what the table holds?"
            )
        row[:] = np.maximum(linear, 0)
    return a


def base_of(scale):
    """(base, what is added before the logarithm) of log2, log10, ln, log2+0.001 ..."""
    found = re.fullmatch(r"(log2|log10|ln)(?:\+(\d*\.?\d+))?", scale)
    if not found:
        raise InputError(f"--scale {scale}: wanted linear, log2, log10, ln, or as log2+0.001")
    return BASES[found[1]], float(found[2] or 1)


def refuse_negative(a, path, ids, genes):
    """InputError where a table has values below 0."""
    for i, row in enumerate(a):
        if row.min(initial=0) < 0:
            j = int(row.argmin())
            raise InputError(
                f"{path}: gene {genes[j]} of {ids[i]} is {row[j]:g}, and linear expression is "
                f">= 0{floor_of(a)}. Logarithms: --scale log2, log10 or ln (log2+0: of a itself); "
                "z-scores and centred values can't be made linear again, give the table before"
            )


def floor_of(a):
    """What a table's lowest value says of its scale, where many have it: in words, or nothing."""
    lowest = a.min()
    scales = []
    for scale, base in BASES.items():
        scales += [f"{scale}+{added:g}" for added in ADDED if is_log_of(lowest, base, added)]
    if not scales or np.count_nonzero(a == lowest) < 2:
        return ""
    return f" ({lowest:g} is the logarithm of nothing by --scale {' or '.join(scales)})"


def is_log_of(value, base, added):
    """Whether a value is, as far as it was rounded, the logarithm of what was added to zero."""
    return added > 0 and abs(value * math.log(base) - math.log(added)) < 0.01


def refuse_logs(a, path, ids):
    """InputError where a table, or some rows of it, look like logarithms."""
    logged, tops = looks_logged(a)
    if not logged.any():
        return
    if logged.all():
        highest = a.max()
        said = f"nothing in it is above {highest:.3g}"
        if highest >= LOGS_BELOW:
            said = f"nothing but a few values up to {highest:.3g} is above {tops.max():.3g}"
        raise InputError(f"{path}: {said}, too little for linear expression: {HOW}")
    names = [ids[i] for i in np.flatnonzero(logged)]
    raise InputError(
        f"{path}: {len(names)} of {len(ids)} rows look like logarithms of what the others hold "
        f"({names[0]}: nothing above {tops[logged][0]:.3g}): bring all to one scale, or --scale "
        "linear if they are"
    )


def looks_logged(a):
    """((n,) whether a row looks like logarithms, (n,) what its values reach) of a table.

    All rows do where none has a value from LOGS_BELOW on, or some where their genes are about the
    logarithms of the other rows'. Whole numbers are counts.
    """
    tops = np.array([top_of(row) for row in a])
    low = tops < LOGS_BELOW
    if low.all():
        return low & any((row % 1 != 0).any() for row in a), tops
    if low.any():
        level = np.log2(1 + np.median(a[np.flatnonzero(~low)[:50]], axis=0))  # of some: memory
        low[low] = [is_log(row, level) for row in a[low]]
    return low, tops


def is_log(row, level):
    """Whether a row (G,) is in proportion to the log2 of the other rows' genes (G,)."""
    strong = (level > 3) & (row > 0)
    if strong.sum() < FEWEST or not (row % 1 != 0).any():
        return False
    lower, upper = np.quantile(row[strong] / level[strong], (0.25, 0.75))
    return upper < SPREAD * lower


def top_of(row):
    """What the positive values of a row reach, but for the few that may be no gene's; or 0."""
    positive = row[row > 0]
    place = len(positive) - 1 - int(STRAY * len(positive))
    return float(np.partition(positive, place)[place]) if len(positive) else 0.0


# ----- Units --------------------------------------------------------------------------------------


def unit_of(text):
    """A unit as it is written: of those known in any case, another as it stands."""
    known = {column_of(unit): unit for unit in UNITS}
    unit = known.get(column_of(text), text.strip())
    if not re.fullmatch(r"[^\W\d_][\w .%/()-]{0,29}", unit):
        raise InputError(f"--unit {text}: wanted a unit, such as {', '.join(UNITS)}")
    return unit


def unit_of_run(config):
    """The unit that a run's settings name; runs made before they did are of the papers'."""
    return config.get("unit") or UNITS[0]


def said_of_expression(config):
    """What a run's expression is and where it came from, a sentence of its report."""
    scale = config.get("scale") or "linear"
    table = "" if scale == "linear" else f"; the table held {scale}"
    return f"Expression in {unit_of_run(config)}{table}."


def column_of(unit):
    """A unit as the name of a column: FPKM-UQ is fpkm_uq."""
    return re.sub(r"\W+", "_", unit.strip().lower()).strip("_")
