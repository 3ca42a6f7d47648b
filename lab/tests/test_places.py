"""lab.tests.test_places"""

import gzip
import json

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from lab.cohort.places import centroid, read_places
from lab.files import InputError
from lab.tests.helpers import feature, star


def test_centroids_equal_means_of_the_pixels_inside():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(-2, 12, 0.02), np.arange(-2, 12, 0.02)), -1).reshape(
        -1, 2
    )
    outer, hole, far = (
        star(rng, 11, (5, 5), 6),
        star(rng, 7, (5, 5), 1),
        np.array([[9, -1], [11, -1], [11, 3], [9, -1]]),
    )
    inside = lambda *rings: np.logical_xor.reduce([Outline(r).contains_points(grid) for r in rings])
    for ring in (outer, outer[::-1], np.vstack([outer, outer[:1]])):
        assert np.allclose(
            centroid([[ring.tolist(), hole.tolist()]]), grid[inside(outer, hole)].mean(0), atol=0.02
        )
    assert np.allclose(
        centroid([[outer.tolist()], [far.tolist()]]),
        np.concatenate([grid[inside(outer)], grid[inside(far)]]).mean(0),
        atol=0.02,
    )
    assert centroid([[[[1, 2], [3, 4], [1, 2]]]]).tolist() == [5 / 3, 8 / 3]  # a line has no area
    assert np.allclose(
        centroid([[(1e6 + outer).tolist()]]) - 1e6, centroid([[outer.tolist()]]), atol=1e-6
    )


