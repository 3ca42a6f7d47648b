"""Making features of tiles: features/<encoder>/<slide>.npy (n, D) float16.

<slide>.json beside it says which settings made them and, for --colour macenko, the slide's stains
and how many tiles kept their colours.
"""

import itertools
from functools import partial
from os.path import isfile
from pathlib import Path

import numpy as np

import tiling
from lab.cohort.features import made_as
from lab.cohort.made import FOUND, all_bytes, cut_of, held_by, is_changed, of_these_tiles
from lab.cohort.slides import find_slides, open_slide
from lab.cohort.steps import begin, settle
from lab.cohort.tiles import make_tiles, tiles_of
from lab.devices import pick_device, pick_precision
from lab.encoders import (
    COLOURS,
    ENCODERS,
    encoder_name,
    encoder_wants,
    features_folder,
    load_encoder,
    patients_seen,
    prepare_encoder,
)
from lab.fast.encoder import encode
from lab.files import few, save_file, save_json
from lab.locks import release
from lab.progress import counted, ordered_map, progress
from lab.provenance import KEY, of_weights
from lab.weights import weights_identity


def make_features(cohort, slides, o, into=None):
    """Make the missing features of slides, of tiles made before -> {slide: why it failed}."""
    place = Path(into or cohort)
    folder = place / "features" / features_folder(o)
    device = pick_device(o.device)
    settings = feature_settings(folder, o, device)
    encoder = o.encoder, settings["weights"], settings["seed"], device
    network = None
    if not any(isfile(folder / f"{name}.npy") for name in slides):
        network = load_encoder(*encoder)  # what is wrong with it is said before hours of tiling
    failed = make_tiles(cohort, slides, o, place)
    found = find_slides(cohort)
    jobs, anew = missing_features(place, slides, found, made_by(o, settings), failed)
    if not jobs:
        return failed
    network = prepare_encoder(network or load_encoder(*encoder), device, settings["precision"])
    about = {"encoder_saw": patients_seen(o.encoder), KEY: of_weights(settings["weights"])}
    begin(folder, o.share, settings | about, anew)
    encode_slides(network, folder, jobs, found, o, failed)
    release(folder)
    return failed


def feature_settings(folder, o, device):
    """Weights, precision, colour and seed. Stretched tiles are encoded as the others were."""
    usual = {
        "weights": "imagenet",
        "precision": pick_precision("auto", device),
        "colour": COLOURS[0],
        "seed": o.seed,
    }
    plain = folder.with_name(encoder_name(o.encoder))
    usual = settle(plain / "settings.json", {}, usual)
    asked = {
        "weights": o.weights if o.encoder in ENCODERS else o.encoder,
        "precision": o.precision and pick_precision(o.precision, device),
        "colour": encoder_wants(o)["colour"] or o.colour,
        "seed": o.tile_seed,
    }
    return settle(folder / "settings.json", asked, usual)


def made_by(o, settings):
    """What <slide>.json says of all slides alike."""
    made = {
        "encoder": features_folder(o),
        "weights": weights_identity(settings["weights"], settings["seed"]),
        "precision": settings["precision"],
        "colour": settings["colour"],
    }
    if o.encoder not in ENCODERS:
        made["tile_px"] = encoder_wants(o)["tile_px"]
    return made


def missing_features(place, slides, found, wanted, failed):
    """{slide: (its tiles, what <slide>.json shall say)}, [(made as, wanted)] of those made anew."""
    folder = place / "features" / wanted["encoder"]
    jobs, anew = {}, []
    for name in counted(f"looking for features {folder.name}", slides, "slides"):
        if name in failed:
            continue
        tiles, by = tiles_of(place, name)
        wanted = dict(wanted, tiles=by)
        side = made_as(folder, name)
        made = {key: side[key] for key in side if key not in FOUND}
        if tiles is None:
            failed[name] = f"{place / 'tiles' / name}.npz was there and is gone"
        elif made == wanted and are_ready(folder, name, found, of_these_tiles(side, tiles, by)):
            pass
        elif name not in found:
            failed[name] = f"no slide file {name}.* to make its features from"
        else:
            jobs[name] = tiles, wanted
            if made:
                anew.append((made, wanted))
    return jobs, anew


def are_ready(folder, name, found, of_tiles):
    """Whether features are there, of the tiles, and of the slide as it is now."""
    if not of_tiles or not (folder / f"{name}.npy").is_file():
        return False
    side = folder / f"{name}.json"
    return name not in found or not is_changed(found[name], side, [side])


def encode_slides(network, folder, jobs, found, o, failed):
    """Encode and save slide by slide; of the next one, reading has begun meanwhile."""
    wants = encoder_wants(o)
    n_tiles = sum(len(tiles["coords"]) for tiles, _ in jobs.values())
    tick = progress(f"features {folder.name}", n_tiles, "tiles")
    unchanged = {}

    def begin_reading(name):
        slide = Slide(open_slide(found[name]), *jobs[name], wants["tile_px"])
        return slide, slide.begin(o.workers), all_bytes(found[name])

    for name, got in ordered_map(begin_reading, list(jobs), 1, begun=2):
        tiles, made = jobs[name]
        try:
            if isinstance(got, Exception):
                raise got
            slide, pixels, its_bytes = got
            features = encode(network, ticked(pixels, tick), wants["mean"], wants["std"])
            made |= {"cut": cut_of(tiles), "slide": its_bytes, "holds": held_by(features)}
        except (ValueError, OSError) as e:
            failed[name] = str(e)
            continue
        if made["colour"] == "macenko":
            made["stains"] = slide.found()
            unchanged[name] = slide.unchanged
        (folder / f"{name}.json").unlink(missing_ok=True)  # never an old label on new features
        save_file(folder / f"{name}.npy", partial(np.save, arr=features))
        save_json(folder / f"{name}.json", made)
    names = [name for name, n in unchanged.items() if n > 0]
    if names:
        print(
            f"--colour macenko: {sum(unchanged.values()):,} tiles hold too little stain and keep "
            f"their colours, of {few(names)}"
        )


def ticked(chunks, tick):
    for chunk in chunks:
        tick(len(chunk))
        yield chunk


class Slide:
    """The pixels of a slide's tiles, in their colours."""

    def __init__(self, slide, tiles, made, px):
        self.where = slide, tiles["coords"], float(tiles["tile"]), px
        self.colour, self.stains, self.unchanged = made["colour"], None, 0
        if self.colour == "macenko":
            self.stains = tiling.slide_stains(*self.where, made["tiles"]["seed"])

    def begin(self, workers):
        """As `read`, whose first tiles are waited for here."""
        chunks = self.read(workers)
        first = list(itertools.islice(chunks, 1))
        return itertools.chain(first, chunks)

    def read(self, workers):
        """Yield tiles (m, px, px, 3) uint8 in their order; threads read ahead."""
        _, coords, tile, _ = self.where
        for _, got in ordered_map(self.read_run, tiling.tile_runs(coords, tile), workers):
            if isinstance(got, Exception):
                raise ValueError(str(got))
            tiles, changed = got
            self.unchanged += int((~changed).sum())
            yield tiles

    def read_run(self, run):
        slide, coords, tile, px = self.where
        tiles = tiling.read_tiles(slide, coords[slice(*run)], tile, px)
        if self.colour == "stretch":
            tiles = tiling.stretch(tiles)
        return tiling.macenko(tiles, self.stains)

    def found(self):
        """What <slide>.json says of the stains."""
        parts = self.stains and [part.round(4).tolist() for part in self.stains]
        vectors, top = parts or (None, None)
        return {"vectors": vectors, "top": top, "unchanged": self.unchanged}
