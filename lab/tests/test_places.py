"""Cells, spots and outlines of a slide.

Authorities: matplotlib's outlines, and what QuPath 0.3 to 0.6 writes.
"""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from lab import space
from lab.cohort.places import centroids, is_image_of, read_outlines, read_places
from lab.exchange.qupath import tiles_geojson
from lab.files import InputError
from lab.tests.helpers import feature, read_csv, star

XY = np.array([[10.5, 20], [30, 40.25], [50, 60], [7, 8]])
KINDS = ["Tumor", "Immune cells", "Tumor", ""]
UM, ORIGIN = np.array([0.25, 0.26]), np.array([1000, 2000])  # of QuPath's frame


@pytest.fixture
def points(tmp_path):
    (tmp_path / "points").mkdir()
    return tmp_path / "points"


def cells_of(points, slide):
    return read_places(points.parent, slide, UM, ORIGIN)[0]


def square(centre, half=2):
    corners = ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))
    return [[[centre[0] + x * half, centre[1] + y * half] for x, y in corners]]


CELLS = [
    feature("Point", XY[0].tolist(), KINDS[0]),
    feature("Polygon", square(XY[1]), {"names": ["Immune cells"]}, objectType="cell"),
    feature("MultiPoint", [XY[2].tolist()], KINDS[2], objectType="annotation"),
    feature("MultiPolygon", [square(XY[3])], objectType="detection"),
]
REGION = feature("Polygon", square((500, 500), 90), "Tumor", objectType="annotation")


def table(x, y, places, sep=",", kind="Class", image="a.mrxs"):
    rows = [["Image", "Object ID", x, y, kind]]
    for i, (place, name) in enumerate(zip(places, KINDS, strict=True)):
        rows.append([image, str(i), *map(repr, map(float, place)), name])
    return "\n".join(sep.join(row) for row in rows)


def centroid(polygons):
    return centroids([polygons])[0]


def test_centroids_equal_means_of_the_pixels_inside():
    rng = np.random.default_rng(0)
    axis = np.arange(-2, 12, 0.02)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    outer, hole = star(rng, 11, (5, 5), 6), star(rng, 7, (5, 5), 1)
    far = np.array([[9.0, -1], [11, -1], [11, 3], [9, -1]])

    def pixels(*rings):
        within = [Outline(ring).contains_points(grid) for ring in rings]
        return grid[np.logical_xor.reduce(within)]

    for ring in (outer, outer[::-1], np.vstack([outer, outer[:1]])):
        assert np.allclose(centroid([[ring, hole]]), pixels(outer, hole).mean(0), atol=0.02)
    both = np.concatenate([pixels(outer), pixels(far)])
    assert np.allclose(centroid([[outer], [far]]), both.mean(0), atol=0.02)
    line = np.array([[1.0, 2], [3, 4], [1, 2]])  # has no area
    assert centroid([[line]]).tolist() == [5 / 3, 8 / 3]
    assert np.allclose(centroid([[1e6 + outer]]) - 1e6, centroid([[outer]]), atol=1e-6)


TABLES = {
    "px.csv": table("Centroid X px", "Centroid Y px", XY),
    "um.tsv": table("Centroid X µm", "Centroid Y µm", XY * UM, "\t", kind="Classification"),
    "win.txt": table("Centroid X µm", "Centroid Y µm", XY * UM, "\t").encode("cp1252"),
    "greek.csv.gz": table("Centroid X μm", "Centroid Y μm", XY * UM),
    "ascii.tsv.gz": table("Centroid X um", "Centroid Y um", XY * UM, "\t"),
    "own.csv": table("x", "y", XY + ORIGIN, kind="cell"),  # OpenSlide's frame: nothing to move
}
OLD_REGION = dict(REGION, id="PathAnnotationObject", properties={})
NOTHING = {"type": "Feature", "geometry": None}
SHAPES = {
    "collection.geojson": {
        "type": "FeatureCollection",
        "features": [REGION, *CELLS, feature("LineString", [[1, 2], [3, 4]])],
    },
    "list.geojson": [*CELLS, NOTHING, REGION],
    "packed.geojson.gz": [
        *CELLS,
        feature("Polygon", square((5, 5)), None, object_type="annotation"),
        OLD_REGION,
    ],
}


