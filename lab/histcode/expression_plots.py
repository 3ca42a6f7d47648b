"""Pictures of a run of `expression`: Figs. 4, 5, 7 and 8 of the paper."""

import numpy as np

from histcode import LOG2_FC
from lab.show.plots import BLUE, ORANGE, figure

# Those of HistCode Fig. 8
SHOWN = ["PIK3CA", "MYC", "PTEN", "GATA3", "CD3D", "CD3E", "CD3G", "CD247", "CD19"]


def draw(folder, title, pairs, found, prediction):
    """All of them; found: figures of each gene, prediction (P, G)."""
    r, baseline = known(found["r"]), known(found["baseline"])
    ends = np.concatenate([(-0.5, 0.5), r, baseline])
    with figure(folder / "r.png", figsize=(7, 4)) as ax:  # [HistCode Fig. 4]
        draw_two(ax, r, baseline, np.linspace(ends.min(), ends.max(), 41), "random")
        ax.set(xlabel="Pearson R with the true log₁₀(fc + 1)", ylabel="genes", title=title)
    with figure(folder / "accuracy.png", figsize=(7, 4)) as ax:  # [HistCode Fig. 5]
        accuracy, majority = known(found["accuracy"]), known(found["majority"])
        draw_two(ax, accuracy, majority, np.linspace(0, 1, 21), "always the commoner label")
        ax.set(xlabel=f"accuracy of |log₂ fc| > {LOG2_FC}", ylabel="genes", title=title)
    with figure(folder / "fold_change.png", figsize=(7, 4)) as ax:
        draw_bins(ax, found["r"], found["fc"])
        ax.set_title(title)
    with figure(folder / "scatter.png", 3, 3, figsize=(9, 9)) as axes:
        draw_genes(axes.flat, pairs.genes, pairs.y, prediction, found["r"])


def known(values):
    return values[~np.isnan(values)]


def draw_two(ax, predicted, other, bins, name):
    """Histograms over the genes: predicted, and what that is compared with."""
    ax.hist([predicted, other], bins, label=["predicted", name], color=[BLUE, ORANGE])
    ax.legend(fontsize=8)


def draw_bins(ax, r, fc):
    """Box plots of the genes' mean fold change in bins of R, .1 wide. [HistCode Fig. 7]"""
    tenth = np.floor(10 * np.where(np.isnan(fc), np.nan, r))  # (G,)
    bins = np.unique(known(tenth))
    if len(bins):
        changes = [fc[tenth == b] for b in bins]
        ax.boxplot(changes, positions=bins / 10 + 0.05, widths=0.07, manage_ticks=False)
    ax.set(xlabel="Pearson R, bins of .1", ylabel="mean fold change of the gene")


def draw_genes(axes, genes, y, prediction, r):
    """Some genes, predicted against true: those of Fig. 8 that are there, then the best."""
    best = np.argsort(np.where(np.isnan(r), np.inf, -r), kind="stable")
    named = [genes.index(gene) for gene in SHOWN if gene in genes]
    order = named + [j for j in best if j not in named]
    for ax, j in zip(axes, order, strict=False):
        ax.scatter(y[:, j], prediction[:, j], s=10, color=BLUE)
        ax.set_title(f"{genes[j]}: R = {r[j]:.2f}", fontsize=9)
        ax.set(xlabel="true log₁₀(fc + 1)", ylabel="predicted")
    for ax in axes[len(order) :]:
        ax.axis("off")
