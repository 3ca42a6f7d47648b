"""Where HistCode's paper and its authors' code differ or are silent, and what `--code` turns.

The rule: the paper decides; where it is silent or ambiguous, the authors' code; where that is a
defect or a leak, the correct thing. This is all of it that an option can express.
"""

from lab.audit.choices import Choice, flipped, switches
from lab.files import InputError
from lab.histcode.tiles import TILES_PER_SLIDE

# Command, name for --code, the paper, the authors' code, ours, the other side, the tag of ours.
CHOICES = (
    Choice(
        "pretrain",
        "tissue",
        'Otsu; "the threshold 8"',
        "Otsu of the saturation (lung), or saturation above 8; they exclude each other",
        "Otsu of the saturation",
        "saturation above 8; tiles/ is cut anew",
        "[HistCode code]",
    ),
    Choice(
        "pretrain",
        "--min-area",
        "tiles whose tissue is under 100 (of what, it does not say) dropped",
        "pieces of tissue under 100 squares of 512 px of level 0 dropped",
        "none dropped",
        "--min-area 100",
        "[ours]",
    ),
    Choice(
        "pretrain",
        "colour",
        "normalised; the method is not named, here Macenko's",
        "none",
        "none: a method would be a guess",
        "paper",
        "[HistCode code]",
    ),
    Choice(
        "pretrain",
        "tiles",
        "all tiles",
        "all tiles, one slide after the other",
        f"{TILES_PER_SLIDE} of each slide, drawn anew each epoch",
        "paper",
        "[ours]",
    ),
    Choice(
        "pretrain",
        "batch",
        "silent",
        "250; AdCo's 256",
        "AdCo's",
        "code",
        "[AdCo code]",
    ),
    Choice(
        "pretrain",
        "lr",
        ".03",
        ".001",
        "the paper's",
        "code",
        "[HistCode Methods]",
    ),
    Choice(
        "pretrain",
        "cosine",
        "one rate",
        "it falls along half a cosine to .0006",
        "the paper's",
        "code",
        "[HistCode Methods]",
    ),
    Choice(
        "pretrain",
        "momentum-encoder",
        "eq. 1 does not say which network makes the keys",
        "a slow copy, .999",
        "the code's",
        "none: one encoder for both views",
        "[HistCode code]",
    ),
    Choice(
        "pretrain",
        "in-batch",
        "negatives are the bank alone",
        "the keys of the other tiles too",
        "the paper's",
        "code",
        "[HistCode eq. 1]",
    ),
    Choice(
        "pretrain",
        "bank-tau",
        "one temperature for both sides of the game",
        ".02 in the bank's step, .12 in the loss",
        "the paper's",
        "code",
        "[HistCode eqs. 1-4]",
    ),
    Choice(
        "pretrain",
        "bank-lr",
        "silent",
        ".3; AdCo's 3",
        "the code's",
        "3, as AdCo's own code",
        "[HistCode code]",
    ),
    Choice(
        "pretrain",
        "bank-step",
        "the gradient alone (eq. 4)",
        "momentum .9, weight decay .0001, as of the encoder",
        "the code's",
        "paper",
        "[HistCode code]",
    ),
    Choice(
        "pretrain",
        "bank-size",
        "a percentage of each slide's tiles",
        "20 %, 318,193 in all; AdCo's 65,536",
        "20 %, 65,536 at most",
        "code",
        "[AdCo code]",
    ),
    Choice(
        "diagnose",
        "folds",
        "five tests of 10 %: half of the patients",
        "five, its lists not released",
        "the paper's",
        "each of the ten parts tests in turn",
        "[HistCode Results, Tumor diagnosis]",
    ),
    Choice(
        "diagnose",
        "stop",
        "a validation part of 10 %",
        "none chooses: the last of 50 epochs",
        "validation patients choose the epoch",
        "the test part chooses it, as in expression's code",
        "[HistCode Results, Tumor diagnosis]",
    ),
    Choice(
        "diagnose",
        "embed",
        "attention on the features (eqs. 5-6)",
        "a layer of 512 before it",
        "the paper's",
        "code",
        "[HistCode eqs. 5-6]",
    ),
    Choice(
        "diagnose",
        "--colour",
        "normalised; the method is not named",
        "none",
        "as the encoder's file says, else none",
        "--colour macenko",
        "[HistCode code]",
    ),
    Choice(
        "expression",
        "--colour",
        "normalised; the method is not named",
        "none",
        "as the encoder's file says, else none",
        "--colour macenko",
        "[HistCode code]",
    ),
    Choice(
        "expression",
        "model",
        "one linear layer a gene, on both ends of the attention (eq. 8)",
        "an attention regressor for each gene",
        "the paper's",
        "code",
        "[HistCode eq. 8]",
    ),
    Choice(
        "expression",
        "epochs",
        "silent",
        "50 of the classifier, 200 at most of a gene's regressor",
        "the classifier's",
        "code",
        "[HistCode code]",
    ),
    Choice(
        "expression",
        "stop",
        "silent",
        "the test part chooses the epoch",
        "validation patients choose the epoch",
        "code",
        "[ours]",
    ),
    Choice(
        "expression",
        "embed",
        "attention on the features (eqs. 5-6)",
        "a layer of 512 before it",
        "the paper's",
        "code",
        "[HistCode eqs. 5-6]",
    ),
    Choice(
        "expression",
        "slides",
        '"single whole slide image"',
        "a list of slides, not released",
        "all tumour slides of the patient, as one",
        "tiles of the normal slides too",
        "[ours]",
    ),
)

