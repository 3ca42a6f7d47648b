"""HistCode: tile features learned without labels, pooled by attention to diagnose tumours and to tell which genes change.

Huang et al., "Contrastive learning-based computational histopathology predict differential expression of cancer driver
genes" (2022), arXiv:2204.11994. Two views of a tile must lie nearer to each other than to a bank of negatives, and the
negatives are moved to make that as hard as can be: one min-max objective [HistCode eqs. 1-4; AdCo, arXiv:2011.08435]. The
encoder then stays as it is: gated attention pools a slide's tiles [eqs. 5-6], a layer diagnoses [eq. 7], and the tiles of
highest and lowest attention predict fold changes [eq. 8]. The file reads in the order of the paper's Methods; the commands
stand at its end.

    python histcode.py pretrain COHORT                      -> COHORT/runs/adco/adco.pt, log.jsonl, config.json
    python histcode.py pretrain COHORT --method simclr      the same loop with SimCLR's loss, to compare
    python histcode.py pretrain COHORT --show-views         only runs/adco/views.png: what the two views look like
    python histcode.py probe COHORT COHORT/runs/adco/adco.pt random   does it learn? R2 of the cells in a tile
    torchrun --nproc-per-node 8 histcode.py pretrain COHORT              the same on 8 GPUs; --batch stays the whole batch
    python histcode.py diagnose COHORT --encoder FILE --rotate   tumour or normal (--table: the six rows of Table 1)
    python histcode.py diagnose --bags musk1.csv            the same on a multiple-instance table: label, bag, features
    python histcode.py expression COHORT --encoder FILE     which genes change between tumour and normal tissue (Figs. 4-9)
    python histcode.py ablation COHORT --encoders FILE FILE encoders x poolings on that task (Fig. 6)
    python histcode.py heatmap RUN SLIDE...                 where the models look (Figs. 10, 11); predict RUN SLIDE...
    python histcode.py choices                              where paper and authors' code differ, and what is done here
    python histcode.py pretrain COHORT --code in-batch --name in-batch      one of them turned to its other side
    python histcode.py audit [COHORT]                       what each is worth -> COHORT/runs/histcode-audit/audit.md

COHORT is a folder with slides/ and samples.csv, as for tiling.py, and expression.csv for fold changes; RUN is
COHORT/runs/NAME. A command that was interrupted goes on where it was.

Glossary: B tiles (or slides) of a batch, K negatives in the bank, d numbers of an embedding, D features, h embedding before
the two layers, q and k the unit embeddings of a tile's two views, w a raw negative, tau temperature; T tiles of a slide,
a their attention, z the slide's vector, C classes or outputs, M networks trained as one, G genes, P patients with tumour
and normal expression, fc fold change, y = log10(fc + 1).
Tags: [HistCode ...] the paper, [HistCode code] and [AdCo code] only the authors' released code, [ours] our choice.
"""

import argparse
import copy
import hashlib
import itertools
import json
import math
import os
import re
import shlex
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from scipy.linalg import lapack
from torch import nn
from torch.nn import functional as F

import stats
import tiling
from tiling import InputError, chosen_of, clock, few, flipped, save_csv, save_file, save_text, saw, switches

# ---------------------------------------------------------------------------------------------------------------------
# Constants
# ---------------------------------------------------------------------------------------------------------------------
TILE_UM = 128.0              # edge of a tile, µm                       [HistCode Methods, Image processing]
MAX_TILES = 10 ** 9          # of a slide: all                          [HistCode Methods, Image processing]
TILE_PX = 256                # edge of a tile as it is read             [HistCode Methods, Image processing]
EDGES = 32, 2048             # of them that can be asked for, px        [ours]
VIEW_PX = 224                # edge of a view                           [HistCode code]
CROP_AREA = (0.2, 1.0)       # share of the tile's area in a view       [AdCo code]
CROP_RATIO = (3 / 4, 4 / 3)  # width : height of a crop                 [AdCo code]
CROP_DRAWS = 10              # until one lies in the tile, else all of it  [AdCo code]
JITTER = (0.4, 0.4, 0.4, 0.1)    # brightness, contrast, saturation: 1 ± it; hue: ± it, in turns  [AdCo code]
JITTER_CHANCE = 0.8          #                                          [AdCo code]
GRAY_CHANCE = 0.2            #                                          [AdCo code]
BLUR_CHANCE = 0.5            #                                          [AdCo code]
BLUR_SIGMA = (0.1, 2.0)      # px of a view of 224; smaller views less, the same tissue [AdCo code; scaling ours]
TURN_CHANCE = 0.5            # of each of two mirrors and a transposition: tissue has no up; the authors mirror once [ours]
GREY = (0.299, 0.587, 0.114)     # luminance of R, G, B                 [AdCo code]
EMBEDDING = 128              # d                                        [HistCode code]
STAGES = 3                   # "the first four main layers (the output ... is 1024)"  [HistCode Methods]
MOMENTUM_ENCODER = 0.999     # keys come from a slow copy; eq. 1 does not say from which network. With one network the
#   shortest way down is to move all embeddings away from the bank at once: collapse within 30 steps [HistCode code]
TAU = {"adco": 0.12, "simclr": 0.1}      # temperature; the paper is silent [HistCode code; Chen et al. 2020]
LEARNING_RATE = 0.03         # SGD                                      [HistCode Methods]
WEIGHT_DECAY = 1e-4          # of the encoder and of the bank           [HistCode Methods; bank: HistCode code]
MOMENTUM = 0.9               # of the encoder and of the bank           [HistCode Methods; bank: HistCode code]
BANK_RATE = 0.3              # lambda of eq. 4; 3 in AdCo's own code    [HistCode code]
BANK_SIZE = 65536            # K of a random bank, and at most          [AdCo code]
BANK_PERCENT = 20.0          # of each slide's tiles; the paper: "a percentage"     [HistCode code]
BATCH = 256                  # tiles of a step, over all processes      [AdCo code]
EPOCHS = 50                  #                                          [HistCode code]
TILES_PER_SLIDE = 256        # drawn anew each epoch; the paper takes all [ours]
BANK_OPTIONS = ("bank_tau", "bank_lr", "bank_momentum", "bank_decay", "bank_percent", "bank_size", "in_batch", "symmetric",
                "momentum_encoder")        # that SimCLR has not
BANK_BLOCK = 2048            # negatives whose similarities are held at a time [ours]
POOL_BYTES = 2 ** 31         # tiles held to be shuffled over slides, over all processes [ours]
READ_TILES = 64              # of one slide, read in one go             [ours]
COLLAPSED = 0.05             # spread of the embeddings (1: all over the sphere, 0: all equal) below which it is said [ours]
RIDGE = tuple(10.0 ** np.arange(0, 7))   # penalties a probe chooses from, per unit variance of a feature [ours]
PROBE_FOLDS = 5              #                                          [ours]
ATTENTION = 256              # rows of V and U                          [HistCode code]
WIDEST = 10 ** 5             # layer that can be asked for                [ours]
QUERIES = 128                # of DSMIL's queries                       [DSMIL code]
TOP_TILES = 10               # of MIL-RNN's                             [Campanella et al. 2019]
STATE = 128                  # of its recurrent network                 [Campanella et al. 2019]
DIAGNOSIS = dict(lr=1e-4, weight_decay=1e-5, epochs=50, folds=10, repeats=1, hidden=ATTENTION, embed=())
#                            # slides: Adam, one slide a step [HistCode code]; ten parts: 80/10/10 [HistCode Results]
BAGS = dict(lr=5e-4, weight_decay=5e-3, epochs=100, folds=10, repeats=5, hidden=64, embed=(64,))
#                            # small tables: rate, decay, epochs of Ilse et al. 2018 for MUSK1; one layer, Adam [ours]
TABLE_1 = {"MIL-RNN": (.8619, .9107), "ABMIL": (.9000, .9551), "DSMIL": (.9268, .9633), "max": (.8930, .8846),
           "mean": (.9114, .9073), "HistCode": (.9630, .9765)}     # accuracy, AUC: LUAD against LUSC [HistCode Table 1]
UNKNOWN = ("", "na", "nan", "unknown", "[not available]")     # labels that say nothing [ours]
TISSUES = {**dict.fromkeys(("1", "01", "yes", "true", "tumor", "tumour", "primary tumor", "primary tumour"), 1),
           **dict.fromkeys(("0", "11", "no", "false", "normal", "solid tissue normal"), 0)}    # words for tumour, normal [ours]
LOG2_FC = 1.5                # |log2 fc| above it: label 1              [HistCode Methods, Differential expression analysis]
ENDS = 100                   # l highest and l lowest tiles             [HistCode Methods, Differential expression prediction]
DRIVERS = 200                # genes of a compendium, by mutations            [HistCode Methods, Cancer driver genes]
LABEL_RATE, LABEL_EPOCHS = 2e-5, 100      # of the layer that learns labels: thousands of weights step at once [ours]
SHUFFLES = 10 ** 6           # R of shuffled patients behind a p, over all genes  [ours]
BAGS_AT_ONCE = 2 ** 25       # numbers of a step of networks on a table, 128 MB  [ours]
GENES_AT_ONCE = 16           # networks of one gene each, trained together    [ours]
POOLED = {"attention": "HistCode", "mean": "mean", "max": "max"}   # of Fig. 6, and max                 [HistCode Fig. 6]
BEST_GENES = 50              # whose gene sets are asked for                  [HistCode Fig. 9]
SHOWN = "PIK3CA MYC PTEN GATA3 CD3D CD3E CD3G CD247 CD19".split()            # [HistCode Fig. 8]
SHIFTS = 199                 # random shifts behind a p over tiles             [ours]
ALPHA = 0.05                 # after Benjamini-Hochberg                       [HistCode Results]
AUDIT = dict(pretrain="--weights random --tile-px 64 --view-px 48 --batch 32 --epochs 4 --tiles-per-slide 3 "
             "--momentum-encoder .99 --precision float32", probe="--tiles-per-slide 10",
             diagnose="--weights random --precision float32 --epochs 10 --hidden 64",
             expression="--weights random --precision float32 --epochs 10 --folds 5 --hidden 64 --genes CD3D,CD3E,CD3G,"
             "CD247,CD19,MKI67,TOP2A,CCNB1,COL1A1,COL3A1,FAP,ACTA2,ZG16,KRT20,ACTB,GAPDH")
#                            # options of audit's runs without a cohort, small budgets [ours]
AUDIT_PATIENTS, AUDIT_SEEDS = 40, 3      # of that cohort; runs of each choice  [ours]
SHARED = ("pretrain", "diagnose", "expression", "ablation")    # commands that several processes share out   [ours]
VERSION = 1                  # of a run's files; another is refused     [ours]
SOURCE = "HistCode (Huang et al. 2022, arXiv:2204.11994), contrastive pretraining of the tile encoder"


# ---------------------------------------------------------------------------------------------------------------------
# Choices: all that paper and authors' code disagree on or leave open, as far as a switch can express it
# ---------------------------------------------------------------------------------------------------------------------
# Rule: the paper; where it is silent or ambiguous, the authors' code; where that is a defect or a leak, the correct thing.
# A row: command and name for its --code NAME,..; the paper; the authors' code; ours; the other side, which --code turns
# this one choice to (code or paper: that side, as --follow does with all of its; else in words); the tag of ours.
CHOICES = (
    ("pretrain", "tissue", "Otsu; \"the threshold 8\"", "Otsu of the saturation (lung), or saturation above 8; they exclude "
     "each other", "Otsu of the saturation", "saturation above 8; tiles/ is cut anew", "[HistCode code]"),
    ("pretrain", "--min-area", "tiles whose tissue is under 100 (of what, it does not say) dropped",
     "pieces of tissue under 100 squares of 512 px of level 0 dropped", "none dropped", "--min-area 100", "[ours]"),
    ("pretrain", "colour", "normalised; the method is not named, here Macenko's", "none", "none: a method would be a guess",
     "paper", "[HistCode code]"),
    ("pretrain", "tiles", "all tiles", "all tiles, one slide after the other",
     f"{TILES_PER_SLIDE} of each slide, drawn anew each epoch", "paper", "[ours]"),
    ("pretrain", "batch", "silent", "250; AdCo's 256", "AdCo's", "code", "[AdCo code]"),
    ("pretrain", "lr", ".03", ".001", "the paper's", "code", "[HistCode Methods]"),
    ("pretrain", "cosine", "one rate", "it falls along half a cosine to .0006", "the paper's", "code", "[HistCode Methods]"),
    ("pretrain", "momentum-encoder", "eq. 1 does not say which network makes the keys", "a slow copy, .999", "the code's",
     "none: one encoder for both views", "[HistCode code]"),
    ("pretrain", "in-batch", "negatives are the bank alone", "the keys of the other tiles too", "the paper's", "code",
     "[HistCode eq. 1]"),
    ("pretrain", "bank-tau", "one temperature for both sides of the game", ".02 in the bank's step, .12 in the loss",
     "the paper's", "code", "[HistCode eqs. 1-4]"),
    ("pretrain", "bank-lr", "silent", ".3; AdCo's 3", "the code's", "3, as AdCo's own code", "[HistCode code]"),
    ("pretrain", "bank-step", "the gradient alone (eq. 4)", "momentum .9, weight decay .0001, as of the encoder",
     "the code's", "paper", "[HistCode code]"),
    ("pretrain", "bank-size", "a percentage of each slide's tiles", "20 %, 318,193 in all; AdCo's 65,536",
     "20 %, 65,536 at most", "code", "[AdCo code]"),
    ("diagnose", "folds", "five tests of 10 %: half of the patients", "five, its lists not released", "the paper's",
     "each of the ten parts tests in turn", "[HistCode Results, Tumor diagnosis]"),
    ("diagnose", "stop", "a validation part of 10 %", "none chooses: the last of 50 epochs", "validation patients choose "
     "the epoch", "the test part chooses it, as in expression's code", "[HistCode Results, Tumor diagnosis]"),
    ("diagnose", "embed", "attention on the features (eqs. 5-6)", "a layer of 512 before it", "the paper's", "code",
     "[HistCode eqs. 5-6]"),
    ("diagnose", "--colour", "normalised; the method is not named", "none", "as the encoder's file says, else none",
     "--colour macenko", "[HistCode code]"),
    ("expression", "--colour", "normalised; the method is not named", "none", "as the encoder's file says, else none",
     "--colour macenko", "[HistCode code]"),
    ("expression", "model", "one linear layer a gene, on both ends of the attention (eq. 8)", "an attention regressor for "
     "each gene", "the paper's", "code", "[HistCode eq. 8]"),
    ("expression", "epochs", "silent", "50 of the classifier, 200 at most of a gene's regressor", "the classifier's",
     "code", "[HistCode code]"),
    ("expression", "stop", "silent", "the test part chooses the epoch",
     "validation patients choose the epoch", "code", "[ours]"),
    ("expression", "embed", "attention on the features (eqs. 5-6)", "a layer of 512 before it", "the paper's", "code",
     "[HistCode eqs. 5-6]"),
    ("expression", "slides", "\"single whole slide image\"", "a list of slides, not released",
     "all tumour slides of the patient, as one", "tiles of the normal slides too", "[ours]"))
TURNED = {                   # the options that a choice turns; stop has none
    "pretrain": {
        "tissue": dict(tissue="saturation", tissue_threshold=8.0), "colour": dict(colour="macenko"),
        "tiles": dict(tiles_per_slide=10 ** 9), "batch": dict(batch=250), "lr": dict(lr=.001),
        "cosine": dict(cosine=True, final_lr=.0006),
        "momentum-encoder": dict(momentum_encoder=0.0), "in-batch": dict(in_batch=True), "bank-tau": dict(bank_tau=.02),
        "bank-lr": dict(bank_lr=3.0), "bank-step": dict(bank_momentum=0.0, bank_decay=0.0),
        "bank-size": dict(bank_size=318193)},
    "diagnose": {"folds": dict(rotate=True), "embed": dict(embed=(512,))},
    "expression": {"model": dict(model="attention", per_gene=True), "epochs": dict(epochs=200), "embed": dict(embed=(512,)),
                   "slides": dict(slides="both")}}
UNSEEN = {"pretrain": dict(tiles="it takes too long", batch="batches are smaller") | {"bank-size": "the bank is smaller"},
          "expression": dict(epochs="it takes too long")}             # not measured on audit's simulated cohort [ours]
MAY_SEE = {"gene filter": "availability only: a gene needs fold changes, not all equal, in half of all pairs",
           "optimism table": None, "random baseline": None, "shuffled patients": None, "external cohort": None}
#   steps that see test patients, why they may; None: they judge, nothing learns from them


# ---------------------------------------------------------------------------------------------------------------------
# Two views of a tile: batched torch operations on the device  [AdCo code: the augmentations of MoCo v2]
# ---------------------------------------------------------------------------------------------------------------------
def draw_view(n, generator):
    """What a random view of each of n tiles will be, a dict of tensors with n rows, drawn from a CPU torch.Generator.

    box (n, 4) left, top, width, height as shares of the tile; turns (n, 3) mirror x, mirror y, transpose: the 8 symmetries
    of the square; colour (n, 4) brightness, contrast, saturation, hue; gray (n,) bool; sigma (n,) of the blur at 224 px.
    """
    uniform = lambda low, high, *shape: low + (high - low) * torch.rand(n, *shape, generator=generator)
    coin = lambda chance, *shape: torch.rand(n, *shape, generator=generator) < chance
    area, ratio = uniform(*CROP_AREA, CROP_DRAWS), uniform(*np.log(CROP_RATIO), CROP_DRAWS).exp()
    edges = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 2)     # (n, draws, 2) width, height
    fits = (edges <= 1).all(2)                                                 # (n, draws)
    edges = torch.where(fits.any(1)[:, None], edges[torch.arange(n), fits.float().argmax(1)], 1)    # (n, 2) the first
    corner = uniform(0, 1, 2) * (1 - edges)
    still, reach = torch.tensor([1, 1, 1, 0.]), torch.tensor(JITTER)
    colour = torch.where(coin(JITTER_CHANCE, 1), still + uniform(-1, 1, 4) * reach, still)
    return dict(box=torch.cat([corner, edges], 1), turns=coin(TURN_CHANCE, 3), colour=colour, gray=coin(GRAY_CHANCE),
                sigma=torch.where(coin(BLUR_CHANCE), uniform(*BLUR_SIGMA), 0))


def plain_view(n):
    """The view that is the whole tile as it is; same dict as draw_view."""
    rows, no = lambda *row: torch.tensor(row).repeat(n, 1), torch.zeros(n, dtype=torch.bool)
    return dict(box=rows(0., 0., 1., 1.), turns=rows(False, False, False), colour=rows(1., 1., 1., 0.), gray=no,
                sigma=torch.zeros(n))


def make_view(tiles, view, px):
    """Views as drawn: (n, 3, h, w) uint8, or float in 0..1 -> (n, 3, px, px) float32 in 0..1.

    Cutting, resizing, mirroring and blurring are products with one small matrix per axis and tile, so that each tile has
    its own box to a fraction of a pixel, and shrinking averages (antialiased), as Pillow's bilinear resize does. A
    grid_sample would be sparse but alias as soon as a crop shrinks. Both views: a tenth of a step on a CPU. [ours]
    """
    view = {k: v.to(tiles.device, non_blocking=True) for k, v in view.items()}
    x = tiles.float() / (1 if tiles.is_floating_point() else 255)
    mirror_x, mirror_y, transpose = view["turns"].T
    left, top, width, height = view["box"].T
    columns = resize_weights(left, width, x.shape[3], px, mirror_x)[:, None]   # (n, 1, px, w)
    rows = resize_weights(top, height, x.shape[2], px, mirror_y)[:, None]      # (n, 1, px, h)
    x = rows @ x @ columns.mT                                                  # (n, 3, px, px)
    x = torch.where(transpose[:, None, None, None], x.mT, x)
    x = jitter(x, *view["colour"].T[:, :, None, None, None])
    x = torch.where(view["gray"][:, None, None, None], luminance(x), x)
    weights = blur_weights(view["sigma"] * px / 224, px)[:, None]                                   # (n, 1, px, px)
    return (weights @ x @ weights.mT).clamp(0, 1)


def resize_weights(start, length, size, px, mirror):
    """(n, px, size): row i says how much of each of `size` pixels goes into pixel i of the resized crop (triangle filter).

    start, length (n,) of the crop as shares of the edge; mirror (n,) bool.
    """
    scale = (length * size / px)[:, None, None]                                # source pixels per pixel
    i, j = torch.arange(px, device=start.device)[:, None] + .5, torch.arange(size, device=start.device) + .5
    weights = (1 - (j - (start * size)[:, None, None] - i * scale).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights / weights.sum(2, keepdim=True)
    return torch.where(mirror[:, None, None], weights.flip(1), weights)


def blur_weights(sigma, px):
    """(n, px, px) Gaussian blur along one axis, sigma (n,) in pixels, 0: none; at the rim of what there is."""
    i = torch.arange(px, device=sigma.device, dtype=torch.float32)
    weights = torch.exp(-.5 * ((i[:, None] - i) / sigma.clamp(min=.01)[:, None, None]) ** 2)
    return weights / weights.sum(2, keepdim=True)


def luminance(x):
    """(n, 3, h, w) -> (n, 1, h, w)"""
    return sum(share * x[:, c:c + 1] for c, share in enumerate(GREY))


def jitter(x, brightness, contrast, saturation, hue):
    """Colours changed, each factor (n, 1, 1, 1), x (n, 3, h, w) in 0..1.

    In this order always; the authors' code draws an order for each picture, at four times the work. [ours]
    """
    x = (brightness * x).clamp(0, 1)
    x = (contrast * x + (1 - contrast) * luminance(x).mean((2, 3), keepdim=True)).clamp(0, 1)
    x = (saturation * x + (1 - saturation) * luminance(x)).clamp(0, 1)
    return torch.where(hue == 0, x, shift_hue(x, hue[:, 0]))


def shift_hue(x, shift):
    """Hue turned by `shift` (n, 1, 1) of a full turn, saturation and value (of HSV) as they were. x (n, 3, h, w)."""
    (r, g, b), top = x.unbind(1), x.amax(1)
    chroma = top - x.amin(1)
    c = chroma.clamp(min=1e-12)                                                # grey has no hue: any will do
    hue = torch.where(top == r, (g - b) / c, torch.where(top == g, (b - r) / c + 2, (r - g) / c + 4)) + 6 * shift
    sixth = torch.stack([(n + hue) % 6 for n in (5, 3, 1)], 1)                 # (n, 3, h, w)
    return top[:, None] - chroma[:, None] * torch.minimum(sixth, 4 - sixth).clamp(0, 1)


def standardise(x):
    """0..1 -> as ImageNet weights want it. (n, 3, h, w)"""
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (tiling.IMAGENET_MEAN, tiling.IMAGENET_STD))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------------------------------
# Encoder  [HistCode Methods: "ResNet50 ... only the first four main layers (... 1024)"; "Two fully-connected layers"]
# ---------------------------------------------------------------------------------------------------------------------
class Embedder(nn.Module):
    """Views (B, 3, px, px) -> unit embeddings (B, d): ResNet50 up to its third stage, then 1,024-1,024-128 [HistCode code].

    Only `encoder` is kept for what follows; `projection` serves the loss.
    """

    def __init__(self, encoder, d=EMBEDDING):
        super().__init__()
        n = encoder.n_features
        self.encoder, self.projection = encoder, nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, d))

    def forward(self, x, precision="float32"):
        with torch.autocast(x.device.type, getattr(torch, precision), enabled=precision != "float32"):
            h = self.encoder(x)                                                # (B, D), summed in float32
        return F.normalize(self.projection(h.float()), dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# Loss and bank  [HistCode eqs. 1-4]
# ---------------------------------------------------------------------------------------------------------------------
def info_nce(q, k, bank, tau, in_batch=False):
    """Contrastive loss, mean over the batch. [HistCode eq. 1]

    q, k (B, d) unit embeddings of two views of each tile; bank (K, d) raw negatives w, normalised here: negatives live on
    the sphere. in_batch: the keys of the other tiles are negatives too [AdCo code].
    """
    own = q @ k.T if in_batch else (q * k).sum(1, keepdim=True)                # (B, B) or (B, 1)
    logits = torch.cat([own, q @ F.normalize(bank, dim=1).T], 1) / tau         # (B, 1 + K)
    right = torch.arange(len(q), device=q.device) if in_batch else torch.zeros(len(q), dtype=torch.long, device=q.device)
    return F.cross_entropy(logits, right)                                      # its log-sum-exp can't overflow


@torch.no_grad()
def bank_gradient(q, k, bank, tau, in_batch=False):
    """dL/dw of info_nce with the same arguments, (K, d), in closed form. [HistCode eq. 4]

    With u = w/|w| and p_ik the softmax share of negative k for query i:
        dL/dw_k = (1 / (B tau |w_k|)) (sum_i p_ik q_i - u_k sum_i p_ik q_i.u_k)
    The second term projects onto the sphere, so it is orthogonal to w_k. In blocks of negatives, whose similarities are
    computed twice rather than kept: first each query's denominator, then the shares. [ours]
    """
    own = q @ k.T if in_batch else (q * k).sum(1, keepdim=True)
    total = torch.logsumexp(own / tau, 1)                                      # (B,) log of the denominator so far
    norm, gradient = bank.norm(dim=1, keepdim=True), torch.empty_like(bank)    # (K, 1), (K, d)
    for w, n in zip(bank.split(BANK_BLOCK), norm.split(BANK_BLOCK)):
        total = torch.logaddexp(total, torch.logsumexp((w @ q.T).div_(n * tau), 0))
    for w, n, g in zip(bank.split(BANK_BLOCK), norm.split(BANK_BLOCK), gradient.split(BANK_BLOCK)):
        similarity = (w @ q.T).div_(n)                                         # (block, B)
        share = torch.exp(similarity / tau - total)
        torch.addcmul(share @ q, w, (share * similarity).sum(1, keepdim=True) / n, value=-1, out=g)
        g.div_(n * (len(q) * tau))
    return gradient


@torch.no_grad()
def bank_step(bank, velocity, gradient, rate, momentum=0.0, weight_decay=0.0):
    """One step up the loss: w <- w + rate v, v <- momentum v + gradient - weight_decay w. In place. [HistCode eq. 4]

    The paper prints eq. 4 with a minus but says "ascending direction", as AdCo does; momentum and weight decay: [AdCo code].
    """
    velocity.mul_(momentum).add_(gradient).sub_(bank, alpha=weight_decay)
    bank.add_(velocity, alpha=rate)


def nt_xent(z1, z2, tau):
    """SimCLR's loss: each view's positive is the tile's other view, its negatives the 2B - 2 other views. z (B, d) unit.

    Chen et al. 2020, eq. 1, arXiv:2002.05709. [HistCode Methods: "We have also tested ... SimCLR"]
    """
    z = torch.cat([z1, z2])                                                    # (2B, d)
    logits = (z @ z.T / tau).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z1)))


