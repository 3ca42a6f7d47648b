"""HE2RNA: the expression of every gene from a slide, learned from slide-level RNA-Seq alone.

Schmauch et al., "A deep learning model to predict RNA-Seq expression of tumours from whole slide
images", Nature Communications 11:3877 (2020), doi:10.1038/s41467-020-17678-4 (preprint bioRxiv
760173).

A multilayer perceptron scores every tile of a slide for every gene. In training the slide's
prediction is the mean of the k highest scores, with k drawn anew at each iteration; afterwards it
is the mean over all k of the list. The network is cross-validated by patient. Pearson's R of each
gene is computed within each cancer, and its significance is corrected over all genes.

This file reads in the order in which a result is made, which is nearly the Methods' order. Tiles,
features and super-tiles [HE2RNA Methods, Preprocessing] are in tiling.py. This file takes arrays
and returns arrays; `python he2rna.py --help` lists the commands built on it.

    kept = he2rna.expressed(a)                        # a (S, genes), FPKM-UQ of each slide's sample
    y = he2rna.log_expression(a[:, kept]).astype(np.float32)               # (S, G)
    bags = he2rna.bags_of(slides)                     # slides: S arrays (T, D), their super-tiles
    fold = stats.patient_folds(patients, projects, k=FOLDS, seed=0)        # (S,)
    decoys = he2rna.draw_decoys(y, patients, projects, he2rna.n_decoys(G))   # (S, m), see there
    both = np.hstack([y, decoys])                     # the network learns both alike
    prediction = np.zeros_like(both)
    for f in range(FOLDS):
        train, valid, test = he2rna.split(fold, f, patients, projects)
        torch.manual_seed(f)                          # of the first weights
        model = he2rna.HE2RNA(D, both.shape[1]).start_at(both[train].mean(0))
        for state in he2rna.train_epochs(model, bags, both, projects, train, valid, seed=(0, f),
                                         n_genes=G):
            print(f, state["epoch"], state["loss"], state["r"])
        model.load_state_dict(state["best"])
        prediction[test] = he2rna.predict(model, bags, test)
    r_decoys = he2rna.r_of_cancers(prediction[:, G:], decoys, fold, projects)
    results = he2rna.evaluate(prediction[:, :G], y, fold, projects, patients=patients,
                              decoys=r_decoys)        # {cancer: its R, p, corrected p ...}

Then fine-tune fold f's model on all tiles of one cancer (train, valid: its slides of that cancer):

    model = he2rna.HE2RNA(D, both.shape[1], ks=KS_TILES)     # as it was trained, with the decoys
    model.load_state_dict(best_of_fold_f)
    model.keep_genes(genes)                           # columns of y, CD3's for example
    for state in he2rna.train_epochs(model, bags_of_all_tiles, y[:, genes], projects, train, valid,
                                     seed=(0, f), epochs=FINE_EPOCHS, patience=FINE_PATIENCE,
                                     batch=FINE_BATCH):
        print(f, state["epoch"], state["loss"], state["r"])
    model.load_state_dict(state["best"])

Glossary: B slides of a batch, S all slides, T (super-)tiles of a slide, D features, H neurons of
the last hidden layer, G genes, m decoys (genes of shuffled patients, see `draw_decoys`), k tiles
kept, F folds, P cancers, M models, n patients behind one R, a FPKM-UQ, y log10(1 + a). A bag is a
slide as the set of its tiles. A project is a TCGA project such as TCGA-LUAD; a cancer is a project,
or several that the paper merges. In the last section: hospitals A and B, N patients, K outputs of a
network. stats.py has letters of its own.
Tags: [HE2RNA ...] the paper says it, by its preprint's names of sections, figures and tables;
[HE2RNA code] only the authors' released code says it; [ours] neither says it, we chose. A section's
tag holds for what has none. "Needs:" in a docstring names what must be copied along with a piece.
"""

if __name__ == "__main__":  # first: a command imports no more than it needs
    from lab.commands.start import start

    start("he2rna")

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad

import stats

# The model
# k of 100 super-tiles, and of all tiles
KS_SUPERTILES = (1, 2, 5, 10, 20, 50, 100)  # [HE2RNA Methods, Model architecture]
KS_TILES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # [HE2RNA Methods, Model architecture]
HIDDEN = (1024, 1024)  # neurons of the hidden layers [HE2RNA code]
DROPOUT = 0.25  # between consecutive layers [HE2RNA code]

# Training on super-tiles of all cancers, and fine-tuning on all tiles of one
FOLDS = 5  # of the cross-validation [HE2RNA Methods, Training and evaluation]
VALID_SHARE = 0.1  # of a fold's training patients, set aside to choose its epoch [HE2RNA code]
EPOCHS = 200  # here at most, see PATIENCE [HE2RNA Methods, Training and evaluation]
FINE_EPOCHS = 50  # here at most [HE2RNA Methods, Training and evaluation]
PATIENCE = 50  # epochs without a better one, which end training [HE2RNA code]
FINE_PATIENCE = 30  # epochs without a better one [HE2RNA code]
BATCH_SLIDES = 16  # of an iteration [HE2RNA code]
FINE_BATCH = 4  # slides of an iteration [HE2RNA code]
LEARNING_RATE = 3e-4  # of Adam [HE2RNA code]

# Evaluation
MERGED = {  # cancers of several projects [HE2RNA Table 1]
    "LUNG": ("LUAD", "LUSC"),
    "KIDN": ("KICH", "KIRC", "KIRP"),
    "UTER": ("UCS", "UCEC"),
}
ALPHA = 0.05  # after correction over all genes [HE2RNA Methods, Statistics and reproducibility]
DECOY_SHARE = 1 / 20  # decoys per gene: training takes longer by about this share [ours]
MIN_DECOYS = 200  # at least: the SD of so many R, which is fitted, is known to 5 % [ours]
FEW_GENES = 10  # a network of fewer bends to each of them more than to a decoy [ours]
DECOY_WEIGHT = 1  # of all decoys together in training, at most; all genes together weigh 1 [ours]
BEST_TILES = 100  # whose T cells are counted apart [HE2RNA Results, virtual spatialization]

# MSI from few patients: hospital A learns expression, hospital B learns MSI
MSI_HIDDEN = (1024, 256)  # A's layers, which the autoencoders mirror [HE2RNA Methods, MSI status]
MSI_CLASSIFIER = (256, 128)  # B's layers; on a 256-d code 128 alone [HE2RNA Methods, MSI status]
MSI_EPOCHS = 50  # [HE2RNA Methods, MSI status]; of the autoencoders [ours]
MSI_BATCH = 10  # slides an iteration of the classifiers [HE2RNA code]
MSI_GENE_BATCH = 32  # of A's networks and the autoencoders, Keras's default [HE2RNA code]
MSI_RATE = 1e-3  # of Adam [HE2RNA code]
MSI_FOLDS = 3  # in A and in B [HE2RNA Methods, MSI status]
MSI_REPEATS = 10  # of B's folds: "10-times-bootstrapped" [HE2RNA Results], read as repeated [ours]
MSI_SPLITS = 50  # into A and B: "bootstrapped" [HE2RNA Methods, MSI status], likewise [ours]


