"""The GDC's files as a cohort's expression table."""

import re
import shutil

import numpy as np
import pytest

from lab.cohort.expression import read_expression, read_gene_table
from lab.commands.he2rna import main
from lab.exchange.gdc import UQ_GENES, read_sheet, row_of
from lab.files import InputError, save_text
from lab.tests.helpers import read_csv
from lab.tests.helpers_he2rna import SHARED, SHEET, gdc_file, gdc_folder


def test_a_folder_of_gdc_downloads_becomes_one_table(tmp_path, capsys):
    """Both formats, versions, PAR_Y, two files of a sample, types, projects.

    The three endings hold the same numbers.
    """
    truth = gdc_folder(tmp_path / "gdc")

    def go(out, *more):
        return main(["expression", str(tmp_path / "gdc"), "--out", str(tmp_path / out), *more])

    primary = [f"TCGA-AA-{s}" for s in ("0001-01A", "0002-01A", "0002-01B", "0004-01A")]
    for home, out, more, samples in (
        ("a", "expression.npz", (), primary),
        ("b", "expression.csv", ("--types", "01"), primary),
        ("c", "expression.csv.gz", ("--types", "Primary Tumor"), primary),
        ("d", "expression.npz", ("--types", "01,11"), sorted([*primary, "TCGA-AA-0002-11A"])),
        ("e", "expression.npz", ("--types", "all"), sorted(truth)),
        ("f", "expression.npz", ("--project", "LUNG"), primary[:3]),
        ("g", "expression.npz", ("--project", "TCGA-BRCA"), primary[3:]),
    ):
        assert go(f"{home}/{out}", *more) == 0
        key, ids, genes, a = read_expression(tmp_path / home)
        assert (key, ids) == ("sample", samples) and sorted(genes) == sorted(
            SHARED + ["ENSG00000290825"] * (home == "g")
        )
        np.testing.assert_array_equal(
            a, np.array([[truth[s][g] for g in genes] for s in samples], np.float32)
        )
        said = capsys.readouterr().out
        assert (
            "1 more files of samples that have one "
            "(the first by barcode, then by name, is taken): f9.FPKM" in said
        ) == (home != "g")
        assert ("2 files of the older format: 5 genes, 4 of them in all files" in said) == (
            home in "abcdef"
        )
    assert re.search(r"BRCA +1 +1\n +all +1 +1", said)
    table = (tmp_path / "a" / "expression_genes.csv").read_text().splitlines()
    assert (
        table[0] == "gene_id,symbol,biotype"
        and "ENSG00000182378,S2,lncRNA" in table
        and len(table) == 5
    )
    assert read_gene_table(tmp_path / "a" / "expression_genes.csv")[0]["ENSG00000000003"] == "S0"
    with pytest.raises(InputError, match="is there already: --overwrite"):
        go("a/expression.npz")
    assert (
        go("a/expression.npz", "--overwrite", "--project", "BRCA") == 0
        and len(read_expression(tmp_path / "a")[1]) == 1
    )
    assert go("dry/expression.npz", "--dry-run") == 0 and not (tmp_path / "dry").exists()
    (tmp_path / "cohort").mkdir()
    (tmp_path / "gdc").rename(tmp_path / "cohort" / "expression")
    with pytest.raises(
        InputError, match="is a folder: GDC's files become a table with python he2rna"
    ):
        read_expression(tmp_path / "cohort")


