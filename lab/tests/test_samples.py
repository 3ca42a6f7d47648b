"""samples.csv, joined to expression, and which of its rows are asked for."""

import pytest

from lab.cohort.samples import barcode, join, read_samples, select
from lab.files import InputError

SAMPLES = [
    {"slide": slide, "sample": sample, "patient": "p", "project": "X"}
    for slide, sample in (("a1", "A"), ("a2", "A"), ("b1", "B"), ("c1", "C"))
]
TYPED = [
    {"slide": str(i), "project": project, "sample_type": kind}
    for i, (project, kind) in enumerate(
        [
            ("TCGA-LUAD", "Primary Tumor"),
            ("TCGA-LUSC", "Solid Tissue Normal"),
            ("TCGA-LUSC", "Primary Tumor"),
            ("TCGA-KIRC", "Primary Tumor"),
        ]
    )
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_come_in_file_order_with_any_labels(tmp_path, end):
    lines = ["﻿slide, patient,project,msi", "b,p1, X ,MSI-H", "", ",,,", 'a,"p, 2",Y,']
    (tmp_path / "samples.csv").write_text(end.join(lines), newline="")
    assert read_samples(tmp_path) == [
        {"slide": "b", "patient": "p1", "project": "X", "msi": "MSI-H"},
        {"slide": "a", "patient": "p, 2", "project": "Y", "msi": ""},
    ]


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no column slide, patient, project; it has nothing"),
        ("slide;patient;project\n", "no column slide, .*; it has slide;patient;project; wanted"),
        ("slide,patient,project,msi,msi\n", "a column stands there twice"),
        ("slide,patient,project\n", "no rows"),
        ("slide,patient,project\na,p\n", "row 2 has 2 fields, the header has 3"),
        ("slide,patient,project\na,p,X\nb,,X\n", "row 3: empty patient"),
        ("slide,patient,project\na,p,X\na,q,X\n", "row 3: slide a stands there twice"),
        ("slide,patient,project\nx/a,p,X\n", "row 2: slide x/a is a path"),
        ("slide,patient,project\n..,p,X\n", "row 2: slide .. is a path"),
        ("slide,patient,project\nsettings,p,X\n", "can't be the name of a file here"),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path, text, words):
    (tmp_path / "samples.csv").write_text(text)
    with pytest.raises(InputError, match=f"samples.csv:? ?{words}|samples.csv.* {words}"):
        read_samples(tmp_path)


def test_no_table_is_said(tmp_path):
    with pytest.raises(InputError, match=r"samples.csv is missing: wanted is a table"):
        read_samples(tmp_path)


def test_join_by_slide_or_sample():
    kept, rows, left = join(SAMPLES, "sample", ["B", "A", "D"])
    assert [s["slide"] for s in kept] == ["a1", "a2", "b1"] and rows.tolist() == [1, 1, 0]
    assert list(left.values()) == [["c1"], ["D"]]
    assert join(SAMPLES, "", ["A"])[1].tolist() == [0, 0]
    assert join(SAMPLES, "slide", ["b1"])[1].tolist() == [0]


def test_what_cannot_be_joined_is_said():
    plain = [{"slide": "a", "patient": "p", "project": "X"}]
    with pytest.raises(InputError, match="no column sample"):
        join(plain, "sample", ["a"])
    with pytest.raises(InputError, match="are genes the rows"):
        join(SAMPLES, "slide", ["TP53"])
    two = [{**plain[0], "sample": "A"}, {"slide": "b", "sample": "A", "patient": "q"}]
    with pytest.raises(InputError, match=r"sample A is of two patients, p and q.*sides of a fold"):
        join(two, "sample", ["A"])


@pytest.mark.parametrize(
    "types, project, slides",
    [
        (None, None, ["0", "2", "3"]),
        ("all", "LUNG", ["0", "1", "2"]),
        ("solid tissue normal", None, ["1"]),
        ("01,11", None, ["0", "1", "2", "3"]),
        (None, "TCGA-KIRC", ["3"]),
        (None, "KIRC, LUAD", ["0", "3"]),
    ],
)
def test_primary_tumours_and_projects_are_selected(types, project, slides):
    kept, left = select(TYPED, types, project)
    assert [s["slide"] for s in kept] == slides
    if types is None and project is None:
        assert left == {"slides of other sample types than primary tumour": ["1"]}


@pytest.mark.parametrize(
    "types, project, words",
    [
        (None, "STAD", "--project STAD: samples.csv has TCGA-KIRC, TCGA-LUAD"),
        (None, "LUAD,LUADD", "LUADD: samples.csv"),
        ("Metastatic", None, "no slide has sample_type metastatic; samples.csv has Primary Tumor"),
        ("Primary Tumor,Metastatic", None, "samples.csv has Primary"),
    ],
)
def test_types_and_projects_that_are_not_there_are_named(types, project, words):
    with pytest.raises(InputError, match=words):
        select(TYPED, types, project)


def test_barcodes_of_tcga():
    assert barcode("TCGA-AA-0001-01A-DX1") == ("TCGA-AA-0001", 1)
    assert barcode("TCGA-AA-0001-11A") == ("TCGA-AA-0001", 0)
    assert barcode("TCGA-AA-0001-06A") == ("TCGA-AA-0001", None)
    assert barcode("slide-1") == (None, None)
