"""Where HE2RNA's paper and its authors' code differ or are silent, and what `train --code` turns.

The rule: the paper decides; where it is silent or ambiguous, the authors' code; where that is a
defect or a leak, the correct thing. What the paper leaves open as a mere number is a constant with
its tag, where it is used.
"""

import stats
from lab.audit.choices import flipped, read_choices
from lab.files import InputError

CHOICES = read_choices("he2rna")

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
