"""A run's models on slides: which slides, with features as the run's, by which of its models.

run: a dict of folder, config, rows (of folds.csv), cohort, folds (a checkpoint of each model) and
fold_of {patient: the models that did not learn from it}.
"""

import argparse
import os
from pathlib import Path

from lab.cohort.encoding import make_features
from lab.cohort.features import (
    are_same,
    features_of,
    learned_as,
    load_features,
    made_as,
    source_name,
)
from lab.cohort.genes import as_spelled
from lab.cohort.identity import asked_slides
from lab.cohort.made import is_changed
from lab.cohort.names import person, who
from lab.cohort.slides import find_slides, unnameable
from lab.cohort.tiles import tiles_of
from lab.encoders import ENCODERS
from lab.exchange.clam import FOREIGN
from lab.files import TISSUE, InputError, few, fingerprint, load_json, read_rows
from lab.processes import by_first, share_out
from lab.progress import counted
from lab.provenance import meant, of_prediction, said
from lab.weights import weights_identity
from lab.words import nearest, tidy

# ----- Which slides, and what is asked of them ---------------------------------------------------


def pick_genes(text, known, where="the run"):
    """Places in `known` of the genes of 'A,B,C', of a file (its first column), or of 'all'."""
    if text == "all":
        return list(range(len(known)))
    names = text.split(",")
    if os.path.isfile(text):  # a name may be too long for Path
        header, rows = read_rows(text)
        names = [row[0].split("\t")[0] for row in (header, *rows) if row]
    place = {gene: i for i, gene in enumerate(known)}
    asked = [tidy(name) for name in names]
    spelled = as_spelled(asked, known)
    for name, own in zip(asked, spelled, strict=True):
        if name != own:
            print(f"--genes: {name} is {own} in {where}")
    picked = []
    for name in dict.fromkeys(spelled):
        if name in place:
            picked.append(place[name])
        elif name:
            raise InputError(f"--genes: {where} has no gene {name!r}; {nearest(name, known)}")
    if not picked:
        raise InputError(f"--genes {text}: no gene in it")
    return picked


def each_slide(run, o, failed):
    """Yield (options, its Slide, folder of its features, their source) of slides.

    o.slide: slide files (or .h5 and .pt features), names of the run's slides, or ['all']. Features
    are ready; slides that have none go to `failed`.
    """
    known = sorted({row["slide"] for row in run["rows"]})
    labels, groups = {}, {}
    for slide in asked_slides(run, known if o.slide == ["all"] else o.slide):
        for label in {slide.label, o.into and slide.name} - {None}:
            if label in labels:
                raise InputError(
                    f"slide {slide.name} is asked for twice, in {labels[label]} and {slide.home}: "
                    "what is written for one would overwrite the other"
                )
            labels[label] = slide.home
        groups.setdefault((slide.home, features_for(slide, o)), {})[slide.name] = slide
    told = set()
    for (home, features), slides in groups.items():
        words = of_prediction(run, home)
        if set(words) - told:
            print(f"{said(words)}. {meant(words)}", flush=True)
            told.update(words)
        options = argparse.Namespace(**{**vars(o), "features": features})
        names = []
        for name, slide in slides.items():
            if unnameable(slide.label):
                failed[slide.label] = unnameable(slide.label)
            elif not is_anothers(run, slide, features, failed):
                names.append(name)
        options, into, source, bad = features_as(run, options, home, names)
        failed.update({slides[name].label: why for name, why in bad.items()})
        good = [name for name in names if name not in bad]
        for name in counted(run["folder"].name, good, "slides"):
            try:
                check_features(run, into, source, name, slides[name].own)
            except InputError as e:
                failed[slides[name].label] = str(e)
                continue
            yield options, slides[name], into, source


def features_for(slide, o):
    """--features, or the folder of a file of features that was asked for."""
    if slide.path is None or slide.path.suffix not in FOREIGN:
        return o.features
    if o.features and Path(o.features).resolve() not in slide.path.resolve().parents:
        raise InputError(f"{slide.path} does not lie in --features {o.features}: leave one out")
    return o.features or slide.path.parent


