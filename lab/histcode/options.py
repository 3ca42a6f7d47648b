"""Settings of the commands on frozen features: their defaults, and the ranges they must lie in."""

import histcode
from lab.files import InputError
from lab.runs import check_name

WIDEST = 10**5  # layer that can be asked for  [ours]
DRIVERS = 200  # genes of a compendium, by mutations  [HistCode Methods, Cancer driver genes]
DIAGNOSIS = {
    "lr": histcode.HEAD_RATE,
    "weight_decay": histcode.HEAD_DECAY,
    "epochs": histcode.HEAD_EPOCHS,
    "folds": histcode.PARTS,
    "repeats": 1,
    "hidden": histcode.ATTENTION,
    "embed": (),
}


def check_ranges(o, *ranges):
    """Refuse an option outside of its (name, lowest, highest), and a --name that is a path."""
    for option, low, high in ranges:
        value = getattr(o, option)
        if value is not None and not low <= value <= high:
            flag = option.replace("_", "-")
            raise InputError(f"--{flag} {value:g}: must lie between {low:g} and {high:g}")
    if getattr(o, "name", None) is not None:
        check_name(o.name)


def settle_training(o, usual):
    """Fill in the training options that were not given, and check all of them."""
    for option, value in usual.items():
        if getattr(o, option) is None:
            setattr(o, option, value)
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
