"""lab.he2rna.spatial"""

import numpy as np
import torch

import he2rna
import stats
from lab.files import InputError, whole_arrays
from lab.he2rna.evaluation import evaluate, judged_in
from lab.he2rna.report import interval
from lab.progress import progress
from lab.show.plots import BEST_TILES

SHIFTS = 199  # random shifts behind a p over tiles; five times as many over spots [ours]


# Spatialization  [HE2RNA Results, virtual spatialization; Methods, Visual spatialization; Fig. 4]
@torch.inference_mode()
def score_tiles(models, features, block=4096):
    """Score of every tile for every gene of the models, in log10(1 + FPKM-UQ), their mean. features (n, D) -> (n, G)."""
    device, scores = next(models[0].parameters()).device, []
    for rows in range(0, len(features), block):
        x = torch.from_numpy(np.asarray(features[rows : rows + block], np.float32)).to(device)
        scores.append(sum(model.tile_scores(x) for model in models).cpu().numpy() / len(models))
    return np.concatenate(scores)


def against_cells(scores, cells, coords, tile):
    """[(class, cells, R, p, rho, tiles called best, their median count, median of all)], and counts (n,) of each class."""
    counts = {kind: stats.count_points(points, coords, tile) for kind, points in cells.items()}
    best = np.argsort(-scores, kind="stable")[: max(1, min(BEST_TILES, len(scores) // 2))]
    r, p = stats.shift_p(
        scores, np.stack(list(counts.values()), 1), [coords], SHIFTS
    )  # the same shifts for all
    rows = [
        (
            kind,
            int(n.sum()),
            r[i],
            p[i],
            stats.spearman(scores, n.astype(float)),
            len(best),
            np.median(n[best]),
            np.median(n),
        )
        for i, (kind, n) in enumerate(counts.items())
    ]
    return rows, counts


def as_log(measured):
    """Counts or FPKM of spots on the scale of the scores; what has negative values is on a scale of its own and stays."""
    return he2rna.log_expression(measured) if np.nanmin(measured, initial=0) >= 0 else measured


def spot_table(spots, seed=0):
    """Scores against measured columns over the spots of several slides: (gene or column, R, p) rows, genes first.

    spots: a list, per slide, of (places (m, 2), group score (m,), {gene: (score, measured)}, {other column: measured}). A
    gene's own score against log10(1 + measured); any other column against the score of the genes asked for.
    """
    places, rows = [s[0] for s in spots], []
    for own, part in ((True, 2), (False, 3)):
        names = [c for c in spots[0][part] if all(c in s[part] for s in spots)]
        if names:
            measured = np.concatenate(
                [np.stack([s[part][c][1] if own else s[part][c] for c in names], 1) for s in spots]
            )
            scores = np.concatenate(
                [np.stack([s[2][c][0] for c in names], 1) if own else s[1] for s in spots]
            )
            tick = progress("spots", len(names), "columns", end=False)
            rows += zip(
                [own] * len(names),
                names,
                *stats.shift_p(scores, measured, places, 5 * SHIFTS, seed, tick),
            )
    return rows


def spot_summary(rows):
    """'mean R ... over G genes ...; column R (p)' of the rows of spot_table."""
    genes, others = (
        [(c, r, p) for own, c, r, p in rows if own == which and not np.isnan(r)]
        for which in (True, False)
    )
    r, p = (np.array([row[i] for row in genes]) for i in (1, 2))
    text = (
        [
            f"{len(r):,} genes, mean R {r.mean():.3f}, {(r > 0.2).sum():,} above .2, {(p < he2rna.ALPHA).sum():,} with p < {he2rna.ALPHA} "
            f"({he2rna.ALPHA * len(p):,.0f} expected by chance)"
        ]
        if len(r)
        else []
    )
    return "; ".join(text + [f"{c} R {v:.3f} (p {q:.3f})" for c, v, q in others])


def group_r(run, genes):
    """R of the mean prediction against the mean expression of some genes, by cancer: [(cancer, n, R, interval, p)] [CD3 in
    LIHC: .43]."""
    z = whole_arrays(
        run["folder"] / "predictions.npz",
        genes="UG",
        prediction="fSG",
        truth="fSG",
        fold="iS",
        project="US",
        patient="US",
    )
    if z["genes"].tolist() != run["genes"]:
        raise InputError(
            f"{run['folder']}: predictions.npz and fold0.pt have different genes: run the command that made "
            "them again"
        )
    mean = [z[k][:, genes].mean(1, keepdims=True) for k in ("prediction", "truth")]  # (S, 1)
    fold, k = judged_in(z["fold"], run["config"])
    results = evaluate(*mean, fold, z["project"], k)
    groups, rng = he2rna.cancers(z["project"]), np.random.default_rng(run["config"]["seed"])
    return [
        (
            name,
            e["slides"],
            f"{e['r'][0]:.3f}",
            interval(*mean, z["patient"], fold, groups[name], rng),
            f"{e['p'][0]:.2g}",
        )
        for name, e in results.items()
    ]
