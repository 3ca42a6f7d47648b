"""What grows with a cohort: read in pieces, exactly as the whole, in bounded memory.

Authorities: csv and float of the standard library, json.loads, and tracemalloc, which counts
NumPy's memory as well.
"""

import csv
import gzip
import io
import json
import tracemalloc
import zipfile
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from lab.bench import growth
from lab.cohort.expression import raw_expression, read_table
from lab.cohort.places import read_cells, read_outlines, read_place_table
from lab.cohort.tiles import table_mpp
from lab.exchange import geojson
from lab.files import InputError, read_rows
from lab.gene_sets import read_sets
from lab.tests.helpers import feature, swap

NUMBERS = """
0 1 -2 +3 4. .5 6e3 7E-3 8e+2 1_000 0.1 3.4028234e38 1e-50 12345678901234567890
2.2250738585072014e-308 0.30000000000000004
"""
NUMBERS = [*NUMBERS.split(), " 9", "10 ", "\t11"]


@pytest.fixture
def points(tmp_path):
    (tmp_path / "points").mkdir()
    return tmp_path / "points"


def peak(function, *args):
    """(What a call returns, MB that it takes at most)."""
    tracemalloc.start()
    try:
        return function(*args), tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


# ----- Expression ---------------------------------------------------------------------------------


def by_csv(text):
    """Names and numbers of a table, by the standard library."""
    header, *rows = filter(None, csv.reader(io.StringIO(text, newline="")))
    with np.errstate(over="ignore"):
        a = np.array([list(map(float, row[1:])) for row in rows]).astype(np.float32)
    return [row[0] for row in rows], header[1:], a


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_spelling_of_numbers_is_read_as_float_reads_it(tmp_path, seed, end):
    rng = np.random.default_rng(seed)
    lines = ["slide," + ",".join(f"G{j}" for j in range(7))]
    for i in range(40):
        cells = [str(text) for text in rng.choice(NUMBERS, 7)]
        name = f"s{i}"
        if rng.random() < 0.2:
            cells = [f'"{cell}{rng.choice(["", end])}"' for cell in cells]
        if rng.random() < 0.2:
            name = f'"s{i}, ""first"""'
        lines += [f"{name},{','.join(cells)}"] + [""] * (rng.random() < 0.2)
    text = end.join(lines) + end * (seed % 2)
    (tmp_path / "expression.csv").write_text(text, newline="")
    ids, genes, a = by_csv(text)
    _, *got = read_table(tmp_path / "expression.csv")
    assert got[:2] == [ids, genes] and np.array_equal(got[2], a)


def test_lines_are_counted_as_they_stand_in_the_file(tmp_path):
    text = 'slide,A,B\n"s 0","\n1",2\n\ns1,3,4\ns2,"5\n",6\ns3,7\n'
    (tmp_path / "expression.csv").write_text(text)
    with pytest.raises(InputError, match="line 8: 2 fields, the header has 3"):
        raw_expression(tmp_path)


@pytest.mark.parametrize("name", ["expression.csv", "expression.csv.gz"])
def test_a_table_takes_hardly_more_memory_than_its_numbers(tmp_path, name):
    n, genes = 180, 8000
    line = "," + ",".join(map(str, np.arange(genes) * 1.25)) + "\n"
    text = "slide," + ",".join(map(str, range(genes))) + "\n"
    text += "".join(f"s{i}{line}" for i in range(n))
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith("gz") else data)
    (*_, a, _), mb = peak(raw_expression, tmp_path)
    assert a.shape == (n, genes) and mb < 1.3 * a.nbytes / 1e6 + 4


# ----- Cells --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_cells_are_as_csv_and_float_have_them(points, seed, monkeypatch):
    """Lines that NumPy takes apart and those that it can't, in blocks of seven."""
    swap(monkeypatch, "lab.cohort.places", "BLOCK", 7)
    rng = np.random.default_rng(seed)
    kinds = ["tumour", " a b ", "", "#1", "'=2", "é", '"q, ""r"""', '"two\nlines"'][: 6 + seed % 3]
    lines = ["cell,y,extra,x"]
    for i in range(60):
        x, y = rng.choice([text for text in NUMBERS if "e38" not in text and len(text) < 12], 2)
        lines += [f"{rng.choice(kinds)},{y},{i},{x}"] + [""] * (rng.random() < 0.1)
    text = "\n".join(lines)
    (points / "a.csv").write_text(text)
    rows = list(filter(None, csv.reader(io.StringIO(text))))[1:]
    xy, columns = read_place_table(points / "a.csv", "a", 0.5, (0, 0))
    assert xy.tolist() == [[float(row[3]), float(row[1])] for row in rows]
    unmarked = [row[0].replace("'=2", "=2") for row in rows]
    assert columns == {"cell": unmarked}
    every = read_place_table(points / "a.csv", "a", 0.5, (0, 0), every=True)[1]
    assert every["extra"].tolist() == list(range(60))


