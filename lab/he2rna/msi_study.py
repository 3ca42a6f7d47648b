"""lab.he2rna.msi_study"""

from fractions import Fraction
from pathlib import Path

import numpy as np

import he2rna
from lab.cohort.expression import read_expression
from lab.cohort.features import features_of, load_features, provenance
from lab.cohort.make import make_features
from lab.cohort.samples import join, read_samples, select
from lab.commands.options import report_failures
from lab.exchange.clam import say_twice
from lab.files import TISSUE, InputError, few, load_arrays
from he2rna import hospital_a
from lab.processes import share_out
from lab.progress import progress, say_left_out

MSI_SHARES = tuple(
    map(Fraction, ("1/6", "1/3", "1/2", "2/3", "3/4", "5/6"))
)  # of the patients in A [HE2RNA Fig. 5b]


def msi_labels(labels, where):
    """'MSI-H', 'MSI-L', 'MSS' or '' (Indeterminate, or empty) for each label, in any case. InputError on other spellings."""
    known = {"msi-h": "MSI-H", "msi-l": "MSI-L", "mss": "MSS", "indeterminate": "", "": ""}
    odd = sorted({v for v in labels if v.strip().lower() not in known})
    if odd:
        raise InputError(
            f"{where}: "
            + ", ".join(f"{labels.count(v)} of {v!r}" for v in odd[:10])
            + f", of {len(labels)} "
            "labels, are none of MSI-H, MSI-L, MSS, Indeterminate or empty: write them so"
        )
    return np.array([known[v.strip().lower()] for v in labels])


def study_of_cohort(o):
    """The slides of a cohort folder for read_study: a dict of arrays, a row each, and what is missing."""
    cohort, samples = Path(o.study), read_samples(o.study)
    if o.scale:
        raise InputError(
            f"--scale {o.scale}: only with FILE.npz; a cohort's expression is linear FPKM-UQ"
        )
    if "msi" not in samples[0]:
        raise InputError(
            f"{cohort / 'samples.csv'}: no column msi (MSI-H, MSI-L, MSS, Indeterminate); it has "
            f"{few(list(samples[0]))}"
        )
    samples, left_out = select(samples, o.types, o.project)
    labels = msi_labels([s["msi"] for s in samples], cohort / "samples.csv")
    key, ids, genes, a = read_expression(cohort)
    kept, rows, missing = join(samples, key, ids, cohort / "expression")
    row_of = dict(zip((s["slide"] for s in kept), rows))
    hospital = [s["hospital"].upper() for s in samples] if "hospital" in samples[0] else None
    has_y = np.array([s["slide"] in row_of for s in samples])
    say_left_out({**left_out, **missing})
    use = needed(labels, has_y, hospital)
    failed = (
        {}
        if o.features
        else share_out(make_features, cohort, [s["slide"] for s, u in zip(samples, use) if u], o)
    )
    x, ready, source, tick = (
        [],
        [],
        features_of(o),
        progress("mean tiles", int(use.sum()), "slides"),
    )
    say_twice(source, [samples[i]["slide"] for i in np.flatnonzero(use)])
    for i in np.flatnonzero(use):
        tick()
        slide = samples[i]["slide"]
        try:
            if slide not in failed:
                x.append(load_features(cohort, source, slide)[0].mean(0, dtype=np.float64))
                ready.append(i)
        except InputError as e:
            failed[slide] = str(e)
    widths = sorted({len(v) for v in x})
    if len(widths) != 1:
        report_failures(failed, int(use.sum()))
        raise InputError(
            f"{cohort}: "
            + (
                f"slides have features of {few(widths)} numbers: one encoder for all is needed"
                if x
                else "no slide has features and what its hospital needs"
            )
        )
    y = np.zeros((len(ready), len(genes)), np.float32)
    for j, i in enumerate(ready):
        if has_y[i]:
            y[j] = he2rna.log_expression(a[row_of[samples[i]["slide"]]])
    of = lambda column: np.array([samples[i][column] for i in ready])
    features = {k: v for k, v in provenance(cohort, o, of("slide")).items() if k != "supertiles"}
    return dict(
        x=np.stack(x).astype(np.float32),
        y=y,
        has_y=has_y[ready],
        genes=genes,
        patients=of("patient"),
        projects=of("project"),
        labels=labels[ready],
        hospital=hospital and np.array(hospital)[ready],
        dropped=int(((labels == "") & ~use).sum()),
        failed=failed,
        features=features,
    )


