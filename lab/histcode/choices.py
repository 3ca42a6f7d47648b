"""What paper and authors' code disagree on, and the options that a choice turns."""

from lab.audit.choices import flipped, switches
from lab.files import InputError
from lab.histcode.tiles import TILES_PER_SLIDE

# Choices: all that paper and authors' code disagree on or leave open, as far as a switch can express it
# Rule: the paper; where it is silent or ambiguous, the authors' code; where that is a defect or a leak, the correct thing.
# A row: command and name for its --code NAME,..; the paper; the authors' code; ours; the other side, which --code turns
# this one choice to (code or paper: that side, as --follow does with all of its; else in words); the tag of ours.
CHOICES = (
    (
        "pretrain",
        "tissue",
        'Otsu; "the threshold 8"',
        "Otsu of the saturation (lung), or saturation above 8; they exclude each other",
        "Otsu of the saturation",
        "saturation above 8; tiles/ is cut anew",
        "[HistCode code]",
    ),
    (
        "pretrain",
        "--min-area",
        "tiles whose tissue is under 100 (of what, it does not say) dropped",
        "pieces of tissue under 100 squares of 512 px of level 0 dropped",
        "none dropped",
        "--min-area 100",
        "[ours]",
    ),
    (
        "pretrain",
        "colour",
        "normalised; the method is not named, here Macenko's",
        "none",
        "none: a method would be a guess",
        "paper",
        "[HistCode code]",
    ),
    (
        "pretrain",
        "tiles",
        "all tiles",
        "all tiles, one slide after the other",
        f"{TILES_PER_SLIDE} of each slide, drawn anew each epoch",
        "paper",
        "[ours]",
    ),
    ("pretrain", "batch", "silent", "250; AdCo's 256", "AdCo's", "code", "[AdCo code]"),
    ("pretrain", "lr", ".03", ".001", "the paper's", "code", "[HistCode Methods]"),
    (
        "pretrain",
        "cosine",
        "one rate",
        "it falls along half a cosine to .0006",
        "the paper's",
        "code",
        "[HistCode Methods]",
    ),
    (
        "pretrain",
        "momentum-encoder",
        "eq. 1 does not say which network makes the keys",
        "a slow copy, .999",
        "the code's",
        "none: one encoder for both views",
        "[HistCode code]",
    ),
    (
        "pretrain",
        "in-batch",
        "negatives are the bank alone",
        "the keys of the other tiles too",
        "the paper's",
        "code",
        "[HistCode eq. 1]",
    ),
    (
        "pretrain",
        "bank-tau",
        "one temperature for both sides of the game",
        ".02 in the bank's step, .12 in the loss",
        "the paper's",
        "code",
        "[HistCode eqs. 1-4]",
    ),
    (
        "pretrain",
        "bank-lr",
        "silent",
        ".3; AdCo's 3",
        "the code's",
        "3, as AdCo's own code",
        "[HistCode code]",
    ),
    (
        "pretrain",
        "bank-step",
        "the gradient alone (eq. 4)",
        "momentum .9, weight decay .0001, as of the encoder",
        "the code's",
        "paper",
        "[HistCode code]",
    ),
    (
        "pretrain",
        "bank-size",
        "a percentage of each slide's tiles",
        "20 %, 318,193 in all; AdCo's 65,536",
        "20 %, 65,536 at most",
        "code",
        "[AdCo code]",
    ),
    (
        "diagnose",
        "folds",
        "five tests of 10 %: half of the patients",
        "five, its lists not released",
        "the paper's",
        "each of the ten parts tests in turn",
        "[HistCode Results, Tumor diagnosis]",
    ),
    (
        "diagnose",
        "stop",
        "a validation part of 10 %",
        "none chooses: the last of 50 epochs",
        "validation patients choose the epoch",
        "the test part chooses it, as in expression's code",
        "[HistCode Results, Tumor diagnosis]",
    ),
    (
        "diagnose",
        "embed",
        "attention on the features (eqs. 5-6)",
        "a layer of 512 before it",
        "the paper's",
        "code",
        "[HistCode eqs. 5-6]",
    ),
    (
        "diagnose",
        "--colour",
        "normalised; the method is not named",
        "none",
        "as the encoder's file says, else none",
        "--colour macenko",
        "[HistCode code]",
    ),
    (
        "expression",
        "--colour",
        "normalised; the method is not named",
        "none",
        "as the encoder's file says, else none",
        "--colour macenko",
        "[HistCode code]",
    ),
    (
        "expression",
        "model",
        "one linear layer a gene, on both ends of the attention (eq. 8)",
        "an attention regressor for each gene",
        "the paper's",
        "code",
        "[HistCode eq. 8]",
    ),
    (
        "expression",
        "epochs",
        "silent",
        "50 of the classifier, 200 at most of a gene's regressor",
        "the classifier's",
        "code",
        "[HistCode code]",
    ),
    (
        "expression",
        "stop",
        "silent",
        "the test part chooses the epoch",
        "validation patients choose the epoch",
        "code",
        "[ours]",
    ),
    (
        "expression",
        "embed",
        "attention on the features (eqs. 5-6)",
        "a layer of 512 before it",
        "the paper's",
        "code",
        "[HistCode eqs. 5-6]",
    ),
    (
        "expression",
        "slides",
        '"single whole slide image"',
        "a list of slides, not released",
        "all tumour slides of the patient, as one",
        "tiles of the normal slides too",
        "[ours]",
    ),
)


