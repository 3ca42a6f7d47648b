"""lab.commands.options"""

import argparse
import os
import signal
import sys
import textwrap
import threading
from functools import partial

import tiling
from lab.cohort.steps import MAX_TILES, RANGES, TILE_UM
from lab.encoders import COLOURS
from lab.files import TISSUE, InputError, one_line, save_csv, say_error
from lab.locks import release
from lab.processes import one_voice


def natural(text):
    """A whole number >= 0 that every generator of random numbers takes, for argparse."""
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > RANGES["seed"][1]:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number >= 0 and < 2**63")
    return int(text)


def saturation_level(text):
    """'otsu' or a level 0..255, for argparse."""
    try:
        level = text if text == "otsu" else float(text)
    except ValueError:
        level = -1
    if text != "otsu" and not 0 <= level < 255:
        raise argparse.ArgumentTypeError(f"{text!r} is neither otsu nor a saturation from 0 to 254")
    return level


class Help(argparse.HelpFormatter):
    """--help within two screens: usage names only what must be given; numbers are N or X, so that options fit a column;
    names of options and genes stay whole."""

    def add_usage(self, usage, actions, groups, prefix=None):
        named = [x for x in actions if x.required or not x.option_strings]
        rest = [argparse.Action(["[options]"], "", nargs=0, required=True)] * (
            len(named) < len(actions)
        )
        super().add_usage(usage, rest + named, groups, prefix)

    def _get_default_metavar_for_optional(self, action):
        return {int: "N", natural: "N", float: "X"}.get(
            action.type
        ) or super()._get_default_metavar_for_optional(action)

    def _split_lines(self, text, width):
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class RawHelp(Help, argparse.RawDescriptionHelpFormatter):
    """The same, the description as it is written."""


class Parser(argparse.ArgumentParser):
    """One to which an empty word, such as of an unset variable of the shell, is a mistake."""

    def _get_value(self, action, text):
        if text == "" and action.nargs != argparse.PARSER:  # a verb's words are its own parser's
            raise argparse.ArgumentError(
                action, "an empty word was given (an unset variable of the shell?)"
            )
        return super()._get_value(action, text)


def parsers(program, manual):
    """A program's parser, and where its verbs are added; `manual`: its description, lines as they are."""
    parser = Parser(prog=program, description=manual, formatter_class=RawHelp)
    return parser, parser.add_subparsers(
        dest="verb", required=True, parser_class=partial(Parser, formatter_class=Help)
    )


