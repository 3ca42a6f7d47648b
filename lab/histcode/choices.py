"""Where HistCode's paper and its authors' code differ or are silent, and what `--code` turns.

The rule: the paper decides; where it is silent or ambiguous, the authors' code; where that is a
defect or a leak, the correct thing. This is all of it that an option can express.
"""

from lab.audit.choices import flipped, read_choices, switches
from lab.files import InputError

CHOICES = read_choices("histcode")

# The options that a choice stands for. `stop` has none: histcode.roles takes it as an argument.
TURNED = {
    "pretrain": {
        "tissue": {"tissue": "saturation", "tissue_threshold": 8.0},
        "colour": {"colour": "macenko"},
        "tiles": {"tiles_per_slide": 10**9},
        "batch": {"batch": 250},
        "batch-from": {"batch_from": "slide"},
        "lr": {"lr": 0.001},
        "cosine": {"cosine": True, "final_lr": 0.0006},
        "momentum-encoder": {"momentum_encoder": 0.999},
        "in-batch": {"in_batch": False},
        "bank-keys": {"bank_from": "tiles"},
        "bank-filled": {"bank_from": "training"},
        "bank-tau": {"bank_tau": 0.02},
        "bank-lr": {"bank_lr": 0.3},
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
