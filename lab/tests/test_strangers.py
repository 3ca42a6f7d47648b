"""What strangers send: names, code and files that are meant to do something else.

Authorities: csv with either separator, html.parser, ElementTree and json, which read what is
written; h5py, NumPy and torch, which show that a file would do its mischief.
"""

import csv
import io
import itertools
import json
import os
import re
import stat
import sys
import zipfile
from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
import torch
from PIL import Image

from lab.cohort.features import load_array, load_features
from lab.cohort.places import EVERY
from lab.cohort.samples import read_samples
from lab.cohort.slides import can_be_named
from lab.commands.histcode import main as histcode_main
from lab.commands.start import open_streams
from lab.encoders import encoder_wants, load_encoder
from lab.files import (
    InputError,
    as_cell,
    from_cell,
    load_arrays,
    number,
    read_rows,
    save_csv,
    save_text,
)
from lab.progress import table
from lab.runs import check_name
from lab.show.slide_map import SlideMap, write_map
from lab.tests.helpers import options, small_encoder, swap, write_pyramid
from lab.tests.helpers_he2rna import main as he2rna_main
from lab.tests.helpers_he2rna import train, write_cohort
from lab.tests.helpers_histcode import diagnose, write_slides
from lab.tests.test_page import Parts
from lab.trust import NAMED

NASTY = [
    *('=HYPERLINK("http://x")', "+a$b", "-$\\frac{", "@SUM(A1)", "x;=1+1", "'=y", "＝1+1"),
    *("<img src=x onerror=alert(1)>", "</script><b>", "[x](http://x)", "![x](http://x/y.png)"),
    *("a|b`c$`d`", "$x_1^{2$", "\\|`<i>", "A1BG|1", "_hid$", "HLA-A*01:01", "{0}%s", "-", "+"),
]
CONTROL = ["a\nb", "a\x1b[2J", "a\x00", "a\u2028b", "a\u202eb"]


# ----- Names --------------------------------------------------------------------------------------


def mischief(root):
    """[(file, what)] that a spreadsheet, a browser or a reader of Markdown would run or break."""
    found = []
    for path in sorted(root.rglob("*")):
        look = LOOKS.get(path.suffix)
        if look and path.is_file():
            found += [(path.name, what) for what in look(path.read_text())]
    return found


def in_csv(text):
    for separator in ",;":
        for cell in itertools.chain(*csv.reader(io.StringIO(text), delimiter=separator)):
            cell = cell.partition(",")[0] if separator == ";" else cell
            if cell[:1] in tuple("=+-@\t\r＝") and len(cell) > 1 and np.isnan(number(cell)):
                yield cell


def in_markdown(text):
    yield from re.findall(r"(?<!\\)<[A-Za-z/!].*|(?<!\\)\]\((?![\w.-]+\.png\)).*", text)
    for block in re.findall(r"(?:^\|.*\n)+", text + "\n", re.M):
        widths = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in block.splitlines()}
        if len(widths) > 1 or re.search(r"(?<!\\)`", block):
            yield block


def in_svg(text):
    for part in ElementTree.fromstring(text).iter():
        if part.tag.endswith("script"):
            yield part.tag
        for key, value in part.attrib.items():
            if key.endswith("href") and not value.startswith(("#", "data:")):
                yield value


def in_html(text):
    for tag, attrs in Parts(text).tags:
        place = attrs.get("href", "#") if tag == "a" else attrs.get("src", "data:")
        if tag in "bi" or not place.startswith(("#", "data:")) or any(k[:2] == "on" for k in attrs):
            yield tag, attrs


def in_json(text):
    json.loads(text)
    return ()


LOOKS = {
    ".csv": in_csv,
    ".md": in_markdown,
    ".svg": in_svg,
    ".html": in_html,
    ".json": in_json,
    ".geojson": in_json,
}