def add_options(parser, of_run=False, encoder="resnet50"):
    """The options every command that needs slides shares; None means: as the folder was made, else the default.

    of_run: for slides that a trained run is applied to, whose features must be as the run's; encoder: the default, which
    decides the tile size, or None for a command that takes tiles alone.
    """
    kept = "" if of_run else " (default: as the folder's tiles were cut, else as said here)"
    a = parser.add_argument_group("slides, tiles and features" + kept).add_argument
    a(
        "--mpp",
        type=float,
        help="µm per pixel at level 0 of slides whose file and samples.csv don't say; never a guess, "
        "since a tile must be the same size of tissue on every slide",
    )
    if of_run:
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
    else:
        um, most, cut = (
            (f"{TILE_UM:g}, HE2RNA's", f"{MAX_TILES}, HE2RNA's", "stain")
            if encoder == "resnet50"
            else ("128, HistCode's", "all, HistCode's", "saturation")
        )
        a(
            "--tile-um",
            type=float,
            help=f"edge of a tile, µm (default {um}, or the encoder file's)"
            + f"; read as {tiling.TILE_PX} px, or as that file says" * bool(encoder),
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
            help="what Otsu cuts: stain, optical density without pen and black "
            "borders; saturation of HSV, as HistCode's code, which takes those, and an empty slide's colour noise, for tissue "
            f"(default {cut})",
        )
        a(
            "--tissue-threshold",
            type=saturation_level,
            metavar="X",
            help="with --tissue saturation: the level that tissue "
            "is above, 0..255 (HistCode: 8), or otsu (default)",
        )
        a(
            "--min-area",
            type=float,
            help="drop pieces of tissue smaller than X tiles: specks are dirt (default 0: none); "
            "HistCode's 100 squares of 512 level-0 px are 100 tiles of 128 µm at 0.25 µm/px, 400 at 0.5",
        )
        a(
            "--colour",
            choices=COLOURS if encoder else COLOURS[:2],
            help="macenko: stains to a common reference, so that "
            "features follow tissue, not the laboratory"
            + (
                "; stretch: each channel of a tile to 0..255, as HE2RNA's code, "
                "features in features/<encoder>-stretch (default: the encoder file's, else none"
                if encoder
                else " (default none"
            )
            + ": HE2RNA has none, HistCode names no method)",
        )
    if not encoder:
        parser.set_defaults(encoder="resnet50-stage3", weights=None, precision=None, features=None)
    elif not of_run:
        a(
            "--encoder",
            metavar="NAME|FILE",
            default=encoder,
            help="resnet50: 2,048 features (HE2RNA's); resnet50-stage3: "
            "1,024 (HistCode's, not yet trained); a checkpoint of histcode.py pretrain; or a TorchScript file from "
            f"(B, 3, {tiling.TILE_PX}, {tiling.TILE_PX}), normalised as for ImageNet, to (B, D), or as FILE.json beside it says (README, "
            f"Encoders); it is code: run it only from whom you trust. Features go to features/<its name> (default {encoder})",
        )
        a(
            "--weights",
            metavar="W|FILE",
            help="imagenet (default; downloaded once, hash checked), a torchvision state_dict "
            "file, or random (seeded; to try the program)",
        )
    if encoder:
        a(
            "--features",
            metavar="DIR",
            help="CLAM/TRIDENT features (<slide>.h5 or .pt) instead of slides and encoder",
        )
        a(
            "--precision",
            choices=("auto", "bfloat16", "float32"),
            help="of the encoder; auto"
            + " (default)" * (not of_run)
            + ": bfloat16 where the hardware has it (within 1 %% of float32, several times as fast)"
            + (
                "; finetune: also of choosing tiles, float32 unless named (bfloat16 may swap tiles of nearly equal score)"
                if of_run
                else ""
            ),
        )
    a(
        "--device",
        default="auto",
        help="auto (default: the GPU when there is one), cpu, cuda, cuda:1 ...",
    )
    a(
        "--workers",
        type=natural,
        default=min(8, os.cpu_count() or 1),
        help="threads that read ahead (default: cores, at most 8); no effect on results",
    )
    a("--seed", type=natural, default=None, help="of every random draw (default 0)")
    parser.set_defaults(tile_seed=None, share=(0, 1))


def report_failures(failed, total, folder=None, share=(0, 1)):
    """Say which slides failed and why, also in FOLDER/failed.csv, which is gone where none did; each of several processes
    has its own. Returns the exit status: 0 all done, 1 some failed."""
    if folder:
        path = folder / ("failed.csv" if share[1] == 1 else f"failed-{share[0]}-of-{share[1]}.csv")
        for old in [path, *(folder.glob("failed-*-of-*.csv") if share[1] == 1 else ())]:
            old.unlink(missing_ok=True)
        if failed:
            save_csv(
                path, ("slide", "reason"), ((name, one_line(why)) for name, why in failed.items())
            )
    for name, why in failed.items():
        print(one_line(f"failed: {name}: {why}"), file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {total} slides failed", file=sys.stderr)
    return 1 if failed else 0


def run(main):
    """Run a command: a user's mistake is one line and status 2, SIGINT and SIGTERM one line and status 130 and 143."""
    caught = []

    def stop(number, _):
        caught.append(number)
        raise KeyboardInterrupt

    def dropped(what):  # what is raised in a callback: again
        if caught and isinstance(what.exc_value, KeyboardInterrupt):
            threading.Timer(0.05, signal.raise_signal, caught[-1:]).start()
        else:
            sys.__unraisablehook__(what)

    sys.unraisablehook = dropped
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # µ and ± on any terminal
    try:
        sys.exit(main())
    except BaseException as e:
        if caught:  # in a lock it comes out as another error
            print(
                f"\n{'terminated' if caught[0] == signal.SIGTERM else 'interrupted'}; the same command goes on from here",
                file=sys.stderr,
            )
            sys.exit(128 + caught[0])
        if not isinstance(e, (InputError, OSError)):
            raise
        say_error(e)
        sys.exit(2)


def run_program(program, manual, verbs, shared, argv=None):
    """Parse a command line and run its verb -> exit status. verbs: {name: (module, one line)}."""
    parser, add = parsers(program, manual)
    for name, (module, line) in verbs.items():
        p = add.add_parser(name, help=line, description=module.run.__doc__ or line)
        p.set_defaults(function=module.run, parse=parser.parse_args)
        module.options(p)
    o = parser.parse_args(argv)
    o.seed = getattr(o, "seed", 0) or 0
    try:
        with one_voice(o, shared):
            return o.function(o)
    finally:
        release()