# The options that a choice stands for. `stop` has none: histcode.roles takes it as an argument.
TURNED = {
    "pretrain": {
        "tissue": {"tissue": "saturation", "tissue_threshold": 8.0},
        "colour": {"colour": "macenko"},
        "tiles": {"tiles_per_slide": 10**9},
        "batch": {"batch": 250},
        "lr": {"lr": 0.001},
        "cosine": {"cosine": True, "final_lr": 0.0006},
        "momentum-encoder": {"momentum_encoder": 0.0},
        "in-batch": {"in_batch": True},
        "bank-tau": {"bank_tau": 0.02},
        "bank-lr": {"bank_lr": 3.0},
        "bank-step": {"bank_momentum": 0.0, "bank_decay": 0.0},
        "bank-size": {"bank_size": 318193},
    },
    "diagnose": {"folds": {"rotate": True}, "embed": {"embed": (512,)}},
    "expression": {
        "model": {"model": "attention", "per_gene": True},
        "epochs": {"epochs": 200},
        "embed": {"embed": (512,)},
        "slides": {"slides": "both"},
    },
}


def settle_choices(o):
    """Set o.code to what --follow and --code turn, and the options that it stands for.

    An option that asks for something else contradicts --code, and goes before --follow.
    """
    named = o.code
    o.code = []
    for name in flipped(CHOICES, o.verb, named, o.follow):
        turned = TURNED[o.verb].get(name, {})
        against = [
            as_typed(option, getattr(o, option))
            for option, value in turned.items()
            if getattr(o, option) not in (None, value)
        ]
        if not against:
            vars(o).update(turned)
            o.code.append(name)
        elif name in named:
            does = switches(CHOICES, o.verb)[name]
            raise InputError(f"--code {name} turns it to: {does}; leave {' '.join(against)} out")
        else:
            print(f"--follow {o.follow}: without {name}, for {' '.join(against)} is asked for")


def as_typed(option, value):
    """An option and its value as on the command line."""
    name = option.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value}"


def turned_lines(o):
    """Of a report: the choices of this run that are turned."""
    does = switches(CHOICES, o.verb)
    text = "; ".join(f"{name}: {does[name]}" for name in o.code)
    if not text:
        return []
    return [f"Turned to their other side (`python histcode.py choices`): {text}.", ""]