def spread(z):
    """How far unit embeddings (B, d) lie apart: sqrt(1 - |mean|^2), which is the root of d times the mean variance of a
    dimension, over sqrt(d). 1: all over the sphere; 0: all equal, a collapse."""
    return float((1 - z.mean(0).square().sum()).clamp(min=0).sqrt())


# ---------------------------------------------------------------------------------------------------------------------
# Several processes (torchrun): each embeds its part of the batch; embeddings are gathered and each computes the loss of
# the whole batch from them; BatchNorm sees the whole batch; gradients are summed. So two processes equal one. [ours]
# ---------------------------------------------------------------------------------------------------------------------
class AllSum(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum over processes too."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return AllSum.forward(ctx, gradient)


class AllRows(torch.autograd.Function):
    """Rows of all processes in their order. Each computes the same loss from them: its own rows' gradient is complete."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def all_rows(x):
    return AllRows.apply(x) if dist.is_initialized() else x


class GlobalBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batch of all processes. torch's SyncBatchNorm does the same but on GPUs alone. [ours]"""

    def forward(self, x):                                                      # (B, C, h, w)
        if not self.training:
            return super().forward(x)
        dtype, x, column = x.dtype, x.float(), lambda v: v[None, :, None, None]
        n = x.numel() // x.shape[1] * dist.get_world_size()
        mean = AllSum.apply(x.sum((0, 2, 3))) / n                              # (C,)
        x = x - column(mean)
        variance = AllSum.apply(x.square().sum((0, 2, 3))) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        return (x * column(self.weight * torch.rsqrt(variance + self.eps)) + column(self.bias)).to(dtype)


def share_batchnorm(net):
    """Put GlobalBatchNorm, with the same state, in place of every BatchNorm2d."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                shared = GlobalBatchNorm(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(module, name, shared)
    return net


def sum_gradients(net):
    """One all_reduce for the gradients of all parameters: simpler than DistributedDataParallel, which would overlap it."""
    if dist.is_initialized():
        gradients = [p.grad for p in net.parameters()]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for g, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            g.copy_(part.view_as(g))


# ---------------------------------------------------------------------------------------------------------------------
# Tiles of an epoch: read slide by slide, used shuffled over slides
# ---------------------------------------------------------------------------------------------------------------------
def choose_tiles(counts, per_slide, seed, epoch):
    """(N, 2) slide and tile, in the order of reading: slides shuffled, of slide s per_slide[s] random tiles of counts[s]."""
    rng = np.random.default_rng([seed, epoch])
    return np.concatenate([np.stack([np.full(m := min(per_slide[s], counts[s]), s),
                                     np.sort(rng.permutation(counts[s])[:m])], 1) for s in rng.permutation(len(counts))])


def mix(n, pool, rng):
    """Order (n,) in which things that are read one after another leave a pool: a random one of those in it leaves, the
    next one read takes its place. A whole shuffle where the pool holds all."""
    held, order = np.arange(min(pool, n)), np.empty(n, np.int64)
    picks = rng.random(n)
    for i in range(n):
        size = min(len(held), n - i)
        j = int(picks[i] * size)
        order[i] = held[j]
        held[j] = i + len(held) if i + len(held) < n else held[size - 1]
    return order


def read_batches(data, chosen, order, batch, rank=0, world=1, workers=1):
    """This process's part of each batch, (B / world, px, px, 3) uint8: rows `order` of `chosen` (slide, tile), what does not
    fill a batch left out.

    data: paths, coords [(n, 2)], tiles [edges] and stains (or None) of each slide, px; unchanged counts the tiles that keep
    their colours. Threads read ahead READ_TILES of a slide at a time, one more puts batches together. The pixels depend
    neither on `workers` nor on `world`.
    """
    steps = len(order) // batch
    mine = order[:steps * batch].reshape(steps, world, -1)[:, rank]            # (steps, B / world)
    wanted = np.sort(mine.ravel())                                             # as they are read
    cuts = np.flatnonzero(np.diff(chosen[wanted, 0])) + 1
    jobs = [part[i:i + READ_TILES] for part in np.split(wanted, cuts) for i in range(0, len(part), READ_TILES)]

    def read(rows):
        s = chosen[rows[0], 0]
        slide, coords, tile = tiling.open_slide(data["paths"][s]), data["coords"][s][chosen[rows, 1]], data["tiles"][s]
        parts = [tiling.macenko(tiling.read_tiles(slide, coords[a:b], tile, data["px"]), data["stains"][s])
                 for a, b in tiling.tile_runs(coords, tile)]
        return [np.concatenate(part) for part in zip(*parts)]

    stream, held = tiling.ordered_map(read, jobs, workers), {}

    def put_together(step):
        while not all(i in held for i in mine[step]):
            rows, got = next(stream)
            if isinstance(got, Exception):
                raise InputError(f"{data['paths'][chosen[rows[0], 0]]} can't be read to its end ({got}): take it out of "
                                 "samples.csv")
            held.update((i, tile.copy()) for i, tile in zip(rows, got[0]))     # a copy lets go of the others
            data["unchanged"] += int((~got[1]).sum())
        return np.stack([held.pop(i) for i in mine[step]])

    for _, tiles in tiling.ordered_map(put_together, range(steps), 1):
        if isinstance(tiles, Exception):
            raise tiles
        yield tiles


def two_views(tiles, px, batch, rank, world, *key):
    """The two views of this process's tiles (b, h, w, 3) uint8, each (b, 3, px, px) standardised; drawn for the whole batch
    from `key` (seed, epoch, step), so that neither processes nor interruptions change them."""
    x, own = tiles.permute(0, 3, 1, 2), slice(rank * batch // world, (rank + 1) * batch // world)
    for side in range(2):
        generator = torch.Generator().manual_seed(int(np.random.default_rng([*key, side]).integers(2 ** 62)))
        view = {k: v[own] for k, v in draw_view(batch, generator).items()}
        yield standardise(make_view(x, view, px))


# ---------------------------------------------------------------------------------------------------------------------
# Training  [HistCode eqs. 2-4; Methods: SGD, .03, weight decay .0001, momentum .9]
# ---------------------------------------------------------------------------------------------------------------------
def first_bank(model, data, counts, o, device, rank, world):
    """Bank at the start (K, d): embeddings of a percentage of each slide's tiles by the untrained model, one view each, or
    random unit vectors. [HistCode Methods]"""
    if o.bank_percent == 0:
        generator = torch.Generator().manual_seed(int(np.random.default_rng([o.seed, 0, 0, 2]).integers(2 ** 62)))
        return F.normalize(torch.randn(o.bank_size, EMBEDDING, generator=generator), dim=1).to(device)
    share = min(o.bank_percent / 100, o.bank_size / counts.sum())              # no more than --bank-size negatives
    chosen = choose_tiles(counts, np.ceil(share * counts).astype(int), o.seed, 0)
    order = mix(len(chosen), o.pool, np.random.default_rng([o.seed, 0, 1]))[:o.bank_size]
    batch, rows, model = min(o.batch, len(order) // world * world), [], model.train()
    tick = tiling.progress("bank", len(order) // batch * batch, "tiles") if rank == 0 else lambda n: None
    for step, tiles in enumerate(read_batches(data, chosen, order, batch, rank, world, o.workers)):
        x = next(two_views(torch.from_numpy(tiles).to(device), o.view_px, batch, rank, world, o.seed, 0, step))
        with torch.no_grad():
            rows.append(all_rows(model(x, o.precision)))
        tick(batch)
    return torch.cat(rows)


def train_step(model, keys, optimizer, bank, velocity, views, o):
    """One step down the loss for the encoder (eq. 3) and, on the same embeddings, one up for the bank (eq. 4).

    keys: the momentum encoder, or None: then the keys are the model's own and get their gradient too.
    bank None: SimCLR. Returns (loss, positive similarity, hardest negative similarity, spread).
    """
    x1, x2 = views
    q = all_rows(model(x1, o.precision))                                       # (B, d)
    if keys is None:
        k = all_rows(model(x2, o.precision))
        pairs = [(q, k), (k, q)][:1 + o.symmetric]
    else:
        with torch.no_grad():
            for p, new in zip(keys.parameters(), model.parameters()):
                p.lerp_(new, 1 - o.momentum_encoder)
            k = all_rows(keys(x2, o.precision))
        pairs = [(q, k)]
        if o.symmetric:
            q2 = all_rows(model(x2, o.precision))
            with torch.no_grad():
                pairs.append((q2, all_rows(keys(x1, o.precision))))
    if bank is None:
        loss = nt_xent(q, k, o.tau)
    else:
        loss = sum(info_nce(*pair, bank, o.tau, o.in_batch) for pair in pairs) / len(pairs)
    optimizer.zero_grad()
    loss.backward()
    sum_gradients(model)
    optimizer.step()
    with torch.no_grad():
        if bank is None:
            hardest = (q @ k.T).fill_diagonal_(-1).amax(1).mean()
        else:
            gradient = sum(bank_gradient(*pair, bank, o.bank_tau, o.in_batch) for pair in pairs) / len(pairs)
            if dist.is_initialized():                                          # equal but for rounding; kept equal
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
            hardest = (F.normalize(bank, dim=1) @ q.T).amax(0).mean()
            bank_step(bank, velocity, gradient, o.bank_lr, o.bank_momentum, o.bank_decay)
    return loss.item(), (q * k).sum(1).mean().item(), hardest.item(), spread(q.detach())


def learning_rate(o, epoch):
    """Of an epoch from 0: constant [HistCode Methods], or a half cosine down to --final-lr [HistCode code]."""
    return o.final_lr + .5 * (1 + math.cos(math.pi * epoch / o.epochs)) * (o.lr - o.final_lr) if o.cosine else o.lr


def save_encoder(path, model, o, epoch):
    """The file that `tiling.py features --encoder` takes; all of it plain values and tensors."""
    plain = lambda net: {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}
    settings = {**o.settings, "epochs_done": epoch}
    save_file(path, lambda f: torch.save(dict(
        version=tiling.ENCODER_VERSION, source=SOURCE, method=o.method, encoder=plain(model.encoder),
        projection=plain(model.projection),
        stages=model.encoder.stages, n_features=model.encoder.n_features, mean=tiling.IMAGENET_MEAN, std=tiling.IMAGENET_STD,
        tile_px=o.tile_px, tile_um=o.tile_um, colour=o.colour, settings=settings, patients=o.patients), f))


def train(model, data, counts, o, folder, device, rank, world):
    """All epochs. The state is saved after each, and every draw comes from (seed, epoch, step): a run that was interrupted
    ends as one that was not (on a GPU to rounding: cuDNN's sums have no fixed order)."""
    state_file, log = folder / "state.pt", folder / "log.jsonl"
    keys = copy.deepcopy(model).requires_grad_(False).train() if o.momentum_encoder else None
    optimizer = torch.optim.SGD(model.parameters(), o.lr, MOMENTUM, weight_decay=WEIGHT_DECAY)
    if state_file.is_file():
        state = tiling.load_checkpoint(state_file, device, model, "model optimizer keys bank velocity epoch".split())
        optimizer.load_state_dict(state["optimizer"])
        if keys is not None:
            keys.load_state_dict(state["keys"])
        bank, velocity, first = state["bank"], state["velocity"], state["epoch"]
    else:
        bank = None if o.method == "simclr" else first_bank(model, data, counts, o, device, rank, world)
        velocity, first = None if bank is None else torch.zeros_like(bank), 0
    if bank is not None:
        print(f"bank of {len(bank):,} negatives")
    if rank == 0:
        lines = log.read_text().splitlines()[:first] if log.is_file() else []  # what was not saved runs again
        save_file(log, lambda f: f.writelines((line + "\n").encode() for line in lines))
        if first:
            save_encoder(folder / f"{o.name}.pt", model, o, first)
    per_slide, start, figures = np.full(len(counts), o.tiles_per_slide), time.time(), []
    due, collapsed = tiling.seldom(), False
    for epoch in range(first + 1, o.epochs + 1):
        chosen, data["unchanged"] = choose_tiles(counts, per_slide, o.seed, epoch), 0
        order = mix(len(chosen), o.pool, np.random.default_rng([o.seed, epoch, 1]))
        optimizer.param_groups[0]["lr"], began, figures = learning_rate(o, epoch - 1), time.time(), []
        model.train()
        total = len(order) // o.batch * o.batch
        tick = tiling.progress(f"epoch {epoch}", total, "tiles", end=False) if rank == 0 else lambda n: None
        for step, tiles in enumerate(read_batches(data, chosen, order, o.batch, rank, world, o.workers)):
            views = two_views(torch.from_numpy(tiles).to(device), o.view_px, o.batch, rank, world, o.seed, epoch, step)
            figures.append(train_step(model, keys, optimizer, bank, velocity, views, o))
            if not np.isfinite(figures[-1][0]):
                break
            tick(o.batch)
        if not np.isfinite(figures[-1][0]) or not all(v.isfinite().all() for v in model.parameters()):
            slides = np.unique(chosen[order[step * o.batch:(step + 1) * o.batch], 0])
            raise InputError(f"epoch {epoch} step {step + 1}: loss or weights are not finite any more, at tiles of "
                             f"{few([data['slides'][s] for s in slides])}" + f"; {state_file} keeps epoch {epoch - 1}" * (epoch > 1)
                             + "; a lower --lr may help")
        loss, positive, hardest, apart = np.mean(figures, 0)
        norm = None if bank is None else bank.norm(dim=1).mean().item()
        rate = total / (time.time() - began)
        if rank == 0:
            entry = dict(epoch=epoch, loss=loss, positive=positive, hardest=hardest, spread=apart, bank_norm=norm,
                         lr=learning_rate(o, epoch - 1), tiles_per_s=round(rate, 1), collapsed=bool(apart < COLLAPSED))
            with open(log, "a") as f:
                f.write(json.dumps(entry) + "\n")
            state = dict(epoch=epoch, model=model.state_dict(), keys=None if keys is None else keys.state_dict(), bank=bank,
                         optimizer=optimizer.state_dict(), velocity=velocity)
            save_encoder(folder / f"{o.name}.pt", model, o, epoch)             # before the state that says it is done
            save_file(state_file, lambda f: torch.save(state, f))
        shown = due(epoch == o.epochs)
        if shown:
            print(f"epoch {epoch:3d}/{o.epochs}  loss {loss:.4f}  positive {positive:.3f}  hardest negative {hardest:.3f}  "
                  f"spread {apart:.3f}  " + (f"bank norm {norm:.3f}  " if norm is not None else "")
                  + (f"colours kept {data['unchanged']:,} tiles  " if any(data["stains"]) else "") + f"{rate:6.1f} tiles/s  "
                  f"{clock((time.time() - start) / (epoch - first) * (o.epochs - epoch))} left", flush=True)
        if apart < COLLAPSED and (shown or not collapsed):
            print(f"COLLAPSE: all embeddings are nearly equal (spread {apart:.3f}, 1 is all over the sphere). A lower --lr"
                  + (", --momentum-encoder or --in-batch" * (o.method == "adco")) + " may help", flush=True)
        collapsed = apart < COLLAPSED
    return figures


# ---------------------------------------------------------------------------------------------------------------------
# Does it learn? The cells in a tile from its frozen features, by ridge regression  [ours]
# ---------------------------------------------------------------------------------------------------------------------
def divisor(mean, sd):
    """What standardises features of this mean and SD, (D,): the SD; infinite for a constant, which becomes 0."""
    return np.where(sd > 1e-6 * np.abs(mean) + 1e-12, sd, np.inf)


def kernel_solve(k, penalty, y):
    """(k + penalty I)^-1 y: k = z z' (n, n) of centred z, y (n, C) centred too. Where that is singular the pseudo-inverse:
    eigenvalues up to 1e-10 of the largest count as 0. By Cholesky where all others are surely above, much faster. [ours]"""
    n = len(k)
    a = k + penalty * np.eye(n) + k.trace() / n ** 2                           # the last: along the mean, where k, y are 0
    factor, failed = lapack.dpotrf(a, lower=1)
    if not failed and lapack.dpocon(factor, np.abs(a).sum(0).max(), uplo="L")[0] > n * 1e-10:
        return lapack.dpotrs(factor, y, lower=1)[0]
    values, vectors = np.linalg.eigh(k)
    share = np.where(values > 1e-10 * values[-1], 1 / (values.clip(0) + penalty + (values <= 0)), 0)                # (n,)
    return vectors @ (share[:, None] * (vectors.T @ y))


def ridge(x, y, penalties):
    """Ridge regression for each penalty: x (n, D), y (n, C) -> weights (penalties, D, C), bias (penalties, C), of which
    x @ weights + bias is the prediction. Closed form, float64.

    Features are standardised, constants get weight 0; penalty: of the squared weights, against the sum of squared errors;
    0: of all least squares solutions the smallest. Of fewer rows than features by their kernel.
    """
    center, mean = x.mean(0), y.mean(0)
    scale = divisor(center, x.std(0))
    z, y = (x - center) / scale, y - mean
    if len(z) < z.shape[1]:
        weights = z.T @ np.stack([kernel_solve(k, p, y) for k in [z @ z.T] for p in penalties])
    else:
        values, vectors = np.linalg.eigh(z.T @ z)                              # serves all penalties
        share = [np.where(values > 1e-10 * values[-1], 1 / (values.clip(0) + p + (values <= 0)), 0)[:, None]
                 for p in penalties]
        weights = np.stack([vectors @ (s * (vectors.T @ (z.T @ y))) for s in share])                # (penalties, D, C)
    weights /= scale[:, None]
    return weights, mean - center @ weights


def r_squared(y, prediction):
    """1 - squared errors / squared deviations, of each column: (..., n, C) -> (..., C); nan where y does not vary."""
    deviations = ((y - y.mean(0)) ** 2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(deviations > 0, 1 - ((y - prediction) ** 2).sum(-2) / deviations, np.nan)


def linear_probe(x, y, groups, folds=PROBE_FOLDS, seed=0, penalties=RIDGE):
    """R2 (C,) of y (n, C) from features x (n, D) by ridge, every row predicted by a fit to other groups (patients).

    The penalty of each column is the best on a fifth of the groups of each training part, fitted to the others. The held-out
    predictions of all folds are pooled before R2. Needs at least 3 groups; folds are at most their number.
    """
    x, y, groups = np.asarray(x, np.float64), np.asarray(y, np.float64), np.asarray(groups)
    alike, prediction = np.zeros(len(groups)), np.empty_like(y)
    fold = stats.patient_folds(groups, alike, min(folds, len(np.unique(groups))), seed)
    for f in np.unique(fold):
        rest = np.flatnonzero(fold != f)
        inner = stats.inner_split(groups[rest], alike[rest], .2, [seed, f])
        weights, bias = ridge(x[rest[~inner]], y[rest[~inner]], penalties)
        tried = x[rest[inner]] @ weights + bias[:, None]                       # (penalties, m, C)
        best = np.nan_to_num(r_squared(y[rest[inner]], tried), nan=0).argmax(0)                      # (C,)
        weights, bias = ridge(x[rest], y[rest], penalties)
        each = np.arange(y.shape[1])
        prediction[fold == f] = x[fold == f] @ weights[best, :, each].T + bias[best, each]
    return r_squared(y, prediction)


def cell_content(cohort, name, coords, tile, mpp, origin=(0, 0)):
    """What is known of each tile: {class: (n,)} of one slide, nan where nothing is known of the tile; or None.

    points/<slide>.csv: points of each class in the tile; else spots/<slide>.csv: columns fraction:..., the mean of the
    spots whose centre lies in the tile.
    """
    cells, spots = tiling.read_places(Path(cohort), name, mpp, origin)
    if cells is not None:
        kinds = {c: xy for c, xy in cells.items() if c != "all cells"} or (cells if len(cells["all cells"]) else {})
        return {c: stats.count_points(xy, coords, tile).astype(float) for c, xy in kinds.items()}
    if spots is None:
        return None
    which = stats.holder(spots[0], coords, tile)                               # (m,) tile of each spot, -1 for none
    held = which >= 0
    n = np.bincount(which[held], minlength=len(coords))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {c.removeprefix("fraction:"): np.bincount(which[held], v[held], len(coords)) / n
                for c, v in spots[1].items() if c.startswith("fraction:")}


@torch.no_grad()
def untrained(data, o, device, n=64):
    """Random weights with BatchNorm statistics from about n tiles of these slides, one batch: what a run has before it has
    learned. The statistics alone are worth something, which must not be counted as learning."""
    net, counts = tiling.load_weights(STAGES, "random", o.seed).to(device), np.array([len(c) for c in data["coords"]])
    chosen = choose_tiles(counts, np.full(len(counts), -(-n // len(counts))), o.seed, 0)[:n]
    tiles = next(read_batches(data, chosen, np.arange(len(chosen)), len(chosen), workers=o.workers))
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()                                            # load_weights left momentum None: one batch
    net.train()(tiling.normalise(torch.from_numpy(tiles).to(device)))
    return net.eval()


# ---------------------------------------------------------------------------------------------------------------------
# Feature aggregation: the tiles of a slide to one vector, of which a layer makes the classes  [HistCode eqs. 5-7; Table 1]
# Every pooling takes h (B, T, D) and mask (B, T), True for real tiles, of which each bag has one or more, and gives with
# its result a (B, T): each tile's part in it, 0 for padding, whose content never counts.
# ---------------------------------------------------------------------------------------------------------------------
class GatedAttention(nn.Module):
    """z = sum_i a_i h_i with a = softmax_i(w . (tanh(V h_i) * sigm(U h_i))). [HistCode eqs. 5-6; Ilse et al. 2018, eqs. 8-9]

    forward(h (B, T, D), mask (B, T)) -> z (B, D), a (B, T). gated False: w . tanh(V h_i) alone, ABMIL's first form (eq. 8
    there). No biases, as eq. 6 is printed; the released codes of both papers have them.
    """

    def __init__(self, n_features, hidden=ATTENTION, gated=True):
        super().__init__()
        self.v, self.w = nn.Linear(n_features, hidden, bias=False), nn.Linear(hidden, 1, bias=False)
        self.u = nn.Linear(n_features, hidden, bias=False) if gated else None

    def forward(self, h, mask):
        h = h.masked_fill(~mask[:, :, None], 0)                                # whatever it held: 0 x nan is nan
        hidden = torch.tanh(self.v(h))                                         # (B, T, hidden)
        if self.u is not None:
            hidden = hidden * torch.sigmoid(self.u(h))
        a = self.w(hidden)[:, :, 0].masked_fill(~mask, -torch.inf).softmax(1)  # (B, T)
        return (a[:, None] @ h)[:, 0], a


class MeanPooling(nn.Module):
    """z (B, D): mean over the real tiles; a: 1 / their number."""

    def forward(self, h, mask):
        a = mask / mask.sum(1, keepdim=True)
        return (a[:, :, None] * h.masked_fill(~mask[:, :, None], 0)).sum(1), a


class MaxPooling(nn.Module):
    """z (B, D): the highest value of each feature; a: the share of the features that a tile gives."""

    def forward(self, h, mask):
        z, which = h.masked_fill(~mask[:, :, None], -torch.inf).max(1)         # (B, D), (B, D)
        return z, torch.zeros_like(h[:, :, 0]).scatter_add(1, which, torch.full_like(z, 1 / z.shape[1]))


class PooledClassifier(nn.Module):
    """One vector for the slide, one fully connected layer; softmax and cross-entropy are the loss's. [HistCode eq. 7]

    All of them: forward(h, mask) -> outputs (B, streams, C), a (B, T). Each stream learns the label; the last one answers.
    """

    def __init__(self, pooling, n_features, outputs=2):
        super().__init__()
        self.pooling, self.classify = pooling, nn.Linear(n_features, outputs)

    def forward(self, h, mask):
        z, a = self.pooling(h, mask)
        return self.classify(z)[:, None], a


class DSMIL(nn.Module):
    """Two streams: the best instance of each class, and attention to it. [Li et al. 2021, eqs. 2-6, arXiv:2011.08939]

    Instance stream: the highest score of each class over the tiles; the tile that has it is critical. Bag stream: for
    each class, softmax over tiles of <q_i, q_critical> / sqrt(queries) weighs the features; one filter over all classes'
    vectors gives the logits. a: the weights of the last class. As in the authors' code each stream has a loss of its own
    and the bag stream answers; the paper writes the mean of both scores. One layer for the queries, values as they are:
    their code's defaults are a little deeper.
    """

    def __init__(self, n_features, outputs=2, queries=QUERIES):
        super().__init__()
        self.score, self.query = nn.Linear(n_features, outputs), nn.Linear(n_features, queries)
        self.classify = nn.Linear(outputs * n_features, outputs)

    def forward(self, h, mask):
        h = h.masked_fill(~mask[:, :, None], 0)
        instance, critical = self.score(h).masked_fill(~mask[:, :, None], -torch.inf).max(1)        # (B, C), (B, C)
        q = self.query(h)                                                      # (B, T, Q)
        best = q.gather(1, critical[:, :, None].expand(-1, -1, q.shape[2]))    # (B, C, Q)
        logits = best @ q.mT / q.shape[2] ** .5                                # (B, C, T)
        a = logits.masked_fill(~mask[:, None], -torch.inf).softmax(2)
        return torch.stack([instance, self.classify((a @ h).flatten(1))], 1), a[:, -1]


class MILRNN(nn.Module):
    """The most suspicious tiles of a max-pooling classifier, one after the other into a recurrent network.
    [Campanella et al. 2019, doi 10.1038/s41591-019-0508-1, Methods: MIL classifier, RNN-based slide integration]

    First stream: the tile with the highest score of the last class stands for the slide. Second: its TOP_TILES highest
    tiles, best first, s <- ReLU(W h_i + V s) from s = 0, then the classes from s. a: equal shares of those tiles. They
    train the first, then the second on its tiles; here both learn together, the choice of tiles has no gradient. [ours]
    """

    def __init__(self, n_features, outputs=2, state=STATE, top=TOP_TILES):
        super().__init__()
        self.score, self.top = nn.Linear(n_features, outputs), top
        self.take, self.keep = nn.Linear(n_features, state), nn.Linear(state, state)
        self.classify = nn.Linear(state, outputs)

    def forward(self, h, mask):
        scores = self.score(h.masked_fill(~mask[:, :, None], 0))               # (B, T, C)
        suspicion = (scores[:, :, -1] - scores[:, :, :-1].logsumexp(2)).masked_fill(~mask, -torch.inf)
        top = suspicion.topk(min(self.top, h.shape[1]), dim=1).indices         # (B, k)
        real = mask.gather(1, top)                                             # (B, k) False: the bag has fewer tiles
        pick = lambda values, at: values.gather(1, at[:, :, None].expand(-1, -1, values.shape[2]))
        taken, s = self.take(pick(h, top).masked_fill(~real[:, :, None], 0)), torch.zeros_like(h[:, 0, :1])
        s = s.expand(-1, taken.shape[2])
        for i in range(top.shape[1]):
            s = torch.where(real[:, i, None], F.relu(taken[:, i] + self.keep(s)), s)                 # (B, state)
        a = torch.zeros_like(suspicion).scatter(1, top, real / real.sum(1, keepdim=True))
        return torch.stack([pick(scores, top[:, :1])[:, 0], self.classify(s)], 1), a


POOLINGS = {   # Table 1's rows: name -> network from D features to C outputs
    "MIL-RNN": lambda D, C=2, hidden=ATTENTION: MILRNN(D, C),
    "ABMIL": lambda D, C=2, hidden=ATTENTION: PooledClassifier(GatedAttention(D, hidden, gated=False), D, C),
    "DSMIL": lambda D, C=2, hidden=ATTENTION: DSMIL(D, C),
    "max": lambda D, C=2, hidden=ATTENTION: PooledClassifier(MaxPooling(), D, C),
    "mean": lambda D, C=2, hidden=ATTENTION: PooledClassifier(MeanPooling(), D, C),
    "HistCode": lambda D, C=2, hidden=ATTENTION: PooledClassifier(GatedAttention(D, hidden), D, C),
}


class SlideModel(nn.Module):
    """(h - mean) / SD of the training tiles, constant features 0 [ours] -> fully connected layers with ReLU, none in the
    paper -> a network of POOLINGS. forward(h (B, T, D), mask (B, T)) -> outputs (B, streams, C), a (B, T)."""

    def __init__(self, pooling, mean, sd, outputs=2, embed=(), hidden=ATTENTION):
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(np.float32(mean)))
        self.register_buffer("scale", torch.from_numpy(np.float32(1 / divisor(mean, sd))))
        widths = [len(mean), *embed]
        self.layers = nn.Sequential(*(layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), nn.ReLU())))
        self.head = POOLINGS[pooling](widths[-1], outputs, hidden)

    def forward(self, h, mask):
        return self.head(self.layers((h.float() - self.mean) * self.scale), mask)


# ---------------------------------------------------------------------------------------------------------------------
# Training on frozen features  [HistCode Methods: "only the parameters of the gated-attention pooling and downstream linear
# layers were updated"]. Each network has its own weights; either each its own bags in its own order, or all the same.
# M networks of one kind (folds, repeats, genes) learn as one with a leading model dimension (vmap). [ours]
# ---------------------------------------------------------------------------------------------------------------------
def cross_entropy(out, y):
    """Of every stream, their mean: out (M, b, streams, C), y (M, b) classes -> (M, b). [HistCode eq. 7]"""
    y = y[:, :, None, None].expand(*out.shape[:3], 1)
    return -out.log_softmax(3).gather(3, y).mean((2, 3))


def squared_error(out, y):
    """Mean over the genes, unknown ones left out: out (M, b, 1, G), y (M, b, G) with nan -> (M, b). [HistCode eq. 8]"""
    known = ~y.isnan()
    return ((out[:, :, -1] - y.nan_to_num()) ** 2 * known).sum(2) / known.sum(2).clamp(min=1)


def sums_of(h):
    """Of a bag (T, D): its tiles, sums and sums of squares of each feature (D,), float64."""
    return len(h), h.sum(0, dtype=np.float64), np.square(h, dtype=np.float64).sum(0)


def mean_and_sd(sums, rows):
    """Mean and SD (D,) over all tiles of some bags, of which `sums_of` each is known."""
    tiles, total, squares = (sum(sums[i][part] for i in rows) for part in range(3))
    return total / tiles, np.sqrt(np.maximum(squares / tiles - (total / tiles) ** 2, 0))


def read_bags(bag, orders, batch):
    """orders (M, n) of bags -> rows (M, b), x (M, b, T, D), mask (M, b, T), T of the longest; a thread reads ahead."""
    def read(rows):
        h = [np.asarray(bag(i)) for i in rows.flat]
        x = np.zeros((len(h), max(map(len, h)), h[0].shape[1]), h[0].dtype)
        mask = np.zeros(x.shape[:2], bool)
        for i, one in enumerate(h):
            x[i, :len(one)], mask[i, :len(one)] = one, True
        return [torch.from_numpy(v).unflatten(0, rows.shape) for v in (x, mask)]

    for rows, got in tiling.ordered_map(read, [orders[:, i:i + batch] for i in range(0, orders.shape[1], batch)], 1):
        if isinstance(got, Exception):
            raise got
        yield rows, *got


def train_heads(models, bag, target, loss, parts, seeds, o, device, what="", state_file=None, names=None):
    """Train M networks of one kind; each learns from its own bags, and its own validation bags choose its epoch.

    bag(i) -> (T_i, D), names[i] its name; target(rows (m, b)) -> what `loss` takes beside the outputs; parts: (train,
    valid, test) rows of each network, as many train for all; one for many networks: all see the same bags. After each
    epoch: the loss on the validation bags, and the test bags' outputs, which choose nothing. Kept is the epoch with the
    lowest loss; of few bags the loss tells how sure a network is rather than how right:
    of classifiers the last epoch with the fewest mistakes is kept. [ours]
    Returns dict: model (state with a leading M, each of its epoch), epochs (M,), losses (epochs, M), tests [(epochs,
    n_test, C) of each network], saw [leak ledger of each of parts, in rows].
    """
    M, shared, ledgers = len(models), len(parts) < len(models), [{} for _ in parts]
    for ledger, (train, valid, _) in zip(ledgers, parts):                      # all that the steps below take
        saw(ledger, "weights of the network", train)
        saw(ledger, "choice of the epoch", valid)
    params = {k: torch.stack([m.get_parameter(k).detach() for m in models]).to(device).requires_grad_()
              for k, _ in models[0].named_parameters()}
    buffers = {k: torch.stack([m.get_buffer(k) for m in models]).to(device) for k, _ in models[0].named_buffers()}
    own = {k: v[0] for k, v in buffers.items()} if shared else buffers
    frame, one = copy.deepcopy(models[0]).to("meta"), 1 if shared else M
    call = torch.vmap(lambda p, b, x, mask: torch.func.functional_call(frame, (p, b), (x, mask))[0],
                      in_dims=(0, None, None, None) if shared else 0)
    net = lambda x, mask: call(params, own, *(v[0] if shared else v for v in (x.to(device), mask.to(device))))
    optimizer = torch.optim.Adam(params.values(), o.lr, weight_decay=o.weight_decay, fused=True)
    judged = [np.concatenate([valid, test]).astype(int) for _, valid, test in parts]
    judged = np.stack([np.pad(rows, (0, max(map(len, judged)) - len(rows)), mode="edge") for rows in judged])
    valid_n, tested = torch.tensor([len(valid) for _, valid, _ in parts]).expand(M), any(len(test) for *_, test in parts)
    best = {k: v.detach().clone() for k, v in params.items()}
    epochs, lowest, losses, tests, first = torch.zeros(M, dtype=torch.int64), torch.full((M,), torch.inf), [], [], 0
    if state_file and state_file.is_file():
        state = tiling.load_checkpoint(state_file, device, keys="optimizer params best epochs lowest losses tests".split())
        optimizer.load_state_dict(state["optimizer"])
        for k, v in state["params"].items():
            params[k].data.copy_(v)
        best, epochs, lowest = state["best"], state["epochs"].cpu(), state["lowest"].cpu()
        losses, tests, first = [list(state[k].cpu()) for k in ("losses", "tests")] + [len(state["losses"])]
    tick = tiling.progress(what, (o.epochs - first) * one * (len(parts[0][0]) + judged.shape[1]), "bags")
    for epoch in range(first + 1, o.epochs + 1):
        orders = np.stack([np.random.default_rng([s, epoch]).permutation(t) for s, (t, _, _) in zip(seeds, parts)])
        each = []
        for rows, x, mask in read_bags(bag, orders, o.batch):
            optimizer.zero_grad()
            each.append(loss(net(x, mask), target(rows).to(device)))           # (M, b)
            each[-1].mean(1).sum().backward()                                  # a sum: each has its own gradient
            each[-1] = each[-1].detach()
            optimizer.step()
            tick(rows.size)
        outputs, errors, wrong = [], [], []
        with torch.no_grad():
            for rows, x, mask in read_bags(bag, judged, o.batch):
                outputs.append(net(x, mask)[:, :, -1:])                        # (M, b, 1, C) of the stream that answers
                errors.append(loss(outputs[-1], y := target(rows).to(device)).cpu())
                wrong.append((outputs[-1][:, :, 0].argmax(2) != y).cpu() if loss is cross_entropy else errors[-1])
                tick(rows.size)
        outputs = torch.cat(outputs, 1)[:, :, 0].cpu()                         # (M, n, C)
        errors, wrong = torch.cat(errors, 1), torch.cat(wrong, 1)              # (M, n)
        chooses = torch.arange(errors.shape[1]) < valid_n[:, None]             # (M, n)
        now = torch.where(chooses, errors, 0).sum(1) / valid_n                 # (M,)
        if not (now.isfinite().all() and outputs.isfinite().all()):
            bad = ~torch.cat([*(e.cpu() for e in each), errors], 1).isfinite().numpy()             # (M, steps)
            began = np.broadcast_to(np.concatenate([orders, judged], 1), bad.shape).T[bad.T][0]    # at this bag
            raise InputError(f"{what} epoch {epoch}: the loss is not finite any more, from "
                             f"{began if names is None else names[began]} on"
                             + f"; {state_file} keeps epoch {epoch - 1}" * (epoch > 1) + "; a lower --lr may help")
        rank = (wrong * chooses).sum(1) if loss is cross_entropy else now
        better, lowest = rank <= lowest, torch.minimum(rank, lowest)
        for k, v in params.items():
            best[k][better.to(device)] = v.detach()[better.to(device)]
        epochs[better] = epoch
        losses.append(now)
        tests.append(outputs if tested else outputs[:, :0])
        if state_file:
            state = dict(params={k: v.detach() for k, v in params.items()}, best=best, optimizer=optimizer.state_dict(),
                         lowest=lowest, epochs=epochs, losses=torch.stack(losses), tests=torch.stack(tests))
            save_file(state_file, lambda f: torch.save(state, f))
    tests = torch.stack(tests, 1)                                              # (M, epochs, n, C)
    return dict(model={k: v.cpu() for k, v in {**best, **buffers}.items()}, saw=ledgers, epochs=epochs,
                losses=torch.stack(losses), tests=[tests[m, :, len(v):len(v) + len(t)] for m, (_, v, t) in enumerate(
                    parts * (M if shared else 1))])


def apply_heads(saved, device, block=16):
    """The trained networks of a checkpoint: a function (T, D) -> outputs (M, C) and a (M, T), on the CPU."""
    D = saved["n_features"]
    frame = SlideModel(saved["pooling"], np.zeros(D), np.ones(D), saved["outputs"], saved["embed"], saved["hidden"])
    frame = frame.to("meta")
    own = {k: v.to(device) for k, v in saved["model"].items() if k not in dict(frame.named_buffers())}
    shared = {k: saved["model"][k][0].to(device) for k, _ in frame.named_buffers()}                 # mean, scale: the same

    @torch.no_grad()
    def apply(h):
        x, done = torch.from_numpy(np.array(h))[None].to(device), []
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=device)
        call = torch.vmap(lambda s: torch.func.functional_call(frame, (s, shared), (x, mask)))
        for i in range(0, len(next(iter(own.values()))), block):
            out, a = call({k: v[i:i + block] for k, v in own.items()})
            done.append((out[:, 0, -1].cpu(), a[:, 0].cpu()))
        return tuple(torch.cat(part) for part in zip(*done))
    return apply


# ---------------------------------------------------------------------------------------------------------------------
# Tumour diagnosis: folds and figures  [HistCode Results, Tumor diagnosis; Table 1, Figs. 2, 3]
# ---------------------------------------------------------------------------------------------------------------------
def split_patients(patients, strata, parts, seed):
    """Parts 0 to k - 1, patients whole, dealt out evenly by the set of strata (labels) their samples have: (n,).

    Part f tests model f, part f + 1 chooses its epoch, the others train: 80/10/10 with ten [HistCode Results].
    """
    of = {}
    for who, stratum in zip(patients, strata):
        of.setdefault(who, set()).add(str(stratum))
    return stats.patient_folds(patients, ["".join(sorted(of[who])) for who in patients], parts, seed)


def probabilities(saved):
    """Of the positive class, of the test samples after every epoch: (epochs, n)."""
    return saved["tests"].double().softmax(2)[:, :, 1].numpy()


def best_cut(y, p):
    """Highest accuracy that any threshold on p gives: what choosing it on the test samples claims."""
    fpr, tpr = stats.roc_curve(y, p) if 0 < y.mean() < 1 else (np.zeros(1), np.ones(1))
    return float((tpr * y.mean() + (1 - fpr) * (1 - y.mean())).max())


def figures_of(y, saved):
    """Figures of one test fold, y (n,): those at the epoch kept, and the two optimistic ones."""
    every, chosen = probabilities(saved), saved["epoch"] - 1                   # (epochs, n)
    accuracy, aucs = ((every > .5) == y).mean(1), [stats.roc_auc(y, p) for p in every]
    return dict(accuracy=accuracy[chosen], auc=aucs[chosen], pr_auc=stats.pr_auc(y, every[chosen]),
                best_epoch=accuracy.max(), best_epoch_auc=max(aucs), best_threshold=best_cut(y, every[chosen]))


# ---------------------------------------------------------------------------------------------------------------------
# Differential expression  [HistCode Methods, Differential expression analysis; Differential expression prediction; eq. 8]
# ---------------------------------------------------------------------------------------------------------------------
def fold_change(tumour, normal):
    """Expression a >= 0 of tumour and matched normal (n, G) -> y = log10(fc + 1) (n, G), and its label |log2 fc| > 1.5 as
    0, 1, both nan where unknown. [HistCode Methods, Differential expression analysis]

    Nothing in the tumour: fc 0, y 0, label 1. Nothing in the normal tissue: fc is infinite: no y, label 1. Nothing in
    both, or either missing: neither. [ours; the paper does not say]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        fc = np.asarray(tumour, np.float64) / np.asarray(normal, np.float64)
        label = np.where(np.isnan(fc), np.nan, np.abs(np.log2(fc)) > LOG2_FC)
        return np.where(np.isfinite(fc), np.log10(fc + 1), np.nan), label


def label_of(y):
    """The label (n, G) that predicted log10(fc + 1) stands for; what no fc can give counts as the nearest that can."""
    return np.abs(np.log2(np.maximum(10.0 ** y - 1, 1e-12))) > LOG2_FC


def ends_of(a, most=ENDS):
    """(highest, lowest) tiles by attention a (T,): l each, at most half of the tiles so that none is in both; of equal ones
    the first are the higher. T >= 2. [HistCode Methods: "l takes 100"; halves: ours]"""
    order, n = np.argsort(-a, kind="stable"), min(most, len(a) // 2)
    return order[:n], order[len(order) - n:]


def pair_features(h, a):
    """The slide's vector (2D,): mean of the highest, mean of the lowest tiles by attention, float64. h (T, D), a (T,)."""
    return np.concatenate([np.asarray(h[rows], np.float64).mean(0) for rows in map(np.sort, ends_of(a))])


def known_alike(y):
    """[(rows, columns)] of y (n, G): the genes known (not nan) of just the same samples, together."""
    patterns, which = np.unique(~np.isnan(y), axis=1, return_inverse=True)
    return [(np.flatnonzero(pattern), np.flatnonzero(which.ravel() == i)) for i, pattern in enumerate(patterns.T)
            if pattern.any()]


def least_squares(x, y, penalty=0.0):
    """One linear layer for all genes, least squares in closed form: x (n, D), y (n, G) with nan -> weights (D, G), bias
    (G,). [HistCode eq. 8: MSE]

    penalty: of the squared weights of standardised features, against the sum of squared errors; 0: of all least squares
    solutions the smallest, which gradient descent from 0 also finds. Genes known of the same samples are solved at once.
    """
    weights, bias = np.zeros((x.shape[1], y.shape[1])), np.full(y.shape[1], np.nan)
    for rows, genes in tiling.counted("least squares", known_alike(y), "sets of genes"):
        (weights[:, genes],), (bias[genes],) = ridge(x[rows], y[np.ix_(rows, genes)], (penalty,))
    return weights, bias


def best_penalty(x, y, penalties=RIDGE):
    """The penalty with the best leave-one-out predictions: the highest R2, mean over genes; x (n, D), y (n, G).

    Leave-one-out in closed form: error_i / (1 - H_ii). An R2 below 0 counts as 0: genes that can't be predicted, often most,
    would vote for predicting nothing. Genes with unknown values don't vote. [ours]
    """
    y = y[:, ~np.isnan(y).any(0) & (np.ptp(np.nan_to_num(y), axis=0) > 0)]
    if not y.shape[1]:
        return penalties[len(penalties) // 2]
    x, y = (x - x.mean(0)) / divisor(x.mean(0), x.std(0)), y - y.mean(0)
    values, vectors = np.linalg.eigh(x @ x.T)                                  # (n,), (n, n)
    along, r2 = vectors.T @ y, []                                              # (n, G)
    for p in penalties:
        share = values.clip(0) / (values.clip(0) + p)                          # of the hat matrix, beside 1 / n of the mean
        errors = (y - vectors @ (share[:, None] * along)) / (1 - 1 / len(y) - vectors ** 2 @ share)[:, None]
        r2.append((1 - (errors ** 2).sum(0) / (y ** 2).sum(0)).clip(0).mean())
    return max(zip(r2, penalties))[1]                                          # of equals the larger


def smoother(x, new, penalty):
    """S (m, n) of which S y is `ridge`'s prediction for new (m, D) from x (n, D) and any y (n, C); by the kernel z z'."""
    center = x.mean(0)
    scale = divisor(center, x.std(0))
    z = (x - center) / scale
    near = z @ ((new - center) / scale).T                                      # (n, m)
    return kernel_solve(z @ z.T, penalty, near - near.mean(0)).T + 1 / len(x)


def shuffled_p(r, xs, part, penalties, y, rng):
    """p (G,) of R: how often as high an R comes out when the fold changes of the patients change places, all folds fitted
    anew; over all genes together. xs: features (P, 2D) of all patients by each fold's attention; part (P,); y (P, G). [ours]

    A prediction is linear in y, so the fit to unit vectors gives it for any order. The t would take R of pooled held-out
    predictions for one R of P patients, but it scatters more: it calls 3 % of chance genes p < .01 on 160 pairs.
    """
    null, draws, alike = [], -(-SHUFFLES // y.shape[1]), known_alike(y)
    tick = tiling.progress("shuffled patients", draws * sum(len(genes) for _, genes in alike), "R", end=False)
    for rows, genes in alike:
        S = np.zeros((len(rows), len(rows)))                                   # prediction = S y
        for f, (x, penalty) in enumerate(zip(xs, penalties)):
            test = part[rows] == f
            if test.any() and not test.all():
                S[np.ix_(test, ~test)] = smoother(x[rows[~test]], x[rows[test]], penalty)
        step = max(1, 2048 // len(genes))                                      # orders at a time: a product of 2,048 columns
        for start in range(0, draws, step):
            orders = rng.permuted(np.tile(rows, (min(step, draws - start), 1)), axis=1)             # (orders, n)
            moved = y[:, genes][orders].swapaxes(0, 1).reshape(len(rows), -1)  # (n, orders x genes)
            null.append(stats.pearson(S @ moved, moved))
            tick(moved.shape[1])
    null = np.sort(np.concatenate(null))
    null = null[~np.isnan(null)]
    reached = len(null) - np.searchsorted(null, np.nan_to_num(r, nan=2) - stats.TIED)
    return np.where(np.isnan(r), np.nan, (1 + reached) / (1 + len(null)))


def fit_labels(x, label, train, valid, device):
    """The same layer with two outputs a gene and a softmax: x (n, D), label (n, G) 0, 1 or nan -> weights (D, G), bias (G,)
    of the difference of the two, which is the log odds of label 1. [HistCode Results: "replaced the output layer by two
    nodes"]

    All genes at once by Adam on all training rows, from the log odds of their labels; the epoch is that of the lowest mean
    cross-entropy on the validation rows, 0 among them; the last where there are none. [ours]
    """
    center = x[train].mean(0)
    scale = divisor(center, x[train].std(0))
    z = torch.from_numpy(np.float32((x - center) / scale)).to(device)
    known = torch.from_numpy(~np.isnan(label)).to(device)
    target = torch.from_numpy(np.float32(np.nan_to_num(label))).to(device)
    n = known[train].sum(0).clamp(min=1)                                       # (G,)
    share = (target * known)[train].sum(0) / n
    weights = torch.zeros(x.shape[1], label.shape[1], device=device, requires_grad=True)
    bias = torch.logit(share.clamp(1 / (2 * n), 1 - 1 / (2 * n))).requires_grad_()
    optimizer, best, kept = torch.optim.Adam([weights, bias], LABEL_RATE), math.inf, None

    def error(rows):                                                           # of two softmax outputs, by their difference
        each = F.binary_cross_entropy_with_logits(z[rows] @ weights + bias, target[rows], reduction="none")
        return (each * known[rows]).sum() / known[rows].sum().clamp(min=1)
    for epoch in tiling.counted("labels", range(LABEL_EPOCHS + 1), "epochs"):
        if epoch:
            optimizer.zero_grad()
            error(train).backward()
            optimizer.step()
        with torch.no_grad():
            now = error(valid).item() if len(valid) else -math.inf
        if now < best or not len(valid):
            best, kept = now, [v.detach().cpu().double().numpy().copy() for v in (weights, bias)]
    weights, bias = kept[0] / scale[:, None], kept[1]
    return weights, bias - center @ weights


def judge_genes(prediction, y, guess, label, rng, shuffled=None):
    """Figures of every gene, dict of (G,) arrays: prediction, y (n, G) and guess (predicted), label (n, G), nan where
    unknown. [HistCode Results, Differential gene expression prediction]

    n, r, rho; p of R > 0: shuffled(r), or twice that of a t; bh over the genes; baseline: R of random predictions between
    the 5 % and the 95 % of the truth; location_p, error_p, better: stats.against_baseline; accuracy of the label, majority:
    that of the commoner one.
    """
    out = {k: np.full(y.shape[1], np.nan) for k in ("r", "rho", "baseline", "location_p", "error_p", "better")}
    out["n"] = (~np.isnan(y)).sum(0)
    for rows, genes in tiling.counted("figures", known_alike(y), "sets of genes"):
        if len(rows) < stats.MIN_R:
            continue
        p, truth = prediction[np.ix_(rows, genes)], y[np.ix_(rows, genes)]
        random = stats.random_baseline(truth, rng)
        against = stats.against_baseline(p, truth, random)
        for k, v in dict(r=stats.pearson(p, truth), rho=stats.spearman(p, truth), baseline=stats.pearson(random, truth),
                         location_p=against["p"], error_p=against["error_p"], better=against["better"]).items():
            out[k][genes] = v
    out["p"] = shuffled(out["r"]) if shuffled else np.minimum(1, 2 * stats.pearson_p(out["r"], out["n"]))
    for k, corrected in (("p", "bh"), ("location_p", "location_bh"), ("error_p", "error_bh")):
        out[corrected] = stats.benjamini_hochberg(out[k])
    there = ~np.isnan(label)
    with np.errstate(invalid="ignore"):
        share = np.where(there, label, 0).sum(0) / there.sum(0)                # (G,)
        out["accuracy"] = ((guess == label) & there).sum(0) / there.sum(0)
    return dict(out, positive=share, majority=np.maximum(share, 1 - share))


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------
def slides_of(cohort):
    """Names of the cohort's slides: those of samples.csv, else all files."""
    known = [r["slide"] for r in tiling.read_samples(cohort)] if (cohort / "samples.csv").exists() else None
    slides = known or list(tiling.find_slides(cohort))
    if not slides:
        raise InputError(f"{cohort}: no slides ({' '.join(tiling.SLIDE_ENDINGS)}) in it or in its slides/")
    return slides


def find_data(cohort, slides, o):
    """Make the tiles that are missing -> (what read_batches wants, with slide names; {slide: why not})."""
    o.colour = o.colour or tiling.COLOURS[0]
    made = tiling.load_json(cohort / "tiles" / "settings.json") or {}          # a folder made otherwise stays as it is
    for option, usual in dict(tile_um=TILE_UM, tissue="saturation", max_tiles=MAX_TILES).items():
        if getattr(o, option) is None and not made:
            setattr(o, option, usual)
    rule = {**tiling.TISSUE, **made}
    if made and (rule["tissue"], rule["tissue_threshold"]) != ("saturation", "otsu"):
        print(f"{cohort}/tiles is cut by {rule['tissue']}, threshold {rule['tissue_threshold']}"
              + ", and stays so" * (o.tissue is None and o.tissue_threshold is None))
    failed = tiling.share_out(tiling.make_tiles, cohort, slides, o)
    ready = [s for s in slides if s not in failed]
    if not o.share[0]:
        tiling.report_failures(failed, len(slides), cohort / "tiles")
    if not ready:
        raise InputError(f"{cohort}: no slide has tiles")
    arrays, found = [tiling.tiles_of(cohort, s)[0] for s in ready], tiling.find_slides(cohort)
    gone = [s for s in ready if s not in found]
    if gone:
        raise InputError(f"no slide file for {few(gone)} in {cohort}: only its tiles are there")
    o.tile_um = tiling.load_json(cohort / "tiles" / "settings.json")["tile_um"]
    data = dict(slides=ready, paths=[found[s] for s in ready], coords=[a["coords"] for a in arrays],
                tiles=[float(a["tile"]) for a in arrays], mpp=[float(a["mpp"]) for a in arrays], px=o.tile_px,
                stains=[None] * len(ready), unchanged=0)
    if o.colour == "macenko":
        stains = lambda s: tiling.slide_stains(tiling.open_slide(data["paths"][s]), data["coords"][s], data["tiles"][s],
                                               o.tile_px, json.loads(str(arrays[s]["settings"]))["seed"])
        jobs = tiling.ordered_map(stains, range(len(ready)), o.workers)
        for s, got in tiling.counted("stains", jobs, "slides", len(ready)):
            if isinstance(got, Exception):
                raise InputError(f"{data['paths'][s]} can't be read to its end ({got}): take it out of samples.csv")
            data["stains"][s] = got
        plain = [name for name, found in zip(ready, data["stains"]) if found is None]
        if plain:
            print(f"--colour macenko: {len(plain)} slides show no two stains and keep their colours: {few(plain)}")
    return data, failed


def check_ranges(o, *ranges):
    """InputError for an option that lies outside of its (name, lowest, highest), and for a --name that is a path."""
    for option, low, high in ranges:
        if getattr(o, option) is not None and not low <= getattr(o, option) <= high:
            raise InputError(f"--{option.replace('_', '-')} {getattr(o, option):g}: must lie between {low:g} and {high:g}")
    if getattr(o, "name", None) is not None and (Path(o.name).name != o.name or o.name in ("", ".", "..")):
        raise InputError(f"--name {o.name}: the name of a folder, not a path")


def settle_choices(o):
    """o.code: the choices that --follow and --code turn; the options that they stand for are set. An option asked for in
    so many words gainsays --code, and goes before --follow."""
    named, o.code = o.code, flipped(CHOICES, o.verb, o.code, o.follow)
    for name in list(o.code):
        turned = TURNED[o.verb].get(name, {})
        given = [f"--{'' if getattr(o, k) else 'no-' * (getattr(o, k) is False)}{k.replace('_', '-')}"
                 + f" {getattr(o, k)}" * (not isinstance(getattr(o, k), bool))
                 for k, v in turned.items() if getattr(o, k) not in (None, v)]
        if given and name in named:
            raise InputError(f"--code {name} turns it to: {switches(CHOICES, o.verb)[name]}; leave {' '.join(given)} out")
        if given:
            print(f"--follow {o.follow}: without {name}, for {' '.join(given)} is asked for")
            o.code.remove(name)
        else:
            vars(o).update(turned)


def turned_lines(o):
    """Of a report: the choices of this run that are turned."""
    text = "; ".join(f"{name}: {switches(CHOICES, o.verb)[name]}" for name in o.code)
    return [f"Turned to their other side (`python histcode.py choices`): {text}.", ""] if text else []


def settle_options(o, world):
    """Fill in what was not asked for: what --follow and --code turn, else our values; check all of them."""
    if o.method == "simclr":
        bank = [f"--{k.replace('_', '-')}" for k in BANK_OPTIONS if getattr(o, k) is not None]
        bank += [f"--code {name}" for name in o.code if set(TURNED["pretrain"][name]) & set(BANK_OPTIONS)]
        if bank or o.follow:
            raise InputError(f"{', '.join(bank) or f'--follow {o.follow}'}: not with --method simclr, which has no bank")
    settle_choices(o)
    usual = dict(lr=LEARNING_RATE, final_lr=0.0, cosine=False, batch=BATCH, epochs=EPOCHS, tau=TAU[o.method], bank_tau=None,
                 bank_lr=BANK_RATE, bank_momentum=MOMENTUM, bank_decay=WEIGHT_DECAY, bank_percent=BANK_PERCENT,
                 bank_size=BANK_SIZE, in_batch=False, symmetric=False, tiles_per_slide=TILES_PER_SLIDE,
                 momentum_encoder=MOMENTUM_ENCODER if o.method == "adco" else 0.0, name=o.method)
    for k, v in usual.items():
        if getattr(o, k) is None:
            setattr(o, k, v)
    o.bank_tau = o.tau if o.bank_tau is None else o.bank_tau
    check_ranges(o, ("epochs", 1, 1e6), ("batch", 2, 1e6), ("tiles_per_slide", 1, 1e9), ("lr", 1e-9, 1e3),
                 ("final_lr", 0, 1e3), ("tau", 1e-3, 1e3), ("bank_tau", 1e-3, 1e3), ("bank_lr", 0, 1e6),
                 ("bank_momentum", 0, .9999), ("bank_decay", 0, 1), ("bank_percent", 0, 100),
                 ("bank_size", 1, 1e9), ("momentum_encoder", 0, .99999), ("view_px", 32, 1024),
                 ("tile_px", *EDGES))
    if o.final_lr and not o.cosine:
        raise InputError(f"--final-lr {o.final_lr:g}: only with --cosine; the rate is constant without it")
    if o.method == "adco" and o.bank_size < world:
        raise InputError(f"--bank-size {o.bank_size}: fewer than {world} processes")
    if o.batch % world:
        raise InputError(f"--batch {o.batch} can't be shared out evenly to {world} processes")


def open_run(o, data, counts, device, world):
    """Make or reopen COHORT/runs/NAME; a folder of other settings is refused. Puts the settings into o.settings."""
    h = hashlib.sha256(json.dumps([data["slides"], data["tiles"]]).encode())
    for coords in data["coords"]:
        h.update(np.ascontiguousarray(coords))
    names = ("method", "epochs", "batch", "lr", "cosine", "tau", "view_px", "tile_px", "tile_um", "tiles_per_slide",
             "colour", "seed", "precision", *(["final_lr"] * o.cosine), *(BANK_OPTIONS if o.method == "adco" else ()))
    config = dict(version=VERSION, data=h.hexdigest()[:16], slides=len(counts), all_tiles=int(counts.sum()),
                  weights=tiling.weights_identity(o.weights, o.seed), **{k: getattr(o, k) for k in names})
    folder = Path(o.cohort) / "runs" / o.within / o.name
    o.settings = config
    return folder, tiling.claim_folder(folder, config, "state.pt", o.share, cohort=str(Path(o.cohort).resolve()),
                                       device=str(device), processes=world, code=o.code)


def draw_views(path, data, counts, o, n=8, pairs=2):
    """A picture of n tiles, each beside `pairs` times its two views."""
    chosen = choose_tiles(counts, np.full(len(counts), 1), o.seed, 1)[:n]
    tiles = np.concatenate(list(read_batches(data, chosen, np.arange(len(chosen)), len(chosen), workers=o.workers)))
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    drawn = [draw_view(len(x), torch.Generator().manual_seed(o.seed + i)) for i in range(2 * pairs)]
    views = [make_view(x, view, o.view_px) for view in drawn]
    columns = 1 + 2 * pairs
    with tiling.figure(path, len(x), columns, figsize=(1.6 * columns, 1.6 * len(x)), squeeze=False) as axes:
        for row, tile, *mine in zip(axes, tiles, *views):
            for ax, picture in zip(row, [tile, *(v.permute(1, 2, 0).numpy() for v in mine)]):
                ax.imshow(picture)
                ax.set_axis_off()
        for ax, title in zip(axes[0], ["tile", *[f"view {side}" for _ in range(pairs) for side in "12"]]):
            ax.set_title(title, fontsize=8)


def pretrain(o):
    """Train the tile encoder without labels; writes COHORT/runs/NAME/NAME.pt."""
    device, (rank, world) = tiling.pick_device(o.device), o.share
    if device.index is not None:
        torch.cuda.set_device(device)                                          # NCCL's, of this process
    settle_options(o, world)
    o.precision, cohort = tiling.pick_precision(o.precision, device), Path(o.cohort)
    o.pool = max(2, POOL_BYTES // (3 * o.tile_px ** 2))
    weights = tiling.load_weights(STAGES, o.weights, o.seed)         # at the start, not after hours of tiling
    model = Embedder(weights)                                                  # drawn from --seed, as load_weights left it
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = .1                                                    # calibrated random weights have another
    data, failed = find_data(cohort, slides_of(cohort), o)
    known = {r["slide"]: r["patient"] for r in tiling.read_samples(cohort)} if (cohort / "samples.csv").exists() else {}
    o.patients = sorted({known.get(s, s) for s in data["slides"]})             # for the leak ledger of what uses the encoder
    counts = np.array([len(c) for c in data["coords"]])
    total = int(np.minimum(counts, o.tiles_per_slide).sum())
    if total < o.batch:
        raise InputError(f"{total} tiles an epoch don't fill a batch of {o.batch}: lower --batch or raise --tiles-per-slide")
    if o.show_views:
        if rank == 0:
            draw_views(cohort / "runs" / o.name / "views.png", data, counts, o)
            print(f"{cohort / 'runs' / o.name / 'views.png'}")
        return 0
    folder, config = open_run(o, data, counts, device, world)
    model = (share_batchnorm(model) if world > 1 else model).to(device, memory_format=torch.channels_last)
    print(f"{o.method}: {len(counts)} slides, {total:,} of {counts.sum():,} tiles an epoch ({o.tile_um:g} µm, "
          f"{o.tile_px} px), views of {o.view_px} px, batch {o.batch}, {o.epochs} epochs, {config['weights']}, "
          f"{o.precision} on {device}" + (f", {world} processes" if world > 1 else "")
          + f"; turned: {', '.join(o.code)}" * bool(o.code), flush=True)
    start = time.time()
    trained = train(model, data, counts, o, folder, device, rank, world)
    print(f"{folder / o.name}.pt: " + (f"trained in {clock(time.time() - start)}" if trained else "was ready"))
    return 1 if failed and rank == 0 else 0


def probe(o):
    """R2 of the cells in a tile from the frozen features of each encoder; random: where a run with --weights random starts.
    Ridge regression, patients (or --hold-out slides) whole, the penalty chosen inside the training part."""
    cohort, device = Path(o.cohort), tiling.pick_device(o.device)
    check_ranges(o, ("tiles_per_slide", 1, 1e9), ("tile_px", *EDGES))
    if o.csv and Path(o.csv).is_dir():
        raise InputError(f"--csv {o.csv}: a folder; wanted is the name of a file")
    gone = [name for name in o.files if name != "random" and not Path(name).is_file()]
    if gone:
        raise InputError(f"{few(gone)}: no such file; it takes the encoder files of pretrain, or the word random")
    kinds = {tuple(tiling.read_encoder(name)[k] for k in ("tile_px", "tile_um", "colour")) for name in o.files
             if name != "random"}
    if len(kinds) > 1:
        sizes = ", ".join(f"{px} px = {um:g} µm, colour {colour}" for px, um, colour in sorted(kinds))
        raise InputError(f"encoders of different tiles ({sizes}): probe them one by one")
    px, um, colour = kinds.pop() if kinds else (None, None, None)
    there = o.tile_um or (tiling.load_json(cohort / "tiles" / "settings.json") or {}).get("tile_um", um)
    if um not in (None, there):
        raise InputError(f"the encoders learned from tiles of {um:g} µm, " + ("--tile-um is" if o.tile_um else
                         f"those of {cohort}/tiles are of") + f" {there:g}: --tile-um {um:g} cuts them anew")
    if colour and o.colour not in (None, colour):
        raise InputError(f"--colour {o.colour}: the encoders learned from --colour {colour}; leave --colour out")
    o.tile_px = px = o.tile_px or px or TILE_PX
    o.tile_um, o.colour = o.tile_um or um, colour or o.colour
    rows = tiling.read_samples(cohort)
    patients = {r["slide"]: r["patient"] for r in rows}
    data, failed = find_data(cohort, list(patients), o)
    known, groups, picked = [], [], []
    for s, name in enumerate(tiling.counted("cells", data["slides"], "slides")):
        coords, tile = data["coords"][s], data["tiles"][s]
        frame = tiling.qupath_frame(tiling.open_slide(data["paths"][s]), data["mpp"][s])
        content = cell_content(cohort, name, coords, tile, *frame)
        usable = np.arange(len(coords)) if content == {} else []               # a list of no points: no cells anywhere
        if content:
            usable = np.flatnonzero(np.isfinite(list(content.values())).all(0))
        keep = np.sort(np.random.default_rng([o.seed, s]).permutation(usable)[:o.tiles_per_slide]).astype(int)
        if len(keep):
            known.append((len(keep), {c: v[keep] for c, v in content.items()}))
            groups += [name if o.hold_out == "slide" else patients[name]] * len(keep)
            picked.append((s, keep))
    classes = sorted({c for _, content in known for c in content})
    if not classes or len(set(groups)) < 3:
        raise InputError(f"{cohort}: points/<slide>.csv or spots/<slide>.csv with fraction:... columns are there for "
                         f"{len(set(groups))} {o.hold_out}s; a probe needs 3")
    y = np.concatenate([np.stack([c.get(k, np.zeros(n)) for k in classes], 1) for n, c in known])
    print(f"{len(y):,} tiles ({o.tile_um:g} µm, {o.tile_px} px) of {len(set(groups))} {o.hold_out}s; R2 on held-out {o.hold_out}s")
    width = max(len(name) for name in [*o.files, "encoder"])
    print(f"{'encoder':{width}s}  {'mean':>8s}" + "".join(f"  {c[:12]:>12s}" for c in classes), flush=True)
    results = []
    for name in o.files:
        net = untrained(data, o, device) if name == "random" else tiling.load_encoder(name, None, o.seed, device).to(device)
        net = tiling.prepare_encoder(net, device, "float32")
        tick = tiling.progress(f"features of {Path(name).parent.name or name}", len(y), "tiles")

        def read(job):
            s, keep = job
            slide, coords = tiling.open_slide(data["paths"][s]), data["coords"][s][keep]
            return [tiling.macenko(tiling.read_tiles(slide, coords[a:b], data["tiles"][s], px), data["stains"][s])[0]
                    for a, b in tiling.tile_runs(coords, data["tiles"][s])]

        def chunks():
            for (s, keep), tiles in tiling.ordered_map(read, picked, o.workers):
                if isinstance(tiles, Exception):
                    raise InputError(f"{data['paths'][s]} can't be read to its end ({tiles})")
                tick(len(keep))
                yield from tiles
        r2 = linear_probe(tiling.encode(net, chunks()), y, groups, seed=o.seed)
        results.append((name, r2))
        print(f"{name:{width}s}  {np.nanmean(r2):8.3f}" + "".join(f"  {v:12.3f}" for v in r2), flush=True)
    if o.csv:
        tiling.save_csv(o.csv, ("encoder", "tiles", f"{o.hold_out}s", "mean", *classes),
                        [(name, len(y), len(set(groups)), np.nanmean(r2), *r2) for name, r2 in results])
    return 1 if failed else 0


def layers(text):
    """'64,32' -> (64, 32), '0' -> (), for argparse."""
    values = tuple(map(tiling.natural, text.split(",")))
    if 0 in values and len(values) > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a layer of no width; 0 alone means none")
    if max(values) > WIDEST:
        raise argparse.ArgumentTypeError(f"{text!r}: a layer of more than {WIDEST:,}")
    return () if values == (0,) else values


def penalty_of(text):
    """'auto' -> None, or a number, for argparse."""
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def is_number(text):
    """Finite in float32?"""
    return abs(tiling.number(text)) <= float(np.finfo(np.float32).max)         # nan is not


def two_classes(labels, positive, where):
    """Label words -> (y (n,) 0 or 1, their names). The positive one: --positive, else the higher number or later word."""
    labels = [f"{float(t):g}" if is_number(t) else t for t in labels]
    kinds = sorted(set(labels), key=lambda t: (not is_number(t), float(t) if is_number(t) else 0, t))
    if positive is not None and positive not in kinds:
        raise InputError(f"--positive {positive}: the labels of {where} are {few(kinds)}")
    if len(kinds) < 2:
        raise InputError(f"{where}: every label is {few(kinds) or 'empty'}; a classifier needs two classes")
    if len(kinds) > 2 and positive is None:
        raise InputError(f"{where}: {len(kinds)} labels ({few(kinds)}); --positive LABEL tells one of them from the others")
    positive = kinds[-1] if positive is None else positive
    others = [t for t in kinds if t != positive]
    negative = others[0] if len(others) == 1 else f"not {positive}"
    return np.array([t == positive for t in labels], np.int64), (negative, positive)


def tissue_of(samples, cohort):
    """1 tumour, 0 normal, None neither, of each row of samples.csv: by its column tumor, else sample_type, else by the
    sample's or slide's TCGA barcode (01 primary tumour, 11 normal)."""
    path = Path(cohort) / "samples.csv"
    column = next((c for c in ("tumor", "tumour", "sample_type") if c in samples[0]), None)
    if column is None:
        kinds = [next((tissue for name in (s.get("sample", ""), s["slide"]) if (tissue := barcode(name)[1]) is not None), None)
                 for s in samples]
        if not any(k is not None for k in kinds):
            raise InputError(f"{path}: no column tumor (1, 0) or sample_type, and no TCGA barcode, says which slides are "
                             "tumour and which are normal tissue; --label COLUMN tells any two labels apart")
        return kinds
    words = [f"{float(s[column]):g}" if is_number(s[column]) and column != "sample_type" else s[column].lower()
             for s in samples]
    wrong = [s["slide"] for s, w in zip(samples, words) if column != "sample_type" and w not in (*TISSUES, *UNKNOWN)]
    if wrong:
        word = next(s[column] for s in samples if s["slide"] == wrong[0])
        raise InputError(f"{path}: {column} of slide {wrong[0]} is {word!r}; wanted 1 or 0, tumor or normal, or nothing")
    return [TISSUES.get(w) for w in words]


def barcode(name):
    """(patient, 1 tumour, 0 normal or None) of a TCGA barcode, which a name begins with; else (None, None)."""
    found = re.match(r"(TCGA-\w\w-\w{4})-(\d\d)", name)
    return (found.group(1), TISSUES.get(found.group(2))) if found else (None, None)


def read_bag_table(path):
    """(labels, bag names, features (n, D) float32) of the rows of a table label, bag, features, with or without header."""
    header, rows = tiling.read_rows(path)
    named = all(math.isnan(tiling.number(v)) and v.strip().lower() not in UNKNOWN for v in header[2:])      # words, no data
    rows, first = (rows, 2) if named else ([header, *rows], 1)
    if not rows or len(rows[0]) < 3:
        raise InputError(f"{path}: wanted a table with the columns label, bag and the features of an instance in each row, "
                         "separated by commas or tabs")
    for line, row in enumerate(rows, first):
        if len(row) != len(rows[0]):
            raise InputError(f"{path} row {line}: {len(row)} fields, row {first} has {len(rows[0])}")
        wrong = next((j for j, v in enumerate(row[2:], 3) if not is_number(v)), None)
        if wrong or row[0].strip().lower() in UNKNOWN or not row[1].strip():
            raise InputError(f"{path} row {line}: " + (f"field {wrong} is {row[wrong - 1]!r}, not a finite number" if wrong
                             else f"label {row[0]!r}, bag {row[1]!r}: both must be there"))
    return [r[0].strip() for r in rows], [r[1].strip() for r in rows], np.array([r[2:] for r in rows], np.float32)


def bags_of_table(o):
    """What diagnose needs of a table: names, patients (each bag its own), y, classes, bag(i), sums, what tells its data."""
    labels, names, x = read_bag_table(o.bags)
    y, classes = two_classes(labels, o.positive, o.bags)
    bags, which = np.unique(names, return_inverse=True)
    mixed = [b for i, b in enumerate(bags) if len(set(y[which == i])) > 1]
    if mixed:
        raise InputError(f"{o.bags}: bag {few(mixed)} has both labels; a label is the bag's, not the instance's")
    again = [j for j, v in enumerate(x.T) if len(set(zip(v, y))) == len(set(v)) == 2]
    if again:
        raise InputError(f"{o.bags}: column {again[0] + 3} is the label again (copies of MUSK1 circulate so): take it out")
    parts, first = [x[which == i] for i in range(len(bags))], np.unique(which, return_index=True)[1]
    return dict(names=bags, patients=bags, y=y[first], classes=classes, bag=parts.__getitem__, failed={}, left_out={},
                sums=list(map(sums_of, parts)), n_features=x.shape[1], seen=(x, y, which), what="bags",
                features=dict(source=Path(o.bags).name, made="a table"))


def slide_features(cohort, o, slides, least=1):
    """Features of slides, made where they are missing: dict of names, bag(i) -> (T, D) memory-mapped, sums, n_features,
    features (what they are), seen (what tells them from others), failed {slide: why}. Each is read once here, to be
    checked and for its mean and SD."""
    source = tiling.features_of(o)
    tiling.say_twice(source, slides)
    if not tiling.load_json(Path(cohort) / "tiles" / "settings.json"):         # a folder made otherwise stays as it is
        o = argparse.Namespace(**vars(o))
        o.tile_um = o.tile_um or (TILE_UM if o.encoder in tiling.ENCODERS else None)
        o.tissue, o.max_tiles = o.tissue or "saturation", o.max_tiles or MAX_TILES
    failed, sums = {} if o.features else tiling.share_out(tiling.make_features, cohort, slides, o), {}
    tick = tiling.progress("reading", len(slides), "slides")
    for name, got in tiling.ordered_map(lambda s: sums_of(tiling.load_features(cohort, source, s)[0]),
                                        [s for s in slides if s not in failed], o.workers):
        tick()
        if isinstance(got, (InputError, OSError)):
            failed[name] = str(got)
        elif isinstance(got, Exception):
            raise got
        elif got[0] < least:
            failed[name] = f"{got[0]} tile; the highest and the lowest by attention need two"
        else:
            sums[name] = got
    widths = [len(total) for _, total, _ in sums.values()]
    usual = max(set(widths), key=widths.count, default=0)
    failed.update({name: f"{len(total)} features a tile, most slides have {usual}: another encoder's?"
                   for name, (_, total, _) in sums.items() if len(total) != usual})
    names = [name for name in slides if name not in failed]
    if not names:
        tiling.report_failures(failed, len(slides))
        raise InputError(f"{cohort}: no slide is left")
    made = tiling.provenance(cohort, o, names)
    made.pop("supertiles")
    return dict(names=np.array(names), bag=lambda i: tiling.load_features(cohort, source, names[i], check=False)[0],
                sums=[sums[name] for name in names], n_features=usual, features=made, failed=failed,
                seen=[tiling.features_made_by(cohort, source, name) for name in tiling.counted("hashing", names, "slides")])


def labelled_slides(cohort, o, classes=None):
    """(rows of samples.csv that have a label, y (n,), its classes, what was left out)."""
    if not Path(cohort).is_dir():
        raise InputError(f"{cohort}: no such folder")
    samples = tiling.read_samples(cohort)
    if o.label is None:
        kinds = tissue_of(samples, cohort)
        known, classes = [s for s, k in zip(samples, kinds) if k is not None], ("normal", "tumour")
        y = np.array([k for k in kinds if k is not None], np.int64)
        if len(set(y.tolist())) < 2:
            raise InputError(f"{cohort}/samples.csv: every slide is {classes[y[0]]}; a classifier needs two classes")
    else:
        if o.label not in samples[0]:
            raise InputError(f"{cohort}/samples.csv: no column {o.label}; it has {', '.join(samples[0])}: choose with --label")
        known = [s for s in samples if s[o.label].lower() not in UNKNOWN]
        y, classes = two_classes([s[o.label] for s in known], o.positive if classes is None else classes[1],
                                 f"{cohort}/samples.csv, column {o.label}")
    return known, y, classes, {"slides without a label": [s["slide"] for s in samples if s not in known]}


def bags_of_cohort(cohort, o, classes=None):
    """What diagnose needs of a cohort: as bags_of_table, its slides' features read from disk when they are needed."""
    known, y, classes, left_out = labelled_slides(cohort, o, classes)
    d = slide_features(cohort, o, [s["slide"] for s in known])
    at = {s["slide"]: i for i, s in enumerate(known)}
    keep = [at[name] for name in d["names"]]
    return dict(d, patients=np.array([known[i]["patient"] for i in keep]), y=y[keep], classes=classes, left_out=left_out,
                what="slides")


def roles(part, f, folds, code=()):
    """Rows that train, choose the epoch of, and test model f; with `stop` turned the test rows choose it."""
    follows = (f + 1) % folds
    chooses = f if "stop" in code else follows
    return tuple(np.flatnonzero(rows) for rows in ((part != f) & (part != follows), part == chooses, part == f))


def refuse(d, text):
    """InputError after a word on each slide that failed: they may be why too few are left."""
    tiling.report_failures(d["failed"], len(d["names"]) + len(d["failed"]))
    raise InputError(text)


def check_folds(n, d, o):
    if n < o.folds:
        refuse(d, f"{n} patients don't go into --folds {o.folds} parts; " + (f"--folds {n} would work" if n > 2 else
                         "one part tests, one validates, the others train: at least 3 are needed"))


def folds_of(d, o):
    """[(repeat, fold, train, valid, test)] and each sample's part in each repeat (repeats, n)."""
    check_folds(len(set(d["patients"].tolist())), d, o)
    parts = np.array([split_patients(d["patients"], d["y"], o.folds, [o.seed, r]) for r in range(o.repeats)])
    jobs = [(r, f, *roles(part, f, o.folds, o.code)) for r, part in enumerate(parts)
            for f in range(o.folds if o.rotate else max(1, o.folds // 2))]
    for r, f, train, *_ in jobs:
        if len(set(d["y"][train])) < 2:
            refuse(d, f"the training part of fold {f} has {d['what']} of one class only: {len(d['y'])} {d['what']}, "
                   f"{d['y'].sum()} {d['classes'][1]}, are too few for --folds {o.folds}")
    return jobs, parts


def seed_of(o, *key):
    return int(np.random.default_rng([o.seed, *key]).integers(2 ** 62))


def draw_model(pooling, sums, rows, seed, o, outputs=2):
    torch.manual_seed(seed)
    return SlideModel(pooling, *mean_and_sd(sums, rows), outputs, o.embed, o.hidden)


def save_fold(path, done, d, o, pooling, outputs, patients, rows, learned_from, **more):
    """One fold's checkpoint: networks, whom they learned from (or chose their epoch by), and whom they were tested on."""
    saved = dict(done, version=VERSION, run=tiling.mark_of(path), pooling=pooling, outputs=outputs, embed=list(o.embed),
                 hidden=o.hidden, n_features=d["n_features"], features=d["features"],
                 learned_from=sorted(set(learned_from.tolist())), **more,
                 **{f"{part}_patients": sorted(set(patients[of].tolist())) for part, of in zip(("train", "valid", "test"), rows)})
    save_file(path, lambda file: torch.save(saved, file))


def train_pooling(pooling, d, jobs, o, folder, device):
    """Train what is not there yet -> {(repeat, fold): its checkpoint}."""
    path_of = lambda r, f: folder / f"{pooling}-r{r}-f{f}.pt"
    todo, (rank, world) = tiling.by_first(lambda: [job for job in jobs if not path_of(*job[:2]).is_file()]), o.share
    at_once = 1 if d["what"] == "slides" else max(1, BAGS_AT_ONCE // (max(n for n, *_ in d["sums"]) * d["n_features"]))
    alike = [[j for j in todo if len(j[2]) == n] for n in sorted({len(j[2]) for j in todo})]
    blocks = [jobs[i:i + at_once] for jobs in alike for i in range(0, len(jobs), at_once)]     # of slides one fills the cores
    target = lambda rows: torch.from_numpy(d["y"][rows])
    for block in blocks[rank::world]:
        seeds = [seed_of(o, r, f) for r, f, *_ in block]
        models = [draw_model(pooling, d["sums"], job[2], seed, o) for seed, job in zip(seeds, block)]
        state = path_of(*block[0][:2]).with_suffix(f".{len(block)}.state.pt")
        names = f"fold {block[0][1]}" if len(block) == 1 else f"{len(block)} networks"
        done = train_heads(models, d["bag"], target, cross_entropy, [job[2:] for job in block], seeds, o, device,
                           f"{pooling} {names}", state, d["names"])
        for m, (r, f, *rows) in enumerate(block):
            own = dict(model={k: v[m:m + 1].clone() for k, v in done["model"].items()}, epoch=int(done["epochs"][m]),
                       losses=done["losses"][:, m].clone(), tests=done["tests"][m].clone())
            ledger = {}
            for step, seen in done["saw"][m].items():
                saw(ledger, step, d["patients"][seen])
            saw(ledger, "standardisation of the features", d["patients"][rows[0]])                  # of draw_model
            save_fold(path_of(r, f), own, d, o, pooling, 2, d["patients"], rows, d["patients"][np.concatenate(rows[:2])],
                      kind="diagnosis", classes=list(d["classes"]), saw=ledger)
            p = figures_of(d["y"][rows[2]], own)
            entry = dict(pooling=pooling, repeat=r, fold=f, epoch=own["epoch"],
                         **{k: None if math.isnan(v) else float(v) for k, v in p.items()},
                         valid_losses=[round(v, 5) for v in own["losses"].tolist()])
            with open(tiling.log_path(folder, o.share), "a") as log:
                log.write(json.dumps(entry) + "\n")
            tiling.say(f"{pooling:8s} repeat {r} fold {f}: {'/'.join(str(len(v)) for v in rows)} {d['what']}, epoch "
                       f"{own['epoch']:3d}, test accuracy {p['accuracy']:.3f}, AUC {p['auc']:.3f}")
        state.unlink(missing_ok=True)
    tiling.of_all(None)
    for left in () if rank else folder.glob(f"{pooling}-*.state.pt"):          # of a kill between a fold and its state
        left.unlink()
    return {job[:2]: tiling.load_checkpoint(path_of(*job[:2]), "cpu") for job in jobs}


def with_interval(y, p, patients, seed):
    """[(name, value, low, high)] of pooled predictions: accuracy, ROC-AUC, PR-AUC with 95 % patient-bootstrap intervals."""
    rng, hits = np.random.default_rng(seed), (p > .5) == y
    return [("accuracy", hits.mean(), *stats.bootstrap_mean(hits, patients, stats.N_DRAWS, rng)),
            ("ROC-AUC", stats.roc_auc(y, p), *stats.bootstrap_auc(y, p, patients, stats.N_DRAWS, rng)),
            ("PR-AUC", stats.pr_auc(y, p), *stats.bootstrap_pr_auc(y, p, patients, stats.N_DRAWS, rng))]


def draw_curves(path, curves):
    """ROC and precision-recall side by side; curves: {name: (y, p)}. [HistCode Figs. 2, 3]"""
    with tiling.figure(path, 1, 2, figsize=(10, 4.6)) as (left, right):
        for name, (y, p) in curves.items():
            if 0 < y.mean() < 1:
                left.plot(*stats.roc_curve(y, p), label=f"{name}, AUC {stats.roc_auc(y, p):.3f}")
                right.step(*stats.pr_curve(y, p), where="pre", label=f"{name}, area {stats.pr_auc(y, p):.3f}")
                right.axhline(y.mean(), color="0.8", lw=1, zorder=0)
        left.plot((0, 1), (0, 1), color="0.8", lw=1, zorder=0)
        left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
        right.set(xlabel="recall", ylabel="precision", title="Precision-recall", ylim=(0, 1.02))
        for ax in (left, right):
            ax.legend(fontsize=8)


def settle_training(o, usual):
    """Fill in the training options that were not given, and check all of them."""
    for k, v in usual.items():
        if getattr(o, k) is None:
            setattr(o, k, v)
    check_ranges(o, ("epochs", 1, 1e6), ("folds", 3, 1e6), ("repeats", 1, 1e4), ("batch", 1, 1e6), ("hidden", 1, WIDEST),
                 ("lr", 1e-9, 1e3), ("weight_decay", 0, 1e3))


def claim_run(folder, o, d, more, *seen):
    """Write the config.json of a downstream run -> its settings; a folder of other settings is refused."""
    config = dict(command=o.verb, version=VERSION, code=o.code, data=tiling.digest(*seen, *d["seen"]),
                  features=d["features"], n_features=d["n_features"], embed=list(o.embed), **more,
                  **{k: getattr(o, k) for k in ("hidden", "lr", "weight_decay", "epochs", "batch", "folds", "repeats", "seed")})
    return tiling.claim_folder(folder, config, "*.pt", o.share, bags=getattr(o, "bags", None), processes=o.share[1],
                               cohort=o.cohort and str(Path(o.cohort).resolve()),
                               features_folder=o.features and str(Path(o.features).resolve()))


def diagnose(o):
    """Cross-validate classifiers of slides, or of the bags of a table, and report how well they tell the classes apart."""
    start = time.time()
    if (o.cohort is None) == (o.bags is None):
        raise InputError("give either a cohort folder or --bags FILE")
    of_slides = dict.fromkeys(("external features label weights precision mpp tile_um min_tissue max_tiles colour tissue "
                               "tissue_threshold min_area").split(), None) | dict(encoder="resnet50-stage3")
    given = [f"--{k.replace('_', '-')}" for k, usual in of_slides.items() if getattr(o, k) != usual]
    if o.bags and given:
        raise InputError(f"{', '.join(given)}: only with a cohort folder; {o.bags} is the whole of the data")
    if o.bags and "folds" in o.code:
        raise InputError(f"--code folds: with a cohort folder; every part of {o.bags} is tested")
    settle_choices(o)
    settle_training(o, BAGS if o.bags else DIAGNOSIS)
    o.rotate = bool(o.bags) if o.rotate is None else o.rotate
    if o.positive is not None and not o.bags and o.label is None:
        raise InputError(f"--positive {o.positive}: with --label COLUMN; tumour is the positive class otherwise")
    tiling.need_matplotlib()                                                   # better now than after a day
    device = tiling.pick_device(o.device)
    d = bags_of_table(o) if o.bags else bags_of_cohort(o.cohort, o)
    tiling.say_left_out(d["left_out"])
    jobs, parts = folds_of(d, o)
    other = bags_of_cohort(o.external, o, d["classes"]) if o.external else None
    if other:
        check_external(d, other, o)
    y, poolings = d["y"], list(POOLINGS) if o.table else [o.pooling]
    folder = (Path(o.name or Path(o.bags).stem + "-diagnosis") if o.bags else
              Path(o.cohort) / "runs" / o.within / (o.name or "diagnosis"))
    config = claim_run(folder, o, d, dict(classes=list(d["classes"]), rotate=o.rotate, label=o.label),
                       d["names"].tolist(), d["patients"].tolist(), y.tolist(), parts.tolist())
    if not o.share[0]:
        save_csv(folder / "folds.csv", (d["what"][:-1], "patient", "label", *(f"part_{r}" for r in range(o.repeats))),
                 zip(d["names"], d["patients"], (d["classes"][v] for v in y), *parts))
    print(f"{len(y)} {d['what']} of {len(set(d['patients'].tolist()))} patients, {y.sum()} {d['classes'][1]}, "
          f"{d['n_features']} features; {o.repeats} x {len(jobs) // o.repeats} folds; {', '.join(poolings)}, on {device}",
          flush=True)
    trained = {pooling: train_pooling(pooling, d, jobs, o, folder, device) for pooling in poolings}
    if o.share[0]:                                                             # the first process judges
        return 0
    tiling.write_log(folder, tiling.read_log(folder))
    own = {(pooling, *job[:2]): probabilities(s := trained[pooling][job[:2]])[s["epoch"] - 1]
           for pooling in poolings for job in jobs}
    save_csv(folder / "predictions.csv", (d["what"][:-1], "patient", "label", "pooling", "repeat", "fold",
                                          f"p_{d['classes'][1]}", "predicted"),
             ((d["names"][i], d["patients"][i], d["classes"][y[i]], pooling, r, f, f"{p:.6f}", d["classes"][int(p > .5)])
              for pooling in poolings for r, f, _, _, test in jobs for i, p in zip(test, own[pooling, r, f])))
    d["encoder"], d["ledgers"] = [] if o.bags else tiling.encoder_saw(o.cohort, tiling.features_of(o)), [{} for _ in jobs]
    for ledger, job in zip(d["ledgers"], jobs):
        for one in trained.values():
            for step, whom in one[job[:2]].get("saw", {}).items():
                saw(ledger, step, whom)
        saw(ledger, "optimism table", d["patients"][job[4]])
        if other:
            saw(ledger, "external cohort", other["patients"])
    write_diagnosis(folder, config, d, jobs, trained, own, o)
    for stale in (folder / "external.csv", folder / "external.png"):
        stale.unlink(missing_ok=True)
    if other:
        judge_external(folder, other, trained, d["encoder"], o, device)
    print(f"report: {folder / 'report.md'}   ({clock(time.time() - start)})")
    return tiling.report_failures(d["failed"] | (other["failed"] if other else {}), len(y) + len(d["failed"]), folder)


def write_diagnosis(folder, config, d, jobs, trained, own, o):
    """table.csv, curves.png, report.md; the table also to the terminal."""
    columns, y, table = ("accuracy", "auc", "pr_auc", "best_epoch", "best_threshold", "best_epoch_auc"), d["y"], tiling.table
    figures = {pooling: {job[:2]: figures_of(y[job[4]], saved[job[:2]]) for job in jobs} for pooling, saved in trained.items()}
    mean_sd, first = {}, [job for job in jobs if job[0] == 0]
    tested = np.concatenate([job[4] for job in first])
    for pooling, by_fold in figures.items():
        v = np.array([[f[c] for c in columns] for f in by_fold.values()])      # (folds, figures)
        there = [x[~np.isnan(x)] for x in v.T]                                 # a fold of one class has no AUC
        mean_sd[pooling] = [(x.mean() if len(x) else math.nan, x.std(ddof=1) if len(x) > 1 else math.nan) for x in there]
    pooled = {pooling: (y[tested], np.concatenate([own[pooling, *job[:2]] for job in first])) for pooling in trained}
    save_csv(folder / "table.csv", ("pooling", "folds", *(f"{c}{end}" for c in columns for end in ("", "_sd"))),
             ((pooling, len(jobs), *(f"{x:.4f}" for pair in pairs for x in pair)) for pooling, pairs in mean_sd.items()))
    draw_curves(folder / "curves.png", pooled)
    show = lambda pair: f"{pair[0]:.3f} ± {pair[1]:.3f}"
    header = ("pooling", "accuracy", "ROC-AUC", "PR-AUC", "paper's accuracy, AUC")
    honest = [(pooling, *map(show, pairs[:3]), "{:.4f}, {:.4f}".format(*TABLE_1[pooling]))
              for pooling, pairs in mean_sd.items()]
    optimism_header = ("pooling", "accuracy, honest", "best epoch on test", "best threshold on test", "AUC, honest",
                       "AUC, best epoch on test")
    optimism = [(pooling, *(f"{v[j][0]:.3f}" for j in (0, 3, 4, 1, 5))) for pooling, v in mean_sd.items()]
    bounds = [(pooling, *(f"{v:.3f} ({low:.3f} to {high:.3f})" for _, v, low, high in
                          with_interval(*pair, d["patients"][tested], o.seed))) for pooling, pair in pooled.items()]
    no_auc = sum(math.isnan(f["auc"]) for f in next(iter(figures.values())).values())
    majority = max(y[tested].mean(), 1 - y[tested].mean())
    baseline = f"Always the commoner class: accuracy {majority:.3f}; chance: ROC-AUC .5, PR-AUC {y[tested].mean():.3f}."
    note = ("The paper's figures are from LUAD against LUSC, those of MIL-RNN, ABMIL and DSMIL copied from other works and "
            "splits: no comparison.")
    as_text = lambda rows: "\n".join(f"{row[0]:10s}" + "".join(f"{cell:>26s}" for cell in row[1:]) for row in rows)
    print(f"{as_text([header, *honest])}\n{baseline} {note}\n\n{as_text([optimism_header, *optimism])}")
    bags, (leaks, seen) = d["what"], tiling.ledger_lines(d["ledgers"], [set(d["patients"][job[4]].tolist()) for job in jobs],
                                                         MAY_SEE, d["encoder"])
    save_text(folder / "report.md", [
        f"# Diagnosis: {folder.name}", "", *leaks, *turned_lines(o),
        f"{len(y)} {bags} of {len(set(d['patients'].tolist()))} patients; {y.sum()} {d['classes'][1]}, "
        f"{len(y) - y.sum()} {d['classes'][0]}. {o.folds} parts by patient, stratified; one tests"
        + (" and" if "stop" in o.code else ", the next one") + " chooses the epoch (the last one with the fewest mistakes), "
        f"{o.folds - 2} train; {len(first)} of them tested in turn, "
        f"{o.repeats} time{'s' * (o.repeats > 1)}. Mean ± SD "
        f"over the {len(jobs)} test folds, positive class {d['classes'][1]}."
        + (f" {no_auc} test folds have one class only and no AUC." if no_auc else ""), "", table(header, honest), "",
        f"{baseline} {note}", "", f"## {'First repeat' if o.repeats > 1 else 'All folds'} pooled", "",
        "Each tested sample once, by the model that " + ("chose its epoch by it" if "stop" in o.code else "did not know its "
        "patient") + "; 95 % intervals over patients.", "",
        table(("pooling", "accuracy", "ROC-AUC", "PR-AUC"), bounds), "", "![Curves](curves.png)", "",
        "## Optimism", "", "What the same models seem to reach when the test part chooses the epoch, or the threshold. "
        "Shown since published figures often are such; nothing here uses them" + ", but for the epoch (--code stop)"
        * ("stop" in o.code) + ".", "", table(optimism_header, optimism), "",
        "## Folds", "", table(("pooling", "repeat", "fold", "test", "epoch", "accuracy", "AUC"), [
            (pooling, r, f, len(test), trained[pooling][r, f]["epoch"], f"{figures[pooling][r, f]['accuracy']:.3f}",
             f"{figures[pooling][r, f]['auc']:.3f}") for pooling in figures for r, f, _, _, test in jobs]), "",
        *seen, *left_out_lines(d), "## Settings", "", *(f"- {k}: {v}" for k, v in config.items()), ""])


def left_out_lines(d):
    return ["## Left out", "", *([f"- {len(names)} {what}: {', '.join(names)}" for what, names in d["left_out"].items() if names]
                                 + [f"- {name} failed: {why}" for name, why in d["failed"].items()] or ["Nothing."]), ""]


def check_external(d, other, o):
    both = sorted(set(d["patients"].tolist()) & set(other["patients"].tolist()))
    if both:
        raise InputError(f"{few(both)}: patients of both {o.cohort} and {o.external}; what a model has seen is no test")
    if set(other["classes"]) != set(d["classes"]):
        raise InputError(f"labels of {o.external} are {few(other['classes'])}, of {o.cohort} {few(d['classes'])}")
    differ = [f"{k} {other['features'].get(k)}, there {v}" for k, v in d["features"].items()
              if k in ("source", "weights", "colour", "tile_um", "tile_px") and other["features"].get(k) != v]
    if differ or other["n_features"] != d["n_features"]:
        raise InputError(f"features of {o.external} are of another kind than those of {o.cohort}: "
                         + ("; ".join(differ) or f"{other['n_features']} a tile, there {d['n_features']}"))


def judge_external(folder, other, trained, encoder, o, device):
    """external.csv and its figures: an external cohort [HistCode Results, CPTAC]; each slide's probability is the
    mean over the fold models [ours]."""
    rows, text, curves = [], [], {}
    for pooling, saved in trained.items():
        models = [apply_heads(s, device) for s in saved.values()]
        p = np.array([np.mean([m(h)[0][0].double().softmax(0)[1].item() for m in models]) for h in tiling.counted(
            f"external {pooling}", map(other["bag"], range(len(other["y"]))), "slides", len(other["y"]))])
        rows += zip(other["names"], other["patients"], (other["classes"][v] for v in other["y"]), [pooling] * len(p),
                    (f"{v:.6f}" for v in p))
        text.append((pooling, *(f"{v:.3f} ({low:.3f} to {high:.3f})" for _, v, low, high in
                                with_interval(other["y"], p, other["patients"], o.seed))))
        curves[pooling] = other["y"], p
        print(f"{o.external}, {pooling}: accuracy {text[-1][1]}, ROC-AUC {text[-1][2]}, PR-AUC {text[-1][3]}")
    save_csv(folder / "external.csv", ("slide", "patient", "label", "pooling", f"p_{other['classes'][1]}"), rows)
    draw_curves(folder / "external.png", curves)
    report, seen = (folder / "report.md").read_text("utf-8").split("\n"), {*(encoder or ())} & {*other["patients"].tolist()}
    save_text(folder / "report.md", [*report, f"## External: {o.external}", "", f"{len(other['y'])} slides, none of whose "
              "patients a model has seen; mean over the fold models."
              + f" **The encoder learned from tiles of {len(seen)} of these patients, without labels.**" * bool(seen), "",
              tiling.table(("pooling", "accuracy", "ROC-AUC", "PR-AUC"), text), "", "![Curves](external.png)", "",
              *left_out_lines(other)])


# ----- Differential expression ---------------------------------------------------------------------------------------
def driver_genes(path, top):
    """The `top` genes of a compendium by mutations, summed over its cohorts; a table with columns symbol (or gene) and
    mutations. [HistCode Methods, Cancer driver genes]"""
    header, rows = tiling.read_rows(path)
    lower = [c.lower() for c in header]
    name, count = (next((lower.index(c) for c in names if c in lower), None) for names in (
        ("symbol", "gene", "hugo_symbol", "gene_name"), ("mutations", "n_mutations", "mutation_count")))
    if name is None or count is None:
        raise InputError(f"--drivers {path}: wanted columns symbol and mutations; it has {few(header)}")
    total = {}
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"--drivers {path} row {line}: {len(row)} fields, the header has {len(header)}")
        n = tiling.number(row[count])
        total[row[name].strip()] = total.get(row[name].strip(), 0) + (0 if math.isnan(n) else n)
    return sorted(filter(None, total), key=lambda g: (-total[g], g))[:top]


def pairs_of(cohort, o):
    """Patients with tumour and matched normal expression, and slides: dict of patients (P,), slides [names of each], genes,
    tumour and normal (P, G) linear expression, the mean of a patient's samples, and what was left out. Also known, tissue:
    all slides that are tumour or normal, which teach where to look."""
    cohort = Path(cohort)
    if not cohort.is_dir():
        raise InputError(f"{cohort}: no such folder")
    samples = tiling.read_samples(cohort)
    tissue = tissue_of(samples, cohort)
    key, ids, genes, a = tiling.read_expression(cohort)
    key = key or ("sample" if "sample" in samples[0] else "slide")
    if key not in samples[0]:
        raise InputError(f"{cohort}/expression: its rows are samples, but samples.csv has no column sample")
    owner, rows, slides = {}, ({}, {}), {}
    for s, kind in zip(samples, tissue):
        if s[key] and owner.setdefault(s[key], (s["patient"], kind)) != (s["patient"], kind):
            raise InputError(f"{cohort}/samples.csv: {key} {s[key]} is {owner[s[key]]} and {(s['patient'], kind)} (patient, "
                             "tumour 1 or normal 0): its expression can't be both's")
        if kind == 1 or kind == 0 and o.slides == "both":
            slides.setdefault(s["patient"], []).append(s["slide"])
    for i, name in enumerate(ids):                                             # a normal sample may have no slide
        patient, kind = owner.get(name) or barcode(name)
        if kind is not None:
            rows[kind].setdefault(patient, []).append(i)
    normal, tumour = rows
    patients = sorted(set(normal) & set(tumour) & set(slides))
    left_out = {"patients with tumour but no normal expression": sorted(set(tumour) - set(normal)),
                "patients with normal but no tumour expression": sorted(set(normal) - set(tumour)),
                "patients with both but no slide": sorted(set(normal) & set(tumour) - set(slides)),
                "expression rows of no known patient or tissue": [n for n in ids if (owner.get(n) or barcode(n))[1] is None],
                "slides that are neither tumour nor normal": [s["slide"] for s, k in zip(samples, tissue) if k is None]}
    if len(patients) < 3:
        tiling.say_left_out(left_out)
        raise InputError(f"{cohort}: {len(patients)} patients have tumour and normal expression and a slide; at least 3 are "
                         f"needed, to train, validate and test ({len(tumour)} have tumour, {len(normal)} normal expression)")
    of = lambda rows: np.stack([a[rows[p]].mean(0, dtype=np.float64) for p in patients])            # (P, G)
    known = [(s, k) for s, k in zip(samples, tissue) if k is not None]
    return dict(patients=np.array(patients), slides=[slides[p] for p in patients], genes=genes, tumour=of(tumour),
                normal=of(normal), left_out=left_out, known=[s for s, _ in known], tissue=np.array([k for _, k in known]))


def chosen_genes(d, o):
    """Columns of the genes asked for whose fold change is known in half of the pairs and varies; the rest is left out."""
    at = {g: j for j, g in enumerate(d["genes"])}
    if o.drivers:
        wanted = driver_genes(o.drivers, o.top)
        d["left_out"][f"of the {len(wanted)} driver genes, without expression"] = [g for g in wanted if g not in at]
        chosen = [at[g] for g in wanted if g in at]
        if not chosen:
            raise InputError(f"--drivers {o.drivers}: none of its genes ({few(wanted, 3)}) is in the expression table, which "
                             f"has {few(d['genes'], 3)}")
    else:
        chosen = tiling.pick_genes(o.genes, d["genes"], "the expression table")
    y, _ = fold_change(d["tumour"][:, chosen], d["normal"][:, chosen])
    known, d["saw"] = ~np.isnan(y), {}
    saw(d["saw"], "gene filter", d["patients"])
    usable = (2 * known.sum(0) >= len(y)) & (known.sum(0) >= 3) & (np.nanmax(np.where(known, y, -np.inf), 0)
                                                                   > np.nanmin(np.where(known, y, np.inf), 0))
    d["left_out"]["genes whose fold change is unknown in more than half of the pairs (no expression in normal tissue), or "
                  "does not vary"] = [d["genes"][j] for j, u in zip(chosen, usable) if not u]
    if not usable.any():
        raise InputError(f"{o.cohort}: no gene of {len(chosen)} has a fold change in half of the {len(y)} pairs")
    return [j for j, u in zip(chosen, usable) if u]


def predict_pair(saved, apply, h):
    """Of one bag (T, D) by one fold's checkpoint: (predicted y (G,), log odds of the label (G,) or None, a (M, T))."""
    out, a = apply(h)
    a = a.double().numpy()
    if saved["kind"] == "linear":
        x = pair_features(h, a[0])
        return (*(x @ saved[w].double().numpy() + saved[b].double().numpy() for w, b in (
            ("weights", "bias"), ("label_weights", "label_bias"))), a)
    return out.flatten().double().numpy(), None, a


def train_expression(p, d, y, label, jobs, o, folder, device):
    """One checkpoint for each fold: fold*.pt. [HistCode Methods, Differential expression prediction]

    --model linear: a classifier of tumour and normal slides says which tiles are most and least tumour, their means give
    all genes at once. --model attention: the pooled features of all tiles, trained on the genes themselves.
    """
    rows_of = {name: i for i, name in enumerate(d["names"])}
    bag_of = lambda i: np.concatenate([d["bag"](rows_of[s]) for s in p["slides"][i]])
    sums = [tuple(map(sum, zip(*(d["sums"][rows_of[s]] for s in names)))) for names in p["slides"]]
    xs = [np.full((len(y), 2 * d["n_features"]), np.nan) for _ in range(o.folds * (o.model == "linear"))]      # (P, 2D) each
    for _, f, *parts in jobs:
        path = folder / f"fold{f}.pt"
        if path.is_file() or f % o.share[1] != o.share[0]:
            continue
        start, seed, ledger = time.time(), seed_of(o, 0, f), dict(p["saw"])
        train, valid, test = roles(p["part"], f, o.folds)
        both, chooses = np.concatenate([train, valid]), roles(p["part"], f, o.folds, o.code)[1]
        if o.model == "linear":
            model = draw_model("HistCode", d["sums"], parts[0], seed, o)
            done = train_heads([model], d["bag"], lambda r: torch.from_numpy(d["y"][r]), cross_entropy, [(*parts[:2], [])],
                               [seed], o, device, f"fold {f} attention", path.with_suffix(".0.state.pt"), d["names"])
            apply = apply_heads(dict(model=done["model"], pooling="HistCode", outputs=2, embed=o.embed, hidden=o.hidden,
                                     n_features=d["n_features"]), device)
            saw(ledger, "standardisation of the features", d["patients"][parts[0]])                 # of draw_model
            for step, seen in done["saw"][0].items():
                saw(ledger, f"attention: {step}", d["patients"][seen])
            x = xs[f]                                                          # nan: the test patients
            for i in tiling.counted(f"fold {f} tiles", {*both, *chooses}, "pairs"):
                x[i] = pair_features(h := bag_of(i), apply(h)[1][0].numpy())
            if o.ridge is None:
                saw(ledger, "penalty", p["patients"][both])
            penalty = best_penalty(x[both], y[both]) if o.ridge is None else o.ridge
            saw(ledger, "least squares", p["patients"][both])                  # it has no epoch to choose
            weights, bias = least_squares(x[both], y[both], penalty)
            saw(ledger, "labels: weights of the layer", p["patients"][train])
            saw(ledger, "labels: choice of the epoch", p["patients"][chooses])
            label_weights, label_bias = fit_labels(x, label, train, chooses, device)
            more = {k: torch.from_numpy(np.float32(v)) for k, v in dict(
                weights=weights, bias=bias, label_weights=label_weights, label_bias=label_bias).items()}
            pooling, outputs, more["penalty"] = "HistCode", 2, float(penalty)
        else:
            pooling, outputs, more = POOLED[o.pooling], 1 if o.per_gene else y.shape[1], {}
            saw(ledger, "standardisation of the features", p["patients"][train])                    # of draw_model
            saw(ledger, "start of the last bias", p["patients"][train])
            known = ~np.isnan(y[train])                                        # of a gene no training patient may know
            done, mean = [], np.where(known, y[train], 0).sum(0) / np.maximum(known.sum(0), 1)      # the bias starts there
            for genes in np.array_split(np.arange(y.shape[1]), -(-y.shape[1] // GENES_AT_ONCE) if o.per_gene else 1):
                models = []
                for j in genes if o.per_gene else [genes]:
                    models.append(draw_model(pooling, sums, train, seed, o, outputs))
                    models[-1].head.classify.bias.data.copy_(torch.as_tensor(mean[j]))
                turned = lambda r: torch.from_numpy(np.float32(y[r][..., genes] if not o.per_gene else
                                                               y[r[0]][:, genes].T[:, :, None]))
                done.append(train_heads(models, bag_of, turned, squared_error, [(train, chooses, [])],
                                        [seed], o, device, f"fold {f}" + f" genes {genes[0] + 1}-{genes[-1] + 1}" * o.per_gene,
                                        path.with_suffix(f".{genes[0]}.state.pt"), p["patients"]))
            for step, seen in (item for one in done for own in one["saw"] for item in own.items()):
                saw(ledger, step, p["patients"][seen])
            done = dict(model={k: torch.cat([one["model"][k] for one in done]) for k in done[0]["model"]},
                        epochs=torch.cat([one["epochs"] for one in done]), losses=torch.cat([one["losses"] for one in done], 1))
        done.pop("tests", None)
        done.update(more, saw=ledger)
        save_fold(path, done, d, o, pooling, outputs, p["patients"], (train, chooses, test), np.concatenate(
            [d["patients"][np.concatenate(parts[:2])], p["patients"][both]]), kind=o.model, genes=p["chosen"])
        for state in folder.glob(f"fold{f}.*.state.pt"):
            state.unlink()
        with open(tiling.log_path(folder, o.share), "a") as log:
            log.write(json.dumps(dict(fold=f, epochs=done["epochs"].tolist(), valid_losses=done["losses"].tolist())) + "\n")
        tiling.say(f"fold {f}: {len(train)}/{len(chooses)}/{len(test)} pairs, epoch {few(done['epochs'].tolist(), 3)}"
                   + (f", penalty {more['penalty']:g}" if more else "") + f", {clock(time.time() - start)}")
    tiling.of_all(None)
    if o.share[0]:                                                             # the first process judges
        return None
    for left in folder.glob("fold*.state.pt"):                                 # of a kill between a fold and its state
        left.unlink()
    tiling.write_log(folder, tiling.read_log(folder))
    saved, prediction, odds = [], np.full(y.shape, np.nan), np.full(y.shape, np.nan)
    for f in range(o.folds):
        saved.append(tiling.load_checkpoint(folder / f"fold{f}.pt", "cpu"))
        apply, tested = apply_heads(saved[-1], device), p["part"] == f
        todo = tested | np.isnan(xs[f][:, 0]) if xs else tested                # and what a process before this one has read
        for i in tiling.counted(f"judging fold {f}", np.flatnonzero(todo), "pairs"):
            h = bag_of(i)
            if tested[i]:
                prediction[i], own, a = predict_pair(saved[-1], apply, h)
                odds[i] = np.where(label_of(prediction[i]), 1, -1) if own is None else own
            if xs:
                xs[f][i] = pair_features(h, (a if tested[i] else apply(h)[1].double().numpy())[0])
    shuffled = lambda r: shuffled_p(r, xs, p["part"], [s["penalty"] for s in saved], y, np.random.default_rng([o.seed, 2]))
    return saved, prediction, odds > 0, shuffled if xs else None


def expression(o):
    """Predict which genes change between tumour and normal tissue of a patient, from the slide; every patient tested once.
    """
    start = time.time()
    settle_choices(o)
    if "epochs" in o.code and o.model != "attention":
        raise InputError("--code epochs: those of a gene's regressor: --code model,epochs, or --model attention")
    o.model, o.slides, o.per_gene = o.model or "linear", o.slides or "tumour", bool(o.per_gene)
    settle_training(o, DIAGNOSIS)
    check_ranges(o, ("top", 1, 1e6), ("ridge", 0, 1e12))
    if o.model == "linear" and (o.per_gene or o.pooling != "attention"):
        raise InputError(("--per-gene" if o.per_gene else f"--pooling {o.pooling}") + ": with --model attention; the linear "
                         "model is one layer over the tiles of highest and lowest attention")
    if o.model != "linear" and o.ridge != 0:
        raise InputError("--ridge: with --model linear; the other stops on its validation patients")
    if o.drivers and o.genes != "all":
        raise InputError("--drivers and --genes both name genes: give one")
    tiling.need_matplotlib()
    device, cohort, sets = tiling.pick_device(o.device), Path(o.cohort), read_sets(o.gmt) if o.gmt else {}
    p = pairs_of(cohort, o)
    chosen = chosen_genes(p, o)
    wanted = {s for names in p["slides"] for s in names}
    needed = [s["slide"] for s in p["known"] if o.model == "linear" or s["slide"] in wanted]
    d = slide_features(cohort, o, needed, least=2)
    gone = [i for i, names in enumerate(p["slides"]) if not set(names) <= set(d["names"])]
    p["left_out"]["pairs of which a slide failed"] = p["patients"][gone].tolist()
    keep = np.setdiff1d(np.arange(len(p["patients"])), gone)
    p.update(patients=p["patients"][keep], slides=[p["slides"][i] for i in keep], tumour=p["tumour"][keep],
             normal=p["normal"][keep], chosen=[p["genes"][j] for j in chosen])
    tiling.say_left_out(p["left_out"])
    y, label = fold_change(p["tumour"][:, chosen], p["normal"][:, chosen])     # (P, G)
    at = {s["slide"]: (s["patient"], k) for s, k in zip(p["known"], p["tissue"].tolist())}
    paired = set(p["patients"].tolist())
    d.update(patients=np.array([at[s][0] for s in d["names"]]), y=np.array([at[s][1] for s in d["names"]], np.int64),
             classes=("normal", "tumour"), what="slides", left_out=p["left_out"])
    # dealt from the table alone, so that every model and encoder has the same folds
    check_folds(len({s["patient"] for s in p["known"]}), d, o)
    of = split_patients([s["patient"] for s in p["known"]], [f"{k}{s['patient'] in paired}" for s, k in zip(
        p["known"], p["tissue"])], o.folds, [o.seed, 0])
    part_of = {s["patient"]: g for s, g in zip(p["known"], of.tolist())}
    p["part"], part = (np.array([part_of[who] for who in names]) for names in (p["patients"], d["patients"]))
    jobs = [(0, f, *roles(part, f, o.folds, o.code)) for f in range(o.folds)]
    for _, f, rows, chooses, _ in jobs:                                        # all folds before anything is written
        train, valid, _ = roles(p["part"], f, o.folds, o.code)
        if len(train) < 2 or o.model != "linear" and not len(valid):
            refuse(d, f"fold {f} has {len(train)} pairs to train on and {len(valid)} to choose its epoch, of "
                   f"{len(p['patients'])}: " + ("too few" if o.folds == 3 else "lower --folds"))
        if o.model == "linear" and (len(set(d["y"][rows])) < 2 or not len(chooses)):
            refuse(d, f"fold {f} trains on slides of " + (
                f"one class only ({d['classes'][d['y'][rows[0]]]})" if len(chooses) else "some patients, and none is left to "
                "choose the epoch") + "; the attention needs tumour and normal slides; --model attention does without")
    name = o.name or "-".join(["expression", *([o.pooling] if o.model != "linear" else []), *["per-gene"] * o.per_gene])
    folder = cohort / "runs" / o.within / name
    config = claim_run(folder, o, d, dict(model=o.model, pooling=o.pooling, per_gene=o.per_gene, slides=o.slides,
                                          ridge="auto" if o.ridge is None else o.ridge, genes=len(chosen), ends=ENDS),
                       d["names"].tolist(), d["patients"].tolist(), p["patients"].tolist(), p["chosen"], y, label, part,
                       p["part"])
    if not o.share[0]:
        save_csv(folder / "folds.csv", ("slide", "patient", "tissue", "part", "pair"), zip(
            d["names"], d["patients"], (d["classes"][v] for v in d["y"]), part, (int(w in paired) for w in d["patients"])))
    print(f"{len(p['patients'])} pairs, {len(chosen):,} genes, {len(d['names'])} slides, {d['n_features']} features a tile; "
          f"model {o.model}" + f", {o.pooling} pooling" * (o.model != "linear") + f"; {o.folds} folds, on {device}", flush=True)
    trained = train_expression(p, d, y, label, jobs, o, folder, device)
    if trained is None:
        return 0
    saved, prediction, guess, shuffled = trained
    found = judge_genes(prediction, y, guess, label, np.random.default_rng([o.seed, 1]), shuffled)
    fc = np.where(np.isnan(y), np.nan, 10.0 ** y - 1)
    with np.errstate(divide="ignore"):
        found.update(fc=np.nanmean(fc, 0), r_folds=fold_r(prediction, y, p["part"]))
    save_file(folder / "predictions.npz", lambda f: np.savez_compressed(
        f, prediction=prediction, truth=y, label=label, predicted_label=guess, genes=np.array(p["chosen"]),
        patient=p["patients"], part=p["part"]))
    p["encoder"], p["ledgers"] = tiling.encoder_saw(cohort, tiling.features_of(o)), [dict(s.get("saw", {})) for s in saved]
    for ledger, s in zip(p["ledgers"], saved):
        for step in ("random baseline", *["shuffled patients"] * bool(shuffled)):
            saw(ledger, step, s["test_patients"])
    write_expression(folder, config, p, d, y, prediction, found, saved, sets, o)
    print(f"report: {folder / 'report.md'}   ({clock(time.time() - start)})")
    return tiling.report_failures(d["failed"], len(needed), folder)


def fold_r(prediction, y, part):
    """R of each gene within each test part, mean over the parts that have one: (n, G), (n, G), (n,) -> (G,)."""
    r = np.array([stats.pearson(prediction[part == f], y[part == f]) for f in np.unique(part)
                  if (part == f).sum() >= stats.MIN_R] or [np.full(y.shape[1], np.nan)])
    there = ~np.isnan(r)
    return np.where(there.any(0), np.where(there, r, 0).sum(0) / np.maximum(there.sum(0), 1), np.nan)


GENE_COLUMNS = dict(n="n", R="r", p="p", bh="bh", R_within_folds="r_folds", spearman="rho", R_random="baseline",
                    p_location="location_p", bh_location="location_bh", p_errors="error_p", bh_errors="error_bh",
                    better="better", mean_fc="fc", share_label_1="positive", accuracy="accuracy", majority="majority")


def draw_expression(folder, title, genes, y, prediction, f, order):
    """Pictures of Figs. 4, 5, 7 and 8; -> [(lower end of a bin of R, mean fold changes of its genes)], Fig. 7's numbers."""
    r, base = (v[~np.isnan(v)] for v in (f["r"], f["baseline"]))
    with tiling.figure(folder / "r.png", figsize=(7, 4)) as ax:
        bins = np.linspace(min(-.5, *r, *base), max(.5, *r, *base), 41) if len(r) else 10
        ax.hist([r, base], bins, label=["predicted", "random"], color=[tiling.BLUE, tiling.ORANGE])
        ax.set(xlabel="Pearson R with the true log$_{10}$(fc + 1)", ylabel="genes", title=title)
        ax.legend(fontsize=8)
    with tiling.figure(folder / "accuracy.png", figsize=(7, 4)) as ax:
        pair = [v[~np.isnan(v)] for v in (f["accuracy"], f["majority"])]
        ax.hist(pair, np.linspace(0, 1, 21), label=["predicted", "always the commoner label"], color=[tiling.BLUE, tiling.ORANGE])
        ax.set(xlabel=f"accuracy of |log$_2$ fc| > {LOG2_FC}", ylabel="genes", title=title)
        ax.legend(fontsize=8)
    tenth = np.floor(10 * np.where(np.isnan(f["r"] + f["fc"]), np.nan, f["r"]))                     # (G,) its bin of R
    binned = [(t / 10, f["fc"][tenth == t]) for t in np.unique(tenth[~np.isnan(tenth)])]
    with tiling.figure(folder / "fold_change.png", figsize=(7, 4)) as ax:
        if binned:
            ax.boxplot([v for _, v in binned], positions=[low + .05 for low, _ in binned], widths=.07, manage_ticks=False)
        ax.set(xlabel="Pearson R, bins of .1", ylabel="mean fold change of the gene", title=title)
    nine = [genes.index(g) for g in SHOWN if g in genes]
    nine = (nine + [j for j in order if j not in nine])[:9]
    with tiling.figure(folder / "scatter.png", 3, 3, figsize=(9, 9)) as axes:
        for ax, j in zip(axes.flat, nine):
            ax.scatter(y[:, j], prediction[:, j], s=10, color=tiling.BLUE)
            ax.set_title(f"{genes[j]}: R = {f['r'][j]:.2f}", fontsize=9)
            ax.set(xlabel="true log$_{10}$(fc + 1)", ylabel="predicted")
        for ax in axes.flat[len(nine):]:
            ax.axis("off")
    return binned


def write_expression(folder, config, p, d, y, prediction, f, saved, sets, o):
    """genes.csv, pictures of Figs. 4, 5, 7, 8, 9 and report.md; the main figures also to the terminal."""
    genes, G, table, text = p["chosen"], len(p["chosen"]), tiling.table, []
    show = lambda v: "" if np.isnan(v) else f"{v:.5g}"
    order = np.argsort(np.where(np.isnan(f["r"]), np.inf, -f["r"]), kind="stable")
    save_csv(folder / "genes.csv", ("gene", *GENE_COLUMNS), ((genes[j], *(show(float(f[k][j])) for k in GENE_COLUMNS.values()))
                                                             for j in order))
    r, rho, base = (v[~np.isnan(v)] for v in (f["r"], f["rho"], f["baseline"]))
    u_p = stats.r_against_baseline(f["r"], f["baseline"])[1]
    mean = lambda v: float(np.mean(v)) if len(v) else math.nan
    lines = [
        f"Pearson R over {len(p['patients'])} held-out pairs: mean {mean(r):.3f}, Spearman {mean(rho):.3f}; R > .2 in "
        f"{(r > .2).sum()}, > .4 in {(r > .4).sum()} of {len(r)} genes; p below {ALPHA} by Benjamini-Hochberg in "
        f"{(f['bh'] < ALPHA).sum()} (p: " + ("patients shuffled, all folds fitted anew)." if config["model"] == "linear" else
                                             "twice the t's, as if R were of one sample; it scatters more)."),
        f"Random predictions between the 5 % and the 95 % of the truth: mean R {mean(base):.3f}, SD {base.std():.3f}; rank-sum "
        f"of both distributions p {u_p:.2g}.",
        f"Against them gene by gene, two-sided signed-rank, BH: predictions differ in {(f['location_bh'] < ALPHA).sum()} genes, "
        f"as the paper words it (location, not skill); errors are smaller in "
        f"{((f['error_bh'] < ALPHA) & (f['better'] == 1)).sum()}, larger in "
        f"{((f['error_bh'] < ALPHA) & (f['better'] == 0)).sum()}.",
        f"Label |log2 fc| > {LOG2_FC}: accuracy above .9 in {(f['accuracy'] > .9).sum()}, above .8 in "
        f"{(f['accuracy'] > .8).sum()} of {G} genes; always the commoner label would have it in {(f['majority'] > .9).sum()} "
        f"and {(f['majority'] > .8).sum()}. Accuracy beats the commoner label in {(f['accuracy'] > f['majority']).sum()} genes, "
        f"falls short in {(f['accuracy'] < f['majority']).sum()}; mean {mean(f['accuracy']):.3f} against "
        f"{mean(f['majority']):.3f}."]
    groups = [("R > .5", f["r"] > .5), ("R > .2", f["r"] > .2), ("R < .2", f["r"] < .2)]
    both = ~np.isnan(f["r"]) & ~np.isnan(f["fc"])
    tie = stats.spearman(f["r"][both], f["fc"][both]) if both.sum() > 2 else math.nan
    quartile = np.digitize(f["fc"][both], np.quantile(f["fc"][both], (.25, .5, .75))) if both.any() else np.zeros(0)
    lines.append("Mean R by quartile of the genes' mean fold change, lowest first: "
                 + ", ".join(f"{mean(f['r'][both][quartile == q]):.3f}" for q in range(4)) + ".")
    lines.append("Mean fold change of genes with " + ", ".join(f"{what}: {mean(f['fc'][of & both]):.3f} ({of.sum()})"
                                                               for what, of in groups)
                 + f"; Spearman of R and mean fold change over genes {tie:.3f}.")
    print("\n".join(lines))
    title = ", ".join([f"model {config['model']}", *[f"{config['pooling']} pooling"] * (config["model"] != "linear")])
    binned = draw_expression(folder, title, genes, y, prediction, f, order)
    if sets:
        text += enrich_best(folder, [genes[j] for j in order if not np.isnan(f["r"][j])], sets)
    truth = tiling.planted_programmes(o.cohort, genes)
    if truth is not None:
        rows = [(name, of.sum(), f"{mean(f['r'][of][~np.isnan(f['r'][of])]):.3f}", (f["bh"][of] < ALPHA).sum())
                for name, of in truth.items()]
        header = ("programme", "genes", "mean R", f"BH < {ALPHA}")
        print("SIMULATED: " + "; ".join(f"{name} {hit} of {n} (mean R {m})" for name, n, m, hit in rows))
        text += ["## Against what was planted", "", "SIMULATED cohort. Housekeeping and noise genes follow nothing on the slide.",
                 "", table(header, rows), ""]
    leaks, seen = tiling.ledger_lines(p["ledgers"], [s["test_patients"] for s in saved], MAY_SEE, p["encoder"])
    top = [(genes[j], f["n"][j], *(show(float(f[k][j])) for k in ("r", "bh", "rho", "r_folds", "fc", "accuracy", "majority")))
           for j in order[:20]]
    save_text(folder / "report.md", [
        f"# Differential expression: {folder.name}", "", *leaks, *turned_lines(o),
        f"{len(p['patients'])} pairs of tumour and matched normal tissue, {G:,} genes, y = log10(fc + 1) [HistCode]; "
        f"{title}. {config['folds']} parts by patient; each pair is predicted by the model that "
        + ("chose its epoch by it" if "stop" in o.code else "did not know its patient, neither in its attention nor in its "
           "regression") + ". R is over all pairs; R within folds: mean over the test parts.", "",
        *(line + "\n" for line in lines), "![R](r.png) ![Accuracy](accuracy.png)", "",
        "## Best genes", "", table(("gene", "pairs", "R", "p (BH)", "Spearman", "R within folds", "mean fc", "accuracy",
                                    "majority"), top), "", "![Predicted against true](scatter.png)", "",
        "## R and fold change", "", table(("R from", "genes", "mean fold change"), [
            (f"{low:.1f}", len(v), f"{v.mean():.3f}") for low, v in binned]), "", "![Fold change](fold_change.png)", "",
        *text, "## Folds", "", table(("fold", "train", "validation", "test", "epoch", "penalty"), [
            (i, *(len(s[f"{part}_patients"]) for part in ("train", "valid", "test")), few(s["epochs"].tolist(), 3),
             s.get("penalty", "")) for i, s in enumerate(saved)]), "",
        *seen, *left_out_lines(d), "## Settings", "", *(f"- {k}: {v}" for k, v in config.items()), ""])


def enrich_best(folder, ranked, sets):
    """Gene sets of the best genes among those tested: enrichment.csv, its picture and lines of the report. [HistCode Fig. 9]"""
    best = ranked[:BEST_GENES]
    e, names = stats.enrichment(best, sets, ranked), list(sets)
    order = [i for i in np.lexsort((-np.nan_to_num(e["fold"]), np.nan_to_num(e["p"], nan=2))) if e["size"][i]]
    save_csv(folder / "enrichment.csv", ("set", "genes tested", "hits", "expected", "fold", "p", "p_bh", "hit genes"), (
        (names[i], e["size"][i], e["overlap"][i], *(f"{e[k][i]:.4g}" for k in ("expected", "fold", "p", "bh")),
         " ".join(g for g in sets[names[i]] if g in best)) for i in order))
    line = (f"{len(best)} best of {len(ranked):,} tested genes: {(e['bh'] < ALPHA).sum()} of {len(order)} sets with a tested "
            f"gene at BH < {ALPHA}")
    print(line + "".join(f"; first: {names[i]} ({e['overlap'][i]} of {e['size'][i]}, p (BH) {e['bh'][i]:.2g})" for i in order[:1]))
    shown = [i for i in order[:10] if e["overlap"][i]]
    if shown:
        with tiling.figure(folder / "enrichment.png", figsize=(8, .7 + .28 * len(shown))) as ax:
            ax.barh([f"{names[i][:60]} ({e['overlap'][i]}/{e['size'][i]})" for i in shown],
                    -np.log10(np.maximum(e["p"][shown], 1e-300)), color=tiling.BLUE)
            ax.invert_yaxis()
            ax.set_xlabel("−log$_{10}$ p, one-sided Fisher, uncorrected")
    return [f"## Gene sets of the {len(best)} best genes", "", line + ".", "", tiling.table(
        ("set", "hits", "tested", "expected", "p", "p (BH)"), [(names[i], e["overlap"][i], e["size"][i],
         f"{e['expected'][i]:.1f}", f"{e['p'][i]:.2g}", f"{e['bh'][i]:.2g}") for i in shown]), "",
        *["![Sets](enrichment.png)", ""] * bool(shown)]


# ----- A run's models on slides --------------------------------------------------------------------------------------
def load_run(path, pooling=None):
    """A finished run of diagnose or expression: dict as tiling's "run's models on slides" wants it; folds: its checkpoints,
    kind of each (diagnosis, linear, attention)."""
    folder = Path(path)
    config = tiling.read_config(folder, VERSION) or {}
    if config.get("command") not in ("diagnose", "expression") or config.get("bags"):
        raise InputError(f"{folder}: not a run on slides of diagnose or expression; give a folder such as "
                         "COHORT/runs/diagnosis")
    if config.get("version") != VERSION:
        raise InputError(f"{folder} is a run of version {config.get('version')} of this program's files, this one reads "
                         f"version {VERSION}: train it again, or use the program that made it")
    if config["command"] == "diagnose":
        there = [name for name in POOLINGS if (folder / f"{name}-r0-f0.pt").is_file()]
        pooling = pooling or ("HistCode" if "HistCode" in there or not there else there[0])
        if pooling not in there:
            raise InputError(f"--pooling {pooling}: {folder} has {few(there) or 'no finished fold'}")
        names = [f"{pooling}-r{r}-f{f}.pt" for r in range(config["repeats"])
                 for f in range(config["folds"] if config["rotate"] else max(1, config["folds"] // 2))]
    elif pooling:
        raise InputError(f"--pooling {pooling}: {folder} is a run of expression, which has one")
    else:
        names = [f"fold{f}.pt" for f in range(config["folds"])]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not (folder / "report.md").is_file():
        raise InputError(f"{folder}: {few(missing, 3) or 'report.md'} is missing: the run is not finished; the command that "
                         "began it goes on")
    keys = "model kind learned_from test_patients n_features".split()
    saved, cohort = [tiling.load_checkpoint(folder / name, "cpu", keys=keys) for name in names], folder.resolve().parents[1]
    known = {who for s in saved for k in ("learned_from", "test_patients") for who in s[k]}
    return dict(folder=folder, config=config, folds=saved, rows=tiling.read_folds(folder, known),
                cohort=cohort if (cohort / "samples.csv").is_file() else Path(str(config.get("cohort"))),   # it may move
                fold_of={who: [m for m, s in enumerate(saved) if who not in s["learned_from"]] for who in known})


def mean_prediction(saved, appliers, use, h):
    """Means over the chosen models of one bag (T, D): probabilities (2,) of a diagnosis, else (y (G,), P(label 1) (G,))."""
    if saved[0]["kind"] == "diagnosis":
        return np.mean([appliers[m](h)[0][0].double().softmax(0).numpy() for m in use], 0)
    each = [predict_pair(saved[m], appliers[m], h)[:2] for m in use]
    y = np.mean([y for y, _ in each], 0)
    odds = [o for _, o in each if o is not None]
    return y, np.mean([1 / (1 + np.exp(-o)) for o in odds], 0) if odds else label_of(y).astype(float)


def off_scale(h):
    return f"its prediction is not finite: features up to {np.abs(h).max():.3g} are of another scale than the run's"


def predict(o):
    """Diagnose slides, or predict their patients' fold changes, by a finished run: the mean of its models, a csv each."""
    run, device, failed, done = load_run(o.run, o.pooling), tiling.pick_device(o.device), {}, 0
    saved, appliers = run["folds"], [apply_heads(s, device) for s in run["folds"]]
    for _, home, into, source, name in tiling.each_slide(run, o, failed):
        try:
            h, use = tiling.load_features(into, source, name)[0], tiling.held_out(run, name, home, o.all_models)
            if saved[0]["kind"] == "linear" and len(h) < 2:
                raise InputError("one tile; the highest and the lowest by attention need two")
            with np.errstate(over="ignore"):
                got = mean_prediction(saved, appliers, use, h)
                fc = np.maximum(10.0 ** got[0] - 1, 0)                         # of a diagnosis it has no meaning
            if not np.isfinite([*got, fc]).all():
                raise InputError(off_scale(h))
        except InputError as e:
            failed[name] = str(e)
            continue
        path = run["folder"] / "predict" / f"{name}.csv"
        if saved[0]["kind"] == "diagnosis":
            classes = run["config"]["classes"]
            save_csv(path, ("slide", *(f"p_{c}" for c in classes), "predicted"),
                     [(name, *(f"{v:.6f}" for v in got), classes[int(got[1] > .5)])])
            said = f"{classes[1]} {got[1]:.3f}"
        else:
            said = "p" if saved[0]["kind"] == "linear" else "predicted"        # a probability, or 1 and 0
            save_csv(path, ("gene", "log10_fc_plus_1", "fold_change", f"{said}_abs_log2_fc_above_{LOG2_FC}"), (
                (g, *(f"{v:.6g}" for v in row)) for g, *row in zip(saved[0]["genes"], got[0], fc, got[1])))
            said = f"{len(fc):,} genes"
        print(f"{name}: {len(h):,} tiles, {len(use)} of {len(saved)} models, {said} -> {path}")
        done += 1
    return tiling.report_failures(failed, done + len(failed), run["folder"] / "predict")


def contributions(saved, h, a, j):
    """What each tile adds to output j of one fold's model, (T,) float64: their sum and the bias are the output; nan for
    tiles that are in neither end of the linear model. h (T, D), a (M, T) its attention."""
    if saved["kind"] == "linear":
        out, D = np.full(len(h), np.nan), h.shape[1]
        for part, rows in enumerate(ends_of(a[0])):
            w = saved["weights"][part * D:(part + 1) * D, j].double().numpy()  # (D,) of the highest, then of the lowest
            out[rows] = np.asarray(h[rows], np.float64) @ w / len(rows)
        return out
    if saved["pooling"] not in ("HistCode", "ABMIL", "mean", "max"):
        raise InputError(f"--score contribution: {saved['pooling']} is no sum over tiles")
    m, j = (j, 0) if len(a) > 1 else (0, j)                                    # a network for each gene, or one for all
    model = SlideModel(saved["pooling"], np.zeros(D := saved["n_features"]), np.ones(D), saved["outputs"], saved["embed"],
                       saved["hidden"])
    model.load_state_dict({k: v[m] for k, v in saved["model"].items()})
    with torch.no_grad():
        x = model.layers((torch.from_numpy(np.array(h)).float() - model.mean) * model.scale)        # (T, D)
    w = model.head.classify.weight.detach()
    w = w[1] - w[0] if saved["kind"] == "diagnosis" else w[j]                  # the log odds of the positive class
    if saved["pooling"] == "max":
        value, which = (x * w).double(), x.argmax(0)                           # each feature comes from one tile
        return np.bincount(which.numpy(), value.gather(0, which[None])[0].numpy(), len(h))
    return a[m] * (x.double() @ w.double()).numpy()


def scale_to_one(a):
    """Attention (T,) -> 0 for the lowest tile, 1 for the highest. [HistCode Results: "normalization of attention scores"]"""
    return (a - a.min()) / np.ptp(a) if np.ptp(a) else np.zeros_like(a)


def dice(a, b):
    """2 |A and B| / (|A| + |B|) of two masks."""
    return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


def map_scores(run, appliers, use, h, j, score):
    """Scores (T,) of the chosen models' mean: normalised attention, or contributions to output j; nan where no model has one
    (a tile at neither end adds 0 to a model's output, so that the means and the mean bias are the mean prediction)."""
    each = []
    for m in use:
        saved, a = run["folds"][m], appliers[m](h)[1].double().numpy()                              # (M, T)
        each.append(scale_to_one(a[j if len(a) > 1 else 0]) if score == "attention" else contributions(saved, h, a, j))
        if not np.isfinite(a).all() or np.isinf(each[-1]).any():
            raise InputError(off_scale(h))
    there = ~np.isnan(each)
    return np.where(there.any(0), np.where(there, each, 0).mean(0), np.nan)


def map_slide(run, o, appliers, home, into, source, name, label, j, score):
    """One slide's map, written at once into RUN/heatmaps/LABEL/SLIDE/. -> dict for the line and the summary."""
    h, coords = tiling.load_features(into, source, name)
    if len(h) < 2:
        raise InputError("one tile: no highest and lowest")
    slide, (W, H), mpp, tile = tiling.map_ground(home, into, source, name, coords, o)
    use = tiling.held_out(run, name, home, o.all_models)
    scores = map_scores(run, appliers, use, h, j, score)
    shown = np.flatnonzero(~np.isnan(scores))
    columns, result = {score: scores}, dict(name=name, tiles=len(h), use=len(use))
    truth = home if any((home / d).is_dir() for d in ("points", "regions")) else run["cohort"]
    um, origin = tiling.qupath_frame(slide, mpp)
    cells, outlines = tiling.read_places(truth, name, um, origin)[0], read_outlines(truth, name, origin, o.regions)
    text = [f"# {label} on {name}", "", f"{len(h):,} tiles of {tile * mpp:.0f} µm; {score}"
            + (" between 0 (lowest) and 1 (highest tile)" if score == "attention" else
               f", whose sum and the bias are the prediction; {len(shown):,} tiles have one" if len(shown) < len(h) else
               ", whose sum and the bias are the prediction")
            + f"; mean of {len(use)} of {len(appliers)} models, "
            + ("none of which learned from the slide's patient" if not o.all_models else "also those that learned from its "
               "patient") + f". Run {run['folder']}.", "", "![Map](map.png)", "", "![Highest and lowest tiles](gallery.png)", ""]
    s = scores[shown]
    if outlines:
        inside = stats.inside(coords + tile / 2, outlines)
        columns["inside"], within, cut = inside.astype(float), inside[shown], tiling.otsu_threshold(s)
        result.update(auc=stats.roc_auc(within, s), dice=dice(s > cut, within), all_dice=dice(np.ones_like(within), within))
        text += ["## Outline" + f" of {o.regions}" * bool(o.regions), "", f"{within.sum():,} of {len(within):,} tiles have "
                 f"their centre inside. AUC {result['auc']:.3f}; Dice of the tiles above {cut:.3g} (Otsu of the scores, "
                 f"which knows no outline) {result['dice']:.3f}, of all tiles {result['all_dice']:.3f}.", ""]
    if cells:
        counts = {c: stats.count_points(xy, coords, tile) for c, xy in cells.items()}
        columns.update({f"cells: {c}": n for c, n in counts.items()})
        r, p = stats.shift_p(s, np.stack([n[shown] for n in counts.values()], 1), [coords[shown]], SHIFTS, o.seed)
        result["cells"] = dict(zip(counts, r))
        text += ["## Cells in each tile", "", f"p: a spatial shift of the scores ({SHIFTS} of them) gives an R as high.", "",
                 tiling.table(("cells", "on tiles", "R", "p"), [(c, f"{n.sum():,}", f"{x:.3f}", f"{y:.3f}")
                                                                for (c, n), x, y in zip(counts.items(), r, p)]), ""]
    folder = run["folder"] / "heatmaps" / label / name
    with tiling.whole_folder(folder) as work:
        rgb, _ = tiling.thumbnail(slide, mpp, max(W, H) * mpp / 1500)
        title = f"{label} on {name}"
        tiling.draw_heatmap(work / "map.png", rgb, (W, H), mpp, coords[shown], tile, s, title, score, None, outlines)
        tiling.draw_gallery(work / "gallery.png", slide, coords[shown], tile, s, f"{title}: highest and lowest tiles")
        save_csv(work / "tiles.csv", ("x", "y", *columns), (
            (*xy, *("" if np.isnan(v) else f"{v:.6g}" for v in row)) for xy, row in zip(coords, zip(*columns.values()))))
        measured = np.stack(list(columns.values()), 1)
        tiling.save_json(work / "tiles.geojson", tiling.tiles_geojson(coords - origin, tile, measured, list(columns)))
        save_text(work / "report.md", text)
    return result


def heatmap(o):
    """Where a run's models look: attention laid back on the slide, or what each tile adds to a gene's prediction, against
    the pathologist's outline where there is one."""
    tiling.need_matplotlib()
    run, device, failed = load_run(o.run, o.pooling), tiling.pick_device(o.device), {}
    saved, appliers = run["folds"], [apply_heads(s, device) for s in run["folds"]]
    kind, own = saved[0]["kind"], run["config"].get("per_gene", False)
    if kind == "diagnosis" and o.genes:
        raise InputError(f"--genes {o.genes}: {run['folder']} is a diagnosis; give a run of expression")
    if own and not o.genes:
        raise InputError(f"{run['folder']} has a network for each gene: name some with --genes")
    chosen = tiling.pick_genes(o.genes, saved[0]["genes"]) if o.genes else [None]
    for gene in (saved[0]["genes"][j] for j in chosen if j is not None):
        if Path(gene).name != gene or gene == "..":
            raise InputError(f"--genes: gene {gene!r} can't name a map's folder; rename it in the expression table")
    score = o.score or ("attention" if kind == "diagnosis" or own or not o.genes else "contribution")
    if score == "attention" and o.genes and not own:
        raise InputError(f"--score attention --genes {o.genes}: the attention of this run is one for all genes; leave --genes "
                         "out, or give a run with --per-gene")
    if score == "contribution" and not o.genes and kind != "diagnosis":
        raise InputError("--score contribution: to which gene? name it with --genes")
    if kind == "diagnosis" and score == "contribution":
        contributions(saved[0], np.zeros((2, saved[0]["n_features"]), np.float32), np.ones((1, 2)) / 2, 0)   # or it can't be
    results, seen = {}, 0
    for options, home, into, source, name in tiling.each_slide(run, o, failed):
        try:
            place = tiling.every_tile(run, options, home, into, source, name)
            for j in chosen:
                label = (saved[0]["genes"][j] if j is not None else run["config"]["command"]) + (
                    f"-{score}" if score != ("attention" if j is None or own else "contribution") else "")
                got = map_slide(run, options, appliers, home, place, source, name, label, j or 0, score)
                results.setdefault(label, []).append(got)
                print(f"{name}, {label}: {got['tiles']:,} tiles, {got['use']} of {len(saved)} models"
                      + (f"; outline AUC {got['auc']:.3f}, Dice {got['dice']:.3f} (all tiles {got['all_dice']:.3f})"
                         if "auc" in got else "")
                      + "".join(f"; {c} R {r:.3f}" for c, r in got.get("cells", {}).items() if c != "all cells")
                      + f" -> {run['folder'] / 'heatmaps' / label / name}", flush=True)
            seen += 1
        except (InputError, OSError) as e:
            failed[name] = str(e)
    for label, each in results.items():
        if len(each) > 1:
            summarise_maps(run["folder"] / "heatmaps" / label / "summary.md", label, each)
    return tiling.report_failures(failed, seen + len(failed), run["folder"] / "heatmaps")


def summarise_maps(path, label, each):
    """summary.md of a label's slides, and its line."""
    outlined = [e for e in each if not math.isnan(e.get("auc", math.nan))]
    lines = []
    if outlined:
        auc, d, base = (np.array([e[k] for e in outlined]) for k in ("auc", "dice", "all_dice"))
        lines.append(f"{label}, {len(outlined)} slides with an outline that divides their tiles: AUC mean {auc.mean():.3f}, "
                     f"median {np.median(auc):.3f}, above .5 on {(auc > .5).sum()}; Dice mean {d.mean():.3f}, of all tiles "
                     f"{base.mean():.3f}")
    kinds = dict.fromkeys(c for e in each for c in e.get("cells", {}))
    for c in kinds:
        r = np.array([e["cells"][c] for e in each if not math.isnan(e.get("cells", {}).get(c, math.nan))])
        if len(r):
            lines.append(f"{label} and {c} per tile, {len(r)} slides: R mean {r.mean():.3f}, median {np.median(r):.3f}")
    print("\n".join(lines))
    show = lambda v: "" if v is None or math.isnan(v) else f"{v:.3f}"
    save_text(path, [f"# {label}: {len(each)} slides", "", *(line + "\n" for line in lines), tiling.table(
        ("slide", "tiles", "AUC", "Dice", "Dice of all tiles", *(f"R {c}" for c in kinds)), [
            (e["name"], e["tiles"], *(show(e.get(k)) for k in ("auc", "dice", "all_dice")),
             *(show(e.get("cells", {}).get(c)) for c in kinds)) for e in each]), ""])
    print(f"report: {path}")


# ----- Encoders and poolings against each other ----------------------------------------------------------------------
def ablation(o):
    """Encoders x poolings on the same pairs, folds and genes: expression --model attention for each, and one table. [Fig. 6]
    """
    base, status, cells, seen = o.name or "ablation", 0, {}, {}
    twice = [tiling.encoder_name(e) for e in o.encoders]
    if len(set(twice)) < len(twice):
        raise InputError(f"--encoders {' '.join(o.encoders)}: two have the name {max(twice, key=twice.count)}, and so would "
                         "their features")
    check_ranges(o)
    made = {e: e not in tiling.ENCODERS and Path(e).is_dir() for e in o.encoders}           # a folder of features
    for encoder in (e for e in o.encoders if not made[e]):                     # now, not after hours with the first
        tiling.encoder_wants(argparse.Namespace(**{**vars(o), "encoder": encoder}))
    pairs_of(o.cohort, argparse.Namespace(**{**vars(o), "slides": o.slides or "tumour"}))           # before a folder is made
    folder = Path(o.cohort) / "runs" / base                                    # the rest is in the config.json of each cell
    tiling.claim_folder(folder, dict(command="ablation", version=VERSION, encoders=twice, poolings=list(o.poolings)),
                        "report.md", o.share)
    for encoder in o.encoders:
        for pooling in o.poolings:
            own = argparse.Namespace(**{**vars(o), "encoder": encoder, "pooling": pooling, "model": "attention", "ridge": 0,
                                        "name": f"{base}-{tiling.encoder_name(encoder)}-{pooling}", "gmt": None,
                                        "verb": "expression", "code": [], "follow": None})
            own.weights = o.weights if encoder in tiling.ENCODERS else None
            if made[encoder]:
                own.encoder, own.features = o.encoder, encoder
            print(f"--- {tiling.encoder_name(encoder)}, {pooling} pooling", flush=True)
            status |= expression(own)
            if o.share[0]:
                continue
            header, rows = tiling.read_rows(Path(o.cohort) / "runs" / own.name / "genes.csv")
            r, rho = header.index("R"), header.index("spearman")
            cells[tiling.encoder_name(encoder), pooling] = {
                row[0]: (tiling.number(row[r]), tiling.number(row[rho])) for row in rows}
            saw_them, tested = tiling.encoder_saw(o.cohort, tiling.features_of(own)), set(tiling.load_arrays(
                Path(o.cohort) / "runs" / own.name / "predictions.npz")["patient"].tolist())
            seen[tiling.encoder_name(encoder)] = ("not known" if saw_them is None else
                                                  f"{len(tested & set(saw_them))} of {len(tested)}")
    if o.share[0]:
        return 0
    genes = [g for g in next(iter(cells.values())) if all(not math.isnan(c.get(g, (math.nan,))[0]) for c in cells.values())]
    if not genes:
        raise InputError("no gene has an R in every cell of the table: is there any signal, or are predictions constant?")
    values = {cell: np.array([of[g] for g in genes]) for cell, of in cells.items()}                 # (G, 2) R, Spearman
    rows = [(*cell, len(genes), f"{v[:, 0].mean():.3f} ± {v[:, 0].std():.3f}", f"{np.median(v[:, 0]):.3f}",
             f"{v[:, 1].mean():.3f} ± {v[:, 1].std():.3f}") for cell, v in values.items()]
    header, tests = ("encoder", "pooling", "genes", "mean R ± SD", "median R", "mean Spearman ± SD"), []
    for a, b in itertools.combinations(values, 2):
        if (a[0] == b[0]) != (a[1] == b[1]):                                   # they differ in one thing
            d = values[a] - values[b]
            tests.append((f"{a[0]}, {a[1]}", f"{b[0]}, {b[1]}", *(x for k in (0, 1) for x in (
                f"{d[:, k].mean():+.3f}", f"{stats.wilcoxon_signed_rank(values[a][:, k], values[b][:, k])[1]:.2g}"))))
    save_csv(folder / "table.csv", header, rows)
    save_csv(folder / "genes.csv", ("gene", *(f"{k} {e} {p}" for e, p in values for k in ("R", "spearman"))),
             ((g, *(f"{x:.5g}" for v in values.values() for x in v[i])) for i, g in enumerate(genes)))
    with tiling.figure(folder / "ablation.png", 1, 2, figsize=(4 + 1.3 * len(values), 4), squeeze=False) as axes:
        for k, what in enumerate(("Pearson R", "Spearman")):
            axes[0, k].boxplot([v[:, k] for v in values.values()], tick_labels=[f"{e}\n{p}" for e, p in values])
            axes[0, k].axhline(0, color="0.8", lw=1, zorder=0)
            axes[0, k].set_ylabel(f"{what} of a gene")
            axes[0, k].tick_params(axis="x", labelsize=8)
    paired = ("one", "other", "mean difference of R", "p", "of Spearman", "p ")
    note = ("p: two-sided signed-rank test over genes, paired. Genes vary together, so it says that the two differ on these "
            "patients, not that they would on others.")
    print(tiling.table(header, rows), tiling.table(paired, tests), note, sep="\n\n")
    save_text(folder / "report.md", [f"# Ablation: {base}", "", "The same pairs, folds, genes and seeds in every cell; "
                                     "networks of all genes at once, stopped on validation patients. [HistCode Fig. 6]", "",
                                     "Tested patients whose tiles the encoder learned from, without labels: "
                                     + "; ".join(f"{e} {n}" for e, n in seen.items())
                                     + ". What the other steps saw: reports of the runs.", "",
                                     tiling.table(header, rows), "", "![R and Spearman](ablation.png)", "",
                                     tiling.table(paired, tests), "", note, ""])
    print(f"report: {folder / 'report.md'}")
    return status


# ----- Choices and what they are worth -------------------------------------------------------------------------------
def choices(o):
    """Where paper and authors' code differ or are silent, and what is done here."""
    tiling.show_choices(CHOICES, "histcode.py")
    return 0


def beside(cohort, folder):
    """A cohort of links to what `cohort` holds but runs and what is made of its slides; tiles of the same settings."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in cohort.iterdir():
        link = folder / path.name
        if path.name not in ("runs", "tiles", "features", "supertiles") and not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(path.resolve(), folder.resolve()))  # a cohort may be moved
    if not (folder / "tiles" / "settings.json").is_file():
        tiling.save_json(folder / "tiles" / "settings.json", tiling.load_json(cohort / "tiles" / "settings.json"))
    return folder


def measured(run, own, cohort, options):
    """{measure: value} of a finished run in the folder `own`, and the exit status; of a pretraining by a probe."""
    if run.verb == "pretrain":
        status = probe(run.parse(["probe", str(cohort), str(own / f"{run.name}.pt"), "--device", run.device, "--workers",
                                  str(run.workers), "--seed", str(run.seed), "--csv", str(own / "probe.csv"), *options]))
        spreads = [e["spread"] for e in tiling.read_log(own) if "spread" in e]
        if not spreads:
            raise InputError(f"{own}/log.jsonl has no epoch: delete {own} to train it again")
        r2 = tiling.number(tiling.read_rows(own / "probe.csv")[1][0][3])
        return {"R2 of the cells": r2, "spread": spreads[-1]}, status
    if run.verb == "diagnose":
        header, rows = tiling.read_rows(own / "predictions.csv")
        rows = [dict(zip(header, row)) for row in rows]
        rows = [r for r in rows if (r["repeat"], r["pooling"]) == ("0", run.pooling)]
        positive = header[-2].removeprefix("p_")
        y, p = np.array([r["label"] == positive for r in rows]), np.array([float(r[header[-2]]) for r in rows])
        return {"accuracy": float(np.mean([r["label"] == r["predicted"] for r in rows])), "AUC": stats.roc_auc(y, p)}, 0
    header, rows = tiling.read_rows(own / "genes.csv")
    r, bh = (np.array([tiling.number(row[header.index(k)]) for row in rows]) for k in ("R", "bh"))
    return {"R": float(np.nanmean(r)), "BH": int((bh < ALPHA).sum())}, 0


def words_of(command, text):
    """The options in quotes of a command of audit."""
    try:
        return shlex.split(text)
    except ValueError as e:
        raise InputError(f"--{command} {text}: {str(e).lower()}") from None


def audit(o):
    """The default once per seed, then each choice of pretrain, diagnose and expression alone, same seeds
    -> COHORT/runs/histcode-audit/audit.md. Without a cohort: on a simulated one, with small budgets.

    That one is demo-pairs/: of demo/'s patients only 16 have a tumour and a normal slide, and its tiles may be HE2RNA's.
    In demo-pairs/ each of the patients has both slides. [ours]
    """
    start, demo, cohort = time.time(), o.cohort is None, Path(o.cohort or "demo-pairs")
    if o.seeds < 1:
        raise InputError(f"--seeds {o.seeds}: must be at least 1")
    if demo and not (cohort / "samples.csv").is_file():
        print(f"no cohort given: drawing a SIMULATED one into {cohort}/")
        tiling.simulate_cohort(cohort, AUDIT_PATIENTS, normal_in=1)
    samples, folder = tiling.read_samples(cohort), cohort / "runs" / "histcode-audit"
    more = {c: words_of(c, getattr(o, c) if getattr(o, c) is not None else AUDIT[c] if demo else "") for c in AUDIT}
    texts, seeds = {c: switches(CHOICES, c) for c in AUDIT if c != "probe"}, range(o.seed, o.seed + o.seeds)
    asked = {c: [name for name in texts[c] if name in (o.code or texts[c])] for c in texts}
    left = [(c, name, f"{UNSEEN[c][name]} here") for c in UNSEEN if demo and getattr(o, c) is None for name in UNSEEN[c]]
    if not any((cohort / d).is_dir() for d in ("points", "spots")):
        why = f"{cohort} has neither points/ nor spots/ to probe features with"
        left += [("pretrain", name, why) for name in texts["pretrain"]]
    left = [(c, name, why) for c, name, why in left if name in asked[c]]
    for c, name, why in left:
        asked[c] = [n for n in asked[c] if n != name]
        print(f"without {c}'s {name}: {why}")
    if not any(asked.values()):
        raise InputError(f"--code {','.join(o.code)}: nothing is left to turn: {left[0][2]}")

    def settled(c, home, name, seed):
        run = o.parse([c, str(home), "--device", o.device, *more[c], "--seed", str(seed), "--name", f"{c}-{name}-seed{seed}",
                       *["--code", name] * (name != "default")])
        for k in TURNED[c].get(name, ()):                                 # what a switch decides is not the default's
            setattr(run, k, None)
        run.within = folder.name
        return run

    def job(c, name, seed):
        home = beside(cohort, folder / "tissue") if name == "tissue" else cohort
        run, tick = settled(c, home, name, seed), time.time()
        own = home / "runs" / run.within / run.name
        done = tiling.load_json(own / "audit.json") or {}                      # its last file
        if list(map(type, map(done.get, ("measures", "seconds", "status")))) != [dict, float, int]:
            status = run.function(run)
            measures, more_status = measured(run, own, cohort, more["probe"])
            done = dict(measures=measures, seconds=time.time() - tick, status=status | more_status)
            tiling.save_json(own / "audit.json", done)
        return done["measures"], done["seconds"], done["status"]

    settings = dict(**{c: " ".join(v) for c, v in more.items()}, data=tiling.digest(samples, [
        [p.name, tiling.fingerprint(p)] for p in sorted(cohort.glob("expression*")) if p.is_file()]))
    what = (
        f"`python histcode.py audit`{'' if demo else ' COHORT'}. {tiling.AUDIT_NOTE} pretrain: R2 of the cells in a tile from "
        "the frozen features (`probe`, the same tiles for all), and spread of the embeddings in the last epoch. diagnose: "
        "accuracy and AUC pooled over the tested slides. "
        "expression: R, mean over genes; BH: significant genes. Colour and tissue are turned for pretrain alone: what they "
        "do to diagnose and expression is not measured."
        + "".join(f" {c}: `{' '.join(v)}`." for c, v in more.items() if v))
    status, why = 0, {}
    todo = [(c, name) for c in texts if asked[c] for name in ("default", *asked[c])]
    for i, (c, name) in enumerate(todo, 1):
        if f"{c}'s default" in why:                                            # its choices can't be compared with it
            continue
        jobs = {(c, name, seed): lambda c=c, name=name, seed=seed: job(c, name, seed) for seed in seeds}
        try:
            status |= tiling.run_audit(folder, jobs, texts, settings, what, (len(todo) - i) * len(seeds))
        except InputError as e:
            why[f"{c}'s {name}"] = str(e)
            print(f"without {c}'s {name}: {e}")
    if not (folder / "audit.md").is_file():
        raise InputError("nothing could be measured: " + "; ".join(f"{name}: {text}" for name, text in why.items()))
    print(f"\nreport: {folder / 'audit.md'}   ({clock(time.time() - start)})")
    return status or int(bool(why))


def read_sets(paths):                                                           # same in he2rna.py
    """{set: genes} of .gmt files. InputError on what can't be read."""
    try:
        return stats.read_gmt(*paths)
    except (ValueError, OSError) as e:
        raise InputError(f"--gmt: {e}") from None


def read_outlines(folder, slide, origin, kind=None):                            # same in he2rna.py
    """Polygons of regions/<slide>.geojson, of one class or all, as stats.inside takes them; None where there are none."""
    path, shapes = tiling.read_regions(folder, slide, kind)
    try:
        return None if shapes is None else [[ring + origin for ring in rings] for rings in stats.read_rings(shapes)]
    except ValueError as e:
        raise InputError(f"{path}: {e}") from None


def main(argv=None):
    (parser, verbs), flag = tiling.parsers("histcode.py", __doc__), argparse.BooleanOptionalAction

    def verb(function, what, **options):
        p = verbs.add_parser(function.__name__, help=what, description=function.__doc__)
        p.set_defaults(function=function, within="", parse=parser.parse_args)
        p.add_argument("cohort", help="a cohort folder: slides/ and samples.csv", **options)
        return p, p.add_argument

    p, a = verb(pretrain, "learn tile features without labels")
    a, bank = (p.add_argument_group(name).add_argument for name in ("training", "the bank of negatives (adco)"))
    tiling.add_options(p, encoder=None)
    a("--method", choices=("adco", "simclr"), default="adco", help="negatives: adco, an adversarial bank (default, the "
      "paper's); simclr, the other tiles of the batch, which the paper compared")
    tiling.add_choices(a, CHOICES, "pretrain")
    a("--name", help="COHORT/runs/NAME (default: the method); an interrupted run goes on")
    a("--weights", default="imagenet", metavar="W|FILE", help="the encoder's start: imagenet (default, the paper's), a "
      "torchvision state_dict file, or random (seeded)")
    a("--epochs", type=int, help=f"default {EPOCHS}, the authors'")
    a("--batch", type=int, help=f"tiles per step, over all processes (default {BATCH}, AdCo's)")
    a("--tiles-per-slide", type=int, help=f"drawn anew each epoch (default {TILES_PER_SLIDE}; the paper takes all): bounds "
      "reading, and neighbouring tiles are alike")
    a("--tile-px", type=int, default=TILE_PX, help=f"edge of a tile as it is read, px (default {TILE_PX}, the paper's); "
      f"at most {POOL_BYTES / 2**30:g} GiB of tiles, 3 bytes a pixel, are held to be shuffled over slides")
    a("--view-px", type=int, default=VIEW_PX, help=f"edge of a view, px (default {VIEW_PX}); 64 with --tile-px 72 runs on a "
      "CPU in minutes")
    a("--lr", type=float, help=f"of SGD (default {LEARNING_RATE}, the paper's); lower if the loss jumps or embeddings "
      "collapse")
    a("--cosine", action=flag, help="lr falls along a half cosine to --final-lr [HistCode code] (default no)")
    a("--final-lr", type=float, help="with --cosine (default 0)")
    a("--tau", type=float, help=f"temperature of the loss (default {TAU['adco']}, the authors'; simclr {TAU['simclr']}); a "
      "lower one sees the hardest negatives only")
    a("--precision", choices=("auto", "bfloat16", "float32"), default="auto", help="of the encoder; auto (default): "
      "bfloat16 where the hardware has it")
    a("--show-views", action="store_true", help="draw runs/NAME/views.png, tiles and their two views, and stop")
    bank("--bank-percent", type=float, help="of each slide's tiles, whose embeddings start the bank (default "
         f"{BANK_PERCENT:g}, the authors'; the paper: a percentage); 0: random unit vectors")
    bank("--bank-size", type=int, help=f"negatives of a random bank, and at most (default {BANK_SIZE:,}, AdCo's)")
    bank("--bank-lr", type=float, help=f"lambda of eq. 4 (default {BANK_RATE}, HistCode's code; AdCo's 3); fewer negatives "
         "have larger gradients, and a bank that catches up with the queries makes them collapse")
    bank("--bank-momentum", type=float, help=f"of its step (default {MOMENTUM}, the authors'; eq. 4 as printed: 0)")
    bank("--bank-decay", type=float, help=f"its weight decay (default {WEIGHT_DECAY:g}, the authors'; eq. 4 as printed: 0): "
         "rules the negatives' length, hence how fast they turn")
    bank("--bank-tau", type=float, help="its own temperature (default: --tau, as both play for one loss); a low one, as the "
         "authors', moves the nearest negatives only")
    bank("--in-batch", action=flag, help="the other tiles' keys are negatives too [AdCo code] (default no: eq. 1)")
    bank("--symmetric", action=flag, help="mean of the losses of both views as query (default no, as AdCo's code)")
    bank("--momentum-encoder", type=float, metavar="M", help="keys from a slow copy of the encoder (default "
         f"{MOMENTUM_ENCODER}, the authors' code; .99 for some hundred steps); 0: one encoder for both views, which "
         "collapsed in nearly every trial from random weights")

    p, a = verb(probe, "how well frozen features tell the cells in a tile")
    a("files", nargs="+", metavar="ENCODER", help="encoder files of pretrain, runs/NAME/NAME.pt, or the word random")
    a("--tiles-per-slide", type=int, default=TILES_PER_SLIDE, help="random tiles of each slide, at most (default "
      f"{TILES_PER_SLIDE})")
    a("--tile-px", type=int, help="edge of a tile as the encoders see it, px (default: as they were trained)")
    a("--hold-out", choices=("patient", "slide"), default="patient", help="what is never divided between fit and test: "
      "patients (default); slides, where patients are few: asks whether features hold the cells, not whether they carry "
      "over to other patients' stains")
    a("--csv", metavar="FILE", help="write the table there too")
    tiling.add_options(p, encoder=None)

    def training(p, usual, bags=None):
        """Options of networks on frozen features."""
        also = lambda k: f"; with --bags {bags[k]:g}" if bags else ""
        a = p.add_argument_group("training").add_argument
        a("--folds", type=int, help="parts of the patients: one tests, the next chooses the epoch, the others train "
          f"(default {usual['folds']}: 80/10/10, the paper's)")
        a("--repeats", type=int, help="cross-validations, with other folds and draws (default "
          f"{usual['repeats']}{also('repeats')})") if bags else p.set_defaults(repeats=None)
        a("--epochs", type=int, help=f"default {usual['epochs']}, the authors'; kept is the last with the fewest mistakes "
          "on the validation part" + ", of regressions that of the lowest loss there" * (not bags))
        a("--batch", type=int, default=1, help="bags a step (default 1, the authors')")
        a("--lr", type=float, help=f"of Adam (default {usual['lr']:g}, the authors'{also('lr')})")
        a("--weight-decay", type=float, help=f"default {usual['weight_decay']:g}, the authors'{also('weight_decay')}")
        a("--hidden", type=int, help=f"rows of V and U in eq. 6 (default {usual['hidden']}, the authors'{also('hidden')})")
        a("--embed", type=layers, metavar="N,..", help="layers with ReLU before the pooling; 0: none (default none, as eqs. "
          "5-6; the authors' code 512" + (f"; with --bags {','.join(map(str, bags['embed']))}" if bags else
                                          "; the linear model averages the features before them") + ")")

    p, a = verb(diagnose, "tell tumour from normal slides, or any two labels, by the features of their tiles", nargs="?")
    a("--bags", metavar="FILE", help="instead of a cohort: a table whose rows are label, bag and an instance's features; "
      "results go to ./<its name>-diagnosis")
    a("--label", metavar="COLUMN", help="of samples.csv, two labels (default: tumour or normal, by the column tumor, else "
      "sample_type, else the TCGA barcode)")
    a("--positive", metavar="LABEL", help="with --label or --bags: the positive class (default: the higher of two numbers, "
      "the later of two words)")
    a("--pooling", choices=tuple(POOLINGS), default="HistCode", help="HistCode: gated attention (default, the paper's)")
    a("--table", action="store_true", help="all six poolings on the same folds: the paper's Table 1")
    a("--rotate", action=flag, help="test every part (default with --bags); the paper's five tests of 10 %% cover half of "
      "the patients")
    a("--external", metavar="COHORT", help="test the models on this cohort too, of other patients (with --features: files "
      "in the same folder)")
    a("--name", help="of the run (default diagnosis); an interrupted run goes on")
    tiling.add_choices(a, CHOICES, "diagnose")
    training(p, DIAGNOSIS, BAGS)
    tiling.add_options(p, encoder="resnet50-stage3")

    def pairs(p, a, encoder):
        """Options of the two commands on fold changes."""
        a("--genes", default="all", metavar="A,B|FILE", help="genes of the expression table (default all)")
        a("--drivers", metavar="FILE", help="a compendium of driver genes (columns symbol and mutations, such as IntOGen's): "
          "its --top most mutated ones")
        a("--top", type=int, default=DRIVERS, help=f"driver genes taken (default {DRIVERS}, the paper's)")
        a("--slides", choices=("tumour", "both"), help="whose tiles stand for a patient: tumour, of tumour slides (default: "
          "\"from single whole slide image\"); both, of normal slides too")
        a("--per-gene", action="store_true", default=None, help="a network for each gene, as the authors' code and Fig. 11, "
          "not one for all")
        a("--name", help="of the run (default: command and model); an interrupted run goes on")
        training(p, DIAGNOSIS)
        tiling.add_options(p, encoder=encoder)

    p, a = verb(expression, "predict the fold change of each gene between tumour and normal tissue")
    a("--model", choices=("linear", "attention"), help="linear: one layer over the mean of the tiles of highest and of "
      "lowest attention of a tumour classifier (default, the paper's eq. 8); attention: all tiles pooled by attention that "
      "learns from the genes (Fig. 6)")
    a("--pooling", choices=tuple(POOLED), default="attention", help="with --model attention (default attention)")
    a("--ridge", type=penalty_of, default=0.0, metavar="X|auto", help="with --model linear: penalty of the squared weights "
      "of standardised features (default 0: least squares, the paper's); auto: by leave-one-out over the training pairs, "
      "for many features and few patients")
    tiling.add_choices(a, CHOICES, "expression")
    a("--gmt", nargs="+", metavar="FILE", help=f"gene sets to look for the {BEST_GENES} best genes in (Fig. 9)")
    pairs(p, a, "resnet50-stage3")

    p, a = verb(ablation, "encoders x poolings against each other on fold changes (Fig. 6)")
    a("--encoders", nargs="+", required=True, metavar="ENCODER", help="files of pretrain, resnet50-stage3 with --weights, "
      "TorchScript files: as tiling.py's --encoder; folders: as --features of the other commands")
    a("--poolings", nargs="+", choices=tuple(POOLED), default=("attention", "mean"), help="default: attention mean, the paper's")
    a("--weights", metavar="W|FILE", help="of resnet50-stage3 and the like: imagenet (default), a torchvision state_dict "
      "file, or random")
    pairs(p, a, None)

    what = "where paper and authors' code differ or are silent, and what is done here"
    p = verbs.add_parser("choices", help=what, description=what)
    p.set_defaults(function=choices)

    p, a = verb(audit, "each choice turned alone: what it changes", nargs="?")
    every = tuple(dict.fromkeys(name for command in TURNED for name in switches(CHOICES, command)))
    a("--code", type=chosen_of(every), action="extend", default=[], metavar="A,B", help="these choices alone (default all: "
      f"{', '.join(every)})")
    a("--seeds", type=int, default=AUDIT_SEEDS, help=f"runs of each, --seed and those after it (default {AUDIT_SEEDS})")
    a("--seed", type=tiling.natural, default=0, help="the first of them (default 0)")
    a("--device", default="auto", help="auto (default: the GPU when there is one), cpu, cuda, cuda:1 ...")
    for command, options in AUDIT.items():
        a(f"--{command}", metavar="'OPTIONS'", help=f"of each {command}, in quotes after a = (default none; without a "
          f"cohort {options})")

    def of_run(function, what):
        p = verbs.add_parser(function.__name__, help=what, description=function.__doc__)
        p.set_defaults(function=function)
        p.add_argument("run", help="folder of a finished run of diagnose or expression, COHORT/runs/NAME")
        p.add_argument("slide", nargs="+", help="slide files, names of the run's slides, or all")
        p.add_argument("--pooling", choices=tuple(POOLINGS), help="of a run of diagnose --table (default HistCode)")
        p.add_argument("--all-models", action="store_true", help="also the models that learned from the slide's patient")
        tiling.add_options(p, of_run=True)
        return p.add_argument

    of_run(predict, "diagnose new slides, or predict their fold changes")
    a = of_run(heatmap, "where the models look, on the slide")
    a("--genes", help="with a run of expression: a map for each of A,B,C (Fig. 11: CD3D,CD247,CD19,PTEN)")
    a("--regions", metavar="CLASS", help="class of the outlines in regions/ to compare with (default: all)")
    a("--score", choices=("attention", "contribution"), help="attention (default without --genes, and of networks for one "
      "gene each): how much a tile counts; contribution (default with --genes): what it adds to the prediction, of a "
      "diagnosis to the log odds of the positive class")

    o = parser.parse_args(argv)
    o.seed = getattr(o, "seed", 0) or 0
    try:
        with tiling.one_voice(o, SHARED):
            return o.function(o)
    finally:
        tiling.release()


if __name__ == "__main__":
    tiling.run(main)
