"""lab.tests.test_maps"""

import os
import platform
import shutil
import signal

import matplotlib
import numpy as np
import pytest
from PIL import Image

from lab.files import digest, save_text
from lab.show.maps import PALE, SHEER, Span, draw_heatmap, span_of, whole_folder
from lab.space import scale_bar_um
from lab.tests.helpers import swap

pytestmark = pytest.mark.usefixtures("printed")


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


@pytest.fixture
def drawn(monkeypatch):
    """Draw a map -> its figure: axes of the slide, of the map and of the colour bar."""
    figures = []
    swap(monkeypatch, "lab.show.plots", "save_picture", lambda path, fig: figures.append(fig))

    def draw(size, coords, tile, scores, *more, **options):
        draw_heatmap("a", GREY, size, 0.5, coords, tile, scores, "title", "score", *more, **options)
        return figures.pop()

    return draw


def looks(score, span):
    """The colour of a tile of that score over GREY: SHEER of viridis, the rest of the tissue."""
    share = np.clip((score - span[0]) / (span[1] - span[0]), 0, 1)
    ground = 230 * PALE + 255 * (1 - PALE)
    color = np.array(matplotlib.colormaps["viridis"](share)[:3])
    return SHEER * 255 * color + (1 - SHEER) * ground


@pytest.mark.parametrize("size", [(1000, 800), (2000, 500), (700, 1400), (1000, 60), (60, 1000)])
def test_heatmap_draws_each_tile_where_it_lies(drawn, size):
    """Half transparent, so that the tissue is seen: the first, last and middle pixel of each tile,
    and the pixels around it.
    """
    tile = 20.0
    coords = np.array([[8, 8], [size[0] - 25, size[1] - 26], [28, 8], [8, 28]])
    picture = drawn(size, coords, tile, [0, 9, 4, 5]).axes[1].images[0].get_array()
    scale = np.array(picture.shape[1::-1]) / size
    assert max(picture.shape) >= 1200
    for xy, score in zip(coords, [0, 9, 4, 5]):
        for part in (1 / scale / tile, 0.5, 1 - 1 / scale / tile):
            x, y = ((xy + part * tile) * scale).astype(int)
            assert np.allclose(picture[y, x], looks(score, (0, 9)), atol=2)
    x, y = ((coords[3] + [tile * 1.5, tile / 2]) * scale).astype(int)
    assert np.allclose(picture[y, x], 230 * PALE + 255 * (1 - PALE), atol=1)  # no tile


def test_heatmap_of_neighbours_of_real_pitch_has_no_seams(drawn):
    coords = (np.indices((40, 40)).reshape(2, -1).T * 22.43).astype(np.int32)
    picture = drawn((900, 900), coords, 22.43, np.full(1600, 3.0)).axes[1].images[0].get_array()
    last = int(40 * 22.43 * len(picture) / 900) - 1
    assert np.ptp(picture[:last, :last].reshape(-1, 3), axis=0).max() == 0


def test_the_legend_names_what_is_drawn(drawn):
    """Outlines on both, classes in their colours, the first in front, and why tiles are missing."""
    ring = np.array([[200, 100], [700, 100], [700, 600], [200, 600]], float)
    cells = {kind: np.full((n, 2), 10 * n) for n, kind in enumerate("ABCDEFG", 3)}
    more = {"outline": "outline of Tumor", "without": "less than 50% tissue"}
    coords = np.array([[8, 8], [900, 700]])
    fig = drawn((1000, 800), coords, 20.0, [0, 9], cells, [[ring]], **more)
    slide, tiles, _ = fig.axes
    for axes in (slide, tiles):
        (line,) = [line for line in axes.lines if len(line.get_xdata()) == 5]
        assert (np.transpose(line.get_data()) == [*ring, ring[0]]).all()
    names = [text.get_text() for text in slide.get_legend().texts]
    classes = ["A (3)", "B (4)", "C (5)", "D (6)", "E (7)", "2 other classes (17)"]
    assert names == [*classes, "outline of Tumor", "no tile: less than 50% tissue"]
    handles = slide.get_legend().legend_handles
    for dots, handle in zip(reversed(slide.collections), handles):
        assert matplotlib.colors.same_color(dots.get_facecolor()[0], handle.get_color())
    areas = [dots.get_sizes()[0] for dots in slide.collections]
    assert areas[-1] > max(areas[:-1]) and slide.collections[-1].get_offsets()[0, 0] == 30


