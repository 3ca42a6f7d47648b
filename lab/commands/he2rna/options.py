"""Options that several of HE2RNA's verbs share."""

from fractions import Fraction

import he2rna
from lab.audit.compare import count
from lab.commands.expression_options import check_count, expression_options
from lab.commands.slide_options import add_options
from lab.files import InputError

DEMO_VALID = 0.3  # there: R over the 7 slides of a tenth is chance [ours]
NULL_MODELS = 3  # untrained models behind the null [ours; the paper has one]
TYPES = (
    "samples to use: sample_type values, characters 14-15 of TCGA barcodes, or all (default: "
    "primary tumours, as the paper, where samples.csv tells)"
)


def share(text):
    """A number from 0 to below 1, for argparse."""
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError
    return value


def rate(text):
    """A number above 0, for argparse."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def whole(text):
    """A number from 0, for argparse."""
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def counts(text):
    """'1,2,5' -> (1, 2, 5), for argparse."""
    return tuple(count(word) for word in text.split(","))


def fractions(text):
    """'1/6,0.5' -> fractions between 0 and 1, each once, for argparse."""
    try:
        values = tuple(dict.fromkeys(map(Fraction, text.split(","))))
    except ZeroDivisionError:
        raise ValueError from None
    if not all(0 < value < 1 for value in values):
        raise ValueError
    return values


def listed(values):
    return ",".join(map(str, values))


def cohort_options(parser, demo_epochs):
    """Options of the verbs that train on a cohort. -> add_argument of the training group."""
    parser.add_argument(
        "cohort",
        nargs="?",
        help="a cohort folder; without one a simulated cohort is drawn into demo/",
    )
    a = parser.add_argument_group("training").add_argument
    a("--types", metavar="TYPE,..", help=TYPES)
    a(
        "--project",
        metavar="P,..",
        help="these projects alone, in the folds of the whole cohort (LUNG: LUAD, LUSC)",
    )
    a(
        "--folds",
        type=count,
        metavar="N",
        default=he2rna.FOLDS,
        help=f"of the cross-validation, patients whole (default {he2rna.FOLDS})",
    )
    a(
        "--valid",
        type=share,
        metavar="X",
        help=f"share of training patients that choose the epoch (default {he2rna.VALID_SHARE}, "
        f"{DEMO_VALID} without a cohort); raise it for few slides, whose R is chance; 0: train on "
        "all and keep the last epoch",
    )
    gene_table_option(a)
    expression_options(a)
    a(
        "--hidden",
        type=counts,
        default=he2rna.HIDDEN,
        metavar="N,..",
        help=f"neurons of the hidden layers (default {listed(he2rna.HIDDEN)})",
    )
    a(
        "--dropout",
        type=share,
        metavar="X",
        default=he2rna.DROPOUT,
        help=f"between layers (default {he2rna.DROPOUT})",
    )
    a(
        "--folds-by",
        choices=("patient", "site"),
        default="patient",
        help="what test folds never divide: patients (default, the paper's), or the TCGA tissue "
        "source sites of their barcodes, whose stains can pass for biology",
    )
    more = f"; {demo_epochs} without a cohort"
    training_options(
        a, he2rna.EPOCHS, he2rna.PATIENCE, he2rna.BATCH_SLIDES, he2rna.KS_SUPERTILES, more
    )
    parser.set_defaults(epochs=None, within="", models=None)
    add_options(parser)
    return a


def training_options(a, epochs, patience, batch, ks, more=""):
    """Options of learning itself, with a verb's defaults; a: add_argument of its parser."""
    a(
        "--epochs",
        type=count,
        metavar="N",
        default=epochs,
        help=f"at most (default {epochs}, the paper's{more})",
    )
    a(
        "--patience",
        type=count,
        metavar="N",
        default=patience,
        help=f"stop after N epochs without a better validation R (default {patience})",
    )
    a(
        "--batch",
        type=count,
        metavar="N",
        default=batch,
        help=f"slides per iteration (default {batch})",
    )
    a(
        "--lr",
        type=rate,
        metavar="X",
        default=he2rna.LEARNING_RATE,
        help=f"of Adam (default {he2rna.LEARNING_RATE:g}); lower if the loss jumps",
    )
    a(
        "--null",
        choices=("decoys", "untrained", "t", "permutation"),
        default="decoys",
        help="whose p decides what is significant: decoys (default), genes of shuffled patients "
        "that the network learns too; untrained models (the paper's); the t of one R; or permuted "
        "patients. The last three take folds for independent, which is too bold with a slide a "
        "patient. genes.csv has all",
    )
    a(
        "--decoys",
        type=whole,
        metavar="N",
        help="shuffled genes that are learned beside the true ones (default a twentieth as many, "
        f"at least {he2rna.MIN_DECOYS}); 0: none, and --null must name another",
    )
    a(
        "--null-models",
        type=count,
        metavar="N",
        default=NULL_MODELS,
        help=f"untrained models behind it (default {NULL_MODELS}; paper: 1)",
    )
    a(
        "--ks",
        type=counts,
        default=ks,
        metavar="K,..",
        help="tiles kept: one k drawn per iteration, all averaged at test time "
        f"(default {listed(ks)})",
    )


def check_decoys(o):
    """InputError where --decoys leaves too few for a null."""
    check_count(o.decoys)
    if o.decoys == 0 and o.null == "decoys":
        raise InputError("--decoys 0 leaves no decoys: --null untrained, t or permutation too")


def check_new(path, o):
    """InputError where a file is there that --overwrite was not said of."""
    if path.exists() and not (o.overwrite or o.dry_run):
        raise InputError(f"{path} is there already: --overwrite replaces it")


def run_option(a):
    a("run", help="a finished run, COHORT/runs/NAME")


def gene_table_option(a):
    a(
        "--gene-table",
        metavar="FILE",
        help="csv or tsv with gene_id, symbol, biotype: maps Ensembl ids to the symbols of gene "
        "sets, counts protein-coding genes apart",
    )


def slide_options(a):
    """Options of the verbs that ask a run's models about slides."""
    run_option(a)
    a("slide", nargs="+", help="slide files, names of the run's slides, or the word all for those")
    a(
        "--all-models",
        action="store_true",
        help="for a slide of the run's patients, also the models that learned from the patient",
    )


def gene_set_options(a):
    """Options of the verbs that ask which pathways a run's genes belong to."""
    run_option(a)
    a(
        "--gmt",
        nargs="+",
        required=True,
        metavar="FILE",
        help="gene sets (MSigDB's .gmt, plain or gzip)",
    )
    a(
        "--correction",
        choices=("hs", "bh"),
        default="hs",
        help="which genes count as significant: Holm–Šidák (default, the paper's) or "
        "Benjamini–Hochberg",
    )
    gene_table_option(a)
