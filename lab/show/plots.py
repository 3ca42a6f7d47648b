"""Plots of numbers: their sheet, style and names, points of folds, scores against counts."""

import textwrap
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

import stats
from lab.files import InputError, one_line, save_file
from lab.provenance import said

BEST_TILES = 100  # whose median count is shown  [HE2RNA Results, virtual spatialization]
PICTURE_DPI = 300  # of all pictures: what journals print  [ours]
LONGEST_NAME = 40  # signs of a gene's or class's name in a picture  [ours]
MANY = 2000  # points, from which they are pixels in an SVG too  [ours]
FOLDS_NAMED = 10  # in a legend; what more there are is counted  [ours]
INK = "#222222"  # of text  [ours]
RULE = "#bbbbbb"  # of frames  [ours]
POINT = "#00429d"  # of single cells  [ours]
BLUE, ORANGE = "#0072B2", "#D55E00"  # any eye tells them apart: Okabe & Ito  [ours]
COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKS = "o^sDvP<>X"  # and of folds: where colours come again, marks differ  [ours]
STYLE = {
    "text.parse_math": False,  # a $ in a name begins no formula
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "lab",  # any word: the same picture is the same file
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 7.5,
    "legend.framealpha": 0.6,
    "image.cmap": "cividis",
    "hist.bins": 40,
}


