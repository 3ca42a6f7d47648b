"""The expression table of a cohort, and the names of its genes."""

import gzip
import io
import re

import numpy as np
import pytest

from lab.cohort.expression import as_symbols, read_expression, read_gene_table, save_expression
from lab.files import InputError


def npz(**arrays):
    np.savez(f := io.BytesIO(), **arrays)
    return f.getvalue()


@pytest.mark.parametrize("name", ["expression.npz", "expression.csv", "expression.csv.gz"])
@pytest.mark.parametrize("key", ["slide", "sample"])
def test_a_table_comes_back(tmp_path, name, key):
    a = np.random.default_rng(0).lognormal(10, 3, (40, 100)).astype(np.float32)
    ids, genes = [f"s{i}" for i in range(40)], [f"G{g}" for g in range(100)]
    save_expression(tmp_path / name, key, ids, genes, iter(a))
    got = read_expression(tmp_path)
    assert got[:3] == (key, ids, genes)
    assert got[3].dtype == np.float32 and np.array_equal(got[3], a)


def test_a_table_of_somebody_else(tmp_path):
    (tmp_path / "expression.csv").write_text("\ufeffid, A ,B\r\n\r\n s0 ,1,2e3\r\n")
    key, ids, genes, a = read_expression(tmp_path)
    assert (key, ids, genes, a.tolist()) == ("", ["s0"], ["A", "B"], [[1, 2000]])


@pytest.mark.parametrize("kind", ["float16", "float64", "uint8", "int32"])
def test_numbers_of_any_kind_are_read(tmp_path, kind):
    """Whole numbers, which each kind has."""
    a = np.arange(6).reshape(2, 3).astype(kind)
    np.savez(tmp_path / "expression.npz", slide=["a", "b"], genes=list("ABC"), expression=a)
    key, ids, genes, got = read_expression(tmp_path)
    assert (key, ids, genes) == ("slide", ["a", "b"], list("ABC"))
    assert got.dtype == np.float32 and got.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "row, words",
    [
        ("s1,1,-2", "gene B of s1 is -2, and linear expression is >= 0"),
        ("s1,1,x", "gene B of s1 is 'x'"),
        ("s1,1,", "gene B of s1 is ''"),
        ("s1,nan,2", "gene A of s1 is 'nan'"),
        ("s1,1,1e400", "gene B of s1 is '1e400'"),
        ("s1,1,1e39", "gene B of s1 is '1e39'"),
        ("s1,1", "line 3: 2 fields, the header has 3"),
        ("s0,1,2", "row 's0' stands there twice"),
    ],
)
def test_mistakes_name_gene_and_slide(tmp_path, row, words):
    (tmp_path / "expression.csv").write_text("slide,A,B\ns0,1,2\n" + row + "\n")
    with pytest.raises(InputError, match=re.escape(words)):
        read_expression(tmp_path)


NAMES = {"sample": ["a", "b"], "genes": ["A"]}


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, "no expression.csv"),
        ({"expression.csv": b"slide,A,A\ns,1,2\n"}, "gene 'A' stands there twice"),
        ({"expression.csv": b""}, "the first line must be"),
        ({"expression.csv": b"slide,A\n"}, "no rows"),
        ({"expression.csv.gz": b"slide,A\n"}, "no rows"),  # which a browser has unpacked
        ({"expression.csv.gz": gzip.compress(b"slide,A\n" + b"s,1\n" * 99)[:-9]}, "not a whole"),
        ({"expression.csv.gz": gzip.compress(b"slide,A\n")[:10] + b"\xff" * 40}, "not a whole"),
        ({"expression.csv": b"slide,A\ns,1\n", "expression.npz": b""}, "are both there"),
        ({"expression.npz": b"zip?"}, "wanted arrays"),
        ({"expression.npz": npz(genes=["A"], expression=np.ones((2, 1)))}, "wanted arrays"),
        ({"expression.npz": npz(**NAMES, expression=np.ones((1, 2)))}, "wanted arrays"),
        ({"expression.npz": npz(sample="x", genes="A", expression=np.ones((0, 1)))}, "wanted arr"),
        ({"expression.npz": npz(sample="x", genes="A", expression=1.0)}, "wanted arrays"),
        ({"expression.npz": npz(sample=[], genes=["A"], expression=np.ones((0, 1)))}, "no rows"),
        ({"expression.npz": npz(**NAMES, expression=[["1"], ["2"]])}, "expression is <U1, not"),
        ({"expression.npz": npz(**NAMES, expression=[[1.0], [-2]])}, "gene A of b is "),
        (
            {"expression.npz": npz(**NAMES, expression=np.array([[1], [np.inf]], np.float16))},
            "float16, which ends at 65,504",
        ),
    ],
)
def test_files_that_cannot_be_meant(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(words)):
        read_expression(tmp_path)


def test_a_folder_of_gdc_downloads_is_no_table(tmp_path):
    (tmp_path / "expression").mkdir()
    with pytest.raises(InputError, match="is a folder: GDC's files become a table with python he2"):
        read_expression(tmp_path)


def test_ensembl_ids_are_mapped_and_unmapped_ones_counted(tmp_path):
    rows = (
        "gene_id\tgene_name\tgene_type",
        "ENSG00000000003.14\tTSPAN6\tprotein_coding",
        "ENSG00000000005.5\tTNMD\tlincRNA",
    )
    (tmp_path / "t.tsv").write_text("\n".join(rows))
    symbols, coding = read_gene_table(tmp_path / "t.tsv")
    assert coding == {"TSPAN6", "ENSG00000000003"}
    genes = ["ENSG00000000003.10", "ENSG00000000005", "ENSG00000999999.1", "TP53", "ENSA"]
    names, line = as_symbols(genes, symbols)
    assert names == ["TSPAN6", "TNMD", "ENSG00000999999", "TP53", "ENSA"]
    assert "1 of 5 genes have no symbol" in line
    assert as_symbols(["A", "B"], {}) == (["A", "B"], "")
    assert "1 genes share a name" in as_symbols(["TSPAN6", "ENSG00000000003"], symbols)[1]


@pytest.mark.parametrize(
    "text, symbols, coding",
    [
        ("Gene stable ID,Gene name\nENSG1.2,A\n", {"ENSG1": "A"}, None),
        ("symbol,biotype\nA,protein_coding\nB,lncRNA\n", {}, {"", "A"}),
    ],
)
def test_gene_tables_of_others(tmp_path, text, symbols, coding):
    (tmp_path / "t.csv").write_text(text)
    assert read_gene_table(tmp_path / "t.csv") == (symbols, coding)


def test_a_gene_table_needs_two_columns(tmp_path):
    (tmp_path / "bad.csv").write_text("a,symbol\n1,2\n")
    with pytest.raises(InputError, match="wanted two of the columns gene_id"):
        read_gene_table(tmp_path / "bad.csv")
