"""Does a pretraining learn? What each epoch shows of it, and when it has collapsed for good."""

import math

import numpy as np
import torch
from torch.nn import functional as F

import histcode
import tiling
from lab.files import InputError
from lab.histcode.epochs import choose_tiles, read_batches

COLLAPSED = 0.05  # spread of the embeddings below which they are nearly one [ours]
PATIENCE = 500  # steps of it, in two epochs at least, that end a run [ours]
RISE = 1.2  # times as large as at the beginning of the patience it must be to go on [ours]
NEAR = 0.01  # a negative is near where its term of eq. 1 is that share of the key's [ours]
SLIDES, TILES = 12, 32  # looked at after each epoch: slides, and tiles of each [ours]
SAMPLE_BYTES = 2**28  # of them at most [ours]
BLOCK = 8192  # negatives at a time [ours]


@torch.no_grad()
def near_share(q, k, w, tau):
    """Share of the negatives w (K, d) that count for any of the queries q (B, d) of a batch.

    exp(u.q / tau) is at least NEAR of exp(k.q / tau): others have no say in eq. 1. [ours]
    """
    least = (q * k).sum(1) + tau * math.log(NEAR)  # (B,)
    near = [(F.normalize(part, dim=1) @ q.T >= least).any(1) for part in w.split(BLOCK)]
    return torch.cat(near).float().mean().item()


@torch.no_grad()
def near_others(q, k, tau):
    """The same where a batch's other keys are the negatives."""
    least = (q * k).sum(1, keepdim=True) + tau * math.log(NEAR)  # (B, 1)
    near = (q @ k.T >= least).fill_diagonal_(False)
    return near.any(0).float().mean().item()


@torch.no_grad()
def nearest(q, k, w=None):
    """Mean similarity of queries to their nearest negative, of w (K, d) or of the others' keys."""
    if w is None:
        return (q @ k.T).fill_diagonal_(-1).amax(1).mean()
    return (q @ F.normalize(w, dim=1).T).amax(1).mean()


def between_slides(x, slide):
    """Share of the variance of features x (n, D) that lies between slides (n,): eta squared.

    nan where nothing varies.
    """
    x = np.asarray(x, np.float64)
    total = ((x - x.mean(0)) ** 2).sum() if len(x) else 0.0
    if total <= 1e-12 * (x**2).sum():
        return math.nan
    within = 0.0
    for s in np.unique(slide):
        own = x[slide == s]
        within += ((own - own.mean(0)) ** 2).sum()
    return float(1 - within / total)


def chance_between(slide):
    """What between_slides is on average where slides (n,) have no part in the features."""
    return (len(np.unique(slide)) - 1) / max(1, len(slide) - 1)


def sample_of(counts, o):
    """(n, 2) slide and tile: TILES of each of SLIDES random slides, the same all through a run.

    No more of a slide than an epoch has, so that looking costs little beside learning.
    """
    rng = np.random.default_rng([o.seed, 0, 2])
    slides = rng.permutation(np.flatnonzero(counts > 1))[:SLIDES]
    room = SAMPLE_BYTES // (3 * o.tile_px**2 * max(1, len(slides)))
    per_slide = np.zeros_like(counts)
    per_slide[slides] = max(2, min(TILES, o.tiles_per_slide, room))
    return choose_tiles(counts, per_slide, o.seed, 0)


class Watch:
    """Looks on while a model plays against its negatives.

    The loop hands each batch to the negatives, which is where it is overheard. features (n, D) are
    the frozen ones of the sample, as the other commands take them, and slides their names (n,).
    """

    def __init__(self, model, negatives, reader):
        self.model = model
        self.negatives = negatives
        self.last = None
        negatives.register_forward_hook(self.overhear)
        chosen = sample_of(reader.counts, reader.o)
        self.slides = np.array(reader.data["slides"])[chosen[:, 0]]
        self.tiles = np.zeros((0, 1, 1, 3), np.uint8)
        if len(chosen):
            rows = [np.arange(len(chosen))]
            (self.tiles,) = read_batches(reader.data, chosen, rows, workers=reader.o.workers)
        self.features = np.zeros((0, 1))
        self.hardest = []  # of each batch

    def overhear(self, negatives, pair, loss):
        self.last = [part.detach() for part in pair]
        w = getattr(negatives, "w", None)
        self.hardest.append(nearest(*self.last, w))

    def figures(self):
        """After an epoch, of its last batch, the bank and the sample: a dict for the log."""
        q, k = self.last
        hardest = torch.stack(self.hardest).mean().item()
        self.hardest.clear()
        w = getattr(self.negatives, "w", None)
        if w is None:
            found = {"near": near_others(q, k, self.negatives.tau)}
        else:
            found = {
                "near": near_share(q, k, w, self.negatives.tau),
                "bank_spread": histcode.spread(F.normalize(w, dim=1)),
                "bank_norm": w.norm(dim=1).mean().item(),
            }
        if len(self.tiles):
            self.features = tiling.encode(self.model.encoder, self.tiles)
            self.model.train()
        between = between_slides(self.features, self.slides)
        found["between_slides"] = None if math.isnan(between) else between
        return {"hardest": hardest, **found}


def advice(o):
    """What to change where the embeddings collapse."""
    ways = [f"--lr below {o.lr:g}"]
    if o.method == "simclr":
        return f"{ways[0]} or --batch above {o.batch}"
    if o.bank_from != "random":
        ways.insert(0, "--bank-from random")
    if not o.in_batch:
        ways.insert(0, "--in-batch")
    return ", ".join([*ways, "a lower --bank-lr"])


def refuse_collapse(folder, entries, steps, o):
    """InputError where the log's last epochs, of so many steps each, are a collapse that lasts.

    A random start lies close together too: where the spread rises the run goes on.
    """
    n = max(2, math.ceil(o.patience / steps))
    spreads = [entry["spread"] for entry in entries[-n:]]
    if not o.patience or len(spreads) < n or max(spreads) >= COLLAPSED:
        return
    if spreads[-1] > RISE * spreads[0]:
        return
    raise InputError(
        f"{folder}: COLLAPSE: for {n} epochs the spread of the embeddings (1: all over the sphere) "
        f"was below {COLLAPSED} and did not rise, at last {spreads[-1]:.3f}. Stopped after epoch "
        f"{entries[-1]['epoch']} of {o.epochs}, which is kept, and drawn in pretrain.png. Begin "
        f"again under another --name with {advice(o)}; --patience 0 goes on with this one as it is"
    )
