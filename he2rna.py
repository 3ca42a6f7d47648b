"""HE2RNA: the expression of every gene from a slide, learned from slide-level RNA-Seq alone.

Schmauch et al., "A deep learning model to predict RNA-Seq expression of tumours from whole slide images", Nature
Communications 11:3877 (2020), doi:10.1038/s41467-020-17678-4 (preprint bioRxiv 760173). A multilayer perceptron scores
every tile for every gene; the slide's prediction is the mean of the k highest tile scores, k drawn anew at each
iteration. Cross-validated by patient, R per gene within each cancer, significance corrected over all genes. The file
reads in the order of the paper's Methods; the commands stand at its end.

    python he2rna.py expression GDC_DIR --sheet FILE --out COHORT/expression.npz     a folder of GDC downloads -> a table
    python he2rna.py samples COHORT --sheet FILE     COHORT/slides of TCGA, joined to that table -> COHORT/samples.csv
    python he2rna.py train                   draws a simulated cohort into demo/, trains on it, writes a report
    python he2rna.py train COHORT            your slides and expression table -> per-gene, per-cancer report
    python he2rna.py train COHORT --features DIR     the same from features made elsewhere (CLAM, TRIDENT: .h5, .pt)
    torchrun --nproc-per-node 5 he2rna.py train COHORT       the same, a fold for each process
    python he2rna.py finetune COHORT RUN --project LIHC --genes CD3D,CD3E,CD3G,CD247     all tiles, one cancer, chosen genes
    python he2rna.py predict RUN SLIDE...    expression of slides that have none -> RUN/predict/<slide>.csv
    python he2rna.py signatures RUN --gmt F...   python he2rna.py enrich RUN --gmt F...  pathways of the well-predicted genes
    python he2rna.py heatmap RUN SLIDE... --genes CD3D,CD3E      where on the slide, best and worst tiles, against the truth
    python he2rna.py msi COHORT|FILE.npz     hospital A's transcriptome for MSI in hospital B: what it is worth
    python he2rna.py choices                 where paper and authors' code differ or are silent, and what is done here
    python he2rna.py audit [COHORT]          each that --code can turn, turned alone: what it changes

COHORT holds samples.csv (slide,patient,project[,sample,...]), slides/ and expression.csv (.csv.gz, .npz). What comes out
stands in COHORT/runs/<name>/: report.md and its pictures, genes.csv, predictions.npz, folds.csv, fold*.pt, log.jsonl.

Glossary: B slides of a batch, S all slides, T (super-)tiles of a slide, N tiles of several slides end to end, D features, H
neurons of the last hidden layer, G genes, P cancers (in msi: patients), M models, k tiles kept (in evaluation: folds), K
values of k, n samples, g genes of a block, a FPKM-UQ.
Tags: [HE2RNA ...] the paper, [HE2RNA code] only the authors' released code, [ours] our choice.
"""

import numpy as np
import torch
from torch.nn.functional import pad

import stats

ALPHA = 0.05  # after correction over genes              [HE2RNA Methods, Statistics]


MERGED = {
    "LUNG": ("LUAD", "LUSC"),
    "KIDN": ("KICH", "KIRC", "KIRP"),
    "UTER": ("UCS", "UCEC"),
}  # [HE2RNA Table 1]


SHARED = (
    "train",
    "finetune",
    "msi",
)  # commands whose folds or splits several processes share out              [ours]


# Expression  [HE2RNA Methods, Cleaning and Preprocessing]
def expressed(a):
    """(G,) bool: genes with a positive median over the samples, a (n, G) >= 0; 60,483 -> 30,839 on TCGA.

    The median is positive where at least half of the values are; so counted, without sorting the whole table.
    [HE2RNA Methods, Cleaning]
    """
    return 2 * np.count_nonzero(a, axis=0) >= len(a)


def log_expression(a):
    """a -> log10(1 + a), so that a few strong genes don't rule the squared error. [HE2RNA Methods, Preprocessing]"""
    return np.log10(1 + a)


def short(project):
    return project.removeprefix("TCGA-")


# Model  [HE2RNA Methods, Model architecture]
def top_k_mean(scores, mask, k):
    """Mean of the k highest tile scores of each gene: one slide-level prediction.

    scores (B, T, G) of any sign; mask (B, T) True for real tiles, at least one a slide; k >= 1. Returns (B, G).
    A slide with fewer than k tiles uses all it has. [HE2RNA Methods, Model architecture]
    The authors' code gives padding a score of 0, which outranks real negative tiles; here padding never counts. [ours]
    """
    k = min(k, scores.shape[1])
    top = scores.masked_fill(~mask[:, :, None], -torch.inf).topk(k, dim=1).values  # (B, k, G)
    kept = mask.sum(1).clamp(max=k)  # (B,)
    return top.masked_fill(top == -torch.inf, 0).sum(1) / kept[:, None]


