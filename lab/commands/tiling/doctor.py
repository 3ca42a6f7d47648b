"""python tiling.py doctor COHORT|SLIDE: say what is seen in each slide, and write nothing.

It costs a second or so for each slide: µm per pixel and who says so, the level that tiles are read
from, threshold and share of the tissue, number of tiles; with --features DIR, what the files hold.
It refuses what `features` would refuse, and of samples.csv and expression what training would.
"""

import json
from pathlib import Path

import numpy as np
import openslide

import tiling
from lab.cohort.check import check_cohort
from lab.cohort.expression import ENDINGS, read_expression
from lab.cohort.features import features_of, load_features
from lab.cohort.labels import check_labels
from lab.cohort.samples import join, read_samples
from lab.cohort.slides import (
    find_slides,
    open_slide,
    orientation,
    own_mpp,
    passed_over,
    two_scales,
)
from lab.cohort.steps import work_through
from lab.cohort.tiles import find_tiles, table_mpp, tile_settings
from lab.commands.expression_options import scale_option
from lab.commands.tiling.over_slides import chosen_slides, tiling_options
from lab.devices import pick_device
from lab.encoders import ENCODERS, encoder_wants
from lab.files import TISSUE
from lab.findings import Findings
from lab.he2rna.msi_study import msi_labels
from lab.histcode.bags import tissue_of
from lab.progress import report_failures
from lab.weights import weights_identity

MANY_READ = 4.1  # pixels for each one of a tile: with levels of a factor of 2 it is under 4  [ours]


def options(parser):
    tiling_options(parser, "folder with slides/ (and samples.csv), a folder of slides, or a slide")
    scale_option(parser.add_argument)


def run(o):
    pick_device(o.device)
    features_of(o)
    weights_identity(o.weights or "random", o.seed)
    cohort, (rank, world) = Path(o.cohort), o.share
    found = Findings()
    if (cohort / "samples.csv").exists():
        check_tables(found, cohort, o)
    slides = chosen_slides(cohort, o)[rank::world]
    failed = {}
    look = describe_features if o.features else describe_slides
    names, describe = look(cohort, slides, o, failed)
    for _, lines in work_through("doctor", describe, names, o.workers, failed):
        print(*lines, sep="\n")
    try:
        found.tell(cohort)
    finally:
        status = report_failures(failed, len(slides))
    return status


def check_tables(found, cohort, o):
    """What training, msi and diagnose would find, as far as a cohort needs no option for it."""
    samples, table = read_samples(cohort), None
    if any((cohort / f"expression{ending}").is_file() for ending in ENDINGS):
        table = found.of(read_expression, cohort, o.scale, found.warn)
    if table:
        found.of(join, samples, *table[:2], cohort / "expression")
    check_cohort(found, cohort, samples, o, table)
    check_labels(found, cohort / "samples.csv", samples)
    labels = Findings()  # which not every verb reads
    if "msi" in samples[0]:
        labels.of(msi_labels, [s["msi"] for s in samples], cohort / "samples.csv")
    if {"tumor", "tumour"} & set(samples[0]):
        labels.of(tissue_of, samples, cohort)
    for text in labels.refused:
        found.warn(text)


def describe_features(cohort, slides, o, _):
    """(slides, a function that reads the features of one and says what they are, in lines)."""
    source = features_of(o)

    def look(name):
        features, coords = load_features(cohort, source, name)
        placed = "" if coords is not None else "; no coordinates"
        return [f"{name}: {len(features):,} tiles of {features.shape[1]:,} features{placed}"]

    return slides, look


def describe_slides(cohort, slides, o, failed):
    """(slides that have a file, a function that looks at one and says what it saw, in lines)."""
    files, given = find_slides(cohort), table_mpp(cohort)
    shared, px = tile_settings(cohort / "tiles", o), encoder_wants(o)["tile_px"]
    failed.update({n: f"no file {n}.* in {cohort}" for n in slides if n not in files})

    def look(name):
        mpp = given.get(name, shared["mpp"])
        arrays, _ = find_tiles(files[name], name, dict(shared, mpp=mpp))
        slide = open_slide(files[name])
        by = "samples.csv" if name in given else "--mpp"
        if json.loads(arrays["settings"])["mpp"] is None:
            other = f", not {mpp} of {by} (--force-mpp uses that)"
            by = "the slide" + (other if two_scales(arrays["mpp"], mpp) else "")
        elif shared.get("force_mpp") and np.isfinite(own_mpp(slide)).all():
            by += " by --force-mpp, the slide says {:g} x {:g}".format(*own_mpp(slide))
        return [
            f"{name}: {picture(slide, files[name])}",
            f"  mpp {arrays['mpp']:.4f} µm from {by}; {reading(slide, arrays, shared, px)}",
            f"  {tissue(arrays, {**TISSUE, **shared})}{on_disk(arrays, o.encoder)}",
        ]

    return [name for name in slides if name in files], look


def picture(slide, path):
    """Its size and kind, and what is peculiar to it."""
    W, H = slide.dimensions
    vendor = slide.properties.get("openslide.vendor", "plain image")
    said = f"{W:,} x {H:,} px, {vendor}, {slide.level_count} level(s)"
    x, y, width, height = tiling.slide_bounds(slide)
    if (width, height) != (W, H):
        said += f"; scanned: {width:,} x {height:,} px from ({x:,}, {y:,})"
    turned = orientation(path) if isinstance(slide, openslide.ImageSlide) else 1
    if passed_over(path):
        said += f"; {passed_over(path)}"
    if turned > 1:
        said += f"; turned upright: its orientation tag is {turned}"
    try:
        profile = slide.color_profile is not None
    except Exception:  # a broken one: Pillow's own error
        profile = True
    return said + ("; ICC profile present: not applied" if profile else "")


def reading(slide, arrays, shared, px):
    """From which level tiles are read, and how large they are."""
    um, mpp, tile = shared["tile_um"], arrays["mpp"], arrays["tile"]
    level, d = tiling.best_level(slide, tile / px)
    resampled = "resampled" if d * mpp <= um / px * 1.01 else "RESAMPLED UP"
    read = (tile / px / d) ** 2
    many = f", {read:.0f} pixels for each one: it has no level between" if read > MANY_READ else ""
    return (
        f"read at level {level} (downsample {d:g}, {mpp * d:.3f} µm/px), {resampled} to "
        f"{um / px:g}{many}; a tile is {um:g} µm = {tile:.1f} px"
    )


def on_disk(arrays, encoder):
    """How much room the features will take, where their number is known."""
    if encoder not in ENCODERS:
        return ""
    n_features = 2048 if ENCODERS[encoder] == 4 else 1024
    return f"; features {len(arrays['coords']) * n_features * 2 / 2**20:.1f} MiB"


def tissue(arrays, rule):
    """How tissue was cut, its share of the slide, and the tiles on it."""
    how = "Otsu" if rule["tissue_threshold"] == "otsu" else "fixed"
    unit = "OD" if rule["tissue"] == "stain" else "of saturation"
    n, found = len(arrays["coords"]), arrays["found"]
    sampled = f", {n:,} of them sampled" if n < found else ""
    return (
        f"{how} threshold {arrays['threshold']:.3g} {unit}, tissue {arrays['tissue']:.0%}; "
        f"{found:,} tiles{sampled}"
    )
