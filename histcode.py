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


ATTENTION = 256  # rows of V and U                          [HistCode code]


QUERIES = 128  # of DSMIL's queries                       [DSMIL code]


TOP_TILES = 10  # of MIL-RNN's                             [Campanella et al. 2019]


STATE = 128  # of its recurrent network                 [Campanella et al. 2019]


LOG2_FC = 1.5  # |log2 fc| above it: label 1              [HistCode Methods, Differential expression analysis]


ENDS = 100  # l highest and l lowest tiles             [HistCode Methods, Differential expression prediction]


SHARED = (
    "pretrain",
    "diagnose",
    "expression",
    "ablation",
)  # commands that several processes share out   [ours]


POOLINGS = {  # Table 1's rows: name -> network from D features to C outputs
    "MIL-RNN": lambda D, C=2, hidden=ATTENTION: MILRNN(D, C),
    "ABMIL": lambda D, C=2, hidden=ATTENTION: PooledClassifier(
        GatedAttention(D, hidden, gated=False), D, C
    ),
    "DSMIL": lambda D, C=2, hidden=ATTENTION: DSMIL(D, C),
    "max": lambda D, C=2, hidden=ATTENTION: PooledClassifier(MaxPooling(), D, C),
    "mean": lambda D, C=2, hidden=ATTENTION: PooledClassifier(MeanPooling(), D, C),
    "HistCode": lambda D, C=2, hidden=ATTENTION: PooledClassifier(GatedAttention(D, hidden), D, C),
}


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


# Feature aggregation: the tiles of a slide to one vector, of which a layer makes the classes  [HistCode eqs. 5-7; Table 1]
# Every pooling takes h (B, T, D) and mask (B, T), True for real tiles, of which each bag has one or more, and gives with
# its result a (B, T): each tile's part in it, 0 for padding, whose content never counts.
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
        h = h.masked_fill(~mask[:, :, None], 0)  # whatever it held: 0 x nan is nan
        hidden = torch.tanh(self.v(h))  # (B, T, hidden)
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
        z, which = h.masked_fill(~mask[:, :, None], -torch.inf).max(1)  # (B, D), (B, D)
        return z, torch.zeros_like(h[:, :, 0]).scatter_add(
            1, which, torch.full_like(z, 1 / z.shape[1])
        )


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
        instance, critical = (
            self.score(h).masked_fill(~mask[:, :, None], -torch.inf).max(1)
        )  # (B, C), (B, C)
        q = self.query(h)  # (B, T, Q)
        best = q.gather(1, critical[:, :, None].expand(-1, -1, q.shape[2]))  # (B, C, Q)
        logits = best @ q.mT / q.shape[2] ** 0.5  # (B, C, T)
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
        scores = self.score(h.masked_fill(~mask[:, :, None], 0))  # (B, T, C)
        suspicion = (scores[:, :, -1] - scores[:, :, :-1].logsumexp(2)).masked_fill(
            ~mask, -torch.inf
        )
        top = suspicion.topk(min(self.top, h.shape[1]), dim=1).indices  # (B, k)
        real = mask.gather(1, top)  # (B, k) False: the bag has fewer tiles
        pick = lambda values, at: values.gather(1, at[:, :, None].expand(-1, -1, values.shape[2]))
        taken, s = (
            self.take(pick(h, top).masked_fill(~real[:, :, None], 0)),
            torch.zeros_like(h[:, 0, :1]),
        )
        s = s.expand(-1, taken.shape[2])
        for i in range(top.shape[1]):
            s = torch.where(real[:, i, None], F.relu(taken[:, i] + self.keep(s)), s)  # (B, state)
        a = torch.zeros_like(suspicion).scatter(1, top, real / real.sum(1, keepdim=True))
        return torch.stack([pick(scores, top[:, :1])[:, 0], self.classify(s)], 1), a


def divisor(mean, sd):
    """What standardises features of this mean and SD, (D,): the SD; infinite for a constant, which becomes 0."""
    return np.where(sd > 1e-6 * np.abs(mean) + 1e-12, sd, np.inf)


class SlideModel(nn.Module):
    """(h - mean) / SD of the training tiles, constant features 0 [ours] -> fully connected layers with ReLU, none in the
    paper -> a network of POOLINGS. forward(h (B, T, D), mask (B, T)) -> outputs (B, streams, C), a (B, T)."""

    def __init__(self, pooling, mean, sd, outputs=2, embed=(), hidden=ATTENTION):
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(np.float32(mean)))
        self.register_buffer("scale", torch.from_numpy(np.float32(1 / divisor(mean, sd))))
        widths = [len(mean), *embed]
        self.layers = nn.Sequential(
            *(layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), nn.ReLU()))
        )
        self.head = POOLINGS[pooling](widths[-1], outputs, hidden)

    def forward(self, h, mask):
        return self.head(self.layers((h.float() - self.mean) * self.scale), mask)