# ----- Expression  [HE2RNA Methods, Cleaning; Preprocessing] -------------------------------------


def expressed(a):
    """Which genes have a positive median over the samples: a (S, genes) >= 0 -> (genes,) bool.

    The median is positive where at least half of the values are. Counting them spares sorting the
    table. Of TCGA's 60,483 genes 30,839 remain. [HE2RNA Methods, Cleaning]
    """
    return 2 * np.count_nonzero(a, axis=0) >= len(a)


def log_expression(a):
    """a -> log10(1 + a), so that a few strong genes don't rule the squared error.

    [HE2RNA Methods, Preprocessing]
    """
    return np.log10(1 + a)


# ----- Bags: the (super-)tiles of a slide; tiling.py makes them ----------------------------------


def pad_bags(slides):
    """Slides of several sizes in one block: B arrays (T_i, D) -> tensors x (B, T, D), mask (B, T).

    T is the largest T_i, and mask is True for real tiles. The rest of x is zeros, which the mask
    keeps out of everything. [ours]
    """
    B = len(slides)
    T = max(len(tiles) for tiles in slides)
    D = slides[0].shape[1]
    x = np.zeros((B, T, D), np.result_type(*slides))
    mask = np.zeros((B, T), bool)
    for i, tiles in enumerate(slides):
        x[i, : len(tiles)] = tiles
        mask[i, : len(tiles)] = True
    return torch.from_numpy(x), torch.from_numpy(mask)


def bags_of(slides):
    """The function bags(rows) -> x, mask that `train_epochs` asks, of slides held in memory."""

    def bags(rows):
        return pad_bags([slides[row] for row in rows])

    return bags


# ----- Model  [HE2RNA Methods, Model architecture] -----------------------------------------------


def top_k_mean(scores, mask, k):
    """The slide's prediction of each gene: the mean of the k highest scores of its tiles.

    scores (B, T, G) of any sign; mask (B, T), True for real tiles, at least one a slide; k >= 1
    -> (B, G). [HE2RNA Methods, Model architecture] A slide of fewer than k tiles uses all it has.
    Padding never counts; in the authors' code it does (`padded_top_k_mean`). [ours]
    """
    k = min(k, scores.shape[1])
    real = scores.masked_fill(~mask[:, :, None], -torch.inf)
    top = real.topk(k, dim=1).values  # (B, k, G)
    top = top.masked_fill(top == -torch.inf, 0)
    kept = mask.sum(1).clamp(max=k)  # (B,)
    return top.sum(1) / kept[:, None]


def padded_top_k_mean(scores, mask, k, rows):
    """`top_k_mean` as in the authors' code, where padding competes. [HE2RNA code]

    Bags are padded to `rows` rows, whose scores are 0. Of the k highest scores the first
    min(k, T_i) are averaged: tiles of -1, -2, -3 padded to 8 rows give 0 for every k. As a pool of
    HE2RNA: functools.partial(padded_top_k_mean, rows=100).
    """
    missing = max(0, min(rows - scores.shape[1], k))  # topk takes at most k zeros
    scores = pad(scores * mask[:, :, None], (0, 0, 0, missing))
    k = min(k, scores.shape[1])
    top = scores.topk(k, dim=1).values  # (B, k, G), falling
    rank = torch.arange(k, device=mask.device)
    counts = rank < mask.sum(1, keepdim=True)  # (B, k)
    total = (top * counts[:, :, None]).sum(1)  # (B, G)
    return total / counts.sum(1, keepdim=True)


class HE2RNA(nn.Module):
    """A perceptron on every tile, then for each gene the mean of its k best tiles.

    The paper's "1D convolutions of kernel size 1" are the same linear layer on every tile. ReLU
    follows each hidden layer, with dropout. [HE2RNA Methods, Model architecture]

    The defaults are the values of HIDDEN, KS_SUPERTILES and DROPOUT, written out for copying.

    n_genes                     its outputs, decoys included
    pool(scores, mask, k)       turns tile scores into the slide's prediction
    head(h, mask, layer, ks)    the same without holding all scores: lab/fast/topk.py
    one_k_per_gene              in training draws a k for each gene (without head)
    relu                        leaves no negative prediction in evaluation [HE2RNA code]

    Needs: top_k_mean.
    """

    def __init__(
        self,
        n_features,
        n_genes,
        hidden=(1024, 1024),
        ks=(1, 2, 5, 10, 20, 50, 100),
        dropout=0.25,
        *,
        pool=top_k_mean,
        head=None,
        one_k_per_gene=False,
        relu=False,
    ):
        super().__init__()
        widths = (n_features, *hidden, n_genes)
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.ks = tuple(ks)
        self.pool = pool
        self.head = head
        self.one_k_per_gene = one_k_per_gene
        self.relu = relu

    def start_at(self, mean):
        """Start the last bias at each gene's training mean (G,), not near 0. [HE2RNA code]"""
        with torch.no_grad():
            self.layers[-1].bias.copy_(torch.as_tensor(mean))
        return self

    def keep_genes(self, genes):
        """Keep the output rows of some genes, for fine-tuning: genes are their numbers. [ours]"""
        last = self.layers[-1]
        return self.set_outputs(last.weight[genes], last.bias[genes])

    def add_outputs(self, weight, bias):
        """Append output rows, such as those of decoys: weight (m, H), bias (m,)."""
        last = self.layers[-1]
        return self.set_outputs(torch.cat([last.weight, weight]), torch.cat([last.bias, bias]))

    def set_outputs(self, weight, bias):
        """Have another last layer: weight (G, H), bias (G,)."""
        last = nn.Linear(weight.shape[1], len(weight), device="meta")  # which draws no weights
        last.weight = nn.Parameter(weight.detach().clone())
        last.bias = nn.Parameter(bias.detach().clone())
        self.layers[-1] = last
        return self

    def representation(self, x):
        """x (..., D) -> the last hidden layer (..., H), from which all genes are read."""
        for layer in self.layers[:-1]:
            x = self.dropout(layer(x).relu())
        return x

    def tile_scores(self, x):
        """x (..., D) -> the score of every tile for every gene (..., G)."""
        return self.layers[-1](self.representation(x))

    def forward(self, x, mask, k=None):
        """x (B, T, D), mask (B, T) -> the prediction of each slide (B, G), log10(1 + FPKM-UQ).

        A given k is used alone. Else, in evaluation, the mean over all k of the list; in training,
        one k an iteration, drawn for all slides and genes [HE2RNA code]. The paper's sentence can
        also mean a k for each gene. [HE2RNA Methods, Model architecture]
        """
        if k is not None:
            ks = (k,)
        elif not self.training:
            ks = self.ks
        elif self.one_k_per_gene:
            return self.pool_with_a_k_per_gene(self.tile_scores(x), mask)
        else:
            drawn = int(torch.randint(len(self.ks), ()))
            ks = (self.ks[drawn],)
        if self.head is not None:
            prediction = self.head(self.representation(x), mask, self.layers[-1], ks)
        else:
            scores = self.tile_scores(x)  # (B, T, G)
            each = [self.pool(scores, mask, one) for one in ks]  # (B, G) of every k
            prediction = torch.stack(each).mean(0)
        if self.relu and not self.training:
            prediction = prediction.relu()
        return prediction

    def pool_with_a_k_per_gene(self, scores, mask):
        """scores (B, T, G) -> (B, G): a k for each gene, the same for all slides of the batch.

        The other reading of "selects a number k at every iteration and for every gene".
        [HE2RNA Methods, Model architecture]
        """
        drawn = torch.randint(len(self.ks), scores.shape[2:])  # (G,)
        drawn = drawn.to(scores.device)
        prediction = torch.empty_like(scores[:, 0])  # (B, G)
        for i, k in enumerate(self.ks):
            genes = drawn == i
            prediction[:, genes] = self.pool(scores[:, :, genes], mask, k)
        return prediction