def test_both_scales_of_fpkm_uq_meet_on_the_papers(tmp_path, capsys):
    """The GDC's example: 1,000 reads, 3,000 bp, quartile 2,000: 1e9 * 1000 / (3000 * 2000).

    Since release 32 / 19,029: 8.76.
    """
    genes = [f"ENSG{g:011d}.1" for g in range(4000)]
    paper = np.random.default_rng(0).lognormal(10, 2, (3, 4000))
    paper[:, 0] = 1e9 * 1000 / (3000 * 2000)
    assert f"{paper[0, 0] / UQ_GENES:.2f}" == "8.76"
    rows = [
        (
            f"f{i}",
            f"f{i}" + (".FPKM-UQ.txt.gz" if i == 1 else ".augmented_star_gene_counts.tsv"),
            "T",
            "G",
            "TCGA-LUAD",
            f"TCGA-AA-000{i}",
            f"TCGA-AA-000{i}-01A",
        )
        for i in range(3)
    ]
    for i, row in enumerate(rows):
        gdc_file(tmp_path, row[1], (paper[i] / (1 if i == 1 else UQ_GENES)).tolist(), genes)
    for name, of in (("both", rows), ("newer", rows[::2])):  # a sheet of today: no Sample Type
        save_text(tmp_path / f"{name}.tsv", ["\t".join(row) for row in (SHEET[:7], *of)])
        assert (
            main(
                [
                    "expression",
                    str(tmp_path),
                    "--sheet",
                    str(tmp_path / f"{name}.tsv"),
                    "--out",
                    str(tmp_path / name / "expression.npz"),
                ]
            )
            == 0
        )
    assert np.allclose(read_expression(tmp_path / "both")[3], paper, rtol=1e-6)
    assert np.allclose(read_expression(tmp_path / "newer")[3], paper[::2] / 19029, rtol=1e-6)
    said = capsys.readouterr().out
    assert (
        "2 files, of release 32 or later, were multiplied by 19,029" in said
        and "19,029 times below the paper's" in said
    )


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("f3.FPKM-UQ.txt.gz", lambda b: b[:-9], "f3.FPKM-UQ.txt.gz: not whole"),
        ("f3.FPKM-UQ.txt.gz", lambda b: b[:20] + b"\xff" * 40, "f3.FPKM-UQ.txt.gz: not whole"),
        (
            "f3.FPKM-UQ.txt.gz",
            lambda b: b"<html>503</html>",
            "'<html>503</html>' in place of lines of 2 columns: not whole",
        ),
        ("f3.FPKM-UQ.txt.gz", None, "f3.FPKM-UQ.txt.gz: not there"),
        (
            "f4.FPKM-UQ.txt",
            lambda b: b.replace(b"\t", b"\t-", 1),
            "f4.FPKM-UQ.txt: gene ENSG00000281849.1 of TCGA-AA-0002-01B is '-",
        ),
        ("f4.FPKM-UQ.txt", lambda b: b"", "f4.FPKM-UQ.txt: nothing in place of lines of 2 columns"),
        (
            "f1.rna_seq.augmented_star_gene_counts.tsv",
            lambda b: b"<html>503</html>\n",
            "it has <html>503</html>",
        ),
        (
            "f1.rna_seq.augmented_star_gene_counts.tsv",
            lambda b: b.replace(b"fpkm_uq_", b"x_"),
            "no fpkm_uq_unstranded; it has gene_id, gene_name",
        ),
        (
            "f7.rna_seq.augmented_star_gene_counts.tsv",
            lambda b: b[:-30],
            "in place of lines of 6 columns: not whole",
        ),
    ],
)
def test_a_gdc_file_that_is_not_whole_is_named_and_no_table_lacks_it_in_silence(
    tmp_path, capsys, name, change, words
):
    truth, path = gdc_folder(tmp_path), tmp_path / name.split(".")[0] / name
    if "f1" in name:
        shutil.rmtree(tmp_path / "f9")  # else the sample's other file would do, where f1 is missing
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    command = ["expression", str(tmp_path), "--out", str(tmp_path / "out" / "expression.npz")]
    with pytest.raises(
        InputError, match=f"1 files are missing or not whole: .*{re.escape(words)}.*--partial"
    ):
        main(command)
    assert not (tmp_path / "out").exists() and main([*command, "--partial"]) == 1
    sample = next(
        line.split("\t")[6]
        for line in (tmp_path / "gdc_sample_sheet.2026-01-01.tsv").read_text().splitlines()
        if name in line
    )
    assert (
        set(read_expression(tmp_path / "out")[1]) == {s for s in truth if "-01" in s} - {sample}
        and words in capsys.readouterr().out
    )


def sheet_row(patient, sample, sample_type=None, project="CPTAC-3", **today):
    column = {"file name": "f", "project id": project, "case id": patient, "sample id": sample}
    names = {title.replace("_", " "): text for title, text in today.items()}
    return row_of(column | names | ({} if sample_type is None else {"sample type": sample_type}))


