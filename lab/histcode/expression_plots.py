"""Pictures of a run of `expression`: Figs. 4, 5, 7 and 8 of the paper.

found: figures of each gene, as lab.histcode.expression.judge gives them.
"""

import numpy as np

from histcode import LOG2_FC
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

# Those of HistCode Fig. 8
SHOWN = ["PIK3CA", "MYC", "PTEN", "GATA3", "CD3D", "CD3E", "CD3G", "CD247", "CD19"]
BINS = 41  # edges of the bins of R, 40 from the least to the most  [ours]


def draw(folder, model, study, found, prediction, words=()):
    """All of them; model: in words, prediction (P, G), words: of lab.provenance."""
    pairs = study.pairs
    n = f"{counted(len(pairs.y), 'pair')}, {counted(len(pairs.genes), 'gene')}"
    title = f"Fold change of tumour against matched normal tissue, {model}: {n}"
    one = {"figsize": (7, 4.6), "title": title, "words": words}
    r, baseline = known(found["r"]), known(found["baseline"])
    ends = np.concatenate([(-0.5, 0.5), r, baseline])
    with figure(folder / "r.png", **one) as ax:  # [HistCode Fig. 4]
        random = "random predictions, between the 5 % and 95 % of the truth"
        draw_two(ax, r, baseline, np.linspace(ends.min(), ends.max(), BINS), random)
        ax.set(xlabel="Pearson R with the true log₁₀(fc + 1), over all pairs", ylabel="genes")
    with figure(folder / "accuracy.png", **one) as ax:  # [HistCode Fig. 5]
        accuracy, majority = known(found["accuracy"]), known(found["majority"])
        common = "always the commoner label"
        draw_two(ax, accuracy, majority, np.linspace(0, 1, 21), common)
        ax.set(xlabel=f"accuracy of the label |log₂ fc| > {LOG2_FC}", ylabel="genes")
    with figure(folder / "fold_change.png", **one) as ax:
        draw_bins(ax, found["r"], found["fc"])
    order = genes_shown(pairs.genes, found["r"])
    rows = max(1, -(-len(order) // 3))
    title = f"{title}. R: over all pairs; in parts: mean of the test parts' R"
    sheet = {"figsize": (13, 3.2 * rows + 0.8), "title": title, "words": words}
    with figure(folder / "scatter.png", rows, 3, squeeze=False, **sheet) as axes:
        draw_genes(axes.flat, order, pairs, study.bags["part"], prediction, found)


def known(values):
    return values[~np.isnan(values)]


def draw_two(ax, predicted, other, bins, name):
    """Histograms over the genes: predicted, and what that is compared with; their means."""
    labels = []
    for values, of in ((predicted, "predicted"), (other, name)):
        mean = signed(f"{values.mean():.2f}") if len(values) else "none"
        labels.append(f"{of} (mean {mean}, {counted(len(values), 'gene')})")
    ax.hist([predicted, other], bins, label=labels, color=[BLUE, ORANGE])
    for values, color in ((predicted, BLUE), (other, ORANGE)):
        if len(values):
            ax.axvline(values.mean(), color=color, lw=1, ls="--")
    ax.plot([], [], color=INK, lw=1, ls="--", label="the means")
    ax.yaxis.set_major_locator(need_matplotlib().MaxNLocator(integer=True))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)


def draw_bins(ax, r, fc):
    """Box plots of the genes' mean fold change in bins of R, .1 wide. [HistCode Fig. 7]"""
    tenth = np.floor(10 * np.where(np.isnan(fc), np.nan, r))  # (G,)
    bins = np.unique(known(tenth))
    if len(bins):
        changes = [fc[tenth == b] for b in bins]
        median = {"color": ORANGE, "lw": 1.5}
        dots = {"marker": ".", "markersize": 3, "markeredgecolor": BLUE}
        style = {"widths": 0.07, "manage_ticks": False, "medianprops": median, "flierprops": dots}
        ax.boxplot(changes, positions=bins / 10 + 0.05, **style)
        for b, of in zip(bins, changes, strict=True):
            n = {"ha": "center", "va": "bottom", "fontsize": 7.5, "color": INK}
            ax.annotate(
                f"{len(of):,}", (b / 10 + 0.05, of.max()), (0, 4), "data", "offset points", **n
            )
    ax.axhline(1, color=RULE, lw=0.8, zorder=0)
    ax.set_title("box: quartiles; line: median; number: genes", loc="left")
    ax.set_xlabel("Pearson R, bins of .1")
    ax.set_ylabel("mean fold change of the gene,\ntumour / normal")


def genes_shown(genes, r, n=9):
    """Numbers of those of Fig. 8 that are there, then of the best, n in all. [HistCode Fig. 8]"""
    best = np.argsort(np.where(np.isnan(r), np.inf, -r), kind="stable")
    named = [genes.index(gene) for gene in SHOWN if gene in genes]
    return (named + [int(j) for j in best if j not in named])[:n]


def draw_genes(axes, order, pairs, part, prediction, found):
    """Some genes, predicted against true; each test part with its R."""
    axes = list(axes)
    for ax, j in zip(axes, order, strict=False):
        draw_folds(ax, pairs.y[:, j], prediction[:, j], part)
        r = [signed(f"{found[key][j]:.2f}") for key in ("r", "r_folds")]
        said = f"R = {r[0]}, in parts {r[1]}, n = {(~np.isnan(pairs.y[:, j])).sum()} pairs"
        ax.set_title(f"{drawable(pairs.genes[j])}\n{said}", loc="left")
        ax.set(xlabel="true log₁₀(fc + 1)", ylabel="predicted log₁₀(fc + 1)")
    for ax in axes[len(order) :]:
        ax.axis("off")
