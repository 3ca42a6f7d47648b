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

import copy
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import stats
import tiling

CROP_AREA = (0.2, 1.0)  # share of the tile's area in a view       [AdCo code]


CROP_RATIO = (3 / 4, 4 / 3)  # width : height of a crop                 [AdCo code]


CROP_DRAWS = 10  # until one lies in the tile, else all of it  [AdCo code]


JITTER = (
    0.4,
    0.4,
    0.4,
    0.1,
)  # brightness, contrast, saturation: 1 ± it; hue: ± it, in turns  [AdCo code]


JITTER_CHANCE = 0.8  #                                          [AdCo code]


GRAY_CHANCE = 0.2  #                                          [AdCo code]


BLUR_CHANCE = 0.5  #                                          [AdCo code]


BLUR_SIGMA = (
    0.1,
    2.0,
)  # px of a view of 224; smaller views less, the same tissue [AdCo code; scaling ours]


TURN_CHANCE = 0.5  # of each of two mirrors and a transposition: tissue has no up; the authors mirror once [ours]


GREY = (0.299, 0.587, 0.114)  # luminance of R, G, B                 [AdCo code]


EMBEDDING = 128  # d                                        [HistCode code]


BANK_BLOCK = 2048  # negatives whose similarities are held at a time [ours]


ATTENTION = 256  # rows of V and U  [HistCode code]
QUERIES = 128  # numbers of DSMIL's queries  [DSMIL code]
STATE = 128  # numbers of MIL-RNN's state  [Campanella et al. 2019]
TOP_TILES = 10  # that it takes  [Campanella et al. 2019]
PARTS = 10  # of the patients: 80/10/10  [HistCode Results, Tumor diagnosis]
HEAD_EPOCHS = 50  # of a network on frozen features, a slide a step  [HistCode code]
HEAD_RATE, HEAD_DECAY = 1e-4, 1e-5  # of its Adam  [HistCode code]
LOG2_FC = 1.5  # |log2 fc| above it is label 1  [HistCode Methods, Differential expression analysis]
ENDS = 100  # l highest and l lowest tiles  [HistCode Methods, Differential expression prediction]
RANK = 1e-5  # singular values up to this share of the largest count as 0  [ours]
LABEL_EPOCHS = 100  # of the layer that learns labels  [ours]
LABEL_RATE = 2e-5  # of its Adam: thousands of weights step at once  [ours]


# Two views of a tile: batched torch operations on the device  [AdCo code: the augmentations of MoCo v2]
def draw_view(n, generator):
    """What a random view of each of n tiles will be, a dict of tensors with n rows, drawn from a CPU torch.Generator.

    box (n, 4) left, top, width, height as shares of the tile; turns (n, 3) mirror x, mirror y, transpose: the 8 symmetries
    of the square; colour (n, 4) brightness, contrast, saturation, hue; gray (n,) bool; sigma (n,) of the blur at 224 px.
    """
    uniform = lambda low, high, *shape: (
        low + (high - low) * torch.rand(n, *shape, generator=generator)
    )
    coin = lambda chance, *shape: torch.rand(n, *shape, generator=generator) < chance
    area, ratio = uniform(*CROP_AREA, CROP_DRAWS), uniform(*np.log(CROP_RATIO), CROP_DRAWS).exp()
    edges = torch.stack(
        [(area * ratio).sqrt(), (area / ratio).sqrt()], 2
    )  # (n, draws, 2) width, height
    fits = (edges <= 1).all(2)  # (n, draws)
    edges = torch.where(
        fits.any(1)[:, None], edges[torch.arange(n), fits.float().argmax(1)], 1
    )  # (n, 2) the first
    corner = uniform(0, 1, 2) * (1 - edges)
    still, reach = torch.tensor([1, 1, 1, 0.0]), torch.tensor(JITTER)
    colour = torch.where(coin(JITTER_CHANCE, 1), still + uniform(-1, 1, 4) * reach, still)
    return dict(
        box=torch.cat([corner, edges], 1),
        turns=coin(TURN_CHANCE, 3),
        colour=colour,
        gray=coin(GRAY_CHANCE),
        sigma=torch.where(coin(BLUR_CHANCE), uniform(*BLUR_SIGMA), 0),
    )


