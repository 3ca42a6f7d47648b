"""A pretraining run: its bank at the start, the loop with its log and files, and going on."""

import json
import time

import torch
from torch.nn import functional as F

import histcode
import tiling
from lab.encoders import ENCODER_VERSION
from lab.fast.bank import bank_gradient
from lab.files import InputError, few, save_file
from lab.histcode.processes import Whole, shared_bank_gradient
from lab.progress import clock, seldom
from lab.runs import load_checkpoint

COLLAPSED = 0.05  # spread of the embeddings below which it is said [ours]
SOURCE = (
    "HistCode (Huang et al. 2022, arXiv:2204.11994), contrastive pretraining of the tile encoder"
)
FIGURES = "epoch", "loss", "positive", "hardest", "spread", "lr"  # of an epoch, in the log


def random_bank(size, seed):
    """Random directions (K, d) to start the bank from. [ours]"""
    rows = torch.randn(size, histcode.EMBEDDING, generator=histcode.generator_of(seed, 0, 0, 2))
    return F.normalize(rows, dim=1)


def first_bank(model, reader, o):
    """Embeddings of a percentage of each slide's tiles, or random directions, (K, d)."""
    if o.bank_percent == 0:
        return random_bank(o.bank_size, o.seed)
    views = reader.bank_views(o.bank_percent, o.bank_size)
    return histcode.first_bank(model, views, o.bank_size)


def negatives_of(model, reader, o, state=None):
    """What --method asks for: SimCLR's other tiles, or a bank; of a run that goes on, its own."""
    if o.method == "simclr":
        return histcode.OtherTiles(o.tau)
    several = o.share[1] > 1
    if state is None:
        w = first_bank(Whole(model) if several else model, reader, o)
    else:
        w = state["negatives"]["w"]
    print(f"bank of {len(w):,} negatives")
    return histcode.Bank(
        w.to(reader.device),
        o.tau,
        rate=o.bank_lr,
        momentum=o.bank_momentum,
        weight_decay=o.bank_decay,
        step_tau=o.bank_tau,
        in_batch=o.in_batch,
        gradient=shared_bank_gradient if several else bank_gradient,
    )


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
    }
    save_file(path, lambda f: torch.save(content, f))


def cut_log(path, epochs):
    """Keep the lines of the epochs that were saved: those after them are run again."""
    lines = path.read_text().splitlines()[:epochs] if path.is_file() else []
    save_file(path, lambda f: f.writelines(f"{line}\n".encode() for line in lines))


def log_entry(state, tiles_per_s):
    """One line of log.jsonl, as a dict."""
    entry = {name: state[name] for name in FIGURES}
    w = state["negatives"].get("w")
    entry["bank_norm"] = None if w is None else w.norm(dim=1).mean().item()
    entry["tiles_per_s"] = round(tiles_per_s, 1)
    entry["collapsed"] = bool(entry["spread"] < COLLAPSED)
    return entry


def say_epoch(entry, epochs, left):
    """One line on the terminal, from the entry of the log; left: seconds."""
    norm = "" if entry["bank_norm"] is None else f"bank norm {entry['bank_norm']:.3f}  "
    print(
        f"epoch {entry['epoch']:3d}/{epochs}  loss {entry['loss']:.4f}  "
        f"positive {entry['positive']:.3f}  hardest negative {entry['hardest']:.3f}  "
        f"spread {entry['spread']:.3f}  {norm}{entry['tiles_per_s']:6.1f} tiles/s  "
        f"{clock(left)} left",
        flush=True,
    )


def say_collapse(entry, method):
    remedies = "A lower --lr"
    if method == "adco":
        remedies += ", --momentum-encoder or --in-batch"
    print(
        f"COLLAPSE: all embeddings are nearly equal (spread {entry['spread']:.3f}, 1 is all over "
        f"the sphere). {remedies} may help",
        flush=True,
    )


class Speaker:
    """Says how epochs went: each on a terminal, one a minute into a file; a collapse at once."""

    def __init__(self, o):
        self.epochs = o.epochs
        self.method = o.method
        self.due = seldom()
        self.collapsed = False

    def say(self, entry, left):
        shown = self.due(entry["epoch"] == self.epochs)
        if shown:
            say_epoch(entry, self.epochs, left)
        if entry["collapsed"] and (shown or not self.collapsed):
            say_collapse(entry, self.method)
        self.collapsed = entry["collapsed"]


def states_of(model, reader, o, state):
    """The loop with what the command's options say: a generator of the states still to come."""
    return histcode.pretrain_epochs(
        model,
        reader.views,
        negatives_of(model, reader, o, state),
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
    """
    first = o.share[0] == 0
    state_file = folder / "state.pt"
    saved = saved_state(state_file, model, reader, o)
    before = done = saved["epoch"] if saved else 0
    if first:
        cut_log(folder / "log.jsonl", done)
        if done:  # the encoder's file may be gone
            save_encoder(folder / f"{o.name}.pt", model, o, done)
    speaker = Speaker(o)
    start = began = time.time()
    try:
        for state in states_of(model, reader, o, saved):
            done = state["epoch"]
            now = time.time()
            entry = log_entry(state, reader.tiles_of_epoch() / (now - began))
            if first:
                save_epoch(folder, model, o, state, entry)
            left = (now - start) / (done - before) * (o.epochs - done)
            speaker.say(entry, left)
            began = time.time()
    except FloatingPointError as e:
        kept = f"; {state_file} keeps epoch {done}" if done else ""
        slides = few(reader.slides_at)
        raise InputError(f"{e}, at tiles of {slides}{kept}; a lower --lr may help") from None
    return done - before
