"""pretrain.png: the course of a pretraining, and whether slides stand apart in its features."""

import numpy as np

from lab.histcode.watching import COLLAPSED, chance_between
from lab.show.plots import COLORS, INK, MARKS, RULE, drawable, figure

METHODS = {"adco": "AdCo", "simclr": "SimCLR"}
NAME = 24  # signs of a slide's name in the legend [ours]
ALL = -0.03, 1.03  # range of what lies from 0 to 1


def draw(folder, log, watch, reader, o):
    """Draw a run so far: log, its epochs' lines; watch, what was seen after the last one."""
    title = f"Pretraining {o.name}: {METHODS[o.method]}, epoch {len(log)} of {o.epochs}"
    path = folder / "pretrain.png"
    with figure(path, 2, 3, title=title, words=o.words, figsize=(12, 6.6)) as axes:
        (loss, near, spread), (rate, between, places) = axes
        draw_lines(loss, log, {"loss": "loss"})
        draw_lines(near, log, {"positive": "its other view", "hardest": "its nearest negative"})
        near.set_ylabel("mean cosine of a tile's embedding to")
        names = {
            "spread": "spread of the embeddings",
            "bank_spread": "spread of the bank",
            "near": "share of negatives near any tile",
        }
        draw_lines(spread, log, names)
        draw_level(spread, COLLAPSED, f"collapse: spread below {COLLAPSED}")
        spread.set(ylim=ALL, ylabel="0: all are one, 1: all over the sphere")
        draw_lines(rate, log, {"lr": "learning rate"})
        rate.set_ylim(0, 1.1 * max(entry["lr"] for entry in log))
        draw_lines(between, log, {"between_slides": "share of variance between slides (η²)"})
        chance = chance_between(watch.slides)
        draw_level(between, chance, f"by chance, of {len(watch.slides)} tiles: {chance:.2f}")
        between.set_ylim(ALL)
        for ax in (loss, near, spread, rate, between):
            finish(ax, f"epoch ({len(reader.sizes):,} steps each)")
        draw_slides(places, watch, log[-1]["between_slides"])


def draw_lines(ax, log, names):
    """Of each name that the log has a line over its epochs; a sole one has its name at the axis."""
    epochs = [entry["epoch"] for entry in log]
    for color, (name, label) in zip(COLORS, names.items(), strict=False):
        values = [np.nan if entry.get(name) is None else entry[name] for entry in log]
        if np.isfinite(values).any():
            (line,) = ax.plot(epochs, values, marker=".", lw=1.2, color=color)
            line.set_label(label if len(names) > 1 else None)
    if len(names) == 1:
        ax.set_ylabel(label)


def draw_level(ax, y, label):
    ax.axhline(y, color=INK, lw=0.8, ls=":", label=label)


def finish(ax, xlabel):
    """Whole epochs, a grid, and a legend of the lines that have names."""
    ax.set_xlabel(xlabel)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(color=RULE, lw=0.4)
    if ax.get_legend_handles_labels()[0]:
        ax.legend()


def components(x):
    """(n, 2) places on the first two principal components, and the variance's share of each.

    The sign of each is that of its largest weight.
    """
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)
    u, size, weights = np.linalg.svd(x, full_matrices=False)
    sign = np.sign(weights[np.arange(len(weights)), np.abs(weights).argmax(1)])
    places = u * size * sign
    return places[:, :2], size[:2] ** 2 / (size**2).sum()


def draw_slides(ax, watch, between):
    """Frozen features of some tiles of some slides on their first two components."""
    if between is None or min(watch.features.shape) < 2:
        ax.text(0.5, 0.5, "all features are equal", ha="center", transform=ax.transAxes)
        ax.set_axis_off()
        return
    places, shares = components(watch.features)
    names = list(dict.fromkeys(watch.slides))
    for i, name in enumerate(names):
        own = places[watch.slides == name]
        style = {"color": COLORS[i % len(COLORS)], "marker": MARKS[i % len(MARKS)]}
        ax.scatter(*own.T, s=14, alpha=0.7, lw=0, label=drawable(name, NAME), **style)
    ax.legend(title="slide", loc="center left", bbox_to_anchor=(1, 0.5))
    ax.set_xlabel(f"component 1: {shares[0]:.0%} of the variance")
    ax.set_ylabel(f"component 2: {shares[1]:.0%}")
    ax.set_title(
        f"frozen features of {len(places)} tiles:\n{between:.0%} of the variance between slides"
    )
