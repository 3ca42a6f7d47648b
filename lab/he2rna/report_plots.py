"""The pictures of a run's report: R by cancer, and the best genes.

`results` is what evaluate gives: {cancer: a dict of r (G,), hs (G,), n, fits ...}.
"""

import numpy as np

import he2rna
import stats
from lab.show.plots import BLUE, ORANGE, figure


def with_value(r):
    return r[~np.isnan(r)]


def draw_r(path, results, merged):
    """R of all genes by cancer, and how many are significant in several. [HE2RNA Fig. 2a-b]"""
    _, at_least = stats.recurrent(he2rna.significant_genes(results, merged=merged))
    size = (max(8, 4 + 0.8 * len(results)), 4)
    shares = (max(2, 0.4 * len(results)), 1)
    with figure(path, 1, 2, figsize=size, width_ratios=shares) as (left, right):
        draw_cancers(left, results)
        cancers = range(1, len(at_least) + 1)
        right.bar(cancers, np.maximum(at_least, 0.5), color=BLUE)
        right.set(xlabel="in at least so many cancers", ylabel="significant genes")
        right.set(yscale="log", ylim=(0.5, None), xticks=cancers)


def draw_cancers(ax, results):
    """A violin for each cancer, its number of significant genes, and the R that they need."""
    null = next(iter(results.values()))["null"]
    needed = [e["r_sign"][null] for e in results.values()]
    places = range(len(results))
    ax.plot(places, needed, "k^", ms=6, label=f"R for significance (Holm–Šidák, {null} null)")
    for place, e in zip(places, results.values()):
        r = with_value(e["r"])
        if len(r) > 1 and np.ptp(r) > 0:
            drawn = ax.violinplot(r, [place], widths=0.8, showextrema=False, showmedians=True)
            drawn["cmedians"].set_color(BLUE)
            drawn["bodies"][0].set_facecolor(BLUE)
        found = f"{(e['hs'] < he2rna.ALPHA).sum():,}"
        ax.annotate(found, (place, 1.02), ha="center", color=ORANGE, annotation_clip=False)
    ax.axhline(0, color="grey", lw=0.5)
    names = [f"{name}\nn = {e['patients']}" for name, e in results.items()]
    ax.set_xticks(places, names, fontsize=8)
    ax.set(ylabel="R over slides, mean of the folds", ylim=(-1, 1.12))
    ax.set_title("Prediction of each gene; number: significant genes", fontsize=10)
    ax.legend(loc="lower right", fontsize=8)


def draw_null(path, results, drawn):
    """R of the genes beside that of decoys or of untrained models. [HE2RNA Methods, Statistics]

    drawn: {null: {cancer: (..., G)}, or None}, of which the one that decides is drawn, else the
    first. The lines are the law fitted to it, and the R that significance needs under it.
    """
    drawn = {null: r for null, r in drawn.items() if r is not None}
    decides = next(iter(results.values()))["null"]
    shown = decides if decides in drawn else next(iter(drawn))
    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    size = (3.2 * columns, 2.8 * rows)
    grid = np.linspace(-1, 1, 801)
    middle = (grid[1:] + grid[:-1]) / 2
    with figure(path, rows, columns, figsize=size, squeeze=False) as axes:
        for ax in axes.flat[len(results) :]:
            ax.axis("off")
        for ax, (name, e) in zip(axes.flat, results.items()):
            ax.set_title(f"{name}: {e['patients']} patients", fontsize=9)
            null, r = with_value(drawn[shown][name]), with_value(e["r"])
            if len(null) == 0 or len(r) == 0:  # too few slides for any R
                continue
            ax.hist(null, 60, density=True, color=BLUE, alpha=0.5, label=shown)
            ax.hist(r, 60, density=True, color=ORANGE, histtype="step", label="run")
            tail = stats.null_p(grid, *e["fits"][shown])
            ax.plot(middle, -np.diff(tail) / np.diff(grid), "k-", lw=1, label="fitted law")
            needed = e["r_sign"][shown]
            ax.axvline(needed, color="k", ls=":", label=f"R_sign {needed:.2f}")
            ax.set(xlabel="R", ylabel="density of genes", xlim=(-1, 1))
            ax.legend(fontsize=6)


def draw_scatter(path, best, data, prediction, unit):
    """Predicted against true expression of six genes; a colour is a fold, unseen by its model.

    best: (cancer, number of the gene, R) of each.
    """
    groups = he2rna.cancers(data.projects)
    with figure(path, 2, 3, figsize=(9, 6)) as axes:
        for ax, (name, gene, r) in zip(axes.flat, best):
            rows = groups[name]
            ax.scatter(data.y[rows, gene], prediction[rows, gene], c=data.fold[rows], s=14)
            ax.set_title(f"{data.genes[gene]} in {name}: R = {r:.2f}", fontsize=9)
            ax.set(xlabel=f"true log10(1 + {unit})", ylabel="predicted")
        for ax in axes.flat[len(best) :]:
            ax.axis("off")
