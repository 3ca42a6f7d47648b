"""lab.show.maps"""

import os
import platform
import re
import shutil
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

import tiling
from lab.cohort.slides import find_slides, open_slide, slide_mpp
from lab.cohort.steps import check_places, table_mpp, tiles_of
from lab.exchange.clam import features_file, tile_edge
from lab.exchange.qupath import tile_corners
from lab.files import InputError, digest, save_file
from lab.locks import started
from lab.show.plots import INK, PICTURE_DPI, POINT, RULE, need_matplotlib, paper, place

PICTURE_IN = (
    5.0  # long edge of a slide in a picture, inches                                  [ours]
)


SCORE_RANGE = (
    1,
    99,
)  # percentiles at the ends of the colours, so that one tile can't pale all    [ours]


SCORE_COLORS = (
    "viridis"  # even steps of lightness, for any eye                                       [ours]
)


OUTLINE = "red"  # of what a pathologist has drawn              [HistCode Fig. 10]


@contextmanager
def whole_folder(folder):
    """A folder that is there whole or not at all: yields where to write; at the end that takes the place of the old one,
    which lies beside until then. What killed processes have left beside goes; an old one goes back where there is no new."""
    mine = f".{folder.name}.{digest(platform.node())[:6]}"  # another host's processes can't be asked for
    work, old = (folder.with_name(f"{mine}.{os.getpid()}.{end}") for end in ("tmp", "old"))

    def tidy():
        for path in list(folder.parent.iterdir()) if folder.parent.is_dir() else ():
            left = re.fullmatch(rf"{re.escape(mine)}\.(\d+)\.(tmp|old)", path.name)
            if left and (int(left[1]) == os.getpid() or started(int(left[1])) is None):
                if left[2] == "old" and not folder.exists():
                    os.replace(path, folder)
                shutil.rmtree(path, ignore_errors=True)

    tidy()
    try:
        yield work
        if folder.exists():
            os.replace(folder, old)
        os.replace(work, folder)
    finally:
        tidy()


def map_ground(home, into, source, name, coords, o):
    """What a map is drawn on: (the slide, its size (W, H), µm per pixel, edge of a tile in level-0 pixels); o.mpp where
    neither the slide nor samples.csv says, o.tile_um where nobody does. InputError without a slide file or coordinates, and
    where the tiles are not of this slide."""
    found = find_slides(home)
    if name not in found:
        raise InputError(f"no slide file {name}.* in {home}: a map is drawn over the slide")
    if coords is None:
        raise InputError(
            f"{features_file(source, name)} has no coordinates: a map needs them, from an .h5 of the same "
            f"slide, such as {source.parent / 'h5_files' / name}.h5"
        )
    slide, elsewhere = open_slide(found[name]), isinstance(source, Path)
    mpp = (
        slide_mpp(slide, table_mpp(home).get(name, o.mpp), name)[0]
        if elsewhere
        else float(tiles_of(into, name)[0]["mpp"])
    )
    tile = tile_edge(into, source, name, coords, o.tile_um and o.tile_um / mpp)
    check_places(coords, tile, slide.dimensions)
    return slide, slide.dimensions, mpp, tile


def scale_bar_um(width):
    """The longest of 1, 2, 5, 10, 20, ... µm that is at most a third of `width` µm (and so at least 2/15 of it)."""
    steps = np.outer(10.0 ** np.arange(-2, 7), (1, 2, 5)).ravel()
    return float(steps[steps <= width / 3][-1])


def color_range(scores):
    """(low, high, which ends of the colour bar go on): SCORE_RANGE percentiles, each a tile's score; equal: the extremes."""
    low = np.percentile(scores, SCORE_RANGE[0], method="lower")
    high = np.percentile(scores, SCORE_RANGE[1], method="higher")
    if low == high:
        low, high = scores.min(), scores.max()
    beyond = (bool(scores.min() < low), bool(scores.max() > high))
    if low == high:
        low, high = low - 0.5, high + 0.5
    return (
        low,
        high,
        {
            (False, False): "neither",
            (True, False): "min",
            (False, True): "max",
            (True, True): "both",
        }[beyond],
    )