def plain_view(n):
    """The view that is the whole tile as it is; same dict as draw_view."""
    rows, no = lambda *row: torch.tensor(row).repeat(n, 1), torch.zeros(n, dtype=torch.bool)
    return dict(
        box=rows(0.0, 0.0, 1.0, 1.0),
        turns=rows(False, False, False),
        colour=rows(1.0, 1.0, 1.0, 0.0),
        gray=no,
        sigma=torch.zeros(n),
    )


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
    columns = resize_weights(left, width, x.shape[3], px, mirror_x)[:, None]  # (n, 1, px, w)
    rows = resize_weights(top, height, x.shape[2], px, mirror_y)[:, None]  # (n, 1, px, h)
    x = rows @ x @ columns.mT  # (n, 3, px, px)
    x = torch.where(transpose[:, None, None, None], x.mT, x)
    x = jitter(x, *view["colour"].T[:, :, None, None, None])
    x = torch.where(view["gray"][:, None, None, None], luminance(x), x)
    weights = blur_weights(view["sigma"] * px / 224, px)[:, None]  # (n, 1, px, px)
    return (weights @ x @ weights.mT).clamp(0, 1)


def resize_weights(start, length, size, px, mirror):
    """(n, px, size): row i says how much of each of `size` pixels goes into pixel i of the resized crop (triangle filter).

    start, length (n,) of the crop as shares of the edge; mirror (n,) bool.
    """
    scale = (length * size / px)[:, None, None]  # source pixels per pixel
    i, j = (
        torch.arange(px, device=start.device)[:, None] + 0.5,
        torch.arange(size, device=start.device) + 0.5,
    )
    weights = (
        1 - (j - (start * size)[:, None, None] - i * scale).abs() / scale.clamp(min=1)
    ).clamp(min=0)
    weights = weights / weights.sum(2, keepdim=True)
    return torch.where(mirror[:, None, None], weights.flip(1), weights)


def blur_weights(sigma, px):
    """(n, px, px) Gaussian blur along one axis, sigma (n,) in pixels, 0: none; at the rim of what there is."""
    i = torch.arange(px, device=sigma.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((i[:, None] - i) / sigma.clamp(min=0.01)[:, None, None]) ** 2)
    return weights / weights.sum(2, keepdim=True)


def luminance(x):
    """(n, 3, h, w) -> (n, 1, h, w)"""
    return sum(share * x[:, c : c + 1] for c, share in enumerate(GREY))


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
    c = chroma.clamp(min=1e-12)  # grey has no hue: any will do
    hue = (
        torch.where(top == r, (g - b) / c, torch.where(top == g, (b - r) / c + 2, (r - g) / c + 4))
        + 6 * shift
    )
    sixth = torch.stack([(n + hue) % 6 for n in (5, 3, 1)], 1)  # (n, 3, h, w)
    return top[:, None] - chroma[:, None] * torch.minimum(sixth, 4 - sixth).clamp(0, 1)


def standardise(x):
    """0..1 -> as ImageNet weights want it. (n, 3, h, w)"""
    mean, std = (
        torch.tensor(v, device=x.device).view(1, 3, 1, 1)
        for v in (tiling.IMAGENET_MEAN, tiling.IMAGENET_STD)
    )
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


# Encoder  [HistCode Methods: "ResNet50 ... only the first four main layers (... 1024)"; "Two fully-connected layers"]
class Embedder(nn.Module):
    """Views (B, 3, px, px) -> unit embeddings (B, d): ResNet50 up to its third stage, then 1,024-1,024-128 [HistCode code].

    Only `encoder` is kept for what follows; `projection` serves the loss.
    """

    def __init__(self, encoder, d=EMBEDDING):
        super().__init__()
        n = encoder.n_features
        self.encoder, self.projection = (
            encoder,
            nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, d)),
        )

    def forward(self, x, precision="float32"):
        with torch.autocast(
            x.device.type, getattr(torch, precision), enabled=precision != "float32"
        ):
            h = self.encoder(x)  # (B, D), summed in float32
        return F.normalize(self.projection(h.float()), dim=1)


