"""lab.histcode.epochs"""

import numpy as np

import tiling
from lab.cohort.slides import open_slide
from lab.files import InputError
from lab.progress import ordered_map

READ_TILES = 64  # of one slide, read in one go             [ours]


def read_batches(data, chosen, order, batch, rank=0, world=1, workers=1):
    """This process's part of each batch, (B / world, px, px, 3) uint8: rows `order` of `chosen` (slide, tile), what does not
    fill a batch left out.

    data: paths, coords [(n, 2)], tiles [edges] and stains (or None) of each slide, px; unchanged counts the tiles that keep
    their colours. Threads read ahead READ_TILES of a slide at a time, one more puts batches together. The pixels depend
    neither on `workers` nor on `world`.
    """
    steps = len(order) // batch
    mine = order[: steps * batch].reshape(steps, world, -1)[:, rank]  # (steps, B / world)
    wanted = np.sort(mine.ravel())  # as they are read
    cuts = np.flatnonzero(np.diff(chosen[wanted, 0])) + 1
    jobs = [
        part[i : i + READ_TILES]
        for part in np.split(wanted, cuts)
        for i in range(0, len(part), READ_TILES)
    ]

    def read(rows):
        s = chosen[rows[0], 0]
        slide, coords, tile = (
            open_slide(data["paths"][s]),
            data["coords"][s][chosen[rows, 1]],
            data["tiles"][s],
        )
        parts = [
            tiling.macenko(
                tiling.read_tiles(slide, coords[a:b], tile, data["px"]), data["stains"][s]
            )
            for a, b in tiling.tile_runs(coords, tile)
        ]
        return [np.concatenate(part) for part in zip(*parts)]

    stream, held = ordered_map(read, jobs, workers), {}

    def put_together(step):
        while not all(i in held for i in mine[step]):
            rows, got = next(stream)
            if isinstance(got, Exception):
                raise InputError(
                    f"{data['paths'][chosen[rows[0], 0]]} can't be read to its end ({got}): take it out of "
                    "samples.csv"
                )
            held.update(
                (i, tile.copy()) for i, tile in zip(rows, got[0])
            )  # a copy lets go of the others
            data["unchanged"] += int((~got[1]).sum())
        return np.stack([held.pop(i) for i in mine[step]])

    for _, tiles in ordered_map(put_together, range(steps), 1):
        if isinstance(tiles, Exception):
            raise tiles
        yield tiles
