"""The best genes of a run: those whose R holds within folds and over all slides at once.

`results` is what he2rna.evaluate gives: {cancer: a dict of r, pooled, p, hs (G,) ...}.

A fold's model can tell its test slides apart and yet be off by a level of its own. Then R, the mean
of the folds, is high, and R over all slides, each by the model that did not learn from it, is low
or negative: a picture of all predictions shows no relation, and predictions of two folds can't be
compared. A gene holds where both p are below he2rna.ALPHA, that of R under the null that decides
and that of pooled R by a t of the patients; neither is corrected, since what is significant R's own
p says, corrected over all genes. The best genes are those that hold, by p of R. [ours]
"""

import numpy as np

import he2rna
import stats
from lab.progress import table
from lab.show.plots import signed
from lab.show.report import section


def holds(e):
    """Which genes of a cancer hold. (G,) bool"""
    pooled = stats.pearson_p(e["pooled"], e["patients"])
    return np.maximum(e["p"], pooled) < he2rna.ALPHA  # nan: no


def best_genes(results, n=6):
    """(cancer, number of the gene) of n genes, each once: those that hold first, by p of R.

    Without p by the lower of R and pooled R; without R they don't come.
    """
    rows = []
    for name, e in results.items():
        lower, p = np.minimum(e["r"], e["pooled"]), np.nan_to_num(e["p"], nan=2)
        for gene in np.lexsort((-lower, p, ~holds(e)))[:n]:
            if not np.isnan(lower[gene]):
                rows.append((not holds(e)[gene], p[gene], -lower[gene], name, int(gene)))
    best = {}
    for *_, name, gene in sorted(rows):
        best.setdefault(gene, (name, gene))
    return list(best.values())[:n]


def said_of_best(results, genes):
    """'PDCD1 (SIM-BRST, R 0.77, pooled 0.29), ...' of the best genes that hold, '' of none."""
    said = []
    for name, gene in best_genes(results):
        e = results[name]
        if holds(e)[gene]:
            r = f"R {e['r'][gene]:.2f}, pooled {e['pooled'][gene]:.2f}"
            said.append(f"{genes[gene]} ({name}, {r})")
    return ", ".join(said)


def best_section(results, genes, n=20):
    """Lines of the report: how many genes hold, the best, and their picture.

    They were chosen for it: another cohort will have lower R.
    """
    counts = []
    for name, e in results.items():
        significant = e["bh"] < he2rna.ALPHA
        both = f"{(significant & holds(e)).sum():,} of {significant.sum():,}"
        counts.append(f"{both} in {name}")
    rows = []
    for name, gene in best_genes(results, n):
        e = results[name]
        r = [signed(f"{e[key][gene]:.3f}") for key in ("r", "pooled")]
        hs = "" if np.isnan(e["hs"][gene]) else f"{e['hs'][gene]:.2g}"
        rows.append((genes[gene], name, e["n"][gene], *r, hs, "yes" if holds(e)[gene] else "no"))
    null = next(iter(results.values()))["null"]
    text = (
        "R is the mean of the folds' R; pooled R is over all test slides at once, each predicted "
        "by the model that did not learn from it. A fold's model may tell its slides apart and be "
        "off by a level of its own: then R is high, pooled R low or negative, and predictions of "
        f"two folds can't be compared. A gene holds where p of R under the {null} null and p of "
        f"pooled R, by a t of the patients, are both below {he2rna.ALPHA}; those that hold stand "
        "first, by p of R. Of the genes significant by Benjamini–Hochberg, so many hold: "
        f"{'; '.join(counts)}."
    )
    found = table(("gene", "cancer", "n", "R", "pooled R", "p (HS)", "holds"), rows)
    return section("Best genes", text, found, "![Predicted against true](scatter.png)")