# Loss and bank  [HistCode eqs. 1-4]
def info_nce(q, k, bank, tau, in_batch=False):
    """Contrastive loss, mean over the batch. [HistCode eq. 1]

    q, k (B, d) unit embeddings of two views of each tile; bank (K, d) raw negatives w, normalised here: negatives live on
    the sphere. in_batch: the keys of the other tiles are negatives too [AdCo code].
    """
    own = q @ k.T if in_batch else (q * k).sum(1, keepdim=True)  # (B, B) or (B, 1)
    logits = torch.cat([own, q @ F.normalize(bank, dim=1).T], 1) / tau  # (B, 1 + K)
    right = (
        torch.arange(len(q), device=q.device)
        if in_batch
        else torch.zeros(len(q), dtype=torch.long, device=q.device)
    )
    return F.cross_entropy(logits, right)  # its log-sum-exp can't overflow


@torch.no_grad()
def bank_gradient(q, k, bank, tau, in_batch=False):
    """dL/dw of info_nce with the same arguments, (K, d), in closed form. [HistCode eq. 4]

    With u = w/|w| and p_ik the softmax share of negative k for query i:
        dL/dw_k = (1 / (B tau |w_k|)) (sum_i p_ik q_i - u_k sum_i p_ik q_i.u_k)
    The second term projects onto the sphere, so it is orthogonal to w_k. In blocks of negatives, whose similarities are
    computed twice rather than kept: first each query's denominator, then the shares. [ours]
    """
    own = q @ k.T if in_batch else (q * k).sum(1, keepdim=True)
    total = torch.logsumexp(own / tau, 1)  # (B,) log of the denominator so far
    norm, gradient = bank.norm(dim=1, keepdim=True), torch.empty_like(bank)  # (K, 1), (K, d)
    for w, n in zip(bank.split(BANK_BLOCK), norm.split(BANK_BLOCK)):
        total = torch.logaddexp(total, torch.logsumexp((w @ q.T).div_(n * tau), 0))
    for w, n, g in zip(bank.split(BANK_BLOCK), norm.split(BANK_BLOCK), gradient.split(BANK_BLOCK)):
        similarity = (w @ q.T).div_(n)  # (block, B)
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
    z = torch.cat([z1, z2])  # (2B, d)
    logits = (z @ z.T / tau).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z1)))


def spread(z):
    """How far unit embeddings (B, d) lie apart: sqrt(1 - |mean|^2), which is the root of d times the mean variance of a
    dimension, over sqrt(d). 1: all over the sphere; 0: all equal, a collapse."""
    return float((1 - z.mean(0).square().sum()).clamp(min=0).sqrt())


# Tiles of an epoch: read slide by slide, used shuffled over slides
def choose_tiles(counts, per_slide, seed, epoch):
    """(N, 2) slide and tile, in the order of reading: slides shuffled, of slide s per_slide[s] random tiles of counts[s]."""
    rng = np.random.default_rng([seed, epoch])
    return np.concatenate(
        [
            np.stack(
                [
                    np.full(m := min(per_slide[s], counts[s]), s),
                    np.sort(rng.permutation(counts[s])[:m]),
                ],
                1,
            )
            for s in rng.permutation(len(counts))
        ]
    )


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