def test_mischief_is_seen(tmp_path):
    """What looks below for it: it does see names that are written as they are."""
    for ending, text in (
        (".csv", "a,b\n=1+1,2\n"),
        (".csv", "a\nx;=1+1\n"),
        (".md", "of <img src=x>"),
        (".md", "[x](http://x)"),
        (".md", "| a |\n| --- |\n| x|y |"),
        (".svg", '<svg xmlns:x="x"><a x:href="http://x"/></svg>'),
        (".html", "<a href='http://x'>x</a>"),
        (".html", "<p onclick='x'>x</p>"),
    ):
        (tmp_path / f"a{ending}").write_text(text)
        assert mischief(tmp_path)
        (tmp_path / f"a{ending}").unlink()


def rewrite(path, change):
    """Change the rows of a table, and write them as a stranger does: as they are."""
    with open(path, newline="") as f:
        rows = change(list(csv.reader(f)))
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows(rows)


def test_nasty_names_of_genes_projects_slides_and_patients(tmp_path):
    """From training to predictions: every file is harmless, and every name comes back."""
    projects = {"X": "=X$<b>", "Y": "[y](http://y)|`$_{"}
    write_cohort(tmp_path, np.random.default_rng(0), patients=12, genes=len(NASTY))
    rewrite(
        tmp_path / "expression.csv",
        lambda rows: [["slide", *NASTY]] + [["=" + row[0], *row[1:]] for row in rows[1:]],
    )
    rewrite(
        tmp_path / "samples.csv",
        lambda rows: rows[:1] + [["=" + s, "-" + p, projects[xy]] for s, p, xy in rows[1:]],
    )
    for file in (tmp_path / "h5").iterdir():
        file.rename(file.with_name("=" + file.name))
    sets = ["\t".join([name, "x", *NASTY[i : i + 5]]) for i, name in enumerate(NASTY)]
    (tmp_path / "sets.gmt").write_text("\n".join([*sets, "a\x1b[2J\tx\tA\n"]))
    run = tmp_path / "runs" / "he2rna"
    assert train(tmp_path, "--epochs", "1") == 0
    assert he2rna_main("enrich", run, "--gmt", tmp_path / "sets.gmt") == 0
    assert he2rna_main("predict", run, "all") == 0
    assert mischief(run) == []
    header, rows = read_rows(run / "genes.csv")
    assert {row[0] for row in rows} == set(map(from_cell, NASTY))
    assert {row[header.index("project")] for row in rows} == set(projects.values())
    _, rows = read_rows(run / "folds.csv")
    assert {row[0] for row in rows} == {s["slide"] for s in read_samples(tmp_path)}
    for path in (run / "enrichment").glob("*.csv"):
        assert {row[0] for row in read_rows(path)[1]} == {*NASTY, "a\\x1b[2J"}


def test_nasty_names_of_classes(tmp_path):
    write_slides(tmp_path / "c", labels=("=a$<b>|`", "[z](http://z)$_{"))
    assert diagnose(tmp_path / "c", "--label", "tumor", "--rotate") == 0
    run = tmp_path / "c" / "runs" / "diagnosis"
    assert histcode_main(["predict", str(run), "all", "--device", "cpu"]) == 0
    assert mischief(run) == []
    _, rows = read_rows(run / "folds.csv")
    assert {row[2] for row in rows} == {"=a$<b>|`", "[z](http://z)$_{"}


@pytest.mark.filterwarnings("error")
def test_nasty_names_on_maps(tmp_path):
    """Of the slide, the score, the classes of its cells, outlines and spots."""
    coords = np.array([[x, y] for x in range(0, 80, 10) for y in range(0, 50, 10)])
    n = len(coords)
    slide = openslide.ImageSlide(Image.new("RGB", (80, 50), "pink"))
    for i, name in enumerate([NASTY[2], NASTY[7], NASTY[15]]):
        scores = np.arange(n) / n
        columns = {name: scores, f"cells: {name}": np.arange(n)}
        done = SlideMap(
            *(name, name, slide, slide.dimensions, 1.0, 10.0, coords, scores, name, columns),
            lines=[f"# {name}", "", table(("cells", name), [(name, 1)])],
            tables={"spots.csv": (("column", name), [(name, 1)])},
            cells={name: coords[:5], EVERY: coords, **dict.fromkeys(NASTY, coords[:3])},
            counted=name,
            outlines=[[coords[[0, 9, 20]]]],
            outline=name,
            dots=(name, coords[:4], np.arange(4.0)),
            without=name,
            words=[name],
        )
        write_map(tmp_path / str(i), done, (0, 0))
        assert read_rows(tmp_path / str(i) / "tiles.csv")[0][2] == name
    assert mischief(tmp_path) == []


