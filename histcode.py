"""HistCode: tile features learned without labels, and what they tell of tumours and their genes.

Huang et al., "Contrastive learning-based computational histopathology predict differential
expression of cancer driver genes" (2022), arXiv:2204.11994. This file is the Methods from their
section HistCode framework on, in the paper's order, arrays in and arrays out. Of what the paper
puts before it, Image processing (with the colour normalisation) is tiling.py and Differential
expression analysis stands here with the prediction; slides, RNA-seq and driver genes are files,
which the commands around it read: `python histcode.py --help` lists them.

Contrastive learning [HistCode eqs. 1-4; AdCo, arXiv:2011.08435]. Two random views of a tile must
lie nearer to each other than to a bank of negatives, and than to the batch's other tiles [AdCo
code]; the bank moves to make that as hard as it can. The encoder, a ResNet50 up to its third stage,
stays as it is after that.
Feature aggregation [eqs. 5-6]: gated attention weights the tiles of a slide.
Tumour diagnosis [eq. 7]: one layer on the weighted mean tells tumour from normal tissue.
Differential expression [eq. 8]: the tiles of highest and of lowest attention, through one linear
layer, predict each gene's fold change between tumour and normal tissue.

How to use it, from tiles of tiling.py, here of one slide, as a uint8 tensor (T, 256, 256, 3):

    import torch, histcode, tiling
    model = histcode.Embedder(tiling.ResNet50(stages=3))    # ImageNet weights: load_state_dict
    def views(epoch):                                       # better of mixed tiles: randperm
        for step, some in enumerate(tiles.split(256)):
            yield histcode.two_views(some, seed=0, epoch=epoch, step=step)
    negatives = histcode.Bank(histcode.random_bank(len(tiles) // 5))    # 20 % [HistCode code]
    for state in histcode.pretrain_epochs(model, views, negatives):
        print(state["epoch"], state["loss"], state["spread"])
    h = tiling.encode(model.encoder, tiles.numpy())         # (T, D) all that follows starts from it
    h = torch.from_numpy(h)[None]                           # (1, T, D) a batch of one slide
    pool = histcode.GatedAttention(n_features=1024)
    z, a = pool(h, torch.ones(1, len(tiles), dtype=bool))   # (1, D), (1, T)

Glossary, in brackets the paper's letter where it is another:
x a tile x_i or its view, px the view's edge; B tiles (or slides) of a batch [N of eq. 1], n rows of
any kind: tiles, slides, patients; K negatives, d numbers of an embedding, D of a feature.
h features (in shapes of pictures h, w are height and width), q and k the unit embeddings of a
tile's two views (query, and key [q']), w a raw negative [m_k] and u = w / |w|, bank all of them
[M], tau the temperature, theta the network's weights, lambda a learning rate.
T tiles of a slide [L], a their attention, V, U, w its weights [eq. 6], z the slide's vector (before
eq. 5, any embeddings), C classes or outputs.
G genes [Q], fc fold change, y = log10(fc + 1) (in eq. 7 a class), l tiles at either end.
Tags: [HistCode ...] the paper says it; [HistCode code], [AdCo code] only the authors' released
code does; [ours] neither does, we chose. A method of others is tagged by their paper, [Chen et al.
2020], or their code, [DSMIL code].
Needs: in some docstrings, what to copy along with that piece, besides the imports.
"""

if __name__ == "__main__":  # first: a command imports no more than it needs
    from lab.commands.start import start

    start("histcode")

import copy
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import stats
import tiling

# ---- Two views of a tile, after MoCo v2  [AdCo code] ---------------------------------------------

VIEW_PX = 224  # edge of a view [HistCode code]
CROP_AREA = 0.2, 1.0  # share of the tile's area [AdCo code]
CROP_RATIO = 3 / 4, 4 / 3  # width : height [AdCo code]
CROP_DRAWS = 10  # crops drawn until one lies in the tile [AdCo code]
JITTER = 0.4, 0.4, 0.4, 0.1  # brightness, contrast, saturation, hue (in turns) [AdCo code]
JITTER_CHANCE = 0.8  # [AdCo code]
GREY_CHANCE = 0.2  # [AdCo code]
BLUR_CHANCE = 0.5  # [AdCo code]
BLUR_SIGMA = 0.1, 2.0  # px of a view of 224 [AdCo code]; of others the same share [ours]
TURN_CHANCE = 0.5  # of each of 2 mirrors and a transposition, as tissue has no up [ours]
LUMINANCE = 0.299, 0.587, 0.114  # of R, G, B [AdCo code]
PLAIN_COLOUR = 1.0, 1.0, 1.0, 0.0  # factors of brightness, contrast, saturation; turn of the hue


def generator_of(*key):
    """A torch.Generator on the CPU, seeded by whole numbers such as (seed, epoch, step)."""
    seed = np.random.default_rng(key).integers(2**62)
    return torch.Generator().manual_seed(int(seed))


def between(low, high, shape, generator):
    return low + (high - low) * torch.rand(shape, generator=generator)


def coin(chance, shape, generator):
    return torch.rand(shape, generator=generator) < chance


def draw_crop(n, generator):
    """Boxes (n, 4): left, top, width, height of a crop as shares of the tile's edges.

    Of CROP_DRAWS random areas and ratios the first that fits; the whole tile where none does.
    """
    area = between(*CROP_AREA, (n, CROP_DRAWS), generator)
    low, high = map(math.log, CROP_RATIO)
    ratio = between(low, high, (n, CROP_DRAWS), generator).exp()
    width = (area * ratio).sqrt()
    height = (area / ratio).sqrt()
    edges = torch.stack([width, height], 2)  # (n, draws, 2)
    fits = (edges <= 1).all(2)  # (n, draws)
    which = fits.float().argmax(1)
    first = edges[torch.arange(n), which]  # (n, 2)
    edges = torch.where(fits.any(1, keepdim=True), first, 1)
    corner = between(0, 1, (n, 2), generator) * (1 - edges)
    return torch.cat([corner, edges], 1)


