"""Tests over splits, genes and parts of the same patients: cheap rows of the calibration."""

import numpy as np
import pytest

from lab.calibration import splits


@pytest.mark.parametrize("p_of, bold", [(splits.p_of_genes, 0.3), (splits.p_of_cells, 0.15)])
def test_a_test_over_patients_holds_where_one_over_genes_does_not(p_of, bold):
    """Nothing to find, 120 times: at most .05 and three standard errors."""
    rng = np.random.default_rng(0)
    over_patients, over_genes = (np.array([p_of(rng) for _ in range(120)]) < 0.05).mean(0)
    assert over_patients < 0.11
    assert over_genes > bold
