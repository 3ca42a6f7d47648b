"""Where tiles made elsewhere lie. Authorities: the layouts that TRIDENT, CLAM and STAMP write."""

import numpy as np
import pytest

from lab.exchange.layout import edge_said, kind_said, place
from lab.files import InputError

GRID = np.stack(np.meshgrid(np.arange(6), np.arange(5)), -1).reshape(-1, 2)
PX = GRID * 448  # tiles of 112 µm on a slide of 0.25 µm per pixel
STAMP = {"feats": None, "unit": "um", "tile_size_um": 112.0, "tile_size_px": 224, "extractor": "x"}
TRIDENT = {
    **{"patch_size": 224, "patch_size_level0": 448, "level0_magnification": 40},
    **{"target_magnification": 20, "overlap": 0},
}
CLAM = {"patch_size": 224, "patch_level": 1, "downsample": (2.0, 2.0)}
PLACED = {
    "STAMP 2": (STAMP, PX * 0.25),
    "STAMP 2 in float32, off by a hair": (STAMP, (PX * np.float32(0.25)) * (1 + 1e-7)),
    "bytes": ({**STAMP, "unit": "µm".encode()}, PX * 0.25),
    "a Greek mu": ({**STAMP, "unit": "μm"}, PX * 0.25),
    "an array, capitals, plural": ({**STAMP, "unit": np.array(["Microns"], object)}, PX * 0.25),
    "mm": ({"unit": "mm", "tile_size_um": 112}, PX * 0.25e-3),
    "no unit, but the grid is that of the µm": ({"tile_size_um": 112}, PX * 0.25),
    "STAMP 1: 224 px of 256 µm, no unit": ({"feats": None, "extractor": "x"}, GRID * 224),
    "another's extractor": ({"features": None, "extractor": "x"}, PX),
    "TRIDENT": (TRIDENT, PX),
    "pixels in so many words": ({**TRIDENT, "unit": "Pixels"}, PX),
    "CLAM": (CLAM, PX),
    "no word, several grids": ({}, np.concatenate([PX, PX[:9] + np.array([3007, 211])])),
}


@pytest.mark.parametrize("name", PLACED)
def test_places_and_edges_become_level0_pixels(name):
    said, coords = PLACED[name]
    got, edge, _ = place(said, coords, mpp=0.25)
    px = GRID * 1024 if name.startswith("STAMP 1") else PX
    assert np.array_equal(got[: len(px)], px) and np.issubdtype(got.dtype, np.integer)
    assert edge == (1024 if name.startswith("STAMP 1") else 448)


def test_the_files_own_mpp_serves_where_no_slide_is():
    got, edge, _ = place({**STAMP, "mpp": 0.25}, PX * 0.25)
    assert np.array_equal(got, PX) and edge == 448


REFUSED = {
    "µm and no mpp": (STAMP, PX * 0.25, None, r"nothing says how many µm a pixel .*--mpp"),
    "an unknown unit": ({"unit": "furlong"}, PX, 0.25, "'furlong'; known are um, mm and px"),
    "pixels under the name of µm": (STAMP, GRID * 224, 0.25, "as pixels they would fit"),
    "the same, of level 0": ({"unit": "um", "tile_size_um": 112}, PX, 0.25, "would fit"),
    "µm or pixels": ({"tile_size_um": 112}, PX, 0.25, "whether its coords are µm or pixels"),
    "another slide's mpp": ({**STAMP, "mpp": 0.5}, PX, 0.25, None),
    "an mpp that can't be": ({**STAMP, "mpp": 0.3}, PX, 0.25, "0.3 µm per pixel .* 0.25"),
    "nanometres a pixel": ({**STAMP, "mpp": 250}, PX, None, "250 can't be: 0.05 to 20 can"),
    "coords of level 1": (TRIDENT, GRID * 224, 0.25, "448 .* lie 224 apart: coords of another"),
    "two sizes": ({**TRIDENT, **CLAM, "downsample": 1}, PX, 0.25, "448 by .*; 224 by patch_size"),
    "one tile": ({}, PX[:1], 0.25, "its 1 lie on no grid: give --tile-um"),
    "two far apart": ({}, PX[[0, 29]], 0.25, "its 2 lie on no grid"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions_are_refused_with_both_values(name):
    said, coords, mpp, words = REFUSED[name]
    if words is None:  # 0.5 is the µm per pixel of its tiles, 112 µm in 224 px
        assert place(said, coords * 0.25, mpp)[1] == 448
        return
    with pytest.raises(InputError, match=words):
        place(said, coords, mpp)


def test_overlaps_and_gaps_are_said():
    for said, coords, words in (
        ({"patch_size_level0": 896}, PX, "896 level-0 pixels lie 448 apart: they overlap, and a"),
        ({**TRIDENT, "overlap": 112}, PX // 2, "448 level-0 pixels lie 224 apart: they overlap"),
        ({"patch_size_level0": 224}, PX, "lie 448 apart: there are gaps"),
        ({"patch_size_level0": 447}, PX, None),
    ):
        _, edge, unusual = place(said, coords, 0.25)
        assert edge == said["patch_size_level0"]
        assert (not unusual) if words is None else (words in unusual[0])


def test_a_custom_downsample_says_nothing_and_the_grid_decides():
    """CLAM counts it in patch_size, TRIDENT's reader of CLAM's files does not."""
    said = {"patch_size": 224, "patch_level": 0, "downsample": (1.0, 1.0), "custom_downsample": 2}
    assert edge_said(said) is None and edge_said({**said, "custom_downsample": 1}) == 224
    assert place(said, PX)[1] == 448 and place(said, GRID * 224)[1] == 224


def test_kinds_are_alike_in_µm_whatever_the_scanner():
    at20 = {**TRIDENT, "patch_size_level0": 224, "level0_magnification": 20}
    same = [kind_said(TRIDENT, PX)["µm of a tile"], kind_said(at20, GRID * 224)["µm of a tile"]]
    assert same == [112, 112]
    clam = {"patch_size": 256, "patch_level": 0}
    sizes = [kind_said(clam, GRID * 256, mpp).get("µm of a tile") for mpp in (0.25, 0.5, None)]
    assert sizes == [64, 128, None]
    assert kind_said(clam, GRID * 256)["level-0 pixels of a tile"] == 256
    stamp = kind_said(STAMP, PX * 0.25)
    assert stamp["encoder"] == "x" and stamp["unit of coords"] == "1 µm"
    assert stamp["name of their data set"] == "feats" and stamp["µm of a tile"] == 112
    assert "furlong" in kind_said({"unit": "furlong"}, PX)["no map"]
    for broken in (PX * np.nan, PX.ravel(), PX[:, :1]):
        assert kind_said(STAMP, broken)["µm of a tile"] == 112