def study_of_file(o):
    """The rows of an .npz for read_study: features (n, D), expression (n, G), genes, patients, msi[, hospital]."""
    path, wanted = Path(o.study), ("features", "expression", "genes", "patients", "msi")
    idle = [
        k
        for k in (
            "types",
            "project",
            "features",
            "weights",
            "precision",
            "colour",
            "mpp",
            "tile_um",
            "min_tissue",
            "max_tiles",
            *TISSUE,
        )
        if getattr(o, k) is not None
    ]
    if idle or o.encoder != "resnet50":
        raise InputError(
            f"--{few(idle or ['encoder']).replace('_', '-')}: only with a cohort folder, {path} has features"
        )
    z = load_arrays(path)
    if z is None or set(wanted) - set(z):
        raise InputError(
            f"{path}: "
            + (
                f"no array {few([w for w in wanted if w not in z])}; it has {few(list(z))}"
                if z
                else "no such cohort folder, and no .npz that can be read (object arrays are pickles and not read: save "
                "names as str)"
            )
        )
    if any(z[k].ndim == 0 or not z[k].size for k in wanted):
        raise InputError(
            f"{path}: nothing in {few([k for k in wanted if z[k].ndim == 0 or not z[k].size])}"
        )
    n = len(z["patients"])
    wrong = [
        f"{k} {z[k].shape}"
        for k, shape in (
            ("features", (n, *z["features"].shape[1:2])),
            ("expression", (n, len(z["genes"]))),
            ("msi", (n,)),
            ("patients", (n,)),
            ("genes", (len(z["genes"]),)),
            *([("hospital", (n,))] if "hospital" in z else []),
        )
        if z[k].shape != shape or k == "features" and z[k].ndim != 2
    ]
    if wrong:
        raise InputError(
            f"{path}: {few(wrong)} for {n} patients and {len(z['genes'])} genes; wanted features (n, D), "
            "expression (n, G), genes (G,), patients (n,), msi (n,)"
        )
    for k in ("features", "expression"):
        if z[k].dtype.kind not in "fiu":
            raise InputError(f"{path}: {k} are {z[k].dtype}, not numbers")
    x, y = (z[k].astype(np.float32) for k in ("features", "expression"))
    patients, labels = z["patients"].astype(str), msi_labels([str(v) for v in z["msi"]], path)
    hospital = np.char.upper(z["hospital"].astype(str)) if "hospital" in z else None
    has_y = ~np.isnan(y).all(1)
    use = needed(labels, has_y, hospital)
    for what, v, rows in (("features", x, use), ("expression", y, use & has_y)):
        bad = rows & ~np.isfinite(v).all(1)
        if bad.any():
            raise InputError(
                f"{path}: {what} of {bad.sum()} rows are NaN or infinite, the first of patient "
                f"{patients[bad.argmax()]}"
            )
    low, high = (f(y[use & has_y], initial=0) for f in (np.min, np.max))
    scale = o.scale or ("log" if low < 0 or high < 30 else "linear")  # log2 of a count is below 30
    if scale == "linear" and low < 0:
        raise InputError(
            f"{path}: --scale linear, but expression has {low:g}: linear FPKM-UQ is at least 0"
        )
    print(
        f"expression from {low:g} to {high:g}: taken as "
        + ("logarithms, as it is" if scale == "log" else "linear FPKM-UQ, learned as log10(1 + a)")
        + ("" if o.scale else " (--scale to say otherwise)")
    )
    y = np.where(has_y[:, None], he2rna.log_expression(y) if scale == "linear" else y, 0).astype(
        np.float32
    )
    if hospital is None and not has_y.all():
        print(f"{(~has_y).sum()} rows have no expression and are left out")
    return dict(
        x=x[use],
        y=y[use],
        has_y=has_y[use],
        genes=[str(g) for g in z["genes"]],
        patients=patients[use],
        projects=np.full(use.sum(), "all"),
        labels=labels[use],
        hospital=None if hospital is None else hospital[use],
        dropped=int(((labels == "") & ~use).sum()),
        failed={},
        features=x.shape[1],
    )


def needed(labels, has_y, hospital):
    """(S,) bool: rows with what their hospital needs, expression in A and a label in B; both where the hospital is drawn."""
    if hospital is None:
        return (labels != "") & has_y
    odd = sorted(set(hospital) - {"A", "B"})
    if odd:
        raise InputError(
            f"hospital: {few(odd)} in {sum(h in odd for h in hospital)} rows; A has expression, B has msi"
        )
    return np.where(np.array(hospital) == "A", has_y, labels != "")