def is_anothers(run, slide, features, failed):
    """Whether the only features of a slide's name are those of the run's slide, another one."""
    folder = run["config"].get("features_folder")
    known = {row["slide"] for row in run["rows"]}
    if folder is None or slide.own or slide.name not in known:
        return False
    if features and Path(features).resolve() != Path(folder).resolve():
        return False
    failed[slide.label] = (
        f"{slide.path} is another slide than the run's {slide.name}, of which {folder} has "
        "features: give the folder of its own with --features"
    )
    return True


def held_out(run, slide, everyone):
    """The models that may speak of a Slide: those that did not learn from its patient.

    All where the patient is new to the run, or for `everyone`. The run's patients are known by
    their names, and by the barcodes of their slides.
    """
    every = list(range(len(run["folds"])))
    if everyone:
        return every
    known = set()
    for patient in slide.patients:
        known |= known_as(run).get(who(patient), set())
    models = [m for m in every if all(m in run["fold_of"][patient] for patient in known)]
    if not models:
        raise InputError(
            f"every model of {run['folder']} learned from patient {few(sorted(known))}: a run with "
            "--rotate has one for each patient that did not; --all-models asks them all the same"
        )
    return models


def known_as(run):
    """{name or barcode of a patient: the names of the run's patients that it stands for}."""
    if "known_as" not in run:
        names = run["known_as"] = {}
        for patient in run["fold_of"]:
            names.setdefault(who(patient), set()).add(patient)
        for row in run["rows"]:
            names.setdefault(person(row["slide"]), set()).add(row["patient"])
    return run["known_as"]


# ----- Features as the run's ---------------------------------------------------------------------


def features_as(run, o, cohort, slides):
    """Find features of slides that are as the run's, or make them where they are missing
    -> (options, folder, source, {slide: why it failed}).

    What is ready is used as it is. Other encoder, weights, tile size or colours are refused.
    """
    o, into = argparse.Namespace(**vars(o)), Path(o.into or cohort)
    made = run["config"]["features"]
    if "made" in made:
        return made_elsewhere(run, o, into)
    if o.features:
        raise InputError(
            f"--features {o.features}: the run {run['folder']} learned from this program's "
            f"{made['source']} with weights {made['weights']}; leave --features out"
        )
    refuse_other(run, "--tile-um", {"tile_um": o.tile_um})
    ready = ready_slides(run, cohort, into, slides)
    todo = by_first(lambda: [name for name in slides if name not in ready])
    asked = o.weights
    take_options(run, o, into)
    if todo or asked:
        refuse_other_weights(run, o)
    failed = share_out(make_features, cohort, todo, o, into) if todo else {}
    return o, into, made["source"], failed


def made_elsewhere(run, o, into):
    """features_as for a run on features of other programs, which don't say how they were made."""
    config = run["config"]
    o.features = o.features or config["features_folder"]
    source = features_of(o)
    if source_name(o) != config["features"]["source"]:
        raise InputError(
            f"--features {o.features}: the run {run['folder']} learned from features in a folder "
            f"{config['features']['source']}; if these are of the same encoder and tile size, give "
            "their folder that name"
        )
    return o, into, source, {}


def unlike(run, source, into, slides, o):
    """{slide of the run: why its features are not as those that the run learned from}."""
    failed = {}
    for name in counted("reading features", slides, "slides"):
        try:
            check_features(run, into, source, name)
        except InputError as e:
            failed[name] = str(e)
    return failed


def check_features(run, into, source, name, own=True):
    """InputError where a slide's features are of another width than the run's or, of the run's own
    slide, are others than those that it learned from.
    """
    width, wanted = load_features(into, source, name)[0].shape[1], run["config"]["n_features"]
    if width != wanted:
        raise InputError(f"{width} features a tile, the run learned from {wanted}")
    learned = run["learned_as"].get(name) if own else None
    if learned is None or are_same(learned, learned_as(into, source, name)):
        return
    where, mend = into / "features" / source, "--into another folder has them made as the run's"
    if isinstance(source, Path):
        where, mend = source, "bring those back, or train another run on these"
    raise InputError(
        f"the features in {where} are not those that {run['folder']} learned from, of other tiles "
        f"or made otherwise since: {mend}"
    )