def padded_top_k_mean(scores, mask, k, rows):
    """The same as the authors' code does it: bags are padded to `rows` rows, whose score is 0 and competes for the k places,
    of which the first min(k, n) are averaged: tiles of -1, -2, -3 and five padded rows give 0 for every k. [HE2RNA code]
    """
    more = max(0, min(rows - scores.shape[1], k))  # beyond k zeros none is kept
    scores = pad(scores * mask[:, :, None], (0, 0, 0, more))
    top = scores.topk(min(k, scores.shape[1]), dim=1).values  # (B, k, G), falling
    counts = torch.arange(top.shape[1], device=mask.device) < mask.sum(1, keepdim=True)  # (B, k)
    return (top * counts[:, :, None]).sum(1) / counts.sum(1, keepdim=True)


def rank_weights(n, ks):
    """(n,) weight of the tile of rank 1..n in the test-time prediction of a slide of n tiles: mean over ks of
    [rank <= k] / k.

    A k beyond n is n; the weights sum to 1. [HE2RNA Methods, Model architecture: "equivalent to calculating a weighted
    mean"]
    """
    k = torch.tensor(ks).clamp(max=n)[:, None]  # (K, 1)
    return ((torch.arange(n) < k) / k).mean(0)


def mean_r(prediction, y, projects):
    """One number to stop by: R per gene within each project, mean over genes, then over projects; None if there is none.
    [HE2RNA code; the paper is silent on stopping]"""
    per_project = []
    for p in np.unique(projects):
        if (projects == p).sum() >= stats.MIN_R:
            r = stats.pearson(prediction[projects == p], y[projects == p])  # (G,)
            per_project += [r[~np.isnan(r)].mean()] if not np.isnan(r).all() else []
    return float(np.mean(per_project)) if per_project else None


# Evaluation  [HE2RNA Methods, Training and evaluation; Statistics and reproducibility]
def cancers(projects):
    """{name: (S,) bool} of the groups within which R is computed, never over several: merged subtypes first (LUNG =
    LUAD + LUSC ...) and each subtype beside it [HE2RNA Table 1], then every other project."""
    names, groups = np.array([short(p) for p in projects]), {}
    for merged, parts in MERGED.items():
        if sum((names == p).any() for p in parts) > 1:
            groups[merged] = np.isin(names, parts)
    for p in np.unique(names):
        groups[str(p)] = names == p
    return groups


def fold_r(prediction, y, fold, group, k):
    """R of each gene in each fold's test slides of one group: (k, G), nan where there is no value."""
    r = np.full((k, y.shape[1]), np.nan)
    for f in range(k):
        rows = group & (fold == f)
        if rows.sum() >= stats.MIN_R:
            r[f] = stats.pearson(prediction[rows], y[rows])
    return r


def judged_in(fold, config):
    """(fold of each slide, number of folds) within which R is computed: all one fold where `pooled` is flipped."""
    return (np.zeros_like(fold), 1) if "pooled" in config["code"] else (fold, config["folds"])


def mean_of_values(r):
    """Mean over the first axis of what has a value; nan where nothing has."""
    n = (~np.isnan(r)).sum(0)
    return np.where(n > 0, np.nansum(r, 0) / np.maximum(n, 1), np.nan)


def r_sign(e, null):
    """The smallest R that is significant under a null: its p is the first Šidák step over the cancer's genes. [HE2RNA Fig.
    2a]"""
    tested = max(1, int((~np.isnan(e["r"])).sum()))
    return float(stats.null_threshold(-np.expm1(np.log1p(-ALPHA) / tested), *e["fits"][null]))


def provenance(scores, ks):
    """How much each tile counts in a slide's prediction of one gene: scores (T,) -> weights (T,), summing to 1.

    weights @ scores is the prediction: the tile of rank j weighs the mean over ks of [j <= k] / k. [HE2RNA Methods]
    """
    weights, order = np.empty(len(scores)), np.argsort(-scores, kind="stable")
    weights[order] = rank_weights(len(scores), ks).double().numpy()
    return weights


def standardise(x, rows):
    """x (n, D) less the mean, over the SD, of some of its rows; a column that is constant there is only shifted."""
    sd = np.where(np.ptp(x[rows], axis=0) > 0, x[rows].std(0, dtype=np.float64), 1)
    return ((x - x[rows].mean(0, dtype=np.float64)) / sd).astype(np.float32)


def above_floor(y):
    """`expressed` of a log table y (n, G): above 0, or above the lowest value of log2(small + a), in half of the samples."""
    return np.median(y, axis=0) > min(0, y.min())


if __name__ == "__main__":
    from lab.commands.he2rna import main
    from lab.commands.options import run

    run(main)