def draw_heatmap(
    path, rgb, size, mpp, coords, tile, scores, title, label, points=None, outlines=()
):
    """The slide with its scale bar beside (wide slides: above) the same slide in grey under its tile scores, a PNG.

    rgb (h, w, 3) uint8 of the whole slide of size (W, H) level-0 pixels; mpp µm per level-0 pixel; coords (n, 2) level-0
    top-left; tile: edge in level-0 pixels; scores (n,) finite, label: their name and unit; points (m, 2) level-0 x, y,
    drawn on the slide; outlines: polygons, lists of rings (k, 2), drawn on both [HistCode Fig. 10]. Each tile is drawn
    where it lies, opaque: its colour is the colour bar's. [HE2RNA Fig. 4a]
    """
    plt = need_matplotlib()
    from matplotlib.collections import PolyCollection

    scores, (W, H) = np.asarray(scores, np.float64), size
    assert scores.shape == (len(coords),) and len(scores) and np.isfinite(scores).all(), (
        scores.shape,
        len(coords),
    )
    wide = W > 1.6 * H
    w, h = np.maximum(
        np.array(size) / max(W, H) * PICTURE_IN * (1.5 if wide else 1), 0.02
    )  # inches of one picture
    slot, label = (
        max(w, 2.8),
        textwrap.wrap(label, 45) or [""],
    )  # a slot also holds what is written under it
    margin, above, bar_below, colors_below = 0.2, 0.28, 0.4, 0.5 + 0.14 * len(label)  # inches
    if wide:
        fig, top = paper(plt, slot + 2 * margin, 2 * (above + h) + bar_below + colors_below, title)
        left, right = (margin, top - above - h), (margin, colors_below)
    else:
        fig, top = paper(plt, 2 * slot + 3 * margin, above + h + colors_below, title)
        left, right = (margin, colors_below), (2 * margin + slot, colors_below)

    pixels = (
        max(1, round(w * PICTURE_DPI)),
        max(1, round(h * PICTURE_DPI)),
    )  # resampled here once: sharp, never aliased
    rgb = np.asarray(Image.fromarray(rgb).resize(pixels, Image.Resampling.LANCZOS))
    grey = np.repeat(rgb.mean(2, keepdims=True) * 0.45 + 255 * 0.55, 3, 2).astype(
        np.uint8
    )  # pale, so that colours lead
    if points is not None:
        rgb = (rgb * 0.5 + 255 * 0.5).astype(
            np.uint8
        )  # paler, so that points are seen on nuclei too
    axes = []
    for corner, picture, caption in (
        (left, rgb, "slide" if points is None else f"slide and {len(points):,} points"),
        (right, grey, f"{len(scores):,} tile{'s' * (len(scores) > 1)}"),
    ):
        axes.append(place(fig, *corner, w, h))
        axes[-1].imshow(picture, extent=(0, W, H, 0), interpolation="nearest", aspect="auto")
        axes[-1].annotate(
            caption, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=8, color=INK
        )

    if points is not None and len(points):
        dot = np.clip(1e4 / len(points), 0.15, 6)  # area in points², less where there are many
        axes[0].scatter(*np.asarray(points, np.float64).T, s=dot, c=POINT, linewidths=0)
    bar = scale_bar_um(max(W, H / 5) * mpp)  # of a very tall slide, a fifth of its height
    axes[0].plot(
        [0, bar / mpp],
        [-0.08 / h] * 2,
        transform=axes[0].get_xaxis_transform(),
        color=INK,
        lw=2.5,
        solid_capstyle="butt",
        clip_on=False,
    )  # under the slide: legible on any
    axes[0].annotate(
        f"{bar / 1000:g} mm" if bar >= 1000 else f"{bar:g} µm",
        (0, 0),
        (0, -10),
        "axes fraction",
        "offset points",
        va="top",
        fontsize=8,
        color=INK,
    )

    low, high, ends = color_range(scores)
    tiles = PolyCollection(
        tile_corners(coords, np.ceil(tile)),
        array=scores,
        cmap=SCORE_COLORS,
        clim=(low, high),
        antialiased=False,
        linewidths=0,
    )  # whole pixels: no seams between neighbours
    axes[1].add_collection(tiles, autolim=False)
    for ax in axes:
        for ring in (ring for rings in outlines or () for ring in rings):
            ax.plot(*np.vstack([ring, ring[:1]]).T, color=OUTLINE, lw=1.2)
        ax.set(xlim=(0, W), ylim=(H, 0))
    below = place(fig, right[0], right[1] - 0.2, 2.6, 0.1)
    colors = fig.colorbar(tiles, cax=below, orientation="horizontal", extend=ends)
    fig.text(
        right[0] / fig.get_figwidth(),
        (right[1] - 0.4) / fig.get_figheight(),
        "\n".join(label),
        va="top",
        fontsize=8,
        color=INK,
    )
    colors.ax.tick_params(labelsize=7, length=2, pad=2, color=RULE, labelcolor=INK)
    colors.outline.set(color=RULE, linewidth=0.5)
    if scores.min() == scores.max():
        colors.set_ticks([scores[0]], labels=[f"{scores[0]:.3g}".replace("-", "−")])
    save_file(path, lambda f: fig.savefig(f, format="png"))
    plt.close(fig)


