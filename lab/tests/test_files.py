"""Files: whole or not there, and refused by name."""

import errno
import gzip
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.files import (
    InputError,
    differences,
    digest,
    few,
    fingerprint,
    load_arrays,
    load_json,
    read_rows,
    save_csv,
    save_file,
    save_text,
    say_error,
    whole_arrays,
)
from lab.tests.helpers import fill_disk


def test_a_full_disk_is_named_through_what_torch_makes_of_it(tmp_path, monkeypatch):
    fill_disk(monkeypatch, 1)
    with pytest.raises(OSError, match="No space left on device") as e:
        save_file(tmp_path / "a.pt", lambda f: torch.save(torch.zeros(10**6), f))
    assert e.value.filename == str(tmp_path / "a.pt") and e.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_file_that_breaks_off_leaves_the_one_before(tmp_path):
    path = tmp_path / "a.txt"
    save_text(path, ["one", "two"])

    def breaks(f):
        f.write(b"half")
        raise RuntimeError("anything")

    with pytest.raises(RuntimeError, match="anything"):
        save_file(path, breaks)
    assert path.read_text() == "one\ntwo" and len(list(tmp_path.iterdir())) == 1


def test_a_pipe_and_a_device_are_written_to_and_stay(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        save_text(pipe, ["to be", "seen"])
    assert read.result() == "to be\nseen" and pipe.is_fifo()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(pipe.write_bytes, gzip.compress(b"a,b\n1,2\n"))
        assert read_rows(pipe) == (["a", "b"], [["1", "2"]])
    save_text("/dev/null", ["gone"])
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_tables_come_back(tmp_path, name):
    rows = [["a,b", "1"], ['say "c"', "2"], ["µ", ""]]
    save_csv(tmp_path / name, ("name", "n"), iter(rows))
    assert read_rows(tmp_path / name) == (["name", "n"], rows)
    before = (tmp_path / name).read_bytes()
    save_csv(tmp_path / name, ("name", "n"), rows)
    assert (tmp_path / name).read_bytes() == before  # no time in it


@pytest.mark.parametrize(
    "data",
    [
        b" a ,b\n1,2\n\n3,4\n",
        b"a\tb\n1\t2\n3\t4\n",
        gzip.compress(b"a,b\n1,2\n3,4\n"),
        b"\xef\xbb\xbfa,b\r\n1,2\r\n3,4",
    ],
)
def test_rows_of_every_kind_of_table(tmp_path, data):
    (tmp_path / "t").write_bytes(data)
    assert read_rows(tmp_path / "t") == (["a", "b"], [["1", "2"], ["3", "4"]])


def test_a_table_of_a_program_on_windows(tmp_path):
    (tmp_path / "t").write_bytes("x µm\n1\n".encode("cp1252"))
    assert read_rows(tmp_path / "t") == (["x µm"], [["1"]])


@pytest.mark.parametrize("data", [gzip.compress(b"a,b\n" * 99)[:-9], b"\x1f\x8bxx", b"a\x81\xff"])
def test_what_is_no_table_is_named(tmp_path, data):
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(InputError, match="t: can't be read as a table"):
        read_rows(tmp_path / "t")


def test_what_is_not_whole_is_none(tmp_path):
    for name, data in (("a", b""), ("b", b"{"), ("c", b"[1]"), ("d", b"\xff"), ("e", b"[" * 10**5)):
        (tmp_path / name).write_bytes(data)
        assert load_json(tmp_path / name) is None and load_arrays(tmp_path / name) is None
    assert load_json(tmp_path / "nowhere") is None
    np.savez(tmp_path / "pickle.npz", a=np.array([{}], object))
    assert load_arrays(tmp_path / "pickle.npz") is None


def test_arrays_have_the_kinds_and_lengths_that_are_wanted(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, genes=np.array(["A", "B"]), truth=np.ones((3, 2)))
    assert set(whole_arrays(path, genes="UG", truth="fSG")) == {"genes", "truth"}
    whole_arrays(path, truth="fXY")  # the letters' names mean nothing
    for wanted in (
        {"genes": "fG"},
        {"truth": "fG"},
        {"genes": "US", "truth": "fSG"},
        {"other": "fS"},
    ):
        with pytest.raises(InputError, match=r"a.npz is missing or not whole"):
            whole_arrays(path, **wanted)


def test_a_mistake_is_one_line(capsys):
    say_error(InputError("a table\nwith\tbroken\x00 lines"))
    say_error(FileNotFoundError(errno.ENOENT, "No such file", "a.csv"))
    assert capsys.readouterr().err.splitlines() == [
        "error: a table\\nwith\\tbroken\\x00 lines",
        "error: a.csv: No such file",
    ]


def test_differences_name_what_changed_also_of_the_tiles_inside():
    old = {"encoder": "a", "tiles": {"tile_um": 112.0}}
    new = {"encoder": "b", "tiles": {"tile_um": 150.0, "tissue": "stain"}}
    assert differences(old, new) == "encoder a -> b, tile_um 112.0 -> 150.0"
    assert differences(new, new) == ""


def test_digests_and_fingerprints_tell_things_apart(tmp_path):
    a = np.arange(6.0)
    assert digest(a, ["x"]) == digest(a.copy(), ["x"]) != digest(a, ["y"])
    assert digest(a.reshape(2, 3).T) == digest(np.ascontiguousarray(a.reshape(2, 3).T))
    path = tmp_path / "slide"
    path.write_bytes(bytes(200_000))
    before = fingerprint(path)
    path.write_bytes(bytes(199_999) + b"1")
    assert before.startswith("200000 bytes, ") and fingerprint(path) != before
    assert fingerprint(tmp_path / "nowhere") == "unreadable (No such file or directory)"


def test_few_names_say_how_many_there_are():
    assert few(["a", "b"]) == "a, b" and few(list(range(12)), 2) == "0, 1 ... (12 in all)"
