"""Maps: the scores of a slide's tiles drawn where the tiles lie."""

import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lab.cohort.features import mpp_said, place_tiles
from lab.cohort.slides import find_slides, open_slide, slide_mpp, two_scales
from lab.cohort.tiles import check_places, table_mpp, tiles_of
from lab.exchange.clam import features_file
from lab.files import InputError, half_of
from lab.show.plots import (
    INK,
    MANY,
    PICTURE_DPI,
    POINT,
    RULE,
    counted,
    drawable,
    need_matplotlib,
    note,
    paper,
    place,
    save_picture,
    wrapped,
    write,
)
from lab.space import scale_bar_um

PICTURE_IN = 4.2  # long edge of a slide in a picture, inches: 1,260 pixels  [ours]
WIDE = 1.6  # slides wider than this times their height lie above each other  [ours]
OUTERMOST = 1  # per cent of the tiles, at either end, that have the colour of the end  [ours]
SCORE_COLORS = "viridis"  # even steps of lightness, for any eye  [ours]
SIGNED_COLORS = "PuOr_r"  # of what adds or takes away: its middle is 0  [ours]
SHEER = 0.6  # of a tile's colour, the rest is the tissue below it  [ours]
PALE = 0.55  # of the contrast of that tissue  [ours]
CELL_COLORS = (POINT, "#E69F00", "#009E73", "#56B4E9", "#F0E442")  # on pink, for any eye  [ours]
OTHERS = "#777777"  # of cells of more classes  [ours]
MARGIN, ABOVE, BAR = 0.2, 0.28, 0.42  # inches: around, for a caption, for the scale bar  [ours]
KEY_LINE, TEXT_LINE, COLOR_BAR = (
    0.165,
    0.14,
    0.5,
)  # inches: of the legend, of a text, the bar  [ours]


@contextmanager
def whole_folder(folder):
    """A folder that is there whole or not at all: yields where to write.

    At the end the new folder takes the place of the old one. What a killed process left half
    written is removed by the next one that writes the same folder.
    """
    left = re.compile(re.escape(f".{folder.name}.") + r"[0-9a-f]{16}\.(tmp|old)")
    for half in [path for path in folder.parent.glob(".*") if left.fullmatch(path.name)]:
        if half.suffix == ".old" and not folder.exists():  # killed between the two renames below
            os.replace(half, folder)
        shutil.rmtree(half, ignore_errors=True)
    work = half_of(folder)
    old = work.with_suffix(".old")
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


def why_no_tile(into, source, name):
    """Why parts of a slide have no tile, in words."""
    if isinstance(source, Path):
        return f"the features in {source.name} have none there"
    share = tiles_of(into, name)[1]["min_tissue"]
    return f"less than {share:.0%} tissue, or no whole tile at the slide's edge"


class Span(NamedTuple):
    """What the colours go from and to, and the sentence that says so."""

    low: float
    high: float
    said: str
    colors: str = SCORE_COLORS


def middle_of(values):
    """The ends of all values but the OUTERMOST, each one of them; where these are equal, of all."""
    low = np.percentile(values, OUTERMOST, method="lower")
    high = np.percentile(values, 100 - OUTERMOST, method="higher")
    return (low, high) if low < high else (values.min(), values.max())


def span_of(scores, predicted=(), measured=(), whose=""):
    """The Span of a slide's tiles together with other slides' predictions, with what was measured.

    So that 4.81 to 4.86 are no full scale where others go from 4.7 to 5.1. whose: slides, in words.
    """
    own = middle_of(scores)
    if not len(predicted):
        low, high = in_digits(own, own)
        said = f"Colours go from {low} to {high}: these tiles, whatever others have."
        return Span(*own, said if own[0] < own[1] else f"All tiles have {low}.")
    known, true = (middle_of(np.asarray(values, np.float64)) for values in (predicted, measured))
    ends = min(own[0], known[0]), max(own[1], known[1])
    share = (own[1] - own[0]) / (ends[1] - ends[0] or 1)
    said = (
        "Colours go from {} to {}: these tiles ({} to {}, {share:.0%} of that) and the predictions "
        "of {whose} ({} to {}; measured there: {} to {})."
    )
    numbers = in_digits((*ends, *own, *known, *true), ends)
    return Span(*ends, said.format(*numbers, whose=whose, share=share))


def in_digits(values, ends):
    """Numbers as words, with two digits of the distance of the ends."""
    width = abs(ends[1] - ends[0]) or max(map(abs, ends)) or 1
    decimals = int(np.clip(1 - np.floor(np.log10(width)), 0, 9))
    return [f"{value:.{decimals}f}".replace("-", "−") for value in values]