def rank_weights(T, ks):
    """How much the tile of rank 1..T counts in a prediction after training: (T,), summing to 1.

    For each k a tile of rank <= k counts 1/k, the others nothing; a k beyond T is T. Their mean
    over ks makes "a weighted mean of per-tile predictions". [HE2RNA Methods, Model architecture]
    """
    k = torch.tensor(ks).clamp(max=T)[:, None]
    counts = torch.arange(T) < k  # (len(ks), T)
    return (counts / k).mean(0)


# ----- Training  [HE2RNA Methods, Training and evaluation] ---------------------------------------


class NotFinite(ValueError):
    """The loss or a weight is no finite number any more; rows: slides of the last iteration."""

    def __init__(self, epoch, rows):
        self.epoch = epoch
        self.rows = rows.tolist()
        super().__init__(
            f"epoch {epoch}: the loss or a weight is not finite, at the rows {self.rows}"
        )


def split(fold, f, patients, projects, share=VALID_SHARE, seed=0):
    """The rows that fold f trains on, those that choose its epoch, and its test slides.

    fold, patients, projects (S,). The paper trains on 80 of 100 patients and calls the other 20 its
    validation set. Here these 20 are the test, and 8 of the 80 choose the epoch [HE2RNA code].
    Patients stay whole and projects even. [HE2RNA Methods, Training and evaluation]
    """
    test = np.flatnonzero(fold == f)
    rest = np.flatnonzero(fold != f)
    valid = stats.inner_split(
        patients[rest],
        projects[rest],
        share,
        [seed, f],
    )
    return rest[~valid], rest[valid], test


