"""Tiles of a cohort: µm per pixel, the rule of tissue, files that are not whole."""

import json

import numpy as np
import pytest
from PIL import Image

import tiling as tiling_method
from lab.cohort.tiles import draw_tiles, tiles_of
from lab.commands.tiling import main
from lab.files import InputError
from lab.tests.helpers import WHOLE_TILES, folder_bytes, painted


def tiles(cohort, *argv):
    return main(["tiles", str(cohort), *argv])


def arrays_of(cohort, name="a"):
    return np.load(cohort / "tiles" / f"{name}.npz")


def times_of(cohort, ending):
    return {path: path.stat().st_mtime_ns for path in cohort.rglob(ending)}


def write_png(path):
    rgb = Image.fromarray(painted()[0])
    rgb.resize((1600, 1280), Image.Resampling.NEAREST).save(path)


def test_mpp_column_and_png(two_slides):
    """The slide's own goes before the column; slides that are not in samples.csv are left out."""
    write_png(two_slides / "slides" / "c.png")
    (two_slides / "samples.csv").write_text("slide,patient,project,mpp\na,p,X,0.1\nc,q,X,0.6878\n")
    assert tiles(two_slides) == 0
    assert arrays_of(two_slides, "a")["mpp"] == pytest.approx(0.5, rel=1e-3)
    assert arrays_of(two_slides, "c")["mpp"] == 0.6878
    assert not (two_slides / "tiles" / "b.npz").exists()


def test_mpp_is_remembered_and_leaves_slides_with_their_own_alone(two_slides, capsys):
    write_png(two_slides / "slides" / "plain.png")
    encoder = ("--device", "cpu", "--encoder", "resnet50-stage3")
    features = ["features", str(two_slides), *encoder]
    assert main([*features, "--weights", "random"]) == 1  # plain.png has no scale
    own = times_of(two_slides, "*.np[yz]")
    assert len(own) == 4
    assert tiles(two_slides, "--mpp", "0.5") == 0
    assert main(features) == 0  # given once, remembered
    assert tiles(two_slides, "--mpp", "0.4") == 0
    assert "1 slides are made anew: mpp 0.5 -> 0.4" in capsys.readouterr().out
    after = times_of(two_slides, "*.np[yz]")
    assert {path: after[path] for path in own} == own
    for path in (two_slides / "slides").iterdir():  # features travel without their slides
        path.unlink()
    (two_slides / "samples.csv").write_text("slide,patient,project\na,p,X\nb,q,X\nc,r,X\n")
    assert main(["supertiles", str(two_slides), *encoder]) == 1
    assert "failed: c: no file c.*" in capsys.readouterr().err


def test_an_mpp_that_is_not_the_files_is_said_and_used_when_forced(two_slides, capsys):
    """Tiles are made anew when it is forced, and when it no longer is; 0.505 is 0.5, rounded."""
    both = "slide,patient,project,mpp\na,p,X,0.25\nb,q,X,0.505\n"
    (two_slides / "samples.csv").write_text(both)
    for _ in range(2):  # new and ready tiles
        assert tiles(two_slides) == 0
        said = capsys.readouterr().out
        assert "they differ: a 0.5, given 0.25; --force-mpp uses those given" in said
    assert main(["doctor", str(two_slides)]) == 0
    assert "mpp 0.5000 µm from the slide, not 0.25 of samples.csv" in capsys.readouterr().out
    assert tiles(two_slides, "--force-mpp") == 0
    assert [float(arrays_of(two_slides, name)["mpp"]) for name in "ab"] == [0.25, 0.505]
    made = times_of(two_slides, "*.npz")
    assert tiles(two_slides) == 0  # remembered
    assert times_of(two_slides, "*.npz") == made
    capsys.readouterr()
    assert main(["doctor", str(two_slides)]) == 0
    assert "samples.csv by --force-mpp, the slide says 0.5 x 0.5" in capsys.readouterr().out
    assert tiles(two_slides, "--no-force-mpp") == 0
    assert "2 slides are made anew: force_mpp True -> False" in capsys.readouterr().out
    assert arrays_of(two_slides)["mpp"] == pytest.approx(0.5, rel=1e-3)


def test_a_grey_picture_has_a_reason(two_slides, capsys):
    rgb = Image.fromarray(painted()[0]).convert("L").resize((1600, 1280))
    rgb.save(two_slides / "slides" / "g.png")
    assert tiles(two_slides, "--mpp", "0.5") == 1
    assert "failed: g: slide g is grey: tissue is found by its colours" in capsys.readouterr().err


