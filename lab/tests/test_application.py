"""What a run is asked for. Authority: lists written by hand."""

import pytest

from lab.application import pick_genes
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