@pytest.mark.parametrize("name", [*TABLES, *SHAPES])
def test_the_same_cells_in_every_format(points, name):
    """QuPath's tables in its own frame in px and µm, ours, and GeoJSON of every wrapping."""
    data = TABLES[name] if name in TABLES else json.dumps(SHAPES[name])
    data = data if isinstance(data, bytes) else data.encode()
    (points / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    cells = cells_of(points, name.split(".")[0])
    assert list(cells) == ["all cells", "Immune cells", "Tumor"]
    assert np.allclose(cells["all cells"], XY + ORIGIN, atol=1e-6)
    assert np.allclose(cells["Tumor"], XY[[0, 2]] + ORIGIN)
    assert np.allclose(cells["Immune cells"], XY[[1]] + ORIGIN)


@pytest.mark.parametrize(
    "value, kinds",
    [
        (CELLS[0]["geometry"], []),
        (feature("Point", [1, 2], {"names": ["Tumor", "Positive"]}), ["Tumor: Positive"]),
        (feature("Point", [1, 2], {"names": [1, 2]}), ["1: 2"]),
        (feature("Point", [1, 2], {"names": 3}), ["3"]),
    ],
)
def test_classes_as_qupath_writes_them(points, value, kinds):
    (points / "a.geojson").write_text(json.dumps(value))
    cells = cells_of(points, "a")
    assert list(cells) == ["all cells", *kinds] and len(cells["all cells"]) == 1


def test_no_cells_and_no_file(points):
    (points / "none.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert cells_of(points, "none")["all cells"].shape == (0, 2)
    assert cells_of(points, "nobody") is None


BAD_POINTS = (["a", 2], [float("nan"), 1], None, [3], [10**400, 1], [1e308, 1])
BAD_SHAPES = (
    *(feature("Point", bad) for bad in BAD_POINTS),
    feature("Polygon", [[1, 2], [3, 4]]),
    feature("Polygon", square((1, 2), 1e308)),
)
ODD = (
    {"geometry": "x"},
    {"geometry": [1]},
    {"geometry": None, "properties": [1]},
    dict(CELLS[0], properties="x"),
)


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("two.csv", table("x", "y", XY).replace("mrxs,0,", "svs,0,"), "rows of 2 images .a.mrxs, "),
        ("no.csv", "a,b\n1,2\n", "no columns x and y"),
        ("short.csv", "x,y\n1,2\n3\n", "row 3 has 1 fields, the header has 2"),
        ("text.csv", "x,y\n1,2\n3,here\n", "row 3: x, y is no place"),
        ("text.geojson", "no json", "not whole GeoJSON"),
        ("deep.geojson", "[" * 100000, "not whole GeoJSON"),
        (
            "cut.geojson.gz",
            gzip.compress(json.dumps(CELLS).encode())[:50],
            "not whole GeoJSON",
        ),
        *(
            ("bad.geojson", json.dumps([CELLS[0], bad]), "feature 2 has no x, y numbers")
            for bad in BAD_SHAPES
        ),
        *(
            ("odd.geojson", json.dumps([CELLS[0], odd]), "feature 2 has no x, y numbers, or is no")
            for odd in ODD
        ),
    ],
)
def test_what_is_no_place_is_named(points, name, text, words):
    (points / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"{name}: {words}"):
        cells_of(points, name.split(".")[0])


def test_two_files_of_a_slide_are_refused(points):
    (points / "a.csv").write_text(table("x", "y", XY))
    (points / "a.geojson").write_text("[]")
    with pytest.raises(InputError, match=r"a.csv and a.geojson are both there; keep one"):
        cells_of(points, "a")


def packed(files):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        for name, text in files.items():
            file.writestr(name, text)
    return held.getvalue()


