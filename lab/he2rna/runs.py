"""The folder of a run: begun or gone on with, and read when it is finished."""

from pathlib import Path

import numpy as np

from lab.cohort.steps import half_supertiles
from lab.files import InputError, digest, few
from lab.he2rna.training import VERSION, fold_path, model_of_choices
from lab.runs import claim_folder, load_checkpoint, read_config, read_folds

OPTIONS = ("lr", "batch", "epochs", "patience", "folds", "folds_by", "seed", "code")  # as settings
SAVED = ("model", "genes", "test_patients", "hidden", "ks", "n_features", "dropout")


def open_run(cohort, o, settings, data, device, *seen):
    """Make or reopen COHORT/runs/NAME -> (folder, its settings); other settings are refused.

    seen: what tells the slides' features from others, for the digest of the data.
    """
    columns = [names.tolist() for names in (data.slides, data.patients, data.projects)]
    config = {
        **settings,
        "data": digest(*seen, data.y, data.fold, *columns, data.genes),
        "version": VERSION,
        "slides": len(data.y),
        "genes": len(data.genes),
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
        features_folder=o.features and str(Path(o.features).resolve()),
    )
    features = config["features"]
    made = [features[k] for k in ("source", "made", "weights", "precision") if k in features]
    said = (
        f"{config['slides']} slides of {len(set(data.patients))} patients, {config['genes']:,} "
        f"genes, {config['bags']}, {config['n_features']} features ({', '.join(made)}), {o.folds} "
        f"folds, on {device}"
    )
    print(f"{said}; other side of {', '.join(o.code)}" if o.code else said)
    return folder, config


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
    rows = read_folds(folder, fold_of)
    moved = [r["slide"] for r in rows if r.get("test_fold") != str(fold_of[r["patient"]][0])]
    if moved:
        raise InputError(
            f"{folder / 'folds.csv'}: the slides {few(moved)} were tested in other folds than it "
            "says; bring it back as it was made"
        )
    cohort = folder.resolve().parents[1]  # it may have moved
    if not (cohort / "samples.csv").is_file():
        cohort = Path(str(config.get("cohort")))
    return {
        "folder": folder,
        "config": config,
        "folds": folds,
        "genes": folds[0]["genes"],
        "rows": rows,
        "fold_of": fold_of,
        "cohort": cohort,
    }


def model_of(saved, device, genes=None, **more):
    """The network of a fold's checkpoint, in evaluation mode, with the output rows of some genes.

    more: arguments of model_of_choices that are not as in training.
    """
    state = dict(saved["model"])
    last = f"layers.{len(saved['hidden'])}."
    if genes is not None:
        for part in ("weight", "bias"):
            state[last + part] = state[last + part][genes]
    names = ("n_features", "hidden", "ks", "dropout", "code", "pad_to")
    settings = {**{name: saved[name] for name in names}, **more}
    model = model_of_choices(n_genes=len(state[last + "bias"]), **settings)
    model.load_state_dict(state)
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
