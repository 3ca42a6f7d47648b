"""lab.cohort.make"""

import json
import threading
from itertools import groupby
from pathlib import Path

import numpy as np

import tiling
from lab.cohort.features import features_of, load_features
from lab.cohort.slides import find_slides, open_slide
from lab.cohort.steps import (
    find_tiles,
    half_supertiles,
    in_the_way,
    made_as,
    settle,
    table_mpp,
    tile_settings,
    tiles_of,
)
from lab.devices import pick_device, pick_precision
from lab.encoders import (
    COLOURS,
    ENCODERS,
    encoder_name,
    encoder_wants,
    features_folder,
    load_encoder,
    prepare_encoder,
    read_encoder,
)
from lab.exchange.clam import features_made_by, say_twice, source_name
from lab.fast.encoder import encode
from lab.files import InputError, few, fingerprint, load_arrays, save_file, save_json
from lab.locks import hold, release
from lab.progress import counted, ordered_map, progress, say_left_out
from lab.runs import say_anew
from lab.torchscript import is_script
from lab.weights import weights_identity


def make_tiles(cohort, slides, o, into=None):
    """tiles/<slide>.npz (coords (n, 2) int32, tile and slide size, mpp, threshold, settings) and its picture .png, in the
    folder `into` (the cohort's own if not given)."""
    slides_in, cohort = Path(cohort), Path(into or cohort)
    found, given, shared = find_slides(slides_in), table_mpp(slides_in), tile_settings(cohort, o)
    failed, jobs, anew, wanted = (
        {},
        [],
        [],
        shared["tile_um"] / encoder_wants(o)["tile_px"],
    )  # µm per pixel of a tile
    for name in counted("looking for tiles", slides, "slides"):
        settings = dict(
            shared,
            mpp=given.get(name, shared["mpp"]),
            file=name in found and fingerprint(found[name]),
        )
        old, was = tiles_of(cohort, name)
        if was:  # what had no part in the result may differ:
            idle = [
                *(["mpp"] if was.get("mpp") is None else []),  # the slide has its own,
                *(["seed"] if len(old["coords"]) == old["found"] else []),  # nothing was sampled,
                *(["file"] if name not in found else []),
            ]  # only its tiles are kept here
            settings.update({k: was.get(k) for k in idle})
        if was == settings:
            continue
        why = in_the_way(cohort / "tiles", name, ".npz", ".png")
        if why or name not in found:
            failed[name] = why or f"no file {name}.* in {slides_in / 'slides'}"
            continue
        jobs.append((name, settings))
        anew += [(was, settings)] if was else []
    if jobs:
        hold(cohort / "tiles", o.share)
        say_anew(cohort / "tiles", anew)
        save_json(cohort / "tiles" / "settings.json", shared)
    tick = progress("tiles", len(jobs), "slides")
    for (name, settings), got in ordered_map(
        lambda job: find_tiles(found[job[0]], *job), jobs, o.workers
    ):
        tick()
        if isinstance(got, Exception):
            failed[name] = str(got) or type(got).__name__
            continue
        arrays, picture = got
        if arrays["mpp"] > wanted * 1.01:
            print(
                f"slide {name}: {arrays['mpp']:.3f} µm per pixel is coarser than the {wanted:g} wanted: read at level 0 "
                "and resampled up"
            )
        save_file(cohort / "tiles" / f"{name}.png", lambda f: picture.save(f, "PNG"))
        save_file(cohort / "tiles" / f"{name}.npz", lambda f: np.savez(f, **arrays))
    release(cohort / "tiles")
    for name in slides:
        a = None if name in failed else tiles_of(cohort, name)[0]
        if a and len(a["coords"]) == 0:
            failed[name] = (
                f"smaller than a tile of {shared['tile_um']:g} µm"
                if min(a["size"]) < a["tile"]
                else (
                    f"no {shared['tile_um']:g} µm tile is {shared['min_tissue']:.0%} tissue: an empty slide, or --min-tissue "
                    "or --min-area is too high"
                )
            )
    return failed


