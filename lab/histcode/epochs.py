"""The tiles of an epoch of pretraining: read slide by slide, used shuffled over slides.

data, of all functions: a dict of paths, coords [(n, 2)], tiles [edge in level-0 px] and stains (or
None) of each slide, and px, the edge of a tile as it is read (lab/histcode/tiles.py makes it).
"""

from functools import partial

import numpy as np
import torch

import histcode
import tiling
from lab.cohort.slides import open_slide
from lab.files import InputError
from lab.progress import counted, ordered_map

READ_TILES = 64  # of one slide, read in one go [ours]


def choose_tiles(counts, per_slide, seed, epoch):
    """(N, 2) slide and tile, in the order of reading.

    Slides are shuffled. Of slide s, per_slide[s] random ones of its counts[s] tiles are taken.
    """
    rng = np.random.default_rng([seed, epoch])
    chosen = []
    for s in rng.permutation(len(counts)):
        tiles = np.sort(rng.permutation(counts[s])[: per_slide[s]])
        chosen.append(np.stack([np.full(len(tiles), s), tiles], 1))
    return np.concatenate(chosen)


def mixed_order(n, pool, rng):
    """Order (n,) in which things that are read one after another leave a pool of limited size.

    A random one of those in the pool leaves, and the next one read takes its place. It is a whole
    shuffle where the pool holds all.
    """
    held = np.arange(min(pool, n))
    order = np.empty(n, np.int64)
    picks = rng.random(n)
    for i in range(n):
        size = min(len(held), n - i)
        j = int(picks[i] * size)
        order[i] = held[j]
        following = i + len(held)
        held[j] = following if following < n else held[size - 1]
    return order


def whole(read, path):
    """What a thread has read of a slide; InputError if it can't be read to its end."""
    if isinstance(read, Exception):
        raise InputError(f"{path} can't be read to its end ({read}): take it out of samples.csv")
    return read


def pieces_of(chosen, rows):
    """Rows of chosen (N, 2) in the order of reading, cut into pieces of one slide each."""
    rows = np.sort(rows)
    cuts = np.flatnonzero(np.diff(chosen[rows, 0])) + 1
    pieces = []
    for part in np.split(rows, cuts):
        pieces += [part[i : i + READ_TILES] for i in range(0, len(part), READ_TILES)]
    return pieces


def read_piece(data, chosen, rows):
    """Tiles (len(rows), px, px, 3) uint8 of one slide, stains normalised where data has any."""
    s = chosen[rows[0], 0]
    slide, edge = open_slide(data["paths"][s]), data["tiles"][s]
    coords = data["coords"][s][chosen[rows, 1]]
    tiles = []
    for start, end in tiling.tile_runs(coords, edge):
        read = tiling.read_tiles(slide, coords[start:end], edge, data["px"])
        tiles.append(tiling.macenko(read, data["stains"][s])[0])
    return np.concatenate(tiles)


def read_pieces(data, chosen, rows, workers):
    """Yield (rows, tiles) of each piece; threads read ahead."""
    read = partial(read_piece, data, chosen)
    for piece, tiles in ordered_map(read, pieces_of(chosen, rows), workers):
        yield piece, whole(tiles, data["paths"][chosen[piece[0], 0]])


def read_batches(data, chosen, order, batch, share=(0, 1), workers=1):
    """Yield this process's part of each batch, (B / processes, px, px, 3) uint8.

    order: rows of chosen (N, 2), as they are used; what does not fill a batch is left out. share:
    rank and number of processes. The pixels depend on neither share nor workers.
    """
    rank, processes = share
    steps = len(order) // batch
    mine = order[: steps * batch].reshape(steps, processes, -1)[:, rank]  # (steps, B / processes)
    pieces = read_pieces(data, chosen, mine.ravel(), workers)
    held = {}

    def put_together(rows):
        while not all(row in held for row in rows):
            for row, tile in zip(*next(pieces), strict=True):
                held[row] = tile.copy()  # the others of its piece can go
        return np.stack([held.pop(row) for row in rows])

    for _, tiles in ordered_map(put_together, mine, 1):
        if isinstance(tiles, Exception):
            raise tiles
        yield tiles


class Reader:
    """views(epoch) of a cohort's tiles, as histcode.pretrain_epochs takes them.

    per_slide tiles of each slide are drawn anew each epoch, and at most `pool` are held to be
    shuffled. batch: tiles of a step over all processes; share: rank and number of processes.
    """

    def __init__(self, data, *, per_slide, batch, view_px, pool, seed, device, share, workers):
        self.data = data
        self.counts = np.array([len(coords) for coords in data["coords"]])
        self.per_slide = np.minimum(self.counts, per_slide)
        self.batch = batch
        self.view_px = view_px
        self.pool = pool
        self.seed = seed
        self.device = device
        self.share = share
        self.workers = workers
        self.slides_at = []  # names of the slides of the last batch

    def tiles_of_epoch(self):
        return int(self.per_slide.sum()) // self.batch * self.batch

    def views(self, epoch):
        """Yield both views of each batch."""
        rank, processes = self.share
        for step, tiles in self.batches(epoch, self.per_slide, self.batch):
            key = self.seed, epoch, step
            yield histcode.two_views(tiles, self.view_px, *key, part=rank, parts=processes)

    def bank_views(self, percent, size):
        """Yield one view of each batch of a percentage of each slide's tiles, `size` at most."""
        share = min(percent / 100, size / self.counts.sum())
        per_slide = np.ceil(share * self.counts).astype(int)
        most = min(size, per_slide.sum())
        rank, processes = self.share
        batch = min(self.batch, most // processes * processes)
        for step, tiles in self.batches(0, per_slide, batch, most):
            key = self.seed, 0, step, 0
            yield histcode.view_of(tiles, self.view_px, *key, part=rank, parts=processes)

    def batches(self, epoch, per_slide, batch, most=None):
        """Yield (step, tiles): every draw comes from (seed, epoch)."""
        chosen = choose_tiles(self.counts, per_slide, self.seed, epoch)
        rng = np.random.default_rng([self.seed, epoch, 1])
        order = mixed_order(len(chosen), self.pool, rng)[:most]
        read = read_batches(self.data, chosen, order, batch, self.share, self.workers)
        if self.share[0] == 0:
            name = f"epoch {epoch}" if epoch else "bank"
            read = counted(name, read, "batches", len(order) // batch)
        for step, tiles in enumerate(read):
            slides = chosen[order[step * batch : (step + 1) * batch], 0]
            self.slides_at = [self.data["slides"][s] for s in np.unique(slides)]
            yield step, torch.from_numpy(tiles).to(self.device)
