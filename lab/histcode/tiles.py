"""The tiles of a cohort that pretraining and probe read."""

import json

import tiling
from lab.cohort.samples import read_samples
from lab.cohort.slides import SLIDE_ENDINGS, find_slides, open_slide
from lab.cohort.tiles import make_tiles, tiles_of
from lab.encoders import COLOURS
from lab.files import TISSUE, InputError, few, load_json
from lab.histcode.bags import MAX_TILES, TILE_UM
from lab.processes import share_out
from lab.progress import counted, ordered_map, report_failures

TILES_PER_SLIDE = 256  # drawn anew each epoch; the paper takes all [ours]


EDGES = 32, 2048  # of them that can be asked for, px        [ours]


# Commands
def slides_of(cohort):
    """Names of the cohort's slides: those of samples.csv, else all files."""
    known = (
        [r["slide"] for r in read_samples(cohort)] if (cohort / "samples.csv").exists() else None
    )
    slides = known or list(find_slides(cohort))
    if not slides:
        raise InputError(f"{cohort}: no slides ({' '.join(SLIDE_ENDINGS)}) in it or in its slides/")
    return slides


def find_data(cohort, slides, o):
    """Make the tiles that are missing -> (what read_batches wants, with slide names; {slide: why not})."""
    o.colour = o.colour or COLOURS[0]
    made = (
        load_json(cohort / "tiles" / "settings.json") or {}
    )  # a folder made otherwise stays as it is
    for option, usual in dict(tile_um=TILE_UM, tissue="saturation", max_tiles=MAX_TILES).items():
        if getattr(o, option) is None and not made:
            setattr(o, option, usual)
    rule = {**TISSUE, **made}
    if made and (rule["tissue"], rule["tissue_threshold"]) != ("saturation", "otsu"):
        print(
            f"{cohort}/tiles is cut by {rule['tissue']}, threshold {rule['tissue_threshold']}"
            + ", and stays so" * (o.tissue is None and o.tissue_threshold is None)
        )
    failed = share_out(make_tiles, cohort, slides, o)
    ready = [s for s in slides if s not in failed]
    if not o.share[0]:
        report_failures(failed, len(slides), cohort / "tiles")
    if not ready:
        raise InputError(f"{cohort}: no slide has tiles")
    arrays, found = [tiles_of(cohort, s)[0] for s in ready], find_slides(cohort)
    gone = [s for s in ready if s not in found]
    if gone:
        raise InputError(f"no slide file for {few(gone)} in {cohort}: only its tiles are there")
    o.tile_um = load_json(cohort / "tiles" / "settings.json")["tile_um"]
    data = dict(
        slides=ready,
        paths=[found[s] for s in ready],
        coords=[a["coords"] for a in arrays],
        tiles=[float(a["tile"]) for a in arrays],
        mpp=[float(a["mpp"]) for a in arrays],
        px=o.tile_px,
        stains=[None] * len(ready),
        unchanged=0,
    )
    if o.colour == "macenko":
        stains = lambda s: tiling.slide_stains(
            open_slide(data["paths"][s]),
            data["coords"][s],
            data["tiles"][s],
            o.tile_px,
            json.loads(str(arrays[s]["settings"]))["seed"],
        )
        jobs = ordered_map(stains, range(len(ready)), o.workers)
        for s, got in counted("stains", jobs, "slides", len(ready)):
            if isinstance(got, Exception):
                raise InputError(
                    f"{data['paths'][s]} can't be read to its end ({got}): take it out of samples.csv"
                )
            data["stains"][s] = got
        plain = [name for name, found in zip(ready, data["stains"]) if found is None]
        if plain:
            print(
                f"--colour macenko: {len(plain)} slides show no two stains and keep their colours: {few(plain)}"
            )
    return data, failed
