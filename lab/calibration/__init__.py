"""What p and intervals promise, against what they keep in simulations whose truth is known.

A study is a function study(runs, rng) that yields rows: runs multiplies its own number of simulated
cohorts, rng is its generator. `lab.calibration.table` lists the studies and prints the rows.
"""

import math
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """One line of the table: a share of simulated cohorts, and what it should have been."""

    name: str
    nominal: float
    measured: float
    error: float  # standard error of `measured`
    note: str = ""


def share(name, nominal, hits, note=""):
    """The row of hits (runs, ...), booleans of independent runs; NaN where a run has no value.

    What stands behind the first axis (genes of a run, for instance) may depend on each other: the
    standard error is that of the runs' means.
    """
    hits = np.asarray(hits, float)
    each = hits.reshape(len(hits), -1)
    valued = ~np.isnan(each).all(1)
    each = np.nanmean(each[valued], 1)
    error = each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return Row(name, nominal, each.mean() if len(each) else math.nan, error, note)
