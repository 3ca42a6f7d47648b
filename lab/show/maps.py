"""Maps: the scores of a slide's tiles drawn where the tiles lie."""

import os
import shutil
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from lab.cohort.features import mpp_said, place_tiles
from lab.cohort.slides import find_slides, open_slide, slide_mpp, two_scales
from lab.cohort.tiles import check_places, table_mpp, tiles_of
from lab.exchange.clam import features_file
from lab.exchange.qupath import tile_corners
from lab.files import InputError
from lab.show.plots import (
    INK,
    PICTURE_DPI,
    POINT,
    RULE,
    need_matplotlib,
    note,
    paper,
    place,
    save_picture,
    write,
)

PICTURE_IN = 5.0  # long edge of a slide in a picture, inches  [ours]
WIDE = 1.6  # slides wider than this times their height lie above each other  [ours]
SCORE_RANGE = (1, 99)  # percentiles at the ends of the colours: one tile can't pale all  [ours]
SCORE_COLORS = "viridis"  # even steps of lightness, for any eye  [ours]
OUTLINE = "red"  # of what a pathologist has drawn  [HistCode Fig. 10]
MARGIN, ABOVE, BAR_BELOW = (
    0.2,
    0.28,
    0.4,
)  # inches: around, for a caption, for the scale bar  [ours]
COLORS_BELOW = 0.5  # inches for the colour bar, and 0.14 for each line of its label  [ours]


@contextmanager
def whole_folder(folder):
    """A folder that is there whole or not at all: yields where to write.

    At the end the new folder takes the place of the old one. What a killed process left half
    written is removed by the next one that writes the same folder.
    """
    work = folder.with_name(f".{folder.name}.tmp")
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():  # killed between the two renames below
        os.replace(old, folder)
    shutil.rmtree(work, ignore_errors=True)
    try:
        yield work
        if folder.exists():
            os.replace(folder, old)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def map_ground(home, into, source, name, coords, o):
    """What a map is drawn on: (slide, its size (W, H), µm per pixel, edge of a tile and coords in
    level-0 pixels).

    o.mpp serves where neither the slide nor samples.csv says it, o.tile_um where nobody does.
    InputError without a slide file or coordinates, and where the tiles are not of this slide.
    """
    found = find_slides(home)
    if name not in found:
        raise InputError(f"no slide file {name}.* in {home}: a map is drawn over the slide")
    if coords is None:
        raise InputError(
            f"{features_file(source, name)} has no coordinates: a map needs them, from an .h5 of "
            f"the same slide, such as {source.parent / 'h5_files' / name}.h5"
        )
    slide = open_slide(found[name])
    if isinstance(source, Path):  # features made elsewhere have no tiles/<slide>.npz
        given = table_mpp(home).get(name, o.mpp) or mpp_said(source, name)
        mpp, source_of_mpp = slide_mpp(slide, given, name, o.force_mpp)
        if source_of_mpp == "slide" and two_scales(mpp, given):
            print(f"slide {name}: {mpp:.4g} µm per pixel of its file is used, not {given:g} given")
    else:
        mpp = float(tiles_of(into, name)[0]["mpp"])
    coords, tile = place_tiles(into, source, name, coords, mpp, o.tile_um and o.tile_um / mpp)
    check_places(coords, tile, slide.dimensions)
    return slide, slide.dimensions, mpp, tile, coords


def scale_bar_um(width):
    """The longest of 1, 2, 5, 10, 20, ... µm that is at most a third of `width` µm."""
    lengths = np.outer(10.0 ** np.arange(-2, 7), (1, 2, 5)).ravel()
    return float(lengths[lengths <= width / 3][-1])


def color_range(scores):
    """(low, high, which ends of the colour bar go on).

    The ends are the percentiles of SCORE_RANGE, each the score of a tile; where these are equal,
    the extremes.
    """
    low = np.percentile(scores, SCORE_RANGE[0], method="lower")
    high = np.percentile(scores, SCORE_RANGE[1], method="higher")
    if low == high:
        low, high = scores.min(), scores.max()
    below = scores.min() < low
    above = scores.max() > high
    if low == high:
        low, high = low - 0.5, high + 0.5
    ends = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
    return low, high, ends[int(below), int(above)]


