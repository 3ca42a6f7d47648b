"""Whose a slide is. Authority: small cohorts whose patients are written by hand."""

import shutil
import unicodedata
from itertools import chain

import h5py
import numpy as np
import pytest

from lab.application import held_out
from lab.cohort.identity import asked_slides
from lab.cohort.names import alike_groups, person, who, would_match
from lab.files import InputError
from lab.words import tidy

BARCODE = "TCGA-AA-0001-01Z-00-DX1"


@pytest.mark.parametrize("end", ["", "-01", "-01A", "-01Z-00", "-01Z-00-DX1", "-01Z-00-DX1.0A-b"])
def test_a_barcode_of_any_length_and_case_is_its_patient(end):
    for name in ("TCGA-AA-0001" + end, ("TCGA-AA-0001" + end).lower()):
        assert person(name) == who(name) == "TCGA-AA-0001"


def test_other_programmes_and_other_names():
    assert person("C3L-00001-21") == "C3L-00001"
    assert person("C3N-01234") == "C3N-01234"
    assert person("TARGET-10-PARBRK-09A-01R") == "TARGET-10-PARBRK"
    assert person("GTEX-1117F-0226") == "GTEX-1117F"
    for name in ("TCGA-AA-00012", "slide-TCGA-AA-0001", "C3L-1", "P1", ""):
        assert person(name) is None
    assert who("P1") == "P1"


def test_names_that_may_be_one_are_found_and_others_are_not():
    one = [["p1", "P1", "p-1", "p01", "P.1"], ["2020-123", "2020_123", "2020123"], ["7.0", "007"]]
    others = [
        "1-11",
        "11-1",
        "s0-1",
        "s1-0",
        "p10",
        "p100",
        "TCGA-AA-0001",
        "TCGA-AA-0010",
        "0",
        "",
    ]
    assert list(alike_groups([*chain(*one), *others])) == one


@pytest.mark.parametrize(
    "here, there, words",
    [
        ("P01", "p1", "but for case"),
        ("12", "X12", "without R's X"),
        ("s1", "s1.svs", "before the first dot"),
        ("TCGA-AA-0001-01A", "TCGA.AA.0001.01A.11R.A00Z.07", "by the sample's part"),
        ("TCGA-AA-0001-01A", "TCGA-AA-0001", "by the patient's part"),
    ],
)
def test_what_a_join_would_match_is_said(here, there, words):
    assert words in would_match([here], [there]) and there in would_match([here], [there])


def test_names_that_nothing_joins_have_no_hint():
    assert would_match(["a", "b"], ["TP53"]) == ""


# ----- Files ------------------------------------------------------------------------------------


def features(folder, name, seed):
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}.h5", "w") as h:
        h["features"] = np.random.default_rng(seed).normal(size=(4, 3))
        h["coords"] = np.arange(8).reshape(4, 2)
    return folder / f"{name}.h5"


