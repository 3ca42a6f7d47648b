"""Encoders of other programs, as TorchScript files: normalised RGB (B, 3, px, px) -> (B, D).

A file is network and weights, and it is code: it is run only where the user names it in the very
command. Folders say which file described their slides, not that it may be run: a folder may be a
stranger's as a whole, the code in it and all that would vouch for the code. What the file wants
stands in FILE.json beside it. [ours]
"""

import zipfile
from pathlib import Path

import torch
from torch import nn

from lab.files import InputError
from lab.trust import refuse_unnamed


def is_script(path):
    """Whether a file is TorchScript: a zip archive with code in it. Looking does not run it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # no archive, or a damaged one: zip's errors share no class
        return False


def side_file(path):
    """The .json beside a TorchScript file that says what it wants."""
    return Path(f"{path}.json")


def load_script(path, device, px):
    """The Script of a file that the user names. InputError where it gives no features."""
    refuse_unnamed(path)
    try:
        return Script(torch.jit.load(path, map_location=device), device, px)
    except Exception as e:  # the errors of a foreign network share no class
        raise InputError(
            f"--encoder {path}: can't map (B, 3, {px}, {px}) to (B, D): {last_line(e)}"
        ) from None


def last_line(error):
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1]


class Script(nn.Module):
    """A scripted network as an encoder; bfloat16 by autocast. [ours]

    ValueError where two tiles, or one, don't give as many rows of numbers.
    """

    def __init__(self, network, device, px):
        super().__init__()
        self.network = network.eval()
        self.precision = "float32"
        self.place = nn.Parameter(torch.zeros(1, device=device), requires_grad=False)
        for n in (2, 1):  # the last batch may have one tile, and .squeeze() breaks there
            with torch.inference_mode():
                y = self.network(torch.zeros(n, 3, px, px, device=device))
            if not torch.is_tensor(y) or y.ndim != 2 or len(y) != n:
                got = tuple(getattr(y, "shape", [])) or type(y).__name__
                raise ValueError(f"{n} tiles of {px} px give {got}")
            self.n_features = y.shape[1]

    def forward(self, x):  # (B, 3, px, px)
        half = self.precision == "bfloat16"
        try:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
                y = self.network(x)  # (B, D)
        except RuntimeError as e:
            raise InputError(f"the encoder fails on {len(x)} tiles: {last_line(e)}") from None
        if y.shape != (len(x), self.n_features):
            raise InputError(f"the encoder gives {tuple(y.shape)} for {len(x)} tiles")
        return y