def train_epochs(
    model,
    bags,
    y,
    projects,
    train,
    valid,
    *,
    epochs=EPOCHS,
    patience=PATIENCE,
    batch=BATCH_SLIDES,
    lr=LEARNING_RATE,
    seed=0,
    state=None,
    ahead=map,
    n_genes=None,
):
    """Train one fold: a generator of its state after every epoch.

    bags(rows) -> x (B, T, D), mask (B, T). y (S, G) float32, an array or a tensor, log10(1 +
    FPKM-UQ). projects (S,). train, valid: rows. [HE2RNA Methods, Training and evaluation]

    The best epoch has the highest `mean_r` over the validation slides or, where no project has
    enough of them for an R, the lowest loss; without validation slides it is the last. Training
    ends after `epochs`, or when the last `patience` epochs were not better. The paper trains for a
    fixed number of epochs and chooses none: choosing is [HE2RNA code]. All draws of an epoch come
    from `seed`, a number or several as (0, fold), and from the epoch. Training that goes on from a
    saved `state` gives the weights of one that was never interrupted. ahead(bags, parts) is a map
    that may read ahead. Of y's columns the first n_genes are genes, None: all. Decoys stand behind
    them, and have their share (`decoy_share`) in what is learned and in the choice of the epoch,
    but not in the loss and R that are reported [ours]. Yields one dict, which each epoch updates:

    epoch, loss            of the training slides
    valid_loss, r          of the validation slides, None without them
    best_epoch, best       its number and its weights; best_score
    model, optimizer       their states, which the next epoch changes: save them

    Needs: draw_epoch, decoy_share, learn, NotFinite, predict, validate, chosen_by_r, mean_r, stats,
    EPOCHS, PATIENCE, BATCH_SLIDES, LEARNING_RATE, DECOY_WEIGHT.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr, fused=True)
    share = decoy_share(n_genes, y.shape[1])
    if state is None:
        state = {"epoch": 0, "best_epoch": 0, "best_score": -math.inf, "best": None}
    else:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    while state["epoch"] < epochs and state["epoch"] - state["best_epoch"] < patience:
        epoch = state["epoch"] + 1
        order = torch.from_numpy(draw_epoch(train, seed, epoch))
        parts = order.split(batch)
        loss = learn(model, optimizer, bags, y, parts, epoch, ahead, n_genes)
        r, valid_loss, score = None, None, epoch  # without validation the last epoch is the best
        if len(valid):
            prediction, target = predict(model, bags, valid, batch, ahead), y[valid]
            where = projects[valid]
            r, valid_loss, score = validate(prediction[:, :n_genes], target[:, :n_genes], where)
            if share:
                decoys = prediction[:, n_genes:], target[:, n_genes:]
                score += share * validate(*decoys, where)[2]
        if score > state["best_score"]:
            best = copy.deepcopy(model.state_dict())
            state.update(best_score=score, best_epoch=epoch, best=best)
        state.update(epoch=epoch, loss=loss, valid_loss=valid_loss, r=r)
        state.update(model=model.state_dict(), optimizer=optimizer.state_dict())
        yield state


def decoy_share(n_genes, width):
    """The weight of the decoys among `width` outputs, where the genes weigh 1; 0 without decoys.

    A decoy weighs as much as a gene, in the loss and in the choice of the epoch. This makes it
    exchangeable with a gene that follows nothing: chosen by genes alone, the epoch favours what
    they have by luck, and their R scatter 5 % more than those of decoys. But all decoys together
    weigh at most DECOY_WEIGHT: unweighted, 200 beside 4 genes lower the R of these by a third. So
    below 200 genes a gene that follows nothing has more say than a decoy. [ours]
    """
    return 0 if n_genes is None else min(width / n_genes - 1, DECOY_WEIGHT)


def draw_epoch(rows, seed, epoch):
    """Seed torch, for k and dropout, and shuffle the rows. One number decides both."""
    numbers = [*np.atleast_1d(seed), epoch]
    draw = int(np.random.default_rng(numbers).integers(2**62))
    torch.manual_seed(draw)
    return np.random.default_rng(draw).permutation(rows)


def learn(model, optimizer, bags, y, parts, epoch, ahead=map, n_genes=None):
    """One epoch: a step down the mean squared error for each part of the rows. -> mean loss.

    The columns after n_genes are decoys. Adam's step on an output's own weights doesn't depend on
    how much its error weighs: so decoys learn as fast as genes, whatever their share is. [ours]
    """
    device = next(model.parameters()).device
    share = decoy_share(n_genes, y.shape[1])
    total = 0.0
    slides = 0
    model.train()
    for rows, (x, mask) in zip(parts, ahead(bags, parts), strict=True):
        x, mask = x.to(device).float(), mask.to(device)
        target = torch.as_tensor(y[rows]).to(device)
        error = (model(x, mask) - target).square()  # (B, G + m)
        loss = error[:, :n_genes].mean()
        weighed = loss + share * error[:, n_genes:].mean() if share else loss
        optimizer.zero_grad()
        weighed.backward()
        optimizer.step()
        total += loss.item() * len(rows)
        slides += len(rows)
        if not math.isfinite(total):
            raise NotFinite(epoch, rows)
    for weight in model.parameters():
        if not weight.isfinite().all():
            raise NotFinite(epoch, rows)
    return total / slides


@torch.inference_mode()
def predict(model, bags, rows, batch=BATCH_SLIDES, ahead=map):
    """The predictions of the slides `rows`, in evaluation: (len(rows), G) float32, numpy."""
    device = next(model.parameters()).device
    parts = torch.as_tensor(rows).split(batch)
    predictions = []
    model.eval()
    for x, mask in ahead(bags, parts):
        x, mask = x.to(device).float(), mask.to(device)
        predictions.append(model(x, mask).cpu())
    return torch.cat(predictions).numpy()


def cross_predict(model_of, bags, fold, batch=BATCH_SLIDES, ahead=map):
    """Each slide's prediction by the model that did not see it: (S, G).

    model_of(f) -> the model of fold f; fold (S,) the test fold of each slide.
    """
    order, predictions = [], []
    for f in np.unique(fold):
        test = np.flatnonzero(fold == f)
        order.append(test)
        model = model_of(int(f))
        predictions.append(predict(model, bags, test, batch, ahead))
    back = np.argsort(np.concatenate(order))
    return np.concatenate(predictions)[back]


def chosen_by_r(projects):
    """Whether any project has stats.MIN_R validation slides, so that R can choose. [ours]"""
    _, slides = np.unique(projects, return_counts=True)
    return max(slides, default=0) >= stats.MIN_R


def validate(prediction, y, projects):
    """-> R, loss, score of an epoch: R [HE2RNA code] or, of too few slides, minus the loss [ours].

    prediction, y (n, G) and projects (n,) of the validation slides.
    """
    y = np.asarray(y)  # it may be a tensor
    r = mean_r(prediction, y, projects)
    loss = float(np.square(prediction - y).mean())
    if not chosen_by_r(projects):
        return r, loss, -loss
    if r is None:  # no gene varies
        return r, loss, -1.0  # as bad as the lowest R
    return r, loss, r


def mean_r(prediction, y, projects):
    """R of each gene within each project, its mean over the genes, then over the projects.

    None where no gene has an R. Projects count alike [HE2RNA code], each by itself: the authors
    merge subtypes first. [ours]
    """
    each = []
    for project in np.unique(projects):
        rows = projects == project
        if rows.sum() >= stats.MIN_R:
            r = stats.pearson(prediction[rows], y[rows])  # (G,)
            r = r[~np.isnan(r)]
            if len(r):
                each.append(r.mean())
    return float(np.mean(each)) if each else None


# ----- R of each gene and cancer  [HE2RNA Methods, Training and evaluation; Table 1] -------------


def short(project):
    """TCGA-LUAD -> LUAD."""
    return project.removeprefix("TCGA-")


def cancers(projects):
    """The groups of slides within which R is computed: {name: (S,) bool}.

    R is never computed over several organs: recognising the organ would pass for a good prediction.
    [HE2RNA Methods, Training and evaluation] First the paper's merged cancers, where at least two
    of their projects are there [HE2RNA Table 1], then every project by itself [ours].
    """
    names = np.array([short(project) for project in projects])
    groups = {}
    for merged, parts in MERGED.items():
        if len(set(parts) & set(names.tolist())) > 1:
            groups[merged] = np.isin(names, parts)
    for name in np.unique(names):
        groups[str(name)] = names == name
    return groups


def separate(names, merged=True):
    """The cancers among which each slide is counted once.

    LUNG without LUAD and LUSC [HE2RNA Table 1]; with merged=False LUAD and LUSC without LUNG.
    """
    names = list(names)
    there = [name for name in names if not set(names).isdisjoint(MERGED.get(name, ()))]
    parts = [part for name in there for part in MERGED[name]]
    left_out = parts if merged else there
    return [name for name in names if name not in left_out]


def fold_r(prediction, y, fold, group, n_folds=FOLDS):
    """R of each gene over one group's test slides of each fold: (F, G), nan without a value.

    prediction, y (S, G); fold (S,); group (S,) bool. Their mean over folds is the result. [HE2RNA
    Results] That R is taken within each fold, not pooled over them: [ours].
    """
    r = np.full((n_folds, y.shape[1]), np.nan)
    for f in range(n_folds):
        rows = group & (fold == f)
        if rows.sum() >= stats.MIN_R:
            r[f] = stats.pearson(prediction[rows], y[rows])
    return r


def count_patients(patients, rows):
    """The patients whose slides these rows (S,) bool are; without patients each slide is one."""
    return rows.sum() if patients is None else len(np.unique(patients[rows]))


def mean_of_values(r):
    """The mean over the first axis of what has a value; nan where nothing has."""
    n = (~np.isnan(r)).sum(0)
    mean = np.nansum(r, 0) / np.maximum(n, 1)
    return np.where(n > 0, mean, np.nan)


def r_of_cancers(prediction, y, fold, projects, n_folds=FOLDS):
    """R of each gene, the mean of the folds, in each cancer: {cancer: (G,)}. As in `evaluate`."""
    r = {}
    for name, group in cancers(projects).items():
        r[name] = mean_of_values(fold_r(prediction, y, fold, group, n_folds))
    return r


# ----- Significance  [HE2RNA Methods, Statistics and reproducibility] ----------------------------


def n_decoys(n_genes):
    """How many decoys to draw beside so many genes: DECOY_SHARE of them, at least MIN_DECOYS."""
    return max(MIN_DECOYS, round(DECOY_SHARE * n_genes))


def draw_decoys(y, patients, projects, count, seed=0):
    """Decoys: genes that follow nothing, for the network to learn beside the true ones. (S, m)

    y (S, G); patients, projects (S,). Each decoy is a gene whose patients changed places, whole,
    within their cancer (`stats.patient_shuffle`), by an order of its own. Why: fold f learns from
    fold g's slides and fold g from fold f's, so the R of two folds rise and fall together, and
    their mean has up to twice the variance of that of independent folds, at any number of slides. A
    gene that follows nothing is exchangeable with a decoy: both are learned in one network, in one
    loss, in the same folds. So the R of the decoys are its null, whatever the features or the
    slides of a patient are; where genes are few, see `decoy_share` and `evaluate`.
    Genes take turns as sources, in an order drawn from `seed`. A merged cancer is shuffled as one,
    or a decoy would still tell its projects apart. [ours]
    """
    rng = np.random.default_rng(seed)
    sources = np.resize(rng.permutation(y.shape[1]), count)
    _, who = np.unique(patients, return_inverse=True)
    groups = cancers(projects)
    cancer = np.zeros(len(y), int)
    for number, name in enumerate(separate(groups)):
        cancer[groups[name]] = number
    decoys = np.empty((len(y), count), y.dtype)
    for j, gene in enumerate(sources):
        decoys[:, j] = y[stats.patient_shuffle(who, cancer, rng), gene]
    return decoys


def untrained_r(draw_model, bags, y, fold, projects, n_folds=FOLDS, judged=None, **more):
    """R of models of the same architecture that learned nothing: {cancer: (M, G)}.

    draw_model(f) -> an untrained network of M G outputs for fold f. Each block of G outputs is an
    untrained model; M is above 1 where genes are few, so that there are enough R to fit [ours].
    judged (S,): the folds within which R is computed, where it is not `fold`, as when R is pooled
    over all folds. more: batch and ahead of `cross_predict`. [HE2RNA Methods, Statistics and
    reproducibility]
    """
    if judged is None:
        judged = fold
    prediction = cross_predict(draw_model, bags, fold, **more)  # (S, M G)
    M = prediction.shape[1] // y.shape[1]
    null = {}
    for block in np.split(prediction, M, axis=1):  # (S, G)
        r = r_of_cancers(block, y, judged, projects, n_folds)
        for name, of_genes in r.items():
            null.setdefault(name, []).append(of_genes)
    return {name: np.array(each) for name, each in null.items()}


def permutation_n(n):
    """The n of one R that scatters as the mean of the folds' R does if patients are shuffled: (G,).

    n (F, G): the patients behind each fold's R, 0 where there is none. They change places within
    their fold. With a slide each, over all orders a fold's R has mean 0 and variance 1 / (n_f - 1)
    exactly, so their mean has variance sum_f 1 / (n_f - 1) / F^2, and nothing needs to be drawn;
    `stats.permutation_null` draws, and agrees. That the tails are those of one R is [ours].
    """
    has_r = n > 0
    of_fold = 1 / np.maximum(n - 1, 1)
    variance = mean_of_values(np.where(has_r, of_fold, np.nan))
    variance = variance / np.maximum(has_r.sum(0), 1)  # of the mean of the folds
    return 1 + 1 / variance


def r_sign(n_tests, n, mean=0.0):
    """The paper's R_sign: what a cancer's best gene needs, in Holm-Šidák's first, strictest step.

    The null scatters around `mean` as one R of n samples does (patients, in `evaluate`); later
    genes need slightly less. For 30,839 genes and n = 44 it is .637, the paper's .64 of DLBC. For
    LUNG's 1,046 slides it is .143; the paper's .20 would need n = 530, one of LUNG's two projects.
    [HE2RNA Fig. 2a]
    """
    tests = max(n_tests, 1)
    first_step = -math.expm1(math.log1p(-ALPHA) / tests)  # 1 - (1 - ALPHA) ** (1 / tests)
    return float(stats.null_threshold(first_step, mean, n))


def evaluate(
    prediction,
    y,
    fold,
    projects,
    n_folds=FOLDS,
    untrained=None,
    null=None,
    *,
    patients=None,
    decoys=None,
    n_genes=None,
):
    """R of every gene in every cancer, and whether it is significant: {cancer: dict}.

    prediction, y (S, G); fold, projects, patients (S,), without patients each slide is one;
    untrained: {cancer: (M, G)} of `untrained_r`; decoys: {cancer: (m,)}, the R of `draw_decoys` by
    `r_of_cancers`. p is one-sided [ours] under four nulls. `null` names the one that decides, by
    default the first that is there:

    decoys       genes of shuffled patients, learned by the same network                    [ours]
    untrained    models that learned nothing   [HE2RNA Methods, Statistics and reproducibility]
    t            one R of the n patients of the folds that gave an R: it gives the paper's R_sign
                 of DLBC, not that of LUNG                                                  [ours]
    permutation  patients change places within their fold                                   [ours]

    The last three take the folds for independent, which they are not (`draw_decoys`). R is that of
    slides, as the paper's; t and permutation count patients, since slides of one are alike. In
    simulations of 40 patients with 4 slides each, p < .05 finds .55 of the genes that follow
    something; with R of patients' means it finds .53. Without a fold of stats.MIN_R patients: no p.

    n_genes: of the network, where they are not those of y. Below FEW_GENES the network bends to
    each gene more than to a decoy, so that the genes' R scatter more than the decoys'. Then the n
    fitted to the decoys is at most half that of permutation, as if the folds depended on each other
    as much as they can. [ours]

    Of each cancer:

    slides, patients            their numbers
    folds (F, G), r (G,)        R in each fold, and the mean of the folds [HE2RNA Results]
    pooled (G,)                 R over all test slides at once: it falls where a fold's model is
                                right on its own slides and off by a level of its own       [ours]
    n, n_slides (G,)            patients and slides behind r
    p, hs, bh (G,)              of the null that decides: p; by Holm-Šidák; by Benjamini-Hochberg
    null                        its name
    all_p {null: (G,)}          p under every null
    fits {null: (mean, n)}      its mean and largest n; r_sign {null: R}: what the best gene needs
    """
    drawn = {"decoys": decoys, "untrained": untrained}
    drawn = {name: r for name, r in drawn.items() if r is not None}
    null = null or next(iter(drawn), "t")
    few = (n_genes or y.shape[1]) < FEW_GENES
    results = {}
    for cancer, group in cancers(projects).items():
        folds = fold_r(prediction, y, fold, group, n_folds)  # (F, G)
        r = mean_of_values(folds)  # (G,)
        n = counts_behind(folds, fold, group, patients)  # (F, G)
        nulls = {name: stats.null_fit(of[cancer]) for name, of in drawn.items()}
        nulls["t"] = 0.0, n.sum(0)
        nulls["permutation"] = 0.0, permutation_n(n)
        if few and "decoys" in nulls:
            mean, fitted = nulls["decoys"]
            nulls["decoys"] = mean, np.minimum(fitted, 1 + (permutation_n(n) - 1) / 2)
        results[cancer] = {
            "slides": int(group.sum()),
            "patients": int(count_patients(patients, group)),
            "folds": folds,
            "r": r,
            "pooled": stats.pearson(prediction[group], y[group]),
            "n": n.sum(0),
            "n_slides": counts_behind(folds, fold, group, None).sum(0),
            **judge(np.where((n >= stats.MIN_R).any(0), r, np.nan), nulls, null),
        }
    return results


def counts_behind(folds, fold, group, patients):
    """The patients behind each fold's R, 0 where there is none: folds (F, G) -> (F, G)."""
    tested = [count_patients(patients, group & (fold == f)) for f in range(len(folds))]
    return np.where(np.isnan(folds), 0, np.array(tested)[:, None])