def two_views(tiles, px, batch, rank, world, *key):
    """The two views of this process's tiles (b, h, w, 3) uint8, each (b, 3, px, px) standardised; drawn for the whole batch
    from `key` (seed, epoch, step), so that neither processes nor interruptions change them."""
    x, own = tiles.permute(0, 3, 1, 2), slice(rank * batch // world, (rank + 1) * batch // world)
    for side in range(2):
        generator = torch.Generator().manual_seed(
            int(np.random.default_rng([*key, side]).integers(2**62))
        )
        view = {k: v[own] for k, v in draw_view(batch, generator).items()}
        yield standardise(make_view(x, view, px))


def learning_rate(o, epoch):
    """Of an epoch from 0: constant [HistCode Methods], or a half cosine down to --final-lr [HistCode code]."""
    return (
        o.final_lr + 0.5 * (1 + math.cos(math.pi * epoch / o.epochs)) * (o.lr - o.final_lr)
        if o.cosine
        else o.lr
    )


# ---- Feature aggregation: the tiles of a slide to one vector  [HistCode eqs. 5-6, Table 1] -------
# Every pooling takes h (B, T, D) and mask (B, T), True for real tiles, of which each slide has one
# or more. Beside its result it gives a (B, T), the part of each tile in it. Padding has no part,
# whatever it holds.


class GatedAttention(nn.Module):
    """z = sum_i a_i h_i, with a = softmax_i(w . (tanh(V h_i) * sigm(U h_i))). [HistCode eqs. 5-6]

    forward(h (B, T, D), mask (B, T)) -> z (B, D), a (B, T). V and U have `hidden` rows (ATTENTION).
    gated=False gives w . tanh(V h_i), the first form of ABMIL. [Ilse et al. 2018, eq. 8]
    No biases, as eq. 6 is printed; the released code of both papers has them. [ours]
    """

    def __init__(self, n_features, hidden=ATTENTION, gated=True):
        super().__init__()
        self.v = nn.Linear(n_features, hidden, bias=False)
        self.w = nn.Linear(hidden, 1, bias=False)
        self.u = nn.Linear(n_features, hidden, bias=False) if gated else None

    def forward(self, h, mask):
        h = h.masked_fill(~mask[:, :, None], 0)  # 0 times nan would be nan
        hidden = torch.tanh(self.v(h))  # (B, T, hidden)
        if self.u is not None:
            hidden = hidden * torch.sigmoid(self.u(h))
        scores = self.w(hidden)[:, :, 0]
        a = scores.masked_fill(~mask, -torch.inf).softmax(1)  # (B, T)
        return (a[:, None] @ h)[:, 0], a


def mean_pooling(h, mask):
    """z (B, D): the mean of the real tiles; a: one over their number."""
    a = mask / mask.sum(1, keepdim=True)
    h = h.masked_fill(~mask[:, :, None], 0)
    return (a[:, :, None] * h).sum(1), a


def max_pooling(h, mask):
    """z (B, D): the highest value of each feature; a: the share of the features a tile gives."""
    z, which = h.masked_fill(~mask[:, :, None], -torch.inf).max(1)  # (B, D), (B, D)
    share = torch.full_like(z, 1 / z.shape[1])
    return z, torch.zeros_like(h[:, :, 0]).scatter_add(1, which, share)


class PooledClassifier(nn.Module):
    """One vector for the slide and one fully connected layer. [HistCode eq. 7, its softmax apart]

    This and the two below: forward(h, mask) -> outputs (B, streams, C), a (B, T). Each stream
    learns the label, and the last one answers.
    """

    def __init__(self, pooling, n_features, outputs=2):
        super().__init__()
        self.pooling = pooling
        self.classify = nn.Linear(n_features, outputs)

    def forward(self, h, mask):
        z, a = self.pooling(h, mask)
        return self.classify(z)[:, None], a


class DSMIL(nn.Module):
    """Two streams: the best tile of each class, and attention to it. [Li et al. 2021, eqs. 2-6]

    First stream: the highest score of each class over the tiles; the tile that has it is critical.
    Second: for each class, the softmax over the tiles of <q_i, q_critical> / sqrt(queries) weighs
    the features; one layer over the vectors of all classes answers. a: of the last class.
    Each stream has its own loss and the second answers, as in their code; the paper averages their
    scores. One layer makes the queries and the values stay as they are; their code is deeper. [ours]
    """

    def __init__(self, n_features, outputs=2, queries=QUERIES):
        super().__init__()
        self.score = nn.Linear(n_features, outputs)
        self.query = nn.Linear(n_features, queries)
        self.classify = nn.Linear(outputs * n_features, outputs)

    def forward(self, h, mask):
        h = h.masked_fill(~mask[:, :, None], 0)
        scores = self.score(h).masked_fill(~mask[:, :, None], -torch.inf)  # (B, T, C)
        highest, critical = scores.max(1)  # (B, C), (B, C)
        q = self.query(h)  # (B, T, queries)
        likeness = tiles_at(q, critical) @ q.mT / q.shape[2] ** 0.5  # (B, C, T)
        a = likeness.masked_fill(~mask[:, None], -torch.inf).softmax(2)
        answer = self.classify((a @ h).flatten(1))  # (B, C)
        return torch.stack([highest, answer], 1), a[:, -1]


class MILRNN(nn.Module):
    """The most suspicious tiles, one after another into a recurrent network.

    [Campanella et al. 2019, Methods: MIL classifier, RNN-based slide integration]
    First stream: the tile with the highest score of the last class stands for the slide. Second:
    its `top` highest tiles, best first, s <- ReLU(W h_i + V s) from s = 0, then the classes from s.
    a: equal shares of those tiles. They train one, then the other; here both learn together, and
    the choice of the tiles has no gradient. [ours]
    """

    def __init__(self, n_features, outputs=2, state=STATE, top=TOP_TILES):
        super().__init__()
        self.top = top
        self.score = nn.Linear(n_features, outputs)
        self.take = nn.Linear(n_features, state)
        self.keep = nn.Linear(state, state)
        self.classify = nn.Linear(state, outputs)

    def forward(self, h, mask):
        h = h.masked_fill(~mask[:, :, None], 0)
        scores = self.score(h)  # (B, T, C)
        suspicion = scores[:, :, -1] - scores[:, :, :-1].logsumexp(2)
        suspicion = suspicion.masked_fill(~mask, -torch.inf)
        top = suspicion.topk(min(self.top, h.shape[1]), dim=1).indices  # (B, k), best first
        real = mask.gather(1, top)  # (B, k), False where the slide has fewer tiles
        taken = self.take(tiles_at(h, top))  # (B, k, state)
        s = torch.zeros_like(taken[:, 0])
        for i in range(top.shape[1]):
            s = torch.where(real[:, i, None], F.relu(taken[:, i] + self.keep(s)), s)
        best = tiles_at(scores, top[:, :1])[:, 0]  # (B, C)
        a = torch.zeros_like(suspicion).scatter(1, top, real / real.sum(1, keepdim=True))
        return torch.stack([best, self.classify(s)], 1), a


def tiles_at(values, which):
    """values (B, T, n) of the tiles `which` (B, k) -> (B, k, n)"""
    return values.gather(1, which[:, :, None].expand(-1, -1, values.shape[2]))


POOLINGS = ("MIL-RNN", "ABMIL", "DSMIL", "max", "mean", "HistCode")  # [HistCode Table 1]


def table_1_network(row, n_features, outputs=2, hidden=ATTENTION):
    """The network of one of POOLINGS, from the features of the tiles to the slide's outputs."""
    match row:
        case "MIL-RNN":
            return MILRNN(n_features, outputs)
        case "DSMIL":
            return DSMIL(n_features, outputs)
        case "ABMIL":
            pooling = GatedAttention(n_features, hidden, gated=False)
        case "HistCode":
            pooling = GatedAttention(n_features, hidden)
        case "max":
            pooling = max_pooling
        case "mean":
            pooling = mean_pooling
        case _:
            raise ValueError(f"no pooling {row!r}: it is one of {', '.join(POOLINGS)}")
    return PooledClassifier(pooling, n_features, outputs)


class SlideModel(nn.Module):
    """Standardised features, layers of `embed` with ReLU (the paper has none), one of POOLINGS.

    mean, sd (D,): of the tiles of the training slides. [ours]
    forward(h (B, T, D), mask (B, T)) -> outputs (B, streams, C), a (B, T)
    """

    def __init__(self, pooling, mean, sd, outputs=2, embed=(), hidden=ATTENTION):
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(np.float32(mean)))
        self.register_buffer("scale", torch.from_numpy(np.float32(1 / divisor(mean, sd))))
        self.layers = nn.Sequential()
        width = len(mean)
        for wide in embed:
            self.layers.extend([nn.Linear(width, wide), nn.ReLU()])
            width = wide
        self.head = table_1_network(pooling, width, outputs, hidden)

    def forward(self, h, mask):
        return self.head(self.layers((h.float() - self.mean) * self.scale), mask)