def refuse_other(run, what, other):
    """InputError where features are of another kind than the run's."""
    made = run["config"]["features"]
    differ = []
    for key in ("source", "weights", "tile_um", "colour"):
        if other.get(key) not in (None, made[key]):
            differ.append(f"{key} {other[key]}, the run has {made[key]}")
    if differ:
        raise InputError(
            f"{what}: {'; '.join(differ)} ({run['folder']}); features of another kind mean nothing "
            "to it. Give --into another folder to have them made there"
        )


def refuse_other_weights(run, o):
    if not o.weights:
        weights = run["config"]["features"]["weights"]
        raise InputError(
            f"the run {run['folder']} learned with weights {weights}: give that file with "
            "--weights FILE"
        )
    refuse_other(run, f"--weights {o.weights}", {"weights": weights_identity(o.weights, o.seed)})


def ready_slides(run, cohort, into, slides):
    """Slides whose features are there, of the very slide file."""
    source = run["config"]["features"]["source"]
    folder, found = into / "features" / source, find_slides(cohort)
    refuse_other(run, f"tiles in {into}", load_json(into / "tiles" / "settings.json") or {})
    ready = set()
    for name in counted(f"looking for features {source}", slides, "slides"):
        side = made_as(folder, name)
        if not side or not (folder / f"{name}.npy").is_file() or not tiles_of(into, name)[0]:
            continue
        tiles = side["tiles"]
        kind = dict(side, source=side["encoder"], tile_um=tiles.get("tile_um"))
        refuse_other(run, f"features of slide {name} in {into}", kind)
        path = folder / f"{name}.json"
        if name not in found or tiles.get("file") in (False, fingerprint(found[name])):
            if name not in found or not is_changed(found[name], path, [path]):
                ready.add(name)
        elif into.resolve() != Path(cohort).resolve():
            raise InputError(
                f"--into {into}: slide {name} there is another than {found[name]}: give --into "
                "another folder"
            )
    return ready


def take_options(run, o, into):
    """Set the options of slides, tiles and features to the run's, and as `into` was begun."""
    made = run["config"]["features"]
    source, weights = made["source"], made["weights"]
    tiles = load_json(into / "tiles" / "settings.json") or made
    features = load_json(into / "features" / source / "settings.json") or {}
    kind = weights.split()[0].strip(",")  # imagenet, random or a file's name
    if not o.weights:
        o.weights = features.get("weights") or (kind if kind in ("imagenet", "random") else None)
    o.seed, o.tile_seed = made["seed"], None
    if kind == "random":
        o.seed = o.tile_seed = int(weights.split("seed ")[1])
    for key in ("tile_um", "min_tissue", "max_tiles"):
        setattr(o, key, tiles.get(key, made[key]))
    for key, usual in TISSUE.items():  # a rule is not named where it is the usual
        setattr(o, key, tiles.get(key, usual))
    o.precision = features.get("precision", o.precision)
    o.colour = made["colour"]
    if o.colour == "stretch":
        source = source.removesuffix("-stretch")
    o.encoder = source if source in ENCODERS else o.weights  # its file is its weights, too


def every_tile(run, o, home, into, source, name):
    """The folder with the features of *every* tile of a slide, made where only a sample is."""
    if isinstance(source, Path):
        return into
    tiles, settings = tiles_of(into, name)
    if len(tiles["coords"]) == tiles["found"]:
        return into
    refuse_other_weights(run, o)
    scale = {"mpp": settings["mpp"], "force_mpp": settings.get("force_mpp", False)}
    everywhere = argparse.Namespace(**{**vars(o), "max_tiles": 10**9, **scale})
    failed = make_features(home, [name], everywhere, into / "all-tiles")
    if failed:
        raise InputError(failed[name])
    return into / "all-tiles"
