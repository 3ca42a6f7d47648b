"""What is said of a cohort before hours of work. Authority: cohorts whose faults are planted."""

import argparse
import shutil

import h5py
import numpy as np
import pytest

from lab.cohort.check import check_cohort, check_kinds
from lab.commands.tiling import main
from lab.files import InputError
from lab.findings import Findings
from lab.he2rna.msi_study import check_patients_of

PLAIN = argparse.Namespace(
    features=None, tile_um=None, mpp=None, force_mpp=False, share=(0, 1), project=None
)


def rows(*patients, slides=None, project="X"):
    slides = slides or [f"s{i}x" for i in range(len(patients))]
    pairs = zip(slides, patients, strict=True)
    return [{"slide": s, "patient": p, "project": project} for s, p in pairs]


def found_in(cohort, samples, o=None, table=None):
    found = Findings()
    check_cohort(found, cohort, samples, o, table)
    return found


def test_a_sound_cohort_says_nothing(tmp_path):
    samples = rows(
        "p1", "p2", "p10", "p100", "p1-1", "p1-2", "2020-1", "20-201", project="settings"
    )
    found = found_in(tmp_path, samples, table=("slide", [s["slide"] for s in samples]))
    assert found.warned == [] and found.refused == []
    barcodes = rows("TCGA-AA-0001", "TCGA-AA-0010", slides=["TCGA-AA-0001-01Z", "TCGA-AA-0010-01Z"])
    assert found_in(tmp_path, barcodes).warned == []


@pytest.mark.parametrize("other", ["P1", "p 1", "p-1", "p_1", "p01", "p.1", "ｐ1"])
def test_a_patient_in_two_spellings_is_named(tmp_path, other):
    (said,) = found_in(tmp_path, rows("p1", other, "q")).warned
    assert f"'p1' and {other!r} may each be the same patient" in said


def test_patients_by_other_names_than_their_barcodes_are_named(tmp_path):
    slides = ["TCGA-AA-0001-01Z", "tcga-aa-0002-01z"]
    (said,) = found_in(tmp_path, rows("u1", "u2", slides=slides)).warned
    assert "2 patients have other names than the barcodes" in said
    (said,) = found_in(tmp_path, rows("TCGA-COAD", "TCGA-COAD", slides=slides)).warned
    assert "TCGA-COAD (TCGA-AA-0001, TCGA-AA-0002)" in said


@pytest.mark.parametrize("merged", ["LUNG", "TCGA-LUNG"])
def test_a_project_of_a_merged_cancers_name_is_refused_beside_its_parts(tmp_path, merged):
    samples = [*rows("p", project=merged), *rows("q", slides=["b"], project="TCGA-LUAD")]
    (said,) = found_in(tmp_path, samples).refused
    assert merged in said and "TCGA-LUAD" in said
    assert found_in(tmp_path, samples[:1]).refused == []


def test_rows_that_would_join_under_another_spelling_are_said(tmp_path):
    samples = rows("p", "q", "r", slides=["S-01", "S-02", "S-03"])
    (said,) = found_in(tmp_path, samples, table=("slide", ["S-01", "s2", "s3"])).warned
    assert "2 slides have no row" in said and "2 of 2 would match but for case" in said


def test_one_file_under_two_patients_is_named(tmp_path):
    (tmp_path / "slides").mkdir()
    for name, data in (("a", b"x" * 9), ("b", b"x" * 9), ("c", b"y" * 9), ("d", b"x" * 8)):
        (tmp_path / "slides" / f"{name}.svs").write_bytes(data)
    (said,) = found_in(tmp_path, rows("p", "q", "r", "t", slides=list("abcd")), PLAIN).warned
    assert "a of patient p, b of patient q are the same file" in said
    assert found_in(tmp_path, rows("p", "p", "r", "t", slides=list("abcd")), PLAIN).warned == []
    (said,) = found_in(tmp_path, rows("p", "q", slides=["A", "c"]), PLAIN).warned
    assert "1 slides of samples.csv have no file; 1 of 1 would match" in said


