"""lab.tests.test_application"""

import pytest

from lab.application import pick_genes
from lab.files import InputError


def test_genes_are_named_by_list_or_file_and_near_names_are_suggested(tmp_path):
    known = ["CD3D", "CD3E", "CD247", "MKI67"]
    (tmp_path / "g.txt").write_text("\ufeffCD247\r\nCD3D\tx\n\n")
    assert pick_genes("MKI67, CD3D", known) == [3, 0] and pick_genes("all", known) == [0, 1, 2, 3]
    assert pick_genes(str(tmp_path / "g.txt"), known) == [2, 0]
    for text, words in (
        ("CD3F", "no gene 'CD3F'; nearest: CD3"),
        ("cd3d", "nearest: CD3D"),
        (",", "no gene in it"),
        ("ZZZZ", "it has 4"),
    ):
        with pytest.raises(InputError, match=words):
            pick_genes(text, known)
