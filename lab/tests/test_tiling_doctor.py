"""python tiling.py doctor. Authority: the slides' own files, looked at by eye."""

import shutil

import numpy as np
import pytest

from lab.cohort.slides import open_slide
from lab.commands.tiling import main
from lab.files import InputError
from lab.tests.helpers import real, write_pyramid


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--weights", "none.pth"], "none.pth: No such file"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--features", "none"], "no such folder"),
    ],
)
def test_doctor_looks_at_what_features_would_need(two_slides, argv, words):
    with pytest.raises(InputError, match=words):
        main(["doctor", str(two_slides), *argv])


def test_doctor_takes_one_slide_and_writes_nothing(two_slides, capsys):
    before = sorted(two_slides.rglob("*"))
    assert main(["doctor", str(two_slides / "slides" / "a.tif")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("a: 1,600 x 1,280 px, generic-tiff, 3 level(s)")
    assert "; features 0." in said
    assert "b: " not in said
    assert sorted(two_slides.rglob("*")) == before


@pytest.mark.parametrize("levels, words", [(1, ", 25 pixels for each one: it has no"), (3, "")])
def test_doctor_says_where_many_pixels_are_read_for_one(levels, words, tmp_path, capsys):
    """0.1 µm per pixel is 5 times as fine as wanted; with a level of 4 it is 1.25 times."""
    write_pyramid(tmp_path / "a.tif", np.full((1280, 1600, 3), 240, np.uint8), 0.1, levels)
    assert main(["doctor", str(tmp_path / "a.tif")]) == 0
    said = capsys.readouterr().out
    assert f"resampled to 0.5{words}" in said
    assert ("for each one" in said) == (levels == 1)


def test_real_slides(tmp_path, capsys):
    """The share of tissue by eye; most of each tile is stained, by plain brightness."""
    shutil.copytree(real("slides"), tmp_path / "slides", copy_function=shutil.copyfile)
    (tmp_path / "slides").chmod(0o755)
    assert main(["doctor", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "mpp 0.4990 µm from the slide" in said.out
    assert "224.4 px" in said.out
    assert "tcga-cr-7395-01a-01-ts1: no µm per pixel" in said.err
    assert main(["tiles", str(tmp_path), "--mpp", "0.25"]) == 0
    cmu = np.load(tmp_path / "tiles" / "CMU-1-Small-Region.npz")
    tcga = np.load(tmp_path / "tiles" / "tcga-cr-7395-01a-01-ts1.npz")
    assert 0.30 < cmu["tissue"] < 0.45
    assert 40 <= len(cmu["coords"]) <= 55
    assert 0.58 < tcga["tissue"] < 0.70
    assert 42 <= len(tcga["coords"]) <= 52
    assert tcga["tile"] == 448
    slide = open_slide(tmp_path / "slides" / "CMU-1-Small-Region.svs")
    for x, y in cmu["coords"].tolist():
        grey = slide.read_region((x, y), 0, (224, 224)).convert("L")
        assert (np.asarray(grey) < 225).mean() > 0.33