ONE = json.dumps(CELLS)
OTHER = {"x/b.geojson": "[]", "__MACOSX/x/._a.geojson": "no json", "read.me": ""}


@pytest.mark.parametrize(
    "name, data",
    [
        ("a.svs.geojson", ONE),
        ("a.TIF.GeoJSON", ONE),
        ("a.json", ONE),
        ("a.ndpi.json.gz", gzip.compress(ONE.encode())),
        ("a.zip", packed({"any name.geojson": ONE})),
        ("a.mrxs.zip", packed({**OTHER, "x/a.mrxs.geojson": ONE})),
        ("a.svs.csv", table("x", "y", XY + ORIGIN)),
        ("a.txt.gz", gzip.compress(table("x", "y", XY + ORIGIN, "\t").encode())),
    ],
)
def test_the_names_that_qupaths_scripts_give_are_found(points, name, data):
    (points / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    (points / "ab.csv").write_text("another slide's")
    (points / "b.svs.csv").write_text("another slide's")
    assert np.allclose(cells_of(points, "a")["all cells"], XY + ORIGIN)
    (points / "a.geojson").write_text("[]")
    with pytest.raises(InputError, match=r"are both there; keep one"):
        cells_of(points, "a")


def test_a_decomposed_name_is_the_composed_ones(points):
    (points / "cafe\u0301.svs.geojson").write_text(ONE)
    assert len(cells_of(points, "caf\u00e9")["all cells"]) == 4


@pytest.mark.parametrize(
    "data, words",
    [
        (b"x,y", "not a whole .zip"),
        (packed({"a.txt": ""}), "wanted is one .geojson of the slide; it holds a.txt"),
        (packed({"b.geojson": "", "c.geojson": ""}), "it holds b.geojson, c.geojson"),
        (packed({"a.geojson": "{"}), "not whole GeoJSON"),
    ],
)
def test_a_zip_without_the_slides_geojson_is_refused(points, data, words):
    (points / "a.zip").write_bytes(data)
    with pytest.raises(InputError, match=words):
        cells_of(points, "a")


def told(read, *args):
    """What a reader returns, and what it says."""
    said = []
    return read(*args, say=said.append), "\n".join(said)


def test_collections_are_unpacked_and_what_is_passed_over_is_counted(points):
    shape = {"type": "Polygon", "coordinates": square((30, 30))}
    inner = {
        "type": "GeometryCollection",
        "geometries": [shape, {"type": "Point", "coordinates": [1, 2]}],
    }
    nested = {
        "type": "GeometryCollection",
        "geometries": [inner, shape, {"type": "GeometryCollection", "geometries": []}],
    }
    opened = [square((9, 9))[0][:-1]]
    value = [
        {"type": "Feature", "geometry": nested, "properties": {}},
        {"type": "FeatureCollection", "features": [feature("Polygon", opened, "Tumor")]},
        *(feature(kind, []) for kind in ("Polygon", "MultiPolygon", "Point", "LineString")),
        feature("MultiLineString", [[[1, 2], [3, 4]]]),
        feature("Polygon", square((70, 70)), "Tumor", objectType="annotation"),
        NOTHING,
        "no feature",
    ]
    (points / "a.json").write_text(json.dumps(value))
    (cells, _), said = told(read_places, points.parent, "a", UM, (0, 0))
    assert cells["all cells"].tolist() == [[30, 30], [1, 2], [30, 30], [9, 9]]
    assert "a.json: 1 rings whose ends don't meet are taken as closed" in said
    assert said.endswith("a.json: 3 of 4 cells have no class, and count in all cells alone")
    assert (
        "passed over 1 LineString, 1 MultiLineString, 1 annotations, 1 empty MultiPolygon, 1 empty "
        "Point, 1 empty Polygon, 1 no feature, 1 without geometry"
    )
    (points.parent / "regions").mkdir()
    (points / "a.json").rename(points.parent / "regions" / "a.json")
    outlines, said = told(read_outlines, points.parent, "a", (0, 0))
    assert len(outlines) == 4 and "1 points" in said
    outlines, said = told(read_outlines, points.parent, "a", (0, 0), "tumor")
    assert len(outlines) == 2 and "2 outlines without a class" in said


def test_of_a_project_table_the_slides_own_cells_are_taken(points):
    rows = [
        ("a.svs", "Cell", 1, 2),
        ("b.svs", "Cell", 3, 4),
        ("/data/b.svs", "Cell", 3, 4),
        ("a.svs", "Annotation", "NaN", "NaN"),
        ("a.svs", "Cell", 5, 6),
        ("a.svs", "PathRootObject", 0, 0),
    ]
    lines = [",".join(map(str, row)) for row in [("Image", "Object type", "x", "y"), *rows]]
    (points / "a.csv").write_text("\n".join(lines))
    (cells, _), said = told(read_places, points.parent, "a", UM)
    assert cells["all cells"].tolist() == [[1, 2], [5, 6]]
    assert (
        "a.csv: passed over 2 rows of annotations, 2 rows of other images (/data/b.svs, b.svs)"
        in said
    )
    with pytest.raises(InputError, match=r"rows of 3 images .*, none of them c"):
        (points / "a.csv").rename(points / "c.csv")
        cells_of(points, "c")


@pytest.mark.parametrize(
    "image, slide, is_its",
    [
        ("s1.svs", "s1", True),
        ("s1", "s1", True),
        ("file:/C:/x/s1.ndpi", "s1", True),
        (r"C:\x\s1.czi - series 0", "s1", True),
        ("s1.scn (2)", "s1", True),
        ("s10.svs", "s1", False),
        ("s1.2.svs", "s1", False),
        ("s1 - left.svs", "s1", False),
        ("s1 - left.svs", "s1 - left", True),
        ("cafe\u0301.svs", "caf\u00e9", True),
    ],
)
def test_whose_image_qupath_names(image, slide, is_its):
    assert is_image_of(image, slide) == is_its


def test_rows_of_one_other_image_are_a_renamed_slides_or_refused(points):
    (points / "a.csv").write_text("Image,x,y\nold name.svs,1,2\n")
    (cells, _), said = told(read_places, points.parent, "a", UM)
    assert (
        len(cells["all cells"]) == 1 and "rows are of image old name.svs; taken as those of" in said
    )
    (points.parent / "slides").mkdir()
    (points.parent / "slides" / "old name.svs").write_text("")
    with pytest.raises(InputError, match=r"image old name.svs, which is another slide"):
        cells_of(points, "a")


def test_files_that_only_begin_as_the_slide_are_named(points):
    (points / "a annotated.csv").write_text("")
    (points / "a.qpdata").write_text("")
    (places, _), said = told(read_places, points.parent, "a", UM)
    assert places is None and "a annotated.csv, a.qpdata not read" in said


# ----- Outlines -----------------------------------------------------------------------------------


def outlines_of(folder, value, kind=None):
    (folder / "regions").mkdir(exist_ok=True)
    (folder / "regions" / "a.geojson").write_text(json.dumps(value))
    return read_outlines(folder, "a", np.zeros(2), kind)


def test_outlines_of_every_wrapping(tmp_path):
    outer = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]
    hole = [[3, 3], [6, 3], [6, 6], [3, 6], [3, 3]]
    other = [[20, 0, 1], [29, 0, 1], [29, 9, 1]]
    polygon = {"type": "Polygon", "coordinates": [outer, hole]}
    multi = {"type": "MultiPolygon", "coordinates": [[outer, hole], [other]]}
    features = [
        feature("Point", [1, 2]),
        NOTHING,
        5,
        {"type": "Feature", "geometry": multi, "properties": {"objectType": "annotation"}},
    ]
    for value, expected in (
        (polygon, [1, 0, 0, 0]),
        ({"type": "Feature", "geometry": polygon}, [1, 0, 0, 0]),
        (multi, [1, 0, 1, 0]),
        (features, [1, 0, 1, 0]),
        ({"type": "FeatureCollection", "features": features}, [1, 0, 1, 0]),
    ):
        polygons = outlines_of(tmp_path, value)
        points = [(1, 1), (4, 4), (28, 1), (15, 5)]
        assert space.inside(points, polygons).tolist() == expected
        assert all(ring.shape[1] == 2 for rings in polygons for ring in rings)
    assert [len(rings) for rings in outlines_of(tmp_path, multi)] == [2, 1]
    moved = read_outlines(tmp_path, "a", np.array([100, 50]))
    assert moved[0][0].min(0).tolist() == [100, 50]


