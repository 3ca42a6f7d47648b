"""The pictures of a run's report: R by cancer, its null, and the best genes.

`results` is what evaluate gives: {cancer: a dict of r (G,), hs (G,), n, fits ...}; words: of
lab.provenance.
"""

import numpy as np

import he2rna
import stats
from lab.he2rna.best import holds
from lab.show.plots import (
    BLUE,
    INK,
    ORANGE,
    RULE,
    counted,
    draw_folds,
    drawable,
    figure,
    need_matplotlib,
    signed,
)

VIOLIN = 30  # genes, from which their density says more than dots do  [ours]
NULLS = {
    "decoys": "decoys: genes whose patients changed places",
    "untrained": "untrained models of the same architecture",
}


def with_value(r):
    return r[~np.isnan(r)]


def how_r_is_taken(e):
    """What R of a gene is here, in words."""
    if len(e["folds"]) == 1:
        return "R of a gene over all test slides"
    return "R of a gene over a fold's test slides,\nmean of the folds"


def needed_r(e, null):
    """R_sign of a null; nan where no gene has a p."""
    return np.nan if np.isnan(e["all_p"][null]).all() else e["r_sign"][null]


# ----- R of each cancer ---------------------------------------------------------------------------


def draw_r(path, results, merged, words=()):
    """R of all genes by cancer, and how many are significant in several. [HE2RNA Fig. 2a-b]"""
    _, at_least = stats.recurrent(he2rna.significant_genes(results, merged=merged))
    null = next(iter(results.values()))["null"]
    title = f"R of predicted and true expression of each gene; significant under the {null} null"
    size = (max(9, 5 + 0.9 * len(results)), 4.6)
    shares = (max(2, 0.4 * len(results)), max(1, 0.12 * len(at_least)))
    sheet = {"figsize": size, "width_ratios": shares, "title": title, "words": words}
    with figure(path, 1, 2, **sheet) as (left, right):
        draw_cancers(left, results)
        draw_recurrent(right, at_least)


def draw_cancers(ax, results):
    """A violin for each cancer, its number of significant genes, and the R that they need."""
    low = min((with_value(e["r"]).min(initial=0) for e in results.values()), default=0)
    for place, e in enumerate(results.values()):
        r = with_value(e["r"])
        draw_genes(ax, place, r)
        needed = [needed_r(e, e["null"])] * 2
        label = "R_sign: what the best gene needs to be significant" if place == 0 else None
        ax.plot([place - 0.42, place + 0.42], needed, color=ORANGE, lw=1.5, label=label)
        found = "no p" if np.isnan(e["p"]).all() else f"{(e['hs'] < he2rna.ALPHA).sum():,}"
        ax.text(place, 1.04, found, ha="center", color=ORANGE)
    ax.axhline(0, color=RULE, lw=0.8, zorder=0)
    names = []
    for name, e in results.items():
        n = f"{counted(e['patients'], 'patient')}\n{counted(e['slides'], 'slide')}"
        names.append(f"{drawable(name, 16)}\n{n}\n{counted(len(with_value(e['r'])), 'gene')}")
    ax.set_xticks(range(len(results)), names, fontsize=8)
    said = f"orange numbers: genes significant by Holm–Šidák, p < {he2rna.ALPHA}"
    ax.set_title(said, fontsize=9, color=ORANGE, loc="left")
    ax.set(ylabel=how_r_is_taken(e), xlim=(-0.6, len(results) - 0.4), ylim=(low - 0.1, 1.15))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)


def draw_genes(ax, place, r):
    """The density of many genes' R and its median; of few genes a dot each."""
    named = place == 0
    if len(r) < VIOLIN or not np.ptp(r):
        across = place + np.linspace(-0.2, 0.2, len(r) + 2)[1:-1]
        label = "a dot: a gene" if named else None
        ax.scatter(across, np.sort(r), s=8, color=BLUE, label=label)
        return
    drawn = ax.violinplot(r, [place], widths=0.8, showextrema=False, showmedians=True)
    drawn["cmedians"].set(color=BLUE, label="line: median" if named else None)
    drawn["bodies"][0].set(facecolor=BLUE, alpha=0.35, label="genes" if named else None)


def draw_recurrent(ax, at_least):
    """How many genes are significant in at least 1, 2, ... cancers, an axis from 0."""
    places = range(1, len(at_least) + 1)
    bars = ax.bar(places, at_least, color=BLUE)
    turned = 90 if len(at_least) > 8 else 0
    ax.bar_label(bars, [f"{n:,}" for n in at_least], fontsize=8, rotation=turned, padding=2)
    ax.yaxis.set_major_locator(need_matplotlib().MaxNLocator(integer=True))
    ax.set_xticks(places)
    top = max(1, 1.15 * max(at_least, default=1))
    ax.set(xlim=(0.4, len(at_least) + 0.6), ylim=(0, top))
    ax.set(xlabel="cancers, at least", ylabel="genes significant by Holm–Šidák")


