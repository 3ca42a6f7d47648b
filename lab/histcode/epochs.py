"""The tiles of an epoch of pretraining: read slide by slide, used shuffled over slides or by slide.

data, of all functions: a dict of paths, coords [(n, 2)], tiles [edge in level-0 px] and stains (or
None) of each slide, and px, the edge of a tile as it is read (lab/histcode/tiles.py makes it).
"""

import math
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
FEWEST = 8  # tiles of a batch of one slide, which holds a multiple of it [ours]


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


def mixed_batches(chosen, batch, pool, rng):
    """Rows of chosen (N, 2) as batches of tiles of all slides; what does not fill one is left."""
    order = mixed_order(len(chosen), pool, rng)
    return [*order[: len(order) // batch * batch].reshape(-1, batch)]


def whole_part(batch):
    """What the size of a batch of one slide is a multiple of, whoever shares it."""
    return math.gcd(FEWEST, batch)


def sizes_by_slide(n, batch):
    """Sizes of the batches of a slide's n tiles: as few and as equal as whole parts can be.

    None for fewer tiles than FEWEST.
    """
    if n < min(FEWEST, batch):
        return []
    part = whole_part(batch)
    parts = np.arange(n // part)
    steps = math.ceil(len(parts) * part / batch)
    return [part * len(own) for own in np.array_split(parts, steps)]


def batches_by_slide(chosen, batch, pool, rng):
    """The same, each batch of one slide, slide after slide as in the authors' code.

    A slide of few tiles is a smaller batch; a last part that is not whole is left out. [ours]
    """
    batches = []
    ends = np.flatnonzero(np.diff(chosen[:, 0])) + 1
    for rows in np.split(np.arange(len(chosen)), ends):
        ends_of = np.cumsum(sizes_by_slide(len(rows), batch), dtype=int)
        order = rows[mixed_order(len(rows), pool, rng)]
        batches += np.split(order, ends_of)[:-1]
    return batches


BATCHES_FROM = {"all": mixed_batches, "slide": batches_by_slide}  # --batch-from


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


def read_batches(data, chosen, batches, share=(0, 1), workers=1):
    """Yield this process's part of each batch, (B / processes, px, px, 3) uint8.

    batches: of each the rows of chosen (N, 2), in the order of use. share: rank and number of
    processes. The pixels depend on neither share nor workers.
    """
    rank, processes = share
    mine = [rows.reshape(processes, -1)[rank] for rows in batches]
    wanted = pieces_of(chosen, np.concatenate(mine))
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
    batch_from, tile_px, view_px, seed, share (rank, processes), workers.
    """

    def __init__(self, data, o, device):
        self.data = data
        self.o = o
        self.device = device
        self.counts = np.array([len(coords) for coords in data["coords"]])
        self.per_slide = np.minimum(self.counts, o.tiles_per_slide)
        self.sizes = self.sizes_of_epoch()
        self.tiles_of_epoch = sum(self.sizes)
        self.pool = max(2, POOL_BYTES // (3 * o.tile_px**2))
        self.slides_at = []  # names of the slides of the last batch

    def sizes_of_epoch(self):
        """Tiles of each batch of an epoch."""
        if self.o.batch_from == "all":
            return [self.o.batch] * (int(self.per_slide.sum()) // self.o.batch)
        sizes = []
        for n in self.per_slide:
            sizes += sizes_by_slide(n, self.o.batch)
        return sizes

    def said(self):
        """The batches of an epoch in words."""
        if self.o.batch_from == "all":
            return f"batch {self.o.batch}"
        sizes = "–".join(str(size) for size in sorted({min(self.sizes), max(self.sizes)}))
        text = f"{len(self.sizes)} batches an epoch, each of {sizes} tiles of one slide"
        few = int((self.per_slide < min(FEWEST, self.o.batch)).sum())
        return text + (f" ({few} slides have too few tiles for one)" if few else "")

    def views(self, epoch):
        """Yield both views of each batch."""
        part, parts = self.o.share
        cut = BATCHES_FROM[self.o.batch_from]
        for step, tiles in self.batches(epoch, self.per_slide, self.o.batch, cut):
            key = self.o.seed, epoch, step
            yield histcode.two_views(tiles, self.o.view_px, *key, part=part, parts=parts)

    def bank_tiles(self):
        """--bank-percent of the tiles of each slide (n,), and how many negatives they make."""
        share = min(self.o.bank_percent / 100, self.o.bank_size / self.counts.sum())
        per_slide = np.ceil(share * self.counts).astype(int)
        return per_slide, int(min(self.o.bank_size, per_slide.sum()))

    def bank_views(self):
        """Yield one view of each batch of --bank-percent of each slide's tiles, mixed."""
        part, parts = self.o.share
        per_slide, most = self.bank_tiles()
        batch = min(self.o.batch, most // parts * parts)
        for step, tiles in self.batches(0, per_slide, batch, mixed_batches, most):
            key = self.o.seed, 0, step, 0
            yield histcode.view_of(tiles, self.o.view_px, *key, part=part, parts=parts)

    def batches(self, epoch, per_slide, batch, cut, most=None):
        """Yield (step, tiles); every draw comes from (seed, epoch). most: tiles of all batches."""
        chosen = choose_tiles(self.counts, per_slide, self.o.seed, epoch)
        rng = np.random.default_rng([self.o.seed, epoch, 1])
        batches = cut(chosen, batch, self.pool, rng)
        if most is not None:
            batches = batches[: most // batch]
        read = read_batches(self.data, chosen, batches, self.o.share, self.o.workers)
        if self.o.share[0] == 0:
            name = f"epoch {epoch}" if epoch else "bank"
            read = counted(name, read, "batches", len(batches))
        for step, tiles in enumerate(read):
            slides = np.unique(chosen[batches[step], 0])
            self.slides_at = [self.data["slides"][s] for s in slides]
            yield step, torch.from_numpy(tiles).to(self.device)