def read_study(o):
    """What the MSI study learns from, checked: a dict of x (S, D) mean feature of each slide, y (S, G) log expression, has_y
    (S,), high (S,) MSI-H, patients, projects, hospital (S,) of 'A', 'B' or None, genes, and a line on the patients."""
    if not Path(o.study).exists():
        raise InputError(f"{o.study}: no such cohort folder or .npz file")
    d = study_of_cohort(o) if Path(o.study).is_dir() else study_of_file(o)
    keep = d["labels"] != "MSI-L" if "msi-l" in o.code else np.ones(len(d["labels"]), bool)
    keep |= d["hospital"] == "A" if d["hospital"] is not None else False  # A's labels are not used
    low = len(set(d["patients"][~keep].tolist()))
    d = {k: v[keep] if isinstance(v, np.ndarray) else v for k, v in d.items()}
    in_b = d["hospital"] == "B" if d["hospital"] is not None else np.ones(len(d["x"]), bool)
    for what, values, rows in (
        ("labelled", d["labels"], in_b),
        ("of hospital", d["hospital"], slice(None)),
    ):
        if values is not None:
            pairs = sorted(set(zip(d["patients"][rows].tolist(), values[rows].tolist())))
            twice = sorted({p for (p, _), (q, _) in zip(pairs, pairs[1:]) if p == q})
            if twice:
                raise InputError(
                    f"{len(twice)} of {len(set(d['patients']))} patients are {what} two kinds: "
                    + few([f"{p} ({', '.join(v for q, v in pairs if q == p)})" for p in twice])
                    + "; a patient's slides must agree"
                )
    labels = dict(zip(d["patients"][in_b].tolist(), d["labels"][in_b].tolist()))
    count = {k: list(labels.values()).count(k) for k in ("MSI-H", "MSI-L", "MSS")}
    d["line"] = (
        f"{len(set(d['patients']))} patients, {len(d['x'])} slides"
        + ("" if d["hospital"] is None else f", {len(labels)} patients in hospital B")
        + ": "
        + ", ".join(f"{n} {k}" for k, n in count.items())
        + f"; dropped: {d['dropped']} slides Indeterminate or without a label"
        + (f", {low} patients MSI-L" if "msi-l" in o.code else "")
    )
    d["high"] = d["labels"] == "MSI-H"
    print(d["line"])
    if min(count["MSI-H"], len(labels) - count["MSI-H"]) < o.folds:
        raise InputError(
            f"{o.study}: {count['MSI-H']} MSI-H and {len(labels) - count['MSI-H']} other patients"
            + (" in hospital B" if d["hospital"] is not None else "")
            + f"; --folds {o.folds} needs as many of each"
        )
    return d


def shares_of(o, d):
    """[(name, share of the patients in A)] that leave both hospitals enough; those asked for by --ratios must."""
    if d["hospital"] is not None:
        if o.ratios:
            raise InputError(
                f"--ratios {','.join(map(str, o.ratios))}: not where {o.study} has a hospital for each patient"
            )
        n = len(set(d["patients"][d["hospital"] == "A"].tolist()))
        if n < o.folds:
            raise InputError(
                f"{o.study}: hospital A has {n} patients with expression; --folds {o.folds} needs as many"
            )
        return [("given", None)]
    names, first = np.unique(d["patients"], return_index=True)
    shares, short_of = [], []
    for share in o.ratios or MSI_SHARES:
        in_a = hospital_a(d["high"][first], share, np.random.default_rng(0))
        there = int((d["high"][first] & ~in_a).sum()), int((~d["high"][first] & ~in_a).sum())
        if min(*there, in_a.sum()) < o.folds:
            short_of.append(f"{share} in A leaves B {there[0]} MSI-H and {there[1]} other patients")
        else:
            shares.append((str(share), share))
    text = f"{few(short_of)}; --folds {o.folds} needs as many of each (and as many patients in A)"
    if short_of and (o.ratios or not shares):
        raise InputError(
            f"{o.study}: {text}: "
            + (
                f"--ratios {','.join(n for n, _ in shares)} would work"
                if shares
                else "more patients are needed"
            )
        )
    if short_of:
        print(f"left out: {text}")
    return shares