TURNED = {  # the options that a choice turns; stop has none
    "pretrain": {
        "tissue": dict(tissue="saturation", tissue_threshold=8.0),
        "colour": dict(colour="macenko"),
        "tiles": dict(tiles_per_slide=10**9),
        "batch": dict(batch=250),
        "lr": dict(lr=0.001),
        "cosine": dict(cosine=True, final_lr=0.0006),
        "momentum-encoder": dict(momentum_encoder=0.0),
        "in-batch": dict(in_batch=True),
        "bank-tau": dict(bank_tau=0.02),
        "bank-lr": dict(bank_lr=3.0),
        "bank-step": dict(bank_momentum=0.0, bank_decay=0.0),
        "bank-size": dict(bank_size=318193),
    },
    "diagnose": {"folds": dict(rotate=True), "embed": dict(embed=(512,))},
    "expression": {
        "model": dict(model="attention", per_gene=True),
        "epochs": dict(epochs=200),
        "embed": dict(embed=(512,)),
        "slides": dict(slides="both"),
    },
}


def settle_choices(o):
    """o.code: the choices that --follow and --code turn; the options that they stand for are set. An option asked for in
    so many words gainsays --code, and goes before --follow."""
    named, o.code = o.code, flipped(CHOICES, o.verb, o.code, o.follow)
    for name in list(o.code):
        turned = TURNED[o.verb].get(name, {})
        given = [
            f"--{'' if getattr(o, k) else 'no-' * (getattr(o, k) is False)}{k.replace('_', '-')}"
            + f" {getattr(o, k)}" * (not isinstance(getattr(o, k), bool))
            for k, v in turned.items()
            if getattr(o, k) not in (None, v)
        ]
        if given and name in named:
            raise InputError(
                f"--code {name} turns it to: {switches(CHOICES, o.verb)[name]}; leave {' '.join(given)} out"
            )
        if given:
            print(f"--follow {o.follow}: without {name}, for {' '.join(given)} is asked for")
            o.code.remove(name)
        else:
            vars(o).update(turned)


def turned_lines(o):
    """Of a report: the choices of this run that are turned."""
    text = "; ".join(f"{name}: {switches(CHOICES, o.verb)[name]}" for name in o.code)
    return (
        [f"Turned to their other side (`python histcode.py choices`): {text}.", ""] if text else []
    )
