"""Plots of numbers: their sheet, the colours of all pictures, scores against counts."""

import textwrap
from contextlib import contextmanager

import numpy as np

from lab.files import InputError, save_file

BEST_TILES = 100  # whose median count is shown  [HE2RNA Results, virtual spatialization]
PICTURE_DPI = 200  # a tile of 224 pixels is 1.12 inches  [ours]
PLOT_DPI = 130  # of plots, which have no pixels of their own  [ours]
INK = "#222222"  # of text  [ours]
RULE = "#bbbbbb"  # of frames  [ours]
POINT = "#00429d"  # of single cells  [ours]
BLUE, ORANGE = "#0072B2", "#D55E00"  # any eye tells them apart: Okabe & Ito  [ours]


def need_matplotlib():
    """matplotlib.pyplot without a window, imported only where a picture is drawn."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "the report's pictures need the package matplotlib: pip install matplotlib"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


@contextmanager
def figure(path, *grid, **options):
    """Axes to draw a plot on, saved as a PNG at the end; grid and options are pyplot.subplots'."""
    plt = need_matplotlib()
    fig, axes = plt.subplots(*grid, layout="constrained", **options)
    yield axes
    save_picture(path, fig, dpi=PLOT_DPI)


def save_picture(path, fig, **options):
    """Write a figure as a PNG and forget it. Names may have $, which begins no formula."""
    for text in fig.findobj(lambda part: "$" in getattr(part, "get_text", str)()):
        text.set_parse_math(False)
    save_file(path, lambda f: fig.savefig(f, format="png", **options))
    need_matplotlib().close(fig)


def paper(width, height, title):
    """A white figure with room for width x height inches under its title.

    Returns the figure and the upper end of that room, in inches from the bottom.
    """
    lines = textwrap.wrap(title, int(width * 11), break_on_hyphens=False) or [""]
    title_height = 0.1 + 0.2 * len(lines)
    size = (width, height + title_height)
    fig = need_matplotlib().figure(figsize=size, dpi=PICTURE_DPI, facecolor="white")
    write(fig, 0.2, size[1] - 0.1, "\n".join(lines), fontsize=10, ha="left", parse_math=False)
    return fig, height


def write(fig, left, top, text, **style):
    """Text whose upper left corner stands at a place given in inches."""
    width, height = fig.get_size_inches()
    fig.text(left / width, top / height, text, **{"va": "top", "color": INK, **style})


def place(fig, left, bottom, width, height):
    """Axes at a place given in inches, with a thin frame and no ticks."""
    across, up = fig.get_size_inches()
    where = (left / across, bottom / up, width / across, height / up)
    axes = fig.add_axes(where, xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set(color=RULE, linewidth=0.5)
    return axes


def note(axes, text, at, shift, **style):
    """A small text near the axes: `at` in shares of them, moved by `shift` points."""
    style = {"fontsize": 8, "color": INK, **style}
    axes.annotate(text, at, shift, "axes fraction", "offset points", **style)


def draw_scatter(path, scores, values, xlabel, ylabel, title):
    """Score of each tile against what was counted in it, and the counts of the best tiles, a PNG.

    scores, values (n,) finite. The title gets Pearson's R. The best are BEST_TILES, but at most
    half of the tiles [ours: a slide may have fewer than 100]; of equal scores the first come first.
    [HE2RNA Fig. 4c]
    """
    scores = np.asarray(scores, np.float64)
    values = np.asarray(values, np.float64)
    assert scores.shape == values.shape and scores.ndim == 1 and len(scores)
    n_best = max(1, min(BEST_TILES, len(scores) // 2))
    best = np.argsort(-scores, kind="stable")[:n_best]
    fig, top = paper(7.2, 3.7, f"{title}: {correlation_text(scores, values)}")
    points = place(fig, 0.7, 0.55, 3.7, top - 0.65)
    boxes = place(fig, 5.2, 0.55, 1.9, top - 0.65)
    whole = bool((values == values.round()).all())
    for axes in (points, boxes):
        show_ticks(axes, whole)
        axes.set_ylabel(ylabel, fontsize=9, color=INK)
    points.set_xlabel(xlabel, fontsize=9, color=INK)
    draw_points(points, scores, values, best)
    draw_boxes(boxes, values[best], values)
    save_picture(path, fig)


def correlation_text(scores, values):
    if len(scores) < 2 or not np.ptp(scores) or not np.ptp(values):
        return "no R, one side does not vary"
    return f"R = {np.corrcoef(scores, values)[0, 1]:.2f}"


def show_ticks(axes, whole):
    """Ticks on the left and below; whole: the numbers of y are counts."""
    plt = need_matplotlib()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, length=2.5, color=RULE, labelcolor=INK)
    axes.xaxis.set_major_locator(plt.AutoLocator())
    axes.yaxis.set_major_locator(plt.MaxNLocator(6, steps=(1, 2, 5, 10), integer=whole))


def draw_points(axes, scores, values, best):
    """A dot for each tile, the best ones in orange; many dots are small and sheer."""
    size = np.clip(2e4 / len(scores), 3, 16)
    alpha = float(np.clip(2e3 / len(scores), 0.15, 0.7))
    axes.scatter(scores, values, s=size, c=BLUE, alpha=alpha, linewidths=0)
    axes.scatter(scores[best], values[best], s=size, c=ORANGE, linewidths=0)


def draw_boxes(axes, best, everyone):
    """Quartiles of the best tiles' counts beside those of all, whiskers from 5 to 95 %."""
    thin = {"color": INK, "lw": 0.7}
    drawn = axes.boxplot(
        [best, everyone],
        widths=0.5,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        medianprops={"color": INK, "lw": 1.5},
        whiskerprops=thin,
        capprops=thin,
    )
    for box, color in zip(drawn["boxes"], (ORANGE, BLUE), strict=True):
        box.set(facecolor=color, alpha=0.6, edgecolor=INK, linewidth=0.7)
    for position, values in ((1.29, best), (2.29, everyone)):
        median = np.median(values)
        axes.annotate(f"{median:.4g}", (position, median), va="center", fontsize=8, color=INK)
    axes.set(xlim=(0.5, 2.75))
    name = f"{len(best):,} best" if len(best) > 1 else "the best"
    axes.set_xticks([1, 2], [name, f"all {len(everyone):,}"])