def draw_view(n, generator):
    """What a random view of each of n tiles will be, a dict of tensors with n rows."""
    box = draw_crop(n, generator)
    jittered = coin(JITTER_CHANCE, (n, 1), generator)
    change = between(-1, 1, (n, 4), generator) * torch.tensor(JITTER)
    turns = coin(TURN_CHANCE, (n, 3), generator)
    grey = coin(GREY_CHANCE, n, generator)
    blurred = coin(BLUR_CHANCE, n, generator)
    sigma = between(*BLUR_SIGMA, n, generator)
    return {
        "box": box,  # (n, 4) left, top, width, height
        "turns": turns,  # (n, 3) mirror x, mirror y, transpose
        "colour": torch.tensor(PLAIN_COLOUR) + jittered * change,  # (n, 4)
        "grey": grey,  # (n,)
        "sigma": blurred * sigma,  # (n,) px of a view of 224
    }


def make_view(tiles, view, px=VIEW_PX):
    """Views as draw_view drew them: (n, 3, h, w) uint8 -> (n, 3, px, px) float32 in 0..1."""
    view = {name: value.to(tiles.device) for name, value in view.items()}
    x = crop(tiles / 255, view["box"], px)
    x = turn(x, view["turns"])
    x = jitter(x, view["colour"])
    x = torch.where(column(view["grey"]), luminance(x), x)
    return blur(x, view["sigma"] * px / 224).clamp(0, 1)


def column(values):
    """(n,) -> (n, 1, 1, 1), a number for each picture."""
    return values[:, None, None, None]


def crop(x, box, px):
    """Cut a box out of each picture and resize it to px x px.

    Both at once, as a product with one matrix per axis: a box may end within a pixel, and what
    shrinks is averaged (antialiased) as by Pillow's bilinear resize. [ours]
    """
    left, top, width, height = box.T
    rows = resize_weights(top, height, x.shape[2], px)  # (n, 1, px, h)
    columns = resize_weights(left, width, x.shape[3], px)  # (n, 1, px, w)
    return rows @ x @ columns.mT  # (n, 3, px, px)


def resize_weights(start, length, size, px):
    """(n, 1, px, size): row i holds how much of each of `size` pixels goes into pixel i.

    start, length (n,): of the crop, as shares of the tile's edge of `size` pixels. The weights
    are a triangle as wide as two pixels, of the view or of the tile, whichever are larger.
    """
    scale = column(length) * size / px  # pixels of the tile per pixel of the view
    i = torch.arange(px, device=start.device)[:, None] + 0.5
    j = torch.arange(size, device=start.device) + 0.5
    middle = column(start) * size + i * scale  # (n, 1, px, 1), in pixels of the tile
    distance = (j - middle).abs() / scale.clamp(min=1)
    weights = (1 - distance).clamp(min=0)
    return weights / weights.sum(3, keepdim=True)


def turn(x, turns):
    """Mirror left and right, mirror top and bottom, transpose: the 8 symmetries of the square.

    The authors mirror left and right alone. [ours]
    """
    mirror_x, mirror_y, transpose = turns.T
    x = torch.where(column(mirror_x), x.flip(3), x)
    x = torch.where(column(mirror_y), x.flip(2), x)
    return torch.where(column(transpose), x.mT, x)


def luminance(x):
    """(n, 3, h, w) -> (n, 1, h, w)"""
    r, g, b = x.split(1, dim=1)
    return LUMINANCE[0] * r + LUMINANCE[1] * g + LUMINANCE[2] * b


def blend(x, other, factor):
    """Away from the other (factor above 1) or towards it (below)."""
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def jitter(x, colour):
    """Colours changed by (n, 4) factors of brightness, contrast, saturation and a turn of the hue.

    In this order always; the authors draw an order for each picture. [ours]
    """
    brightness, contrast, saturation, hue = map(column, colour.T)
    x = blend(x, 0, brightness)
    mean = luminance(x).mean((2, 3), keepdim=True)
    x = blend(x, mean, contrast)
    x = blend(x, luminance(x), saturation)
    return shift_hue(x, hue[:, 0])


def shift_hue(x, shift):
    """Turn the hue by shift (n, 1, 1) of a full turn; saturation and value (of HSV) stay.

    Back to red, green, blue: value - chroma max(0, min(s, 4 - s, 1)) with s = hue + 5, 3, 1 mod 6.
    """
    r, g, b = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    c = chroma.clamp(min=1e-12)  # a grey pixel may have any hue
    reddish = (g - b) / c
    greenish = (b - r) / c + 2
    bluish = (r - g) / c + 4
    hue = torch.where(value == g, greenish, bluish)
    hue = torch.where(value == r, reddish, hue) + 6 * shift  # in sixths
    sixth = torch.stack([(start + hue) % 6 for start in (5, 3, 1)], 1)  # (n, 3, h, w)
    below = torch.minimum(sixth, 4 - sixth).clamp(0, 1)
    return value[:, None] - chroma[:, None] * below


def blur(x, sigma):
    """Gaussian blur of squares by sigma (n,) px, 0 for none; at the rim, of the pixels inside."""
    i = torch.arange(x.shape[3], device=x.device)
    sigma = column(sigma).clamp(min=0.01)  # so small that no neighbour weighs in
    distance = (i[:, None] - i) / sigma
    weights = torch.exp(-0.5 * distance**2)  # (n, 1, px, px)
    weights = weights / weights.sum(3, keepdim=True)
    return weights @ x @ weights.mT


def standardise(x):
    """0..1 -> as ImageNet's weights want it. (n, 3, h, w)"""
    mean = x.new_tensor(tiling.IMAGENET_MEAN)[:, None, None]
    sd = x.new_tensor(tiling.IMAGENET_STD)[:, None, None]
    return ((x - mean) / sd).contiguous(memory_format=torch.channels_last)


