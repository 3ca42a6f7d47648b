"""What a run is asked for. Authority: lists written by hand."""

import pytest

from lab.application import held_out, pick_genes
from lab.files import InputError

KNOWN = ["CD3D", "CD3E", "CD247", "MKI67"]


def test_genes_are_named_by_list_or_file(tmp_path):
    (tmp_path / "g.txt").write_text("\ufeffCD247\r\nCD3D\tx\n\n")
    assert pick_genes("MKI67, CD3D,MKI67", KNOWN) == [3, 0]
    assert pick_genes("all", KNOWN) == [0, 1, 2, 3]
    assert pick_genes(str(tmp_path / "g.txt"), KNOWN) == [2, 0]


@pytest.mark.parametrize(
    "text, words",
    [
        ("CD3F", "no gene 'CD3F'; nearest: CD3"),
        ("cd3d", "nearest: CD3D"),
        ("ZZZZ", "it has 4"),
        (",", "no gene in it"),
    ],
)
def test_genes_that_are_not_there_are_named_with_near_ones(text, words):
    with pytest.raises(InputError, match=words):
        pick_genes(text, KNOWN)


def test_a_slide_is_spoken_of_by_models_that_did_not_learn_from_its_patient(tmp_path):
    """The patient stands in folds.csv, else in samples.csv, else in a TCGA slide's name."""
    run = {
        "folder": tmp_path,
        "cohort": tmp_path,
        "folds": ["model"] * 3,
        "rows": [{"slide": "a", "patient": "p"}, {"slide": "d", "patient": "s"}],
        "fold_of": {"p": [0], "q": [1, 2], "TCGA-AA-0001": [2], "s": []},
    }
    (tmp_path / "samples.csv").write_text("slide,patient,project\na,q,X\nb,q,X\n")
    assert held_out(run, "a", tmp_path, False) == [0]
    assert held_out(run, "b", tmp_path, False) == [1, 2]
    assert held_out(run, "TCGA-AA-0001-01Z", tmp_path, False) == [2]
    assert held_out(run, "new", tmp_path, False) == [0, 1, 2]
    assert held_out(run, "d", tmp_path, True) == [0, 1, 2]
    with pytest.raises(InputError, match=r"every model of .* learned from patient s"):
        held_out(run, "d", tmp_path, False)