def test_cells_come_back_whatever_they_are(tmp_path):
    """Of all texts of few signs; and what is a number, or one sign, stays as it is."""
    for n in range(5):
        for signs in itertools.product("=-\t\r\n;'a1＝", repeat=n):
            text = "".join(signs)
            assert from_cell(as_cell(text)) == text
            line = io.StringIO()
            csv.writer(line).writerow([as_cell(text)])
            assert not list(in_csv(line.getvalue()))
    plain = ["-1.5e-07", "+3", "-inf", "-", "+", "=", "a-b", "", "x; - y", -1.5, 3, None]
    assert list(map(as_cell, plain)) == plain
    save_csv(tmp_path / "a.csv", NASTY, [NASTY])
    assert read_rows(tmp_path / "a.csv") == (NASTY, [NASTY])


@pytest.mark.parametrize("name", CONTROL)
def test_names_with_control_characters_are_refused(tmp_path, name):
    write_cohort(tmp_path, np.random.default_rng(0))
    whole = {path: path.read_bytes() for path in tmp_path.glob("*.csv")}
    for file, row, column in (("samples", 1, 1), ("samples", 1, 2), ("expression", 0, 3)):
        path = tmp_path / f"{file}.csv"

        def spoil(rows, row=row, column=column):
            rows[row][column] = name
            return rows

        rewrite(path, spoil)
        with pytest.raises(InputError) as e:
            train(tmp_path)
        assert file in str(e.value) and str(e.value).isprintable()
        path.write_bytes(whole[path])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("settings", "Settings", "failed", "failed-1-of-2", "failed.csv", "summary.md", "a.obs"),
        *(".a", "..", "a/b", "", "a\n", "é" * 101),
    ],
)
def test_slides_that_would_overwrite_what_stands_beside_them(name):
    assert not can_be_named(name)


def test_names_that_no_folder_can_have_are_refused(tmp_path):
    for name in ("a/b", "..", ".hidden", "", "a\nb", "x" * 201):
        with pytest.raises(InputError, match="the name of a folder"):
            check_name(name)
    check_name("LUNG-=a$b")
    for name in ("resnet50.pt", "ResNet50-stretch.pt", "..pt", ".x.pt"):
        small_encoder(tmp_path / name, 0)
        with pytest.raises(InputError, match="rename it"):
            encoder_wants(options("--encoder", str(tmp_path / name)))


def test_slides_of_one_name_on_a_disk_without_case_are_refused(tmp_path):
    path = tmp_path / "samples.csv"
    path.write_text("slide,patient,project\na,p,X\nA,q,X\nb,r,X\n")
    assert len(read_samples(tmp_path)) == 3
    (tmp_path / "SAMPLES.CSV").touch()  # as such a disk answers
    with pytest.raises(InputError, match=r"A and a are one file's name on this disk|a and A are"):
        read_samples(tmp_path)