def view_of(tiles, px, *key, part=0, parts=1):
    """One view (B, 3, px, px) of each tile (B, h, w, 3) uint8, drawn from key: seed, epoch, ...

    The tiles are the part-th of equal parts of a batch: views are drawn for the whole batch, so
    that they don't depend on how many processes share it.
    """
    tiles = torch.as_tensor(tiles)
    view = draw_view(len(tiles) * parts, generator_of(*key))
    own = {name: value.chunk(parts)[part] for name, value in view.items()}
    x = tiles.permute(0, 3, 1, 2)
    return standardise(make_view(x, own, px))


def two_views(tiles, px=VIEW_PX, seed=0, epoch=0, step=0, **part_of):
    """Two views of each tile, as `view_of` makes them; part_of: its part and parts.

    In eq. 1 only q'_i is of an augmentation, q_i of the tile x_i itself [HistCode Methods]; here
    both are augmented. [AdCo code]
    """
    x1 = view_of(tiles, px, seed, epoch, step, 0, **part_of)
    x2 = view_of(tiles, px, seed, epoch, step, 1, **part_of)
    return x1, x2


# ---- Encoder  [HistCode Methods, Contrastive learning for feature extraction] --------------------

EMBEDDING = 128  # d [HistCode code]


class Embedder(nn.Module):
    """Views (B, 3, px, px) -> unit embeddings (B, d).

    encoder f_theta: tiling.ResNet50(stages=3), "only the first four main layers (... 1024)", the
    stem and three stages; two fully connected layers follow [HistCode Methods], 1,024-1,024-128
    [HistCode code]. These two serve the loss alone; what comes after takes the encoder's features.
    Embeddings have length 1, of which the paper is silent. [AdCo code]
    precision: of the encoder's products, float32 or lower (autocast). [ours]
    """

    def __init__(self, encoder, d=EMBEDDING, precision=torch.float32):
        super().__init__()
        n_features = encoder.n_features
        self.encoder = encoder
        self.projection = nn.Sequential(
            nn.Linear(n_features, n_features),
            nn.ReLU(),
            nn.Linear(n_features, d),
        )
        self.precision = precision

    def forward(self, x):
        lower = self.precision != torch.float32
        with torch.autocast(x.device.type, self.precision, enabled=lower):
            h = self.encoder(x)  # (B, D)
        return F.normalize(self.projection(h.float()), dim=1)


# ---- Loss and bank  [HistCode eqs. 1 and 4] ------------------------------------------------------

TAU = 0.12  # the paper is silent [HistCode code]
BANK_SIZE = 65_536  # K of AdCo [AdCo code]: what BANK_RATE is for, and the commands' largest
BANK_RATE = 3.0  # lambda of eq. 4 at K = BANK_SIZE [AdCo code]; HistCode's code: .3 at 318,193
MOMENTUM = 0.9  # of the encoder [HistCode Methods] and of the bank [HistCode code]
WEIGHT_DECAY = 1e-4  # of the encoder [HistCode Methods] and of the bank [HistCode code]
SIMCLR_TAU = 0.1  # [Chen et al. 2020]


def logits_of(q, k, bank, tau, in_batch=False):
    """Similarities of each query to its key and to the negatives, over tau: (B, 1 + K).

    in_batch: the keys of the batch's other tiles are negatives too, (B, B + K). [AdCo code;
    HistCode code] False, the default here, is eq. 1 as printed; Bank's default is True, for in our
    runs by eq. 1 alone all embeddings fled the bank together, to one place.
    """
    to_keys = q @ k.T if in_batch else (q * k).sum(1, keepdim=True)
    to_bank = q @ F.normalize(bank, dim=1).T  # (B, K)
    return torch.cat([to_keys, to_bank], 1) / tau


def info_nce(q, k, bank, tau, in_batch=False):
    """Contrastive loss -log(exp(positive) / sum(exp)), mean over the batch. [HistCode eq. 1]

    q, k (B, d): unit embeddings of the two views of each tile. bank (K, d): raw negatives, brought
    to length 1 here; their own length only sets how far a step turns them. [AdCo code]
    tau: temperature. in_batch: as in logits_of. Needs: logits_of.
    """
    logits = logits_of(q, k, bank, tau, in_batch)
    positive = (q * k).sum(1) / tau  # (B,)
    return (logits.logsumexp(1) - positive).mean()


@torch.no_grad()
def bank_gradient(q, k, bank, tau, in_batch=False):
    """dL/dw (K, d) of L = info_nce in closed form. [HistCode eq. 4; AdCo code]

    With p_ij the softmax share of negative j of the bank, among all logits of query i:
        dL/dw_j = (sum_i p_ij q_i - u_j sum_i p_ij q_i.u_j) / (B tau |w_j|)
    The second term takes out what would only lengthen w_j: the gradient is at right angles to it.
    Needs: logits_of.
    """
    length = bank.norm(dim=1, keepdim=True)  # (K, 1)
    u = bank / length
    logits = logits_of(q, k, bank, tau, in_batch)
    p = logits.softmax(1)[:, -len(bank) :]  # (B, K)
    pull = p.T @ q  # (K, d)
    along = (pull * u).sum(1, keepdim=True)  # (K, 1)
    return (pull - along * u) / (len(q) * tau * length)


@torch.no_grad()
def bank_step(bank, velocity, gradient, rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY):
    """One step up the loss, in place: v <- momentum v + gradient - weight_decay w, w <- w + rate v.

    Eq. 4 is printed with a minus, but the text says "ascending direction", as AdCo does.
    Of the bank, momentum and weight decay are only in the code. [HistCode eq. 4; HistCode code]
    """
    velocity.mul_(momentum).add_(gradient).sub_(bank, alpha=weight_decay)
    bank.add_(velocity, alpha=rate)