def test_outlines_of_one_class(tmp_path, capsys):
    value = [feature("Polygon", square((9, 9)), "Tumor"), feature("Polygon", square((30, 30)))]
    assert len(outlines_of(tmp_path, value)) == 2
    assert len(outlines_of(tmp_path, value, "Tumor")) == 1
    assert outlines_of(tmp_path, value, "Stroma") is None
    assert "a.geojson: no region of class Stroma; it has Tumor" in capsys.readouterr().out
    assert read_outlines(tmp_path, "b", np.zeros(2)) is None


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        3,
        "x",
        [1, None],
        {"type": "FeatureCollection", "features": []},
        {"features": None},
        {"type": "LineString", "coordinates": [[0, 0], [1, 1]]},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
    ],
)
def test_a_file_without_an_outline_is_refused(tmp_path, value):
    with pytest.raises(InputError, match="no Polygon or MultiPolygon in it: draw an outline"):
        outlines_of(tmp_path, value)


@pytest.mark.parametrize(
    "shape",
    [
        {"type": "Polygon"},
        {"type": "Polygon", "coordinates": 3},
        {"type": "Polygon", "coordinates": [[[0, 1], [2], [3, 4]]]},
        {"type": "Polygon", "coordinates": [[["a", 0]]]},
        {"type": "Polygon", "coordinates": [[[0], [1], [2], [3]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, float("nan")], [1, 1]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 10**400], [1, 1]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1e308], [1, 1]]]},
        {"type": "MultiPolygon", "coordinates": [[[1, 2], [3, 4], [5, 6]]]},
    ],
)
def test_an_outline_without_numbers_is_refused(tmp_path, shape):
    with pytest.raises(InputError, match=r"a.geojson: feature 1 has no x, y numbers"):
        outlines_of(tmp_path, shape)


