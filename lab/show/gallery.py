"""The gallery: a slide's highest and lowest tiles as the slide shows them."""

import numpy as np

import tiling
from lab.show.plots import (
    INK,
    PICTURE_DPI,
    counted,
    drawable,
    note,
    paper,
    place,
    save_picture,
    signed,
    wrapped,
    write,
)
from lab.space import scale_bar_um

EDGE = 1.12  # inches of a tile  [ours]
GAP, LEFT = 0.1, 0.42  # inches between tiles, and for the name of a row  [ours]
LINE, BELOW = 0.13, 0.3  # inches for a line under a tile, and for the scale bar  [ours]
CLASSES = 4  # of cells, counted under each tile; those of the others are one number  [ours]
DIGITS = 7  # after the point, at most: float32 has no more  [ours]


def draw_gallery(path, slide, coords, tile, scores, title, unit, mpp, cells=(), n=8, words=()):
    """The n highest tiles, best first, over the n lowest, worst first, each over its score.

    slide: of OpenSlide; coords (n, 2) level-0 top-left; tile: edge in level-0 pixels; scores (n,)
    and their unit; mpp: µm per level-0 pixel; cells {class: (n,)}: counts, written too, those of
    the first class first. words: of lab.provenance. Equal scores keep the order of the tiles. With
    fewer than 2n tiles each is shown once, the middle one above. [HE2RNA Fig. 4d-e]
    """
    scores = np.asarray(scores, np.float64)
    assert scores.shape == (len(coords),) and len(scores) and np.isfinite(scores).all()
    rows = best_and_worst(scores, n)
    counts = classes_shown(dict(cells))
    digits = digits_that_differ(scores[np.concatenate([which for _, which in rows])])
    row_height = EDGE + GAP + LINE * (1.3 + len(counts))
    columns = max(len(which) for _, which in rows)
    width = max(LEFT + columns * (EDGE + GAP) + 0.12, 5)
    legend = f"S: {unit}; {counted(len(scores), 'tile')} of {tile * mpp:.0f} µm"
    if counts:
        legend += "; below S: cells in the tile"
    legend = wrapped(legend, width - LEFT, 8)
    lines = 1 + legend.count("\n")
    fig, top = paper(width, len(rows) * row_height + BELOW + LINE * lines, title, words)
    for r, (name, which) in enumerate(rows):
        bottom = top - r * row_height - EDGE
        middle = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 9}
        write(fig, 0.28, bottom + EDGE / 2, name, **middle)
        for c, i in enumerate(which):
            axes = place(fig, LEFT + c * (EDGE + GAP), bottom, EDGE, EDGE)
            pixels = tiling.read_tiles(slide, coords[i : i + 1], tile, round(EDGE * PICTURE_DPI))
            axes.imshow(pixels[0], interpolation="nearest")
            said = [signed(f"S = {scores[i]:.{digits}f}")]
            said += [f"{kind}: {each[i]:g}" for kind, each in counts.items()]
            below = {"ha": "center", "va": "top", "fontsize": 7.5, "linespacing": 1.15}
            note(axes, "\n".join(said), (0.5, 0), (0, -2), **below)
    write(fig, LEFT, 0.06 + LINE * lines, legend, fontsize=8)
    draw_length(fig, tile, mpp, 0.14 + LINE * lines)
    save_picture(path, fig)


def draw_sheet(path, columns, slides, um, title, words=()):
    """Tiles and their views, a row a slide; columns {name: (n, 3, px, px) in 0..1}, slides (n,).

    um: edge of a tile. The scale is that of the first column; the others are cut out of it.
    """
    width = 2 * LEFT + len(columns) * (EDGE + GAP)
    height = len(slides) * (EDGE + GAP)
    fig, top = paper(max(width, 5), 0.2 + height + BELOW, title, words)
    middle = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 7.5}
    for c, (name, pictures) in enumerate(columns.items()):
        left = LEFT + c * (EDGE + GAP)
        write(fig, left, top, name, fontsize=8)
        for r, picture in enumerate(np.asarray(pictures)):
            bottom = top - 0.2 - r * (EDGE + GAP) - EDGE
            axes = place(fig, left, bottom, EDGE, EDGE)
            axes.imshow(picture.transpose(1, 2, 0).clip(0, 1), interpolation="nearest")
            if c == 0:
                write(fig, 0.28, bottom + EDGE / 2, drawable(slides[r], 16), **middle)
    draw_length(fig, um, 1, 0.12)
    save_picture(path, fig)


def draw_length(fig, tile, mpp, bottom):
    """A bar of a round length, as it is in the tiles."""
    um = scale_bar_um(tile * mpp)
    inches = um / mpp / tile * EDGE
    bar = place(fig, LEFT, bottom, inches, 0.03)
    bar.set(facecolor=INK)
    write(fig, LEFT + inches + 0.06, bottom + 0.08, f"{um:g} µm", fontsize=8)


def best_and_worst(scores, n):
    """[(name, numbers of the tiles)]: the highest, best first, and the lowest, worst first."""
    order = np.argsort(-scores, kind="stable")
    n = min(n, (len(order) + 1) // 2)
    lowest = order[::-1][: min(n, len(order) - n)]
    rows = [("highest", order[:n])]
    if len(lowest):
        rows.append(("lowest", lowest))
    return rows


def digits_that_differ(values):
    """How many digits after the point tell values apart that are not the same, 2 to DIGITS."""
    different = len(np.unique(np.float32(values)))
    for digits in range(2, DIGITS):
        if len(np.unique(np.round(values, digits))) == different:
            return digits
    return DIGITS


def classes_shown(cells):
    """{name: counts (n,)} of the first class, of the largest others, and of the rest together."""
    first = list(cells)[:1]
    rest = sorted(list(cells)[1:], key=lambda kind: -cells[kind].sum())
    shown = {drawable(kind, 18): cells[kind] for kind in first + rest[: CLASSES - 1]}
    if rest[CLASSES - 1 :]:
        shown["others"] = sum(cells[kind] for kind in rest[CLASSES - 1 :])
    return shown