def random_bank(size, d=EMBEDDING, seed=0):
    """Bank at the start (K, d): unit vectors in all directions, not of tiles. [ours]

    The paper's start, embeddings of tiles (first_bank), points nearly one way, as before training
    a network hardly tells tiles apart; in our runs all embeddings then fled to the other side, even
    with in_batch. The climb brings random vectors to the queries.
    """
    w = torch.randn(size, d, generator=generator_of(seed))
    return F.normalize(w)


@torch.no_grad()
def first_bank(model, views, size=BANK_SIZE):
    """Bank at the start (K, d): embeddings, before training, of one view of some tiles.

    views: batches (B, 3, px, px), of "a percentage of tiles from each slide" [HistCode Methods], of
    slides mixed, as the first `size` stay. Batches are normalised by themselves, as in training,
    and move the running statistics of BatchNorm.
    """
    model.train()
    return torch.cat([model(x) for x in views])[:size]


class Bank(nn.Module):
    """The adversarial negatives w (K, d), which climb after each step of the encoder.

    Called, it gives the loss. in_batch: as in logits_of.
    step_tau: temperature of the loss that the bank climbs; .02 in HistCode's code, whose two sides
    thus play for different losses [HistCode code]; None: tau, one loss as in eq. 2.
    fill: the bank does not climb at first. Each step's keys replace the next rows of w until all
    are replaced, while the encoder learns by eq. 1 as printed. [AdCo code]
    gradient: bank_gradient, or its twin for large banks, lab/fast/bank.py.
    step: rate, momentum and weight_decay of bank_step. The rate is by default in proportion to K,
    BANK_RATE at BANK_SIZE: a negative's gradient holds its share of the softmax, some 1 / K, so
    that those of a small bank would move too far. [ours]
    Needs: TAU, BANK_RATE, BANK_SIZE, MOMENTUM, WEIGHT_DECAY, logits_of, info_nce, bank_gradient,
    bank_step.
    """

    def __init__(
        self,
        w,
        tau=TAU,
        *,
        step_tau=None,
        in_batch=True,
        fill=False,
        gradient=bank_gradient,
        **step,
    ):
        super().__init__()
        self.register_buffer("w", w)
        self.register_buffer("velocity", torch.zeros_like(w))
        self.register_buffer("filled", torch.tensor(0 if fill else len(w)))
        self.tau = tau
        self.step_tau = step_tau or tau
        self.in_batch = in_batch
        self.gradient = gradient
        rate = BANK_RATE * len(w) / BANK_SIZE
        self.step = {"rate": rate, **step}

    def forward(self, q, k):
        others = self.in_batch and self.filled == len(self.w)
        return info_nce(q, k, self.w, self.tau, others)

    def climb(self, pairs):
        """One step of eq. 4, by the mean gradient over pairs of q, k (B, d); or a step of filling.

        The pairs are of the network before its step of eq. 3: one pass serves both steps, which the
        paper takes "alternately". [AdCo code] True at the step that makes the bank full. It is
        filled with the keys of the first pair.
        """
        todo = self.w[self.filled :]
        if len(todo):
            k = pairs[0][1][: len(todo)]
            todo[: len(k)] = k.detach()
            self.filled += len(k)
            return len(k) == len(todo)
        total = 0
        for q, k in pairs:
            total += self.gradient(q, k, self.w, self.step_tau, self.in_batch)
        bank_step(self.w, self.velocity, total / len(pairs), **self.step)


def nt_xent(z1, z2, tau):
    """SimCLR's loss of unit embeddings z (B, d): the negatives are the 2B - 2 other views.

    Chen et al. 2020, eq. 1, arXiv:2002.05709. [HistCode Methods: "We have also tested ... SimCLR"]
    """
    z = torch.cat([z1, z2])  # (2B, d)
    logits = (z @ z.T / tau).fill_diagonal_(-torch.inf)
    positive = (z1 * z2).sum(1).repeat(2) / tau
    return (logits.logsumexp(1) - positive).mean()


class OtherTiles(nn.Module):
    """SimCLR in place of the bank: a tile's negatives are the other tiles of the batch."""

    def __init__(self, tau=SIMCLR_TAU):
        super().__init__()
        self.tau = tau

    def forward(self, q, k):
        return nt_xent(q, k, self.tau)

    def climb(self, pairs):
        """Nothing: these negatives are the encoder's own."""


def spread(z):
    """How far unit embeddings (B, d) lie apart: 0 all equal, a collapse; 1 their mean is 0.

    That is so all over the sphere, but also at two poles.

    sqrt(1 - |mean|^2), which is the root of the summed variances of the dimensions. [ours]
    """
    squares = z.mean(0).square().sum()
    return (1 - squares).clamp(min=0).sqrt().item()


# ---- Pretraining  [HistCode eqs. 2-4] ------------------------------------------------------------

LEARNING_RATE = 0.03  # lambda of eq. 3 [HistCode Methods]
BATCH = 256  # B, of the commands [AdCo code]
EPOCHS = 50  # [HistCode code]