def draw_heatmap(
    path, rgb, size, mpp, coords, tile, scores, title, label, points=None, outlines=()
):
    """The slide beside (a wide slide: above) the same slide in grey under its tile scores, a PNG.

    rgb (h, w, 3) uint8 of the whole slide of size (W, H) level-0 pixels; mpp µm per level-0 pixel;
    coords (n, 2) level-0 top-left; tile: edge in level-0 pixels; scores (n,) finite, and label,
    their name and unit; points (m, 2) level-0 x, y, drawn on the slide; outlines: polygons, lists
    of rings (k, 2), drawn on both [HistCode Fig. 10]. Each tile is drawn where it lies, opaque:
    its colour is the colour bar's. [HE2RNA Fig. 4a]
    """
    scores = np.asarray(scores, np.float64)
    assert scores.shape == (len(coords),) and len(scores) and np.isfinite(scores).all()
    label = textwrap.wrap(label, 45) or [""]
    fig, inches, left, right = sheet_for_two(size, title, len(label))
    slide, grey = two_pictures(rgb, inches, points is not None)
    slide_axes = show_picture(fig, left, inches, size, slide, slide_caption(points))
    plural = "" if len(scores) == 1 else "s"
    map_axes = show_picture(fig, right, inches, size, grey, f"{len(scores):,} tile{plural}")
    draw_scale_bar(slide_axes, size, mpp, inches[1])
    if points is not None and len(points):
        area = np.clip(1e4 / len(points), 0.15, 6)  # points², less where there are many
        x, y = np.asarray(points, np.float64).T
        slide_axes.scatter(x, y, s=area, c=POINT, linewidths=0)
    tiles = draw_tile_scores(fig, map_axes, coords, tile, scores, right)
    write(fig, right[0], right[1] - 0.4, "\n".join(label), fontsize=8)
    if scores.min() == scores.max():
        tiles.colorbar.set_ticks([scores[0]], labels=[f"{scores[0]:.3g}".replace("-", "−")])
    for axes in (slide_axes, map_axes):
        draw_outlines(axes, outlines)
        axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    save_picture(path, fig)


def sheet_for_two(size, title, label_lines):
    """A figure with room for two pictures of a slide.

    Returns the figure, the size of a picture, and the lower left corners of both, all in inches.
    """
    wide = size[0] > WIDE * size[1]
    longest = PICTURE_IN * (1.5 if wide else 1)
    inches = np.maximum(np.array(size) / max(size) * longest, 0.02)
    slot = max(inches[0], 2.8)  # a slot also holds what is written under a picture
    below = COLORS_BELOW + 0.14 * label_lines
    if wide:
        height = 2 * (ABOVE + inches[1]) + BAR_BELOW + below
        fig, top = paper(slot + 2 * MARGIN, height, title)
        return fig, inches, (MARGIN, top - ABOVE - inches[1]), (MARGIN, below)
    fig, _ = paper(2 * slot + 3 * MARGIN, ABOVE + inches[1] + below, title)
    return fig, inches, (MARGIN, below), (2 * MARGIN + slot, below)


def two_pictures(rgb, inches, with_points):
    """The slide in its colours and in pale grey, resampled here once: sharp, never aliased."""
    pixels = [max(1, round(edge * PICTURE_DPI)) for edge in inches]
    rgb = np.asarray(Image.fromarray(rgb).resize(pixels, Image.Resampling.LANCZOS))
    brightness = rgb.mean(2, keepdims=True)
    grey = np.repeat(brightness * 0.45 + 255 * 0.55, 3, 2).astype(np.uint8)
    if with_points:  # paler, so that points are seen on nuclei too
        rgb = (rgb * 0.5 + 255 * 0.5).astype(np.uint8)
    return rgb, grey


def slide_caption(points):
    return "slide" if points is None else f"slide and {len(points):,} points"


def show_picture(fig, corner, inches, size, picture, caption):
    """A picture of the whole slide, in axes whose units are level-0 pixels."""
    axes = place(fig, *corner, *inches)
    axes.imshow(picture, extent=(0, size[0], size[1], 0), interpolation="nearest", aspect="auto")
    note(axes, caption, (0, 1), (0, 4))
    return axes


def draw_scale_bar(axes, size, mpp, height):
    """A bar of a round length under the slide, where it is legible on any slide."""
    length = scale_bar_um(max(size[0], size[1] / 5) * mpp)  # a fifth of a very tall slide's height
    line = {"color": INK, "lw": 2.5, "solid_capstyle": "butt", "clip_on": False}
    under = [-0.08 / height] * 2
    axes.plot([0, length / mpp], under, transform=axes.get_xaxis_transform(), **line)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    note(axes, text, (0, 0), (0, -10), va="top")


def draw_tile_scores(fig, axes, coords, tile, scores, corner):
    """The tiles in the colours of their scores, and the colour bar below."""
    need_matplotlib()
    from matplotlib.collections import PolyCollection

    low, high, ends = color_range(scores)
    squares = tile_corners(coords, np.ceil(tile))  # whole pixels: no seams between neighbours
    style = {"cmap": SCORE_COLORS, "clim": (low, high), "antialiased": False, "linewidths": 0}
    tiles = PolyCollection(squares, array=scores, **style)
    axes.add_collection(tiles, autolim=False)
    below = place(fig, corner[0], corner[1] - 0.2, 2.6, 0.1)
    colors = fig.colorbar(tiles, cax=below, orientation="horizontal", extend=ends)
    colors.ax.tick_params(labelsize=7, length=2, pad=2, color=RULE, labelcolor=INK)
    colors.outline.set(color=RULE, linewidth=0.5)
    return tiles


def draw_outlines(axes, polygons):
    for rings in polygons or ():
        for ring in rings:
            x, y = np.vstack([ring, ring[:1]]).T
            axes.plot(x, y, color=OUTLINE, lw=1.2)