def test_a_terminal_is_told_nothing_that_it_obeys(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), "ascii"))
    open_streams()
    print("a\x1b[2Jµ\x9b\tb\r", "\x07")
    print("a\x1b]0;title\x07", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    assert sys.stdout.buffer.getvalue().decode() == "a\\x1b[2Jµ\\x9b\tb\r \\x07\n"
    assert sys.stderr.buffer.getvalue() == b"a\\x1b]0;title\\x07\n"


# ----- Code ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_the_code_of_a_folder_is_run_only_where_the_command_names_it(tmp_path, capsys):
    """A cohort that came as a whole: slides, features, a run, and an encoder that they name."""
    encoder, slides = tmp_path / "c" / "code.pt", tmp_path / "c" / "slides"
    rng = np.random.default_rng(0)
    slides.mkdir(parents=True)
    small_encoder(encoder, 0)
    rows = ["slide,patient,project,tumor"]
    for i in range(6):
        rgb = np.full((700, 700, 3), (200, 120, 180), np.uint8) - rng.integers(0, 60, (700, 700, 3))
        write_pyramid(slides / f"s{i}.tif", rgb.astype(np.uint8), levels=1)
        rows.append(f"s{i},p{i},X,{i % 2}")
    (tmp_path / "c" / "samples.csv").write_text("\n".join(rows) + "\n")
    cohort, usual = str(tmp_path / "c"), ["--epochs", "1", "--hidden", "4"]
    usual += ["--folds", "3", "--device", "cpu"]
    named = ["diagnose", cohort, "--encoder", str(encoder), *usual]
    assert histcode_main(named) == 0
    assert histcode_main(["diagnose", cohort, *usual]) == 0  # all features are there
    features = tmp_path / "c" / "features" / "code" / "s3.npy"
    held = features.read_bytes()
    features.unlink()
    words = r"code.pt is TorchScript, which is code, and this command does not name it.*--encoder"
    run = tmp_path / "c" / "runs" / "diagnosis"
    for argv in (
        ["diagnose", cohort, *usual],
        ["predict", str(run), "all", "--device", "cpu"],
        ["predict", str(run), "s3", str(encoder), "--device", "cpu"],  # which is no slide
    ):
        with pytest.raises(InputError, match=words):
            histcode_main(argv)
        assert not features.exists()
    assert histcode_main(["predict", str(run), "s3", "--weights", str(encoder)]) == 0
    assert features.read_bytes() == held
    NAMED.clear()
    with pytest.raises(InputError, match=words):
        load_encoder(str(encoder), None, 0, "cpu")


# ----- Files --------------------------------------------------------------------------------------


def header_of(shape, descr="<f2"):
    """The bytes of an .npy that says it holds an array of a shape."""
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        held, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return held.getvalue()


def test_arrays_far_larger_than_their_file_are_refused(tmp_path, monkeypatch):
    """Packed zeros, headers without numbers, and a tensor that repeats one of them."""
    swap(monkeypatch, "lab.files", "ALWAYS", 2**20)
    many = 2**25
    with zipfile.ZipFile(tmp_path / "zeros.npz", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a.npy", header_of((many,), "|u1") + bytes(many))
    with zipfile.ZipFile(tmp_path / "header.npz", "w") as z:
        z.writestr("a.npy", header_of((2**50,)))
    assert (tmp_path / "zeros.npz").stat().st_size < 2**20
    assert load_arrays(tmp_path / "zeros.npz") is load_arrays(tmp_path / "header.npz") is None
    np.savez_compressed(tmp_path / "mask.npz", a=np.zeros(10**6, bool))  # as masks are
    assert load_arrays(tmp_path / "mask.npz")["a"].shape == (10**6,)
    torch.save(torch.zeros(1, 1).expand(10**6, 1024), tmp_path / "one.pt")
    with pytest.raises(InputError, match=r"one.pt: .*\(1000000, 1024\) are far larger than the"):
        load_features(tmp_path, tmp_path, "one")
    (tmp_path / "s.npy").write_bytes(header_of((10**9, 1024)))
    with pytest.raises(InputError, match=r"s.npy: not a whole array"):
        load_array(tmp_path / "s.npy")


def test_half_files_have_names_that_nobody_can_prepare(tmp_path, monkeypatch):
    """They are made anew, never through a link, and read by whom the umask lets read."""
    names = set()
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (names.add(str(a)), replace(a, b)))
    before = os.umask(0o027)
    try:
        for _ in range(50):
            save_text(tmp_path / "a.md", ["x"])
    finally:
        os.umask(before)
    assert len(names) == 50
    assert stat.S_IMODE((tmp_path / "a.md").stat().st_mode) == 0o640
    (tmp_path / "victim").write_text("kept")
    (tmp_path / ".b.md.0000.tmp").symlink_to(tmp_path / "victim")
    monkeypatch.setattr("secrets.token_hex", lambda n: "0000")
    with pytest.raises(FileExistsError):
        save_text(tmp_path / "b.md", ["x"])
    assert (tmp_path / "victim").read_text() == "kept"
