"""A run of HE2RNA: every fold trained, resumed where it stopped, its test slides predicted, judged.

The learning itself is he2rna.train_epochs. Here stands what a long run needs around it: the state
saved after each epoch, the log, a line on the terminal, the folds shared by several processes.
"""

import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

import he2rna
import tiling
from lab.audit.ledger import saw
from lab.fast.products import Layer
from lab.fast.topk import top_k_head
from lab.files import InputError, few, save_file
from lab.he2rna.bags import read_ahead
from lab.he2rna.best import said_of_best
from lab.he2rna.evaluation import (
    decoy_null,
    judged_in,
    save_predictions,
    untrained_null,
    write_genes,
)
from lab.he2rna.report import (
    SUMMARY_HEADER,
    summary,
    write_report,
)
from lab.he2rna.report_plots import draw_null
from lab.processes import by_first, log_path, of_all, say
from lab.progress import clock, seldom
from lab.runs import load_checkpoint, mark_of, read_log, seconds_of, write_log

VERSION = 5  # of a run's files; another is refused. 4 had no decoys  [ours]
SETTINGS = ("hidden", "n_features", "ks", "dropout", "features", "code", "pad_to")  # in fold*.pt


def model_of_choices(*sizes, code=(), pad_to=tiling.N_SUPERTILES, precision="float32", **more):
    """HE2RNA(*sizes, **more), with the choices that --code turns as its arguments.

    pad_to: rows to which the authors' code pads a bag; precision: in which tiles are chosen.
    """
    pool = he2rna.top_k_mean
    head = partial(top_k_head, precision=precision)
    if "padding" in code:
        pool = partial(he2rna.padded_top_k_mean, rows=pad_to)
        head = None  # the fast one has no padding
    model = he2rna.HE2RNA(
        *sizes,
        **more,
        pool=pool,
        head=head,
        one_k_per_gene="k" in code,
        relu="relu" in code,
    )
    for i, hidden in enumerate(model.layers[:-1]):
        model.layers[i] = Layer.of(hidden)
    return model


def cross_validate(folder, config, o, data, bags, splits, first_model, start):
    """Train every fold that is not there yet, predict its test slides, judge, write the report.

    first_model(fold, training rows) -> the model that training starts from; start: when the command
    began. Of several processes each trains its folds, and the first does the rest.
    """
    rank, world = o.share
    by_first(lambda: tidy_log(folder))
    for fold in range(rank, len(splits), world):
        if not fold_path(folder, fold).is_file():
            model = first_model(fold, splits[fold][0])
            note = train_fold(model, bags, data, splits[fold], o, fold, folder)
            save_fold(folder, fold, model, note, config, data)
        state_path(folder, fold).unlink(missing_ok=True)
    of_all(None)
    if rank:
        return
    tidy_log(folder)
    prediction, saved, device = predict_test_slides(folder, o, data, bags, splits, first_model)
    judge(folder, config, o, data, bags, prediction, saved, device, start)


def fold_path(folder, fold):
    return folder / f"fold{fold}.pt"


def state_path(folder, fold):
    """Where training stands in a fold that is not finished."""
    return folder / f"fold{fold}.state.pt"


# ----- One fold ----------------------------------------------------------------------------------


