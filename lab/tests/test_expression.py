"""lab.tests.test_expression"""

import gzip
import io
import re
import tracemalloc

import numpy as np
import pytest

from lab.cohort.expression import as_symbols, read_expression, read_gene_table, save_expression
from lab.files import InputError


@pytest.mark.parametrize(
    "row, words",
    [
        ("s1,1,-2", "gene B of s1 is '-2'"),
        ("s1,1,x", "gene B of s1 is 'x'"),
        ("s1,1,", "gene B of s1 is ''"),
        ("s1,nan,2", "gene A of s1 is 'nan'"),
        ("s1,1,1e400", "gene B of s1 is '1e400'"),
        ("s1,1,1e39", "gene B of s1 is '1e39'"),
        ("s1,1", "line 3: 2 fields, the header has 3"),
        ("s0,1,2", "row 's0' stands there twice"),
    ],
)
def test_expression_mistakes_name_gene_and_slide(tmp_path, row, words):
    (tmp_path / "expression.csv").write_text("slide,A,B\ns0,1,2\n" + row + "\n")
    with pytest.raises(InputError, match=re.escape(words)):
        read_expression(tmp_path)


def npz_bytes(**arrays):
    np.savez(f := io.BytesIO(), **arrays)
    return f.getvalue()


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, "no expression.csv"),
        ({"expression.csv": b"slide,A,A\ns,1,2\n"}, "gene 'A' stands there twice"),
        ({"expression.csv": b""}, "the first line must be"),
        ({"expression.csv": b"slide,A\n"}, "no rows"),
        ({"expression.csv.gz": b"slide,A\n"}, "not a whole"),
        ({"expression.npz": b"zip?"}, "wanted arrays"),
        *(
            (
                {"expression.npz": npz_bytes(sample=i, genes=g, expression=np.ones(n))},
                "wanted arrays",
            )
            for i, g, n in (
                ("x", "A", (0, 1)),
                ([], ["A"], (0, 1)),
                ("x", "A", ()),
                ([["a"]], "A", (1, 1)),
            )
        ),
        ({"expression.csv.gz": gzip.compress(b"slide,A\n" + b"s,1\n" * 99)[:-9]}, "not a whole"),
        ({"expression.csv.gz": gzip.compress(b"slide,A\n")[:10] + b"\xff" * 40}, "not a whole"),
        ({"expression.csv": b"slide,A\ns,1\n", "expression.npz": b""}, "are both there"),
    ],
)
def test_expression_files_that_cannot_be_meant(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(words)):
        read_expression(tmp_path)


def test_ensembl_ids_are_mapped_and_unmapped_ones_counted(tmp_path):
    (tmp_path / "t.tsv").write_text(
        "gene_id\tgene_name\tgene_type\nENSG00000000003.14\tTSPAN6\tprotein_coding\nENSG00000000005.5\tTNMD\tlincRNA\n"
    )
    symbol, biotype = read_gene_table(tmp_path / "t.tsv")
    names, line = as_symbols(
        ["ENSG00000000003.10", "ENSG00000000005", "ENSG00000999999.1", "TP53", "ENSA"], symbol
    )
    assert (
        names == ["TSPAN6", "TNMD", "ENSG00000999999", "TP53", "ENSA"]
        and "1 of 5 genes have no symbol" in line
    )
    assert biotype == {"TSPAN6", "ENSG00000000003"}
    assert as_symbols(["A", "B"], {}) == (["A", "B"], "")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="wanted two of the columns gene_id"):
        read_gene_table(tmp_path / "bad.csv")


def test_writing_a_table_holds_no_second_one(tmp_path):
    """tracemalloc: rows come one by one."""
    a = np.random.default_rng(0).lognormal(10, 3, (400, 1000)).astype(np.float32)
    ids, genes = [f"s{i}" for i in range(400)], [f"G{g}" for g in range(1000)]
    tracemalloc.start()
    try:
        save_expression(tmp_path / "expression.npz", "sample", ids, genes, iter(a))
        assert tracemalloc.get_traced_memory()[1] < 0.5 * a.nbytes
    finally:
        tracemalloc.stop()
    with np.load(tmp_path / "expression.npz", allow_pickle=False) as z:
        assert (
            (z["expression"] == a).all()
            and z["expression"].dtype == np.float32
            and z["sample"].tolist() == ids
            and z["genes"].tolist() == genes
        )
