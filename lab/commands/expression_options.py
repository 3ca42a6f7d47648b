"""Options of every verb that reads an expression table: its scale and its unit; decoys."""

import argparse

from lab.cohort.scale import UNITS, base_of, unit_of
from lab.files import InputError

FEWEST_DECOYS = 50  # of which a null can be fitted [ours]


def check_count(decoys):
    """InputError where --decoys are some, but too few for a null."""
    if decoys and decoys < FEWEST_DECOYS:
        raise InputError(
            f"--decoys {decoys} are too few for a null: at least {FEWEST_DECOYS}, or 0"
        )


def scale(text):
    """linear, log2, log10, ln or such as log2+0.001, for argparse."""
    text = text.lower()
    return text if text == "linear" else checked(base_of, text) and text


def unit(text):
    """A unit's name, for argparse."""
    return checked(unit_of, text)


def checked(check, text):
    try:
        return check(text)
    except InputError as e:
        raise argparse.ArgumentTypeError(str(e).partition(": ")[2]) from None


def scale_option(a, usual="it must look linear"):
    a(
        "--scale",
        type=scale,
        metavar="log2|..",
        help="what the expression table holds: linear, or log2, log10, ln of 1 + a, or such as "
        f"log2+0.001 of 0.001 + a (default: {usual})",
    )


def expression_options(a, of_run=False):
    """Both options; of_run: of a verb that goes on from a run, which has them."""
    usual = ("the run's",) if of_run else ()
    scale_option(a, *usual)
    unit_usual = "the run's" if of_run else UNITS[0]
    a(
        "--unit",
        type=unit,
        metavar="NAME",
        default=None if of_run else UNITS[0],
        help=f"of a, in what is written: {', '.join(UNITS[1:4])} ... (default: {unit_usual})",
    )
