"""lab.he2rna.bags"""

from pathlib import Path

import numpy as np
import torch

from lab.cohort.features import load_features
from lab.files import whole_arrays
from lab.progress import counted, ordered_map


def load_bags(cohort, source, slides):
    """Super-tiles of all slides, read once: x (S, T, D) float16 tensor, mask (S, T) bool; T of the longest slide."""
    folder = Path(cohort) / "supertiles" / source
    S, T, D = len(slides), *whole_arrays(folder / f"{slides[0]}.npz")["means"].shape
    x, mask = torch.zeros((S, T, D), dtype=torch.float16), torch.zeros((S, T), dtype=torch.bool)
    for i, slide in enumerate(counted("super-tiles", slides, "slides")):
        z = whole_arrays(folder / f"{slide}.npz")
        x[i], mask[i] = torch.from_numpy(z["means"]), torch.from_numpy(z["mask"])
    longest = int(mask.sum(1).max())  # small slides have fewer than 100
    return x[:, :longest].contiguous(), mask[:, :longest].contiguous()


def in_memory(x, mask):
    """Batches of super-tiles: a function of [rows (b,), ...] that yields rows, x (b, T, D) float16 and mask (b, T) of
    each."""
    return lambda parts: ((rows, x[rows], mask[rows]) for rows in parts)


def from_disk(cohort, source, slides):
    """The same with all tiles of the slides, read ahead by a thread: memory holds a few batches, not the cohort."""

    def read(rows):
        bags = [load_features(cohort, source, slides[r])[0] for r in rows]
        x = np.zeros((len(bags), max(map(len, bags)), bags[0].shape[1]), np.result_type(*bags))
        mask = np.zeros(x.shape[:2], bool)
        for i, bag in enumerate(bags):
            x[i, : len(bag)], mask[i, : len(bag)] = bag, True
        return torch.from_numpy(x), torch.from_numpy(mask)

    def batches(parts):
        for rows, got in ordered_map(read, parts, 1):
            if isinstance(got, Exception):
                raise got
            yield rows, *got

    return batches
