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
from lab.histcode.tiles import unreadable
from lab.progress import counted, ordered_map

READ_TILES = 64  # of one slide, read in one go [ours]
POOL_BYTES = 2**31  # of tiles held to be shuffled over slides, over all processes [ours]


def choose_tiles(counts, per_slide, seed, epoch):
    """(N, 2) slide and tile, in the order of reading.

    Slides are shuffled. Of slide s, per_slide[s] random ones of its counts[s] tiles are taken.
    """
    rng = np.random.default_rng([seed, epoch])
    slides, tiles = [], []
    for s in rng.permutation(len(counts)):
        drawn = rng.permutation(counts[s])[: per_slide[s]]
        tiles.append(np.sort(drawn))
        slides.append(np.full(len(drawn), s))
    return np.stack([np.concatenate(slides), np.concatenate(tiles)], 1)


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
    slide = open_slide(data["paths"][s])
    edge, stains = data["tiles"][s], data["stains"][s]
    coords = data["coords"][s][chosen[rows, 1]]
    tiles = []
    for start, end in tiling.tile_runs(coords, edge):
        read = tiling.read_tiles(slide, coords[start:end], edge, data["px"])
        tiles.append(tiling.macenko(read, stains)[0])
    return np.concatenate(tiles)


def read_pieces(data, chosen, pieces, workers):
    """Yield (rows, tiles) of each piece; threads read ahead."""
    read = partial(read_piece, data, chosen)
    for piece, tiles in ordered_map(read, pieces, workers):
        if isinstance(tiles, Exception):
            raise unreadable(data["paths"][chosen[piece[0], 0]], tiles)
        yield piece, tiles


def read_batches(data, chosen, order, batch, share=(0, 1), workers=1):
    """Yield this process's part of each batch, (B / processes, px, px, 3) uint8.

    order: rows of chosen (N, 2), as they are used; what does not fill a batch is left out. share:
    rank and number of processes. The pixels depend on neither share nor workers.
    """
    rank, processes = share
    steps = len(order) // batch
    parts = order[: steps * batch].reshape(steps, processes, -1)
    mine = parts[:, rank]  # (steps, B / processes)
    wanted = pieces_of(chosen, mine.ravel())
    pieces = read_pieces(data, chosen, wanted, workers)
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

    o, the command's options: tiles_per_slide (drawn anew each epoch), batch (over all processes),
    tile_px, view_px, seed, share (rank, processes), workers.
    """

    def __init__(self, data, o, device):
        self.data = data
        self.o = o
        self.device = device
        self.counts = np.array([len(coords) for coords in data["coords"]])
        self.per_slide = np.minimum(self.counts, o.tiles_per_slide)
        self.tiles_of_epoch = int(self.per_slide.sum()) // o.batch * o.batch
        self.pool = max(2, POOL_BYTES // (3 * o.tile_px**2))
        self.slides_at = []  # names of the slides of the last batch

    def views(self, epoch):
        """Yield both views of each batch."""
        part, parts = self.o.share
        for step, tiles in self.batches(epoch, self.per_slide, self.o.batch):
            key = self.o.seed, epoch, step
            yield histcode.two_views(tiles, self.o.view_px, *key, part=part, parts=parts)

    def bank_views(self):
        """Yield one view of each batch of --bank-percent of each slide's tiles."""
        part, parts = self.o.share
        share = min(self.o.bank_percent / 100, self.o.bank_size / self.counts.sum())
        per_slide = np.ceil(share * self.counts).astype(int)
        most = min(self.o.bank_size, per_slide.sum())
        batch = min(self.o.batch, most // parts * parts)
        for step, tiles in self.batches(0, per_slide, batch, most):
            key = self.o.seed, 0, step, 0
            yield histcode.view_of(tiles, self.o.view_px, *key, part=part, parts=parts)

    def batches(self, epoch, per_slide, batch, most=None):
        """Yield (step, tiles); every draw comes from (seed, epoch)."""
        chosen = choose_tiles(self.counts, per_slide, self.o.seed, epoch)
        rng = np.random.default_rng([self.o.seed, epoch, 1])
        order = mixed_order(len(chosen), self.pool, rng)[:most]
        read = read_batches(self.data, chosen, order, batch, self.o.share, self.o.workers)
        if self.o.share[0] == 0:
            name = f"epoch {epoch}" if epoch else "bank"
            read = counted(name, read, "batches", len(order) // batch)
        for step, tiles in enumerate(read):
            rows = order[step * batch : (step + 1) * batch]
            slides = np.unique(chosen[rows, 0])
            self.slides_at = [self.data["slides"][s] for s in slides]
            yield step, torch.from_numpy(tiles).to(self.device)