@pytest.mark.parametrize("row", [3, 9, 20])
@pytest.mark.parametrize(
    "odd, words", [("1", "has 1 fields"), ("1,b,c,", "has 4 fields"), ("1,b,", "x, y")]
)
def test_a_wrong_row_is_named_in_whatever_block_it_stands(points, row, odd, words, monkeypatch):
    swap(monkeypatch, "lab.cohort.places", "BLOCK", 7)
    lines = ["x,cell,y", *["1,a,2"] * 30]
    lines[row - 1] = odd
    (points / "a.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"row {row}:? {words}"):
        read_cells(points.parent, "a", 0.5, (0, 0), print)


def test_what_a_table_of_cells_has_besides_takes_no_memory(points):
    row = "1.5,2.5,tumour," + ",".join(["measured"] * 60) + "\n"
    header = "x,y,cell," + ",".join(f"m{i}" for i in range(60)) + "\n"
    (points / "a.csv").write_text(header + row * 20_000)
    cells, mb = peak(read_cells, points.parent, "a", 0.5, (0, 0), print)
    assert len(cells["tumour"]) == 20_000 and mb < 12  # the text has 11 MB, as lists of texts 90


# ----- GeoJSON ------------------------------------------------------------------------------------

CELLS = [
    feature("Point", [1.5, 22], "Tumor ä"),
    feature("Polygon", [[[0, 0], [9, 0], [9, 9], [0, 0]], [[1, 1], [2, 1], [2, 2], [1, 1]]]),
    {"type": "FeatureCollection", "features": [feature("MultiPoint", [[1, 2], [3, 4, 5]], "B")]},
    3,
]
WRAPPINGS = [
    {"type": "FeatureCollection", "features": CELLS, "bbox": [1, 2]},
    {"features": [[], [[*CELLS], []]], "type": "x"},
    CELLS,
    [[CELLS], [], CELLS],
    CELLS[0],
    CELLS[1]["geometry"],
    {"features": CELLS[0]},
    {"features": None},
    {},
    [],
    12,
    None,
]


def seen_in(path):
    passed = Counter()
    found = []
    for f in geojson.read_geojson(path, passed):
        rings = [ring.tolist() for rings in f.polygons for ring in rings]
        found.append((f.kind, f.points.tolist(), rings))
    return found, +passed


@pytest.mark.parametrize("value", WRAPPINGS)
@pytest.mark.parametrize("indent", [None, 3])
def test_pieces_of_any_length_give_what_the_whole_gives(tmp_path, value, indent, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False), "utf-8-sig")
    whole = seen_in(path)
    for piece in (1, 2, 3, 7, 50):
        monkeypatch.setattr(geojson, "PIECE", piece)
        assert seen_in(path) == whole
    path.write_text(json.dumps(value, indent=indent), "utf-16")
    assert seen_in(path) == whole


@pytest.mark.parametrize("value", WRAPPINGS[:4])
def test_what_json_refuses_is_refused_wherever_it_stands(tmp_path, value, monkeypatch):
    """Texts with a character taken out, put in or cut off."""
    monkeypatch.setattr(geojson, "PIECE", 16)
    text, rng, path = json.dumps(value), np.random.default_rng(0), tmp_path / "a.json"
    for _ in range(40):
        at, put = int(rng.integers(len(text))), str(rng.choice(list('[]{},:"1 ')))
        for changed in (text[:at], text[:at] + text[at + 1 :], text[:at] + put + text[at:]):
            path.write_text(changed)
            try:
                json.loads(changed)
            except ValueError:
                with pytest.raises(InputError, match=r"not whole GeoJSON|has no x, y numbers"):
                    seen_in(path)
                continue
            try:
                seen_in(path)
            except InputError as e:
                assert "not whole" not in str(e), changed


def test_a_file_of_cells_takes_the_memory_of_its_places(points):
    ring = np.round(np.random.default_rng(0).random((40, 2)) * 99, 2).tolist()
    cell = json.dumps(feature("Polygon", [[*ring, ring[0]]], "Tumor", objectType="cell"))
    (points / "a.geojson").write_text("[" + ",\n".join([cell] * 4000) + "]")
    cells, mb = peak(read_cells, points.parent, "a", 0.5, (0, 0), print)
    assert len(cells["Tumor"]) == 4000 and mb < 12  # as dicts of lists it takes 29