def divisor(mean, sd):
    """(D,) by which centred features are divided: their SD; infinity for constants, which become 0."""
    return np.where(sd > 1e-6 * np.abs(mean) + 1e-12, sd, np.inf)


# ---- Learning from slides on frozen features  [HistCode eq. 7; Methods, Tumor diagnosis] ---------


def cross_entropy(outputs, y):
    """Mean over the streams: outputs (..., streams, C), classes y (...) -> (...). [HistCode eq. 7]"""
    y = y[..., None, None].expand(*outputs.shape[:-1], 1)
    return -outputs.log_softmax(-1).gather(-1, y).mean((-2, -1))


def mistakes(outputs, y):
    """1 where the stream that answers is wrong, else 0: outputs (..., streams, C), y (...) -> (...)"""
    return (outputs[..., -1, :].argmax(-1) != y).float()


def squared_error(outputs, y):
    """Mean over the known genes: outputs (..., 1, G), y (..., G) with nan -> (...). [HistCode eq. 8]"""
    known = ~y.isnan()
    errors = (outputs[..., -1, :] - y.nan_to_num()) ** 2 * known
    return errors.sum(-1) / known.sum(-1).clamp(min=1)


def padded(bags):
    """Slides of different length, each (T_i, D), as one batch: h (B, T, D), mask (B, T)."""
    h = np.zeros((len(bags), max(map(len, bags)), bags[0].shape[1]), bags[0].dtype)
    mask = np.zeros(h.shape[:2], bool)
    for i, bag in enumerate(bags):
        h[i, : len(bag)] = bag
        mask[i, : len(bag)] = True
    return torch.from_numpy(h), torch.from_numpy(mask)


