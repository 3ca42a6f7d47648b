"""Slides in a larger frame: ours is OpenSlide's, that of QuPath begins at the bounds."""

import json

import h5py
import numpy as np
import pytest
from PIL import Image

import tiling
from lab.cohort.slides import open_slide
from lab.cohort.tiles import tiles_of
from lab.commands.he2rna import main as he2rna_main
from lab.commands.tiling import main
from lab.exchange.qupath import qupath_frame
from lab.tests.helpers import feature, painted, read_csv, swap, write_pyramid
from lab.tests.helpers_he2rna import train, write_cohort

CORNER = np.array([640, 384])


class Framed:
    """Stands for a MIRAX slide: a picture that begins at CORNER of a larger frame.

    The rest was not scanned, but for a stain beyond the bounds.
    """

    dimensions, level_downsamples, level_count, color_profile = (3200, 2400), (1.0,), 1, None

    def __init__(self, rgb):
        h, w = rgb.shape[:2]
        x, y = CORNER
        self.level_dimensions = (self.dimensions,)
        self.frame = np.zeros((2400, 3200, 4), np.uint8)
        self.frame[y : y + h, x : x + w] = np.dstack([rgb, np.full((h, w), 255)])
        self.frame[2000:, 2600:] = (150, 60, 150, 255)
        self.properties = {"openslide.vendor": "mirax"}
        self.properties |= {"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.505"}
        for name, value in {"x": x, "y": y, "width": w, "height": h}.items():
            self.properties[f"openslide.bounds-{name}"] = str(value)

    def read_region(self, corner, level, size):
        (x, y), (w, h) = corner, size
        out = np.zeros((h, w, 4), np.uint8)
        part = self.frame[y : y + h, x : x + w]
        out[: part.shape[0], : part.shape[1]] = part
        return Image.fromarray(out, "RGBA")


@pytest.fixture
def framed(tmp_path, monkeypatch):
    """A cohort of one picture, plain.tif, and in a frame, m: (folder, the slide m)."""
    rgb = Image.fromarray(painted()[0]).resize((1600, 1280), Image.Resampling.NEAREST)
    rgb = np.array(rgb)
    (tmp_path / "slides").mkdir()
    write_pyramid(tmp_path / "slides" / "plain.tif", rgb)
    for name in ("m", "s00_0"):  # stand in the folder for the slide in a frame
        Image.fromarray(rgb[:20, :20]).save(tmp_path / "slides" / f"{name}.png")
    slide, original = Framed(rgb), open_slide

    def opened(path):
        return original(path) if path.stem == "plain" else slide

    swap(monkeypatch, "lab.cohort.slides", "open_slide", opened)
    return tmp_path, slide


def shapes_of(path):
    features = json.loads(path.read_text())["features"]
    return np.array([shape["geometry"]["coordinates"][0][:4] for shape in features])


def test_qupaths_frame_begins_at_the_bounds_and_has_an_um_for_each_axis(framed):
    cohort, slide = framed
    um, origin = qupath_frame(slide, 0.5025)
    assert um.tolist() == [0.5, 0.505]
    assert np.array_equal(origin, CORNER)
    um, origin = qupath_frame(open_slide(cohort / "slides" / "plain.tif"), 0.5)
    assert (um.tolist(), origin.tolist()) == ([0.5, 0.5], [0, 0])


def test_tissue_is_looked_for_within_the_bounds(framed, capsys):
    cohort, slide = framed
    (cohort / "slides" / "s00_0.png").unlink()
    rgb, scanned = tiling.thumbnail(slide, 0.5)
    assert scanned.sum() == 100 * 80
    assert (rgb[~scanned] == 255).all()
    assert main(["doctor", str(cohort)]) == 0
    said = capsys.readouterr().out
    assert "m: 3,200 x 2,400 px, mirax" in said
    assert "scanned: 1,600 x 1,280 px from (640, 384)" in said
    assert said.count("scanned:") == 1
    assert main(["tiles", str(cohort), "--tile-um", "80.4"]) == 0
    coords = tiles_of(cohort, "m")[0]["coords"]
    assert (coords >= CORNER).all()
    assert (coords + 160 <= np.add(CORNER, (1600, 1280))).all()  # the stain beyond is no tissue
    assert main(["export", str(cohort), "m", "--geojson"]) == 0
    rings = shapes_of(cohort / "export" / "resnet50" / "m.geojson")
    assert np.array_equal(rings[:, 0], coords - CORNER)


def heatmap(cohort, *argv):
    run = str(cohort / "runs" / "he2rna")
    return he2rna_main(["heatmap", run, "s00_0", "--genes", "G0", "--device", "cpu", *argv])


def test_maps_trade_in_qupaths_frame(framed, capsys):
    """GeoJSON that comes back from QuPath, and its centroids in µm, meet the tiles they are of."""
    cohort, slide = framed
    rng = np.random.default_rng(3)
    write_cohort(cohort, rng, patients=9, tiles=40)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(5)), -1).reshape(-1, 2) * 200 + CORNER
    with h5py.File(cohort / "h5" / "s00_0.h5", "w") as h:
        h["features"], h["coords"] = rng.normal(size=(40, 8)).astype(np.float16), grid
        h["coords"].attrs["patch_size_level0"] = 200
    assert train(cohort, "--epochs", "2") == 0
    assert heatmap(cohort) == 0
    folder = cohort / "runs" / "he2rna" / "heatmaps" / "G0" / "s00_0"
    table = read_csv(folder / "tiles.csv")
    score = np.array([float(row["score"]) for row in table])
    assert [(int(row["x"]), int(row["y"])) for row in table] == list(map(tuple, grid.tolist()))
    rings = shapes_of(folder / "tiles.geojson")
    assert np.array_equal(rings[:, 0], grid - CORNER)
    top = int(score.argmax())
    outlines = [feature("Polygon", [rings[score.argmin()].tolist()], "Necrosis")]
    for i in np.flatnonzero(score > np.median(score)):
        outlines.append(feature("Polygon", [rings[i].tolist()], "Tumor"))
    for part in ("regions", "points"):
        (cohort / part).mkdir()
    collection = {"type": "FeatureCollection", "features": outlines}
    (cohort / "regions" / "s00_0.geojson").write_text(json.dumps(collection))
    um, _ = qupath_frame(slide, None)
    x, y = rings[top].mean(0) * um
    header = "Image,Class,Centroid X µm,Centroid Y µm"
    (cohort / "points" / "s00_0.csv").write_text(f"{header}\ns00_0.mrxs,Tumor,{x},{y}\n")
    capsys.readouterr()
    assert heatmap(cohort, "--regions", "Tumor", "--cells", "Tumor") == 0
    assert "outline AUC 1.000" in capsys.readouterr().out
    cells = [int(row["cells: Tumor"]) for row in read_csv(folder / "tiles.csv")]
    assert cells == [int(i == top) for i in range(40)]
    assert heatmap(cohort, "--cells", "Tumor") == 0
    assert "outline AUC 0.9" in capsys.readouterr().out  # all classes together
    assert heatmap(cohort, "--regions", "Stroma") == 1
    said = capsys.readouterr()
    assert "no region of class Stroma; it has Necrosis, Tumor" in said.out
    assert "outline AUC" not in said.out
    assert "s00_0: not found: --regions Stroma: no outline of it in" in said.err
