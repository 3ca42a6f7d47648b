"""A cohort's bags: super-tiles held in memory, or all tiles read from disk while others are
learned.

Both are a function bags(rows) -> x (B, T, D), mask (B, T), as he2rna.train_epochs takes it.
"""

from pathlib import Path

import torch

import he2rna
from lab.cohort.features import load_features
from lab.files import whole_arrays
from lab.progress import counted, ordered_map, progress


def load_bags(cohort, source, slides):
    """Super-tiles of all slides, read once: x (S, T, D) float16, mask (S, T); T of the longest."""
    folder = Path(cohort) / "supertiles" / source
    T, D = whole_arrays(folder / f"{slides[0]}.npz")["means"].shape
    x = torch.zeros((len(slides), T, D), dtype=torch.float16)
    mask = torch.zeros((len(slides), T), dtype=torch.bool)
    for i, slide in enumerate(counted("super-tiles", slides, "slides")):
        z = whole_arrays(folder / f"{slide}.npz")
        x[i] = torch.from_numpy(z["means"])
        mask[i] = torch.from_numpy(z["mask"])
    longest = int(mask.sum(1).max())  # small slides have fewer than 100
    return x[:, :longest].contiguous(), mask[:, :longest].contiguous()


def in_memory(x, mask):
    """Bags of tensors: x (S, T, D), mask (S, T)."""

    def bags(rows):
        return x[rows], mask[rows]

    return bags


def from_disk(cohort, source, slides):
    """Bags of all tiles of the slides, so that memory holds a few batches and not the cohort."""

    def bags(rows):
        return he2rna.pad_bags([load_features(cohort, source, slides[row])[0] for row in rows])

    return bags


def read_ahead(what):
    """A map for `ahead` of he2rna.train_epochs: a thread reads the next bags, and says how far it
    is.
    """

    def ahead(bags, parts):
        tick = progress(what, sum(map(len, parts)), "slides", end=False)
        for rows, got in ordered_map(bags, parts, 1):
            if isinstance(got, Exception):
                raise got
            yield got
            tick(len(rows))

    return ahead
