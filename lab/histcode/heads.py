"""Networks on frozen features: their slides read from disk, their training kept, then applied."""

from functools import partial

import numpy as np
import torch

import histcode
from lab.audit.ledger import saw
from lab.fast.heads import Together, train_together
from lab.files import InputError, save_file
from lab.histcode.networks import SlideModel
from lab.progress import ordered_map, progress
from lab.runs import load_checkpoint

STATE = ("epoch", "losses", "tests", "epochs", "fewest", "best", "weights", "optimizer")


def sums_of(h):
    """Of a bag (T, D): its tiles, and the sums and sums of squares of each feature, float64."""
    return len(h), h.sum(0, dtype=np.float64), np.square(h, dtype=np.float64).sum(0)


def mean_and_sd(sums, rows):
    """Mean and SD (D,) over all tiles of some bags, of each of which `sums_of` is known."""
    tiles, total, squares = (sum(sums[i][part] for i in rows) for part in range(3))
    mean = total / tiles
    return mean, np.sqrt(np.maximum(squares / tiles - mean**2, 0))


def read_bags(bag, orders, batch):
    """Batches of bags (m, n), one read ahead: bags (m, b), h (m, b, T, D), mask (m, b, T)."""

    def read(rows):
        h, mask = histcode.padded([np.asarray(bag(i)) for i in rows.flat])
        return h.unflatten(0, rows.shape), mask.unflatten(0, rows.shape)

    batches = [orders[:, i : i + batch] for i in range(0, orders.shape[1], batch)]
    for rows, got in ordered_map(read, batches, 1):
        if isinstance(got, Exception):
            raise got
        yield rows, *got


def train_heads(
    models, bag, target, loss, parts, seeds, o, device, what="", state_file=None, names=None, **more
):
    """Train M networks of one kind, going on from state_file, which each epoch writes.

    bag(i) -> (T_i, D), names[i] its name; target(rows) -> y; parts, seeds: of each network, or one
    for all; more: `learned` of train_together, which chooses the epoch too -> a dict: model (of
    each the weights of the epoch kept), epochs (M,), losses (epochs, M), tests [(epochs, n_test, C)
    of each], saw [leak ledger of each part, in rows].
    """
    shared = len(parts) < len(models)
    networks = Together(models, shared, device)
    state = None
    if state_file and state_file.is_file():
        state = load_checkpoint(state_file, "cpu", keys=STATE)
    done = state["epoch"] if state else 0
    judged = max(len(valid) + len(test) for _, valid, test in parts)
    per_epoch = len(parts) * (len(parts[0][0]) + judged)
    tick = progress(what, (o.epochs - done) * per_epoch, "bags")

    def batches(orders):
        for rows, h, mask in read_bags(bag, orders, o.batch):
            yield rows, h, mask
            tick(rows.size)

    states = train_together(
        networks,
        batches,
        target,
        parts,
        seeds,
        loss=loss,
        judge=histcode.mistakes if loss is histcode.cross_entropy else more.get("learned") or loss,
        epochs=o.epochs,
        lr=o.lr,
        weight_decay=o.weight_decay,
        state=state,
        **more,
    )
    try:
        for state in states:
            done = state["epoch"]
            if state_file:
                save_file(state_file, partial(torch.save, state))
    except FloatingPointError as e:
        where = e.args[0] if names is None else names[e.args[0]]
        kept = f"; {state_file} keeps epoch {done}" if done else ""
        raise InputError(
            f"{what} epoch {done + 1}: the loss is not finite any more, from {where} on{kept}; "
            "a lower --lr may help"
        ) from None
    buffers = {name: value.cpu() for name, value in networks.buffers.items()}
    tests = torch.stack(state["tests"], 1)  # (M, epochs, n, C)
    return {
        "model": state["best"] | buffers,
        "epochs": state["epochs"],
        "losses": torch.stack(state["losses"]),
        "tests": [
            tests[m, :, len(valid) : len(valid) + len(test)]
            for m, (_, valid, test) in enumerate(parts * (len(models) if shared else 1))
        ],
        "saw": [seen_by(*part) for part in parts],
    }


def seen_by(train, valid, test):
    """Leak ledger of a network, in rows: what train_slide_epochs takes of each part."""
    ledger = {}
    saw(ledger, "weights of the network", train)
    saw(ledger, "choice of the epoch", valid)
    return ledger


def empty_model(saved):
    """A SlideModel of the shape that a checkpoint's networks have."""
    D = saved["n_features"]
    shape = (saved["outputs"], saved["embed"], saved["hidden"])
    return SlideModel(saved["pooling"], np.zeros(D), np.ones(D), *shape)


def apply_heads(saved, device, block=16):
    """The trained networks of a checkpoint: a function (T, D) -> outputs (M, C), a (M, T)."""
    frame = empty_model(saved).to("meta")
    buffers = {name: saved["model"][name][0].to(device) for name, _ in frame.named_buffers()}
    weights = {name: saved["model"][name].to(device) for name, _ in frame.named_parameters()}

    @torch.no_grad()
    def apply(h):
        x, mask = (part.to(device) for part in histcode.padded([np.asarray(h)]))

        def one(own):
            out, a = torch.func.functional_call(frame, (own, buffers), (x, mask))
            return out[0, -1], a[0]

        out, a = torch.vmap(one, chunk_size=block)(weights)
        return out.cpu(), a.cpu()

    return apply
