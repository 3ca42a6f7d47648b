"""A slide's tile scores against what is known there: cells, spots, and the slides of its cancer.

[HE2RNA Results, virtual spatialization; Methods, Visual spatialization; Fig. 4]
"""

import numpy as np

import he2rna
import stats
from lab import space
from lab.cohort.markers import marked_class
from lab.files import InputError, few, whole_arrays
from lab.he2rna.evaluation import judged_in, nulls_of
from lab.progress import progress


def against_cells(scores, cells, coords, tile):
    """Counts of each class on each tile {class: (T,)}, and {class: figures}.

    Figures: R, its p, rho, the median count in the best tiles, and in all.
    cells: {class: (m, 2) places}.
    """
    counts = {kind: space.count_points(points, coords, tile) for kind, points in cells.items()}
    together = np.stack(list(counts.values()), 1)
    _, p = space.spatial_p(scores, together, [coords])
    figures = {}
    for (kind, n), its_p in zip(counts.items(), p):
        r, *medians = he2rna.against_cells(scores, n)
        rho = stats.spearman(scores, n.astype(float))
        figures[kind] = r, its_p, rho, *medians
    return counts, figures


def as_log(measured):
    """Counts or FPKM of spots on the scale of the scores; what has negative values stays."""
    return he2rna.log_expression(measured) if np.nanmin(measured, initial=0) >= 0 else measured


def spot_rows(spots):
    """(column, R, p) of what was measured on the spots of several slides, against the scores.

    spots: of each slide, its places (m, 2) and {column: (scores (m,), measured (m,))}.
    """
    names = [c for c in spots[0][1] if all(c in columns for _, columns in spots)]
    pairs = []
    for of in (0, 1):
        each = [np.stack([columns[c][of] for c in names], 1) for _, columns in spots]
        pairs.append(np.concatenate(each))
    places = [at for at, _ in spots]
    tick = progress("spots", len(names), "columns", end=False)
    return list(zip(names, *space.spatial_p(*pairs, places, tick)))


def name_of(genes):
    return genes[0] if len(genes) == 1 else f"mean of {few(genes, 6)}"


def asked_first(genes, pairs):
    """(The column that answers for the asked genes, or None; the pairs with it before the others;
    those of the genes that stand in it).

    Their own, or the mean of those that have a value on every spot; else that of the cells that the
    genes mark. pairs: {column: (scores (m,), measured (m,))}.
    """
    there = [gene for gene in genes if gene in pairs and np.isfinite(pairs[gene][1]).all()]
    if there:
        columns = zip(*(pairs[gene] for gene in there))
        name, first = name_of(there), tuple(np.mean(each, 0) for each in columns)
    else:
        name = marked_class(genes, pairs)
        first = pairs.get(name)
    return name, {name: first, **pairs} if name else pairs, there


def spot_summary(rows, genes, asked=None):
    """'column R (p); G genes, mean R ...' of spot_rows: the asked column first, then those of the
    genes of the run together, then the others.
    """
    own = [(r, p) for name, r, p in rows if name in genes and not np.isnan(r)]
    said = [f"{name} R {r:.3f} (p {p:.3f})" for name, r, p in rows if name == asked]
    if own:
        r, p = np.array(own).T
        found, tested = (p < he2rna.ALPHA).sum(), (~np.isnan(p)).sum()
        chance = f"{he2rna.ALPHA * tested:,.0f} expected by chance of {tested:,} that have a p"
        said.append(
            f"{len(r):,} genes, mean R {r.mean():.3f}, {(r > 0.2).sum():,} above .2, {found:,} "
            f"with p < {he2rna.ALPHA} ({chance})"
        )
    for name, r, p in rows:
        if name not in genes and name != asked and not np.isnan(r):
            said.append(f"{name} R {r:.3f} (p {p:.3f})")
    return "; ".join(said)


def predictions_of(run):
    """The arrays of a run's predictions.npz."""
    path = run["folder"] / "predictions.npz"
    kinds = {"genes": "UG", "prediction": "fSG", "truth": "fSG"}
    z = whole_arrays(path, **kinds, fold="iS", project="US", patient="US")
    if z["genes"].tolist() != run["genes"]:
        raise InputError(
            f"{path} has other genes than fold0.pt: run the command that made both again"
        )
    return z


def group_rows(run, z, genes):
    """Mean prediction of some genes against their mean expression, over the slides of the run.

    z: its predictions_of -> rows (cancer, slides, R, its 95 % interval over patients, p under the
    run's null, as of one gene). [HE2RNA Results: .43 for CD3 in LIHC]
    """
    prediction, y = he2rna.mean_of_genes(z["prediction"], z["truth"], genes)
    fold, n_folds = judged_in(z["fold"], run["config"])
    more = {"patients": z["patient"], "n_genes": len(run["genes"]), **nulls_of(run)}
    results = he2rna.evaluate(prediction, y, fold, z["project"], n_folds, **more)
    rows = []
    for name, of in he2rna.cancers(z["project"]).items():
        low, high = stats.r_interval(prediction[of], y[of], z["patient"][of], fold[of])
        r, p = results[name]["r"][0], results[name]["p"][0]
        interval = f"{low[0]:.2f} to {high[0]:.2f}"
        rows.append((name, of.sum(), f"{r:.3f}", interval, f"{p:.2g}"))
    return rows