def draw_heatmap(
    path,
    rgb,
    size,
    mpp,
    coords,
    tile,
    scores,
    title,
    label,
    points=None,
    outlines=(),
    *,
    span=None,
    spots=None,
    outline="outline",
    without="",
    words=(),
):
    """The slide beside (a wide slide: above) the same slide in grey under its tiles' scores.

    rgb (h, w, 3) uint8 of the whole slide of size (W, H) level-0 pixels; mpp µm per level-0 pixel;
    coords (n, 2) level-0 top-left; tile: edge in level-0 pixels; scores (n,) finite, and label,
    their name and unit; points: {class: (m, 2) level-0 x, y}, or places of one, drawn on the slide,
    the first class in front; outlines: polygons, lists of rings (k, 2), drawn on both, and what
    they are [HistCode Fig. 10]; span: a Span; spots: their name, places (m, 2) and values (m,),
    dots in the tiles' colours; without: why there are places without a tile. [HE2RNA Fig. 4a]
    """
    scores = np.asarray(scores, np.float64)
    assert scores.shape == (len(coords),) and len(scores) and np.isfinite(scores).all()
    cells = points if isinstance(points, dict) or points is None else {"points": points}
    span = span or span_of(scores)
    key = key_of(cells, outlines and outline, spots, without)
    slot, picture = slot_of(size)
    said = wrapped(f"{label}. {span.said}", slot, 8)
    under_slide = BAR + KEY_LINE * sum(1 + name.count("\n") for name, _ in key)
    under_map = COLOR_BAR + TEXT_LINE * (1 + said.count("\n"))
    fig, left, right = sheet_for_two(size, title, words, under_slide, under_map)
    slide, grey = two_pictures(rgb, picture, cells)
    norm, colors = color_scale(span, grey)
    grey = painted(grey, size, coords, tile, colors[0](norm(scores)))
    slide_axes = show_picture(fig, left, picture, size, slide, "slide")
    tiles = f"{counted(len(scores), 'tile')} of {tile * mpp:.0f} µm"
    map_axes = show_picture(fig, right, picture, size, grey, tiles)
    draw_scale_bar(slide_axes, size, mpp, picture[1])
    draw_cells(slide_axes, cells)
    draw_spots(map_axes, spots, tile, norm, colors[1])
    for axes in (slide_axes, map_axes):
        draw_outlines(axes, outlines)
        axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    draw_key(slide_axes, key, picture[1])
    every = scores if spots is None else np.append(scores, spots[2])
    draw_color_bar(fig, right, norm, colors[1], every)
    write(fig, right[0], right[1] - 0.42, said, fontsize=8)
    save_picture(path, fig)


# ----- The sheet ----------------------------------------------------------------------------------


def slot_of(size):
    """Inches: the width that a slide has with what is written under it, and its picture's sides."""
    longest = PICTURE_IN * (1.5 if is_wide(size) else 1)
    picture = np.maximum(np.array(size) / max(size) * longest, 0.02)
    return max(picture[0], 3.2), picture


def is_wide(size):
    return size[0] > WIDE * size[1]


def sheet_for_two(size, title, words, under_slide, under_map):
    """A figure with room for two pictures of a slide and what stands under each, in inches.

    Returns the figure and the lower left corners of both.
    """
    slot, (_, height) = slot_of(size)
    if is_wide(size):
        room = 2 * (ABOVE + height) + under_slide + under_map
        fig, top = paper(slot + 2 * MARGIN, room, title, words)
        return fig, (MARGIN, top - ABOVE - height), (MARGIN, under_map)
    below = max(under_slide, under_map)
    fig, _ = paper(2 * slot + 3 * MARGIN, ABOVE + height + below, title, words)
    return fig, (MARGIN, below), (2 * MARGIN + slot, below)


def show_picture(fig, corner, inches, size, picture, caption):
    """A picture of the whole slide, in axes whose units are level-0 pixels."""
    axes = place(fig, *corner, *inches)
    axes.imshow(picture, extent=(0, size[0], size[1], 0), interpolation="nearest", aspect="auto")
    note(axes, caption, (0, 1), (0, 4))
    return axes


def key_of(cells, outline, spots, without):
    """[(name, how it is drawn)] of the legend, in the order of importance."""
    key = []
    for i, (name, xy) in enumerate(shown_cells(cells)):
        key.append((f"{drawable(name)} ({len(xy):,})", dot(cell_color(i))))
    if outline:
        key.append((drawable(outline), {"color": INK, "lw": 1.3}))
    if spots is not None:
        key.append((wrapped(spots[0], 3.2), dot("white", markeredgecolor=INK)))
    if without:
        square = {"marker": "s", "color": "#d0d0d0", "ls": "", "ms": 6}
        key.append((wrapped(f"no tile: {without}", 3.2), square))
    return key


def dot(color, **more):
    return {"marker": "o", "color": color, "ls": "", "ms": 4, **more}


def draw_key(axes, key, height):
    """The legend, below the scale bar."""
    from matplotlib.lines import Line2D

    if not key:
        return
    handles = [Line2D([], [], label=name, **style) for name, style in key]
    where = {"loc": "upper left", "bbox_to_anchor": (0, -0.34 / height), "borderaxespad": 0}
    axes.legend(handles=handles, frameon=False, fontsize=7.5, handlelength=1.5, **where)


def draw_scale_bar(axes, size, mpp, height):
    """A bar of a round length under the slide, where it is legible on any slide."""
    length = scale_bar_um(max(size[0], size[1] / 5) * mpp)  # a fifth of a very tall slide's height
    line = {"color": INK, "lw": 2.5, "solid_capstyle": "butt", "clip_on": False}
    under = [-0.08 / height] * 2
    axes.plot([0, length / mpp], under, transform=axes.get_xaxis_transform(), **line)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    note(axes, text, (0, 0), (0, -10), va="top")