def make_features(cohort, slides, o, into=None):
    """features/<encoder>/<slide>.npy (n, D) float16; the .json beside it says which settings made it, and for --colour
    macenko the slide's stains and how many tiles were left unchanged. `into` as make_tiles."""
    slides_in, cohort, source, wants = (
        Path(cohort),
        Path(into or cohort),
        features_folder(o),
        encoder_wants(o),
    )
    folder, found, device = (
        cohort / "features" / source,
        find_slides(slides_in),
        pick_device(o.device),
    )
    file, px, norm = (
        None if o.encoder in ENCODERS else o.encoder,
        wants["tile_px"],
        (wants["mean"], wants["std"]),
    )
    usual = dict(
        weights="imagenet", precision=pick_precision("auto", device), colour=COLOURS[0], seed=o.seed
    )
    beside = settle(
        folder.with_name(encoder_name(o.encoder)) / "settings.json", {}, usual
    )  # stretched: as those are
    settings = settle(
        folder / "settings.json",
        dict(
            weights=file or o.weights,
            precision=o.precision and pick_precision(o.precision, device),
            colour=wants["colour"] or o.colour,
            seed=o.tile_seed,
        ),
        beside,
    )
    identity, jobs, made_by, anew = (
        weights_identity(settings["weights"], settings["seed"]),
        [],
        {},
        [],
    )
    get = lambda: load_encoder(o.encoder, settings["weights"], settings["seed"], device)
    net = (
        None if any((folder / f"{s}.npy").is_file() for s in slides) else get()
    )  # at the start, not after hours of tiling
    failed = make_tiles(slides_in, slides, o, cohort)
    for name in counted(
        f"looking for features {source}", [s for s in slides if s not in failed], "slides"
    ):
        tiles, by = tiles_of(cohort, name)
        if by is None:
            failed[name] = f"{cohort / 'tiles' / name}.npz was there and is gone"
            continue
        made_by[name] = dict(
            encoder=source,
            weights=identity,
            precision=settings["precision"],
            colour=settings["colour"],
            tiles=by,
            **(dict(tile_px=px) if file else {}),
        )
        was = made_as(folder, name)
        was.pop("stains", None)  # found, not asked for
        if was == made_by[name] and (folder / f"{name}.npy").is_file():
            continue
        why = in_the_way(folder, name, ".npy", ".json")
        if why or name not in found:
            failed[name] = (
                why or f"no file {name}.* in {slides_in / 'slides'} to make its features from"
            )
            continue
        anew += [(was, made_by[name])] if was else []
        jobs.append((name, float(tiles["tile"]), tiles["coords"]))
    if not jobs:
        return failed
    hold(folder, o.share)
    say_anew(folder, anew)
    net = prepare_encoder(net or get(), device, settings["precision"])
    learned = (
        None
        if o.encoder in ENCODERS or is_script(o.encoder)
        else read_encoder(o.encoder).get("patients")
    )
    save_json(folder / "settings.json", {**settings, "encoder_saw": learned})
    stains, changed, current = {}, {}, threading.local()
    if settings["colour"] == "macenko":
        tick = progress("stains", len(jobs), "slides")
        for (name, *_), got in ordered_map(
            lambda job: tiling.slide_stains(
                open_slide(found[job[0]]), job[2], job[1], px, made_by[job[0]]["tiles"]["seed"]
            ),
            jobs,
            o.workers,
        ):
            tick()
            stains[name], changed[name] = got, 0
            if isinstance(got, Exception):
                failed[name] = f"{found[name].name} can't be read to its end ({got})"
    jobs = [
        (name, tile, coords[a:b])
        for name, tile, coords in jobs
        if name not in failed
        for a, b in tiling.tile_runs(coords, tile)
    ]
    tick = progress(f"features {source}", sum(len(c) for _, _, c in jobs), "tiles")

    def read(job):  # each thread keeps one slide open
        if getattr(current, "name", None) != job[0]:
            current.name, current.slide = job[0], open_slide(found[job[0]])
        tiles = tiling.read_tiles(current.slide, job[2], job[1], px)
        return (
            (tiling.stretch(tiles), None)
            if settings["colour"] == "stretch"
            else tiling.macenko(tiles, stains.get(job[0]))
        )

    def chunks(group):
        for (name, _, coords), got in group:
            tick(len(coords))
            if isinstance(got, Exception):
                raise InputError(f"{found[name].name} can't be read to its end ({got})")
            if stains:
                changed[name] += int(got[1].sum())
            yield got[0]

    for name, group in groupby(ordered_map(read, jobs, o.workers), key=lambda item: item[0][0]):
        try:
            done = encode(net, chunks(group), *norm)
        except InputError as e:
            failed[name] = str(e)
            continue
        if stains:
            vectors, top = (
                [a.round(4).tolist() for a in stains[name]] if stains[name] else (None, None)
            )
            made_by[name]["stains"] = dict(
                vectors=vectors, top=top, unchanged=len(done) - changed[name]
            )
        (folder / f"{name}.json").unlink(missing_ok=True)  # never an old label on new features
        save_file(folder / f"{name}.npy", lambda f: np.save(f, done))
        save_json(folder / f"{name}.json", made_by[name])
    release(folder)
    unchanged = {
        name: made_by[name]["stains"]["unchanged"] for name in changed if "stains" in made_by[name]
    }
    if any(unchanged.values()):
        print(
            f"--colour macenko: {sum(unchanged.values()):,} tiles hold too little stain and keep their colours, of "
            f"{few([name for name, n in unchanged.items() if n])}"
        )
    return failed