@torch.no_grad()
def predict_slides(model, bags, rows, batch=1):
    """What the last stream answers for some slides: (n, 1, C)"""
    outputs = []
    for i in range(0, len(rows), batch):
        h, mask = padded([bags[row] for row in rows[i : i + batch]])
        outputs.append(model(h, mask)[0][:, -1:])
    return torch.cat(outputs)


def train_slide_epochs(model, bags, y, train, valid, *, loss=cross_entropy, judge=mistakes,
                       epochs=HEAD_EPOCHS, batch=1, lr=HEAD_RATE, weight_decay=HEAD_DECAY,
                       seed=0, state=None):  # fmt: skip
    """Train one SlideModel: a generator of its state after every epoch. [HistCode Methods]

    bags[i] (T_i, D) frozen features of slide i, y (n,) its class or (n, G) its fold changes;
    train, valid: slides. Regressions take squared_error as loss and judge.
    Yields a dict: epoch, loss (of the validation slides), best_epoch, fewest, best (weights of that
    epoch), model, optimizer. Kept is the last epoch with the lowest mean of judge(outputs, y) over
    the validation slides: of few slides the cross-entropy tells how sure a network is rather than
    how right, so mistakes choose. [ours] Handed back as `state`, training goes on from there.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr, weight_decay=weight_decay)
    if state is None:
        state = {"epoch": 0, "best_epoch": 0, "fewest": math.inf}
    else:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    while state["epoch"] < epochs:
        epoch = state["epoch"] + 1
        order = np.random.default_rng([seed, epoch]).permutation(train)
        for i in range(0, len(order), batch):
            rows = order[i : i + batch]
            outputs, _ = model(*padded([bags[row] for row in rows]))
            optimizer.zero_grad()
            loss(outputs, y[rows]).mean().backward()
            optimizer.step()
        answers = predict_slides(model, bags, valid, batch)
        wrong = judge(answers, y[valid]).mean().item()
        if wrong <= state["fewest"]:
            state.update(fewest=wrong, best_epoch=epoch, best=copy.deepcopy(model.state_dict()))
        state.update(epoch=epoch, loss=loss(answers, y[valid]).mean().item())
        state.update(model=model.state_dict(), optimizer=optimizer.state_dict())
        yield state


def split_patients(patients, strata, parts, seed):
    """(n,) part of each slide, 0 to parts - 1: patients whole, spread by the labels they have."""
    labels = {}
    for patient, stratum in zip(patients, strata, strict=True):
        labels.setdefault(patient, set()).add(str(stratum))
    kinds = ["".join(sorted(labels[patient])) for patient in patients]
    return stats.patient_folds(patients, kinds, parts, seed)


def roles(part, f, parts=PARTS, stop_on_test=False):
    """Slides that train model f, choose its epoch, and test it: 80/10/10. [HistCode Results]

    Part f tests and the next one chooses; five models test half of the patients, as the paper's,
    ten test all. stop_on_test: the test part chooses. [HistCode code, of expression]
    """
    after = (f + 1) % parts
    train = (part != f) & (part != after)
    valid = part == (f if stop_on_test else after)
    return np.flatnonzero(train), np.flatnonzero(valid), np.flatnonzero(part == f)


def diagnosis_figures(y, p):
    """Of the probability p (n,) of class 1: what Table 1 and Figs. 2 and 3 show, by name."""
    accuracy = ((p > 0.5) == y).mean()
    return {"accuracy": accuracy, "auc": stats.roc_auc(y, p), "pr_auc": stats.pr_auc(y, p)}


# ---- Differential expression  [HistCode Methods, Differential expression analysis, prediction] ---


def fold_change(tumour, normal):
    """y = log10(fc + 1), and the label |log2 fc| > 1.5 as 0 or 1, both (n, G), nan where unknown.

    tumour, normal (n, G): expression a >= 0 of matched samples. Nothing in the tumour: fc 0, y 0,
    label 1. Nothing in the normal tissue: fc is infinite, so there is no y, and the label is 1.
    Nothing in both, or either missing: neither. [ours; the paper does not say]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        fc = np.asarray(tumour, np.float64) / np.asarray(normal, np.float64)
        changed = np.abs(np.log2(fc)) > LOG2_FC
        y = np.log10(fc + 1)
    return np.where(np.isfinite(fc), y, np.nan), np.where(np.isnan(fc), np.nan, changed)


