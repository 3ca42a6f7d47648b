"""A run's folder: claimed, and read again when it is finished."""

from pathlib import Path

import numpy as np

import histcode
from lab import space
from lab.files import InputError, digest, few
from lab.runs import claim_folder, load_checkpoint, read_config, read_folds

VERSION = 1  # of a run's files; another is refused     [ours]


def claim_run(folder, o, d, more, *seen):
    """Write the config.json of a downstream run -> its settings; a folder of other settings is refused."""
    config = dict(
        command=o.verb,
        version=VERSION,
        code=o.code,
        data=digest(*seen, *d["seen"]),
        features=d["features"],
        n_features=d["n_features"],
        embed=list(o.embed),
        **more,
        **{
            k: getattr(o, k)
            for k in ("hidden", "lr", "weight_decay", "epochs", "batch", "folds", "repeats", "seed")
        },
    )
    return claim_folder(
        folder,
        config,
        "*.pt",
        o.share,
        bags=getattr(o, "bags", None),
        processes=o.share[1],
        cohort=o.cohort and str(Path(o.cohort).resolve()),
        features_folder=o.features and str(Path(o.features).resolve()),
    )


def load_run(path, pooling=None):
    """A finished run of diagnose or expression: dict as tiling's "run's models on slides" wants it; folds: its checkpoints,
    kind of each (diagnosis, linear, attention)."""
    folder = Path(path)
    config = read_config(folder, VERSION) or {}
    if config.get("command") not in ("diagnose", "expression") or config.get("bags"):
        raise InputError(
            f"{folder}: not a run on slides of diagnose or expression; give a folder such as "
            "COHORT/runs/diagnosis"
        )
    if config.get("version") != VERSION:
        raise InputError(
            f"{folder} is a run of version {config.get('version')} of this program's files, this one reads "
            f"version {VERSION}: train it again, or use the program that made it"
        )
    if config["command"] == "diagnose":
        there = [name for name in histcode.POOLINGS if (folder / f"{name}-r0-f0.pt").is_file()]
        pooling = pooling or ("HistCode" if "HistCode" in there or not there else there[0])
        if pooling not in there:
            raise InputError(
                f"--pooling {pooling}: {folder} has {few(there) or 'no finished fold'}"
            )
        names = [
            f"{pooling}-r{r}-f{f}.pt"
            for r in range(config["repeats"])
            for f in range(config["folds"] if config["rotate"] else max(1, config["folds"] // 2))
        ]
    elif pooling:
        raise InputError(f"--pooling {pooling}: {folder} is a run of expression, which has one")
    else:
        names = [f"fold{f}.pt" for f in range(config["folds"])]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not (folder / "report.md").is_file():
        raise InputError(
            f"{folder}: {few(missing, 3) or 'report.md'} is missing: the run is not finished; the command that "
            "began it goes on"
        )
    keys = ["model", "kind", "learned_from", "test_patients", "n_features"]
    saved, cohort = (
        [load_checkpoint(folder / name, "cpu", keys=keys) for name in names],
        folder.resolve().parents[1],
    )
    known = {who for s in saved for k in ("learned_from", "test_patients") for who in s[k]}
    return dict(
        folder=folder,
        config=config,
        folds=saved,
        rows=read_folds(folder, known),
        cohort=cohort
        if (cohort / "samples.csv").is_file()
        else Path(str(config.get("cohort"))),  # it may move
        fold_of={
            who: [m for m, s in enumerate(saved) if who not in s["learned_from"]] for who in known
        },
    )


def off_scale(h):
    return f"its prediction is not finite: features up to {np.abs(h).max():.3g} are of another scale than the run's"
