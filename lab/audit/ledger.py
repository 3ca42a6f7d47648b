"""The leak ledger, {step: patients}: put down where a step learns, held against the test fold."""

from pathlib import Path

import numpy as np

from lab.cohort.names import who
from lab.files import load_json
from lab.progress import table


def saw(ledger, step, whom):
    """Put down the patients whom a step learned from."""
    ledger[step] = sorted({*ledger.get(step, ()), *np.asarray(whom).tolist()})


def encoder_saw(cohort, source):
    """Patients whose tiles an encoder learned from, as histcode.py pretrain puts them down.

    [] for ImageNet's and random weights; None for files and features made elsewhere: not known.
    """
    if isinstance(source, Path):
        return None
    made = load_json(Path(cohort) / "features" / source / "settings.json") or {}
    return [] if made.get("weights") in ("imagenet", "random") else made.get("encoder_saw")


def what_saw_whom(ledgers, tested, remarks):
    """(rows (step, patients seen, test patients seen, remark), the steps that leak).

    ledgers: of each fold; tested: its test patients. remarks: {step: why it may see them, or None:
    it judges, and nothing learns from it}; a step that judges does not leak.
    """
    rows, leaks = [], []
    for step in dict.fromkeys(step for ledger in ledgers for step in ledger):
        seen = [set(map(who, ledger.get(step, ()))) for ledger in ledgers]
        overlap = [len(own & set(map(who, test))) for own, test in zip(seen, tested, strict=True)]
        name = step.split(": ")[-1]
        remark = remarks.get(name, "**a leak**") if any(overlap) else ""
        if name in remarks and remarks[name] is None:
            remark = "by design: it judges, nothing learns from it"
        elif any(overlap):
            leaks.append(step)
        of_test = f"{span(overlap)} of {span([len(test) for test in tested])}"
        rows.append((step, span([len(own) for own in seen]), of_test, remark))
    return rows, leaks


def span(counts):
    """'3–5', or '3' where all are equal."""
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low}–{high}"


def ledger_lines(ledgers, tested, remarks, encoder):
    """(lines for the top of a report, its section "What saw whom"); encoder: of encoder_saw."""
    first = {"encoder, without labels": encoder} if encoder else {}
    remarks = {"encoder, without labels": "their tiles, no label or expression", **remarks}
    rows, leaks = what_saw_whom([{**first, **ledger} for ledger in ledgers], tested, remarks)
    top = []
    if leaks:
        top = [f"**Steps that saw test patients: {', '.join(leaks)}** (What saw whom, below).", ""]
    unknown = "" if encoder is not None else "; whom the encoder learned from is not known here"
    section = [
        "## What saw whom",
        "",
        "Patients that each step of each fold learned from, put down where it did (least to most "
        "over the folds). Otsu's threshold, Macenko's stains and the k-means of super-tiles learn "
        f"from one slide alone, Macenko's reference is published{unknown}.",
        "",
        table(("step", "patients", "test patients of its fold", ""), rows),
        "",
    ]
    return top, section