# ----- What unpacks to more than can be meant -----------------------------------------------------


def bomb_zip(text):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.geojson", text)
    return held.getvalue()


def bomb_npz(zeros):
    np.savez_compressed(held := io.BytesIO(), slide=["s"], genes=["A"], expression=zeros)
    return held.getvalue()


LINES = "x,y\n" + "1,2\n" * 20_000
FEATURES = "[" + ",".join(['{"type":"Point","coordinates":[1,2]}'] * 3000) + "]"


@pytest.mark.parametrize(
    "name, data, read",
    [
        ("points/a.csv.gz", gzip.compress(LINES.encode()), read_cells),
        ("points/a.csv.gz", gzip.compress(b"x,y\n" + bytes(80_000)), read_cells),
        ("points/a.geojson.gz", gzip.compress(FEATURES.encode()), read_cells),
        ("points/a.json.gz", gzip.compress(b" " * 80_000), read_cells),
        ("points/a.zip", bomb_zip(FEATURES), read_cells),
        ("regions/a.geojson.gz", gzip.compress(FEATURES.encode()), read_outlines),
    ],
)
def test_a_bomb_is_refused_for_its_slide(tmp_path, name, data, read, monkeypatch):
    swap(monkeypatch, "lab.files", "ALWAYS", 2**14)
    swap(monkeypatch, "lab.files", "PACKED", 20)
    path = tmp_path / name
    path.parent.mkdir()
    path.write_bytes(data)
    frame = (0.5, (0, 0), print) if read is read_cells else ((0, 0),)
    with pytest.raises(InputError, match=rf"{path.name}: its [\d,]+ bytes unpack to over"):
        read(tmp_path, "a", *frame)


def test_tables_and_sets_that_are_bombs_are_refused(tmp_path, monkeypatch):
    swap(monkeypatch, "lab.files", "ALWAYS", 2**14)
    swap(monkeypatch, "lab.files", "PACKED", 20)
    swap(monkeypatch, "lab.files", "PIECE", 2**12)
    table = b"slide,A\n" + b"\n" * 80_000
    (tmp_path / "expression.csv.gz").write_bytes(gzip.compress(table))
    for read, path in (
        (lambda path: raw_expression(path.parent), tmp_path / "expression.csv.gz"),
        (read_rows, tmp_path / "expression.csv.gz"),
        (lambda path: read_sets([path]), tmp_path / "expression.csv.gz"),
    ):
        with pytest.raises(InputError, match=r"expression.csv.gz: its .* bytes unpack to over"):
            read(path)
    (tmp_path / "expression.csv.gz").unlink()
    (tmp_path / "expression.npz").write_bytes(bomb_npz(np.zeros((1, 80_000))))
    with pytest.raises(InputError, match=r"expression.npz: wanted arrays"):
        raw_expression(tmp_path)


def test_a_line_without_an_end_is_no_table(points, monkeypatch):
    swap(monkeypatch, "lab.files", "LINE", 1000)
    (points / "a.csv").write_text("x,y\n1," + "0" * 2000)
    with pytest.raises(InputError, match="line 2 has over 1,000 characters"):
        read_cells(points.parent, "a", 0.5, (0, 0), print)


# ----- Counts of what is done ---------------------------------------------------------------------


def test_samples_are_read_once_for_all_slides_that_are_asked_for(tmp_path, monkeypatch):
    from lab import files

    usual, opened = files.opened, []

    def counting(path, *args, **more):
        opened.append(path)
        return usual(path, *args, **more)

    swap(monkeypatch, "lab.files", "opened", counting)
    counts = []
    for n in (5, 20):
        (tmp_path / str(n)).mkdir()
        growth.draw_strangers(tmp_path / str(n), n)
        call = growth.ask_strangers(tmp_path / str(n))
        before = len(opened)
        call()
        for _ in range(n):  # as heatmap asks for the tiles of one slide after the other
            table_mpp(tmp_path / str(n))
        counts.append(len(opened) - before)
    assert counts[0] == counts[1] <= 3


def test_every_case_of_the_bench_runs(tmp_path, monkeypatch, capsys):
    swap(monkeypatch, "lab.bench.growth", "GENES", 30)
    for i, (_, draw, prepare, sizes) in enumerate(growth.CASES.values()):
        every = [size for least in sorted(sizes) for size in sizes[least]]
        assert all(a < b for a, b in pairwise(every))
        (tmp_path / str(i)).mkdir()
        draw(tmp_path / str(i), 4)
        prepare(tmp_path / str(i))()