def test_tiles_that_qupath_gets_come_back_as_the_same_tiles(tmp_path):
    rng = np.random.default_rng(0)
    tile, grid = 224.45, np.stack(np.meshgrid(np.arange(7), np.arange(5)), -1).reshape(-1, 2)
    coords, values = (grid * tile).astype(np.int32), rng.normal(size=(35, 2))
    values[3, 1] = np.nan
    value = tiles_geojson(coords, tile, values, ["CD3", "T cells"])
    polygons = outlines_of(tmp_path, value)
    own = np.array([space.inside(coords + tile / 2, [polygon]) for polygon in polygons])
    assert np.array_equal(own, np.eye(35, dtype=bool))
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * tile
    for rings, corner in zip(polygons, coords, strict=True):
        assert len(rings) == 1 and np.allclose(rings[0], corners + corner, atol=0.006)
    features = json.loads(json.dumps(value, allow_nan=False))["features"]
    assert all(f["properties"]["objectType"] == "detection" for f in features)
    assert list(features[3]["properties"]["measurements"]) == ["CD3"]
    shown = [f["properties"]["measurements"]["CD3"] for f in features]
    assert np.allclose(shown, values[:, 0], rtol=1e-5)


def test_the_outline_of_a_simulated_tumour_holds_its_cells(drawn):
    for r in read_csv(drawn / "samples.csv"):
        outlines = read_outlines(drawn, r["slide"], np.zeros(2))
        assert (outlines is not None) == (r["tumor"] == "1")
        if outlines:
            cells = read_places(drawn, r["slide"], UM)[0]["tumour"]
            inside = space.inside(cells, outlines)
            assert len(cells) > 10 and inside.mean() > 0.95  # the outline goes in steps of 8 px
