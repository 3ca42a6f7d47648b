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
def test_rows_come_by_slide_with_any_labels(tmp_path, end):
    lines = ["﻿slide, patient,project,msi", "b,p1, X ,MSI-H", "", ",,,", 'a,"p, 2",Y,']
    (tmp_path / "samples.csv").write_text(end.join(lines), newline="")
    assert read_samples(tmp_path) == [
        {"slide": "a", "patient": "p, 2", "project": "Y", "msi": ""},
        {"slide": "b", "patient": "p1", "project": "X", "msi": "MSI-H"},
    ]


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no column slide, patient, project; it has nothing"),
        ("slide:patient:project\n", "no column slide, .*; it has slide:patient:project; wanted"),
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


def lines(path, *rows):
    (path / "samples.csv").write_text("slide,patient,project\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(
    "word",
    ["NA", "n/a", "NaN", "None", "[Not Available]", "--", "'--", "null", "unknown", "?", "."],
)
def test_words_for_nobody_are_no_patient(tmp_path, word):
    with pytest.raises(InputError, match=r"rows 3, 4: patient .* is no patient"):
        read_samples(lines(tmp_path, "a,p,X", f"b,{word},X", f"c,{word},X"))


@pytest.mark.parametrize("patient", ["TCGA-AA-0001-01", "tcga-aa-0001-01z-00-dx1", "C3L-00001-01"])
def test_barcodes_of_samples_and_slides_are_no_patient(tmp_path, patient):
    with pytest.raises(InputError, match=rf"{patient} are barcodes of samples or slides"):
        read_samples(lines(tmp_path, f"a,{patient},X"))


def test_a_barcode_and_its_patient_agree(tmp_path, capsys):
    slide, other = "TCGA-AA-0001-01Z-00-DX1", "tcga-aa-0001-01z-00-dx2"
    for patient in ("TCGA-AA-0001", "tcga-aa-0001", "case 7"):
        rows = read_samples(
            lines(tmp_path, f"{slide},{patient},X", f"{other},{patient},X", "a,q,X")
        )
        assert {row["patient"] for row in rows} == {patient, "q"}
    with pytest.raises(InputError, match="are barcodes of different patients"):
        read_samples(lines(tmp_path, f"{slide},TCGA-AA-0002,X"))
    with pytest.raises(InputError, match="TCGA-AA-0001, tcga-aa-0001 are one"):
        read_samples(lines(tmp_path, f"{slide},TCGA-AA-0001,X", f"{other},tcga-aa-0001,X"))
    with pytest.raises(InputError, match="the 2 findings above must be mended"):
        read_samples(lines(tmp_path, f"{slide},p,X", f"{other},q,X", "a,NA,X"))
    assert "patients p, q are one, TCGA-AA-0001" in capsys.readouterr().err


def test_names_are_composed_and_their_blanks_are_plain(tmp_path):
    """A decomposed umlaut, a no-break space, a zero-width one, tabs: one name of one patient."""
    spelled = [
        "J\u00fcrgen 1",
        "Ju\u0308rgen\u00a01",
        "\u200bJ\u00fcrgen\u20091 ",
        "\ufeffJ\u00fcrgen 1\t",
    ]
    rows = read_samples(lines(tmp_path, *(f"s{i},{name},X" for i, name in enumerate(spelled))))
    assert {row["patient"] for row in rows} == {"J\u00fcrgen 1"}
    with pytest.raises(InputError, match="slide J\u00fcrgen 1 stands there twice"):
        read_samples(lines(tmp_path, f"{spelled[0]},p,X", f"{spelled[1]},p,X"))


def test_a_project_may_have_a_comma():
    samples = [{"slide": str(i), "project": name} for i, name in enumerate(("a,b", "a", "all"))]
    assert [s["slide"] for s in select(samples, None, "a,b")[0]] == ["0"]
    assert [s["slide"] for s in select(samples, None, "a,all")[0]] == ["1", "2"]