def train_fold(model, bags, data, rows, o, fold, folder):
    """Train one fold, saving where it stands after each epoch. Leaves `model` at its best epoch.

    rows: (train, valid, test). Returns what the report says of the fold.
    """
    train, valid, _ = rows
    projects = projects_that_choose(data.projects, o.code)
    write_ledger(data, fold, train, valid)
    path = state_path(folder, fold)
    state = load_state(path, model)
    due = seldom()
    before = seconds_of(read_log(folder)).get((fold, state["epoch"]), 0) if state else 0
    start = time.monotonic() - before
    epochs = he2rna.train_epochs(
        model,
        bags,
        data.targets,
        projects,
        train,
        valid,
        epochs=o.epochs,
        patience=o.patience,
        batch=o.batch,
        lr=o.lr,
        seed=(o.seed, fold),
        state=state,
        ahead=read_ahead(f"fold{fold}"),
        n_genes=len(data.genes),
    )
    try:
        for state in epochs:
            seconds = time.monotonic() - start
            log_epoch(log_path(folder, o.share), fold, state, seconds)
            save_state(path, state)
            if due():
                say_epoch(o, fold, state, seconds)
    except he2rna.NotFinite as e:
        raise InputError(
            f"fold {fold} epoch {e.epoch}: loss or weights are not finite any more, at the slides "
            f"{few(data.slides[e.rows].tolist())}; {path} keeps epoch {e.epoch - 1}; a lower "
            "--lr may help"
        ) from None
    model.load_state_dict(state["best"])
    note = {"best_epoch": state["best_epoch"], "epochs": state["epoch"]}
    note["by"] = chosen_by(projects[valid])
    say(f"fold{fold}: best epoch {note['best_epoch']} of {note['epochs']}, by {note['by']}")
    return note


def projects_that_choose(projects, code):
    """What each slide's R counts for where the epoch is chosen: its project, or what that is in.

    [HE2RNA code] merges subtypes there, too.
    """
    if "subtypes" not in code:
        return projects
    merged = {part: name for name, parts in he2rna.MERGED.items() for part in parts}
    return np.array([merged.get(he2rna.short(project), project) for project in projects])


def write_ledger(data, fold, train, valid):
    saw(data.ledgers[fold], "weights of the network", data.patients[train])
    if len(valid):
        saw(data.ledgers[fold], "choice of the epoch", data.patients[valid])


def load_state(path, model):
    """Where an earlier call left off, or None."""
    if path.is_file():
        device = next(model.parameters()).device
        return load_checkpoint(path, device, keys=("model", "optimizer", "best"))
    return None


def chosen_by(projects):
    """What the report says the best epoch was chosen by. projects: of the validation slides."""
    if not len(projects):
        return "none: the last"
    if he2rna.chosen_by_r(projects):
        return "R"
    return f"loss ({len(projects)} validation slides are too few for R)"


def save_state(path, state):
    marked = {**state, "run": mark_of(path)}
    save_file(path, lambda f: torch.save(marked, f))


def log_epoch(path, fold, state, seconds):
    """A line of log.jsonl, the only file that holds times; seconds: that the fold took so far."""
    entry = {
        "fold": fold,
        "epoch": state["epoch"],
        "loss": state["loss"],
        "valid_loss": state["valid_loss"],
        "valid_r": state["r"],
        "best_epoch": state["best_epoch"],
        "seconds": round(seconds, 1),
    }
    with open(path, "a") as f:
        f.write(json.dumps(entry) + "\n")


def say_epoch(o, fold, state, seconds):
    """A line on the terminal: what the epoch brought, and how long the process takes at most."""
    epoch, best = state["epoch"], state["best_epoch"]
    folds_after = len(range(fold, o.folds, o.share[1])) - 1
    left = seconds / epoch * (o.epochs - epoch + o.epochs * folds_after)
    said = f"fold{fold} epoch {epoch:3d}/{o.epochs}  loss {state['loss']:.4f}"
    if state["valid_loss"] is not None:
        said += f"  valid loss {state['valid_loss']:.4f}"
    if state["r"] is not None:
        said += f"  valid R {state['r']:.3f}"
    say(f"{said}  best epoch {best:3d}  at most {clock(left)} left")


def save_fold(folder, fold, model, note, config, data):
    """fold*.pt: the weights, and all that using them wants to know.

    The output rows of the decoys stand apart: whoever uses the network sees its genes alone.
    """
    path = fold_path(folder, fold)
    last, n_genes = model.layers[-1], len(data.genes)
    decoys = {"weight": last.weight[n_genes:].clone(), "bias": last.bias[n_genes:].clone()}
    model.keep_genes(range(n_genes))
    saved = {
        "version": VERSION,
        "run": mark_of(path),
        "model": model.state_dict(),
        "decoys": decoys,
        "note": note,
        "genes": data.genes,
        "test_patients": data.tested[fold],
        "saw": data.ledgers[fold],
        **{k: config[k] for k in SETTINGS},
    }
    save_file(path, lambda f: torch.save(saved, f))