def judge(r, nulls, null):
    """p of R (G,) under each null {name: (mean, n)}, and corrected under one: see `evaluate`."""
    n_tests = int((~np.isnan(r)).sum())
    all_p, fits, thresholds = {}, {}, {}
    for name, (mean, n) in nulls.items():
        largest = float(np.nan_to_num(n).max(initial=0))  # n differs where a fold has no R
        all_p[name] = stats.null_p(r, mean, n)
        fits[name] = mean, largest
        thresholds[name] = r_sign(n_tests, largest, mean)
    p = all_p[null]
    return {
        "all_p": all_p,
        "fits": fits,
        "r_sign": thresholds,
        "null": null,
        "p": p,
        "hs": stats.holm_sidak(p),
        "bh": stats.benjamini_hochberg(p),
    }


def significant_genes(results, correction="hs", merged=True):
    """(P, G) bool, a row for each cancer of `separate`.

    `stats.recurrent` says of it in how many cancers a gene is significant. [HE2RNA Fig. 2b]
    """
    rows = []
    for name in separate(results, merged):
        rows.append(results[name][correction] < ALPHA)
    return np.array(rows)


# ----- Pathways  [HE2RNA Results; Methods, GSEA signatures, Statistics; Figs. 2c-e, 3] -----------


def well_predicted(r, significant, at_least=1, min_r=None):
    """The hits and the universe of Fisher's exact tests: two (G,) bool.

    r, significant (P, G) of P cancers. Hits are significant in at least so many of them, 12 of 28
    in Fig. 2c. Where very many genes are significant, the paper keeps those with R > .4 (BRCA and
    LIHC, protein-coding genes alone, in Fig. 2d-e); min_r stands in place of p here [ours]. The
    universe is the genes that have an R [ours]. `stats.enrichment` takes the names of both, and any
    gene sets in place of the commercial ones [ours]. [HE2RNA Methods, Statistics and
    reproducibility]
    """
    hit = significant
    if min_r is not None:
        hit = np.nan_to_num(r, nan=-2) > min_r  # -2: below any R
    count, _ = stats.recurrent(hit)
    universe = ~np.isnan(r).all(0)
    return count >= at_least, universe


