"""lab.application"""

import argparse
import difflib
from pathlib import Path

from lab.cohort.features import features_of, load_features
from lab.cohort.make import make_features
from lab.cohort.samples import read_samples
from lab.cohort.slides import find_slides
from lab.cohort.steps import made_as, tiles_of
from lab.encoders import ENCODERS
from lab.exchange.clam import FOREIGN, say_twice, source_name
from lab.files import TISSUE, InputError, few, fingerprint, load_json, read_rows
from lab.processes import by_first, share_out
from lab.progress import counted, progress
from lab.weights import weights_identity


# A run's models on slides: features as those it learned from. run: a dict of folder, config, rows (of folds.csv), cohort,
# folds (a checkpoint of each model), and fold_of {patient: models that did not learn from it}
def pick_genes(text, known, where="the run"):
    """Indices of the genes of 'A,B,C', of a file (one a line, or its first column) or of 'all' in the list of known ones."""
    if text == "all":
        return list(range(len(known)))
    if len(text) < 256 and Path(text).is_file():
        header, rows = read_rows(text)
        names = [row[0].split("\t")[0].strip() for row in (header, *rows) if row]
    else:
        names = [g.strip() for g in text.split(",")]
    at, names = {g: i for i, g in enumerate(known)}, list(dict.fromkeys(filter(None, names)))
    for g in names:
        if g not in at:
            upper = {k.upper(): k for k in known}
            near = ", ".join(upper[n] for n in difflib.get_close_matches(g.upper(), upper, 3))
            raise InputError(
                f"--genes: {where} has no gene {g!r}; "
                + (
                    f"nearest: {near}"
                    if near
                    else f"it has {len(known):,}, such as {', '.join(known[:3])}"
                )
            )
    if not names:
        raise InputError(f"--genes {text}: no gene in it")
    return [at[g] for g in names]


def held_out(run, slide, cohort, everyone):
    """Models (their numbers) that may speak of a slide: those that did not learn from its patient; all when it is new to the
    run. InputError when all of them did.

    The patient stands in the run's folds.csv, else in samples.csv, else is a TCGA slide's first 12 characters.
    """
    patient = next((row["patient"] for row in run["rows"] if row["slide"] == slide), None)
    for folder in (cohort, run["cohort"]) if patient is None else ():
        if (folder / "samples.csv").is_file():
            patient = patient or {row["slide"]: row["patient"] for row in read_samples(folder)}.get(
                slide
            )
    models = next((run["fold_of"][p] for p in (patient, slide[:12]) if p in run["fold_of"]), None)
    if models == [] and not everyone:
        raise InputError(
            f"every model of {run['folder']} learned from patient {patient}: a run with --rotate has one for each "
            "patient that did not; --all-models asks them all the same"
        )
    return list(range(len(run["folds"]))) if models is None or everyone else models


