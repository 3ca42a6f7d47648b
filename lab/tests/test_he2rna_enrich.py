"""lab.tests.test_he2rna_enrich"""

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats

from lab.commands.he2rna import main
from lab.files import InputError
from lab.tests.helpers import read_csv


def test_enrichment_of_a_run(judged, capsys):
    folder, results = judged
    argv = ["enrich", str(folder), "--gmt", str(folder / "sets.gmt")]
    assert main(argv) == 0
    for c in "AB":
        rows = {r["set"]: r for r in read_csv(folder / "enrichment" / f"{c}.csv")}
        hits = np.flatnonzero(results[c]["hs"] < 0.05)
        table = [
            [(hits < 25).sum(), 25 - (hits < 25).sum()],
            [(hits >= 25).sum(), 299 - 25 - (hits >= 25).sum()],
        ]
        assert float(rows["IN"]["p"]) == pytest.approx(
            scipy.stats.fisher_exact(table, alternative="greater")[1], rel=1e-3
        )
        assert rows["NOWHERE"]["p"] == rows["EMPTY"]["p"] == "" and rows["IN"][
            "hit genes"
        ].split() == [f"GENE{i}" for i in hits if i < 25]
    assert main([*argv, "--min-r", "1"]) == 0 and "A: 0 hits" in capsys.readouterr().out
    assert main([*argv, "--at-least", "2"]) == 0
    both = sum((results["A"]["hs"] < 0.05) & (results["B"]["hs"] < 0.05))
    assert f"at-least-2: {both} hits" in capsys.readouterr().out
    for extra, words in (
        (["--at-least", "3"], "has 2 cancers"),
        (["--project", "C"], "the run has A, B"),
        *((["--min-r", r], f"--min-r {r}: an R lies") for r in ("nan", "inf", "2")),
    ):
        with pytest.raises(InputError, match=words):
            main([*argv, *extra])
    for text, words in (
        ("A\tx\tG1\nA\tx\tG2\n", "line 1 too, with different genes"),
        ("", "no gene set"),
    ):
        (folder / "bad.gmt").write_text(text)
        with pytest.raises(InputError, match=words):
            main(["enrich", str(folder), "--gmt", str(folder / "bad.gmt")])
    with pytest.raises(InputError, match="nothing.gmt"):
        main(["enrich", str(folder), "--gmt", str(folder / "nothing.gmt")])