def draw_gallery(
    path, slide, coords, tile, scores, title, counts=None, counts_name="", n=8, px=tiling.TILE_PX
):
    """The n highest tiles, best first, over the n lowest, worst first, as the slide shows them; under each its score, a PNG.

    slide: from open_slide; coords (n, 2), tile and scores as draw_heatmap; counts (n,) and their name: "#T cells = 12".
    px: edge of a tile in the picture. Equal scores keep the order of the tiles. With fewer than 2n tiles each is shown
    once, the middle one above; one tile has no row of lowest. [HE2RNA Fig. 4d-e]
    """
    plt = need_matplotlib()
    scores = np.asarray(scores, np.float64)
    assert scores.shape == (len(coords),) and len(scores) and np.isfinite(scores).all(), (
        scores.shape,
        len(coords),
    )
    order = np.argsort(-scores, kind="stable")
    n = min(n, (len(order) + 1) // 2)
    rows = [("highest", order[:n]), ("lowest", order[::-1][: min(n, len(order) - n)])]
    rows = [row for row in rows if len(row[1])]
    edge, gap, under, left = (
        px / PICTURE_DPI,
        0.08,
        0.22 if counts is None else 0.36,
        0.42,
    )  # inches
    fig, top = paper(
        plt, max(left + n * (edge + gap) + 0.12, 4), len(rows) * (edge + under + gap), title
    )
    for r, (name, which) in enumerate(rows):
        y = top - r * (edge + under + gap) - edge
        fig.text(
            0.28 / fig.get_figwidth(),
            (y + edge / 2) / fig.get_figheight(),
            name,
            rotation=90,
            ha="center",
            va="center",
            fontsize=9,
            color=INK,
        )
        for c, i in enumerate(which):
            ax = place(fig, left + c * (edge + gap), y, edge, edge)
            ax.imshow(
                tiling.read_tiles(slide, coords[i : i + 1], tile, px)[0], interpolation="nearest"
            )
            text = f"S = {scores[i]:.2f}".replace("-", "−") + (
                "" if counts is None else f"\n#{counts_name} = {counts[i]:g}"
            )
            ax.annotate(
                text,
                (0.5, 0),
                (0, -2),
                "axes fraction",
                "offset points",
                ha="center",
                va="top",
                fontsize=7.5,
                linespacing=1.15,
                color=INK,
            )
    save_file(path, lambda f: fig.savefig(f, format="png"))
    plt.close(fig)
