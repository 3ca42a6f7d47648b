"""A run's folder: claimed before it is trained, and read again when it is finished."""

from pathlib import Path

import numpy as np

from lab.cohort.features import features_of
from lab.files import InputError, digest, few
from lab.histcode.networks import POOLINGS
from lab.histcode.splits import tested_parts
from lab.processes import by_first
from lab.provenance import of_data, of_run
from lab.runs import (
    claim_folder,
    load_checkpoint,
    read_config,
    read_folds,
    read_learned,
    save_learned,
)

VERSION = 1  # of a run's files; another is refused  [ours]
SETTINGS = ("hidden", "lr", "weight_decay", "epochs", "batch", "folds", "repeats", "seed")


def claim_run(folder, o, data, more, *seen):
    """Write the config.json of a run -> its settings; a folder of other settings is refused."""
    config = {
        "command": o.verb,
        "version": VERSION,
        "code": o.code,
        "data": digest(*seen, *data["seen"]),
        "features": data["features"],
        "n_features": data["n_features"],
        "embed": list(o.embed),
        **more,
        **{name: getattr(o, name) for name in SETTINGS},
    }
    config = claim_folder(
        folder,
        config,
        "*.pt",
        o.share,
        bags=getattr(o, "bags", None),
        processes=o.share[1],
        cohort=o.cohort and str(Path(o.cohort).resolve()),
        features_folder=o.features and str(Path(o.features).resolve()),
        provenance=of_data(o.cohort, features_of(o), data["names"][0]) if o.cohort else [],
        **({"scale": o.scale or "linear", "unit": o.unit} if hasattr(o, "unit") else {}),
    )
    by_first(lambda: save_learned(folder, data.get("learned_as", {})))
    return config


def load_run(path, pooling=None):
    """A finished run of diagnose or expression, as lab.application wants it.

    A dict: folder, config, folds (its checkpoints), rows (of folds.csv), cohort, and fold_of
    {patient: the models that did not learn from her or him}.
    """
    folder = Path(path)
    config = read_config(folder, VERSION) or {}
    if config.get("command") not in ("diagnose", "expression") or config.get("bags"):
        raise InputError(
            f"{folder}: not a run on slides of diagnose or expression; give a folder such as "
            "COHORT/runs/diagnosis"
        )
    if config.get("version") != VERSION:
        raise InputError(
            f"{folder} is a run of version {config.get('version')} of this program's files, this "
            f"one reads version {VERSION}: train it again, or use the program that made it"
        )
    names = checkpoints_of(folder, config, pooling)
    missing = [n for n in (*names, "report.md") if not (folder / n).is_file()]
    if missing:
        raise InputError(
            f"{folder}: {few(missing, 3)} is missing: the run is not finished; the command that "
            "began it goes on"
        )
    keys = ("model", "kind", "learned_from", "test_patients", "n_features")
    folds = [load_checkpoint(folder / name, "cpu", keys=keys) for name in names]
    fold_of = {}
    for saved in folds:
        for patient in (*saved["learned_from"], *saved["test_patients"]):
            fold_of[patient] = [
                m for m, model in enumerate(folds) if patient not in model["learned_from"]
            ]
    cohort = folder.resolve().parents[1]
    if not (cohort / "samples.csv").is_file():  # the run was moved out of it
        cohort = Path(str(config.get("cohort")))
    return {
        "folder": folder,
        "config": config,
        "folds": folds,
        "rows": read_folds(folder, fold_of),
        "cohort": cohort,
        "learned_as": read_learned(folder),
        "fold_of": fold_of,
        "provenance": of_run(folder, config),
    }


def checkpoints_of(folder, config, pooling):
    """Names of the files of a finished run's models: of a diagnosis those of one pooling."""
    if config["command"] == "expression":
        if pooling:
            raise InputError(f"--pooling {pooling}: {folder} is a run of expression, which has one")
        return [f"fold{f}.pt" for f in range(config["folds"])]
    there = [name for name in POOLINGS if (folder / f"{name}-r0-f0.pt").is_file()]
    if pooling is None:
        pooling = there[0] if there and "HistCode" not in there else "HistCode"
    if pooling not in there:
        raise InputError(f"--pooling {pooling}: {folder} has {few(there) or 'no finished fold'}")
    tested = range(tested_parts(config["folds"], config["rotate"]))
    return [f"{pooling}-r{r}-f{f}.pt" for r in range(config["repeats"]) for f in tested]


def off_scale(h):
    """Why a prediction is not finite."""
    return (
        f"its prediction is not finite: features up to {np.abs(h).max():.3g} are of another scale "
        "than the run's"
    )