# Training on frozen features  [HistCode Methods: "only the parameters of the gated-attention pooling and downstream linear
# layers were updated"]. Each network has its own weights; either each its own bags in its own order, or all the same.
# M networks of one kind (folds, repeats, genes) learn as one with a leading model dimension (vmap). [ours]
def cross_entropy(out, y):
    """Of every stream, their mean: out (M, b, streams, C), y (M, b) classes -> (M, b). [HistCode eq. 7]"""
    y = y[:, :, None, None].expand(*out.shape[:3], 1)
    return -out.log_softmax(3).gather(3, y).mean((2, 3))


def squared_error(out, y):
    """Mean over the genes, unknown ones left out: out (M, b, 1, G), y (M, b, G) with nan -> (M, b). [HistCode eq. 8]"""
    known = ~y.isnan()
    return ((out[:, :, -1] - y.nan_to_num()) ** 2 * known).sum(2) / known.sum(2).clamp(min=1)


# Tumour diagnosis: folds and figures  [HistCode Results, Tumor diagnosis; Table 1, Figs. 2, 3]
def split_patients(patients, strata, parts, seed):
    """Parts 0 to k - 1, patients whole, dealt out evenly by the set of strata (labels) their samples have: (n,).

    Part f tests model f, part f + 1 chooses its epoch, the others train: 80/10/10 with ten [HistCode Results].
    """
    of = {}
    for who, stratum in zip(patients, strata):
        of.setdefault(who, set()).add(str(stratum))
    return stats.patient_folds(
        patients, ["".join(sorted(of[who])) for who in patients], parts, seed
    )


def probabilities(saved):
    """Of the positive class, of the test samples after every epoch: (epochs, n)."""
    return saved["tests"].double().softmax(2)[:, :, 1].numpy()


def best_cut(y, p):
    """Highest accuracy that any threshold on p gives: what choosing it on the test samples claims."""
    fpr, tpr = stats.roc_curve(y, p) if 0 < y.mean() < 1 else (np.zeros(1), np.ones(1))
    return float((tpr * y.mean() + (1 - fpr) * (1 - y.mean())).max())


def figures_of(y, saved):
    """Figures of one test fold, y (n,): those at the epoch kept, and the two optimistic ones."""
    every, chosen = probabilities(saved), saved["epoch"] - 1  # (epochs, n)
    accuracy, aucs = ((every > 0.5) == y).mean(1), [stats.roc_auc(y, p) for p in every]
    return dict(
        accuracy=accuracy[chosen],
        auc=aucs[chosen],
        pr_auc=stats.pr_auc(y, every[chosen]),
        best_epoch=accuracy.max(),
        best_epoch_auc=max(aucs),
        best_threshold=best_cut(y, every[chosen]),
    )


# Differential expression  [HistCode Methods, Differential expression analysis; Differential expression prediction; eq. 8]
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
    return np.abs(np.log2(np.maximum(10.0**y - 1, 1e-12))) > LOG2_FC


def ends_of(a, most=ENDS):
    """(highest, lowest) tiles by attention a (T,): l each, at most half of the tiles so that none is in both; of equal ones
    the first are the higher. T >= 2. [HistCode Methods: "l takes 100"; halves: ours]"""
    order, n = np.argsort(-a, kind="stable"), min(most, len(a) // 2)
    return order[:n], order[len(order) - n :]


def known_alike(y):
    """[(rows, columns)] of y (n, G): the genes known (not nan) of just the same samples, together."""
    patterns, which = np.unique(~np.isnan(y), axis=1, return_inverse=True)
    return [
        (np.flatnonzero(pattern), np.flatnonzero(which.ravel() == i))
        for i, pattern in enumerate(patterns.T)
        if pattern.any()
    ]


def scale_to_one(a):
    """Attention (T,) -> 0 for the lowest tile, 1 for the highest. [HistCode Results: "normalization of attention scores"]"""
    return (a - a.min()) / np.ptp(a) if np.ptp(a) else np.zeros_like(a)


def dice(a, b):
    """2 |A and B| / (|A| + |B|) of two masks."""
    return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


if __name__ == "__main__":
    from lab.commands.histcode import main
    from lab.commands.options import run

    run(main)
