"""What results come from, where readers must be told: a SIMULATED cohort, an untrained encoder.

A few short words, none where all is real. A run's config.json keeps them, as do the settings of
features, a pretrained encoder's file and the .h5 of tiling.py export, so that they outlive a move.
Of features and weights made elsewhere nothing is known, and nothing is said.
"""

from pathlib import Path

import torch

from lab.encoders import ENCODERS
from lab.exchange.clam import foreign
from lab.files import InputError, load_json, one_line
from lab.torchscript import is_script

SIMULATED = "SIMULATED cohort"  # the first line of its README.md says so
MODEL = f"model of a {SIMULATED}"
SLIDE = "SIMULATED slide"
UNTRAINED = "encoder with random weights"
TAUGHT = "encoder pretrained on SIMULATED slides"
FROM_RANDOM = f"{TAUGHT} from random weights"
KEY = "provenance"  # under which files keep the words, and the column of tables
MEANINGS = {
    SIMULATED: "Slides are drawn and expression is planted: no number here tells of a patient.",
    MODEL: "The model has learned from drawn slides and planted expression: what it says of a "
    "patient means nothing.",
    SLIDE: "The slide is drawn, and shows no patient.",
    UNTRAINED: "The encoder has learned from no picture: nothing here tells how well the method "
    "does with a trained one.",
    TAUGHT: "The encoder has learned from drawn slides alone, not from histology.",
}
MEANINGS[FROM_RANDOM] = MEANINGS[TAUGHT]


# ----- Words on what there is ---------------------------------------------------------------------


def merged(*several):
    """Lists of words as one, each word once."""
    return list(dict.fromkeys(word for words in several for word in words))


def is_simulated(cohort):
    """Whether a cohort's slides are drawn: by the README.md or the truth that `simulate` writes."""
    cohort = Path(cohort)
    readme = cohort / "README.md"
    first = ""
    if readme.is_file():
        with open(readme, errors="replace") as f:
            first = f.readline()
    truth = [cohort / "truth" / name for name in ("slides.csv", "genes.csv")]
    return first.startswith(f"# A {SIMULATED}") or all(path.is_file() for path in truth)


def of_cohort(cohort):
    return [SIMULATED] if is_simulated(cohort) else []


def is_random(weights):
    """Whether weights are random by their name, as an option has it or a run keeps it."""
    return weights == "random" or weights.startswith("random, seed ")


def taught_by(cohort, weights):
    """Words on the encoder that pretrain makes of a cohort's slides, from these weights."""
    if not is_simulated(cohort):
        return []
    return [FROM_RANDOM if is_random(weights) else TAUGHT]


def of_encoder(path):
    """Words on an encoder's file; those of an older one by the cohort in which it lies."""
    path = Path(path)
    if not path.is_file() or is_script(path):
        return []
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        weights = str(saved.get("settings", {}).get("weights"))
    except Exception:  # another program's, or gone: whoever encodes with it will say so
        return []
    if KEY in saved:
        return saved[KEY]
    return taught_by(cohort_of(path.parent, load_json(path.with_name("config.json"))), weights)


def of_features(cohort, source, slide=None):
    """Words on the encoder of features; of a folder made elsewhere, as the .h5 of a slide says."""
    if isinstance(source, Path):
        try:
            said = foreign(source, slide, 1)[3] if slide else {}
        except InputError:
            return []
        return [word for word in str(said.get(KEY, "")).split("; ") if word]
    made = load_json(Path(cohort) / "features" / source / "settings.json") or {}
    weights = made.get("weights") or ""
    if KEY in made:
        return made[KEY]
    return of_weights(weights)


def of_weights(weights):
    """Words on `--weights`, or on an encoder's file."""
    if is_random(weights):
        return [UNTRAINED]
    return [] if weights in ("", "imagenet", *ENCODERS) else of_encoder(weights)


def of_data(cohort, source, slide=None):
    """Words on what a run learns from: its cohort, and its features."""
    return merged(of_cohort(cohort), of_features(cohort, source, slide))


def cohort_of(folder, config):
    """The cohort that a run learned from: where it was then, else above the run's folder."""
    config = config or {}
    then = Path(str(config.get("cohort") or config.get("study")))
    above = Path(folder).resolve().parents[1:3]  # of runs/NAME, or of runs/audit/NAME
    there = [cohort for cohort in (then, *above) if (cohort / "samples.csv").is_file()]
    return there[0] if there else then


def of_run(folder, config):
    """Words on a run: those of its config.json; of an older one, by its cohort and features."""
    if KEY in config:
        return config[KEY]
    cohort, made = cohort_of(folder, config), config.get("features") or {}
    words = of_weights(str(made.get("weights", "")))
    if not words and "source" in made and "made" not in made:
        words = of_features(cohort, made["source"])
    return merged(of_cohort(cohort), words)


def of_folder(folder):
    """Words on a finished run, by its folder."""
    return of_run(folder, load_json(Path(folder) / "config.json") or {})


def of_prediction(run, home):
    """Words on what a run's models say of the slides in a folder `home`."""
    words = [MODEL if word == SIMULATED else word for word in run[KEY]]
    return merged(words, [SLIDE] if is_simulated(home) else [])


# ----- Where they stand ---------------------------------------------------------------------------


def said(words):
    """'SIMULATED cohort; encoder with random weights', '' for none."""
    return one_line("; ".join(words))


def meant(words):
    """A sentence on each."""
    return " ".join(dict.fromkeys(MEANINGS[word] for word in words if word in MEANINGS))


def warning(words):
    """The first paragraph of a report, and the line below it; nothing for no words."""
    return [f"**{said(words)}.** {meant(words)}", ""] if words else []


def entry(words):
    """{"provenance": the words} for JSON and HDF5, {} for none."""
    return {KEY: said(words)} if words else {}


def marked(header, rows, words):
    """(header, rows) of a table, with the words as its last column where there are any."""
    if not words:
        return header, rows
    return (*header, KEY), ((*row, said(words)) for row in rows)
