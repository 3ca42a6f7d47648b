"""A pretraining run: its bank at the start, the loop with its log and files, and going on."""

import json
import time
from functools import partial

import torch

import histcode
import tiling
from lab.encoders import ENCODER_VERSION
from lab.fast.bank import bank_gradient
from lab.files import InputError, few, save_file
from lab.histcode.pretraining_plots import draw
from lab.histcode.processes import Whole, shared_bank_gradient
from lab.histcode.watching import COLLAPSED, Watch, advice, refuse_collapse
from lab.processes import by_first
from lab.progress import MINUTE, clock, seldom
from lab.provenance import KEY
from lab.runs import load_checkpoint, read_log, write_log
from lab.show.plots import need_matplotlib

SOURCE = (
    "HistCode (Huang et al. 2022, arXiv:2204.11994), contrastive pretraining of the tile encoder"
)
FIGURES = "epoch", "loss", "positive", "spread", "lr"  # of an epoch, in the log
SHOWN = "loss", "positive", "hardest", "spread", "bank_spread", "near"  # on the terminal


BANK_FROM = {  # how the bank starts
    "random": "in random directions",
    "tiles": "embeddings of tiles by the untrained network",
    "training": "to be filled by the keys of the first steps",
}


def first_bank(model, reader, o):
    """The negatives (K, d), of as many tiles as --bank-percent says, as --bank-from says."""
    if o.bank_from == "tiles":
        return histcode.first_bank(model, reader.bank_views(), o.bank_size)
    _, size = reader.bank_tiles()
    return histcode.random_bank(size, seed=o.seed)


def negatives_of(model, reader, o, state=None):
    """What --method asks for: SimCLR's other tiles, or a bank; of a run that goes on, its own."""
    if o.method == "simclr":
        return histcode.OtherTiles(o.tau)
    several = o.share[1] > 1
    if state is None:
        w = first_bank(Whole(model) if several else model, reader, o)
    else:
        w = state["negatives"]["w"]
    step = {"momentum": o.bank_momentum, "weight_decay": o.bank_decay}
    if o.bank_lr is not None:
        step["rate"] = o.bank_lr
    bank = histcode.Bank(
        w.to(reader.device),
        o.tau,
        step_tau=o.bank_tau,
        in_batch=o.in_batch,
        fill=o.bank_from == "training",
        gradient=shared_bank_gradient if several else bank_gradient,
        **step,
    )
    print(f"bank of {len(w):,} negatives, {BANK_FROM[o.bank_from]}; rate {bank.step['rate']:.3g}")
    return bank


def save_encoder(path, model, o, epoch):
    """The file that `tiling.py features --encoder` takes; all of it plain values and tensors."""
    content = {
        "version": ENCODER_VERSION,
        "source": SOURCE,
        "method": o.method,
        "encoder": model.encoder.state_dict(),
        "projection": model.projection.state_dict(),
        "stages": model.encoder.stages,
        "n_features": model.encoder.n_features,
        "mean": tiling.IMAGENET_MEAN,
        "std": tiling.IMAGENET_STD,
        "tile_px": o.tile_px,
        "tile_um": o.tile_um,
        "colour": o.colour,
        "settings": {**o.settings, "epochs_done": epoch},
        "patients": o.patients,
        KEY: o.words,
    }
    save_file(path, lambda f: torch.save(content, f))


def log_entry(state, seen, seconds, tiles):
    """One line of log.jsonl, as a dict; seen: Watch.figures."""
    entry = {**{name: state[name] for name in FIGURES}, **seen}
    entry["tiles_per_s"] = round(tiles / max(seconds, 1e-9), 1)  # a clock may stand still
    entry["collapsed"] = entry["spread"] < COLLAPSED
    return entry


def say_epoch(entry, o, left):
    """A line on the terminal; another where it has collapsed."""
    figures = [f"{name} {entry[name]:.4f}" for name in SHOWN if name in entry]
    print(
        f"epoch {entry['epoch']:3d}/{o.epochs}  {'  '.join(figures)}  "
        f"{entry['tiles_per_s']:6.1f} tiles/s  {clock(left)} left",
        flush=True,
    )
    if entry["collapsed"]:
        print(
            "COLLAPSE: all embeddings are nearly equal (spread 1 is all over the sphere). Where it "
            f"stays so, begin again with {advice(o)}",
            flush=True,
        )


def states_of(model, reader, negatives, o, state):
    """The loop with what the command's options say: a generator of the states still to come."""
    return histcode.pretrain_epochs(
        model,
        reader.views,
        negatives,
        epochs=o.epochs,
        lr=o.lr,
        final_lr=o.final_lr if o.cosine else None,
        momentum_encoder=o.momentum_encoder,
        symmetric=o.symmetric,
        whole=Whole if o.share[1] > 1 else histcode.alone,
        state=state,
    )


def saved_state(path, model, reader, o):
    """The state that training goes on from, or None."""
    if not path.is_file():
        return None
    parts = ["epoch", "model", "optimizer", "negatives"]
    if o.momentum_encoder:
        parts.append("keys")
    return load_checkpoint(path, reader.device, model, parts)


def save_epoch(folder, model, o, state, entry):
    """The log's line and the encoder first, the state that says they are done last."""
    with open(folder / "log.jsonl", "a") as f:
        f.write(json.dumps(entry) + "\n")
    save_encoder(folder / f"{o.name}.pt", model, o, state["epoch"])
    save_file(folder / "state.pt", lambda f: torch.save(state, f))


def train(model, reader, o, folder):
    """Train the epochs that are not done yet -> how many.

    The state is saved after each, and every draw comes from (seed, epoch, step): a run that was
    interrupted ends as one that was not, on a GPU to rounding, where cuDNN's sums have no order.
    InputError where it has collapsed, also of a run that was stopped for it before.
    """
    first = o.share[0] == 0
    state_file = folder / "state.pt"
    saved = saved_state(state_file, model, reader, o)
    before = done = saved["epoch"] if saved else 0
    log = []
    if first:
        log = read_log(folder)[:done]  # what was not saved is run again
        write_log(folder, log)
        if done:  # the encoder's file may be gone
            save_encoder(folder / f"{o.name}.pt", model, o, done)
    check = partial(refuse_collapse, folder, log, len(reader.sizes), o)
    by_first(check)
    if done == o.epochs:
        return 0
    if first:
        need_matplotlib()  # before hours of work
    negatives = negatives_of(model, reader, o, saved)
    watch = Watch(model, negatives, reader) if first else None
    due = seldom()
    start = began = drawn = time.monotonic()
    try:
        for state in states_of(model, reader, negatives, o, saved):
            done = state["epoch"]
            now = time.monotonic()
            if first:
                entry = log_entry(state, watch.figures(), now - began, reader.tiles_of_epoch)
                log.append(entry)
                if done == o.epochs or entry["collapsed"] or now - drawn > MINUTE:
                    drawn = now
                    draw(folder, log, watch, reader, o)
                save_epoch(folder, model, o, state, entry)
                if due(done == o.epochs):
                    say_epoch(entry, o, (now - start) / (done - before) * (o.epochs - done))
            by_first(check)
            began = time.monotonic()
    except FloatingPointError as e:
        kept = f"; {state_file} keeps epoch {done}" if done else ""
        slides = few(reader.slides_at)
        raise InputError(f"{e}, at tiles of {slides}{kept}; a lower --lr may help") from None
    return done - before
