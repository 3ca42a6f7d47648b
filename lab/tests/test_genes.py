"""Names of genes: what spreadsheets, R and other species make of them."""

import numpy as np
import pytest

from lab.application import pick_genes
from lab.cohort.expression import read_expression, read_gene_table
from lab.cohort.genes import as_in_sets, as_spelled, by_spreadsheets, made_of
from lab.commands.he2rna import main
from lab.files import InputError


@pytest.mark.parametrize(
    "names, was",
    [
        # Ziemann et al. 2016, and Excel's short dates in German, French, Spanish, Italian, Russian
        (
            "1-Mar Mar-01 1.Mrz 01.Mär 1-mars 01.мар 2001-03-01 3月1日",
            "MARCH1/MARCHF1 or MARC1/MTARC1",
        ),
        ("2-Sep Sep-02 02-sept 2-set Sept-2 2019-09-02 X2.Sep 2-Sep-19", "SEPT2/SEPTIN2"),
        ("11-Mar", "MARCH11/MARCHF11"),
        ("15-Sep", "SEP15/SELENOF"),
        ("1-Dec 1-dic 1-déc Dec-01", "DEC1/DELEC1 or BHLHE40"),
        ("4-Oct", "OCT4/POU5F1"),
        ("2.31E+13 2,31E+13 3/1/2001 01.03.2019 #NAME? #N/A X2.31E.13 30-Apr", ""),
    ],
)
def test_what_a_spreadsheet_made_is_named_with_what_it_was(names, was):
    assert {made_of(name) for name in names.split()} == {was}


def test_real_symbols_are_nobodys_dates():
    names = "TP53 HLA-A HLA.A NKX2-1 SEPT2 MARCH1 DEC1 RP11-34P13.7 7SK X7SK 5S_rRNA NOV SET JUN "
    names += "ENSG00000000003.14 A1BG-AS1 C1orf112 H3.3 3.8-1.2 AC000111.6 1060P11.3 5-HT3C2 4-1BB "
    names += "hsa-mir-1 DEC-205 Lis-1 2E10 1110E08 15E1.2 T U3"
    assert [n for n in names.split() if made_of(n) is not None] == []
    assert by_spreadsheets(["7157", "43525", "101"]) == ""  # Entrez's numbers
    assert "43525 (MARCH1/MARCHF1 or" in by_spreadsheets(["TP53", "43525"])  # a day's number


def test_names_are_decoded_stripped_and_doubts_said(tmp_path):
    said = []
    arrays = {"slide": np.array([b"a", b"b "]), "genes": np.array([b"CD3D ", b"1-Mar"])}
    np.savez(tmp_path / "expression.npz", expression=np.ones((2, 2)), **arrays)
    assert read_expression(tmp_path, warn=said.append)[1:3] == (["a", "b"], ["CD3D", "1-Mar"])
    assert "made 1 of 2 names of genes: 1-Mar (MARCH1" in said[0]
    for names, words in (([b"\xff", b"x"], "no text in UTF-8"), ([1.5, 2], "names are float64")):
        np.savez(
            tmp_path / "expression.npz", expression=np.ones((2, 2)), slide=["a"] * 2, genes=names
        )
        with pytest.raises(InputError, match=words):
            read_expression(tmp_path)
    (tmp_path / "expression.npz").unlink()
    table = "slide,b'CD3D',\u00a0HLA-A\u200b ,e\u0301\ns,1,2,3\n"
    (tmp_path / "expression.csv").write_text(table, "utf-8")
    assert read_expression(tmp_path)[2] == ["CD3D", "HLA-A", "\u00e9"]
    (tmp_path / "expression.csv").write_text("slide,1-Mar,1-Mar\ns,1,2\n")
    with pytest.raises(InputError, match="'1-Mar' stands there twice; a spreadsheet made"):
        read_expression(tmp_path)


def test_dots_of_r_are_undone_where_one_gene_has_the_spelling(capsys):
    known = ["HLA-A", "NKX2-1", "7SK", "A-B", "A.B", "TP53"]
    asked = ["HLA.A", "NKX2_1", "X7SK", "A B", "TP53", "XIST"]
    assert as_spelled(asked, known) == ["HLA-A", "NKX2-1", "7SK", "A B", "TP53", "XIST"]
    assert pick_genes("HLA-A,TP53", ["TP53", "HLA.A"]) == [1, 0]
    assert "HLA-A is HLA.A in the run" in capsys.readouterr().out


SETS = {"T": ("CD3D", "CD3E", "HLA-A", "C3"), "B": ("CD19", "CD79A", "C1orf56")}


@pytest.mark.parametrize(
    "names, words",
    [
        (["Cd3d", "Cd3e", "H2-K1"], "none of 3 genes .* 2 would be in another case"),
        (
            ["C3", *(f"Cd{i}" for i in range(20)), *(["Cd3d", "Cd3e", "Cd19", "Cd79a"] * 3)],
            "1 of 33",
        ),
        (
            ["ENSG00000167286", "ENSG00000198851"],
            "genes by Ensembl ids, these by symbols: .*--gene-",
        ),
        (["ENSMUSG00000032094.9"], "by Ensembl ids"),
        (["915", "916"], "by numbers, as Entrez's, these by symbols"),
        (["unc-54", "lin-3"], "another species'"),
    ],
)
def test_names_that_no_set_knows_are_refused_with_why(names, words):
    with pytest.raises(InputError, match=words):
        as_in_sets(names, SETS)


def test_names_that_sets_know_are_spelled_as_there():
    names, said = as_in_sets(["CD3D", "HLA.A", "C1ORF56", "XIST"], SETS)
    assert names == ["CD3D", "HLA-A", "C1ORF56", "XIST"]
    assert "1 genes are spelled as in the gene sets (HLA.A as HLA-A)" in said
    assert "1 genes stand in the gene sets in another case (C1ORF56)" in said
    assert as_in_sets(["CD3D"], SETS) == (["CD3D"], "")
    with pytest.raises(InputError, match="by symbols, these by numbers"):
        as_in_sets(["CD3D"], {"entrez": ("915", "916")})


@pytest.mark.parametrize("kind", ["protein-coding", "protein coding", " Protein_Coding"])
def test_all_words_for_protein_coding_are_one(tmp_path, kind):
    (tmp_path / "g.csv").write_text(f"gene_id,symbol,biotype\nENSG1.2,A,{kind}\nENSG2,B,ncRNA\n")
    assert read_gene_table(tmp_path / "g.csv")[1] == {"A", "ENSG1"}


@pytest.mark.parametrize("verb", ["enrich", "signatures"])
def test_sets_of_another_species_are_refused(judged, tmp_path, verb):
    (tmp_path / "mouse.gmt").write_text("IN\tna\tGene1\tGene2\n")
    words = [verb, str(judged[0]), "--gmt", str(tmp_path / "mouse.gmt")]
    with pytest.raises(InputError, match=r"none of 300 genes .* in another case"):
        main([*words, *(["--signature", "IN"] if verb == "signatures" else [])])
