"""The tiles of a cohort that pretraining and the probe read."""

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
EDGES = 32, 2048  # px of a tile that can be asked for [ours]


def slides_of(cohort):
    """Names of the cohort's slides: those of samples.csv, else all files."""
    if (cohort / "samples.csv").exists():
        slides = [row["slide"] for row in read_samples(cohort)]
    else:
        slides = list(find_slides(cohort))
    if not slides:
        raise InputError(f"{cohort}: no slides ({' '.join(SLIDE_ENDINGS)}) in it or in its slides/")
    return slides


def find_data(cohort, slides, o):
    """Make the tiles that are missing -> (data, {slide: why it failed}).

    data: a dict of slides, paths, coords [(n, 2)], tiles [edge in level-0 px], mpp and stains (None
    where colours stay) of each slide that has tiles, and px, the edge of a tile as it is read.
    """
    settle_tissue(cohort, o)
    failed = share_out(make_tiles, cohort, slides, o)
    if o.share[0] == 0:
        report_failures(failed, len(slides), cohort / "tiles")
    ready = [name for name in slides if name not in failed]
    if not ready:
        raise InputError(f"{cohort}: no slide has tiles")
    found = find_slides(cohort)
    gone = [name for name in ready if name not in found]
    if gone:
        raise InputError(f"no slide file for {few(gone)} in {cohort}: only its tiles are there")
    o.tile_um = load_json(cohort / "tiles" / "settings.json")["tile_um"]
    arrays, settings = zip(*[tiles_of(cohort, name) for name in ready], strict=True)
    data = {
        "slides": ready,
        "paths": [found[name] for name in ready],
        "coords": [a["coords"] for a in arrays],
        "tiles": [float(a["tile"]) for a in arrays],
        "mpp": [float(a["mpp"]) for a in arrays],
        "px": o.tile_px,
        "stains": [None] * len(ready),
    }
    if o.colour == "macenko":
        data["stains"] = find_stains(data, [made["seed"] for made in settings], o.workers)
    return data, failed


def settle_tissue(cohort, o):
    """HistCode's tiles where nothing else was asked for or is there; colours stay. [ours]"""
    o.colour = o.colour or COLOURS[0]
    made = load_json(cohort / "tiles" / "settings.json")
    if made is None:
        usual = {"tile_um": TILE_UM, "tissue": "saturation", "max_tiles": MAX_TILES}
        for option, value in usual.items():
            if getattr(o, option) is None:
                setattr(o, option, value)
        return
    rule = {**TISSUE, **made}
    if (rule["tissue"], rule["tissue_threshold"]) != ("saturation", "otsu"):
        print(f"{cohort}/tiles was cut by {rule['tissue']}, threshold {rule['tissue_threshold']}")


def find_stains(data, seeds, workers):
    """The stains of each slide for --colour macenko; None, and a word, where it shows no two."""

    def stains_of(s):
        slide = open_slide(data["paths"][s])
        where = data["coords"][s], data["tiles"][s], data["px"]
        return tiling.slide_stains(slide, *where, seeds[s])

    stains = []
    jobs = ordered_map(stains_of, range(len(seeds)), workers)
    for s, found in counted("stains", jobs, "slides", len(seeds)):
        if isinstance(found, Exception):
            raise unreadable(data["paths"][s], found)
        stains.append(found)
    plain = [name for name, found in zip(data["slides"], stains, strict=True) if found is None]
    if plain:
        print(
            f"--colour macenko: {len(plain)} slides show no two stains and keep their colours: "
            f"{few(plain)}"
        )
    return stains


def unreadable(path, why):
    """The error of a slide that opens but breaks off."""
    return InputError(f"{path} can't be read to its end ({why}): take it out of samples.csv")