# ----- The null -----------------------------------------------------------------------------------


def draw_null(path, results, drawn, words=()):
    """R of the genes beside that of decoys or of untrained models. [HE2RNA Methods, Statistics]

    drawn: {null: {cancer: (..., G)}, or None}, of which the one that decides is drawn, else the
    first. The lines are the law fitted to it, and the R that significance needs under it.
    """
    drawn = {null: r for null, r in drawn.items() if r is not None}
    decides = next(iter(results.values()))["null"]
    shown = decides if decides in drawn else next(iter(drawn))
    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    title = f"R of the run's genes against {NULLS[shown]}"
    if shown != decides:
        title += f" (here the {decides} null decides)"
    sheet = {"figsize": (3.3 * columns + 2.4, 3 * rows + 0.6), "title": title, "words": words}
    with figure(path, rows, columns, squeeze=False, **sheet) as axes:
        for ax in axes.flat[len(results) :]:
            ax.axis("off")
        for ax, (name, e) in zip(axes.flat, results.items()):
            draw_one_null(ax, name, e, shown, with_value(drawn[shown][name]))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        if handles:
            axes[0, 0].figure.legend(handles, labels, loc="outside right center")


def draw_one_null(ax, name, e, shown, null):
    """One cancer's; nothing where there are too few slides for any R."""
    r = with_value(e["r"])
    ax.set_title(f"{drawable(name, 24)}: {counted(e['patients'], 'patient')}")
    ax.set(xlabel=how_r_is_taken(e), ylabel="density, share per unit of R")
    ax.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1))
    if len(null) == 0 or len(r) == 0:
        ax.text(0, 0.5, "no R", ha="center")
        return
    bins, grid = np.linspace(-1, 1, 41), np.linspace(-1, 1, 801)
    ax.hist(null, bins, density=True, color=BLUE, alpha=0.4, label=f"R of {shown}")
    ax.hist(r, bins, density=True, color=ORANGE, histtype="step", lw=1.3, label="R of the genes")
    tail = stats.null_p(grid, *e["fits"][shown])
    law = -np.diff(tail) / np.diff(grid)
    ax.plot((grid[1:] + grid[:-1]) / 2, law, color=INK, lw=1, label=f"law fitted to {shown}")
    top = ax.get_ylim()[1]
    style = {"fontsize": 7.5, "va": "top", "color": INK}
    needed = needed_r(e, shown)
    ax.axvline(needed, color=INK, ls=":", label="R_sign: what the best\ngene needs, Holm–Šidák")
    if np.isnan(needed):
        needed, said = 0.45, "no p: too few\npatients in a fold"
    else:
        said = f" R_sign\n {needed:.2f}"
    ax.text(needed, top, said, **style)
    n = f"{counted(len(r), 'gene')},\n{len(null):,} R of {shown}"
    ax.text(-0.98, top, f"{n},\nlaw of n = {e['fits'][shown][1]:.0f}", **style)


# ----- The best genes -----------------------------------------------------------------------------


def draw_scatter(path, best, data, prediction, results, unit, words=()):
    """Predicted against true expression of six genes; each fold by a model that did not see it.

    best: (cancer, number of the gene) of each.
    """
    groups = he2rna.cancers(data.projects)
    title = (
        "Predicted against true expression, each slide by the model of its fold, which has not "
        "seen its patient. R: mean of the folds; pooled: over all slides at once."
    )
    columns = min(3, max(1, len(best)))
    rows = max(1, -(-len(best) // columns))
    sheet = {"figsize": (4.6 * columns, 3.4 * rows + 0.6), "title": title, "words": words}
    with figure(path, rows, columns, squeeze=False, **sheet) as axes:
        for ax, (name, gene) in zip(axes.flat, best):
            e, at = results[name], groups[name]
            draw_folds(ax, data.y[at, gene], prediction[at, gene], data.fold[at])
            r, pooled = e["r"][gene], e["pooled"][gene]
            found = signed(f"R = {r:.2f}, pooled R = {pooled:.2f}")
            if not holds(e)[gene]:
                found += ": does not hold"
            n = f"{counted(e['patients'], 'patient')}, {counted(e['slides'], 'slide')}"
            name = f"{drawable(data.genes[gene])} in {drawable(name)}"
            ax.set_title(f"{name}\n{found}\n{n}", loc="left")
            ax.set(xlabel=f"true, log₁₀(1 + {unit})", ylabel=f"predicted, log₁₀(1 + {unit})")
        for ax in axes.flat[len(best) :]:
            ax.axis("off")
