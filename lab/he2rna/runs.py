"""The folder of a run: begun or gone on with, and read when it is finished."""

from pathlib import Path

import numpy as np

from lab.cohort.supertiles import half_supertiles
from lab.files import InputError, digest
from lab.he2rna.folds import save_folds, split_folds
from lab.he2rna.training import VERSION, cross_validate, fold_path, model_of_choices
from lab.processes import by_first
from lab.progress import report_failures
from lab.provenance import of_run
from lab.runs import (
    claim_folder,
    load_checkpoint,
    read_config,
    read_folds,
    read_learned,
    save_learned,
)

OPTIONS = ("lr", "batch", "epochs", "patience", "folds", "folds_by", "seed", "code")  # as settings
SAVED = ("model", "decoys", "genes", "test_patients", "hidden", "ks", "n_features", "dropout")


def open_run(cohort, o, settings, data, device, words, *seen):
    """Make or reopen COHORT/runs/NAME -> (folder, its settings); other settings are refused.

    words: of lab.provenance; seen: what tells the slides' features from others, for the digest of
    the data.
    """
    columns = [names.tolist() for names in (data.slides, data.patients, data.projects)]
    config = {
        **settings,
        "data": digest(*seen, data.y, data.fold, *columns, data.genes),
        "version": VERSION,
        "slides": len(data.y),
        "genes": len(data.genes),
        "decoys": data.targets.shape[1] - len(data.genes),
        **{name: getattr(o, name) for name in OPTIONS},
    }
    folder = cohort / "runs" / o.within / o.name
    config = claim_folder(
        folder,
        config,
        "fold*.pt",
        o.share,
        cohort=str(cohort.resolve()),
        device=str(device),
        processes=o.share[1],
        null=o.null,
        features_folder=o.features and str(Path(o.features).resolve()),
        scale=o.scale or "linear",
        unit=o.unit,
        provenance=words,
    )
    print(
        f"{len(data.y)} slides of {len(set(data.patients))} patients, {len(data.genes):,} genes, "
        f"{config['bags']} of {config['features']['source']}, {o.folds} folds, on {device}"
    )
    return folder, config


def train_folds(folder, config, o, data, bags, first_model, start):
    """Cross-validate and report -> exit status: 1 where slides failed.

    bags(rows) -> x, mask; first_model(fold, training rows) -> the network that training starts
    from; start: when the command began.
    """
    splits = split_folds(data, o)
    by_first(lambda: save_folds(folder, data, splits, o.folds_by))
    by_first(lambda: save_learned(folder, data.learned_as))
    cross_validate(folder, config, o, data, bags, splits, first_model, start)
    if o.share[0]:
        return 0
    return report_failures(data.failed, len(data.slides) + len(data.failed), folder)


def load_run(path):
    """A finished run, as a dict: folder, config, folds (a checkpoint of each), genes, rows of
    folds.csv, cohort, and fold_of {patient: [the fold whose model did not learn from him or her]}.

    fold_of knows the patients of the run that this one was fine-tuned from, too.
    """
    folder, config = Path(path), read_config(path, VERSION)
    if config is None:
        raise InputError(f"{folder}: not a run, no config.json; one is COHORT/runs/he2rna, say")
    if config.get("version") != VERSION:
        raise InputError(
            f"{folder} is a run of version {config.get('version')} of this program's files, this "
            f"one reads version {VERSION}: train it again, or use the program that made it"
        )
    paths = [fold_path(folder, f) for f in range(config["folds"])]
    for needed in (*paths, folder / "folds.csv"):
        if not needed.is_file():
            why = "the run is not finished; the command that began it goes on"
            raise InputError(f"{folder}: {needed.name} is missing: {why}")
    folds = [load_checkpoint(path, "cpu", keys=SAVED) for path in paths]
    fold_of = {patient: [f] for f, saved in enumerate(folds) for patient in saved["test_patients"]}
    cohort = folder.resolve().parents[1]  # it may have moved
    if not (cohort / "samples.csv").is_file():
        cohort = Path(str(config.get("cohort")))
    return {
        "folder": folder,
        "config": config,
        "folds": folds,
        "genes": folds[0]["genes"],
        "rows": read_folds(folder, fold_of),
        "learned_as": read_learned(folder),
        "fold_of": fold_of,
        "cohort": cohort,
        "provenance": of_run(folder, config),
    }


def model_of(saved, device, genes=None, **more):
    """The network of a fold's checkpoint, in evaluation mode, with the output rows of some genes.

    more: arguments of model_of_choices that are not as in training.
    """
    names = ("n_features", "hidden", "ks", "dropout", "code", "pad_to")
    settings = {**{name: saved[name] for name in names}, **more}
    model = model_of_choices(n_genes=len(saved["genes"]), **settings)
    model.load_state_dict(saved["model"])
    if genes is not None:
        model.keep_genes(genes)
    return model.to(device).eval()


def bag_of(features, coords, config):
    """What a run's models see of a slide: its tiles, or its super-tiles.

    -> (bag (T, D), the bag's row of each tile (n,))
    """
    if config["bags"] == "all tiles":
        return np.array(features), np.arange(len(features))
    made = config["features"]["supertiles"]
    means, mask, cluster = half_supertiles(features, coords, made["k"], made["seed"])
    row_of_cluster = np.cumsum(mask) - 1
    return means[mask], row_of_cluster[cluster]
