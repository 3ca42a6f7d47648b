"""lab.tests.test_maps"""

import os
import platform
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from lab.files import digest, save_text
from lab.show.maps import color_range, draw_heatmap, scale_bar_um, whole_folder
from lab.show.plots import PICTURE_DPI
from lab.tests.helpers import where


def test_a_killed_map_leaves_nothing_and_loses_nothing(tmp_path):
    """SIGKILL while a map is drawn, and between the old one's leaving and the new one's coming."""
    maps, read = (
        tmp_path / "a map [1]",
        lambda: {
            str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()
        },
    )

    def killed(early):
        """In a process that ends so; early: before the new map is whole."""
        kill, move = lambda: os.kill(os.getpid(), signal.SIGKILL), os.replace
        os.replace = lambda a, b: kill() if b == maps else move(a, b)
        with whole_folder(maps) as work:
            work.mkdir()
            (work / "map").write_text("new")
            kill() if early else None

    for early in (True, False):
        save_text(maps / "map", ["old"])
        if not (pid := os.fork()):
            killed(early)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL and (maps / "map").is_file() == early
        here = digest(platform.node())[:6]  # of a process at work, another slide's, another host's
        beside = [
            tmp_path / name / "half"
            for name in (
                f".{maps.name}.{here}.{os.getppid()}.tmp",
                f".a map 1.{here}.99999999.tmp",
                f".{maps.name}.0ther0.99999999.tmp",
            )
        ]
        [save_text(p, ["half"]) for p in beside]
        with pytest.raises(KeyError), whole_folder(maps) as work:
            save_text(work / "map", ["half"])
            raise KeyError
        assert read() == {
            "a map [1]/map": "old",
            **{str(p.relative_to(tmp_path)): "half" for p in beside},
        }
        with whole_folder(maps) as work:
            save_text(work / "other", ["new"])
        assert read().pop("a map [1]/other") == "new" and len(read()) == 4
        shutil.rmtree(maps)


# Pictures. Authorities: the geometry itself, read back from the pixels; fields of the GeoJSON as
# QuPath reads them.
GREY = np.full((50, 100, 3), 230, np.uint8)


@pytest.mark.parametrize("size", [(1000, 800), (2000, 500), (700, 1400), (1000, 60), (60, 1000)])
def test_heatmap_draws_each_tile_where_it_lies(tmp_path, size):
    """Lowest and highest colour of the map.

    Places and sizes in the picture are those on the slide, to a pixel.
    """
    import matplotlib

    tile, coords = (
        20.0,
        np.array([[8, 8], [size[0] - 25, size[1] - 26], [28, 8], [8, 28]]),
    )  # off the frame
    draw_heatmap(tmp_path / "a.png", GREY, size, 0.5, coords, tile, [0, 9, 4, 5], "title", "score")
    image = np.asarray(Image.open(tmp_path / "a.png"))[
        : -int(0.65 * PICTURE_DPI)
    ]  # less the colour bar
    low, high = (
        where(image, np.round(np.multiply(matplotlib.colormaps["viridis"](v)[:3], 255)))
        for v in (0.0, 1.0)
    )
    scale = PICTURE_DPI * 5 * (1.5 if size[0] > 1.6 * size[1] else 1) / max(size)
    assert abs(high[:2] - low[:2] - (coords[1] - coords[0]) * scale).max() <= 1.5
    assert abs(high[2:] - high[:2] - tile * scale).max() <= 1.5
    x, y = (low[:2] + 0.4 * tile * scale).astype(int)
    step = round(tile * scale)
    around = {tuple(image[y + b * step, x + a * step]) for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))}
    assert len(around) == 4  # three tiles and the slide


def test_outlines_are_drawn_on_slide_and_map(tmp_path):
    ring = np.array([[200, 100], [700, 100], [700, 600], [200, 600]], float)
    draw_heatmap(
        tmp_path / "a.png",
        GREY,
        (1000, 800),
        0.5,
        np.array([[8, 8], [900, 700]]),
        20.0,
        [0, 9],
        "",
        "score",
        None,
        [[ring]],
    )
    image = np.asarray(Image.open(tmp_path / "a.png"))[:, :, :3].astype(int)
    red = (image[:, :, 0] > 200) & (image[:, :, 1:].max(2) < 60)
    for half in np.split(
        red, [red.shape[1] // 2], axis=1
    ):  # five inches of the picture for 1,000 pixels of the slide
        y, x = np.nonzero(half)
        assert (
            abs(np.ptp(x) - 2.5 * PICTURE_DPI) < 9
            and abs(np.ptp(y) - 2.5 * PICTURE_DPI) < 9
            and not half[y.min() + 15 : y.max() - 15, x.min() + 15 : x.max() - 15].any()
        )


def test_heatmap_of_neighbours_of_real_pitch_has_no_seams(tmp_path):
    coords = (
        np.stack(np.meshgrid(np.arange(40), np.arange(40)), -1).reshape(-1, 2) * 22.43
    ).astype(np.int32)
    draw_heatmap(
        tmp_path / "a.png", GREY, (900, 900), 0.5, coords, 22.43, np.full(1600, 3.0), "", "score"
    )
    image = np.asarray(Image.open(tmp_path / "a.png"))[:, :, :3]
    color = image[int(2.5 * PICTURE_DPI), 8 * PICTURE_DPI]  # amid the map
    x0, y0, x1, y1 = where(image[: -int(0.65 * PICTURE_DPI)], color)
    assert (image[y0:y1, x0:x1] == color).all() and min(
        x1 - x0, y1 - y0
    ) >= 40 * 22.43 / 900 * 5 * PICTURE_DPI - 3


@pytest.mark.parametrize("scores", [[2.5], [2.5, 2.5], [1e9, -1e9, 0]])
def test_heatmap_of_few_and_equal_scores(tmp_path, scores):
    coords = np.array([[0, 0], [40, 0], [80, 40]])[: len(scores)]
    draw_heatmap(
        tmp_path / "a.png",
        GREY,
        (120, 80),
        0.25,
        coords,
        40.0,
        scores,
        "word " * 60,
        "label " * 20,
        points=np.array([[3, 4]]) if len(scores) > 1 else np.zeros((0, 2)),
    )
    assert (np.asarray(Image.open(tmp_path / "a.png"))[[0, -1]] == 255).all()  # nothing is cut off


def test_scale_bar_is_round_and_a_tenth_to_a_third():
    for width in np.geomspace(0.1, 1e6, 500):
        bar = scale_bar_um(width)
        assert (
            width / 10 <= bar <= width / 3
            and f"{bar:.0e}"[0] in "125"
            and np.isclose(float(f"{bar:.0e}"), bar)
        )


def test_color_range_passes_over_single_outliers_only():
    assert color_range(np.array([0.0, 1, 2])) == (0, 2, "neither")
    assert color_range(np.full(5, 7.0)) == (6.5, 7.5, "neither")
    assert color_range(np.r_[np.zeros(999), 3]) == (0, 3, "neither")
    assert color_range(np.r_[np.linspace(0, 1, 1001), 50]) == (0.01, 0.991, "both")