@pytest.fixture
def described(tmp_path):
    """Features of four slides: those of b are a's, those of d are wider."""
    folder = tmp_path / "uni"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, width in zip("acd", (6, 6, 7), strict=True):
        with h5py.File(folder / f"{name}.h5", "w") as h:
            h["features"] = rng.normal(size=(9, width))
            h["coords"] = 200 * np.stack(np.divmod(np.arange(9), 3), 1)
    shutil.copy(folder / "a.h5", folder / "b.h5")
    lines = [f"{slide},p{slide},X\n" for slide in "abcd"]
    (tmp_path / "samples.csv").write_text("slide,patient,project\n" + "".join(lines))
    return tmp_path


def test_the_same_features_and_other_widths_are_named(described):
    o = argparse.Namespace(**{**vars(PLAIN), "features": described / "uni"})
    said = found_in(described, rows("p", "q", "r", "t", slides=list("abcd")), o).warned
    assert "a of patient p, b of patient q are the same features" in said[0]
    assert any("d 7" in text for text in said[1:])


def test_doctor_has_the_same_list_without_slides(described, capsys):
    table = ["slide,G1,G2", "a,1000,2", "b,5,600", "C,7,0", "d,1,50"]
    (described / "expression.csv").write_text("\n".join(table))
    before = sorted(described.rglob("*"))
    assert main(["doctor", str(described), "--features", str(described / "uni")]) == 0
    said = capsys.readouterr().out
    assert "a: 9 tiles of 6 features" in said
    assert "are the same features" in said and "would match but for case" in said
    assert sorted(described.rglob("*")) == before
    (described / "expression.csv").write_text("\n".join(table).replace("1000", "-3"))
    with pytest.raises(InputError, match="G1 of a is -3"):
        main(["doctor", str(described), "--features", str(described / "uni")])
    assert "are the same features" in capsys.readouterr().out  # all findings, not the first


def test_patients_of_an_array_are_looked_at_alike(capsys):
    check_patients_of("x.npz", np.array(["p1", "P1", "q"]))
    assert "'p1' and 'P1' may each be the same patient" in capsys.readouterr().out
    with pytest.raises(InputError, match="patients NA are no patients"):
        check_patients_of("x.npz", np.array(["p1", "NA"]))
    with pytest.raises(InputError, match="TCGA-AA-0001-01A are barcodes of samples"):
        check_patients_of("x.npz", np.array(["TCGA-AA-0001-01A"]))


KINDS = {  # of nine slides alike and one that is not
    "features a tile": (768, 1024, "features a tile: 768 on 9 slides, not on 1: s9 1024"),
    "encoder": ("uni", "conch", "encoder: uni on 9 slides, not on 1: s9 conch"),
    "unit of coords": ("1 µm", "px", "unit of coords: 1 µm on 9 slides, not on 1: s9 px"),
    "µm of a tile": (112.0, 224.0, "µm of a tile: 112.0 on 9 slides, not on 1: s9 224.0"),
    "level-0 pixels of a tile": (448.0, 224.0, "448.0 on 9 slides, not on 1: s9 224.0"),
    "no map": ("", "coords of another level?", "of 1 slides, such as s9: coords of another level?"),
}


@pytest.mark.parametrize("what", KINDS)
def test_slides_whose_features_were_not_made_alike_are_named(what):
    usual, other, words = KINDS[what]
    found = Findings()
    check_kinds(found, "DIR", {f"s{i}": {what: usual, "more": 1} for i in range(9)})
    assert not found.warned
    check_kinds(found, "DIR", {f"s{i}": {what: usual if i < 9 else other} for i in range(10)})
    assert len(found.warned) == 1 and words in found.warned[0]


def test_pixels_of_scanners_differ_a_little_and_that_is_no_other_tile():
    """Scanners of 40x differ by 8 %; tiles twice as large are another magnification's."""
    found, mpp = Findings(), np.random.default_rng(0).uniform(0.243, 0.263, 40)
    kinds = {f"s{i}": {"µm of a tile": 256 * v} for i, v in enumerate(mpp)}
    check_kinds(found, "DIR", kinds)
    assert not found.warned
    check_kinds(found, "DIR", {**kinds, "a": {"µm of a tile": 128.0}, "b": {"µm of a tile": 128.0}})
    assert "on 40 slides, not on 2: a 128.0, b 128.0" in found.warned[0]
