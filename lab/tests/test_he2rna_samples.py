"""lab.tests.test_he2rna_samples"""

import re

import pytest

from lab.cohort.expression import read_expression
from lab.cohort.samples import join, read_samples, select
from lab.commands.he2rna import main
from lab.files import InputError, save_text
from lab.tests.helpers_he2rna import SHEET, gdc_folder


def test_slides_of_tcga_join_samples_by_patient_and_type(tmp_path, capsys):
    """Barcodes by hand; a diagnostic slide's Z is any vial.

    Gdc-client's folders are looked into.
    """
    home = tmp_path / "slides" / "1b671fb9-fd78-58b9-9094-30a711a09a8b"
    home.mkdir(parents=True)
    for name in (
        "TCGA-AA-0001-01Z-00-DX1.a-b",
        "TCGA-AA-0001-01Z-00-DX2.c",
        "TCGA-AA-0002-01Z-00-DX1.d",
        "TCGA-AA-0002-01B-02-TS1.e",
        "tcga-aa-0002-01a-01-bsb",
        "TCGA-AA-0002-11A-01-MS1.f",
        "TCGA-AA-0003-06Z-00-DX1.g",
        "TCGA-AA-0003-01Z-00-DX1.h",
        "TCGA-BB-0009-01Z-00-DX1.i",
        "scan17",
        "TCGA-AA-0003-01Z-00-DX1.\x01\n",
        "TCGA-AA-0003-01Z-00-DX1." + "x" * 200,
    ):
        (home if "DX1" in name else home.parent).joinpath(name + ".svs").touch()
    gdc_folder(tmp_path / "gdc")
    sheet = ["--sheet", str(tmp_path / "gdc" / "gdc_sample_sheet.2026-01-01.tsv")]
    assert (
        main(
            [
                "expression",
                str(tmp_path / "gdc"),
                "--types",
                "all",
                "--out",
                str(tmp_path / "expression.npz"),
            ]
        )
        == 0
    )
    dx = [
        (
            "TCGA-AA-0001-01Z-00-DX1.a-b",
            "TCGA-AA-0001",
            "TCGA-LUSC",
            "TCGA-AA-0001-01A",
            "Primary Tumor",
            "DX",
        ),
        (
            "TCGA-AA-0001-01Z-00-DX2.c",
            "TCGA-AA-0001",
            "TCGA-LUSC",
            "TCGA-AA-0001-01A",
            "Primary Tumor",
            "DX",
        ),
        (
            "TCGA-AA-0002-01Z-00-DX1.d",
            "TCGA-AA-0002",
            "TCGA-LUAD",
            "TCGA-AA-0002-01A",
            "Primary Tumor",
            "DX",
        ),
        (
            "TCGA-AA-0003-01Z-00-DX1.h",
            "TCGA-AA-0003",
            "TCGA-BRCA",
            "TCGA-AA-0003-01Z",
            "Primary Tumor",
            "DX",
        ),
        (
            "TCGA-AA-0003-06Z-00-DX1.g",
            "TCGA-AA-0003",
            "TCGA-BRCA",
            "TCGA-AA-0003-06A",
            "Metastatic",
            "DX",
        ),
    ]
    frozen = [
        (
            "TCGA-AA-0002-01B-02-TS1.e",
            "TCGA-AA-0002",
            "TCGA-LUAD",
            "TCGA-AA-0002-01B",
            "Primary Tumor",
            "TS",
        ),
        (
            "TCGA-AA-0002-11A-01-MS1.f",
            "TCGA-AA-0002",
            "TCGA-LUAD",
            "TCGA-AA-0002-11A",
            "Solid Tissue Normal",
            "MS",
        ),
        (
            "tcga-aa-0002-01a-01-bsb",
            "TCGA-AA-0002",
            "TCGA-LUAD",
            "TCGA-AA-0002-01A",
            "Primary Tumor",
            "BS",
        ),
    ]

    def go(*more):
        return main(["samples", str(tmp_path), *sheet, *more])

    capsys.readouterr()
    assert (
        go("--dry-run") == 0
        and not (tmp_path / "samples.csv").exists()
        and "LUNG" in capsys.readouterr().out
    )
    for more, want in (
        ((), dx),
        (("--kind", "frozen", "--overwrite"), frozen),
        (("--kind", "all", "--overwrite"), sorted(dx + frozen)),
    ):
        assert go(*more) == 0
        rows = read_samples(tmp_path)
        assert [tuple(r.values()) for r in rows] == want and list(rows[0]) == [
            "slide",
            "patient",
            "project",
            "sample",
            "sample_type",
            "kind",
        ]
        said = capsys.readouterr().out
        assert ("first by barcode is taken: TCGA-AA-0002-01A (TCGA-AA-0002-01B)" in said) == (
            "frozen" not in more
        )
        assert "1 slides whose name is no TCGA slide's barcode: scan17" in said
        assert (
            "2 slides whose name has control characters or over 200 bytes: no file's name here: "
            r"TCGA-AA-0003-01Z-00-DX1.\x01, " in said
        )
    assert (
        re.search(r"no expression: train leaves them out: TCGA-AA-0003-01Z-00-DX1.h\n", said)
        and "doesn't name: TCGA-BB-0009-01Z-00-DX1.i" in said
    )
    key, ids, _, _ = read_expression(tmp_path)
    kept, at, _ = join(*select(rows, "01,11", None)[:1], key, ids)
    assert {r["slide"]: ids[i] for r, i in zip(kept, at)} == {
        r[0]: r[3] for r in dx + frozen if r[4] != "Metastatic" and r[3][-1] != "Z"
    }
    with pytest.raises(InputError, match=r"samples.csv is there already: --overwrite"):
        go()
    header = "\t".join(SHEET[1:7])
    for lines, words in (
        ((header, "a\tT\tG\tX\tp\ts", "b\tT\tG\tY\tp\ts"), "patient p is of X and of Y"),
        ((header, "a\tT\tG\tX\tp\ts"), "no slide is left for samples.csv"),
        (
            (header, "a\tT\tG\tX\tTCGA-BB-0009\ts"),
            "none of 1 slides .the first is TCGA-BB-0009-01Z-00-DX1.i. has its patient and type",
        ),
    ):
        save_text(tmp_path / "sheet.tsv", lines)
        with pytest.raises(InputError, match=words):
            main(["samples", str(tmp_path), "--overwrite", "--sheet", str(tmp_path / "sheet.tsv")])
    assert [tuple(r.values()) for r in read_samples(tmp_path)] == sorted(dx + frozen)  # as it was
    with pytest.raises(InputError, match="no gdc_sample_sheet"):
        main(["samples", str(tmp_path), "--overwrite"])
    (tmp_path / "expression.npz").unlink()
    (tmp_path / "expression.csv").write_text("slide,G\nscan17,1\n")
    with pytest.raises(InputError, match="its rows are slides already"):
        go("--overwrite")