def features_as(run, o, cohort, slides):
    """Find, or make where they are missing, features of slides as the run's. -> (options, folder, source, {slide: why it
    failed}).

    What is ready is used as it is. Other encoder, weights, tile size or colours: an InputError that names both.
    """
    made, o, into, failed = (
        run["config"]["features"],
        argparse.Namespace(**vars(o)),
        Path(o.into or cohort),
        {},
    )

    def compare(what, other):
        differ = [
            f"{k} {other[k]}, the run has {made[k]}"
            for k in ("source", "weights", "tile_um", "colour")
            if other.get(k) is not None and other[k] != made[k]
        ]
        if differ:
            raise InputError(
                f"{what}: {'; '.join(differ)} ({run['folder']}); features of another kind mean nothing to it. "
                "Give --into another folder to have them made there"
            )

    if "made" in made:  # elsewhere: an .h5 file does not say by what
        o.features = o.features or run["config"]["features_folder"]
        source = features_of(o)
        say_twice(source, slides)
        if source_name(o) != made["source"]:
            raise InputError(
                f"--features {o.features}: the run {run['folder']} learned from features in a folder "
                f"{made['source']}; if these are of the same encoder and tile size, give their folder that "
                "name"
            )

        def read(cohort, slides, o):
            failed, tick = {}, progress("reading features", len(slides), "slides")
            for name in slides:
                tick()
                try:
                    width = load_features(cohort, source, name)[0].shape[1]
                    if width != run["config"]["n_features"]:
                        failed[name] = (
                            f"{width} features a tile, the run learned from {run['config']['n_features']}"
                        )
                except InputError as e:
                    failed[name] = str(e)
            return failed

        return o, into, source, share_out(read, cohort, slides, o)
    if o.features:
        raise InputError(
            f"--features {o.features}: the run {run['folder']} learned from this program's {made['source']} "
            f"with weights {made['weights']}; leave --features out"
        )
    kind = made["weights"].split()[0].strip(",")  # imagenet, random or a file's name
    given = weights_identity(o.weights, o.seed) if o.weights not in (None, kind) else None
    compare("options", dict(tile_um=o.tile_um, weights=given))
    source = made["source"]
    tiles, features = (
        load_json(into / d / "settings.json") or {} for d in ("tiles", f"features/{source}")
    )
    compare(f"tiles in {into}", tiles)
    found, ready, folder = find_slides(cohort), [], into / "features" / source
    for name in counted(f"looking for features {source}", slides, "slides"):
        side = made_as(folder, name)
        if side and (folder / f"{name}.npy").is_file() and tiles_of(into, name)[0]:
            side.update(source=side["encoder"], tile_um=side["tiles"].get("tile_um"))
            compare(f"features of slide {name} in {into}", side)
            if name not in found or side["tiles"].get("file") in (
                False,
                fingerprint(found[name]),
            ):  # not of another file
                ready.append(name)
    o.weights = (
        o.weights or features.get("weights") or (kind if kind in ("imagenet", "random") else None)
    )
    todo = by_first(
        lambda: [name for name in slides if name not in ready]
    )  # another may have begun to make them
    if todo and not o.weights:
        raise InputError(
            f"the run {run['folder']} learned with weights {made['weights']}: give that file with --weights "
            "FILE"
        )
    o.seed = int(made["weights"].split("seed ")[1]) if kind == "random" else made["seed"]
    o.tile_seed = o.seed if kind == "random" else None
    o.tile_um, o.min_tissue, o.max_tiles = (
        made["tile_um"],
        *(tiles.get(k, made[k]) for k in ("min_tissue", "max_tiles")),
    )
    for k, usual in TISSUE.items():  # a rule is not named where it is the usual
        setattr(o, k, (tiles or made).get(k, usual))
    o.precision, o.colour = features.get("precision", o.precision), made["colour"]
    name = source.removesuffix("-stretch") if o.colour == "stretch" else source
    o.encoder = name if name in ENCODERS else o.weights  # an encoder's file is its weights, too
    if todo:
        compare("weights", dict(weights=weights_identity(o.weights, o.seed)))
        failed = share_out(make_features, cohort, todo, o, into)
    return o, into, source, failed


def each_slide(run, o, failed):
    """(options, its cohort or folder, folder of its features, their source, name) of every slide asked for, features ready.

    o.slide: slide files (or .h5 and .pt features), names of the run's slides, or ['all']. What fails is put into `failed`.
    """
    known, groups = {row["slide"] for row in run["rows"]}, {}
    for text in sorted(known) if o.slide == ["all"] else o.slide:
        path = Path(text)
        if len(text) > 255 or not path.is_file():
            if text not in known:
                raise InputError(
                    f"{few([text])}: neither a slide file nor a slide of the run {run['folder']}"
                )
            name, home, features = text, run["cohort"], o.features
        elif path.suffix in FOREIGN:
            name, home, features = path.stem, run["folder"] / "predict", o.features or path.parent
        else:  # COHORT/slides/x.svs is COHORT's
            path = path.absolute()
            name, home, features = (
                path.stem,
                path.parent.parent if path.parent.name == "slides" else path.parent,
                o.features,
            )
        twice = [place for (place, _), names in groups.items() if name in names]
        if twice:
            both = f", in {twice[0]} and {home}: what is written for one would overwrite the other"
            raise InputError(f"slide {name} is asked for twice" + both * (twice[0] != home))
        groups.setdefault((home, features), []).append(name)
    for (home, features), names in groups.items():
        options = argparse.Namespace(**{**vars(o), "features": features})
        options, into, source, bad = features_as(run, options, home, names)
        failed.update(bad)
        for name in counted(run["folder"].name, [n for n in names if n not in bad], "slides"):
            yield options, home, into, source, name


def every_tile(run, o, home, into, source, name):
    """The folder with the features of *every* tissue tile of a slide: where they were limited, they are made without it."""
    if isinstance(source, Path):
        return into
    tiles, settings = tiles_of(into, name)
    if len(tiles["coords"]) == tiles["found"]:
        return into
    everywhere = argparse.Namespace(**{**vars(o), "max_tiles": 10**9, "mpp": settings["mpp"]})
    wanted = run["config"]["features"]["weights"]
    if not o.weights:
        raise InputError(
            f"the run {run['folder']} learned with weights {wanted}: give that file with --weights FILE"
        )
    failed = make_features(home, [name], everywhere, into / "all-tiles")
    side = load_json(into / "all-tiles" / "features" / source / f"{name}.json") or {}
    if failed or side.get("weights") != wanted:
        raise InputError(
            failed.get(name) or f"--weights: {side.get('weights')}, the run has {wanted}"
        )
    return into / "all-tiles"
