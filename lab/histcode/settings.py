"""Settings of a pretraining run."""

import hashlib
import json
from pathlib import Path

import numpy as np

from lab.files import InputError
from lab.histcode.choices import TURNED, settle_choices
from lab.histcode.options import check_ranges
from lab.histcode.pretraining import MOMENTUM, WEIGHT_DECAY
from lab.histcode.runs import VERSION
from lab.histcode.tiles import EDGES, TILES_PER_SLIDE
from lab.runs import claim_folder
from lab.weights import weights_identity

# Keys come from a slow copy; eq. 1 does not say from which network. With one network the shortest
# way down is to move all embeddings away from the bank at once: collapse within 30 steps.
MOMENTUM_ENCODER = 0.999  # [HistCode code]
TAU = {
    "adco": 0.12,
    "simclr": 0.1,
}  # temperature; the paper is silent [HistCode code; Chen et al. 2020]


LEARNING_RATE = 0.03  # SGD                                      [HistCode Methods]


BANK_RATE = 0.3  # lambda of eq. 4; 3 in AdCo's own code    [HistCode code]


BANK_SIZE = 65536  # K of a random bank, and at most          [AdCo code]


BANK_PERCENT = 20.0  # of each slide's tiles; the paper: "a percentage"     [HistCode code]


BATCH = 256  # tiles of a step, over all processes      [AdCo code]


EPOCHS = 50  #                                          [HistCode code]


BANK_OPTIONS = (
    "bank_tau",
    "bank_lr",
    "bank_momentum",
    "bank_decay",
    "bank_percent",
    "bank_size",
    "in_batch",
    "symmetric",
    "momentum_encoder",
)  # that SimCLR has not


def settle_options(o, world):
    """Fill in what was not asked for: what --follow and --code turn, else our values; check all of them."""
    if o.method == "simclr":
        bank = [f"--{k.replace('_', '-')}" for k in BANK_OPTIONS if getattr(o, k) is not None]
        bank += [
            f"--code {name}" for name in o.code if set(TURNED["pretrain"][name]) & set(BANK_OPTIONS)
        ]
        if bank or o.follow:
            raise InputError(
                f"{', '.join(bank) or f'--follow {o.follow}'}: not with --method simclr, which has no bank"
            )
    settle_choices(o)
    usual = dict(
        lr=LEARNING_RATE,
        final_lr=0.0,
        cosine=False,
        batch=BATCH,
        epochs=EPOCHS,
        tau=TAU[o.method],
        bank_tau=None,
        bank_lr=BANK_RATE,
        bank_momentum=MOMENTUM,
        bank_decay=WEIGHT_DECAY,
        bank_percent=BANK_PERCENT,
        bank_size=BANK_SIZE,
        in_batch=False,
        symmetric=False,
        tiles_per_slide=TILES_PER_SLIDE,
        momentum_encoder=MOMENTUM_ENCODER if o.method == "adco" else 0.0,
        name=o.method,
    )
    for k, v in usual.items():
        if getattr(o, k) is None:
            setattr(o, k, v)
    o.bank_tau = o.tau if o.bank_tau is None else o.bank_tau
    check_ranges(
        o,
        ("epochs", 1, 1e6),
        ("batch", 2, 1e6),
        ("tiles_per_slide", 1, 1e9),
        ("lr", 1e-9, 1e3),
        ("final_lr", 0, 1e3),
        ("tau", 1e-3, 1e3),
        ("bank_tau", 1e-3, 1e3),
        ("bank_lr", 0, 1e6),
        ("bank_momentum", 0, 0.9999),
        ("bank_decay", 0, 1),
        ("bank_percent", 0, 100),
        ("bank_size", 1, 1e9),
        ("momentum_encoder", 0, 0.99999),
        ("view_px", 32, 1024),
        ("tile_px", *EDGES),
    )
    if o.final_lr and not o.cosine:
        raise InputError(
            f"--final-lr {o.final_lr:g}: only with --cosine; the rate is constant without it"
        )
    if o.method == "adco" and o.bank_size < world:
        raise InputError(f"--bank-size {o.bank_size}: fewer than {world} processes")
    if o.batch % world:
        raise InputError(f"--batch {o.batch} can't be shared out evenly to {world} processes")


def open_run(o, data, counts, device, world):
    """Make or reopen COHORT/runs/NAME; a folder of other settings is refused. Puts the settings into o.settings."""
    h = hashlib.sha256(json.dumps([data["slides"], data["tiles"]]).encode())
    for coords in data["coords"]:
        h.update(np.ascontiguousarray(coords))
    names = (
        "method",
        "epochs",
        "batch",
        "lr",
        "cosine",
        "tau",
        "view_px",
        "tile_px",
        "tile_um",
        "tiles_per_slide",
        "colour",
        "seed",
        "precision",
        *(["final_lr"] * o.cosine),
        *(BANK_OPTIONS if o.method == "adco" else ()),
    )
    config = dict(
        version=VERSION,
        data=h.hexdigest()[:16],
        slides=len(counts),
        all_tiles=int(counts.sum()),
        weights=weights_identity(o.weights, o.seed),
        **{k: getattr(o, k) for k in names},
    )
    folder = Path(o.cohort) / "runs" / o.within / o.name
    o.settings = config
    return folder, claim_folder(
        folder,
        config,
        "state.pt",
        o.share,
        cohort=str(Path(o.cohort).resolve()),
        device=str(device),
        processes=world,
        code=o.code,
    )
