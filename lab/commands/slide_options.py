"""The options of slides, tiles and features, which every verb that reads slides has.

None is the default of most: as the folder was made, else the usual.
"""

import argparse

import tiling
from lab.commands.options import natural
from lab.encoders import COLOURS
from lab.files import TISSUE, InputError
from lab.threads import cores

OF_SLIDES = (  # what says which tiles and features; without slides they have no meaning
    "mpp",
    "force_mpp",
    "tile_um",
    "min_tissue",
    "max_tiles",
    *TISSUE,
    "colour",
    "encoder",
    "weights",
    "features",
    "precision",
)


def add_options(parser, of_run=False, encoder="resnet50", seed="seed", there=False):
    """of_run: for slides that a trained run is applied to, whose features must be as the run's.

    encoder: the default, which decides the tile size; None for a verb that takes tiles alone.
    there: not named, the encoder is None, for a verb that takes the features that are there.
    seed: under which name the seed is kept.
    """
    kept = "" if of_run else " (default: as the folder's tiles were cut, else as said here)"
    group = parser.add_argument_group("slides, tiles and features" + kept)
    a = group.add_argument
    a(
        "--mpp",
        type=float,
        help="µm per pixel at level 0 of slides whose file and samples.csv don't say; never a "
        "guess, since a tile must be the same size of tissue on every slide",
    )
    a(
        "--force-mpp",
        action=argparse.BooleanOptionalAction,
        help="samples.csv's mpp, else --mpp, goes before what a file says, whose scale is wrong "
        "(several scanners: samples.csv should say each)",
    )
    if of_run:
        run_options(parser, a)
    else:
        tile_options(a, encoder)
        colour_options(a, encoder)
    if encoder and not of_run:
        encoder_options(a, encoder, there)
    if encoder:
        a(
            "--features",
            metavar="DIR",
            help="CLAM/TRIDENT features (<slide>.h5 or .pt) instead of slides and encoder",
        )
        precision_options(a, of_run)
    else:
        parser.set_defaults(encoder="resnet50-stage3", weights=None, precision=None, features=None)
    a(
        "--device",
        default="auto",
        help="auto (default: the GPU when there is one), cpu, cuda, cuda:1 ...",
    )
    a(
        "--workers",
        type=natural,
        default=min(8, cores()),
        help="threads that read ahead (default: cores, at most 8); no effect on results",
    )
    a("--seed", type=natural, dest=seed, help="of every random draw (default 0)")
    if seed == "seed":
        parser.set_defaults(tile_seed=None)
    parser.set_defaults(share=(0, 1), usual_encoder=encoder)


def refuse_slide_options(o, instead, *more):
    """InputError that names each option given which has no meaning where no slides are read.

    instead: the file that is read; more: options of the verb that only fit a cohort too.
    """
    given = []
    for name in (*more, *OF_SLIDES):
        usual = o.usual_encoder if name == "encoder" else None
        if getattr(o, name) not in (None, usual):
            given.append("--" + name.replace("_", "-"))
    if given:
        raise InputError(
            f"{', '.join(given)}: only with a cohort folder; {instead} is all the data"
        )


def run_options(parser, a):
    """For slides that a run is applied to."""
    a(
        "--into",
        metavar="DIR",
        help="where tiles and features of the slides are kept (default: their cohort or folder)",
    )
    a(
        "--weights",
        metavar="FILE",
        help="the encoder weights, or encoder, that the run was made with, if it was a file",
    )
    a(
        "--tile-um",
        type=float,
        help="edge of a tile, µm, of features made elsewhere whose files don't say",
    )
    parser.set_defaults(
        min_tissue=None, max_tiles=None, encoder=None, colour=None, **dict.fromkeys(TISSUE)
    )


def tile_options(a, encoder):
    """Which tiles. The usual are HE2RNA's for its encoder, else HistCode's."""
    usual = ("128, HistCode's", "all, HistCode's", "saturation")
    if encoder == "resnet50":
        usual = (f"{tiling.TILE_UM:g}, HE2RNA's", f"{tiling.MAX_TILES}, HE2RNA's", "stain")
    um, most, cut = usual
    read_as = f"; read as {tiling.TILE_PX} px, or as that file says" if encoder else ""
    a(
        "--tile-um",
        type=float,
        help=f"edge of a tile, µm (default {um}, or the encoder file's){read_as}",
    )
    a(
        "--min-tissue",
        type=float,
        help=f"least share of tissue in a tile (default {tiling.MIN_TISSUE}); lower keeps fat and "
        "edges",
    )
    a(
        "--max-tiles",
        type=int,
        help=f"tiles per slide, sampled beyond: bounds time (default {most})",
    )
    a(
        "--tissue",
        choices=("stain", "saturation"),
        help="what Otsu cuts: stain, optical density without pen and black borders; saturation of "
        "HSV, as HistCode's code, which takes those, and an empty slide's colour noise, for tissue "
        f"(default {cut})",
    )
    a(
        "--tissue-threshold",
        type=saturation_level,
        metavar="X",
        help="with --tissue saturation: the level that tissue is above, 0..255 (HistCode: 8), or "
        "otsu (default)",
    )
    a(
        "--min-area",
        type=float,
        help="drop pieces of tissue smaller than X tiles: specks are dirt (default 0: none); "
        "HistCode's 100 squares of 512 level-0 px are 100 tiles of 128 µm at 0.25 µm/px, 400 at "
        "0.5",
    )


def saturation_level(text):
    """'otsu' or a level 0..255, for argparse."""
    if text == "otsu":
        return text
    try:
        level = float(text)
    except ValueError:
        level = -1
    if not 0 <= level < 255:
        raise argparse.ArgumentTypeError(f"{text!r} is neither otsu nor a saturation from 0 to 254")
    return level


def colour_options(a, encoder):
    stretch, usual = "", "default none"
    if encoder:
        stretch = "; stretch: each channel of a tile to 0..255, as HE2RNA's code, features in "
        stretch += "features/<encoder>-stretch"
        usual = "default: the encoder file's, else none"
    a(
        "--colour",
        choices=COLOURS if encoder else COLOURS[:2],
        help="macenko: stains to a common reference, so that features follow tissue, not the "
        f"laboratory{stretch} ({usual}: HE2RNA has none, HistCode names no method)",
    )


def encoder_options(a, encoder, there):
    px = tiling.TILE_PX
    usual = f"that of the features that are there, else {encoder}" if there else encoder
    a(
        "--encoder",
        metavar="NAME|FILE",
        default=None if there else encoder,
        help="resnet50: 2,048 features (HE2RNA's); resnet50-stage3: 1,024 (HistCode's, not yet "
        "trained); a checkpoint of histcode.py pretrain; or a TorchScript file from "
        f"(B, 3, {px}, {px}), normalised as for ImageNet, to (B, D), or as FILE.json beside it "
        "says (docs/manual.md); it is code: run it only from whom you trust. Features go to "
        f"features/<its name> (default {usual})",
    )
    a(
        "--weights",
        metavar="W|FILE",
        help="imagenet (default; downloaded once, hash checked), a torchvision state_dict file, or "
        "random (seeded; to try the program)",
    )


def precision_options(a, of_run):
    default, finetune = " (default)", ""
    if of_run:
        default = ""
        finetune = "; finetune: also of choosing tiles, float32 unless named (bfloat16 may swap "
        finetune += "tiles of nearly equal score)"
    a(
        "--precision",
        choices=("auto", "bfloat16", "float32"),
        help=f"of the encoder; auto{default}: bfloat16 where the hardware has it (within 1 %% of "
        f"float32, several times as fast){finetune}",
    )