def test_spots_have_the_colours_that_their_tiles_would_have(drawn):
    """As the colour bar shows them; what lies beyond its ends has the end's colour."""
    coords, places = np.array([[0, 0], [40, 0], [80, 40]]), np.array([[10, 5], [50, 5], [90, 5]])
    more = {"spots": ("CD3D", places, [3, 4.5, 5]), "span": Span(4.0, 5.0, "Colours go from 4.")}
    fig = drawn((120, 80), coords, 40.0, [4.2, 4.4, 4.6], **more)
    (dots,) = fig.axes[1].collections
    assert (dots.get_offsets() == places).all()
    ground = fig.axes[0].images[0].get_array().mean()  # of the tissue
    assert 225 < ground < 235
    for color, value in zip(dots.get_facecolor(), (4, 4.5, 5)):
        assert 255 * color[:3] == pytest.approx(looks(value, (4, 5)), abs=8)
    assert fig.axes[2].get_xlim() == (4, 5)
    assert any("score. Colours go from 4." in text.get_text() for text in fig.texts)


@pytest.mark.parametrize("scores", [[2.5], [2.5, 2.5], [1e9, -1e9, 0]])
def test_heatmap_of_few_and_equal_scores(tmp_path, scores):
    coords = np.array([[0, 0], [40, 0], [80, 40]])[: len(scores)]
    points = np.array([[3, 4]]) if len(scores) > 1 else np.zeros((0, 2))
    words = "word " * 60, "label " * 20, points
    draw_heatmap(tmp_path / "a.png", GREY, (120, 80), 0.25, coords, 40.0, scores, *words)
    image = np.asarray(Image.open(tmp_path / "a.png"))
    assert (image[[0, -1]] == 255).all()  # nothing is cut off
    assert image.shape[1] >= 1200 and "label label" in (tmp_path / "a.svg").read_text()


def test_scale_bar_is_round_and_a_tenth_to_a_third():
    for width in np.geomspace(0.1, 1e6, 500):
        bar = scale_bar_um(width)
        assert (
            width / 10 <= bar <= width / 3
            and f"{bar:.0e}"[0] in "125"
            and np.isclose(float(f"{bar:.0e}"), bar)
        )


def test_colours_span_the_runs_slides_and_say_so():
    """4.81 to 4.86 are no full scale where predictions of other slides go from 4.7 to 5.1."""
    tiles = np.array([4.81, 4.83, 4.86])
    span = span_of(tiles, [4.72, 5.10, 4.9], [4.4, 5.5, 5], "the run's 3 slides")
    assert (span.low, span.high) == (4.72, 5.10)
    assert span.said == (
        "Colours go from 4.72 to 5.10: these tiles (4.81 to 4.86, 13% of that) and the predictions "
        "of the run's 3 slides (4.72 to 5.10; measured there: 4.40 to 5.50)."
    )
    beyond = span_of(tiles + 1, [4.72, 5.10], [4, 5], "")
    assert (beyond.low, beyond.high) == (4.72, 5.86)
    alone = span_of(tiles)
    assert (alone.low, alone.high) == (4.81, 4.86)
    assert alone.said == "Colours go from 4.810 to 4.860: these tiles, whatever others have."


def test_one_outlier_takes_no_colours_from_the_others():
    assert span_of(np.r_[np.linspace(0, 1, 1001), 50])[:2] == (0.01, 0.991)
    assert span_of(np.r_[np.zeros(999), 3])[:2] == (0, 3)
    assert span_of(np.full(5, 7.0))[:3] == (7, 7, "All tiles have 7.0.")
    assert "from −2 to 20" in span_of(np.array([-2.0, 20])).said
