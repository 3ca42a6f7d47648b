"""The gallery: a slide's highest and lowest tiles as the slide shows them."""

import numpy as np

import tiling
from lab.show.plots import PICTURE_DPI, note, paper, place, save_picture, write

GAP, LEFT = 0.08, 0.42  # inches between tiles, and for the name of a row  [ours]
LINE, TWO_LINES = 0.22, 0.36  # inches for what is written under a tile  [ours]


def draw_gallery(
    path, slide, coords, tile, scores, title, counts=None, counts_name="", n=8, px=tiling.TILE_PX
):
    """The n highest tiles, best first, over the n lowest, worst first, each over its score, a PNG.

    slide: of OpenSlide; coords (n, 2) level-0 top-left; tile: edge in level-0 pixels; scores (n,);
    counts (n,) and their name are written too ("#T cells = 12"); px: edge of a tile in the picture.
    Equal scores keep the order of the tiles. With fewer than 2n tiles each is shown once, the
    middle one above. [HE2RNA Fig. 4d-e]
    """
    scores = np.asarray(scores, np.float64)
    assert scores.shape == (len(coords),) and len(scores) and np.isfinite(scores).all()
    rows = best_and_worst(scores, n)
    edge = px / PICTURE_DPI
    row_height = edge + GAP + (LINE if counts is None else TWO_LINES)
    columns = max(len(which) for _, which in rows)
    width = max(LEFT + columns * (edge + GAP) + 0.12, 4)
    fig, top = paper(width, len(rows) * row_height, title)
    for r, (name, which) in enumerate(rows):
        bottom = top - r * row_height - edge
        middle = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 9}
        write(fig, 0.28, bottom + edge / 2, name, **middle)
        for c, i in enumerate(which):
            axes = place(fig, LEFT + c * (edge + GAP), bottom, edge, edge)
            pixels = tiling.read_tiles(slide, coords[i : i + 1], tile, px)[0]
            axes.imshow(pixels, interpolation="nearest")
            text = f"S = {scores[i]:.2f}".replace("-", "−")
            if counts is not None:
                text += f"\n#{counts_name} = {counts[i]:g}"
            below = {"ha": "center", "va": "top", "fontsize": 7.5, "linespacing": 1.15}
            note(axes, text, (0.5, 0), (0, -2), **below)
    save_picture(path, fig)


def best_and_worst(scores, n):
    """[(name, numbers of the tiles)]: the highest, best first, and the lowest, worst first."""
    order = np.argsort(-scores, kind="stable")
    n = min(n, (len(order) + 1) // 2)
    lowest = order[::-1][: min(n, len(order) - n)]
    rows = [("highest", order[:n])]
    if len(lowest):
        rows.append(("lowest", lowest))
    return rows
