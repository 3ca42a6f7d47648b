"""Options of the commands on frozen features, and their ranges."""

import argparse
from pathlib import Path

import histcode
from lab.commands.options import add_options, natural
from lab.files import InputError

WIDEST = 10**5  # layer that can be asked for                [ours]


DIAGNOSIS = dict(
    lr=1e-4, weight_decay=1e-5, epochs=50, folds=10, repeats=1, hidden=histcode.ATTENTION, embed=()
)


DRIVERS = (
    200  # genes of a compendium, by mutations            [HistCode Methods, Cancer driver genes]
)


def check_ranges(o, *ranges):
    """InputError for an option that lies outside of its (name, lowest, highest), and for a --name that is a path."""
    for option, low, high in ranges:
        if getattr(o, option) is not None and not low <= getattr(o, option) <= high:
            raise InputError(
                f"--{option.replace('_', '-')} {getattr(o, option):g}: must lie between {low:g} and {high:g}"
            )
    if getattr(o, "name", None) is not None and (
        Path(o.name).name != o.name or o.name in ("", ".", "..")
    ):
        raise InputError(f"--name {o.name}: the name of a folder, not a path")


def layers(text):
    """'64,32' -> (64, 32), '0' -> (), for argparse."""
    values = tuple(map(natural, text.split(",")))
    if 0 in values and len(values) > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a layer of no width; 0 alone means none")
    if max(values) > WIDEST:
        raise argparse.ArgumentTypeError(f"{text!r}: a layer of more than {WIDEST:,}")
    return () if values == (0,) else values


def penalty_of(text):
    """'auto' -> None, or a number, for argparse."""
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def settle_training(o, usual):
    """Fill in the training options that were not given, and check all of them."""
    for k, v in usual.items():
        if getattr(o, k) is None:
            setattr(o, k, v)
    check_ranges(
        o,
        ("epochs", 1, 1e6),
        ("folds", 3, 1e6),
        ("repeats", 1, 1e4),
        ("batch", 1, 1e6),
        ("hidden", 1, WIDEST),
        ("lr", 1e-9, 1e3),
        ("weight_decay", 0, 1e3),
    )


def pooling_options(p, usual, bags=None):
    """Options of networks on frozen features."""
    also = lambda k: f"; with --bags {bags[k]:g}" if bags else ""
    a = p.add_argument_group("training").add_argument
    a(
        "--folds",
        type=int,
        help="parts of the patients: one tests, the next chooses the epoch, the others train "
        f"(default {usual['folds']}: 80/10/10, the paper's)",
    )
    a(
        "--repeats",
        type=int,
        help="cross-validations, with other folds and draws (default "
        f"{usual['repeats']}{also('repeats')})",
    ) if bags else p.set_defaults(repeats=None)
    a(
        "--epochs",
        type=int,
        help=f"default {usual['epochs']}, the authors'; kept is the last with the fewest mistakes "
        "on the validation part" + ", of regressions that of the lowest loss there" * (not bags),
    )
    a("--batch", type=int, default=1, help="bags a step (default 1, the authors')")
    a("--lr", type=float, help=f"of Adam (default {usual['lr']:g}, the authors'{also('lr')})")
    a(
        "--weight-decay",
        type=float,
        help=f"default {usual['weight_decay']:g}, the authors'{also('weight_decay')}",
    )
    a(
        "--hidden",
        type=int,
        help=f"rows of V and U in eq. 6 (default {usual['hidden']}, the authors'{also('hidden')})",
    )
    a(
        "--embed",
        type=layers,
        metavar="N,..",
        help="layers with ReLU before the pooling; 0: none (default none, as eqs. "
        "5-6; the authors' code 512"
        + (
            f"; with --bags {','.join(map(str, bags['embed']))}"
            if bags
            else "; the linear model averages the features before them"
        )
        + ")",
    )


def pair_options(p, a, encoder):
    """Options of the two commands on fold changes."""
    a(
        "--genes",
        default="all",
        metavar="A,B|FILE",
        help="genes of the expression table (default all)",
    )
    a(
        "--drivers",
        metavar="FILE",
        help="a compendium of driver genes (columns symbol and mutations, such as IntOGen's): "
        "its --top most mutated ones",
    )
    a(
        "--top",
        type=int,
        default=DRIVERS,
        help=f"driver genes taken (default {DRIVERS}, the paper's)",
    )
    a(
        "--slides",
        choices=("tumour", "both"),
        help="whose tiles stand for a patient: tumour, of tumour slides (default: "
        '"from single whole slide image"); both, of normal slides too',
    )
    a(
        "--per-gene",
        action="store_true",
        default=None,
        help="a network for each gene, as the authors' code and Fig. 11, not one for all",
    )
    a("--name", help="of the run (default: command and model); an interrupted run goes on")
    pooling_options(p, DIAGNOSIS)
    add_options(p, encoder=encoder)


def slides_of_run(p):
    p.add_argument(
        "run", help="folder of a finished run of diagnose or expression, COHORT/runs/NAME"
    )
    p.add_argument("slide", nargs="+", help="slide files, names of the run's slides, or all")
    p.add_argument(
        "--pooling",
        choices=histcode.POOLINGS,
        help="of a run of diagnose --table (default HistCode)",
    )
    p.add_argument(
        "--all-models",
        action="store_true",
        help="also the models that learned from the slide's patient",
    )
    add_options(p, of_run=True)
    return p.add_argument
