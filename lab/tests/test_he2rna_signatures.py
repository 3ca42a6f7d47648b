"""lab.tests.test_he2rna_signatures"""

import numpy as np
import pytest

from lab.commands.he2rna import main
from lab.files import InputError


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(genes=None), "missing or not whole"),
        (dict(truth=np.ones(300)), "missing or not whole"),
        (dict(truth=np.full((60, 300), "x")), "missing or not whole"),
        (dict(truth=np.ones((60, 9))), "missing or not whole"),
        (dict(truth=np.full((60, 300), np.nan)), "no expression of GENE0"),
        (
            dict(genes=np.array(["X"] + [f"GENE{i}" for i in range(1, 300)])),
            "no expression of GENE0",
        ),
        (lambda text: text + "GENE0,A\n", "'GENE0,A' is no row of it"),
        (lambda text: text[: text.rindex("GENE299")], "its cancers have different genes"),
    ],
)
def test_a_damaged_runs_tables_are_refused(judged, change, words):
    folder, _ = judged
    for file in ("predictions.npz",) if isinstance(change, dict) else ():
        np.savez(
            folder / file,
            **{k: v for k, v in {**np.load(folder / file), **change}.items() if v is not None},
        )
    if callable(change):
        (folder / "genes.csv").write_text(change((folder / "genes.csv").read_text()))
    with pytest.raises(InputError, match=words):
        main(["signatures", str(folder), "--gmt", str(folder / "sets.gmt"), "--lists", "5"])