def test_the_usual_rule_of_tissue_is_not_named_so_that_older_tiles_stay_valid(two_slides):
    assert tiles(two_slides) == 0
    settings = json.loads(str(arrays_of(two_slides)["settings"]))
    assert set(settings) == {"tile_um", "min_tissue", "max_tiles", "mpp", "seed", "file"}
    shared = json.loads((two_slides / "tiles" / "settings.json").read_text())
    assert {*shared, "file"} == set(settings)
    made = times_of(two_slides, "*.npz")
    usual = ("--tissue", "stain", "--min-area", "0", "--tissue-threshold", "otsu")
    assert tiles(two_slides, *usual) == 0
    assert times_of(two_slides, "*.npz") == made


def test_another_rule_of_tissue_makes_tiles_anew_and_is_remembered(two_slides, capsys):
    assert tiles(two_slides) == 0
    first = folder_bytes(two_slides, ".npz")
    capsys.readouterr()
    assert tiles(two_slides, "--tissue", "saturation", "--tissue-threshold", "8") == 0
    anew = "made anew: tissue stain -> saturation, tissue_threshold otsu -> 8.0"
    assert anew in capsys.readouterr().out
    assert tiles(two_slides) == 0
    assert arrays_of(two_slides)["threshold"] == 8
    assert main(["doctor", str(two_slides)]) == 0
    assert "fixed threshold 8 of saturation" in capsys.readouterr().out
    assert tiles(two_slides, "--tissue-threshold", "otsu") == 0
    assert arrays_of(two_slides)["threshold"] > 8
    assert tiles(two_slides, "--tissue", "stain") == 0
    assert folder_bytes(two_slides, ".npz") == first
    with pytest.raises(InputError, match="is a level of saturation: add --tissue saturation"):
        tiles(two_slides, "--tissue-threshold", "8")


def test_tiles_of_a_slide_too_large_for_8_um_say_so_and_older_ones_are_made_anew(
    two_slides, capsys, monkeypatch
):
    """THUMBNAIL_PIXELS stands for a slide larger than glass usually is."""
    assert tiles(two_slides) == 0
    fine = arrays_of(two_slides)
    W, H = fine["size"]
    monkeypatch.setattr(tiling_method, "THUMBNAIL_PIXELS", W * H * (0.5 / 10) ** 2)
    capsys.readouterr()
    for _ in range(2):
        assert tiles(two_slides) == 0
    said = capsys.readouterr().out
    assert said.count("2 slides are made anew: thumbnail_um None -> 10") == 1
    coarse = arrays_of(two_slides)
    assert json.loads(str(coarse["settings"]))["thumbnail_um"] == pytest.approx(10, rel=1e-3)
    assert "thumbnail_um" not in json.loads(str(fine["settings"]))
    shared = {tuple(c) for c in fine["coords"]} & {tuple(c) for c in coarse["coords"]}
    assert len(shared) > 0.85 * len(fine["coords"])


def test_a_picture_to_look_at_has_no_more_pixels_than_a_screen_can_show(monkeypatch):
    rgb, truth = painted()
    coords = np.array([(400, 400), (1000, 1000)])
    monkeypatch.setattr("lab.cohort.tiles.PICTURE_MOST", 90)
    sheet = np.asarray(draw_tiles(rgb, truth, coords, 200.0, (4000, 3200), 0.4))
    assert sheet.shape == (54 * 18 + 64, 67 * 18, 3)  # a third as wide, then as large as usual
    green, blue = ((sheet == color).all(2).sum() for color in ((0, 158, 115), (0, 114, 178)))
    assert green > 1000 < blue


def test_small_pieces_of_tissue_are_dropped(two_slides, capsys):
    """An ellipse of 360 x 320 µm is 7.2 tiles of 112 µm, a square of 240 µm 4.6."""
    n = {}
    for area in (0, 3.5, 6, 12):
        assert tiles(two_slides, "--min-area", str(area)) == (area == 12)
        n[area] = len(arrays_of(two_slides)["coords"])
    assert n[0] == n[3.5] > n[6] > n[12] == 0
    assert "--min-area is too high" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        {"settings": "{"},
        {"settings": "[1]"},
        {"settings": 3},
        {"settings": "[" * 9999},
        {"coords": None},
        {"found": None},
        {"tile": np.nan},
        {"tile": -1.0},
        {"coords": WHOLE_TILES["coords"] - 1},
        {"coords": WHOLE_TILES["coords"].astype(np.int64) + 2**62},
        {"mpp": 0.0},
        {"coords": np.arange(10)},
        {"found": np.ones(3, int)},
    ],
)
def test_tiles_that_are_not_whole_are_as_if_not_there(tmp_path, damage):
    (tmp_path / "tiles").mkdir()
    for change in ({}, damage):
        arrays = {key: v for key, v in {**WHOLE_TILES, **change}.items() if v is not None}
        np.savez(tmp_path / "tiles" / "a.npz", **arrays)
        assert (tiles_of(tmp_path, "a") == (None, None)) == bool(change)
