"""A run's folder: config.json with a digest of its settings, checkpoints, folds.csv, log.jsonl."""

import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import torch

from lab.files import (
    InputError,
    differences,
    digest,
    few,
    load_json,
    read_rows,
    save_csv,
    save_file,
    save_json,
    sweep,
)
from lab.locks import hold
from lab.processes import by_first, of_all
from lab.words import LONGEST, fits

LEARNED = "features.csv"  # of a run: of which features it learned
PACKAGES = ("numpy", "scipy", "torch", "openslide-python", "openslide-bin", "Pillow")


def check_name(text):
    """InputError unless --name can be that of a folder inside another."""
    if not fits(text):
        raise InputError(
            f"--name {text}: the name of a folder, not a path, of {LONGEST} bytes at most, without "
            "control characters or a dot in front"
        )


def versions():
    """{package: version} of what results may depend on, as pip tells them."""
    return {package: importlib.metadata.version(package) for package in PACKAGES}


# ----- Settings -----------------------------------------------------------------------------------


def claim_folder(folder, config, results, share=(0, 1), **more):
    """Hold a run's folder and write its config.json -> its settings; more: what may change.

    results: a pattern of the run's files. A folder that has some of other settings is refused.
    """
    hold(folder, share)
    of_all(None)  # nobody writes there now
    return by_first(lambda: claimed(folder, config, results, more))


def claimed(folder, config, results, more):
    """claim_folder without the lock."""
    sweep(folder)
    before = read_config(folder)
    config = json.loads(json.dumps(config))  # as it will be read
    if before is None and any(folder.glob(results)):
        raise InputError(
            f"{folder} has {results} but no config.json that says with which settings: choose "
            "another --name, or delete it"
        )
    if before and {key: before.get(key) for key in config} != config:
        changed = differences(before, config)
        if config.get("data") not in (None, before.get("data")):
            changed += "; data: slides, labels, expression, folds or feature files"
            if not (folder / LEARNED).is_file():
                changed += ", or the order of samples.csv, which counted in earlier versions"
        another = "" if config.get("command") == "audit" else "choose another --name, or "
        raise InputError(
            f"{folder} is a run with other settings ({changed}): {another}delete it to begin again"
        )
    if before:  # in the order that its id is the digest of
        config = {key: value for key, value in before.items() if key in config}
    made_by = {"threads": torch.get_num_threads(), "python": platform.python_version()}
    config = {**config, "id": digest(config), **more, **made_by, **versions()}
    save_json(folder / "config.json", config)
    return config


def read_config(folder, version=None):
    """config.json of a run, or None. InputError where a setting was changed by hand.

    `id` is the digest of the settings before it; that of another `version` is not looked at.
    """
    path = Path(folder) / "config.json"
    config = load_json(path)
    if not config or "id" not in config or version not in (None, config.get("version")):
        return config
    settings = {}
    for key, value in config.items():
        if key == "id":
            break
        settings[key] = value
    if digest(settings) != config["id"]:
        raise InputError(
            f"{path} was changed since its run was made: bring it back as it was, or choose "
            "another run"
        )
    return config


# ----- Checkpoints --------------------------------------------------------------------------------


def mark_of(path):
    """Where a checkpoint belongs: [id of its run's settings, its file's name]; None in no run.

    A fold copied from another run may have learned from this one's test patients.
    """
    run = (load_json(Path(path).parent / "config.json") or {}).get("id")
    return [run, Path(path).name] if run else None


def load_checkpoint(path, device, model=None, keys=("model",)):
    """A dict of tensors and plain values; no pickled code is run. `model`, if given, gets its
    weights.

    InputError when it is not whole, lacks one of the keys, is of another run or fold than its place
    says, or of another network.
    """
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
    except Exception as e:  # torch's, zip's and pickle's errors share no class
        raise not_whole(path, type(e).__name__) from None
    missing = set(keys) - set(saved) if isinstance(saved, dict) else set(keys)
    if missing:
        raise not_whole(path, f"without {', '.join(sorted(missing))}")
    mark = mark_of(path)
    if mark and saved.get("run", mark) != mark:
        raise not_whole(path, "of another run or fold")
    intern_keys(saved)
    if model is not None:
        try:
            model.load_state_dict(saved["model"])
        except (RuntimeError, TypeError, AttributeError):
            raise not_whole(path, "of another network") from None
    return saved


def intern_keys(value):
    """Let equal keys be one object, as they are where nothing was loaded: saved again, they are
    written once, and the file has the same bytes.
    """
    if isinstance(value, dict):
        for key in list(value):
            inner = value.pop(key)
            value[sys.intern(key) if type(key) is str else key] = inner
            intern_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            intern_keys(inner)


def not_whole(path, why):
    return InputError(
        f"{path}: not a whole checkpoint of this run ({why}); delete it to have it made again"
    )


# ----- Tables -------------------------------------------------------------------------------------


def read_folds(folder, fold_of):
    """folds.csv of a run: a dict for each slide. InputError where it is not whole.

    fold_of: the patients that the run's models know; other ones are refused.
    """
    path = Path(folder) / "folds.csv"
    header, rows = read_rows(path)
    rows = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    back = "bring it back as it was made"
    if not rows or not {"slide", "patient"} <= set(header):
        raise InputError(
            f"{path}: wanted are rows with slide and patient; it has {few(header)}; {back}"
        )
    unknown = sorted({row["patient"] for row in rows} - set(fold_of))
    if unknown:
        raise InputError(f"{path}: no model of the run knows the patients {few(unknown)}; {back}")
    return rows


def save_learned(folder, learned_as):
    """LEARNED of a run: what it remembers of each slide's features, {slide: learned_as}."""
    save_csv(folder / LEARNED, ("slide", "features"), sorted(learned_as.items()))


def read_learned(folder):
    """{slide: what the run remembers of its features}; {} of a run of an earlier version."""
    path = Path(folder) / LEARNED
    rows = read_rows(path)[1] if path.is_file() else []
    return {row[0]: row[1] for row in rows if len(row) == 2}


def read_log(folder):
    """The entries of a run's log, of all processes, without what a full disk left of a line."""
    entries = []
    for path in sorted(folder.glob("log*.jsonl"), key=lambda path: len(path.name)):
        for line in path.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                entries.append(entry)
    return entries


def seconds_of(entries):
    """{(fold, epoch): seconds that the fold took so far}; checkpoints hold none, to be the same."""
    times = {}
    for entry in entries:
        times[entry.get("fold"), entry.get("epoch")] = entry.get("seconds", 0)
    return times


def write_log(folder, entries):
    """Make log.jsonl anew from these entries; those of other processes are in it."""
    lines = [json.dumps(entry) + "\n" for entry in entries]
    save_file(folder / "log.jsonl", lambda f: f.write("".join(lines).encode()))
    for path in folder.glob("log-*.jsonl"):
        path.unlink()


def say_anew(folder, anew):
    """Say which results are made anew and why; anew: [(settings they were made with, wanted)]."""
    if anew:
        why = differences(*anew[0]) or "their slides, or tiles, have changed since"
        print(f"{folder}: {len(anew)} slides are made anew: {why}")