def test_cells_from_qupath_tables_and_geojson(tmp_path):
    """The same cells as tables in px and µm of QuPath's frame, in ours, and as GeoJSON of every wrapping; classes as it names them."""
    (tmp_path / "points").mkdir()
    xy, kinds = (
        np.array([[10.5, 20], [30, 40.25], [50, 60], [7, 8]]),
        ["Tumor", "Immune cells", "Tumor", ""],
    )
    um, origin = np.array([0.25, 0.26]), np.array([1000, 2000])
    places = lambda name: read_places(tmp_path, name, um, origin)[0]

    def table(name, x, y, places, sep=",", encoding="utf-8", kind="Class", image="a.mrxs"):
        rows = [["Image", "Object ID", x, y, kind]] + [
            [image, str(i), *map(repr, map(float, p)), k]
            for i, (p, k) in enumerate(zip(places, kinds))
        ]
        text = "\n".join(sep.join(row) for row in rows).encode(encoding)
        (tmp_path / "points" / name).write_bytes(
            gzip.compress(text) if name.endswith("gz") else text
        )

    table("px.csv", "Centroid X px", "Centroid Y px", xy)
    table("um.tsv", "Centroid X µm", "Centroid Y µm", xy * um, "\t", kind="Classification")
    table("win.txt", "Centroid X µm", "Centroid Y µm", xy * um, "\t", "cp1252")
    table("mu.csv.gz", "Centroid X μm", "Centroid Y μm", xy * um)  # the Greek letter
    table("ascii.tsv.gz", "Centroid X um", "Centroid Y um", xy * um, "\t")
    table("own.csv", "x", "y", xy + origin, kind="cell")  # ours: OpenSlide's frame, nothing to move
    square = lambda p, r=2: [
        [[p[0] + a * r, p[1] + b * r] for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))]
    ]
    cells = [
        feature("Point", xy[0].tolist(), kinds[0]),
        feature("Polygon", square(xy[1]), dict(names=["Immune cells"]), objectType="cell"),
        feature("MultiPoint", [xy[2].tolist()], kinds[2], objectType="annotation"),
        feature("MultiPolygon", [square(xy[3])], objectType="detection"),
    ]
    region = feature("Polygon", square((500, 500), 90), "Tumor", objectType="annotation")
    line, nothing = feature("LineString", [[1, 2], [3, 4]]), dict(type="Feature", geometry=None)
    for name, value in (
        ("collection", dict(type="FeatureCollection", features=[region, *cells, line])),
        ("list", [*cells, nothing, region]),
        (
            "packed",
            [
                *cells,
                feature("Polygon", square((5, 5)), None, object_type="annotation"),
                dict(region, id="PathAnnotationObject", properties={}),
            ],
        ),
    ):
        data = json.dumps(value).encode()
        (tmp_path / "points" / f"{name}.geojson{'.gz' * (name == 'packed')}").write_bytes(
            gzip.compress(data) if name == "packed" else data
        )
    for name in ("px", "um", "win", "mu", "ascii", "own", "collection", "list", "packed"):
        got = places(name)
        assert list(got) == ["all cells", "Immune cells", "Tumor"] and np.allclose(
            got["all cells"], xy + origin, atol=1e-6
        )
        assert np.allclose(got["Tumor"], xy[[0, 2]] + origin) and np.allclose(
            got["Immune cells"], xy[[1]] + origin
        )
    (tmp_path / "points" / "one.geojson").write_text(
        json.dumps(cells[0]["geometry"])
    )  # a bare geometry
    (tmp_path / "points" / "derived.geojson").write_text(
        json.dumps(feature("Point", [1, 2], dict(names=["Tumor", "Positive"])))
    )
    (tmp_path / "points" / "none.geojson").write_text(
        '{"type": "FeatureCollection", "features": []}'
    )
    assert places("one")["all cells"].tolist() == [[1010.5, 2020]] and list(places("derived")) == [
        "all cells",
        "Tumor: Positive",
    ]
    assert places("none")["all cells"].shape == (0, 2) and places("nobody") is None
    table("many.csv", "x", "y", xy, image="a")
    (tmp_path / "points" / "many.csv").write_text(
        (tmp_path / "points" / "many.csv").read_text().replace("a,0,", "b,0,")
    )
    table("list.csv", "x", "y", xy)
    (tmp_path / "points" / "text.geojson").write_text("no json")
    (tmp_path / "points" / "cut.geojson.gz").write_bytes(
        (tmp_path / "points" / "packed.geojson.gz").read_bytes()[:50]
    )
    for i, bad in enumerate((["a", 2], [float("nan"), 1], None, [3], [10**400, 1], [1e308, 1])):
        (tmp_path / "points" / f"bad{i}.geojson").write_text(
            json.dumps([cells[0], feature("Point", bad)])
        )
    (tmp_path / "points" / "bad6.geojson").write_text(
        json.dumps([cells[0], feature("Polygon", [[1, 2], [3, 4]])])
    )
    (tmp_path / "points" / "bad7.geojson").write_text(
        json.dumps([cells[0], feature("Polygon", square((1, 2), 1e308))])
    )
    (tmp_path / "points" / "deep.geojson").write_text("[" * 100000)
    for i, odd in enumerate(
        (
            dict(geometry="x"),
            dict(geometry=[1]),
            dict(geometry=None, properties=[1]),
            dict(cells[0], properties="x"),
        )
    ):
        (tmp_path / "points" / f"odd{i}.geojson").write_text(json.dumps([cells[0], odd]))
    for names, kind in (([1, 2], "1: 2"), (3, "3")):
        (tmp_path / "points" / "names.geojson").write_text(
            json.dumps(feature("Point", [1, 2], dict(names=names)))
        )
        assert list(places("names")) == ["all cells", kind]
    for name, words in (
        ("many", "rows of 2 images .a, b.; give those of many alone"),
        ("list", "list.csv and list.geojson are both there; keep one"),
        ("text", "not whole GeoJSON"),
        ("deep", "not whole GeoJSON"),
        ("cut", "not whole GeoJSON"),
        *(
            (f"bad{i}", "bad..geojson: feature 2: its P[a-z]+ has no x, y numbers")
            for i in range(8)
        ),
        *(
            (f"odd{i}", "odd..geojson: feature 2: its (geometry|properties) is .*, no JSON object")
            for i in range(4)
        ),
    ):
        with pytest.raises(InputError, match=words):
            places(name)
