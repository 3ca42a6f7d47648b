"""Making super-tiles: supertiles/<source>/<slide>.npz with means (k, D) float16, mask (k,) and the
cluster of each tile (n,).
"""

import json
from functools import partial
from pathlib import Path

import numpy as np

import tiling
from lab.cohort.encoding import make_features
from lab.cohort.features import (
    features_made_by,
    features_of,
    learned_as,
    load_features,
    source_name,
)
from lab.cohort.made import keep_time
from lab.cohort.steps import settle, work_through
from lab.encoders import encoder_name
from lab.exchange.clam import FOREIGN, features_file
from lab.files import digest, load_arrays, save_file, save_json
from lab.locks import hold, release
from lab.progress import say_left_out
from lab.words import tidy

KMEANS_VERSION = 2  # of tiling.kmeans: other clusters of slides with 100 tiles or more than 1 had


def make_supertiles(cohort, slides, o, into=None):
    """Make the missing super-tiles of slides, of features made before or elsewhere
    -> {slide: why it failed}.
    """
    place, source = Path(into or cohort), features_of(o)
    folder = place / "supertiles" / source_name(o)
    failed = {} if o.features else make_features(cohort, slides, o, place)
    settings = supertile_settings(folder, o)
    how, nowhere = {**settings, "kmeans": KMEANS_VERSION}, []

    def look(name):
        """The number of features of super-tiles that are there, None where they are not."""
        path = folder / f"{name}.npz"
        made_as, arrays = read_supertiles(path)
        if not made_as:
            return None
        made_by = features_made_by(place, source, name, made_as.get("features"), path)
        if made_as != {**how, "features": made_by}:
            return None
        if o.features:
            keep_time(features_file(source, name), path)
        return arrays["means"].shape[1]

    def make(name):
        features, coords = load_features(place, source, name)
        if coords is None:
            nowhere.append(name)
        means, mask, cluster = half_supertiles(features, coords, settings["k"], settings["seed"])
        made_as = {**how, "features": features_made_by(place, source, name)}
        arrays = {"means": means, "mask": mask, "cluster": cluster}
        arrays["holds"] = held_together(arrays)
        arrays["settings"] = json.dumps(made_as, sort_keys=True)
        save_file(folder / f"{name}.npz", partial(np.savez, **arrays))
        return means.shape[1]

    names = [name for name in slides if name not in failed]
    widths = dict(work_through("looking for super-tiles", look, names, o.workers, failed))
    missing = [name for name in widths if widths[name] is None]
    if missing:
        hold(folder, o.share)
    widths.update(work_through("super-tiles", make, missing, o.workers, failed))
    save_json(folder / "settings.json", settings)
    release(folder)
    what = "slides have no coordinates, their super-tiles are runs of neighbouring rows"
    both = f"slides have .h5 and .pt in {source}, the .h5 is taken"
    say_left_out({what: sorted(nowhere), both: twofold(source, names)})  # nowhere: by threads
    widths = {name: width for name, width in widths.items() if width is not None}
    fail_unusual(widths, failed)
    return failed


def read_supertiles(path):
    """(what they were made of and how, their arrays); ({}, None) where they are not whole."""
    arrays = load_arrays(path) or {}
    try:
        made_as = json.loads(str(arrays["settings"]))
        holds = held_together(arrays)
        whole = isinstance(made_as, dict) and str(arrays.get("holds", holds)) == holds
    except (KeyError, ValueError, RecursionError):
        return {}, None
    return (made_as, arrays) if whole else ({}, None)


def of_supertiles(cohort, o, name):
    """What a run remembers of the features of a slide's super-tiles."""
    made_as, _ = read_supertiles(Path(cohort) / "supertiles" / source_name(o) / f"{name}.npz")
    return learned_as(cohort, features_of(o), name, made_as.get("features"))


def held_together(arrays):
    return digest(arrays["means"], arrays["mask"], arrays["cluster"])


def twofold(source, names):
    """Those slides whose features made elsewhere are there as .h5 and as .pt."""
    if not isinstance(source, Path):
        return []
    endings = {name: set() for name in names}
    for ending, inner in FOREIGN.items():
        for path in (*source.glob(f"*{ending}"), *(source / inner).glob(f"*{ending}")):
            endings.get(tidy(path.stem), set()).add(ending)
    return [name for name, found in endings.items() if len(found) > 1]


def supertile_settings(folder, o):
    """Seed and number of clusters. Those of stretched tiles are as those of the others."""
    usual = {"seed": o.seed, "k": tiling.N_SUPERTILES}
    if not o.features:
        plain = folder.with_name(encoder_name(o.encoder))
        usual = settle(plain / "settings.json", {}, usual)
    return settle(folder / "settings.json", {"seed": o.tile_seed}, usual)


def half_supertiles(features, coords, k, seed):
    """tiling.supertiles with means in float16, as a run's models see them.

    load_features refuses what that can't hold.
    """
    means, mask, cluster = tiling.supertiles(features, coords, k, seed)
    return means.astype(np.float16), mask, cluster


def fail_unusual(widths, failed):
    """Slides with another number of features than most are of another encoder."""
    every = list(widths.values())
    usual = max(set(every), key=every.count, default=None)
    for name, width in widths.items():
        if width != usual:
            failed[name] = f"{width} features a tile, most slides have {usual}: another encoder's?"
