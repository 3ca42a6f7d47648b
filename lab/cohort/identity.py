"""Whose a slide is: decided here, for every verb, for slide files and features alike. [ours]

A samples.csv beside or above the file speaks first; then the run's own table, only for the run's
own files; then the barcode that the file's name begins with. A name alone is no identity: another
file of the same name is another slide.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lab.cohort.features import made_as, sample_of
from lab.cohort.names import person
from lab.cohort.samples import read_samples
from lab.cohort.slides import find_slides, unnameable
from lab.exchange.clam import FOREIGN
from lab.files import InputError, digest, few, fingerprint, load_json, read_table, save_json
from lab.words import tidy


@dataclass
class Slide:
    """A slide that a run is asked about."""

    name: str  # of its file, and in the tables of its cohort
    path: Path | None  # the file; None where a slide of the run is named
    home: Path  # its cohort, or the folder that it lies in
    own: bool  # whether it is the run's own slide of that name
    patients: list  # whose it may be; none: a stranger's
    label: str  # the name of what is written about it


def asked_slides(run, texts):
    """The Slide of each text: a slide file, a file of features, or the name of a run's slide."""
    patient_of = {row["slide"]: row["patient"] for row in run["rows"]}
    mine = {}
    if (run["cohort"] / "slides").is_dir():
        mine = find_slides(run["cohort"])
    return [asked_slide(run, text, patient_of, mine) for text in texts]


def asked_slide(run, text, patient_of, mine):
    """patient_of: of the run's slides; mine: files of the run's cohort."""
    if os.path.isfile(text):  # a name may be too long for Path
        path = Path(text).absolute()
        home = home_of(path)
        path, name = series_and_name(path, home)
        own = name in patient_of and is_own(run, name, path, mine.get(name))
    else:
        name, home, own = tidy(text), run["cohort"], True
        path = None
        if name not in patient_of:
            raise InputError(
                f"{few([text])}: neither a slide file nor a slide of the run {run['folder']}"
            )
    told = told_by_table(path or home.absolute() / name, name)
    patients = [told, patient_of[name] if own else None, person(name)]
    label = name if own else label_of_stranger(run, name, path, name in patient_of)
    return Slide(name, path, home, own, list(dict.fromkeys(filter(None, patients))), label)


def home_of(path):
    """The cohort of a slide file, by slides/, or of features, by slides/ or samples.csv too."""
    for folder in path.parents:
        if path.suffix not in FOREIGN and folder.name == "slides":
            return folder.parent
        is_cohort = (folder / "slides").is_dir() or (folder / "samples.csv").is_file()
        if path.suffix in FOREIGN and is_cohort:
            return folder
    return path.parent


def series_and_name(path, home):
    """(file, name) of a slide; of a DICOM series its level 0, and its name in its cohort."""
    if path.suffix.lower() != ".dcm":
        return path, tidy(path.stem)
    there = {file: name for name, file in find_slides(home).items() if file.parent == path.parent}
    if path not in there and len(there) != 1:
        raise InputError(f"{path}: of which series? {path.parent} has {few(list(there.values()))}")
    path = path if path in there else next(iter(there))
    return path, there[path]


def told_by_table(path, name):
    """The patient of a file by the nearest samples.csv, beside or above it, that names it."""
    tables = tables_of(path, name)
    return patients_in(tables[0])[name] if tables else None


def tables_of(path, name):
    """The folders at or above a file, from the nearest on, whose samples.csv names it."""
    return [folder for folder in path.parents if name in patients_in(folder)]


def patients_in(folder):
    """{slide: patient} of the samples.csv of a folder; {} where there is none, or no slide in it.

    Each table is read once, however many slides lie below it.
    """
    path = folder / "samples.csv"
    return patients_of_file(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=64)
def patients_of_file(path, _changed):
    header = read_table(path, lambda header, rows: header)
    if not {"slide", "patient"} <= set(header):  # another program's
        return {}
    return {row["slide"]: row["patient"] for row in read_samples(path.parent)}


def is_own(run, name, path, mine):
    """Whether a file is the run's own slide of that name: by its place, or by what it holds.

    Where the run's own is gone, and no other cohort's samples.csv names the file, nothing tells
    them apart. Then it is taken for the run's own: no model shall speak of a patient that it may
    have learned from.
    """
    same = None
    if path.suffix in FOREIGN:
        same = same_features(run["config"].get("features_folder"), path, name)
    elif mine:
        same = mine.samefile(path) or fingerprint(mine) == fingerprint(path)
    else:
        made = made_as(run["cohort"] / "features" / run["config"]["features"]["source"], name)
        same = made["tiles"].get("file") == fingerprint(path) if made else None
    if same is None:
        tables = tables_of(path, name)
        return not tables or tables[0].resolve() == run["cohort"].resolve()
    return same


def same_features(folder, path, name):
    """Whether features are those of a folder, by place or content; None where it has none."""
    if folder is None:
        return None
    if Path(folder).resolve() in path.resolve().parents:
        return True
    try:
        mine, other = (sample_of(where, name) for where in (Path(folder), path.parent))
    except InputError:
        return None
    return mine["sample"] == other["sample"]


def label_of_stranger(run, name, path, taken):
    """The name under which a slide that is not the run's own stands in the run's folder.

    It is its own, unless another slide of that name was there before: of the run (`taken`), or
    of another folder, as RUN/strangers/NAME.json remembers. Then its folder's digest is added.
    """
    if unnameable(name):  # it fails
        return name
    note = run["folder"] / "strangers" / f"{name}.json"
    known = load_json(note) or {}
    own = {"folder": str(path.resolve().parent), "file": fingerprint(path)}
    if taken or (known and not any(known.get(key) == own[key] for key in own)):
        return f"{name}-{digest(own['folder'])[:6]}"
    if not known or known.get("folder") == own["folder"]:
        save_json(note, own)
    return name