@pytest.mark.parametrize(
    "patient, sample, kind, wanted",
    [
        ("C3N-1, C3N-1", "C3N-1-02, C3N-1-04", "Primary Tumor, Primary Tumor", "C3N-1-02+C3N-1-04"),
        ("C3N-1;C3N-1", "C3N-1-02;C3N-1-04", "Primary Tumor", "C3N-1-02+C3N-1-04"),
        ("C3N-1", "C3N-1-02, C3N-1-02", "Primary Tumor, Primary Tumor", "C3N-1-02"),
        ("C3N-1, C3N-2", "C3N-1-02, C3N-2-04", "Primary Tumor, Primary Tumor", "several patients"),
        (
            "C3N-1",
            "C3N-1-02, C3N-1-06",
            "Primary Tumor, Solid Tissue Normal",
            "several sample types",
        ),
    ],
)
def test_pooled_samples_of_one_patient_and_type_are_one(patient, sample, kind, wanted):
    row = sheet_row(patient, sample, kind)
    if row["why"]:
        assert wanted in row["why"]
    else:
        said = (row["patient"], row["sample"], row["sample_type"], row["project"])
        assert said == ("C3N-1", wanted, "Primary Tumor", "CPTAC-3")


@pytest.mark.parametrize(
    "today, kind",
    [
        ("Tumor/Primary/Solid Tissue", "Primary Tumor"),
        ("Tumor/Metastatic/Solid Tissue", "Metastatic"),
        ("Tumor/Recurrence/Solid Tissue", "Recurrent Tumor"),
        ("Tumor/New Primary/Unknown", "Additional - New Primary"),
        ("Tumor/Primary/Peripheral Blood NOS", "Primary Blood Derived Cancer - Peripheral Blood"),
        ("Tumor/Primary/Bone Marrow NOS", "Primary Blood Derived Cancer - Bone Marrow"),
        ("Normal/Not Applicable/Solid Tissue", "Solid Tissue Normal"),
        ("Normal/Not Applicable/Peripheral Blood NOS", "Blood Derived Normal"),
        ("Normal/Not Applicable/Bone Marrow NOS", "Bone Marrow Normal"),
        ("Tumor/Not Reported/Solid Tissue", "Tumor / Not Reported / Solid Tissue"),
        ("Tumor/Primary/3D Organoid", "Tumor / Primary / 3D Organoid"),
        ("Tumor, Tumor/Primary, Primary/Solid Tissue, Solid Tissue", "Primary Tumor"),
        ("Tumor, Normal/Primary, Not Applicable/Solid Tissue, Solid Tissue", None),
    ],
)
def test_todays_columns_say_the_sample_type(today, kind):
    """Authority: the GDC's older sheets, whose column Sample Type they took the place of."""
    words = dict(zip(("tissue_type", "tumor_descriptor", "specimen_type"), today.split("/")))
    n = today.count(",") // 3 + 1
    row = sheet_row("C3L-1", ", ".join(f"C3L-1-0{i}" for i in range(n)), **words)
    assert (row["sample_type"] == kind and not row["why"]) if kind else row["why"]


@pytest.mark.parametrize("mark, end", [("\t", "\r\n"), (";", "\n"), (",", "\r\n")])
def test_sheets_of_any_hand_keep_tumour_and_normal_apart(tmp_path, capsys, mark, end):
    """Delimiters, quotes, line ends and the byte-order mark; two tissues of each patient."""
    truth = gdc_folder(tmp_path / "gdc")
    sheet = tmp_path / "gdc" / "gdc_sample_sheet.2026-01-01.tsv"
    rows = [line.split("\t") for line in sheet.read_text().splitlines()]
    rows[4][5:] = ["TCGA-AA-0009, TCGA-AA-0002", "TCGA-AA-0009-01A, TCGA-AA-0002-01B", rows[4][7]]
    text = end.join(mark.join(f'"{cell}"' for cell in row) for row in rows)
    sheet.write_text("\ufeff" + text + end, "utf-8", newline="")
    out = tmp_path / "e.csv"
    assert main(["expression", str(tmp_path / "gdc"), "--out", str(out), "--types", "all"]) == 0
    said = read_csv(tmp_path / "e_samples.csv")
    assert [row["sample"] for row in said] == [row["sample"] for row in read_csv(out)]
    assert {row["sample"] for row in said} == truth.keys() - {"TCGA-AA-0002-01B"}
    types = {row["sample"][13:15]: row["sample_type"] for row in said}
    assert types["01"] == "Primary Tumor" and types["11"] == "Solid Tissue Normal"
    assert "1 files of several patients, pooled" in capsys.readouterr().out
    assert len(read_sheet(tmp_path / "gdc")[0]) == len(rows) - 1