# ----- The slide ----------------------------------------------------------------------------------


def two_pictures(rgb, inches, cells):
    """The slide in its colours and in pale grey, resampled here once: sharp, never aliased."""
    pixels = [max(1, round(edge * PICTURE_DPI)) for edge in inches]
    rgb = np.asarray(Image.fromarray(rgb).resize(pixels, Image.Resampling.LANCZOS))
    grey = np.repeat(rgb.mean(2, keepdims=True) * PALE + 255 * (1 - PALE), 3, 2)
    if cells is not None:  # paler, so that points are seen on nuclei too
        rgb = (rgb * 0.5 + 255 * 0.5).astype(np.uint8)
    return rgb, grey.astype(np.uint8)


def shown_cells(cells):
    """[(class, places)]: as many classes as there are colours, then the cells of all others."""
    each = [(name, np.asarray(xy, np.float64)) for name, xy in (cells or {}).items() if len(xy)]
    named, rest = each[: len(CELL_COLORS)], each[len(CELL_COLORS) :]
    if rest:
        named.append((f"{len(rest)} other classes", np.concatenate([xy for _, xy in rest])))
    return named


def cell_color(i):
    return CELL_COLORS[i] if i < len(CELL_COLORS) else OTHERS


def draw_cells(axes, cells):
    """A dot for each cell; the first class lies in front, in larger ones."""
    shown = shown_cells(cells)
    area = np.clip(1e4 / max(sum(len(xy) for _, xy in shown), 1), 0.3, 6)  # points²
    for i, (_, xy) in reversed(list(enumerate(shown))):
        style = {"s": area if i == 0 else area / 2, "linewidths": 0, "rasterized": len(xy) > MANY}
        axes.scatter(*xy.T, color=cell_color(i), **style)


def draw_outlines(axes, polygons):
    """Rings in black with a white rim: seen on any tissue and any tile, by any eye."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=2.6, foreground="white")]
    for rings in polygons or ():
        for ring in rings:
            x, y = np.vstack([ring, ring[:1]]).T
            axes.plot(x, y, color=INK, lw=1.3, path_effects=rim)


# ----- The tiles ----------------------------------------------------------------------------------


def color_scale(span, grey):
    """(values -> places on the scale, (the tiles' colours, and as they look on such tissue))."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, Normalize

    low, high = (span.low, span.high) if span.low < span.high else (span.low - 0.5, span.low + 0.5)
    colors = colormaps[span.colors]
    seen = SHEER * colors(np.linspace(0, 1, 256))[:, :3] + (1 - SHEER) * grey.mean() / 255
    return Normalize(low, high), (colors, ListedColormap(seen))


def painted(ground, size, coords, tile, colors):
    """A picture of the slide under its tiles: colors (n, 3 or 4) of 0 to 1, SHEER of them.

    In whole pixels, and in one layer: no seams between neighbours, none twice where they overlap.
    """
    out, scale = ground / 255, np.array(ground.shape[1::-1]) / size
    first = np.round(np.asarray(coords) * scale).astype(int)
    last = np.round((np.asarray(coords) + np.ceil(tile)) * scale).astype(int)
    last = np.maximum(last, first + 1)
    for (x0, y0), (x1, y1), color in zip(first.clip(0), last, colors, strict=True):
        below = ground[y0:y1, x0:x1] / 255
        out[y0:y1, x0:x1] = SHEER * color[:3] + (1 - SHEER) * below
    return np.round(255 * out).astype(np.uint8)


def draw_spots(axes, spots, tile, norm, colors):
    """What was measured at each place, in the colours that its tile would have."""
    if spots is None:
        return
    _, places, values = spots
    across = axes.get_window_extent().width / np.ptp(axes.get_xlim()) * tile  # dots of the screen
    points = across / axes.figure.dpi * 72  # a tile's edge
    area = np.clip(0.16 * points**2, 3, 60)
    style = {"edgecolors": INK, "linewidths": 0.5, "rasterized": len(places) > MANY}
    axes.scatter(*np.asarray(places, np.float64).T, s=area, c=colors(norm(values)), **style)


def draw_color_bar(fig, corner, norm, colors, values):
    """The colours as they look on the map; arrows where values lie beyond its ends."""
    plt = need_matplotlib()
    from matplotlib.cm import ScalarMappable

    beyond = (np.min(values) < norm.vmin, np.max(values) > norm.vmax)
    ends = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
    below = place(fig, corner[0], corner[1] - 0.2, 2.6, 0.1)
    ticks = plt.MaxNLocator(5)
    style = {"orientation": "horizontal", "extend": ends[beyond], "ticks": ticks}
    bar = fig.colorbar(ScalarMappable(norm, colors), cax=below, **style)
    bar.ax.tick_params(labelsize=7, length=2, pad=2, color=RULE, labelcolor=INK)
    bar.outline.set(color=RULE, linewidth=0.5)