def label_of(y):
    """The label that y = log10(fc + 1) stands for; a y that no fc can give counts as the nearest."""
    return np.abs(np.log2(np.maximum(10.0**y - 1, 1e-12))) > LOG2_FC


def ends_of(a, most=ENDS):
    """The l highest and the l lowest tiles by attention a (T,), T >= 2; of equals the first is higher.

    "l takes 100" [HistCode Methods], but at most half of the tiles, so that none is in both. [ours]
    """
    order = np.argsort(-a, kind="stable")
    n = min(most, len(a) // 2)
    return order[:n], order[len(a) - n :]


def end_features(h, a, most=ENDS):
    """(2D,) the mean of the highest and the mean of the lowest tiles of h (T, D), side by side.

    2 x 1,024 numbers; the paper's "1024 input nodes" do not fit that. [HistCode Methods]
    """
    means = [np.asarray(h[np.sort(rows)], np.float64).mean(0) for rows in ends_of(a, most)]
    return np.concatenate(means)


def known_alike(y):
    """[(rows, genes)] of y (n, G): the genes that are known (not nan) of just the same rows."""
    patterns, which = np.unique(~np.isnan(y), axis=1, return_inverse=True)
    blocks = []
    for i, pattern in enumerate(patterns.T):
        if pattern.any():
            blocks.append((np.flatnonzero(pattern), np.flatnonzero(which.ravel() == i)))
    return blocks


def least_squares(x, y):
    """A linear layer for each gene, all as one matrix, by least squares. [HistCode eq. 8]

    x (n, 2D), y (n, G) with nan -> weights (2D, G), bias (G,); x @ weights + bias predicts y. Of
    all solutions the smallest in standardised features, which descent from 0 also finds. [ours]
    """
    weights = np.zeros((x.shape[1], y.shape[1]))
    bias = np.full(y.shape[1], np.nan)
    for rows, genes in known_alike(y):
        mean = x[rows].mean(0)
        scale = divisor(mean, x[rows].std(0))
        target = y[np.ix_(rows, genes)]
        z = (x[rows] - mean) / scale
        solution = np.linalg.lstsq(z, target - target.mean(0), rcond=RANK)[0]  # (2D, block)
        weights[:, genes] = solution / scale[:, None]
        bias[genes] = target.mean(0) - mean @ weights[:, genes]
    return weights, bias


def train_label_epochs(x, label, train, valid, *, epochs=LABEL_EPOCHS, lr=LABEL_RATE):
    """The same layer with two outputs a gene and a softmax: a generator of each epoch's state.

    x (n, D) standardised, label (n, G) 0, 1 or nan, both tensors. Yields a dict: loss (of the
    validation rows), weights (D, G) and bias (G,) of the difference of the two outputs, which is
    the log odds of label 1. [HistCode Results: "replaced the output layer by two nodes"]
    The first state is untrained: weights 0, bias the log odds in the training rows. Then Adam on
    all training rows at once. [ours]
    """
    known = ~label.isnan()
    target = label.nan_to_num()
    n = known[train].sum(0).clamp(min=1)  # (G,)
    share = target[train].sum(0) / n
    weights = torch.zeros(x.shape[1], label.shape[1], device=x.device, requires_grad=True)
    bias = torch.logit(share.clamp(1 / (2 * n), 1 - 1 / (2 * n))).requires_grad_()
    optimizer = torch.optim.Adam([weights, bias], lr)

    def loss(rows):
        odds = x[rows] @ weights + bias
        each = F.binary_cross_entropy_with_logits(odds, target[rows], reduction="none")
        return (each * known[rows]).sum() / known[rows].sum().clamp(min=1)

    for epoch in range(epochs + 1):
        if epoch:
            optimizer.zero_grad()
            loss(train).backward()
            optimizer.step()
        with torch.no_grad():
            error = loss(valid).item()
        yield {"epoch": epoch, "loss": error, "weights": weights.detach(), "bias": bias.detach()}


def judge_genes(prediction, y, rng):
    """How well each gene is predicted: a dict of (G,) arrays. prediction, y (n, G), nan unknown.

    n patients, r, rho; p, bh: two-sided, of the t of r; baseline: R of random predictions; of the
    prediction against those, location_p as the paper words it, error_p of the absolute errors, and
    better, 1 where its errors are the smaller [stats.against_baseline].
    [HistCode Results, Differential gene expression prediction, Fig. 4]
    """
    out = {"n": (~np.isnan(y)).sum(0)}
    for name in ("r", "rho", "baseline", "location_p", "error_p", "better"):
        out[name] = np.full(y.shape[1], np.nan)
    for rows, genes in known_alike(y):
        if len(rows) < stats.MIN_R:
            continue
        block = np.ix_(rows, genes)
        random = stats.random_baseline(y[block], rng)
        against = stats.against_baseline(prediction[block], y[block], random)
        out["r"][genes] = stats.pearson(prediction[block], y[block])
        out["rho"][genes] = stats.spearman(prediction[block], y[block])
        out["baseline"][genes] = stats.pearson(random, y[block])
        out["location_p"][genes] = against["p"]
        out["error_p"][genes] = against["error_p"]
        out["better"][genes] = against["better"]
    out["p"] = np.minimum(1, 2 * stats.pearson_p(out["r"], out["n"]))
    for p, corrected in (("p", "bh"), ("location_p", "location_bh"), ("error_p", "error_bh")):
        out[corrected] = stats.benjamini_hochberg(out[p])
    return out


def judge_labels(guess, label):
    """Accuracy of each gene's label (n, G), share of label 1, and what the commoner label reaches.

    The paper shows the accuracies alone (Fig. 5): of a rare label always guessing 0 looks good.
    """
    known = ~np.isnan(label)
    with np.errstate(invalid="ignore"):
        positive = np.where(known, label, 0).sum(0) / known.sum(0)
        accuracy = ((guess == label) & known).sum(0) / known.sum(0)
    majority = np.maximum(positive, 1 - positive)
    return {"accuracy": accuracy, "positive": positive, "majority": majority}


def by_accuracy(r, fc, width=0.1):
    """[(lower end, mean fold changes fc of its genes)] of each bin of R. [HistCode Fig. 7]"""
    r = np.where(np.isnan(fc), np.nan, r)
    number = np.floor(r / width)  # (G,)
    return [(b * width, fc[number == b]) for b in np.unique(number[~np.isnan(number)])]


# ---- Where on the slide  [HistCode Results, Interpretability and spatial localization] -----------


def end_contributions(h, a, weights, most=ENDS):
    """What each tile adds to a gene's prediction, (T,): with the bias they sum to it. [ours]

    h (T, D), a (T,) attention, weights (2D,) of the gene. nan: the tile is in neither end.
    """
    out = np.full(len(h), np.nan)
    for rows, w in zip(ends_of(a, most), np.split(weights, 2), strict=True):
        out[rows] = np.asarray(h[rows], np.float64) @ w / len(rows)
    return out


def scale_to_one(a):
    """Attention (T,) from 0, the lowest tile, to 1: "normalization of attention scores"."""
    width = np.ptp(a)
    return (a - a.min()) / width if width else np.zeros_like(a)


def dice(a, b):
    """2 |A and B| / (|A| + |B|) of two masks: a map against a pathologist's outline. [ours]"""
    return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


if __name__ == "__main__":
    from lab.commands.histcode import main
    from lab.commands.options import run

    run(main)