def tidy_log(folder):
    """Each epoch once, in order. Those that a break left unsaved ran again, to the same end."""
    entries = {}
    for entry in read_log(folder):
        if "fold" in entry and "epoch" in entry:
            entries[entry["fold"], entry["epoch"]] = entry
    write_log(folder, [entries[key] for key in sorted(entries)])


# ----- All folds ---------------------------------------------------------------------------------


def predict_test_slides(folder, o, data, bags, splits, first_model):
    """-> (each slide by the model that did not see it (S, G + m), checkpoints, device)."""
    models, saved = [], []
    for fold, (train, _, test) in enumerate(splits):
        model = first_model(fold, train).keep_genes(range(len(data.genes)))
        device = next(model.parameters()).device
        one = load_checkpoint(fold_path(folder, fold), device, model, keys=("model", "decoys"))
        model.add_outputs(**one["decoys"])
        saw(one["saw"], "untrained null", data.patients[test])
        saved.append(one)
        models.append(model)
    ahead = read_ahead("test slides")
    prediction = he2rna.cross_predict(models.__getitem__, bags, data.fold, o.batch, ahead)
    return prediction, saved, device


def untrained_model(config, data, o, device, copies, number, fold):
    """Model `number` that learned nothing, for one fold: `copies` outputs for each gene.

    A shift of all scores of a fold changes no R within it, so the last bias stays as drawn; but
    where zeros or other folds have a say it starts at the training mean, as in training. [ours]
    """
    draw = np.random.default_rng([o.seed, fold, 1 + number]).integers(2**62)
    torch.manual_seed(int(draw))
    model = model_of_choices(
        config["n_features"],
        data.y.shape[1] * copies,
        config["hidden"],
        config["ks"],
        code=config["code"],
        pad_to=config["pad_to"],
    )
    if {"padding", "relu", "pooled"} & set(config["code"]) and "bias" not in config["code"]:
        mean = data.y[data.fold != fold].mean(0)
        model.start_at(np.tile(mean, copies))
    return model.to(device)


def judge(folder, config, o, data, bags, prediction, saved, device, start):
    """Test significance, write all files of the run, and say the table of cancers."""
    fold, n_folds = judged_in(data.fold, config)
    models = partial(untrained_model, config, data, o, device)
    untrained = untrained_null(folder, config, data, bags, o, models)
    decoys = decoy_null(folder, config, data, prediction)
    prediction = prediction[:, : len(data.genes)]
    results = he2rna.evaluate(
        prediction,
        data.y,
        fold,
        data.projects,
        n_folds,
        untrained,
        o.null,
        patients=data.patients,
        decoys=decoys,
    )
    save_predictions(folder, data, prediction)
    write_genes(folder / "genes.csv", data.genes, results, config["provenance"])
    nulls = {"decoys": decoys, "untrained": untrained}
    draw_null(folder / "null.png", results, nulls, config["provenance"])
    write_report(
        folder,
        Path(config["cohort"]),
        config,
        data,
        results,
        prediction,
        [one["note"] for one in saved],
        [one["saw"] for one in saved],
        time.monotonic() - start,
    )
    print()
    for row in [SUMMARY_HEADER, *summary(results)]:
        print("{:>12} {:>7} {:>8} {:>7} {:>9} {:>9} {:>15} {:>15}".format(*row))
    best = said_of_best(results, data.genes)
    if best:
        print(f"\nbest: {best}")
    took = clock(time.monotonic() - start)
    print(f"report: {folder / 'report.md'}, and report.html to look at   ({took})")
