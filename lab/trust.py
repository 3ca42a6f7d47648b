"""Which encoders a command names, since a file of TorchScript is code."""

import os

from lab.files import InputError

NAMING = ("encoder", "encoders", "files", "weights")  # options that name encoders
NAMED = set()  # files that the command at work names


def name_encoders(o):
    """Remember which encoders the options name, as the user gave them: before any is settled."""
    NAMED.clear()
    for option in NAMING:
        words = getattr(o, option, None) or ()
        NAMED.update(map(os.path.realpath, [words] if isinstance(words, str) else words))


def refuse_unnamed(path):
    if os.path.realpath(path) not in NAMED:
        raise InputError(
            f"{path} is TorchScript, which is code, and this command does not name it: a folder "
            f"that came from elsewhere may bring any code. If you trust it, add --encoder {path}, "
            f"or to a verb that takes a run --weights {path}"
        )
