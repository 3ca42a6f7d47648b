"""HE2RNA's last layer and top-k mean at once: exact, in a fraction of the time and memory. [ours]

    model = he2rna.HE2RNA(D, G, head=top_k_head)

The scores of 8,000 tiles for 30,839 genes fill 1 GB, and training keeps several copies. But a tile
that is not among the k highest of a gene has no gradient, so it need not be kept. Three cases:

no gradient    Scores of a block of genes are sorted once; their weighted mean over the ranks is the
               mean over all k of the list (`all_k_head`).
k >= T         The mean of all scores is the score of the mean tile.
k < T          Of the scores of a block of genes only which tiles are the k highest is kept: a bit
               a score (`TopKHead`). Backward, let M (G, N) hold 1/k of the incoming gradient at
               each chosen tile and 0 elsewhere. Then dW = M h and dh = M' W. Where k is far below
               T, M is sparse, and both products are sums of a few rows. Else M is filled, a block
               of genes at a time, for two matrix products.

Between tiles of exactly equal score either may be chosen. Letters are he2rna.py's, and N the tiles
of all slides of the batch end to end, K those chosen of all slides, g the genes of a block.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import embedding_bag

import he2rna
from lab.fast.products import Affine, product

BLOCK_SCORES = 2**23  # scores held at a time, 32 MB; 2 ** 22 takes as long, 2 ** 21 longer  [ours]

# Gradients by gathering tiles where k is below this share of T, else by products. Of 16 slides of
# 100 tiles a core takes .12, .28, .62 s at k = 2, 5, 10, and 1.0 by products. The GPU's is reckoned
# from its bandwidth. [ours]
GATHER = {"cpu": 1 / 5, "cuda": 1 / 50}

# bfloat16 chooses tiles where k + 36 is below this share of T: they are scored again, which must
# cost less. Of 8,000 tiles two cores save .45, .16, .03 s of 2.7 at k = 10, 20, 50, and lose .05 at
# 200. The GPU's was reckoned. [ours]
RESCORE_TILES, RESCORE_SHARE = 36, {"cpu": 1 / 80, "cuda": 1 / 20}

SCRATCH = 2**18  # scores that are ranked in the cache, in memory that is used again      [ours]
THREADS_PAY = 2**20  # scores that several threads rank sooner: they take .5 ms to start    [ours]


def top_k_head(h, mask, layer, k, precision="float32"):
    """he2rna.top_k_mean(layer(h), mask, k), and of several k the mean. (B, G)

    h (B, T, H) the last hidden layer, mask (B, T); layer: that of the genes. precision "bfloat16":
    in training, tiles are chosen by rounded scores, and their mean is taken in float32.
    """
    ks = (k,) if isinstance(k, int) else k
    if not torch.is_grad_enabled():
        return all_k_head(h, mask, layer, ks)
    tiles, sizes = end_to_end(h, mask)
    each = [one_k_head(tiles, sizes, layer, k, precision) for k in ks]
    return torch.stack(each).mean(0)


def end_to_end(h, mask):
    """The real tiles of all slides (N, H), and how many each slide has."""
    tiles = h.flatten(0, 1) if mask.all() else h[mask]
    return tiles, mask.sum(1).tolist()


def one_k_head(tiles, sizes, layer, k, precision):
    if k < max(sizes):
        return TopKHead.apply(tiles, layer.weight, layer.bias, sizes, k, precision)
    means = [of_slide.mean(0) for of_slide in tiles.split(sizes)]
    return Affine.apply(torch.stack(means), layer.weight, layer.bias)


def all_k_head(h, mask, layer, ks):
    """The mean over ks of top_k_mean(layer(h), mask, k), by one sort. No gradient. (B, G)"""
    tiles, sizes = end_to_end(h, mask)
    weight, bias = layer.weight, layer.bias
    weights = []
    for n in sizes:
        falling = he2rna.rank_weights(n, ks)
        weights.append(falling.flip(0).to(h))  # the highest score comes last
    prediction = h.new_empty(len(sizes), len(weight))
    for g in gene_blocks(len(weight), len(tiles)):
        scores = product(weight[g], tiles.T)  # (g, N)
        sort_slides(scores, sizes)
        for b, ranked in enumerate(scores.split(sizes, 1)):
            prediction[b, g] = ranked @ weights[b]
    return prediction.add_(bias)  # which ranks nothing


class TopKHead(torch.autograd.Function):
    """Tiles end to end h (N, H), weight (G, H), bias (G,), sizes of the slides -> (B, G)."""

    @staticmethod
    def forward(ctx, h, weight, bias, sizes, k, precision):
        taken = [min(k, n) for n in sizes]
        rounded = None
        most = max(sizes) * RESCORE_SHARE[h.device.type]
        if precision == "bfloat16" and k + RESCORE_TILES < most:
            rounded = (h - h.mean(0)).bfloat16()  # what all tiles share does not rank them
        prediction = h.new_empty(len(sizes), len(weight))
        kept = []
        for g in gene_blocks(len(weight), len(h)):
            if rounded is None:
                scores = product(weight[g], h.T)  # (g, N)
            else:
                scores = (weight[g].bfloat16() @ rounded.T).float()
            means, chosen = highest(scores, sizes, taken)
            if rounded is not None:  # float32 again, of the chosen tiles alone
                means = scored_again(numbers(chosen, len(h)), taken, h, weight[g])
            prediction[:, g] = means.T
            kept.append(chosen)
        ctx.save_for_backward(h, weight)
        ctx.kept, ctx.sizes, ctx.taken = kept, sizes, taken
        ctx.gather = k < max(sizes) * GATHER[h.device.type]
        return prediction.add_(bias)  # which ranks nothing

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # (B, G)
        h, weight = ctx.saved_tensors
        dh = torch.zeros_like(h)
        dweight = torch.empty_like(weight)
        share = (grad / grad.new_tensor(ctx.taken)[:, None]).T.contiguous()  # (G, B)
        blocks = gene_blocks(len(weight), len(h))
        rows = 0 if ctx.gather else blocks[0].stop
        m = h.new_empty(rows, len(h))  # of every block: new pages take time
        for g, chosen in zip(blocks, ctx.kept, strict=True):
            if ctx.gather:
                tiles = numbers(chosen, len(h))
                by_gathering(tiles, of_tiles(share[g], ctx.taken), h, weight[g], dh, dweight[g])
            else:
                own = m[: len(chosen)]
                fill(own, chosen, share[g], ctx.sizes, ctx.taken)
                by_products(own, h, weight[g], dh, dweight[g])
        return dh, dweight, grad.sum(0), None, None, None


def scored_again(tiles, taken, h, weight):
    """Mean score of each slide's chosen tiles (g, K), in full precision -> (g, B)."""
    means = []
    for of_slide in tiles.split(taken, 1):
        mean = embedding_bag(of_slide, h, mode="mean")  # (g, H)
        means.append((mean * weight).sum(1))
    return torch.stack(means, 1)


