"""HE2RNA's last layer and top-k mean at once: exact, in a fraction of the time and memory. [ours]

    model = he2rna.HE2RNA(D, G, head=top_k_head)

The scores of 8,000 tiles for 30,839 genes fill 1 GB, and training keeps several copies. But a tile
that is not among the k highest of a gene has no gradient, so it need not be kept. Three cases:

no gradient    Scores of a block of genes are sorted once; their weighted mean over the ranks is the
               mean over all k of the list (`all_k_head`).
k >= T         The mean of all scores is the score of the mean tile.
k < T          Of the scores of a block of genes only the numbers of the k highest tiles are kept
               (`TopKHead`). Backward, let M (G, N) hold 1/k of the incoming gradient at each chosen
               tile and 0 elsewhere. Then dW = M h and dh = M' W. Where k is far below T, M is
               sparse, and both products are sums of a few rows. Else M is filled, a block of genes
               at a time, for two matrix products.

Between tiles of exactly equal score either may be chosen. Letters are he2rna.py's, and N the tiles
of all slides of the batch end to end, g the genes of a block.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn.functional import embedding_bag

import he2rna
from lab.fast.products import product

BLOCK_SCORES = 2**23  # scores held at a time, 32 MB; 2 ** 22 to 24 take the same time      [ours]

# Gradients by gathering tiles where k is below this share of T, else by products. On a core they
# take 4.1 and 5.3 s at k = 1,000 of 8,000, 8.5 and 5.3 at 2,000; .5 and 1.0 at 10 of 100, 3.0 and
# 1.0 at 50. The GPU's is reckoned from its bandwidth. [ours]
GATHER = {"cpu": 1 / 5, "cuda": 1 / 50}

# bfloat16 chooses tiles where k + 36 < T / 20: they are scored again, which must cost less. Of
# 8,000 tiles it saves 1.1 s of a core; scoring 200 again takes .6, scoring 500 takes 1.4. [ours]
RESCORE_TILES, RESCORE_SHARE = 36, 1 / 20

THREADS_PAY = 2**17  # scores that several threads sort sooner: they take .5 ms to start    [ours]


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
    return layer(torch.stack(means))


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
        for b, of_slide in enumerate(scores.split(sizes, 1)):
            ranked = ascending(of_slide)
            prediction[b, g] = ranked @ weights[b]
    return prediction.add_(bias)  # which ranks nothing


class TopKHead(torch.autograd.Function):
    """Tiles end to end h (N, H), weight (G, H), bias (G,), sizes of the slides -> (B, G)."""

    @staticmethod
    def forward(ctx, h, weight, bias, sizes, k, precision):
        number = torch.int16 if len(h) < 2**15 else torch.int32
        rounded = None
        if precision == "bfloat16" and k + RESCORE_TILES < max(sizes) * RESCORE_SHARE:
            rounded = (h - h.mean(0)).bfloat16()  # what all tiles share does not rank them
        prediction = h.new_empty(len(sizes), len(weight))
        kept = []
        for g in gene_blocks(len(weight), len(h)):
            if rounded is None:
                scores = product(weight[g], h.T)  # (g, N)
            else:
                scores = (weight[g].bfloat16() @ rounded.T).float()
            first = 0
            for b, of_slide in enumerate(scores.split(sizes, 1)):
                last = first + sizes[b]
                tiles = top_k_tiles(of_slide, min(k, sizes[b]))  # (g, k)
                if rounded is None:
                    best = of_slide.gather(1, tiles.long())
                    prediction[b, g] = best.mean(1)
                else:  # float32 again, of the chosen tiles alone
                    mean = embedding_bag(tiles, h[first:last], mode="mean")  # (g, H)
                    prediction[b, g] = (mean * weight[g]).sum(1)
                kept.append((tiles + first).to(number))
                first = last
        ctx.save_for_backward(h, weight)
        ctx.kept = kept
        ctx.slides = len(sizes)
        ctx.gather = k < max(sizes) * GATHER[h.device.type]
        return prediction.add_(bias)  # which ranks nothing

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # (B, G)
        h, weight = ctx.saved_tensors
        dh = torch.zeros_like(h)
        dweight = torch.empty_like(weight)
        add_gradients = by_gathering if ctx.gather else by_products
        kept = iter(ctx.kept)
        for g in gene_blocks(len(weight), len(h)):
            chosen, shares = [], []
            for b in range(ctx.slides):
                of_slide = next(kept)  # (g, k)
                chosen.append(of_slide)
                each = grad[b, g, None] / of_slide.shape[1]  # (g, 1)
                shares.append(each.expand(of_slide.shape))
            tiles = torch.cat(chosen, 1).int()  # where M is not zero, and
            share = torch.cat(shares, 1)  # its values there
            add_gradients(tiles, share, h, weight[g], dh, dweight[g])
        return dh, dweight, grad.sum(0), None, None, None


def by_gathering(tiles, share, h, weight, dh, dweight):
    """dweight = M h and dh += M' weight, as sums of the rows that count."""
    dweight.copy_(embedding_bag(tiles, h, per_sample_weights=share, mode="sum"))
    tile, order = tiles.flatten().sort(stable=True)
    every = torch.arange(len(h), dtype=torch.int32, device=h.device)
    start = torch.searchsorted(tile, every, out_int32=True)  # of each tile, its genes
    genes = (order // tiles.shape[1]).int()
    share = share.flatten()[order]
    dh += embedding_bag(genes, weight, start, mode="sum", per_sample_weights=share)


def by_products(tiles, share, h, weight, dh, dweight):
    """The same as two matrix products."""
    m = h.new_zeros(len(tiles), len(h))  # (g, N)
    m.scatter_(1, tiles.long(), share)
    dweight.copy_(product(m, h))
    dh += product(m.T, weight)


def gene_blocks(n_genes, n_tiles):
    """Slices of genes whose scores of all tiles are at most BLOCK_SCORES: so memory is bounded."""
    size = max(1, BLOCK_SCORES // n_tiles)
    starts = range(0, n_genes, size)
    return [slice(g, min(g + size, n_genes)) for g in starts]


def top_k_tiles(scores, k):
    """Which tiles are the k highest of each gene, in no order: scores (g, T) -> (g, k) int32."""
    if scores.is_cuda:
        return scores.topk(k, dim=1, sorted=False).indices.int()

    def highest(rows):
        if k == 1:  # a sixth of the time
            return rows.argmax(1)[:, None].astype(np.int32)
        order = np.argpartition(rows, -k, axis=1)
        return order[:, -k:].astype(np.int32)

    return by_rows(highest, scores)


def ascending(scores):
    """Each row sorted: (g, T) -> (g, T)."""
    if scores.is_cuda:
        return scores.sort(1).values
    return by_rows(np.sort, scores)


def by_rows(function, scores):
    """A numpy function of the rows of a CPU tensor, over torch's threads where that pays.

    numpy's sort and partition use the vector unit. A gene of 8,000 tiles takes them 12 and 16 µs,
    and torch's 80 and 440.
    """
    threads = torch.get_num_threads() if scores.numel() > THREADS_PAY else 1
    if threads == 1:
        return torch.from_numpy(function(scores.numpy()))
    parts = [part.numpy() for part in scores.chunk(threads)]
    with ThreadPoolExecutor(threads) as pool:
        done = list(pool.map(function, parts))
    return torch.from_numpy(np.concatenate(done))
