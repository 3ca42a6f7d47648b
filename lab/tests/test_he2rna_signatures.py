"""Signatures against random lists of genes."""

import numpy as np
import pytest

from lab.commands.he2rna import main
from lab.files import InputError
from lab.he2rna.gene_sets import pick_signatures
from lab.tests.helpers import read_csv

FOUR = ["IN", "mine=IN,HALF", "OUT", "none=NOWHERE,EMPTY"]


def signatures(folder, *names, lists="500"):
    argv = ["signatures", str(folder), "--gmt", str(folder / "sets.gmt"), "--lists", lists]
    for name in names:
        argv += ["--signature", name]
    return main(argv)


def test_a_signature_stands_out_where_its_genes_do(judged, capsys):
    folder, results = judged
    assert signatures(folder, *FOUR) == 1
    assert "not found: a gene with R in this run of none" in capsys.readouterr().out
    table = read_csv(folder / "signatures" / "signatures.csv")
    rows = {(r["signature"], r["cancer"]): r for r in table}
    for cancer in "AB":
        r, significant = results[cancer]["r"], results[cancer]["hs"] < 0.05
        own = rows["IN", cancer]
        assert float(own["R_p"]) == pytest.approx(r[:25].mean(), abs=1e-3)
        assert float(own["R_o"]) == pytest.approx(np.nanmean(r), abs=0.02)
        assert float(own["f_p"]) == pytest.approx(significant[:25].mean(), abs=1e-3)
        assert float(own["p"]) == pytest.approx(1 / 501, rel=1e-3)  # no list reaches it
        assert own["p matched"] != ""
        assert float(rows["OUT", cancer]["p"]) > 0.05
        assert rows["mine", cancer]["genes in it"] == "5"  # those in both of its sets
        assert rows["none", cancer]["R_p"] == ""  # none was measured
    assert (folder / "signatures" / "r.svg").stat().st_size > 5000


def test_the_same_seed_draws_the_same_lists(judged):
    folder, _ = judged
    path = folder / "signatures" / "signatures.csv"
    assert signatures(folder, "IN") == 0
    before = path.read_bytes()
    assert signatures(folder, "IN") == 0 and path.read_bytes() == before


def test_the_papers_signatures_say_which_sets_are_missing(judged, capsys):
    assert signatures(judged[0], lists="5") == 0
    said = capsys.readouterr().out
    assert "hypoxia: without HALLMARK_HYPOXIA" in said and "HOUSEKEEPING" in said


def test_genes_of_two_sets_make_a_signature():
    sets = {"A": ("x", "y"), "B": ("y", "z"), "HOUSEKEEPING": ("h",)}
    assert pick_signatures(["A"], sets) == {"A": (("x", "y"), "")}
    assert pick_signatures(["n = A, B"], sets) == {"n": (("y",), "")}
    genes, missing = pick_signatures(["n=A,C"], sets)["n"]
    assert genes == () and missing.endswith("in none of the .gmt files: two sets are needed")
    assert pick_signatures(None, sets)["HOUSEKEEPING"] == (("h",), "")
    with pytest.raises(InputError, match=r"no such set; there are A, angiogenesis"):
        pick_signatures(["AA"], sets)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"truth": np.ones(300)}, "missing or not whole"),
        ({"truth": np.full((60, 300), "x")}, "missing or not whole"),
        ({"truth": np.ones((60, 9))}, "missing or not whole"),
        ({"truth": np.full((60, 300), np.nan)}, "no expression of GENE0"),
        (
            {"genes": np.array(["X", *(f"GENE{i}" for i in range(1, 300))])},
            "no expression of GENE0",
        ),
    ],
)
def test_damaged_predictions_are_refused(judged, change, words):
    folder, _ = judged
    path = folder / "predictions.npz"
    np.savez(path, **{**np.load(path), **change})
    with pytest.raises(InputError, match=words):
        signatures(folder, lists="5")


@pytest.mark.parametrize("cut", [lambda text: text + "GENE0,A\n", lambda text: text[:-9000]])
def test_a_damaged_table_is_refused(judged, cut):
    """A row that is cut off; a cancer with fewer genes than the other."""
    folder, _ = judged
    path = folder / "genes.csv"
    path.write_text(cut(path.read_text()))
    with pytest.raises(InputError, match="not a whole genes"):
        signatures(folder, lists="5")