def learning_rate(epoch, epochs, lr=LEARNING_RATE, final_lr=None):
    """Constant [HistCode Methods], or half a cosine towards final_lr [HistCode code]; epoch from 1.

    The cosine would reach final_lr after the last epoch. The bank's rate stays.
    """
    if final_lr is None:
        return lr
    share = (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
    return final_lr + share * (lr - final_lr)


def check_finite(epoch, *tensors):
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise FloatingPointError(f"epoch {epoch}: loss or weights are not finite any more")


@torch.no_grad()
def follow(keys, model, momentum):
    """Move the slow encoder towards the model, in place. [HistCode code]"""
    for slow, fast in zip(keys.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)


def embed(x1, x2, query, key, symmetric):
    """Views -> [(q, k)], queries and keys (B, d); symmetric: each view is the query once.

    Eq. 1 has one direction; AdCo's code can do both. [AdCo code]
    Without a key network (None) one network makes both, and learns through both, as both depend on
    theta. [HistCode eq. 3]
    """
    if key is None:
        q = query(x1)
        k = query(x2)
        return [(q, k), (k, q)] if symmetric else [(q, k)]
    pairs = [(query(x1), key(x2))]
    if symmetric:
        pairs.append((query(x2), key(x1)))
    return pairs


@torch.no_grad()
def figures_of_step(loss, q, k):
    """How a step went: loss; positive, the mean cosine of query and key; spread of the queries."""
    return loss.item(), (q * k).sum(1).mean().item(), spread(q)


alone = nn.Identity()  # one process has the whole batch: alone(network) is that network itself


def pretrain_epochs(
    model,
    views,
    negatives,
    *,
    epochs=EPOCHS,
    lr=LEARNING_RATE,
    final_lr=None,
    momentum_encoder=0.0,
    symmetric=False,
    whole=alone,
    state=None,
):
    """min over theta, max over the bank [HistCode eq. 2]: yields its state after each epoch.

    model: an Embedder; views(epoch): pairs (x1, x2) of batches (B, 3, px, px); negatives: a Bank,
    or OtherTiles for SimCLR. final_lr: as in learning_rate; symmetric: as in embed.
    momentum_encoder: 0, one network embeds both views, as the paper has one f_theta [HistCode eqs.
    1-3]; else a slow copy makes the keys, which keeps this share of itself at each step, .999 in
    HistCode's code. [HistCode code]
    whole(network): a callable that takes this process's part of a batch and gives the embeddings
    of all of it, where processes share a batch (the folder lab/histcode).
    SGD, its rate, momentum and weight decay: [HistCode Methods].
    Yields a dict: epoch, lr, the epoch's means of loss, positive and spread (see figures_of_step),
    and the state_dicts model, negatives, optimizer and, of a slow encoder, keys. Handed back as
    `state`, training goes on from there. Its tensors are those in use: copy what you keep.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr, MOMENTUM, weight_decay=WEIGHT_DECAY)
    parts = {"model": model, "negatives": negatives, "optimizer": optimizer}
    key = None
    if momentum_encoder:
        slow = copy.deepcopy(model).requires_grad_(False).train()
        parts["keys"] = slow
        key = whole(slow)
    query = whole(model)
    done = 0
    if state:
        done = state["epoch"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    for epoch in range(done + 1, epochs + 1):
        rate = learning_rate(epoch, epochs, lr, final_lr)
        optimizer.param_groups[0]["lr"] = rate
        model.train()
        steps = []
        for x1, x2 in views(epoch):
            if momentum_encoder:
                follow(slow, model, momentum_encoder)
            pairs = embed(x1, x2, query, key, symmetric)
            loss = sum(negatives(q, k) for q, k in pairs) / len(pairs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # theta descends [eq. 3]
            check_finite(epoch, loss)
            steps.append(figures_of_step(loss, *pairs[0]))
            filled = negatives.climb(pairs)  # the bank ascends [eq. 4]
            if filled and momentum_encoder:
                follow(slow, model, 0)  # with the full bank it starts anew, equal [AdCo code]
        check_finite(epoch, *model.parameters(), *negatives.buffers())
        states = {name: part.state_dict() for name, part in parts.items()}
        loss, positive, apart = np.mean(steps, 0).tolist()
        yield {
            "epoch": epoch,
            "lr": rate,
            "loss": loss,
            "positive": positive,
            "spread": apart,
            **states,
        }


# ---- Feature aggregation: the tiles of a slide to one vector  [HistCode eqs. 5-6] ----------------
# Every pooling takes h (B, T, D) and mask (B, T), True for real tiles, of which each slide has one
# or more. Beside z (B, D) it gives a (B, T), the part of each tile in it, which sums to 1. Padding
# has no part, whatever it holds.

ATTENTION = 256  # rows of V and U [HistCode code]


def masked(h, mask, value=0.0):
    """h (B, T, n) with `value` in place of the padding, which may hold anything, even nan."""
    return h.masked_fill(~mask[:, :, None], value)


class GatedAttention(nn.Module):
    """z = sum_i a_i h_i, with a = softmax_i(w . (tanh(V h_i) * sigm(U h_i))). [HistCode eqs. 5-6]

    forward(h (B, T, D), mask (B, T)) -> z (B, D), a (B, T). mask: bool, True for real tiles, one or
    more a slide; padding has a = 0, whatever it holds. V and U have `hidden` rows.
    gated=False gives w . tanh(V h_i), the first form of ABMIL. [Ilse et al. 2018, eq. 8]
    No biases, as eq. 6 is printed; the released code of HistCode and of ABMIL has them.
    Needs: ATTENTION, masked.
    """

    def __init__(self, n_features, hidden=ATTENTION, gated=True):
        super().__init__()
        self.v = nn.Linear(n_features, hidden, bias=False)
        self.w = nn.Linear(hidden, 1, bias=False)
        self.u = nn.Linear(n_features, hidden, bias=False) if gated else None

    def forward(self, h, mask):
        h = masked(h, mask)
        seen = torch.tanh(self.v(h))  # (B, T, hidden)
        if self.u is not None:
            seen = seen * torch.sigmoid(self.u(h))
        scores = self.w(seen).squeeze(2)  # (B, T)
        a = scores.masked_fill(~mask, -torch.inf).softmax(1)  # (B, T)
        return (a[:, None] @ h)[:, 0], a


def mean_pooling(h, mask):
    """z (B, D): the mean of the real tiles; a: one over their number."""
    a = mask / mask.sum(1, keepdim=True)
    h = masked(h, mask)
    return (a[:, :, None] * h).sum(1), a


def max_pooling(h, mask):
    """z (B, D): the highest value of each feature; a: the share of the D features a tile gives."""
    z, which = masked(h, mask, -torch.inf).max(1)  # (B, D), (B, D)
    share = torch.full_like(z, 1 / z.shape[1])
    a = torch.zeros_like(h[:, :, 0]).scatter_add(1, which, share)
    return z, a


# ---- Tumour diagnosis: from tiles to a label  [HistCode eq. 7, Table 1] --------------------------
# Each network's forward(h, mask) gives outputs (B, streams, C) and a (B, T). Each stream learns the
# label, and the last one answers. The rows of Table 1: MILRNN; ABMIL, a PooledClassifier of
# GatedAttention(D, gated=False); DSMIL; PooledClassifiers of max_pooling and mean_pooling, and of
# GatedAttention(D), which is HistCode. That ABMIL has no gate is [ours]: the paper only names it.

QUERIES = 128  # numbers of DSMIL's queries [DSMIL code]
STATE = 128  # numbers of MIL-RNN's state [Campanella et al. 2019]
TOP_TILES = 10  # tiles that MIL-RNN takes [Campanella et al. 2019]


def tiles_at(values, which):
    """values (B, T, n) of the tiles `which` (B, m) -> (B, m, n)"""
    return values.take_along_dim(which[:, :, None], 1)


class PooledClassifier(nn.Module):
    """One vector for the slide, one fully connected layer, one stream.

    [HistCode Methods, Tumor diagnosis]; its softmax is in cross_entropy.
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
    Second: for each class, the softmax over the tiles of <q_i, q_critical> / sqrt(queries) weights
    the features (q_i: query(h_i), no embedding of a view); one layer over the vectors of all
    classes answers. a: of the last class.
    Each stream has its own loss and the second answers, as in their code; the paper averages their
    scores. One layer makes the queries, the values stay as they are; their code is deeper. [ours]
    Needs: QUERIES, masked, tiles_at.
    """

    def __init__(self, n_features, outputs=2, queries=QUERIES):
        super().__init__()
        self.score = nn.Linear(n_features, outputs)
        self.query = nn.Linear(n_features, queries)
        self.classify = nn.Linear(outputs * n_features, outputs)

    def forward(self, h, mask):
        h = masked(h, mask)
        scores = masked(self.score(h), mask, -torch.inf)  # (B, T, C)
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
    its TOP_TILES highest, best first: from s = 0, s <- ReLU(take(h_i) + keep(s)); the last s gives
    the classes. a: equal shares of those tiles. They train one stream, then the other; here both
    learn together, and the choice of the tiles has no gradient. [ours]
    Needs: STATE, TOP_TILES, masked, tiles_at.
    """

    def __init__(self, n_features, outputs=2):
        super().__init__()
        self.score = nn.Linear(n_features, outputs)
        self.take = nn.Linear(n_features, STATE)
        self.keep = nn.Linear(STATE, STATE)
        self.classify = nn.Linear(STATE, outputs)

    def forward(self, h, mask):
        h = masked(h, mask)
        scores = self.score(h)  # (B, T, C)
        others = scores[:, :, :-1].logsumexp(2)
        suspicion = scores[:, :, -1] - others  # (B, T) log odds of the last class
        suspicion = suspicion.masked_fill(~mask, -torch.inf)
        steps = min(TOP_TILES, h.shape[1])
        top = suspicion.topk(steps, dim=1).indices  # (B, steps), best first
        real = mask.gather(1, top)  # (B, steps), False where the slide has fewer tiles
        taken = self.take(tiles_at(h, top))  # (B, steps, STATE)
        s = torch.zeros_like(taken[:, 0])  # (B, STATE)
        for i in range(steps):
            after = F.relu(taken[:, i] + self.keep(s))
            s = torch.where(real[:, i, None], after, s)
        best = tiles_at(scores, top[:, :1])[:, 0]  # (B, C)
        share = real / real.sum(1, keepdim=True)
        a = torch.zeros_like(suspicion).scatter(1, top, share)
        return torch.stack([best, self.classify(s)], 1), a


# ---- Learning from slides on frozen features  [HistCode eq. 7; Methods, Tumor diagnosis] ---------

PARTS = 10  # of the patients: 80/10/10 [HistCode Results, Tumor diagnosis]
HEAD_EPOCHS = 50  # of a network on frozen features, a slide a step [HistCode code]
HEAD_RATE = 1e-4  # of its Adam [HistCode code]
HEAD_DECAY = 1e-5  # weight decay of its Adam [HistCode code]


def cross_entropy(outputs, y):
    """Mean over the streams: outputs (..., streams, C), class y (...) -> (...). [HistCode eq. 7]

    One slide's part of eq. 7, which sums the slides; in training they are averaged over a batch.
    """
    log_share = outputs.log_softmax(-1)
    chosen = log_share.take_along_dim(y[..., None, None], -1)
    return -chosen.mean((-2, -1))


def mistakes(outputs, y):
    """1 where the last stream errs, else 0: outputs (..., streams, C), class y (...) -> (...)

    [HistCode Methods, Tumor diagnosis: "We used argmax"]
    """
    guess = outputs[..., -1, :].argmax(-1)
    return (guess != y).float()


def squared_error(outputs, y):
    """Mean over known genes: outputs (..., 1, G), y (..., G) with nan -> (...). [HistCode eq. 8]"""
    known = ~y.isnan()
    errors = outputs[..., -1, :] - y.nan_to_num()
    errors = errors.square() * known
    return errors.sum(-1) / known.sum(-1).clamp(min=1)


def padded(bags):
    """Slides of different length, each (T_i, D), as one batch: h (B, T, D), mask (B, T)."""
    lengths = torch.tensor([len(bag) for bag in bags])
    bags = [torch.tensor(bag) for bag in bags]
    h = nn.utils.rnn.pad_sequence(bags, batch_first=True)
    mask = torch.arange(h.shape[1]) < lengths[:, None]
    return h, mask


@torch.no_grad()
def predict_slides(model, bags, rows, batch=1):
    """What the last stream answers for the slides `rows` of bags, in their order: (n, 1, C)"""
    outputs = []
    for i in range(0, len(rows), batch):
        streams, _ = model(*padded([bags[row] for row in rows[i : i + batch]]))
        outputs.append(streams[:, -1:])
    return torch.cat(outputs)


def train_slide_epochs(
    model,
    bags,
    y,
    train,
    valid,
    *,
    loss=cross_entropy,
    judge=mistakes,
    epochs=HEAD_EPOCHS,
    batch=1,
    lr=HEAD_RATE,
    weight_decay=HEAD_DECAY,
    seed=0,
    state=None,
):
    """Train one network: a generator of its state after every epoch.

    bags[i] (T_i, D) "frozen" features of slide i [HistCode Methods, Tumor diagnosis]; y, a tensor:
    (n,) classes, or (n, G) fold changes with squared_error as loss and judge; train, valid: slides
    to learn from and to choose the epoch by. Yields a dict: epoch, loss (of the validation slides),
    best_epoch, fewest (its mean of judge), best (its weights), model, optimizer; handed back as
    `state`, training goes on. Best is the last epoch with the lowest mean of judge: of few slides
    the cross-entropy tells how sure a network is, not how right [ours]. Adam [HistCode code].
    """
    optimizer = torch.optim.Adam(model.parameters(), lr, weight_decay=weight_decay)
    if state is None:
        state = {"epoch": 0, "fewest": math.inf}
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
        errors = loss(answers, y[valid])
        check_finite(epoch, errors)
        wrong = judge(answers, y[valid]).mean().item()
        weights = model.state_dict()
        if wrong <= state["fewest"]:
            state.update(fewest=wrong, best_epoch=epoch, best=copy.deepcopy(weights))
        state.update(epoch=epoch, loss=errors.mean().item(), model=weights)
        state["optimizer"] = optimizer.state_dict()
        yield state


def split_patients(patients, strata, parts, seed):
    """(n,) part of each slide, 0 to parts - 1: patients whole, spread by the labels they have.

    patients, strata (n,): of each slide its patient and its label. [HistCode Results: "split ... at
    the level of patients"]; the spreading is [ours].
    """
    labels = {}
    for patient, stratum in zip(patients, strata, strict=True):
        labels.setdefault(patient, set()).add(str(stratum))
    kinds = ["".join(sorted(labels[patient])) for patient in patients]
    return stats.patient_folds(patients, kinds, parts, seed)


def roles(part, f, parts=PARTS, stop_on_test=False):
    """Slides that train model f, choose its epoch, and test it: 80/10/10. [HistCode Results]

    part (n,): of split_patients. Part f tests and the next one chooses; five models test half of
    the patients, as the paper's, ten test all. stop_on_test: the test part chooses. [HistCode code,
    of expression]
    """
    after = (f + 1) % parts
    train = (part != f) & (part != after)
    valid = part == (f if stop_on_test else after)
    return tuple(np.flatnonzero(rows) for rows in (train, valid, part == f))


# ---- Differential expression  [HistCode Methods, Differential expression analysis, prediction] ---

LOG2_FC = 1.5  # |log2 fc| above it is label 1 [HistCode Methods, Differential expression analysis]
ENDS = 100  # l highest and l lowest tiles [HistCode Methods, Differential expression prediction]
LABEL_EPOCHS = 100  # of the layer that learns labels [ours]
LABEL_RATE = 2e-5  # of its Adam, small: a gene's 2,048 weights all step as far at once [ours]


def fold_change(tumour, normal):
    """y = log10(fc + 1), and the label |log2 fc| > 1.5 as 0 or 1, both (n, G), nan where unknown.

    tumour, normal (n, G): expression >= 0 of matched samples, in FPKM-UQ [HistCode Methods, RNA-seq
    dataset]. Nothing in the tumour: fc 0, y 0, label 1. Nothing in the normal tissue: fc is
    infinite, so there is no y, and the label is 1. Nothing in both, or either missing: neither. Of
    zeros the paper says nothing. [ours]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        fc = np.divide(tumour, normal, dtype=np.float64)
        changed = np.abs(np.log2(fc)) > LOG2_FC
        y = np.log10(fc + 1)
    label = np.where(np.isnan(fc), np.nan, changed)
    return np.where(np.isfinite(fc), y, np.nan), label


def label_of(y):
    """The label that y = log10(fc + 1) stands for; a y that no fc gives counts as the nearest."""
    fc = np.maximum(10.0**y - 1, 1e-12)
    return np.abs(np.log2(fc)) > LOG2_FC


def ends_of(a, most=ENDS):
    """The l highest, the l lowest tiles by attention a (T,), T >= 2; of equals the first is higher.

    "l takes 100" [HistCode Methods], but at most half of the tiles, so that none is in both. [ours]
    """
    order = np.argsort(-a, kind="stable")
    n = min(most, len(a) // 2)
    return order[:n], order[len(a) - n :]


def end_features(h, a):
    """(2D,) the mean of the highest and the mean of the lowest tiles of h (T, D), side by side.

    2 x 1,024 numbers [ours]; the paper's "1024 input nodes" do not fit that. [HistCode Methods]
    """
    means = []
    for rows in ends_of(a):
        tiles = np.asarray(h[np.sort(rows)], np.float64)  # summed in the slide's order
        means.append(tiles.mean(0))
    return np.concatenate(means)


def known_alike(y):
    """[(rows, genes)] of y (n, G): the genes that are known (not nan) of just the same rows.

    What is computed from the rows then serves all these genes.
    """
    patterns, which = np.unique(~np.isnan(y), axis=1, return_inverse=True)
    blocks = []
    for i, pattern in enumerate(patterns.T):
        if pattern.any():
            genes = which.ravel() == i
            blocks.append((np.flatnonzero(pattern), np.flatnonzero(genes)))
    return blocks


def divisor(mean, sd):
    """(D,) what standardises features: their SD; infinity for constants, which become 0."""
    return np.where(sd > 1e-6 * np.abs(mean) + 1e-12, sd, np.inf)


def least_squares(x, y):
    """A linear layer for each gene, all as one matrix, by least squares. [HistCode eq. 8]

    x (n, 2D), y (n, G) with nan -> weights (2D, G), bias (G,); x @ weights + bias predicts y.
    With more features than rows many layers bring the MSE to its least. Of all these the smallest
    in standardised features, which descent from 0 also finds. [ours] Needs: known_alike, divisor.
    """
    weights = np.zeros((x.shape[1], y.shape[1]))
    bias = np.zeros(y.shape[1])
    for rows, genes in known_alike(y):
        truth = y[np.ix_(rows, genes)]
        mean = x[rows].mean(0)
        scale = divisor(mean, x[rows].std(0))
        standard = (x[rows] - mean) / scale
        deviations = truth - truth.mean(0)
        solution, *_ = np.linalg.lstsq(standard, deviations, rcond=None)  # (2D, block)
        weights[:, genes] = solution / scale[:, None]
        bias[genes] = truth.mean(0) - mean @ weights[:, genes]
    return weights, bias


def train_label_epochs(x, label, train, valid, *, epochs=LABEL_EPOCHS, lr=LABEL_RATE):
    """The same layer with two outputs a gene and a softmax: a generator of each epoch's state.

    x (n, 2D) standardised, label (n, G) 0, 1 or nan, both tensors; train, valid: rows. Yields a
    dict: epoch, loss (of the validation rows), weights (2D, G) and bias (G,) of the difference of
    the two outputs, which is the log odds of label 1 and all that their softmax depends on.
    [HistCode Results: "replaced the output layer by two nodes and used softmax"]
    The first state is untrained: weights 0, bias the log odds in the training rows. Then Adam on
    all training rows at once. [ours]
    """
    known = ~label.isnan()
    target = label.nan_to_num()
    n = known[train].sum(0).clamp(min=1)  # (G,)
    share = target[train].sum(0) / n
    least = 1 / (2 * n)
    layer = nn.Linear(x.shape[1], label.shape[1], device=x.device)
    nn.init.zeros_(layer.weight)
    layer.bias.data = share.clamp(least, 1 - least).logit()
    optimizer = torch.optim.Adam(layer.parameters(), lr)

    def loss(rows):
        log_odds = layer(x[rows])
        count = known[rows].float()
        error = F.binary_cross_entropy_with_logits(log_odds, target[rows], count, reduction="sum")
        return error / count.sum().clamp(min=1)

    for epoch in range(epochs + 1):
        if epoch:
            optimizer.zero_grad()
            loss(train).backward()
            optimizer.step()
        with torch.no_grad():
            error = loss(valid).item()
        weights, bias = layer.weight.detach().T, layer.bias.detach()
        yield {"epoch": epoch, "loss": error, "weights": weights, "bias": bias}


def judge_genes(prediction, y, rng):
    """How well each gene is predicted: a dict of (G,) arrays. prediction, y (n, G), nan unknown.

    n patients; r, rho: Pearson's and Spearman's correlation; p: the one-sided p of r, as if
    it were of one sample [ours]; baseline: r of random predictions. Of the prediction against those
    (see stats.against_baseline): location_p as the paper words it, error_p of the absolute errors,
    and better, 1 where its errors are the smaller. bh, location_bh, error_bh: the three p after
    Benjamini-Hochberg over the genes.
    [HistCode Results, Differential gene expression prediction, Fig. 4]
    """
    names = ("r", "rho", "baseline", "location_p", "error_p", "better")
    out = {name: np.full(y.shape[1], np.nan) for name in names}
    for rows, genes in known_alike(y):
        if len(rows) < stats.MIN_R:
            continue
        block = np.ix_(rows, genes)
        truth = y[block]
        guess = prediction[block]
        random = stats.random_baseline(truth, rng)
        against = stats.against_baseline(guess, truth, random)
        found = (
            stats.pearson(guess, truth),
            stats.spearman(guess, truth),
            stats.pearson(random, truth),
            against["p"],
            against["error_p"],
            against["better"],
        )
        for name, values in zip(names, found, strict=True):
            out[name][genes] = values
    out["n"] = (~np.isnan(y)).sum(0)
    out["p"] = stats.pearson_p(out["r"], out["n"])
    out["bh"] = stats.benjamini_hochberg(out["p"])
    out["location_bh"] = stats.benjamini_hochberg(out["location_p"])
    out["error_bh"] = stats.benjamini_hochberg(out["error_p"])
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


# ---- Where on the slide  [HistCode Results, Interpretability and spatial localization] -----------


def end_contributions(h, a, weights):
    """What each tile adds to a gene's prediction, (T,): with the bias they sum to it. [ours]

    h (T, D), a (T,) attention, weights (2D,) of the gene. nan: the tile is in neither end.
    The paper's maps of a gene show "attention scores ... derived from the differential expression
    prediction models", but its linear layer has none.
    """
    out = np.full(len(h), np.nan)
    for rows, half in zip(ends_of(a), np.split(weights, 2), strict=True):
        tiles = np.asarray(h[rows], np.float64)
        out[rows] = tiles @ half / len(rows)
    return out


def scale_to_one(a):
    """Attention (T,) from 0, the lowest tile, to 1, the highest; 0 where all are equal. [ours]

    The paper says "normalization of attention scores", not which.
    """
    span = np.ptp(a) or 1
    return (a - a.min()) / span


def dice(a, b):
    """2 |A and B| / (|A| + |B|) of two masks: a map against a pathologist's outline. [ours]"""
    size = a.sum() + b.sum()
    return 2 * (a & b).sum() / max(size, 1)
