"""Where a paper and its authors' code differ or are silent: the table of what is done here.

Each program has its table: lab/he2rna/choices.csv and lab/histcode/choices.csv.
"""

import argparse
import csv
import textwrap
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from lab.files import few

LAB = Path(__file__).parents[1]
WIDTHS = (21, 26, 28, 21, 20)  # of the printed table's columns, in characters
TITLES = ("command, name", "the paper", "the authors' code", "ours", "--code turns it to")


class Choice(NamedTuple):
    """One decision of one command, which `--code NAME` turns to its other side."""

    command: str
    name: str  # --code does not take an option (--name), nor what nothing turns: (name)
    paper: str  # what the paper says
    code: str  # what the authors' released code does
    ours: str  # what is done here
    other: str  # the other side: "paper" or "code", or else in words
    tag: str  # who says ours

    def says(self, side):
        """The words of a side: of "paper", of "code", or the side itself where it is in words."""
        return {"paper": self.paper, "code": self.code}.get(side, side)


def read_choices(program):
    """The table of a program's choices, its columns the fields of Choice."""
    with open(LAB / program / "choices.csv", newline="", encoding="utf-8") as f:
        return tuple(Choice(**row) for row in csv.DictReader(f))


def of_command(choices, command):
    """The choices that --code of this command takes."""
    rows = [Choice(*row) for row in choices]
    return [c for c in rows if c.command == command and not c.name.startswith(("--", "("))]


def switches(choices, command):
    """{name for --code: what is done where it is given} of one command."""
    return {c.name: c.says(c.other) for c in of_command(choices, command)}


def flipped(choices, command, names, follow):
    """The names that `--code names` or `--follow paper|code` turns, in the table's order.

    To follow a side turns each choice whose other side says the same as it.
    """
    turned = []
    for c in of_command(choices, command):
        followed = c.other in ("paper", "code") and c.says(follow) == c.says(c.other)
        if c.name in names or followed:
            turned.append(c.name)
    return turned


def chosen_of(known):
    """A type for argparse: names of `known`, separated by commas, in its order."""

    def names(text):
        asked = [word.strip() for word in text.split(",")]
        odd = sorted(set(asked) - set(known))
        if odd:
            raise argparse.ArgumentTypeError(f"{few(odd)}: choose from {', '.join(known)}")
        return tuple(name for name in known if name in asked)

    return names


def add_choices(a, choices, command):
    """The options --follow and --code of a command; a: add_argument of its parser."""
    known = switches(choices, command)
    a(
        "--follow",
        choices=("paper", "code"),
        help="all choices as the paper or as the authors' code (default: see `choices`)",
    )
    a(
        "--code",
        type=chosen_of(known),
        action="extend",
        default=[],
        metavar="A,B",
        help="turn these to their other side, to see what they are worth (the verb `choices` says "
        f"what each is): {', '.join(known)}",
    )


def show_choices(choices, program):
    """Print the table, and how to turn one."""
    show_row(TITLES)
    print("-" * (sum(WIDTHS) + len(WIDTHS) - 1))
    for c in (Choice(*row) for row in choices):
        other = {"code": "the code's", "paper": "the paper's"}.get(c.other, c.other)
        show_row((f"{c.command} {c.name}", c.paper, c.code, f"{c.ours} {c.tag}", other))
        print()
    verb = choices[0][0]
    print(f"One or several: python {program} {verb} COHORT --code NAME,..")
    print("A whole side: --follow paper|code.")
    print(f"What each is worth on a cohort: python {program} audit [COHORT]")


def show_row(cells):
    """Print a row of the table, each cell wrapped in its column."""
    columns = [textwrap.wrap(cell, width) for cell, width in zip(cells, WIDTHS, strict=True)]
    for words in zip_longest(*columns, fillvalue=""):
        print(" ".join(f"{word:{w}}" for word, w in zip(words, WIDTHS, strict=True)).rstrip())
