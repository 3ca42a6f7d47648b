"""The classifiers of a diagnosis: every fold trained and saved, what is there left as it is."""

import json
import math
from functools import partial

import numpy as np
import torch

import histcode
from lab.audit.ledger import saw
from lab.files import save_file
from lab.histcode.figures import figures_of
from lab.histcode.heads import mean_and_sd, train_heads
from lab.histcode.networks import SlideModel
from lab.histcode.runs import VERSION
from lab.processes import by_first, log_path, of_all, say
from lab.runs import load_checkpoint, mark_of

BAGS_AT_ONCE = 2**25  # numbers of a step of networks on a table, 128 MB  [ours]


def seed_of(o, *key):
    """A seed of --seed and a key, such as the repeat and the fold."""
    return int(np.random.default_rng([o.seed, *key]).integers(2**62))


def draw_model(pooling, sums, rows, seed, o, outputs=2):
    """A network to train on some bags, its features standardised over their tiles."""
    torch.manual_seed(seed)
    return SlideModel(pooling, *mean_and_sd(sums, rows), outputs, o.embed, o.hidden)


def save_fold(path, done, data, o, pooling, outputs, patients, rows, learned_from, **more):
    """One fold's checkpoint: its networks, whom they learned from and whom they are tested on.

    rows: (train, valid, test) into patients; learned_from: all whom a model must not be asked of.
    """
    saved = {
        **done,
        "version": VERSION,
        "run": mark_of(path),
        "pooling": pooling,
        "outputs": outputs,
        "embed": list(o.embed),
        "hidden": o.hidden,
        "n_features": data["n_features"],
        "features": data["features"],
        "learned_from": sorted(set(learned_from.tolist())),
        **more,
    }
    for part, own in zip(("train", "valid", "test"), rows, strict=True):
        saved[f"{part}_patients"] = sorted(set(patients[own].tolist()))
    save_file(path, partial(torch.save, saved))


def fold_path(folder, pooling, fold):
    return folder / f"{pooling}-r{fold.repeat}-f{fold.number}.pt"


def train_pooling(pooling, data, folds, o, folder, device):
    """Train the folds that are missing -> the checkpoints of all, in their order."""
    rank, world = o.share
    todo = by_first(lambda: [f for f in folds if not fold_path(folder, pooling, f).is_file()])
    for block in together(todo, data)[rank::world]:
        train_block(pooling, block, data, o, folder, device)
    of_all(None)
    if rank == 0:  # of a kill between a fold and its state
        for left in folder.glob(f"{pooling}-*.state.pt"):
            left.unlink()
    return [load_checkpoint(fold_path(folder, pooling, fold), "cpu") for fold in folds]


def together(folds, data):
    """Folds that train at once, with as many bags each: of a table what memory allows.

    Of slides one at a time, which fills the cores.
    """
    at_once = 1
    if data["what"] == "bags":
        longest = max(tiles for tiles, *_ in data["sums"])
        at_once = max(1, BAGS_AT_ONCE // (longest * data["n_features"]))
    blocks = []
    for n in sorted({len(fold.train) for fold in folds}):
        alike = [fold for fold in folds if len(fold.train) == n]
        blocks += [alike[i : i + at_once] for i in range(0, len(alike), at_once)]
    return blocks


def train_block(pooling, block, data, o, folder, device):
    """Train a few folds as one, and save each."""
    seeds = [seed_of(o, fold.repeat, fold.number) for fold in block]
    models = []
    for fold, seed in zip(block, seeds, strict=True):
        models.append(draw_model(pooling, data["sums"], fold.train, seed, o))
    state_file = fold_path(folder, pooling, block[0]).with_suffix(f".{len(block)}.state.pt")
    what = f"fold {block[0].number}" if len(block) == 1 else f"{len(block)} networks"
    done = train_heads(
        models,
        data["bag"],
        lambda rows: torch.from_numpy(data["y"][rows]),
        histcode.cross_entropy,
        [fold[2:] for fold in block],
        seeds,
        o,
        device,
        f"{pooling} {what}",
        state_file,
        data["names"],
    )
    for m, fold in enumerate(block):
        own = {
            "model": {name: value[m : m + 1].clone() for name, value in done["model"].items()},
            "epoch": int(done["epochs"][m]),
            "losses": done["losses"][:, m].clone(),
            "tests": done["tests"][m].clone(),
            "saw": {},
        }
        for step, rows in done["saw"][m].items():
            saw(own["saw"], step, data["patients"][rows])
        saw(own["saw"], "standardisation of the features", data["patients"][fold.train])
        keep_fold(pooling, fold, own, data, o, folder)
    state_file.unlink(missing_ok=True)


def keep_fold(pooling, fold, own, data, o, folder):
    """A trained fold's checkpoint, its entry in the log, its line on the terminal."""
    patients = data["patients"]
    save_fold(
        fold_path(folder, pooling, fold),
        own,
        data,
        o,
        pooling,
        2,
        patients,
        fold[2:],
        patients[np.concatenate([fold.train, fold.valid])],
        kind="diagnosis",
        classes=list(data["classes"]),
    )
    figures = figures_of(data["y"][fold.test], own)
    entry = {"pooling": pooling, "repeat": fold.repeat, "fold": fold.number, "epoch": own["epoch"]}
    for name, value in figures.items():
        entry[name] = None if math.isnan(value) else float(value)
    entry["valid_losses"] = [round(loss, 5) for loss in own["losses"].tolist()]
    with open(log_path(folder, o.share), "a") as log:
        log.write(json.dumps(entry) + "\n")
    sizes = "/".join(str(len(rows)) for rows in fold[2:])
    say(
        f"{pooling:8s} repeat {fold.repeat} fold {fold.number}: {sizes} {data['what']}, epoch "
        f"{own['epoch']:3d}, test accuracy {figures['accuracy']:.3f}, AUC {figures['auc']:.3f}"
    )
