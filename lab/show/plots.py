"""lab.show.plots"""

import textwrap
from contextlib import contextmanager

import numpy as np

from lab.files import InputError, save_file

BEST_TILES = 100  # the highest tiles whose median count is shown        [HE2RNA Results, virtual spatialization]


PICTURE_DPI = (
    200  # a tile of 224 pixels is 1.12 inches                                        [ours]
)


INK, RULE, POINT = (
    "#222222",
    "#bbbbbb",
    "#00429d",
)  # of text, of frames, of single cells                [ours]


BLUE, ORANGE = (
    "#0072B2",
    "#D55E00",
)  # told apart by any eye: Okabe & Ito                                [ours]


# Pictures: scores on the slide, the best and worst tiles, scores against counts  [HE2RNA Fig. 4]
def need_matplotlib():
    try:
        import matplotlib

        matplotlib.use("Agg")  # no window: clusters have none
        import matplotlib.pyplot as plt

        return plt
    except ImportError:
        raise InputError(
            "the report's pictures need the package matplotlib: pip install matplotlib"
        ) from None


@contextmanager
def figure(path, *grid, **options):
    """Axes to draw a plot on, saved as a png at the end; grid and options are those of pyplot's subplots."""
    plt = need_matplotlib()
    fig, axes = plt.subplots(*grid, layout="constrained", **options)
    yield axes
    save_file(path, lambda f: fig.savefig(f, dpi=130, format="png"))
    plt.close(fig)


def paper(plt, width, height, title):
    """A white figure: room of width x height inches under its title. Returns it and the upper end of the room, inches."""
    lines = textwrap.wrap(title, int(width * 11), break_on_hyphens=False) or [""]
    height += 0.1 + 0.2 * len(lines)
    fig = plt.figure(figsize=(width, height), dpi=PICTURE_DPI, facecolor="white")
    fig.text(
        0.2 / width,
        1 - 0.1 / height,
        "\n".join(lines),
        ha="left",
        va="top",
        fontsize=10,
        color=INK,
        parse_math=False,
    )
    return fig, height - 0.1 - 0.2 * len(lines)


def place(fig, left, bottom, width, height):
    """Axes at a place given in inches, with a thin frame and no ticks."""
    W, H = fig.get_size_inches()
    ax = fig.add_axes((left / W, bottom / H, width / W, height / H), xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set(color=RULE, linewidth=0.5)
    return ax


def draw_scatter(path, scores, values, xlabel, ylabel, title):
    """Score of each tile against what was counted in it, with R; and the counts of the best tiles against all, a PNG.

    scores, values (n,) finite. Best: BEST_TILES, at most half of the tiles [ours: a slide may have fewer than 100]; of
    equal scores the first. Boxes: quartiles, whiskers from 5 to 95 %, the median written. [HE2RNA Fig. 4c]
    """
    plt = need_matplotlib()
    scores, values = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    assert scores.shape == values.shape and scores.ndim == 1 and len(scores), (
        scores.shape,
        values.shape,
    )
    with np.errstate(all="ignore"):
        r = (
            np.corrcoef(scores, values)[0, 1]
            if len(scores) > 1 and np.ptp(scores) and np.ptp(values)
            else np.nan
        )
    best = np.argsort(-scores, kind="stable")[: max(1, min(BEST_TILES, len(scores) // 2))]
    fig, top = paper(
        plt,
        7.2,
        3.7,
        f"{title}: " + (f"R = {r:.2f}" if np.isfinite(r) else "no R, one side does not vary"),
    )
    ax, boxes = place(fig, 0.7, 0.55, 3.7, top - 0.65), place(fig, 5.2, 0.55, 1.9, top - 0.65)
    for a in (ax, boxes):
        a.spines[["top", "right"]].set_visible(False)
        a.tick_params(labelsize=8, length=2.5, color=RULE, labelcolor=INK)
        a.xaxis.set_major_locator(plt.AutoLocator())
        a.yaxis.set_major_locator(
            plt.MaxNLocator(6, steps=(1, 2, 5, 10), integer=bool((values == values.round()).all()))
        )
    dot, alpha = (
        np.clip(2e4 / len(scores), 3, 16),
        float(np.clip(2e3 / len(scores), 0.15, 0.7)),
    )  # many: small and sheer
    ax.scatter(scores, values, s=dot, c=BLUE, alpha=alpha, linewidths=0)
    ax.scatter(scores[best], values[best], s=dot, c=ORANGE, linewidths=0)
    ax.set_xlabel(xlabel, fontsize=9, color=INK)
    ax.set_ylabel(ylabel, fontsize=9, color=INK)
    thin = dict(color=INK, lw=0.7)
    drawn = boxes.boxplot(
        [values[best], values],
        widths=0.5,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        medianprops=dict(color=INK, lw=1.5),
        whiskerprops=thin,
        capprops=thin,
    )
    for i, (box, color, of) in enumerate(
        zip(drawn["boxes"], (ORANGE, BLUE), (values[best], values))
    ):
        box.set(facecolor=color, alpha=0.6, edgecolor=INK, linewidth=0.7)
        boxes.annotate(
            f"{np.median(of):.4g}", (i + 1.29, np.median(of)), va="center", fontsize=8, color=INK
        )
    boxes.set(xlim=(0.5, 2.75))
    boxes.set_xticks(
        [1, 2], [f"{len(best):,} best" if len(best) > 1 else "the best", f"all {len(values):,}"]
    )
    boxes.set_ylabel(ylabel, fontsize=9, color=INK)
    save_file(path, lambda f: fig.savefig(f, format="png"))
    plt.close(fig)
