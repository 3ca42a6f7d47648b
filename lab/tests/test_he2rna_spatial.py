"""lab.tests.test_he2rna_spatial"""

import numpy as np
import pytest

from lab.files import InputError
from lab.he2rna.spatial import group_rows


def test_the_groups_r_is_of_the_runs_genes_and_of_whole_predictions(judged):
    folder, results = judged
    run, z = (
        dict(
            folder=folder,
            genes=[f"GENE{i}" for i in range(300)],
            config=dict(seed=0, code=[], folds=3),
        ),
        dict(np.load(folder / "predictions.npz")),
    )
    assert [row[:3] for row in group_rows(run, [7])] == [
        (c, 30, f"{results[c]['r'][7]:.3f}") for c in "AB"
    ]
    for change in (
        dict(fold=z["fold"].astype(str)),
        dict(patient=None),
        dict(project=z["project"][1:]),
        dict(genes=z["genes"][::-1]),
    ):
        np.savez(
            folder / "predictions.npz",
            **{k: v for k, v in {**z, **change}.items() if v is not None},
        )
        with pytest.raises(
            InputError, match="other genes" if "genes" in change else "missing or not whole"
        ):
            group_rows(run, [7])
