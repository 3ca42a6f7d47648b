"""lab.runs"""

import importlib.metadata
import json
import platform
from pathlib import Path

import torch

from lab.files import (
    InputError,
    differences,
    digest,
    few,
    load_json,
    read_rows,
    save_file,
    save_json,
)
from lab.locks import hold, sweep
from lab.processes import by_first, of_all


PACKAGES = ("numpy", "scipy", "torch", "openslide-python", "openslide-bin", "Pillow")


def versions():
    """{package: version} of what results may depend on, as pip tells them; torch.__version__ says more or less."""
    return {package: importlib.metadata.version(package) for package in PACKAGES}


def claim_folder(folder, config, results, share=(0, 1), **more):
    """Hold a run's folder and write its config.json -> its settings. Refused where the folder has results of others; `more`
    may change."""
    hold(folder, share)
    if share[1] > 1:
        of_all(None)  # nobody writes there now
        by_first(lambda: sweep(folder))
    return by_first(lambda: claimed(folder, config, results, more))


def claimed(folder, config, results, more):
    """claim_folder without the lock."""
    before, config = read_config(folder), json.loads(json.dumps(config))
    if before is None and any(folder.glob(results)):
        raise InputError(
            f"{folder} has {results} but no config.json that says with which settings: choose another --name, "
            "or delete it"
        )
    if before and {k: before.get(k) for k in config} != config:
        other_data = config.get("data") not in (None, before.get("data"))
        raise InputError(
            f"{folder} is a run with other settings ({differences(before, config)}"
            + "; data: slides, labels, expression, folds or feature files" * other_data
            + "): "
            + "choose another --name, or " * (config.get("command") != "audit")
            + "delete it to begin again"
        )
    config.update(
        id=digest(config),
        **more,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        **versions(),
    )
    save_json(folder / "config.json", config)
    return config


def read_config(folder, version=None):
    """config.json of a run, or None. InputError where a setting was changed by hand: `id` is the digest of those before it.
    Not asked of a run of another version, which the caller refuses."""
    config = load_json(Path(folder) / "config.json")
    settings = (
        dict(list(config.items())[: list(config).index("id")])
        if config and "id" in config
        else None
    )
    if (
        settings is not None
        and version in (None, config.get("version"))
        and digest(settings) != config["id"]
    ):
        raise InputError(
            f"{Path(folder) / 'config.json'} was changed since its run was made: bring it back as it "
            "was, or choose another run"
        )
    return config


def mark_of(path):
    """What a checkpoint says of where it belongs: [id of its run's settings, name of the file]; None in no run."""
    run = (load_json(Path(path).parent / "config.json") or {}).get("id")
    return [run, Path(path).name] if run else None


def read_folds(folder, fold_of):
    """folds.csv of a run: a dict for each slide. InputError where it isn't whole or names patients that no model knows."""
    path = Path(folder) / "folds.csv"
    header, rows = read_rows(path)
    rows = [dict(zip(header, row)) for row in rows if len(row) == len(header)]
    if not rows or not {"slide", "patient"} <= set(header):
        raise InputError(
            f"{path}: wanted are rows with slide and patient; it has {few(header)}; bring it back as it was made"
        )
    unknown = sorted({row["patient"] for row in rows} - set(fold_of))
    if unknown:
        raise InputError(
            f"{path}: no model of the run knows the patients {few(unknown)}; bring it back as it was made"
        )
    return rows


def read_log(folder):
    """The entries of a run's log, of all processes. A half line, which a full disk or a power cut left, is left out."""
    entries = []
    for path in sorted(folder.glob("log*.jsonl"), key=lambda path: len(path.name)):
        for line in path.read_text(errors="replace").splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                pass
    return [e for e in entries if isinstance(e, dict)]


def write_log(folder, entries):
    """Make log.jsonl anew from these entries; those of other processes are in it."""
    save_file(
        folder / "log.jsonl",
        lambda f: f.writelines((json.dumps(e) + "\n").encode() for e in entries),
    )
    for path in folder.glob("log-*.jsonl"):
        path.unlink()


def load_checkpoint(path, device, model=None, keys=("model",)):
    """A dict of tensors and plain values; no pickled code is run. InputError when it is not whole, has not the keys, is of
    another run or fold than its place says, or of another network than `model`, which gets its weights."""
    mark, why = mark_of(path), None
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        [saved[k] for k in keys]
        if mark and saved.get("run", mark) != mark:
            why = "of another run or fold"
        elif model is not None:
            model.load_state_dict(saved["model"])
    except Exception as e:  # torch's, zip's and pickle's errors share no class
        why = (
            "of another network"
            if isinstance(e, RuntimeError) and "state_dict" in str(e)
            else type(e).__name__
        )
    if why:
        raise InputError(
            f"{path}: not a whole checkpoint of this run ({why}); delete it to have it made again"
        )
    return saved


def say_anew(folder, anew):
    """Say which results are made anew and why; anew: [(settings they were made with, settings wanted)]."""
    if anew:
        print(f"{folder}: {len(anew)} slides are made anew: {differences(*anew[0])}")
