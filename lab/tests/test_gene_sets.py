"""Reading gene sets as MSigDB and others write them."""

import gzip

import pytest

from lab.files import InputError
from lab.gene_sets import read_sets


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda text: b"\xef\xbb\xbf" + text])
def test_sets_are_read_with_any_line_ends_plain_and_packed(tmp_path, end, pack):
    lines = [
        b"A\thttp://a\tTP53\tMYC\tTP53\t",
        b"",
        b"EMPTY\tna",
        b"  B \t\t CD3D\t\tCD3E ",
        b"A\tagain\tMYC\tTP53",
        b"\t\t",
        b"LAST\td\tx",
    ]
    path = tmp_path / "sets.gmt"
    path.write_bytes(pack(end.join(lines)))
    sets = read_sets([path])
    assert sets == {"A": ("TP53", "MYC"), "EMPTY": (), "B": ("CD3D", "CD3E"), "LAST": ("x",)}
    assert list(sets) == ["A", "EMPTY", "B", "LAST"]


@pytest.mark.parametrize(
    "data, words",
    [
        (b"A\td\tx\nB\td\ty\nA\td\tz\n", "line 3: set 'A' stands in .*line 1 too, with different"),
        (b"A\td\tx\nno tabs here\n", "line 2: wanted a name.*found 'no tabs here'"),
        (b"\td\tx\n", "line 1: wanted a name"),
        (b"", "no gene set"),
        (b"\n\r\n", "no gene set"),
        ("A\td\tx\n".encode("utf-16"), "not a text file in UTF-8"),
        (gzip.compress(b"A\td\tx\n" * 99)[:-9], "can't be read"),
        (b"\x1f\x8bnonsense", "can't be read"),
    ],
)
def test_what_is_no_gene_set_is_named_by_file_and_line(tmp_path, data, words):
    path = tmp_path / "sets.gmt"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words) as e:
        read_sets([path])
    assert str(e.value).startswith(f"--gmt: {path}")


def test_several_files_may_not_disagree(tmp_path):
    a, b, c = (tmp_path / f"{name}.gmt" for name in "abc")
    a.write_text("A\tx\tG1\tG2\nB\tx\tG3\n")
    b.write_text("C\tx\tG4\nB\ty\tG3\n")
    c.write_text("B\tx\tG9\n")
    assert read_sets([a, b]) == {"A": ("G1", "G2"), "B": ("G3",), "C": ("G4",)}
    with pytest.raises(InputError, match=r"c.gmt, line 1: set 'B' stands in .*b.gmt, line 2 too"):
        read_sets([b, a, c])
    with pytest.raises(InputError, match=r"--gmt: .*nowhere.gmt: No such file"):
        read_sets([a, tmp_path / "nowhere.gmt"])
