"""Settings of a pretraining run: defaults, ranges, and the folder that keeps them."""

import hashlib
import json
from pathlib import Path

import numpy as np

import histcode
from lab.files import InputError
from lab.histcode.choices import TURNED, settle_choices
from lab.histcode.epochs import whole_part
from lab.histcode.options import check_ranges
from lab.histcode.runs import VERSION
from lab.histcode.tiles import EDGES, TILES_PER_SLIDE
from lab.provenance import taught_by
from lab.runs import claim_folder
from lab.weights import weights_identity

BANK_PERCENT = 20.0  # of each slide's tiles [HistCode code]; the paper has "a percentage"
USUAL = {
    "final_lr": 0.0,
    "cosine": False,
    "batch": histcode.BATCH,
    "batch_from": "all",
    "epochs": histcode.EPOCHS,
    "tiles_per_slide": TILES_PER_SLIDE,
    "tau": histcode.TAU,
    "bank_momentum": histcode.MOMENTUM,
    "bank_decay": histcode.WEIGHT_DECAY,
    "bank_from": "random",
    "bank_percent": BANK_PERCENT,
    "bank_size": histcode.BANK_SIZE,
    "in_batch": True,
    "symmetric": False,
    "momentum_encoder": 0.0,
}
BANK_OPTIONS = (  # that SimCLR has not
    "bank_tau",
    "bank_lr",
    "bank_momentum",
    "bank_decay",
    "bank_from",
    "bank_percent",
    "bank_size",
    "in_batch",
    "symmetric",
    "momentum_encoder",
)
SETTINGS = (  # that tell one run from another
    *USUAL,
    "lr",
    "bank_lr",
    "bank_tau",
    "method",
    "view_px",
    "tile_px",
    "tile_um",
    "colour",
    "seed",
    "precision",
)


def settle_options(o, processes, more=None):
    """Fill in what was not asked for: what --follow and --code turn, else USUAL; check it all.

    more: {option: value} that are usual here.
    """
    usual = USUAL | (more or {})
    if o.method == "simclr":
        refuse_bank_options(o)
        usual = {**usual, "tau": histcode.SIMCLR_TAU}
    settle_choices(o)
    for option, value in usual.items():
        if getattr(o, option) is None:
            setattr(o, option, value)
    if o.lr is None:
        o.lr = histcode.LEARNING_RATE * o.batch / histcode.BATCH
    o.name = o.name or o.method
    if o.name == "state":
        raise InputError("--name state: state.pt is the training's own; choose another")
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
        ("bank_percent", 1e-6, 100),
        ("bank_size", 1, 1e9),
        ("momentum_encoder", 0, 0.99999),
        ("view_px", 32, 1024),
        ("tile_px", *EDGES),
    )
    if o.final_lr and not o.cosine:
        raise InputError(f"--final-lr {o.final_lr:g}: only with --cosine; else the rate stays")
    if o.batch % processes or o.bank_size < processes:
        raise InputError(
            f"--batch {o.batch}, --bank-size {o.bank_size}: {processes} processes want parts of a "
            "batch that are equal, and a negative each"
        )
    part = whole_part(o.batch)
    if o.batch_from == "slide" and part % processes:
        raise InputError(
            f"--batch-from slide: {processes} processes can't share batches of --batch {o.batch} "
            f"or less, multiples of {part}: take {part} processes, or fewer that divide it"
        )


def refuse_bank_options(o):
    """InputError where a run without a bank is told how its bank is to be."""
    named = [f"--{k.replace('_', '-')}" for k in BANK_OPTIONS if getattr(o, k) is not None]
    for name in o.code:
        if set(TURNED["pretrain"][name]) & set(BANK_OPTIONS):
            named.append(f"--code {name}")
    if o.follow:
        named.append(f"--follow {o.follow}")
    if named:
        raise InputError(f"{', '.join(named)}: not with --method simclr, which has no bank")


def open_run(o, data, counts, device):
    """Make or reopen COHORT/runs/NAME -> (folder, config); one of other settings is refused.

    Puts the settings into o.settings, and lab.provenance's words on the encoder into o.words.
    """
    digest = hashlib.sha256(json.dumps([data["slides"], data["tiles"]]).encode())
    for coords in data["coords"]:
        digest.update(np.ascontiguousarray(coords))
    left_out = BANK_OPTIONS if o.method == "simclr" else ()
    o.settings = {
        "version": VERSION,
        "data": digest.hexdigest()[:16],
        "slides": len(counts),
        "all_tiles": int(counts.sum()),
        "weights": weights_identity(o.weights, o.seed),
        **{option: getattr(o, option) for option in SETTINGS if option not in left_out},
    }
    o.words = taught_by(o.cohort, o.weights)
    folder = Path(o.cohort) / "runs" / o.within / o.name
    config = claim_folder(
        folder,
        o.settings,
        "state.pt",
        o.share,
        cohort=str(Path(o.cohort).resolve()),
        device=str(device),
        processes=o.share[1],
        code=o.code,
        provenance=o.words,
    )
    return folder, config
