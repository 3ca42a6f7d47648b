"""Options that several of HistCode's verbs share."""

import argparse
from functools import partial

import he2rna
from lab.cohort.features import features_there
from lab.commands.expression_options import FEWEST_DECOYS, expression_options
from lab.commands.options import natural
from lab.commands.slide_options import add_options
from lab.encoders import ENCODERS
from lab.histcode.networks import POOLINGS
from lab.histcode.options import DIAGNOSIS, DRIVERS, WIDEST
from lab.processes import by_first


def layers(text):
    """'64,32' -> (64, 32) and '0' -> (), for argparse."""
    widths = tuple(natural(word) for word in text.split(","))
    if widths == (0,):
        return ()
    if min(widths) < 1 or max(widths) > WIDEST:
        raise argparse.ArgumentTypeError(
            f"{text!r}: a layer is 1 to {WIDEST:,} wide; 0 alone means none"
        )
    return widths


def penalty_of(text):
    """'auto', or a number, for argparse."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def settle_encoder(o, demo):
    """Where no encoder is named, the one that has described most slides of the cohort. [ours]

    Nothing is then encoded anew. Where none has, the usual one; without a cohort (demo) with random
    weights.
    """
    usual = o.usual_encoder
    there = {} if o.features or not o.cohort else by_first(partial(features_there, o.cohort))
    if there and not (o.encoder or o.weights):
        name = max(there, key=lambda name: (there[name].slides, name == usual))
        o.encoder, colour, slides = there[name]
        o.colour = o.colour or colour
        print(
            f"features: those in {o.cohort}/features/{name}, of {slides} slides; --encoder names "
            "another"
        )
    o.encoder = o.encoder or usual
    if demo and o.encoder in ENCODERS and o.encoder not in there:
        o.weights = o.weights or "random"


def pooling_options(parser, usual, bags=None):
    """Options of networks on frozen features; bags: defaults of --bags, where a verb takes it."""

    def default(option):
        text = f"default {usual[option]:g}, the authors'"
        return text + (f"; with --bags {bags[option]:g}" if bags else "")

    a = parser.add_argument_group("training").add_argument
    a(
        "--folds",
        type=int,
        help="parts of the patients: one tests, the next chooses the epoch, the others train "
        f"(default {usual['folds']}: 80/10/10, the paper's)",
    )
    parser.set_defaults(repeats=None)
    if bags:
        a(
            "--repeats",
            type=int,
            help="cross-validations, each with other folds and draws "
            f"(default {usual['repeats']}; with --bags {bags['repeats']})",
        )
    a(
        "--epochs",
        type=int,
        help=f"{default('epochs')}. Kept is the last with the fewest mistakes on the validation "
        "part, of regressions that of the lowest loss",
    )
    a("--batch", type=int, default=1, help="bags a step (default 1, the authors')")
    a("--lr", type=float, help=f"of Adam ({default('lr')})")
    a("--weight-decay", type=float, help=f"of Adam ({default('weight_decay')})")
    a("--hidden", type=int, help=f"rows of V and U in eq. 6 ({default('hidden')})")
    also = f"; with --bags {','.join(map(str, bags['embed']))}" if bags else ""
    a(
        "--embed",
        type=layers,
        metavar="N,..",
        help="layers with ReLU before the pooling, 0 for none (default none, as eqs. 5-6; the "
        f"authors' code has 512{also}). The linear model averages the features before them",
    )


def pair_options(parser, encoder):
    """Options of the two verbs on fold changes."""
    a = parser.add_argument
    a(
        "--genes",
        default="all",
        metavar="A,B|FILE",
        help="of the expression table (default all)",
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
        help="whose tiles stand for a patient: those of tumour slides (default), or both",
    )
    a(
        "--per-gene",
        action="store_true",
        default=None,
        help="a network for each gene, as the authors' code and Fig. 11",
    )
    a(
        "--decoys",
        type=natural,
        metavar="N",
        help="genes of shuffled patients that networks learn too, for p (default a twentieth, at "
        f"least {he2rna.MIN_DECOYS}, or {FEWEST_DECOYS} with --per-gene); 0: p of a t",
    )
    expression_options(a)
    a("--name", help="of the run (default: command and model); an interrupted run goes on")
    pooling_options(parser, DIAGNOSIS)
    add_options(parser, encoder=encoder, there=True)


def slides_of_run(parser):
    """Options of the two verbs that apply a finished run to slides."""
    a = parser.add_argument
    a("run", help="folder of a finished run of diagnose or expression, COHORT/runs/NAME")
    a("slide", nargs="+", help="slide files, names of the run's slides, or all")
    a(
        "--pooling",
        choices=POOLINGS,
        help="of a run of diagnose --table (default HistCode)",
    )
    a(
        "--all-models",
        action="store_true",
        help="also the models that learned from the slide's patient",
    )
    add_options(parser, of_run=True)
