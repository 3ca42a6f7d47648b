"""Where HE2RNA's paper and its authors' code differ or are silent, and what `train --code` turns.

The rule: the paper decides; where it is silent or ambiguous, the authors' code; where that is a
defect or a leak, the correct thing. What the paper leaves open as a mere number is a constant with
its tag, where it is used.
"""

import stats
from lab.audit.choices import Choice, flipped
from lab.files import InputError

# A row: command, name for --code, the paper, the authors' code, ours, the other side, the tag.
CHOICES = (
    Choice(
        "train",
        "colour",
        "silent",
        "each channel of each tile shifted and stretched to 0..255",
        "as on the slide",
        "code",
        "[ours]",
    ),
    Choice(
        "train",
        "genes",
        "those of positive median over all samples",
        "no such filter on this path",
        "the paper's",
        "code",
        "[HE2RNA Methods, Cleaning]",
    ),
    Choice(
        "train",
        "padding",
        "silent",
        "padded rows of zeros score 0 and compete: tiles of -1, -2, -3 give 0 for every k",
        "padding never counts: tiles of -1, -2, -3 give -1 for k = 1",
        "code",
        "[ours]",
    ),
    Choice(
        "train",
        "relu",
        "silent",
        "predictions pass a ReLU before metrics",
        "no ReLU",
        "code",
        "[ours]",
    ),
    Choice(
        "train",
        "k",
        'a k drawn "at every iteration and for every gene"',
        "one k an iteration, for all genes",
        "the code's",
        "paper",
        "[HE2RNA code]",
    ),
    Choice(
        "train",
        "folds",
        "5, patients whole, projects evenly spread",
        "5 of the sorted patients, blind to projects; so are the 10 % who choose the epoch",
        "the paper's",
        "code",
        "[HE2RNA Methods, Training and evaluation]",
    ),
    Choice(
        "train",
        "epochs",
        "a fixed number of epochs, all training patients learn",
        "the best epoch by R of a part of the training patients, who do not learn",
        "the code's, of at most the paper's epochs",
        "paper",
        "[HE2RNA code]",
    ),
    Choice(
        "train",
        "bias",
        "silent",
        "the last bias starts at the training mean",
        "the code's",
        "the last bias starts as torch draws it",
        "[HE2RNA code]",
    ),
    Choice(
        "train",
        "merged",
        "LUNG, KIDN and UTER count, not their subtypes",
        "the same",
        "the paper's; subtypes stand beside",
        "subtypes count, not LUNG, KIDN and UTER",
        "[HE2RNA Table 1]",
    ),
    Choice(
        "train",
        "pooled",
        "R of each fold, their mean",
        "the same",
        "the paper's",
        "one R over the test slides of all folds",
        "[HE2RNA Results, prediction of gene expression]",
    ),
    Choice(
        "finetune",
        "--epochs",
        "50",
        "100, or 30 without a better R",
        "the paper's",
        "--epochs 100",
        "[HE2RNA Methods, Training and evaluation]",
    ),
    Choice(
        "msi",
        "--project",
        "COAD",
        "COAD and READ pooled",
        "all of the cohort",
        "--project COAD,READ",
        "[ours]",
    ),
    Choice(
        "msi",
        "scaling",
        "silent",
        "features scaled over the whole cohort, its test patients too",
        "features scaled over training patients",
        "code",
        "[ours]",
    ),
    Choice(
        "msi",
        "genes",
        "genes chosen by their median over the whole cohort",
        "genes chosen by their median over the whole cohort",
        "genes chosen by hospital A's median",
        "code",
        "[ours]",
    ),
    Choice(
        "msi",
        "autoencoder",
        "trained on A or on B",
        "autoencoder B learns from all of hospital B, its test patients too",
        "autoencoder B learns from training patients of B",
        "code",
        "[ours]",
    ),
    Choice(
        "msi",
        "epochs",
        "silent on autoencoders; 50 for the other networks",
        "autoencoders trained for 100 epochs",
        "50, as the others",
        "code",
        "[ours]",
    ),
    Choice(
        "msi",
        "msi-l",
        "counts as not MSI-H",
        "MSI-L left out",
        "the paper's",
        "code",
        "[HE2RNA Methods, MSI status]",
    ),
)

# The options of train that a choice stands for. The others turn an argument, where it is given:
# genes in cohort_data, padding, relu, k and bias in runs, merged and pooled in evaluation.
TURNED = {
    "colour": {"colour": "stretch"},
    "folds": {
        "folds": stats.AUTHORS_FOLDS,
        "folds_by": "patient",
        "valid": stats.AUTHORS_VALID,
    },
    "epochs": {"valid": 0},
}


def settle_choices(o):
    """Set o.code to what --follow, --code and --colour turn, and the options that it stands for."""
    named = {*o.code}
    if o.colour == "stretch":
        named.add("colour")
    o.code = flipped(CHOICES, "train", named, o.follow)
    if "colour" in o.code and o.features:
        why = "features made elsewhere keep the colours they were made from"
        if "colour" in named:
            raise InputError(f"--code colour: {why}; leave --features {o.features} out")
        print(f"--follow code: without colour, for {why}")
        o.code.remove("colour")
    asked = dict(vars(o))
    for name in o.code:
        for option, value in TURNED.get(name, {}).items():
            given = asked[option]
            if given not in (None, 0, value):
                flag = "--" + option.replace("_", "-")
                raise InputError(f"--code {name} means {flag} {value}: leave {flag} {given} out")
            setattr(o, option, value if given is None else given)