def make_supertiles(cohort, slides, o, into=None):
    """supertiles/<encoder>/<slide>.npz: means (100, D) float16, mask (100,), cluster of each tile (n,). `into` as
    make_tiles."""
    slides_in, cohort = cohort, Path(into or cohort)
    folder, source = cohort / "supertiles" / source_name(o), features_of(o)
    failed = {} if o.features else make_features(slides_in, slides, o, cohort)
    say_twice(source, slides)
    beside = (
        cohort / "supertiles" / encoder_name(o.encoder) / "settings.json"
        if not o.features
        else Path()
    )
    settings = settle(
        folder / "settings.json",
        dict(seed=o.tile_seed, k=None),
        settle(beside, {}, dict(seed=o.seed, k=tiling.N_SUPERTILES)),
    )
    keys, widths, nowhere = {}, {}, []

    def ready(name):
        keys[name] = json.dumps(
            dict(settings, features=features_made_by(cohort, source, name)), sort_keys=True
        )
        old = load_arrays(folder / f"{name}.npz")
        return (
            (old["means"].shape[1], True)
            if old is not None and str(old.get("settings")) == keys[name]
            else None
        )

    def make(name):
        features, coords = load_features(cohort, source, name)
        means, mask, cluster = half_supertiles(features, coords, settings["k"], settings["seed"])
        arrays = dict(means=means, mask=mask, cluster=cluster, settings=np.array(keys[name]))
        save_file(folder / f"{name}.npz", lambda f: np.savez(f, **arrays))
        return means.shape[1], coords is not None

    for what in ready, make:
        names = [s for s in slides if s not in failed and s not in widths]
        if what is make and names:
            hold(folder, o.share)
        tick = progress(
            "super-tiles" if what is make else "looking for super-tiles", len(names), "slides"
        )
        for name, got in ordered_map(what, names, o.workers):
            tick()
            if isinstance(got, Exception):
                failed[name] = str(got) or type(got).__name__
            elif got:
                widths[name], placed = got
                nowhere += [name] * (not placed)
    save_json(folder / "settings.json", settings)
    say_left_out(
        {"slides have no coordinates, their super-tiles are runs of neighbouring rows": nowhere}
    )
    release(folder)
    usual = max(set(widths.values()), key=list(widths.values()).count, default=None)
    failed.update(
        {
            name: f"{w} features a tile, most slides have {usual}: another encoder's?"
            for name, w in widths.items()
            if w != usual
        }
    )
    return failed
