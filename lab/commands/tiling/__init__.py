"""From a whole-slide image to tile features and super-tiles.

What both papers do before they learn anything from RNA: find the tissue (Otsu), cut it into square tiles of a fixed
size in micrometres, bring their stains to a common colour (HistCode; a switch), describe each tile with a ResNet50, and
average neighbouring tiles into 100 super-tiles (k-means on location). The file reads in that order; the commands stand at
its end.

  HE2RNA    Schmauch et al., "A deep learning model to predict RNA-Seq expression of tumours from whole slide images",
            Nature Communications 11:3877 (2020), doi:10.1038/s41467-020-17678-4 (preprint bioRxiv 760173)
  HistCode  the self-supervised contrastive framework for differential gene expression (2022)

    python tiling.py doctor COHORT        what is seen in each slide: mpp and its source, level, threshold, tiles, memory
    python tiling.py features COHORT      tiles/<slide>.npz and .png, features/resnet50/<slide>.npy (what is missing)
    python tiling.py features COHORT --encoder FILE     the same with HistCode's encoder, in features/<name of FILE>
    python tiling.py supertiles COHORT    supertiles/resnet50/<slide>.npz
    python tiling.py export COHORT [SLIDE...] --h5 --geojson --csv      export/<encoder>/: for CLAM, QuPath, AnnData
    python tiling.py simulate FOLDER      a simulated cohort with known truth

COHORT is a folder with slides/ (anything OpenSlide reads, or .png/.jpg) and, if there is one, samples.csv. A step makes
what is missing and skips what is there; what was made with other settings is made anew, and that is said. Slides that
fail are listed in failed.csv, the others go on. A folder belongs to one run at a time (its file `lock` says to which); to
share the slides out, start each process with its own RANK of WORLD_SIZE, as torchrun and a cluster's array jobs do.

What comes in: features made elsewhere (--features DIR, of every command that learns or predicts) as CLAM's or TRIDENT's
<slide>.h5 or as .pt tensors; encoders as TorchScript files, with what they want in <file>.json beside; cells and outlines as
QuPath exports them, points/<slide>.csv, .tsv or .geojson and regions/<slide>.geojson. What goes out: export, and the
tiles.geojson of each heatmap. Every coordinate we keep is a level-0 pixel of OpenSlide's frame; QuPath's begins at the
bounds of what was scanned, and what comes from there or goes there is moved. No ICC profile is applied.

Glossary: n tiles, D features, k super-tiles, d downsample of a level; mpp µm per pixel at level 0; H, W pixels.
Tags: [HE2RNA ...] and [HistCode ...] the papers, [... code] only the authors' released code, [ours] our choice.
"""

import time
from pathlib import Path

from lab.cohort.make import make_features, make_supertiles, make_tiles
from lab.cohort.samples import read_samples
from lab.cohort.slides import SLIDE_ENDINGS, find_slides
from lab.commands.options import RawHelp, add_options, natural, parsers, report_failures
from lab.commands.tiling.doctor import doctor
from lab.commands.tiling.export import export
from lab.files import InputError, few
from lab.locks import release
from lab.processes import share_of_slides, wait_for_others
from lab.progress import clock
from lab.simulation.cohort import simulate_cohort


def main(argv=None):
    parser, verbs = parsers("tiling.py", __doc__)
    for verb, what in (
        ("doctor", "say what is seen in each slide"),
        ("tiles", "tissue and tiles"),
        ("features", "tiles, then features"),
        ("supertiles", "tiles, features, then super-tiles"),
    ):
        p = verbs.add_parser(verb, help=what, description=what)
        p.add_argument(
            "cohort",
            help="folder with slides/ (and samples.csv), a folder of slides, or for doctor one slide",
        )
        add_options(p)
    p = verbs.add_parser(
        "export",
        help="tiles and features for other programs",
        description=export.__doc__,
        formatter_class=RawHelp,
    )
    p.add_argument("cohort", help="folder with slides/ (and samples.csv), or a folder of slides")
    p.add_argument("slide", nargs="*", help="names of slides (default: all)")
    p.add_argument("--h5", action="store_true", help="features for CLAM, TRIDENT and --features")
    p.add_argument(
        "--geojson",
        action="store_true",
        help="tiles for QuPath 0.4 and later; those with scores are heatmap's tiles.geojson",
    )
    p.add_argument(
        "--csv", action="store_true", help="features and places of tiles for AnnData and the like"
    )
    add_options(p)
    what = "draw a simulated cohort with known truth"
    p = verbs.add_parser("simulate", help=what, description=what)
    p.add_argument("cohort", metavar="folder", help="the cohort folder to write")
    p.add_argument(
        "--patients", type=int, default=64, help="in two projects, at least 4 (default 64)"
    )
    p.add_argument(
        "--normal-in",
        type=int,
        default=4,
        metavar="N",
        help="one patient in N has a normal slide too (default "
        "4); 1: all, for differential expression",
    )
    p.add_argument("--seed", type=natural, default=0, help="of every random draw (default 0)")
    o = parser.parse_args(argv)
    if o.verb == "simulate":
        simulate_cohort(o.cohort, o.patients, o.seed, normal_in=o.normal_in)
        return 0
    o.tile_seed, o.seed = o.seed, o.seed or 0
    cohort = Path(o.cohort)
    known = (
        [r["slide"] for r in read_samples(cohort)] if (cohort / "samples.csv").exists() else None
    )
    there = {} if known and o.features else find_slides(cohort)
    slides = known or list(there)
    if not slides:
        raise InputError(f"{cohort}: no slides ({' '.join(SLIDE_ENDINGS)}) in it or in its slides/")
    extra = sorted(set(there) - set(slides))
    if extra:
        print(f"{len(extra)} slide files are not in samples.csv and left out: {few(extra)}")
    if o.verb == "export" and o.slide:
        unknown = [name for name in o.slide if name not in slides]
        if unknown:
            raise InputError(f"{cohort} has no slide {few(unknown)}; it has {few(slides, 5)}")
        slides = list(dict.fromkeys(o.slide))
    start, (rank, world) = time.time(), share_of_slides()
    o.share, slides = (rank, world), slides[rank::world]
    make = dict(
        doctor=doctor,
        tiles=make_tiles,
        features=make_features,
        supertiles=make_supertiles,
        export=export,
    )[o.verb]
    try:
        failed = make(cohort, slides, o)
    finally:
        release()
    if o.verb != "doctor":
        print(
            f"{o.verb}: {len(slides) - len(failed)} of {len(slides)} slides ready in {cohort / o.verb} "
            + f"(RANK {rank} of WORLD_SIZE {world}) " * (world > 1)
            + f"({clock(time.time() - start)})"
        )
    wait_for_others(world)
    return report_failures(
        failed, len(slides), None if o.verb == "doctor" else cohort / o.verb, o.share
    )
