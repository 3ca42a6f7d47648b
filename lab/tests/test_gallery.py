"""The gallery of a slide's tiles: which it shows, and what it says of them."""

import numpy as np
import pytest
from PIL import Image

import tiling
from lab.show.gallery import EDGE, digits_that_differ, draw_gallery
from lab.show.plots import PICTURE_DPI
from lab.tests.helpers import Flat, swap, where

pytestmark = pytest.mark.usefixtures("printed")


def shown(monkeypatch, count, **options):
    """What draw_gallery reads and writes: tiles read, in order, and the labels."""
    read, labels = [], []
    tiles = tiling.read_tiles
    swap(
        monkeypatch,
        "tiling",
        "read_tiles",
        lambda slide, coords, *a: read.append(coords[0].tolist()) or tiles(slide, coords, *a),
    )

    def look(path, fig):
        for axes in [fig, *fig.axes]:
            labels.extend(text.get_text() for text in axes.texts)

    swap(monkeypatch, "lab.show.plots", "save_picture", look)
    coords = np.array([[100 * i, 100 * (i % 3)] for i in range(count)])
    scores = [(7 * i) % count - 1.0 for i in range(count)]
    about = "title", "score, log", 0.5
    draw_gallery("a.png", Flat(), coords, 100.0, scores, *about, **options)
    return [x // 100 for x, _ in read], labels


def test_gallery_shows_the_highest_and_lowest_tiles(monkeypatch):
    """Each over its score and the cells of each class, the asked one first; scale and legend."""
    cells = {"T": np.arange(10)} | {f"{k}$_": np.full(10, k) for k in range(6)}
    order, labels = shown(monkeypatch, 10, n=3, cells=cells)
    score = [(7 * i) % 10 - 1 for i in order]
    assert score == [8, 7, 6, -1, 0, 1]
    rest = "5$_: 5\n4$_: 4\n3$_: 3\nothers: 3"
    assert f"S = 8.00\nT: {order[0]}\n{rest}" in labels
    assert f"S = −1.00\nT: {order[3]}\n{rest}" in labels
    assert "10 µm" in labels
    assert "S: score, log; 10 tiles of 50 µm; below S: cells in the tile" in labels


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_gallery_of_few_tiles_shows_each_once(monkeypatch, n):
    order, _ = shown(monkeypatch, n)
    assert sorted(order) == list(range(n))


def test_scores_have_the_digits_that_tell_them_apart():
    assert digits_that_differ(np.array([4.7, 5.1])) == 2
    assert digits_that_differ(np.array([4.7012, 4.7013, 4.7013])) == 4
    assert digits_that_differ(np.array([1e-12, 2e-12])) == 7
    assert digits_that_differ(np.full(3, 2.5)) == 2


def test_gallery_shows_the_pixels_of_the_slide(tmp_path):
    """A tile is EDGE inches of its own colour, less its frame; 1,200 pixels at least."""
    coords = np.array([[0, 0], [300, 100], [800, 400]])
    draw_gallery(tmp_path / "a.png", Flat(), coords, 100.0, [1, 2, 3], "t", "score", 0.5)
    image = Image.open(tmp_path / "a.png")
    assert image.width >= 1200 and round(image.info["dpi"][0]) == PICTURE_DPI
    places = [where(image, color) for color in ((160, 80, 0), (60, 20, 0), (0, 0, 0))]
    assert all(abs(p[2:] - p[:2] - EDGE * PICTURE_DPI).max() <= 5 for p in places)
    assert places[0][0] < places[1][0] and places[0][1] == places[1][1] < places[2][1]
