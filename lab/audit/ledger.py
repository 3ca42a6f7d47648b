"""lab.audit.ledger"""

from pathlib import Path

import numpy as np

from lab.files import load_json
from lab.progress import table


def saw(ledger, step, whom):
    """Leak ledger, {step: sorted list}: put down whom a step learned from, where it does. what_saw_whom reads it."""
    ledger[step] = sorted({*ledger.get(step, ()), *np.asarray(whom).tolist()})


def encoder_saw(cohort, source):
    """Patients whose tiles an encoder learned from: known of those of histcode.py pretrain, nobody here for ImageNet's and
    random weights; None where it is not known (files, features made elsewhere)."""
    made = (
        {}
        if isinstance(source, Path)
        else load_json(Path(cohort) / "features" / source / "settings.json") or {}
    )
    return [] if made.get("weights") in ("imagenet", "random") else made.get("encoder_saw")


def what_saw_whom(ledgers, tested, remarks):
    """Leak ledger of a run -> rows (step, patients seen, of them test patients of the fold, remark), and the steps that saw
    any of those, but for judges. ledgers: {step: patients} of each fold; tested: its test patients; remarks: {step: why it
    may, or None: it judges and teaches nothing}."""
    rows, leaks = [], []
    span = lambda values: "–".join(map(str, sorted({min(values), max(values)})))
    for step in dict.fromkeys(step for ledger in ledgers for step in ledger):
        seen, name = [set(ledger.get(step, ())) for ledger in ledgers], step.split(": ")[-1]
        test = [len(s & set(t)) for s, t in zip(seen, tested)]
        judges = name in remarks and remarks[name] is None
        rows.append(
            (
                step,
                span(list(map(len, seen))),
                f"{span(test)} of {span(list(map(len, tested)))}",
                "by design: it judges, nothing learns from it"
                if judges
                else remarks.get(name, "**a leak**")
                if any(test)
                else "",
            )
        )
        leaks += [step] if any(test) and not judges else []
    return rows, leaks


def ledger_lines(ledgers, tested, remarks, encoder):
    """(lines for the top of a report, its section "What saw whom"). encoder: of encoder_saw."""
    ledgers = [
        {**({"encoder, without labels": encoder} if encoder else {}), **ledger}
        for ledger in ledgers
    ]
    remarks = {"encoder, without labels": "their tiles, no label or expression", **remarks}
    rows, leaks = what_saw_whom(ledgers, tested, remarks)
    return (
        [f"**Steps that saw test patients: {', '.join(leaks)}** (What saw whom, below).", ""]
        if leaks
        else [],
        [
            "## What saw whom",
            "",
            "Patients that each step of each fold learned from, put down where it did (least to most "
            "over the folds). Otsu's threshold, Macenko's stains and the k-means of super-tiles learn from one slide alone, "
            "Macenko's reference is published"
            + (
                "." if encoder is not None else "; whom the encoder learned from is not known here."
            ),
            "",
            table(("step", "patients", "test patients of its fold", ""), rows),
            "",
        ],
    )
