"""lab.audit.choices"""

import argparse
import textwrap

from lab.files import few


# What an auditor is shown: choices of the method, whom each step learned from, what each choice is worth.
# A row of CHOICES (a table in he2rna.py, one in histcode.py): command, name, paper, authors' code, ours, other side, tag.
# A name that begins with -- is an option that has been there anyway: the table shows it, --code and audit don't take it.
def switches(choices, command):
    """{name for --code: what is done where it is given} of one command."""
    return {
        name: dict(paper=paper, code=code).get(other, other)
        for c, name, paper, code, _, other, _ in choices
        if c == command and not name.startswith("--")
    }


def flipped(choices, command, names, follow):
    """The choices that --code names or --follow paper|code turns to their other side, in the table's order."""
    side = lambda paper, code: dict(paper=paper, code=code)  # the same words: the same side
    return [
        name
        for c, name, paper, code, _, other, _ in choices
        if c == command
        and (
            name in names
            or follow
            and other in side(paper, code)
            and side(paper, code)[follow] == side(paper, code)[other]
        )
    ]


def chosen_of(known):
    """A type for argparse: names of `known`, separated by commas, in its order."""

    def names(text):
        asked = [t.strip() for t in text.split(",")]
        if set(asked) - set(known):
            raise argparse.ArgumentTypeError(
                f"{few(sorted(set(asked) - set(known)))}: choose from {', '.join(known)}"
            )
        return tuple(k for k in known if k in asked)

    return names


def add_choices(a, choices, command):
    """The options --follow and --code of a command."""
    a(
        "--follow",
        choices=("paper", "code"),
        help="all choices as the paper or as the authors' code (default: see `choices`)",
    )
    a(
        "--code",
        type=chosen_of(switches(choices, command)),
        action="extend",
        default=[],
        metavar="A,B",
        help="turn these to "
        "their other side, to see what they are worth (the verb `choices` says what each is): "
        + ", ".join(switches(choices, command)),
    )


def show_choices(choices, program):
    """Print the table: what paper and authors' code say, what is done here, what --code NAME turns it to."""
    width, header = (
        (21, 26, 28, 21, 20),
        ("command, name", "the paper", "the authors' code", "ours", "--code turns it to"),
    )
    rows = [
        (
            f"{c} {name}",
            paper,
            code,
            f"{ours} {tag}",
            {"code": "the code's", "paper": "the paper's"}.get(other, other),
        )
        for c, name, paper, code, ours, other, tag in choices
    ]
    for row in (header, *rows):
        cells = [textwrap.wrap(cell, w) for cell, w in zip(row, width)]
        for i in range(max(map(len, cells))):
            print(
                " ".join(
                    f"{cell[i] if i < len(cell) else '':{w}}" for cell, w in zip(cells, width)
                ).rstrip()
            )
        print("-" * (sum(width) + len(width) - 1) if row is header else "")
    print(
        f"One or several: python {program} {choices[0][0]} COHORT --code NAME,..; a whole side: --follow paper|code."
        f"\nWhat each is worth on a cohort: python {program} audit [COHORT]"
    )
