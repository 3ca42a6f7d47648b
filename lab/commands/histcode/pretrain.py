"""lab.commands.histcode.pretrain"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import histcode
from lab.audit.choices import add_choices
from lab.cohort.samples import read_samples
from lab.commands.options import add_options
from lab.devices import pick_device, pick_precision
from lab.files import InputError
from lab.histcode.choices import CHOICES
from lab.histcode.epochs import read_batches
from lab.histcode.pretraining import MOMENTUM, WEIGHT_DECAY, train
from lab.histcode.probe import STAGES
from lab.histcode.processes import share_batchnorm
from lab.histcode.settings import (
    BANK_PERCENT,
    BANK_RATE,
    BANK_SIZE,
    BATCH,
    EPOCHS,
    LEARNING_RATE,
    MOMENTUM_ENCODER,
    TAU,
    open_run,
    settle_options,
)
from lab.histcode.tiles import TILES_PER_SLIDE, find_data, slides_of
from lab.progress import clock
from lab.show.plots import figure
from lab.weights import load_weights

TILE_PX = 256  # edge of a tile as it is read             [HistCode Methods, Image processing]


VIEW_PX = 224  # edge of a view                           [HistCode code]


POOL_BYTES = 2**31  # tiles held to be shuffled over slides, over all processes [ours]


def draw_views(path, data, counts, o, n=8, pairs=2):
    """A picture of n tiles, each beside `pairs` times its two views."""
    chosen = histcode.choose_tiles(counts, np.full(len(counts), 1), o.seed, 1)[:n]
    tiles = np.concatenate(
        list(read_batches(data, chosen, np.arange(len(chosen)), len(chosen), workers=o.workers))
    )
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    drawn = [
        histcode.draw_view(len(x), torch.Generator().manual_seed(o.seed + i))
        for i in range(2 * pairs)
    ]
    views = [histcode.make_view(x, view, o.view_px) for view in drawn]
    columns = 1 + 2 * pairs
    with figure(
        path, len(x), columns, figsize=(1.6 * columns, 1.6 * len(x)), squeeze=False
    ) as axes:
        for row, tile, *mine in zip(axes, tiles, *views):
            for ax, picture in zip(row, [tile, *(v.permute(1, 2, 0).numpy() for v in mine)]):
                ax.imshow(picture)
                ax.set_axis_off()
        for ax, title in zip(
            axes[0], ["tile", *[f"view {side}" for _ in range(pairs) for side in "12"]]
        ):
            ax.set_title(title, fontsize=8)


def run(o):
    """Train the tile encoder without labels; writes COHORT/runs/NAME/NAME.pt."""
    device, (rank, world) = pick_device(o.device), o.share
    if device.index is not None:
        torch.cuda.set_device(device)  # NCCL's, of this process
    settle_options(o, world)
    o.precision, cohort = pick_precision(o.precision, device), Path(o.cohort)
    o.pool = max(2, POOL_BYTES // (3 * o.tile_px**2))
    weights = load_weights(STAGES, o.weights, o.seed)  # at the start, not after hours of tiling
    model = histcode.Embedder(weights)  # drawn from --seed, as load_weights left it
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.1  # calibrated random weights have another
    data, failed = find_data(cohort, slides_of(cohort), o)
    known = (
        {r["slide"]: r["patient"] for r in read_samples(cohort)}
        if (cohort / "samples.csv").exists()
        else {}
    )
    o.patients = sorted(
        {known.get(s, s) for s in data["slides"]}
    )  # for the leak ledger of what uses the encoder
    counts = np.array([len(c) for c in data["coords"]])
    total = int(np.minimum(counts, o.tiles_per_slide).sum())
    if total < o.batch:
        raise InputError(
            f"{total} tiles an epoch don't fill a batch of {o.batch}: lower --batch or raise --tiles-per-slide"
        )
    if o.show_views:
        if rank == 0:
            draw_views(cohort / "runs" / o.name / "views.png", data, counts, o)
            print(f"{cohort / 'runs' / o.name / 'views.png'}")
        return 0
    folder, config = open_run(o, data, counts, device, world)
    model = (share_batchnorm(model) if world > 1 else model).to(
        device, memory_format=torch.channels_last
    )
    print(
        f"{o.method}: {len(counts)} slides, {total:,} of {counts.sum():,} tiles an epoch ({o.tile_um:g} µm, "
        f"{o.tile_px} px), views of {o.view_px} px, batch {o.batch}, {o.epochs} epochs, {config['weights']}, "
        f"{o.precision} on {device}"
        + (f", {world} processes" if world > 1 else "")
        + f"; turned: {', '.join(o.code)}" * bool(o.code),
        flush=True,
    )
    start = time.time()
    trained = train(model, data, counts, o, folder, device, rank, world)
    print(
        f"{folder / o.name}.pt: "
        + (f"trained in {clock(time.time() - start)}" if trained else "was ready")
    )
    return 1 if failed and rank == 0 else 0


def options(parser):
    flag = argparse.BooleanOptionalAction
    parser.set_defaults(within="")
    parser.add_argument("cohort", help="a cohort folder: slides/ and samples.csv")
    p, a = parser, parser.add_argument
    a, bank = (
        p.add_argument_group(name).add_argument
        for name in ("training", "the bank of negatives (adco)")
    )
    add_options(p, encoder=None)
    a(
        "--method",
        choices=("adco", "simclr"),
        default="adco",
        help="negatives: adco, an adversarial bank (default, the "
        "paper's); simclr, the other tiles of the batch, which the paper compared",
    )
    add_choices(a, CHOICES, "pretrain")
    a("--name", help="COHORT/runs/NAME (default: the method); an interrupted run goes on")
    a(
        "--weights",
        default="imagenet",
        metavar="W|FILE",
        help="the encoder's start: imagenet (default, the paper's), a "
        "torchvision state_dict file, or random (seeded)",
    )
    a("--epochs", type=int, help=f"default {EPOCHS}, the authors'")
    a("--batch", type=int, help=f"tiles per step, over all processes (default {BATCH}, AdCo's)")
    a(
        "--tiles-per-slide",
        type=int,
        help=f"drawn anew each epoch (default {TILES_PER_SLIDE}; the paper takes all): bounds "
        "reading, and neighbouring tiles are alike",
    )
    a(
        "--tile-px",
        type=int,
        default=TILE_PX,
        help=f"edge of a tile as it is read, px (default {TILE_PX}, the paper's); "
        f"at most {POOL_BYTES / 2**30:g} GiB of tiles, 3 bytes a pixel, are held to be shuffled over slides",
    )
    a(
        "--view-px",
        type=int,
        default=VIEW_PX,
        help=f"edge of a view, px (default {VIEW_PX}); 64 with --tile-px 72 runs on a "
        "CPU in minutes",
    )
    a(
        "--lr",
        type=float,
        help=f"of SGD (default {LEARNING_RATE}, the paper's); lower if the loss jumps or embeddings "
        "collapse",
    )
    a(
        "--cosine",
        action=flag,
        help="lr falls along a half cosine to --final-lr [HistCode code] (default no)",
    )
    a("--final-lr", type=float, help="with --cosine (default 0)")
    a(
        "--tau",
        type=float,
        help=f"temperature of the loss (default {TAU['adco']}, the authors'; simclr {TAU['simclr']}); a "
        "lower one sees the hardest negatives only",
    )
    a(
        "--precision",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="of the encoder; auto (default): bfloat16 where the hardware has it",
    )
    a(
        "--show-views",
        action="store_true",
        help="draw runs/NAME/views.png, tiles and their two views, and stop",
    )
    bank(
        "--bank-percent",
        type=float,
        help="of each slide's tiles, whose embeddings start the bank (default "
        f"{BANK_PERCENT:g}, the authors'; the paper: a percentage); 0: random unit vectors",
    )
    bank(
        "--bank-size",
        type=int,
        help=f"negatives of a random bank, and at most (default {BANK_SIZE:,}, AdCo's)",
    )
    bank(
        "--bank-lr",
        type=float,
        help=f"lambda of eq. 4 (default {BANK_RATE}, HistCode's code; AdCo's 3); fewer negatives "
        "have larger gradients, and a bank that catches up with the queries makes them collapse",
    )
    bank(
        "--bank-momentum",
        type=float,
        help=f"of its step (default {MOMENTUM}, the authors'; eq. 4 as printed: 0)",
    )
    bank(
        "--bank-decay",
        type=float,
        help=f"its weight decay (default {WEIGHT_DECAY:g}, the authors'; eq. 4 as printed: 0): "
        "rules the negatives' length, hence how fast they turn",
    )
    bank(
        "--bank-tau",
        type=float,
        help="its own temperature (default: --tau, as both play for one loss); a low one, as the "
        "authors', moves the nearest negatives only",
    )
    bank(
        "--in-batch",
        action=flag,
        help="the other tiles' keys are negatives too [AdCo code] (default no: eq. 1)",
    )
    bank(
        "--symmetric",
        action=flag,
        help="mean of the losses of both views as query (default no, as AdCo's code)",
    )
    bank(
        "--momentum-encoder",
        type=float,
        metavar="M",
        help="keys from a slow copy of the encoder (default "
        f"{MOMENTUM_ENCODER}, the authors' code; .99 for some hundred steps); 0: one encoder for both views, which "
        "collapsed in nearly every trial from random weights",
    )
