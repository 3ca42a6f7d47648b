"""lab.fast.topk"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn
from torch.nn.functional import embedding_bag

import he2rna
import tiling

KS_SUPERTILES = (1, 2, 5, 10, 20, 50, 100)  #     [HE2RNA Methods, Model architecture]


BLOCK_SCORES = 2**23  # scores held at a time, 32 MB: 2 ** 22 to 24 take the same time [ours]


GATHER = {
    "cpu": 1 / 3,
    "cuda": 1 / 50,
}  # gradients by gathering tiles where k < this share of T, else by products [ours];
#   steps on 2 cores: k = 2,000 of 8,000 8.4 and 9.3 s, k = 50 of 100 3.0 and 2.3 s; the GPU's reckoned from bandwidth


RESCORE = (
    36,
    1 / 5,
)  # bfloat16 chooses tiles where k + 36 < T / 5: they are scored again, which must cost less [ours]


HIDDEN = (1024, 1024)  # neurons of the hidden layers             [HE2RNA code]


DROPOUT = 0.25  # between consecutive layers               [HE2RNA code]


# The same two means without the (B, T, G) scores. [ours] A tile that is not among the k highest has no gradient, so:
#   forward    scores of a block of genes, of which only the *numbers* of the k highest tiles are kept (top_k_tiles);
#   backward   with M (G, N), 1/k of the incoming gradient at each chosen tile and 0 elsewhere, dW = M h and dh = M' W.
# k << T: M is sparse, and both products are sums of a few rows (embedding_bag). Else M is rebuilt, a block of genes at a
# time, for two matrix products. k >= T: the mean of the scores is the score of the mean. All three are exact.
def by_rows(function, scores):
    """A numpy function of the rows of a CPU tensor, spread over torch's threads where that pays (they take .5 ms to start).
    numpy's sort and partition use the vector unit: 12 and 16 µs for a gene of 8,000 tiles, where torch's take 80 and 440."""
    n = torch.get_num_threads() if scores.numel() > 2**17 else 1
    if n == 1:
        return torch.from_numpy(function(scores.numpy()))
    with ThreadPoolExecutor(n) as pool:
        return torch.from_numpy(
            np.concatenate(list(pool.map(lambda rows: function(rows.numpy()), scores.chunk(n))))
        )


def top_k_tiles(scores, k):
    """Which tiles are the k highest of each gene, in no order: scores (g, n) -> (g, k) int32."""
    if scores.is_cuda:
        return scores.topk(k, dim=1, sorted=False).indices.int()
    return by_rows(lambda rows: np.argpartition(rows, -k, axis=1)[:, -k:].astype(np.int32), scores)


def gene_blocks(n_genes, n_tiles):
    """Slices of genes whose scores of all tiles are at most BLOCK_SCORES numbers: what bounds the memory."""
    size = max(1, BLOCK_SCORES // n_tiles)
    return [slice(g, min(g + size, n_genes)) for g in range(0, n_genes, size)]


class TopKHead(torch.autograd.Function):
    """top_k_mean(h @ weight.T + bias, k) of the slides' tiles laid end to end: h (N, H), weight (G, H), bias (G,) -> (B, G).

    sizes: tiles of each slide, summing to N. Value and gradients are those of the direct way; between tiles of exactly
    equal score either may be chosen. precision "bfloat16": tiles are chosen by rounded scores, their mean stays float32.
    """

    @staticmethod
    def forward(ctx, h, weight, bias, sizes, k, precision):
        prediction, kept, number = (
            h.new_empty(len(sizes), len(weight)),
            [],
            torch.int16 if len(h) < 2**15 else torch.int32,
        )
        half = precision == "bfloat16" and k + RESCORE[0] < max(sizes) * RESCORE[1]
        if half:  # what all tiles share does not rank them
            rounded = (h - h.mean(0)).bfloat16()
        for g in gene_blocks(len(weight), len(h)):  # scores (g, N)
            scores = (
                (weight[g].bfloat16() @ rounded.T).float()
                if half
                else torch.addmm(bias[g, None], weight[g], h.T)
            )
            first = 0
            for b, (n, part) in enumerate(zip(sizes, scores.split(sizes, 1))):
                tiles = top_k_tiles(part, min(k, n))  # (g, k)
                if half:  # float32 again, of the chosen alone
                    chosen = embedding_bag(tiles, h[first : first + n], mode="mean")  # (g, H)
                    prediction[b, g] = (chosen * weight[g]).sum(1) + bias[g]
                else:
                    prediction[b, g] = part.gather(1, tiles.long()).mean(1)
                kept.append((tiles + first).to(number))
                first += n
        ctx.save_for_backward(h, weight)
        ctx.kept, ctx.sizes, ctx.k = kept, sizes, k
        return prediction

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # (B, G)
        (h, weight), kept, slides = ctx.saved_tensors, iter(ctx.kept), range(len(ctx.sizes))
        dh, dweight = torch.zeros_like(h), torch.empty_like(weight)
        every = torch.arange(len(h), dtype=torch.int32, device=h.device)
        for g in gene_blocks(len(weight), len(h)):
            blocks = [next(kept) for _ in slides]
            share = torch.cat(
                [(grad[b, g, None] / t.shape[1]).expand(t.shape) for b, t in zip(slides, blocks)], 1
            )
            tiles = torch.cat(blocks, 1).int()  # (g, K), the non-zeros of M; share their values
            if ctx.k < max(ctx.sizes) * GATHER[h.device.type]:
                dweight[g] = embedding_bag(
                    tiles, h, per_sample_weights=share, mode="sum"
                )  # of each gene, its tiles
                tile, order = tiles.flatten().sort(stable=True)
                start = torch.searchsorted(tile, every, out_int32=True)  # of each tile, its genes
                dh += embedding_bag(
                    (order // tiles.shape[1]).int(),
                    weight[g],
                    start,
                    mode="sum",
                    per_sample_weights=share.flatten()[order],
                )
            else:
                m = h.new_zeros(len(tiles), len(h)).scatter_(1, tiles.long(), share)  # (g, N)
                torch.mm(m, h, out=dweight[g])
                dh.addmm_(m.T, weight[g])
        return dh, dweight, grad.sum(0), None, None, None


def top_k_head(h, mask, layer, k, precision="float32"):
    """top_k_mean(layer(h), mask, k), exactly, in a fraction of its time and memory. h (B, T, H), mask (B, T) -> (B, G)."""
    sizes, h = (
        mask.sum(1).tolist(),
        h.flatten(0, 1) if mask.all() else h[mask],
    )  # (N, H): real tiles
    if k >= max(sizes):
        return layer(torch.stack([tiles.mean(0) for tiles in h.split(sizes)]))
    return TopKHead.apply(h, layer.weight, layer.bias, sizes, k, precision)


def all_k_head(h, mask, layer, ks):
    """The mean over ks of top_k_mean(layer(h), mask, k): one pass and one sort for all k. Without gradient. (B, G)"""
    sizes, h = mask.sum(1).tolist(), h.flatten(0, 1) if mask.all() else h[mask]
    weights = [he2rna.rank_weights(n, ks).flip(0).to(h) for n in sizes]  # the highest comes last
    prediction = h.new_empty(len(sizes), len(layer.weight))
    for g in gene_blocks(len(layer.weight), len(h)):
        scores = torch.addmm(layer.bias[g, None], layer.weight[g], h.T)  # (g, N)
        for b, part in enumerate(scores.split(sizes, 1)):
            ranked = (
                part.sort(1).values
                if h.is_cuda
                else by_rows(lambda rows: np.sort(rows, axis=1), part)
            )
            prediction[b, g] = ranked @ weights[b]
    return prediction


class HE2RNA(nn.Module):
    """A multilayer perceptron on every tile, then the mean of the k best tiles of each gene.

    n_features D, n_genes G; hidden layers with ReLU, dropout between consecutive layers; ks: the list k is drawn from.
    The paper's "1D convolutions of kernel size 1" is the same linear layer on every tile. `precision`: see TopKHead.
    code: the flipped ones of CHOICES, of which padding, relu and k are the model's; pad_to: rows the authors pad a bag to.
    [HE2RNA Methods, Model architecture; hidden sizes and dropout: HE2RNA code]
    """

    def __init__(
        self,
        n_features,
        n_genes,
        hidden=HIDDEN,
        ks=KS_SUPERTILES,
        dropout=DROPOUT,
        precision="float32",
        code=(),
        pad_to=tiling.N_SUPERTILES,
    ):
        super().__init__()
        sizes = (n_features, *hidden, n_genes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.dropout, self.ks, self.precision = nn.Dropout(dropout), tuple(ks), precision
        self.code, self.pad_to = tuple(code), pad_to

    def representation(self, x):
        """x (..., D) -> the last hidden layer (..., H), what the genes are read from."""
        for layer in self.layers[:-1]:
            x = self.dropout(layer(x).relu())
        return x

    def tile_scores(self, x):
        """x (B, T, D) -> score of every tile for every gene (B, T, G)."""
        return self.layers[-1](self.representation(x))

    def forward(self, x, mask, k=None):
        """x (B, T, D), mask (B, T) -> slide-level prediction (B, G), in log10(1 + FPKM-UQ).

        Training: one k for all slides and genes of an iteration, drawn from ks (torch's generator) if not given; the paper's
        "selects a number k at every iteration and for every gene" can also be read as a k per gene [HE2RNA code: one k].
        Evaluation: the mean over all of ks, and its positive part where relu is flipped.
        """
        if not self.training and "relu" in self.code:
            return self.slide_scores(x, mask, k).relu()  # [HE2RNA code]
        return self.slide_scores(x, mask, k)

    def slide_scores(self, x, mask, k):
        """The slide-level means of forward, before a ReLU."""
        per_gene = self.training and k is None and "k" in self.code
        if self.training and k is None and not per_gene:
            k = self.ks[int(torch.randint(len(self.ks), ()))]
        if per_gene or "padding" in self.code:  # the direct way: slower, for these two alone
            mean = lambda s, k: (
                he2rna.padded_top_k_mean(s, mask, k, self.pad_to)
                if "padding" in self.code
                else he2rna.top_k_mean(s, mask, k)
            )
            scores = self.tile_scores(x)  # (B, T, G)
            if not per_gene:
                return torch.stack(
                    [mean(scores, k) for k in ([k] if k is not None else self.ks)]
                ).mean(0)
            drawn = torch.randint(len(self.ks), (scores.shape[2],)).to(
                x.device
            )  # (G,) a k for each gene
            out = torch.empty_like(scores[:, 0])  # (B, G)
            for i, k in enumerate(self.ks):
                out[:, drawn == i] = mean(scores[:, :, drawn == i], k)
            return out
        h, last = self.representation(x), self.layers[-1]  # (B, T, H)
        if k is not None:
            return top_k_head(h, mask, last, k, self.precision)
        if torch.is_grad_enabled():  # someone asks which tiles matter
            return torch.stack([top_k_head(h, mask, last, k) for k in self.ks]).mean(0)
        return all_k_head(h, mask, last, self.ks)
