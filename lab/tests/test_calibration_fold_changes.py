"""p of fold changes by decoys, in a simulation with known truth: a cheap row of the calibration."""

import numpy as np

from lab.calibration.fold_changes import rows_of_design


def test_decoys_of_fold_changes_hold():
    """Through lab.histcode.expression; 5 % of genes that follow nothing have p < .05."""
    design = {"patients": 40, "real": 10, "nothing": 60, "decoys": 100, "unknown": 0.2}
    rows = {row.name: row for row in rows_of_design("", 3, np.random.default_rng(0), **design)}
    decoys, twice = rows[": p, decoys"], rows[": p, twice the t's"]
    assert abs(decoys.measured - 0.05) < 0.02 + 2 * decoys.error
    assert twice.measured <= rows[": p, t"].measured
