"""The nulls of R in simulations with known truth: the cheap rows of the calibration."""

import numpy as np
import pytest

from lab.calibration.nulls import linear, network, rows_of_design


@pytest.mark.parametrize(
    "design",
    [
        {"patients": 100, "real": 0, "nothing": 100},
        {"patients": 40, "slides": 4},
        {"kind": "mixed"},
        {"patients": 90, "projects": ("X", "Y")},
    ],
    ids=["slides", "patients", "outliers and zeros", "two cancers"],
)
def test_decoys_hold_where_the_other_nulls_do_not(design):
    """5 % of genes that follow nothing have p < .05, of a learner in closed form."""
    rows = rows_of_design("", linear, 20, np.random.default_rng(0), design, n_decoys=200)
    for row in rows:
        what, null = row.name.split(": ")[1].split(", ")
        if what == "p" and null == "decoys":
            assert abs(row.measured - 0.05) < 0.01 + 2 * row.error
        if what == "any by HS" and null == "decoys":
            assert row.measured < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 20)
        if what == "p" and null == "t" and "slides" not in design:
            assert row.measured > 0.07


def test_decoys_hold_for_the_network_itself():
    """Through he2rna.train_epochs and evaluate; t counts the folds as independent."""
    rows = rows_of_design("", network, 4, np.random.default_rng(0), {})
    measured = {row.name: row for row in rows}
    decoys, t = measured[": p, decoys"], measured[": p, t"]
    assert abs(decoys.measured - 0.05) < 0.02 + 2 * decoys.error
    assert t.measured > decoys.measured
