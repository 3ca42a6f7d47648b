"""What is known of a slide beside the slide. Authority: cells drawn on a disc of tissue."""

import json

import numpy as np
import pytest

from lab.cohort.truth import truth_of

NAME, MPP, TILE = "s", 0.25, 100.0


class Slide:
    dimensions, properties = (4000, 3000), {}


def grid(step):
    """Tiles of a disc of tissue around (2600, 1500), `step` apart."""
    corners = np.stack(np.meshgrid(np.arange(0, 4000, step), np.arange(0, 3000, step)), -1)
    corners = corners.reshape(-1, 2)
    return corners[np.hypot(*(corners + TILE / 2 - (2600, 1500)).T) < 1100]


def cells(n=400):
    rng = np.random.default_rng(0)
    r, angle = 1000 * np.sqrt(rng.random(n)), 2 * np.pi * rng.random(n)
    return np.stack([2600 + r * np.cos(angle), 1500 + r * np.sin(angle)], 1)


def truth(folder, xy, header="x,y", step=100, **asked):
    (folder / "points").mkdir(exist_ok=True)
    rows = [f"{x},{y},T" for x, y in np.asarray(xy).tolist()]
    (folder / "points" / f"{NAME}.csv").write_text("\n".join([f"{header},cell", *rows]))
    return truth_of(folder, NAME, Slide(), MPP, grid(step), TILE, **asked)


def test_cells_where_they_belong_leave_nothing_to_say(tmp_path):
    for xy in (cells(), cells()[:5], cells()[cells()[:, 0] < 2400], np.zeros((0, 2))):
        got = truth(tmp_path, xy, asked_cells="t" if len(xy) else None)
        assert not got.notes and not got.lacks and not got.lines()


@pytest.mark.parametrize(
    "change, header, words",
    [
        (lambda xy: xy * MPP, "x,y", "times 4: are they µm, of which 0.25 are a pixel, or pixels"),
        (lambda xy: xy / 16, "x,y", "times 16: are they pixels of another level"),
        (lambda xy: xy * 8, "x,y", "400 of 400 cells lie off the slide of 4,000 x 3,000 px, the"),
        (lambda xy: xy * 8, "x,y", "0% are on tiles, and 100% would be, times 0.125"),
        (lambda xy: xy, "Centroid X µm,Centroid Y µm", "times 0.25: are they pixels, of 0.25 µm"),
        (lambda xy: xy[:, ::-1], "x,y", "x and y change places: is x the row"),
        (lambda xy: xy[:3] * 0 + 7, "x,y", "none of 3 cells lies on a tile"),
    ],
)
def test_misplaced_cells_are_named_with_the_factor(tmp_path, change, header, words):
    (said,) = truth(tmp_path, change(cells()), header).lacks
    assert words in said


def test_some_cells_off_the_slide_are_counted(tmp_path, capsys):
    got = truth(tmp_path, [*cells(), (4100.4, 3), (-9, 4)])
    assert not got.lacks
    assert (
        "2 of 402 cells lie off the slide of 4,000 x 3,000 px, the first at 4100, 3" in got.notes[0]
    )
    assert f"s: {got.notes[0]}" in capsys.readouterr().out and f"- {got.notes[0]}" in got.lines()


def test_what_was_asked_for_and_is_not_there_is_told(tmp_path):
    got = truth_of(tmp_path, NAME, Slide(), MPP, grid(100), TILE, "T", "Tumor")
    assert [text.split(":")[1] for text in got.lacks] == [" --cells T", " --regions Tumor"]
    assert f"no file of s in {tmp_path / 'points'}" in got.lacks[0]
    (tmp_path / "regions").mkdir()
    shape = {"type": "Polygon", "coordinates": [[[2500, 1500], [2600, 1500], [2600, 1600]]]}
    (tmp_path / "regions" / "s.geojson").write_text(json.dumps(shape))
    got = truth(tmp_path, cells(), asked_cells="B", asked_regions="Tumor")
    assert got.lacks[0] == "not found: --cells B: no cells of class B; it has all cells, T"
    assert (
        got.lacks[1].startswith("not found: --regions Tumor")
        and "no region of class" in got.notes[0]
    )
    assert len(truth(tmp_path, cells(), asked_cells="t").outlines) == 1


def test_overlapping_tiles_are_told(tmp_path):
    assert truth(tmp_path, cells(), step=50).notes == [
        "tiles overlap, and a cell counts in every tile that holds it"
    ]
