"""python histcode.py pretrain [COHORT]: train the tile encoder without labels.

Two random views of a tile must lie nearer to each other than to a bank of negatives, which move to
make that hard. Writes COHORT/runs/NAME/: NAME.pt, the file that --encoder of the other commands
takes, log.jsonl, config.json and pretrain.png, which shows whether it learns, collapses, or tells
slides apart; an interrupted run goes on. The paper's scale wants GPUs, which share each batch under
torchrun. Without a cohort it learns from a simulated one, demo-pairs/, in minutes: --tile-px 72
--view-px 64 --weights random.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import histcode
from histcode import (
    BANK_RATE,
    BANK_SIZE,
    BATCH,
    EPOCHS,
    LEARNING_RATE,
    MOMENTUM,
    SIMCLR_TAU,
    TAU,
    VIEW_PX,
    WEIGHT_DECAY,
)
from lab.audit.choices import add_choices
from lab.cohort.identity import told_by_table
from lab.cohort.names import person
from lab.commands.histcode.demo import demo_of, draw_pairs
from lab.commands.options import natural
from lab.commands.slide_options import add_options
from lab.devices import pick_device, pick_precision
from lab.files import InputError
from lab.histcode.choices import CHOICES
from lab.histcode.epochs import (
    BATCHES_FROM,
    FEWEST,
    POOL_BYTES,
    Reader,
    choose_tiles,
    read_batches,
)
from lab.histcode.pretraining import BANK_FROM, train
from lab.histcode.processes import share_batchnorm
from lab.histcode.settings import BANK_PERCENT, open_run, settle_options
from lab.histcode.tiles import TILES_PER_SLIDE, find_data, slides_of
from lab.histcode.watching import COLLAPSED, PATIENCE
from lab.processes import by_first
from lab.progress import clock
from lab.provenance import of_cohort
from lab.show.gallery import draw_sheet
from lab.weights import load_weights

STAGES = 3  # of the ResNet50: "the first four main layers (... 1024)" [HistCode Methods]
TILE_PX = 256  # edge of a tile as it is read [HistCode Methods, Image processing]
START = {"weights": "imagenet", "tile_px": TILE_PX, "view_px": VIEW_PX}


def options(parser):
    parser.set_defaults(within="")
    a = parser.add_argument
    a("cohort", nargs="?", help="a folder: slides/ and samples.csv (default: demo-pairs)")
    training = parser.add_argument_group("training").add_argument
    bank = parser.add_argument_group("the bank of negatives (adco)").add_argument
    add_options(parser, encoder=None)
    training(
        "--method",
        choices=("adco", "simclr"),
        default="adco",
        help="adco, an adversarial bank (default, the paper's); simclr, other tiles",
    )
    add_choices(training, CHOICES, "pretrain")
    training("--name", help="COHORT/runs/NAME (default: the method)")
    training(
        "--weights",
        metavar="W|FILE",
        help="the encoder's start: imagenet (default, the paper's), a torchvision state_dict file, "
        "or random (seeded)",
    )
    training("--epochs", type=int, help=f"default {EPOCHS}, the authors'")
    training(
        "--batch",
        type=int,
        help=f"tiles of a step, over all processes (default {BATCH}, AdCo's)",
    )
    training(
        "--batch-from",
        choices=tuple(BATCHES_FROM),
        help="all (default): a batch mixes tiles of all slides, which their stains may tell apart; "
        "slide: each is of one slide, as the authors' are; one of few tiles is a smaller batch, of "
        f"{FEWEST} at least",
    )
    training(
        "--tiles-per-slide",
        type=int,
        help=f"drawn anew each epoch (default {TILES_PER_SLIDE}; the paper takes all): bounds "
        "reading, and neighbouring tiles are alike",
    )
    training(
        "--tile-px",
        type=int,
        help=f"edge of a tile as it is read, px (default {TILE_PX}, the paper's); at most "
        f"{POOL_BYTES / 2**30:g} GiB of tiles are held to be shuffled over slides",
    )
    training(
        "--view-px",
        type=int,
        help=f"edge of a view, px (default {VIEW_PX}, the authors')",
    )
    training(
        "--lr",
        type=float,
        help=f"of SGD (default {LEARNING_RATE}, the paper's, for batches of {BATCH}, and in "
        "proportion for others); lower if the loss jumps",
    )
    training(
        "--cosine",
        action=argparse.BooleanOptionalAction,
        help="lr falls along half a cosine to --final-lr, as in the authors' code (default no)",
    )
    training("--final-lr", type=float, help="with --cosine (default 0)")
    training(
        "--tau",
        type=float,
        help=f"temperature of the loss (default {TAU}, the authors'; simclr {SIMCLR_TAU})",
    )
    training(
        "--patience",
        type=natural,
        default=PATIENCE,
        metavar="STEPS",
        help="end the run where the embeddings have collapsed (spread below "
        f"{COLLAPSED}) for so many steps and two epochs, and stay (default {PATIENCE}); 0: never",
    )
    training(
        "--precision",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="of the encoder; auto (default): bfloat16 where the hardware has it",
    )
    training(
        "--show-views",
        action="store_true",
        help="draw runs/NAME/views.png, tiles and their two views, and stop",
    )
    bank(
        "--bank-percent",
        type=float,
        help=f"negatives, of each slide's tiles (default {BANK_PERCENT:g}, the authors')",
    )
    bank(
        "--bank-from",
        choices=tuple(BANK_FROM),
        help="where they start: random (default), directions all over the sphere; tiles, the "
        "paper's, their embeddings by the untrained network, all in one place, which all then "
        "flee; training, the authors', keys of the first steps",
    )
    bank(
        "--bank-size",
        type=int,
        help=f"negatives at most (default {BANK_SIZE:,}, AdCo's)",
    )
    bank(
        "--bank-lr",
        type=float,
        help=f"lambda of eq. 4 (default {BANK_RATE:g}, AdCo's, for {BANK_SIZE:,} negatives, and in "
        "proportion less for fewer, of larger gradients; the authors' .3): a bank that catches up "
        "with the queries makes them collapse",
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
        help="temperature of its step (default: --tau, as both play for one loss); a low one, as "
        "the authors' .02, moves the nearest negatives only",
    )
    bank(
        "--in-batch",
        action=argparse.BooleanOptionalAction,
        help="the other tiles' keys are negatives too, as in the authors' code (default yes: by "
        "eq. 1 alone all embeddings flee the bank, to one place)",
    )
    bank(
        "--symmetric",
        action=argparse.BooleanOptionalAction,
        help="mean of the losses with either view as the query (default no, AdCo's)",
    )
    bank(
        "--momentum-encoder",
        type=float,
        metavar="M",
        help="keys from a slow copy of the encoder (the authors' .999; .9 for some hundred steps); "
        "0 (default): one encoder for both views",
    )


def draw_views(path, data, o, slides=8, pairs=2):
    """A picture: in each row a tile of another slide, then `pairs` times its two views."""
    counts = np.array([len(coords) for coords in data["coords"]])
    chosen = choose_tiles(counts, np.full(len(counts), 1), o.seed, 1)[:slides]
    n = len(chosen)
    (tiles,) = read_batches(data, chosen, [np.arange(n)], workers=o.workers)
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    columns = {f"tile, {o.tile_um:g} µm": x / 255}
    for i in range(2 * pairs):
        view = histcode.draw_view(n, torch.Generator().manual_seed(o.seed + i))
        columns[f"pair {i // 2 + 1}, view {i % 2 + 1}"] = histcode.make_view(x, view, o.view_px)
    title = (
        f"Tiles of {n} slides and random views of them, {o.view_px} px, as pretraining sees them"
    )
    slides = [data["slides"][slide] for slide, _ in chosen]
    draw_sheet(path, columns, slides, o.tile_um, title, of_cohort(o.cohort))


def embedder(o):
    """The model at the start: weights as asked for, the two layers drawn from --seed."""
    encoder = load_weights(STAGES, o.weights, o.seed)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # random weights come with that of one batch
    return histcode.Embedder(encoder, precision=getattr(torch, o.precision))


def patients_of(cohort, slides):
    """Patients of the slides, for the ledger of whatever uses the encoder; a slide if unknown."""
    at = cohort.absolute() / "slides"
    known = {told_by_table(at / slide, slide) or person(slide) or slide for slide in slides}
    return sorted(known)


def run(o):
    """Train the tile encoder without labels; writes COHORT/runs/NAME/NAME.pt."""
    demo = demo_of(o)
    device, cohort = pick_device(o.device), Path(o.cohort)
    if device.index is not None:
        torch.cuda.set_device(device)  # the one that NCCL takes
    settle_options(o, o.share[1], START | demo)
    if demo:
        by_first(draw_pairs)
    o.precision = pick_precision(o.precision, device)
    model = embedder(o)  # wrong weights are told before hours of tiling
    data, failed = find_data(cohort, slides_of(cohort), o)
    if o.show_views:
        path = cohort / "runs" / o.name / "views.png"
        if o.share[0] == 0:
            draw_views(path, data, o)
        print(path)
        return 0
    o.patients = patients_of(cohort, data["slides"])
    reader = Reader(data, o, device)
    drawn = reader.per_slide.sum()
    if not reader.sizes and o.batch_from == "slide":
        raise InputError(
            f"--batch-from slide: no slide gives the {min(FEWEST, o.batch)} tiles of its smallest "
            "batch: raise --tiles-per-slide, or leave it out"
        )
    if not reader.sizes:
        raise InputError(
            f"{drawn} tiles an epoch don't fill a batch of {o.batch}: lower --batch or raise "
            "--tiles-per-slide"
        )
    folder, config = open_run(o, data, reader.counts, device)
    if o.share[1] > 1:
        model = share_batchnorm(model, device)
    model = model.to(device, memory_format=torch.channels_last)
    print(
        f"{o.method}: {drawn:,} of {reader.counts.sum():,} tiles of {len(reader.counts)} slides an "
        f"epoch ({o.tile_um:g} µm, {o.tile_px} px), views of {o.view_px} px, {reader.said()}, "
        f"{o.epochs} epochs, {config['weights']}, {o.precision} on {device}, processes: "
        f"{o.share[1]}, turned: {', '.join(o.code) or 'nothing'}",
        flush=True,
    )
    start = time.monotonic()
    trained = train(model, reader, o, folder)
    done = f"trained in {clock(time.monotonic() - start)}" if trained else "was ready"
    print(f"{folder / o.name}.pt: {done}; how it went: {folder / 'pretrain.png'}")
    return 1 if failed and o.share[0] == 0 else 0