def need_matplotlib():
    """matplotlib.pyplot without a window, in our style alone, imported only where one draws."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "the report's pictures need the package matplotlib: pip install matplotlib"
        ) from None
    matplotlib.rcdefaults()
    matplotlib.use("Agg")
    matplotlib.rcParams.update(STYLE)
    import matplotlib.pyplot as plt

    plt.rc("axes", prop_cycle=plt.cycler(color=COLORS))
    return plt


@contextmanager
def figure(path, *grid, title="", words=(), **options):
    """Axes to draw a plot on, saved at the end; grid and options are pyplot.subplots'.

    title: of the whole picture; words: of lab.provenance, written below all.
    """
    plt = need_matplotlib()
    fig, axes = plt.subplots(*grid, layout="constrained", **options)
    yield axes
    width = fig.get_size_inches()[0]
    if title:
        fig.suptitle(wrapped(title, width), x=0.01, ha="left", fontsize=10)
    if words:
        fig.supxlabel(drawable(said(words), 1000), x=0.01, ha="left", fontsize=8, color=ORANGE)
    save_picture(path, fig)


def save_picture(path, fig):
    """Write a figure as PNG and, beside it, as SVG, and forget it."""
    quick = {"compress_level": 3}  # half the time of the usual 6, a tenth more on disk
    kinds = {".png": {"pil_kwargs": quick}, ".svg": {"metadata": {"Date": None}}}
    for ending, more in kinds.items():
        write = partial(fig.savefig, format=ending[1:], dpi=PICTURE_DPI, **more)
        save_file(Path(path).with_suffix(ending), write)
        fig.set_layout_engine("none")  # it stands as it is
    need_matplotlib().close(fig)


# ----- Names --------------------------------------------------------------------------------------


@lru_cache
def glyphs():
    """Numbers of the characters that the font of all pictures has."""
    need_matplotlib()
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())


def drawable(name, longest=LONGEST_NAME):
    """A name as every picture can show it.

    In one line, without its middle where it is long; a character that the font lacks by its number.
    matplotlib would leave out of a legend what begins with _.
    """
    shown = [c if ord(c) in glyphs() else ascii(c)[1:-1] for c in one_line(name)]
    text = "".join(shown)
    if len(text) > longest:
        text = f"{text[: longest - 9]}…{text[-8:]}"
    return f" {text}" if text.startswith("_") else text


def wrapped(text, width, fontsize=10):
    """A text in lines for so many inches."""
    lines = []
    for line in text.split("\n"):
        most = int(width * 128 / fontsize)
        lines += textwrap.wrap(drawable(line, 1000), most, break_on_hyphens=False)
    return "\n".join(lines)


def counted(n, what):
    """'1 gene', '2,012 genes'"""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


# ----- Sheets in inches ---------------------------------------------------------------------------


def paper(width, height, title, words=()):
    """A white figure with room for width x height inches under its title.

    Returns the figure and the upper end of that room, in inches from the bottom.
    """
    title = wrapped(title, width - 0.4)
    extra = 0.2 if words else 0
    title_height = 0.1 + 0.2 * (1 + title.count("\n")) + extra
    size = (width, height + title_height)
    fig = need_matplotlib().figure(figsize=size, dpi=PICTURE_DPI, facecolor="white")
    write(fig, 0.2, size[1] - 0.1, title, fontsize=10, ha="left")
    if words:
        about = drawable(said(words), 1000)
        write(fig, 0.2, height + 0.2, about, fontsize=8, ha="left", color=ORANGE)
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
        side.set(color=RULE, linewidth=0.5, visible=True)
    return axes


def note(axes, text, at, shift, **style):
    """A small text near the axes: `at` in shares of them, moved by `shift` points."""
    style = {"fontsize": 8, "color": INK, **style}
    axes.annotate(text, at, shift, "axes fraction", "offset points", **style)


# ----- Predicted against true ---------------------------------------------------------------------


def r_said(a, b):
    """'R = 0.80' of two columns (n,); why there is none."""
    if len(a) < stats.MIN_R:
        return "no R, too few"
    r = stats.pearson(np.asarray(a, np.float64), np.asarray(b, np.float64))
    return "no R, one side does not vary" if np.isnan(r) else signed(f"R = {r:.2f}")


def signed(number):
    """A number as text, with a minus that is as wide as a plus."""
    return str(number).replace("-", "−")


def draw_folds(axes, truth, predicted, fold):
    """A point a sample, a colour and mark a fold, its R and n in the legend; truth = predicted.

    Unknown truth is nan. The line of equal values is in sight; the axes may differ in scale.
    """
    known = ~np.isnan(truth)
    folds = np.unique(fold[known])
    for i, f in enumerate(folds):
        rows = known & (fold == f)
        label = f"fold {f}: {r_said(truth[rows], predicted[rows])} (n {rows.sum()})"
        style = {"color": COLORS[i % len(COLORS)], "marker": MARKS[i % len(MARKS)]}
        drawn = axes.scatter(truth[rows], predicted[rows], s=14, linewidths=0, **style)
        if i < FOLDS_NAMED:
            drawn.set_label(label)
    if len(folds) > FOLDS_NAMED:
        axes.plot([], [], " ", label=f"and {len(folds) - FOLDS_NAMED} more folds")
    if known.any():
        middle = np.median(truth[known])
        axes.scatter([middle], [middle], s=0)
        axes.axline((middle, middle), slope=1, color=INK, lw=0.8, ls=":", label="predicted = true")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, borderaxespad=0)


# ----- Scores against counts ----------------------------------------------------------------------


def draw_scatter(path, scores, values, xlabel, ylabel, title, words=()):
    """Score of each tile against what was counted in it, and the counts of the best tiles.

    scores, values (n,) finite. The title gets Pearson's R. The best are BEST_TILES, but at most
    half of the tiles [ours: a slide may have fewer than 100]; of equal scores the first come first.
    [HE2RNA Fig. 4c]
    """
    scores = np.asarray(scores, np.float64)
    values = np.asarray(values, np.float64)
    assert scores.shape == values.shape and scores.ndim == 1 and len(scores)
    n_best = max(1, min(BEST_TILES, len(scores) // 2))
    best = np.argsort(-scores, kind="stable")[:n_best]
    found = f"{r_said(scores, values)} over {counted(len(scores), 'tile')}"
    fig, top = paper(7.2, 3.7, f"{title}: {found}", words)
    points = place(fig, 0.7, 0.55, 3.7, top - 0.65)
    boxes = place(fig, 5.2, 0.55, 1.9, top - 0.65)
    whole = bool((values == values.round()).all())
    for axes in (points, boxes):
        show_ticks(axes, whole)
        axes.set_ylabel(drawable(ylabel), fontsize=9, color=INK)
    points.set_xlabel(drawable(xlabel, 60), fontsize=9, color=INK)
    boxes.set_xlabel("box: quartiles; line: median", fontsize=8, color=INK)
    draw_points(points, scores, values, best)
    draw_boxes(boxes, values[best], values)
    save_picture(path, fig)


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
    style = {"s": size, "linewidths": 0, "rasterized": len(scores) > MANY}
    axes.scatter(scores, values, c=BLUE, alpha=alpha, label="other tiles", **style)
    highest = f"{len(best):,} of highest score"
    axes.scatter(scores[best], values[best], c=ORANGE, label=highest, **style)
    axes.legend(loc="upper left")


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