def by_gathering(tiles, share, h, weight, dh, dweight):
    """dweight = M h and dh += M' weight, as sums of rows: tiles (g, K) where M is not 0, its values
    there share (g, K).
    """
    dweight.copy_(embedding_bag(tiles, h, per_sample_weights=share, mode="sum"))
    tile, order = tiles.flatten().sort(stable=True)
    every = torch.arange(len(h), dtype=torch.int32, device=h.device)
    start = torch.searchsorted(tile, every, out_int32=True)  # of each tile, its genes
    genes = (order // tiles.shape[1]).int()
    share = share.flatten()[order]
    dh += embedding_bag(genes, weight, start, mode="sum", per_sample_weights=share)


def by_products(m, h, weight, dh, dweight):
    """The same as two matrix products: m (g, N)."""
    dweight.copy_(product(m, h))
    dh += product(weight.T, m).T  # a tenth sooner than of m.T


def gene_blocks(n_genes, n_tiles):
    """Slices of genes whose scores of all tiles are at most BLOCK_SCORES: so memory is bounded."""
    size = max(1, BLOCK_SCORES // n_tiles)
    starts = range(0, n_genes, size)
    return [slice(g, min(g + size, n_genes)) for g in starts]


# ----- The k highest ------------------------------------------------------------------------------


def highest(scores, sizes, taken):
    """Of each gene and slide the mean of the `taken` highest scores, and which tiles these are.

    scores (g, N) -> (g, B), and on a CPU bits (g, N / 8) uint8, on a GPU numbers (g, K) int32.
    """
    if scores.is_cuda:
        return by_topk(scores, sizes, taken)
    parts = by_rows(partial(parted, sizes=sizes, taken=taken), scores)
    means, bits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return torch.from_numpy(means), torch.from_numpy(bits)


def by_topk(scores, sizes, taken):
    """`highest` on a GPU."""
    means, tiles, first = [], [], 0
    for of_slide, k in zip(scores.split(sizes, 1), taken, strict=True):
        best = of_slide.topk(k, dim=1, sorted=False)
        means.append(best.values.mean(1))
        tiles.append(best.indices.int() + first)
        first += of_slide.shape[1]
    return torch.stack(means, 1), torch.cat(tiles, 1)


def parted(scores, sizes, taken):
    """`highest` on a CPU, by numpy, whose partition of values takes half the time of that of
    places: the tiles are those that reach the k-th value.
    """
    means = np.empty((len(scores), len(sizes)), scores.dtype)
    bits = np.empty((len(scores), math.ceil(scores.shape[1] / 8)), np.uint8)
    step = max(1, SCRATCH // scores.shape[1])
    ranked = np.empty_like(scores[:step])
    chosen = np.empty(ranked.shape, bool)
    for first in range(0, len(scores), step):
        rows = scores[first : first + step]
        of_rows = slice(first, first + len(rows))
        ranked[: len(rows)] = rows
        for b, (part, k) in enumerate(zip(slices(sizes), taken, strict=True)):
            own = ranked[: len(rows), part]
            own.partition(sizes[b] - k)
            own[:, -k:].mean(1, out=means[of_rows, b])
            np.greater_equal(rows[:, part], own[:, -k, None], out=chosen[: len(rows), part])
        bits[of_rows] = np.packbits(chosen[: len(rows)], axis=1)
    odd = np.flatnonzero(np.bitwise_count(bits).sum(1, dtype=int) != sum(taken))
    if len(odd) > 0:
        bits[odd] = np.packbits(exactly(scores[odd], sizes, taken), axis=1)
    return means, bits


def exactly(scores, sizes, taken):
    """Which tiles are chosen where several share the k-th value, or a score is no number."""
    chosen = np.zeros(scores.shape, bool)
    for part, k in zip(slices(sizes), taken, strict=True):
        best = np.argpartition(scores[:, part], -k)[:, -k:]
        np.put_along_axis(chosen[:, part], best, True, 1)
    return chosen


def slices(sizes):
    """Where each slide's tiles lie among those of all."""
    return [slice(*ends) for ends in pairwise(np.cumsum([0, *sizes]))]


def numbers(chosen, n_tiles):
    """The numbers of the chosen tiles of each gene (g, K) int32, slide by slide."""
    if chosen.dtype != torch.uint8:
        return chosen
    places = np.flatnonzero(np.unpackbits(chosen.numpy(), axis=1, count=n_tiles).view(bool))
    return torch.from_numpy((places % n_tiles).astype(np.int32)).view(len(chosen), -1)


def of_tiles(share, taken):
    """What each slide's chosen tiles have (g, B), for each of them (g, K)."""
    return share.repeat_interleave(torch.tensor(taken, device=share.device), 1)


def fill(m, chosen, share, sizes, taken):
    """Let m (g, N) hold share (g, B) at the chosen tiles of each slide, and 0 elsewhere."""
    if chosen.dtype != torch.uint8:
        m.zero_().scatter_(1, chosen.long(), of_tiles(share, taken))
        return
    bits = np.unpackbits(chosen.numpy(), axis=1, count=m.shape[1])
    for b, part in enumerate(slices(sizes)):
        np.multiply(bits[:, part], share[:, b, None].numpy(), out=m.numpy()[:, part])


def sort_slides(scores, sizes):
    """Let each slide's scores of a gene ascend, in place: (g, N)."""
    if scores.is_cuda:
        for of_slide in scores.split(sizes, 1):
            of_slide.copy_(of_slide.sort(1).values)
        return

    def sort(rows):
        for part in slices(sizes):
            rows[:, part].sort()

    by_rows(sort, scores)


def by_rows(function, scores):
    """What a numpy function returns of a CPU tensor's rows: a list, of each of torch's threads.

    numpy's sort and partition use the vector unit: a gene of 8,000 tiles takes them 16 and 7 µs,
    and torch's 80 and 440.
    """
    threads = torch.get_num_threads() if scores.numel() > THREADS_PAY else 1
    if threads == 1:
        return [function(scores.numpy())]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, (rows.numpy() for rows in scores.chunk(threads))))
