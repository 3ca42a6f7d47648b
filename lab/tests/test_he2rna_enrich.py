"""Which pathways the well-predicted genes belong to. Authority: SciPy's Fisher's exact test."""

import numpy as np
import pytest
import scipy.stats

from lab.commands.he2rna import main
from lab.files import InputError
from lab.tests.helpers import read_csv


def enrich(folder, *argv):
    return main(["enrich", str(folder), "--gmt", str(folder / "sets.gmt"), *argv])


def test_enrichment_of_a_run(judged):
    folder, results = judged
    assert enrich(folder) == 0
    for cancer in "AB":
        rows = {r["set"]: r for r in read_csv(folder / "enrichment" / f"{cancer}.csv")}
        hits = np.flatnonzero(results[cancer]["hs"] < 0.05)
        inside = (hits < 25).sum()
        outside = len(hits) - inside
        table = [[inside, 25 - inside], [outside, 299 - 25 - outside]]
        p = scipy.stats.fisher_exact(table, alternative="greater")[1]
        assert float(rows["IN"]["p"]) == pytest.approx(p, rel=1e-3)
        assert rows["IN"]["hit genes"].split() == [f"GENE{i}" for i in hits if i < 25]
        assert rows["NOWHERE"]["p"] == rows["EMPTY"]["p"] == ""


def test_hits_of_one_cancer_of_several_or_of_high_r(judged, capsys):
    folder, results = judged
    found = {cancer: results[cancer]["hs"] < 0.05 for cancer in "AB"}
    above = np.nan_to_num(results["A"]["r"]) > 0.4
    for argv, words in (
        (["--project", "B"], f"B: {found['B'].sum()} hits of 299 tested genes"),
        (["--at-least", "2"], f"at-least-2: {(found['A'] & found['B']).sum()} hits"),
        (["--at-least", "3"], "at-least-3: 0 hits"),
        (["--min-r", ".4"], f"A: {above.sum()} hits"),
        (["--min-r", "1"], "A: 0 hits"),
    ):
        assert enrich(folder, *argv) == 0
        assert words in capsys.readouterr().out


def test_another_cancer_is_refused(judged):
    with pytest.raises(InputError, match="the run has A, B"):
        enrich(judged[0], "--project", "C")
