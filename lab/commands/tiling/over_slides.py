"""What the verbs have in common: which slides, their share of several processes, what is said."""

import time
from pathlib import Path

from lab.cohort.samples import read_samples
from lab.cohort.slides import SLIDE_ENDINGS, find_slides
from lab.commands.slide_options import add_options
from lab.files import InputError, few
from lab.processes import wait_for_others
from lab.progress import clock, report_failures
from lab.words import tidy


def tiling_options(parser, cohort="folder with slides/ (and samples.csv), or a folder of slides"):
    """COHORT, and the options of slides, tiles and features; --seed is that of the tiles."""
    parser.add_argument("cohort", help=cohort)
    add_options(parser, seed="tile_seed")


def over_slides(o, make):
    """Make something of this process's share of the slides -> exit status.

    make(cohort, slides, o) -> {slide: why it failed}. It stands in COHORT/<verb>.
    """
    start = time.monotonic()
    cohort, (rank, world) = Path(o.cohort), o.share
    slides = chosen_slides(cohort, o)[rank::world]
    failed = make(cohort, slides, o)
    share = f" (RANK {rank} of WORLD_SIZE {world})" if world > 1 else ""
    print(
        f"{o.verb}: {len(slides) - len(failed)} of {len(slides)} slides ready in "
        f"{cohort / o.verb}{share} ({clock(time.monotonic() - start)})"
    )
    wait_for_others(world)
    return report_failures(failed, len(slides), cohort / o.verb, o.share)


def chosen_slides(cohort, o):
    """The names of samples.csv, else of the slide files; of these, those that were asked for."""
    listed = []
    if (cohort / "samples.csv").exists():
        listed = [row["slide"] for row in read_samples(cohort)]
    there = [] if listed and o.features else list(find_slides(cohort))
    slides = listed or there
    if not slides:
        raise InputError(f"{cohort}: no slides ({' '.join(SLIDE_ENDINGS)}) in it or in its slides/")
    extra = sorted(set(there) - set(slides))
    if extra:
        print(f"{len(extra)} slide files are not in samples.csv and left out: {few(extra)}")
    asked = list(dict.fromkeys(map(tidy, getattr(o, "slide", []))))
    unknown = [name for name in asked if name not in slides]
    if unknown:
        raise InputError(f"{cohort} has no slide {few(unknown)}; it has {few(slides, 5)}")
    return asked or slides