def signature_test(r, significant, members, rng, level=None, n_lists=stats.N_LISTS):
    """Are a pathway's genes better predicted than random lists of as many? [HE2RNA Fig. 3]

    r, significant (P, G); members (pathways, G) bool; level (G,): lists of like mean expression
    [ours], else of any genes. -> the dict of `stats.random_list_test`: mean R and share of
    significant genes of the pathway and of the lists, and p, the share of lists that reach the
    pathway. `stats.combine_sets` gives a pathway's genes, those in at least two of its sets.
    Housekeeping genes, the paper's control, are one more row [HE2RNA Fig. S4]. [HE2RNA Methods,
    GSEA signatures]
    """
    bins = None
    if level is not None:
        bins = stats.expression_bins(level)
    return stats.random_list_test(
        r.T,
        significant.T,
        members,
        n_lists,
        rng,
        bins,
    )


# ----- Where on the slide  [HE2RNA Methods, Visual spatialization; Fig. 4] ------------------------


@torch.inference_mode()
def score_tiles(models, features, block=4096):
    """Every tile's score for every gene, the mean of the models: features (T, D) -> (T, G).

    Of a slide that no model learned from the paper takes all five; else give the one that did not.
    The map of a group of genes, such as CD3's four, is the mean over its columns. [HE2RNA Results,
    virtual spatialization]
    """
    device = next(models[0].parameters()).device
    scores = []
    for first in range(0, len(features), block):
        x = np.asarray(features[first : first + block], np.float32)
        x = torch.from_numpy(x).to(device)
        total = 0
        for model in models:
            total = total + model.eval().tile_scores(x)
        mean = total / len(models)
        scores.append(mean.cpu().numpy())
    return np.concatenate(scores)


def mean_of_genes(prediction, y, genes):
    """A group of genes as one gene, for `evaluate` with the network's n_genes: (S, 1), (S, 1).

    The paper's R of CD3's four in LIHC is .43. [HE2RNA Results, virtual spatialization]
    """
    columns = prediction[:, genes], y[:, genes]
    return tuple(column.mean(1, keepdims=True) for column in columns)


def provenance(scores, ks=KS_SUPERTILES):
    """How much each tile counts in one model's prediction of one gene: scores (T,) -> (T,).

    The weights sum to 1, and weights @ scores is the prediction, with `top_k_mean` and no relu.
    [HE2RNA Methods, Model architecture]
    """
    order = np.argsort(-scores, kind="stable")
    ranked = rank_weights(len(scores), ks)
    weights = np.empty(len(scores))
    weights[order] = ranked.double().numpy()
    return weights