def table(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{slide},{patient},X\n" for slide, patient in rows]
    (folder / "samples.csv").write_text("slide,patient,project\n" + "".join(lines))


@pytest.fixture
def run(tmp_path):
    """A run on features made elsewhere: patients p and q, and one of TCGA by a name of its own."""
    cohort, mine = tmp_path / "mine", (("a", "p"), ("b", "q"), (BARCODE, "r"))
    table(cohort, *mine)
    for seed, (name, _) in enumerate(mine):
        features(cohort / "uni", name, seed)
    (cohort / "run").mkdir()
    config = {"features_folder": str(cohort / "uni"), "features": {"source": "uni"}}
    rows = [{"slide": slide, "patient": patient} for slide, patient in mine]
    fold_of = {"p": [0], "q": [1], "r": [2]}
    run = {"folder": cohort / "run", "cohort": cohort, "config": config, "rows": rows}
    return {**run, "folds": [0, 1, 2], "fold_of": fold_of}


def one(run, text):
    return asked_slides(run, [str(text)])[0]


def test_the_runs_own_slide_by_name_place_and_content(run, tmp_path):
    copy = shutil.copy(run["cohort"] / "uni" / "a.h5", tmp_path / "a.h5")
    for text in ("a", run["cohort"] / "uni" / "a.h5", copy):
        slide = one(run, text)
        assert (slide.own, slide.patients, slide.label) == (True, ["p"], "a")
        assert held_out(run, slide, False) == [0] and held_out(run, slide, True) == [0, 1, 2]


def test_another_file_of_the_same_name_is_another_slide(run, tmp_path):
    slide = one(run, features(tmp_path / "other" / "uni", "a", 9))
    assert not slide.own and slide.patients == [] and slide.label.startswith("a-")
    assert held_out(run, slide, False) == [0, 1, 2]
    third = one(run, features(tmp_path / "third" / "uni", "a", 8))
    assert len({slide.label, third.label, "a"}) == 3


def test_a_table_beside_or_above_speaks_first(run, tmp_path):
    path = features(tmp_path / "other" / "made" / "uni" / "h5_files", "a", 9)
    table(tmp_path / "other", ("a", "q"), ("x", "p"))
    assert one(run, path).patients == ["q"] and one(run, path).home == tmp_path / "other"
    assert held_out(run, one(run, path), False) == [1]
    table(tmp_path / "other" / "made", ("a", "new"))  # nearer
    assert held_out(run, one(run, path), False) == [0, 1, 2]
    (tmp_path / "other" / "made" / "samples.csv").write_text("barcode,purity\n1,2\n")
    assert one(run, path).patients == ["q"]  # a table of other things says nothing of slides
    wrong = features(tmp_path / "other" / "uni", "x", 7)
    assert held_out(run, one(run, wrong), False) == [0]


def test_the_runs_own_slide_that_a_table_gives_to_another_keeps_both_out(run):
    table(run["cohort"], ("a", "q"), ("b", "q"))
    assert one(run, "a").patients == ["q", "p"]
    with pytest.raises(InputError, match=r"every model of .* learned from patient p, q"):
        held_out(run, one(run, "a"), False)


@pytest.mark.parametrize("name", ["TCGA-AA-0001-01Z-00-DX9", "tcga-aa-0001-11a", "TCGA-AA-0001"])
def test_a_new_slide_of_a_patient_of_tcga_is_known_by_its_barcode(run, tmp_path, name):
    """Whatever name the run has for the patient, and whatever a table calls him."""
    path = features(tmp_path / "new", name, 5)
    assert held_out(run, one(run, path), False) == [2]
    table(tmp_path / "new", (name, "P7"))
    assert held_out(run, one(run, path), False) == [2]


def test_a_table_may_spell_a_patient_of_tcga_in_its_own_way(run, tmp_path):
    """Where the slide's name says nothing."""
    path = features(tmp_path / "new", "x", 5)
    for spelled in ("TCGA-AA-0001", "tcga-aa-0001"):
        table(tmp_path / "new", ("x", spelled))
        assert held_out(run, one(run, path), False) == [2]
    table(tmp_path / "new", ("x", "TCGA-AA-0002"))
    assert held_out(run, one(run, path), False) == [0, 1, 2]


def test_patients_by_barcodes_of_samples_are_one(run, tmp_path):
    run["fold_of"] = {"TCGA-AA-0001-01": [0, 1], "TCGA-AA-0001-06": [1, 2], "p": [0]}
    run["rows"] = run["rows"][:1]
    assert held_out(run, one(run, features(tmp_path, "TCGA-AA-0001", 5)), False) == [1]


def test_strangers_of_one_name_have_two(run, tmp_path):
    first = features(tmp_path / "x", "new", 5)
    second = features(tmp_path / "y", "new", 6)
    assert one(run, first).label == "new"
    label = one(run, second).label
    assert label.startswith("new-") and one(run, second).label == label
    assert one(run, first).label == "new"
    copy = shutil.copytree(tmp_path / "x", tmp_path / "z")
    assert one(run, copy / "new.h5").label == "new"  # the same file
    features(tmp_path / "x", "new", 7)
    assert one(run, first).label == "new"  # described anew, in its place


def test_a_slide_that_nothing_tells_from_the_runs_own_is_taken_for_it(run, tmp_path):
    path = features(tmp_path / "other" / "uni", "a", 9)
    shutil.rmtree(run["cohort"] / "uni")
    assert one(run, path).own
    table(tmp_path / "other", ("a", "new"))
    assert not one(run, path).own


def test_names_are_composed_whatever_the_file_is_called(run, tmp_path):
    name = "Jürgen 1"
    run["rows"].append({"slide": name, "patient": "p"})
    for form in ("NFC", "NFD"):
        spelled = unicodedata.normalize(form, name).replace(" ", "\u00a0")
        path = features(tmp_path / form, spelled, 3)
        slide = one(run, path)
        assert slide.name == name == tidy(spelled) and slide.path == path
        assert one(run, spelled).patients == ["p"]
    with pytest.raises(InputError, match="neither a slide file nor a slide of the run"):
        one(run, "Jurgen 1")