def best_tiles(scores, n=BEST_TILES):
    """The rows of the highest scores, best first. [HE2RNA Fig. 4d]

    At most half of all tiles, so that best and lowest share none [ours]. Of -scores: the rows of
    the lowest, lowest first [HE2RNA Fig. 4e].
    """
    n = max(1, min(n, len(scores) // 2))
    return np.argsort(-scores, kind="stable")[:n]


def against_cells(scores, cells):
    """Scores against the cells counted on each tile, both (T,). [HE2RNA Fig. 4c]

    -> R, the median count of the best tiles, and that of all tiles. [HE2RNA Results]
    """
    best = best_tiles(scores)
    r = stats.pearson(scores, cells)
    return r, np.median(cells[best]), np.median(cells)


# ----- Transcriptomic representation  [HE2RNA Fig. 1, Fig. S1] ------------------------------------


@torch.inference_mode()
def representations(models, features):
    """A slide in the last hidden layer of each model: features (T, D) -> (M, H).

    The mean of its tiles goes in as one super-tile [HE2RNA Results, MSI status prediction]. The
    networks there are trained on such means and have H = 256 (below); these need not be [ours].
    """
    mean = np.asarray(features, np.float32).mean(0)  # (D,)
    x = torch.from_numpy(mean).to(next(models[0].parameters()).device)
    each = []
    for model in models:
        h = model.eval().representation(x)  # (H,)
        each.append(h.cpu().numpy())
    return np.stack(each)


# ----- Hospitals A and B  [HE2RNA Methods, MSI status; Results, MSI status prediction; Fig. 5] ----
# Hospital A learns a representation of slides from their expression, and B learns MSI-H from few
# patients. An arm is one way to describe a slide to B's M classifiers, one for each test fold of
# each repeat. One of the MSI_SPLITS, for a share of the patients in A, 1/6 to 5/6 in the paper;
# slides and patients are one here:
#
#     in_a = hospital_a(high, share, rng)                         # (N,) bool
#     a, b = np.flatnonzero(in_a), np.flatnonzero(~in_a)          # their rows
#     fold = stats.patient_folds(patients[a], projects[a], MSI_FOLDS, seed)
#     tests = folds_in_b(patients[b], high[b], [seed])            # (M, N of B)
#     rows_a = [a[fold != f] for f in range(MSI_FOLDS)]
#     rows_b = [b[~test] for test in tests]
#     hospitals = Hospitals(x, y, high, rows_a, rows_b, [seed])
#     scores = MSI_ARMS["transcriptome"](hospitals)[:, :, b]      # (networks, M, N of B)
#     auc = fold_aucs(scores, np.arange(len(b)), high[b], tests).mean()    # of this split


def hospital_a(high, share, rng):
    """Which patients are hospital A's: (N,) bool, a share of them, and of MSI-H the same share.

    high (N,) bool. With an rng of the same seed a larger share holds the smaller one, so that
    shares are compared on one draw. The paper's draw ignores MSI, and can leave a fold without
    MSI-H. [ours]
    """
    place = np.empty(len(high))
    for kind in (True, False):
        shuffled = rng.permutation(np.flatnonzero(high == kind))
        place[shuffled] = (np.arange(len(shuffled)) + 0.5) / len(shuffled)
    order = np.lexsort((~high, place))  # ties go to MSI-H: A's number of them is always the same
    in_a = np.zeros(len(high), bool)
    in_a[order[: int(share * len(high))]] = True
    return in_a


def standardise(x, rows):
    """x (S, D) less the mean of some rows, over their SD [HE2RNA code]; constants: only shifted.

    The rows are training ones. The authors take the whole cohort's features, a leak. [ours]
    """
    sd = x[rows].std(0, dtype=np.float64)
    sd[np.ptp(x[rows], axis=0) == 0] = 1
    return ((x - x[rows].mean(0, dtype=np.float64)) / sd).astype(np.float32)


def above_floor(y):
    """Which genes of y (S, G), in log already, have a median above the floor, the log of a = 0.

    The floor is 0 for log(1 + a), and for log2(small + a), where it is negative, the least of y.
    `expressed` does it before the log. Of COAD 28,334 genes remain. [HE2RNA Methods, MSI status]
    """
    return np.median(y, axis=0) > min(0, y.min())


SECOND_LAYER = 4  # items of a network up to its second activation: the 256-d code


class Recipe(NamedTuple):
    """The shape of some networks, and how they are trained."""

    kind: int  # 0: A's networks, 1: autoencoders, 2: classifiers; each kind draws its own seeds
    sizes: tuple  # of the input and of each layer
    activations: tuple  # of each layer
    epochs: int
    batch: int
    keras: bool = False  # drawn as by Keras [HE2RNA code]


class Lesson(NamedTuple):
    """What one network learns: target (S, K) from x (S, D), on some rows."""

    x: np.ndarray
    target: np.ndarray | None  # None: the scaled x itself, for an autoencoder
    rows: np.ndarray
    known: np.ndarray  # rows whose mean and SD scale x: those that train, no test patient's [ours]
    seed: int

    def arrays(self):
        """(x, target) as the network sees them."""
        x = standardise(self.x, self.known)
        return x, x if self.target is None else self.target


def draw_network(sizes, activations, seed, keras=False):
    """Dense layers, drawn uniformly within 1 / sqrt(inputs), as torch does. [ours]

    keras: weights within Glorot's bound, biases 0. [HE2RNA code]
    """
    draw = torch.Generator().manual_seed(seed)
    model = nn.Sequential()
    for (n_in, n_out), activation in zip(pairwise(sizes), activations, strict=True):
        bound = n_in**-0.5
        layer = nn.Linear(n_in, n_out)
        layer.weight.data = torch.empty(n_in, n_out).uniform_(-bound, bound, generator=draw).T
        layer.bias.data.uniform_(-bound, bound, generator=draw)
        if keras:
            layer.weight.data *= (6 * n_in / (n_in + n_out)) ** 0.5
            layer.bias.data.zero_()
        model.extend([layer, activation()])
    return model


def fit(model, x, target, epochs, batch, seed):
    """Train by Adam [HE2RNA code]: x (n, D), target (n, K).

    The loss is the cross-entropy after a sigmoid, else the mean squared error. [HE2RNA code]
    """
    loss_of = nn.functional.mse_loss
    if isinstance(model[-1], nn.Sigmoid):
        loss_of = nn.functional.binary_cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), MSI_RATE)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(x)))
        for rows in order.split(batch):
            loss = loss_of(model(x[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def train_networks(recipe, lessons):
    """Train one network after another. Yields, of each, (second layer, last layer) of all slides.

    lab.fast.networks.train_networks is its exact twin, which trains many at once.
    """
    for lesson in lessons:
        x, target = map(torch.from_numpy, lesson.arrays())
        model = draw_network(recipe.sizes, recipe.activations, lesson.seed, recipe.keras)
        fit(model, x[lesson.rows], target[lesson.rows], recipe.epochs, recipe.batch, lesson.seed)
        with torch.no_grad():
            yield model[:SECOND_LAYER](x).numpy(), model(x).numpy()


class Hospitals(NamedTuple):
    """One division of the slides into hospitals A and B, and the folds within each."""

    x: np.ndarray  # (S, D) mean feature of each slide
    y: np.ndarray  # (S, G) log expression, learned from in A
    high: np.ndarray  # (S,) MSI-H, learned from in B
    rows_a: list  # for each of A's networks the rows of its training folds
    rows_b: list  # for each of B's M classifiers the rows that it learns from
    seed: list
    train: Callable = train_networks

    def teach(self, recipe, inputs, targets, rows_of):
        """Train a network on each set of rows, each with a seed of its own."""
        rng = np.random.default_rng([*self.seed, recipe.kind])
        seeds = rng.integers(2**62, size=len(rows_of)).tolist()
        lessons = []
        for x, target, rows, seed in zip(inputs, targets, rows_of, seeds, strict=True):
            lessons.append(Lesson(x, target, rows, known=rows, seed=seed))
        return self.train(recipe, lessons)


def learn_expression(hospitals):
    """Hospital A, 2048-1024-256-G: z-scored log expression [HE2RNA code] from the mean feature."""
    recipe = Recipe(
        kind=0,
        sizes=(hospitals.x.shape[1], *MSI_HIDDEN, hospitals.y.shape[1]),
        activations=(nn.Sigmoid, nn.Sigmoid, nn.Identity),
        epochs=MSI_EPOCHS,
        batch=MSI_GENE_BATCH,
    )
    targets = [standardise(hospitals.y, rows) for rows in hospitals.rows_a]
    return hospitals.teach(recipe, [hospitals.x] * len(targets), targets, hospitals.rows_a)


def learn_autoencoder(hospitals, rows_of):
    """2048-1024-256-1024-2048: "three hidden dense layers ... with ReLU and linear activations".

    [HE2RNA Methods, MSI status] Linear are the 256, and the output [HE2RNA code]. One for each set
    of rows [ours].
    """
    recipe = Recipe(
        kind=1,
        sizes=(hospitals.x.shape[1], *MSI_HIDDEN, MSI_HIDDEN[0], hospitals.x.shape[1]),
        activations=(nn.ReLU, nn.Identity, nn.ReLU, nn.Identity),
        epochs=MSI_EPOCHS,
        batch=MSI_GENE_BATCH,
    )
    inputs = [hospitals.x] * len(rows_of)
    return hospitals.teach(recipe, inputs, [None] * len(rows_of), rows_of)


def classify(hospitals, codes, hidden):
    """Train hospital B's classifiers, every layer a sigmoid. [HE2RNA Methods, MSI status]

    codes: an array (S, D) for each network, M or a multiple of M of them -> scores (networks of
    each classifier, M, S). Those of one classifier differ in their seed alone.
    """
    recipe = Recipe(
        kind=2,
        sizes=(codes[0].shape[1], *hidden, 1),
        activations=(nn.Sigmoid,) * (len(hidden) + 1),
        epochs=MSI_EPOCHS,
        batch=MSI_BATCH,
    )
    M = len(hospitals.rows_b)
    rows_of = hospitals.rows_b * (len(codes) // M)
    label = hospitals.high[:, None].astype(np.float32)
    outputs = hospitals.teach(recipe, codes, [label] * len(codes), rows_of)
    scores = np.stack([score[:, 0] for _, score in outputs])
    return scores.reshape(-1, M, len(label))


def classify_mean(hospitals, networks):
    """B's classifiers on the mean of three networks' codes. [HE2RNA Methods, MSI status]"""
    code = np.mean([code for code, _ in networks], 0)
    return classify(hospitals, [code] * len(hospitals.rows_b), MSI_CLASSIFIER[1:])


def transcriptome_arm(hospitals):
    """The representation that A learns from expression."""
    return classify_mean(hospitals, learn_expression(hospitals))


def direct_arm(hospitals):
    """The mean feature itself."""
    return classify(hospitals, [hospitals.x] * len(hospitals.rows_b), MSI_CLASSIFIER)


def ensemble_arm(hospitals):
    """As many direct networks as A has, so that averaging alone explains nothing. [ours]"""
    return classify(
        hospitals, [hospitals.x] * len(hospitals.rows_b) * len(hospitals.rows_a), MSI_CLASSIFIER
    )


def autoencoder_a_arm(hospitals):
    """The representation of autoencoders of A's slides, of its three the mean [ours]."""
    return classify_mean(hospitals, learn_autoencoder(hospitals, hospitals.rows_a))


def autoencoder_b_arm(hospitals):
    """The representation of an autoencoder of the slides that the classifier learns from.

    The authors' sees all of hospital B, a leak. [ours]
    """
    networks = learn_autoencoder(hospitals, hospitals.rows_b)
    return classify(hospitals, [code for code, _ in networks], MSI_CLASSIFIER[1:])


MSI_ARMS = {
    "transcriptome": transcriptome_arm,
    "direct": direct_arm,
    "ensemble": ensemble_arm,
    "autoencoder-a": autoencoder_a_arm,
    "autoencoder-b": autoencoder_b_arm,
}


def folds_in_b(patients, high, seed, folds=MSI_FOLDS, repeats=MSI_REPEATS):
    """(M, N) bool: the test patients of each fold of each repeat, each with its share of MSI-H.

    patients, high (N,) of hospital B. Even shares are [HE2RNA code].
    """
    tests = []
    for repeat in range(repeats):
        kinds = high.astype(str)  # in place of projects: each fold gets its share of MSI-H
        fold = stats.patient_folds(patients, kinds, folds, [*seed, repeat])
        tests += [fold == f for f in range(folds)]
    return np.array(tests)


def fold_aucs(scores, patient, high, tests):
    """AUC [HE2RNA Methods, Statistics and reproducibility] of each test fold by itself [ours]: (M,)

    scores: of `classify`, B's slides alone (networks, M, S of B), of which a patient's score is the
    mean [ours]; patient (S of B,) of each slide, as 0..N-1 of B's N patients; high (N,); tests (M,
    N).
    """
    slides = np.bincount(patient)
    aucs = []
    for score, test in zip(scores.mean(0), tests, strict=True):
        mean = np.bincount(patient, score) / slides  # (N,)
        aucs.append(stats.roc_auc(high[test], mean[test]))
    return np.array(aucs)


def arms_p(aucs, others):
    """The two-tailed Wilcoxon test of two arms' AUC [HE2RNA Fig. 5c], paired over splits [ours].

    It tells of other splits of these patients; `stats.corrected_t` of other patients.
    """
    return stats.wilcoxon_signed_rank(aucs, others)[1]
