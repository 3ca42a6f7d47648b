"""lab.he2rna.runs"""

import re
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

import he2rna
import stats
from lab.audit.ledger import encoder_saw, saw
from lab.cohort.expression import read_expression
from lab.cohort.features import features_of
from lab.cohort.make import make_supertiles
from lab.cohort.samples import join, read_samples, select
from lab.cohort.steps import half_supertiles
from lab.commands.options import add_options, report_failures
from lab.exchange.clam import source_name
from lab.fast.topk import DROPOUT, HE2RNA, HIDDEN, KS_SUPERTILES
from lab.files import InputError, digest, few, save_csv, save_file, save_text
from lab.he2rna.bags import load_bags
from lab.he2rna.evaluation import evaluate, judged_in, untrained_r, write_genes
from lab.he2rna.report import (
    SUMMARY_HEADER,
    best_genes,
    certificate,
    plot_null,
    summary,
    tested_in,
    write_report,
)
from lab.he2rna.training import BATCH_SLIDES, predict_slides, train_fold
from lab.processes import by_first, of_all, share_out
from lab.progress import clock, progress, say_left_out
from lab.runs import (
    claim_folder,
    load_checkpoint,
    mark_of,
    read_config,
    read_folds,
    read_log,
    write_log,
)

LEARNING_RATE = 3e-4  # Adam                                     [HE2RNA code]


EPOCHS = 200  # on super-tiles                           [HE2RNA Methods, Training and evaluation]


PATIENCE = 50  # epochs without a better validation R     [HE2RNA code]


FOLDS = 5  #                                          [HE2RNA Methods, Training and evaluation]


VALID_SHARE = 0.1  # of the training patients, for stopping   [HE2RNA code]


DEMO_VALID = (
    0.3  # there: R over the 7 slides of a tenth is chance, and stops at the wrong epoch [ours]
)


NULL_MODELS = 3  # untrained models behind the null         [ours; the paper has one]


VERSION = 3  # of a run's files; another is refused     [ours]


TYPES = (
    "samples to use: sample_type values, characters 14-15 of TCGA barcodes, or all (default: primary tumours, as "
    "the paper, where samples.csv tells)"
)


def bag_of(features, coords, config):
    """What a run's models see of a slide: its tiles, or its super-tiles. -> (bag (T, D), the bag's row of each tile (n,))."""
    if config["bags"] == "all tiles":
        return np.array(features), np.arange(len(features))
    made = config["features"]["supertiles"]
    means, mask, cluster = half_supertiles(features, coords, made["k"], made["seed"])
    return means[mask], (np.cumsum(mask) - 1)[cluster]


# Commands
def check_new(path, o):
    if path.exists() and not (o.overwrite or o.dry_run):
        raise InputError(f"{path} is there already: --overwrite replaces it")


def check_options(o):
    for name, value, low in (
        ("--epochs", o.epochs, 1),
        ("--patience", o.patience, 1),
        ("--batch", o.batch, 1),
        ("--folds", o.folds, 2),
        ("--null-models", o.null_models, 1),
    ):
        if value < low:
            raise InputError(f"{name} {value}: must be at least {low}")
    if not (0 <= o.dropout < 1 and o.lr > 0 and 0 <= o.valid < 1):
        raise InputError(
            f"--dropout {o.dropout:g} must lie in [0, 1), --lr {o.lr:g} above 0, --valid {o.valid:g} in [0, 1)"
        )
    if Path(o.name).name != o.name or o.name in ("", ".", ".."):
        raise InputError(f"--name {o.name}: the name of a folder in runs/, not a path")


def training_options(a, epochs, patience, batch, ks, more):
    a("--epochs", type=int, default=epochs, help=f"at most (default {epochs}, the paper's{more})")
    a(
        "--patience",
        type=int,
        default=patience,
        help=f"stop after N epochs without a better validation R (default {patience})",
    )
    a("--batch", type=int, default=batch, help=f"slides per iteration (default {batch})")
    a(
        "--lr",
        type=float,
        default=LEARNING_RATE,
        help=f"of Adam (default {LEARNING_RATE:g}); lower if the loss jumps",
    )
    a(
        "--null",
        choices=("untrained", "t", "permutation"),
        default="untrained",
        help="whose p decides what is significant: "
        "untrained models (default, the paper's), the t of one R, or permuted slides; genes.csv has all",
    )
    a(
        "--null-models",
        type=int,
        default=NULL_MODELS,
        help=f"untrained models behind it (default {NULL_MODELS}; paper: 1)",
    )
    a(
        "--ks",
        type=numbers,
        default=ks,
        metavar="K,..",
        help="tiles kept: one k drawn per iteration, all averaged at test "
        f"time (default {','.join(map(str, ks))})",
    )


def numbers(text):
    """'1,2,5' -> (1, 2, 5), for argparse."""
    values = tuple(int(v) for v in text.split(","))
    if min(values) < 1:
        raise ValueError
    return values


def fractions(text):
    """'1/6,0.5' -> fractions between 0 and 1, for argparse."""
    try:
        values = tuple(dict.fromkeys(map(Fraction, text.split(","))))
    except ZeroDivisionError:
        raise ValueError from None
    if not all(0 < v < 1 for v in values):
        raise ValueError
    return values


def prepare(cohort, o):
    """Everything training needs, checked in the order of cost: tables, folds, then slides. -> (data, x, mask)."""
    samples = read_samples(cohort)
    key, ids, genes, a = read_expression(cohort)
    samples, wrong_type = select(samples, o.types, None)
    samples, rows, left_out = join(samples, key, ids, Path(cohort) / "expression")
    left_out = say_left_out({**wrong_type, **left_out})
    fold, validates = folds_of(samples, o), None  # of all projects, then one is selected
    if "folds" in o.code and o.valid:
        inner = [
            set(valid.tolist())
            for _, valid, _ in stats.authors_folds([s["patient"] for s in samples])
        ]
        validates = {
            s["slide"]: [str(f) for f, rows in enumerate(inner) if i in rows]
            for i, s in enumerate(samples)
        }
    chosen, _ = select(samples, "all", o.project)
    failed = share_out(make_supertiles, cohort, [s["slide"] for s in chosen], o)
    ready = {s["slide"] for s in chosen} - set(failed)
    keep = np.array([s["slide"] in ready for s in samples])
    if not keep.any():
        report_failures(failed, len(chosen))
        raise InputError(f"{cohort}: no slide is left to train on")
    samples, rows, fold = [s for s, k in zip(samples, keep) if k], rows[keep], fold[keep]
    check_folds(cohort, samples, fold, o, failed)
    unique, seen = np.unique(rows), {}
    if "genes" in o.code:
        kept = np.arange(len(genes))
    else:
        kept = np.flatnonzero(he2rna.expressed(a[unique]))  # over samples, not slides
        saw(seen, "gene filter", [s["patient"] for s in samples])
    if not len(kept):
        raise InputError(f"{cohort}: no gene has a positive median over the {len(unique)} samples")
    x, mask = load_bags(cohort, source_name(o), [s["slide"] for s in samples])
    data = table_of(
        samples,
        fold,
        [genes[j] for j in kept],
        he2rna.log_expression(a[np.ix_(rows, kept)]),
        left_out,
        failed,
    )
    return (
        dict(
            data,
            genes_in_table=len(genes),
            validates=validates,
            ledgers=[dict(seen) for _ in range(o.folds)],
            encoder=encoder_saw(cohort, features_of(o)),
        ),
        x,
        mask,
    )


def check_folds(cohort, samples, fold, o, failed):
    for f in range(o.folds):
        if len({s["patient"] for s, g in zip(samples, fold) if g != f}) < 2:
            raise InputError(
                f"{cohort}: fold {f} has fewer than 2 patients left to train and validate on, of "
                f"{len(samples)} slides of project {o.project or 'all'}; {len(failed)} slides failed"
            )


def table_of(samples, fold, genes, y, left_out, failed):
    """What training knows of its slides: a dict of columns, y (S, G) the targets, and what is missing."""
    column = {c + "s": np.array([s[c] for s in samples]) for c in ("slide", "patient", "project")}
    return dict(
        column, fold=fold, genes=genes, y=y.astype(np.float32), left_out=left_out, failed=failed
    )


def folds_of(samples, o):
    """Test fold of each sample, by patient, projects evenly spread. InputError says which --folds would work."""
    patients = [s["patient"] for s in samples]
    n = len(set(patients))
    if n < 3:
        raise InputError(
            f"{n} patients are too few: a fold needs one to test, one to validate and one to train on"
        )
    if n < o.folds or n - -(-n // o.folds) < 2:  # 2 training patients: one validates
        raise InputError(
            f"{n} patients don't go into --folds {o.folds}: --folds {min(n, max(3, o.folds))} would work"
        )
    projects = [s["project"] for s in samples]
    if "folds" in o.code:  # five, whatever the seed [HE2RNA code]
        tests = [test for _, _, test in stats.authors_folds(patients)]
        return sum(f * np.isin(np.arange(len(samples)), test) for f, test in enumerate(tests))
    if o.folds_by == "patient":
        return stats.patient_folds(patients, projects, o.folds, o.seed)
    odd = sorted({p for p in patients if not re.match(r"TCGA-\w\w-", p)})
    if odd:
        raise InputError(
            f"--folds-by site: samples.csv has the patient{'s' * (len(odd) > 1)} {few(odd)}, no TCGA barcode "
            "(TCGA-XX-..., XX the site): leave --folds-by out"
        )
    sites = [p[5:7] for p in patients]  # of the tissue source
    if len(set(sites)) < o.folds:
        raise InputError(
            f"--folds-by site: {len(set(sites))} sites ({few(sorted(set(sites)))}) don't go into --folds "
            f"{o.folds}"
            + (f": --folds {len(set(sites))} would work" if len(set(sites)) > 1 else "")
        )
    fold = stats.site_folds(patients, projects, sites, o.folds, o.seed)
    if len(set(fold.tolist())) < o.folds:
        raise InputError(
            f"--folds-by site: the sites leave only {len(set(fold.tolist()))} of --folds {o.folds} with "
            f"patients: --folds {len(set(fold.tolist()))} may work"
        )
    return fold


def open_run(cohort, o, config, data, device, *seen):
    """Make or reopen COHORT/runs/NAME -> (folder, its settings for the report). A folder of other settings is refused.

    seen: what tells the slides' features from others, for digest.
    """
    columns = (data[k].tolist() for k in ("slides", "patients", "projects"))
    config = dict(
        config,
        data=digest(*seen, data["y"], data["fold"], *columns, data["genes"]),
        version=VERSION,
        slides=len(data["y"]),
        genes=len(data["genes"]),
        **{
            k: getattr(o, k)
            for k in ("lr", "batch", "epochs", "patience", "folds", "folds_by", "seed", "code")
        },
    )
    folder = cohort / "runs" / o.within / o.name
    config = claim_folder(
        folder,
        config,
        "fold*.pt",
        o.share,
        cohort=str(cohort.resolve()),
        device=str(device),
        processes=o.share[1],
        features_folder=o.features and str(Path(o.features).resolve()),
    )
    made = ", ".join(
        str(v)
        for k, v in config["features"].items()
        if k in ("source", "made", "weights", "precision")
    )
    print(
        f"{config['slides']} slides of {len(set(data['patients']))} patients, {config['genes']:,} genes, "
        f"{config['bags']}, {config['n_features']} features ({made}), {o.folds} folds, on {device}"
        + (f"; other side of {', '.join(o.code)}" if o.code else "")
    )
    return folder, config


def split_folds(data, o, folder, chooses=None):
    """[(train, valid, test) rows] of each fold, and folds.csv: each slide's test fold and the folds whose epoch it chooses;
    beside it folds.md, how even they are.

    chooses: {slide: [folds]} keeps an earlier run's choice, whose patients the models did not learn from, where there is
    one.
    """
    fold, patients, projects = data["fold"], data["patients"], data["projects"]
    splits, validates = [], np.full(len(fold), "", dtype=object)
    for f in range(o.folds):
        rest = np.flatnonzero(fold != f)
        inner = np.array([bool(chooses) and str(f) in chooses[s] for s in data["slides"][rest]])
        if o.valid and (not inner.any() or inner.all()):
            inner = stats.inner_split(patients[rest], projects[rest], o.valid, [o.seed, f])
        splits.append((rest[~inner], rest[inner], np.flatnonzero(fold == f)))
        validates[rest[inner]] = [f"{v} {f}".strip() for v in validates[rest[inner]]]
    if not o.share[0]:
        save_csv(
            folder / "folds.csv",
            ("slide", "patient", "project", "test_fold", "validates_folds"),
            zip(data["slides"], patients, projects, fold, validates),
        )
        save_text(
            folder / "folds.md",
            [f"# Folds of {folder.name}, by {o.folds_by}", "", *certificate(data, o.folds), ""],
        )
    return splits


def keep_saved(folder, k):
    """The log of the epochs that are saved, fold by fold: the others run again."""
    saved = [
        np.inf
        if (folder / f"fold{f}.pt").is_file()
        else load_checkpoint(path, "cpu", keys=("epoch",))["epoch"]
        if path.is_file()
        else 0
        for f in range(k)
        for path in [folder / f"fold{f}.state.pt"]
    ]
    entries = [
        e
        for e in read_log(folder)
        if e.get("fold") in range(k)
        and isinstance(e.get("epoch"), int)
        and e["epoch"] <= saved[e["fold"]]
    ]
    write_log(folder, sorted(entries, key=lambda e: (e["fold"], e["epoch"])))


def cross_validate(folder, config, o, data, bags, splits, first_model, start):
    """Train every fold that is not there yet, predict its test slides, test significance, write the report.

    first_model(fold, training rows) -> the model training starts from; start: when the command began. Of several processes
    each trains its folds, the first does the rest.
    """
    y, tested, ledgers, (rank, world) = data["y"], tested_in(data, config["folds"]), [], o.share
    prediction, notes, paths = (
        np.zeros(y.shape, np.float32),
        [],
        [folder / f"fold{f}.pt" for f in range(config["folds"])],
    )
    by_first(lambda: keep_saved(folder, config["folds"]))
    for f, (train_rows, valid_rows, _) in list(enumerate(splits))[rank::world]:
        if not paths[f].is_file():
            model = first_model(f, train_rows)
            note = train_fold(
                model,
                bags,
                y,
                data["projects"],
                data["slides"],
                train_rows,
                valid_rows,
                o,
                f,
                folder,
            )
            for step, rows in note.pop("saw").items():
                saw(data["ledgers"][f], step, data["patients"][rows])
            settings = {
                k: config[k]
                for k in ("hidden", "n_features", "ks", "dropout", "features", "code", "pad_to")
            }
            saved = dict(
                version=VERSION,
                run=mark_of(paths[f]),
                model=model.state_dict(),
                note=note,
                genes=data["genes"],
                **settings,
                test_patients=tested[f],
                saw=data["ledgers"][f],
            )
            save_file(paths[f], lambda file: torch.save(saved, file))
        (folder / f"fold{f}.state.pt").unlink(missing_ok=True)
    of_all(None)
    if rank:
        return
    if world > 1:
        keep_saved(folder, config["folds"])
    tick = progress("test slides", len(y), "slides")
    for f, (train_rows, _, test_rows) in enumerate(splits):
        model = first_model(f, train_rows)
        saved = load_checkpoint(paths[f], next(model.parameters()).device, model)
        notes.append(saved["note"])
        ledgers.append(dict(saved["saw"]))
        saw(ledgers[f], "untrained null", data["patients"][test_rows])
        if len(test_rows):
            prediction[test_rows] = predict_slides(model, bags, test_rows, o.batch, tick)
    untrained = untrained_r(config, data, bags, o, next(model.parameters()).device, folder)
    within, k = judged_in(data["fold"], config)
    results = evaluate(prediction, y, within, data["projects"], k, untrained, o.null)
    save_file(
        folder / "predictions.npz",
        lambda f: np.savez_compressed(
            f,
            prediction=prediction,
            truth=y,
            genes=np.array(data["genes"]),
            slide=data["slides"],
            patient=data["patients"],
            project=data["projects"],
            fold=data["fold"],
        ),
    )
    write_genes(folder / "genes.csv", data["genes"], results)
    some, rng = (
        np.sort(np.random.default_rng(o.seed).permutation(y.shape[1])[:500]),
        np.random.default_rng([o.seed, len(y)]),
    )
    permuted = {
        name: stats.permutation_null(
            prediction[rows][:, some], y[rows][:, some], within[rows], 20, rng
        )
        for name, rows in he2rna.cancers(data["projects"]).items()
    }
    plot_null(results, untrained, permuted, folder / "null.png")
    write_report(
        folder,
        Path(config["cohort"]),
        config,
        data,
        results,
        prediction,
        notes,
        ledgers,
        time.time() - start,
    )
    print(
        "\n"
        + "".join(
            "{:>12} {:>7} {:>7} {:>9} {:>9} {:>15} {:>15}\n".format(*row)
            for row in [SUMMARY_HEADER, *summary(results)]
        )
    )
    print(
        "best: "
        + ", ".join(f"{data['genes'][j]} ({name}, R {r:.2f})" for name, j, r in best_genes(results))
    )
    print(f"report: {folder / 'report.md'}   ({clock(time.time() - start)})")


def load_run(path):
    """A finished run: dict of its folder, config, fold checkpoints, genes, rows of folds.csv, cohort, and fold_of: the fold
    (in a list) whose model did not learn from a patient, also of those that only the run it was fine-tuned from knew."""
    folder, config = Path(path), read_config(path, VERSION)
    if config is None:
        raise InputError(
            f"{folder}: not a run (no config.json); give a folder such as COHORT/runs/he2rna"
        )
    if config.get("version") != VERSION:
        raise InputError(
            f"{folder} is a run of version {config.get('version')} of this program's files, this one reads "
            f"version {VERSION}: train it again, or use the program that made it"
        )
    paths = [folder / f"fold{f}.pt" for f in range(config["folds"])]
    missing = [p.name for p in paths if not p.is_file()]
    if missing or not (folder / "folds.csv").is_file():
        raise InputError(
            f"{folder}: {', '.join(missing) or 'folds.csv'} is missing: the run is not finished; the command "
            "that began it goes on"
        )
    keys = "model genes test_patients hidden ks n_features dropout".split()
    saved, cohort = (
        [load_checkpoint(p, "cpu", keys=keys) for p in paths],
        folder.resolve().parents[1],
    )
    fold_of = {p: [f] for f, one in enumerate(saved) for p in one["test_patients"]}
    rows = read_folds(folder, fold_of)
    moved = [
        row["slide"] for row in rows if row.get("test_fold") != str(fold_of[row["patient"]][0])
    ]
    if moved:
        raise InputError(
            f"{folder / 'folds.csv'}: the slides {few(moved)} were tested in other folds than it says; bring "
            "it back as it was made"
        )
    return dict(
        folder=folder,
        config=config,
        folds=saved,
        genes=saved[0]["genes"],
        rows=rows,
        fold_of=fold_of,  # the cohort may have moved:
        cohort=cohort if (cohort / "samples.csv").is_file() else Path(str(config.get("cohort"))),
    )


def model_of(saved, device, genes=None, ks=None):
    """The network of one fold, with the output rows of the chosen genes."""
    state, last = dict(saved["model"]), f"layers.{len(saved['hidden'])}."
    if genes is not None:
        state.update({last + k: state[last + k][genes] for k in ("weight", "bias")})
    model = HE2RNA(
        saved["n_features"],
        len(state[last + "bias"]),
        saved["hidden"],
        ks or saved["ks"],
        saved["dropout"],
        code=saved["code"],
        pad_to=saved["pad_to"],
    )
    model.load_state_dict(state)
    return model.to(device)


def cohort_options(p, epochs):
    a = p.add_argument
    a(
        "cohort",
        nargs="?",
        help="a cohort folder; without one a simulated cohort is drawn into demo/",
    )
    a = p.add_argument_group("training").add_argument
    a("--types", metavar="TYPE,..", help=TYPES)
    a(
        "--project",
        metavar="P,..",
        help="these projects alone, in the folds of the whole cohort (LUNG: LUAD, LUSC)",
    )
    a(
        "--folds",
        type=int,
        default=FOLDS,
        help=f"of the cross-validation, patients whole (default {FOLDS})",
    )
    a(
        "--valid",
        type=float,
        help=f"share of training patients that choose the epoch (default {VALID_SHARE}, "
        f"{DEMO_VALID} without a cohort); raise it for few slides, whose R is chance; 0: train on all and keep the "
        "last epoch",
    )
    a(
        "--gene-table",
        metavar="FILE",
        help="gene_id, symbol, biotype (csv or tsv): counts protein-coding genes apart",
    )
    a(
        "--hidden",
        type=numbers,
        default=HIDDEN,
        metavar="N,..",
        help=f"neurons of the hidden layers (default {','.join(map(str, HIDDEN))})",
    )
    a("--dropout", type=float, default=DROPOUT, help=f"between layers (default {DROPOUT})")
    a(
        "--folds-by",
        choices=("patient", "site"),
        default="patient",
        help="what test folds never divide: patients "
        "(default, the paper's), or the TCGA tissue source sites of their barcodes, whose stains can pass for biology",
    )
    training_options(
        a, EPOCHS, PATIENCE, BATCH_SLIDES, KS_SUPERTILES, f"; {epochs} without a cohort"
    )
    p.set_defaults(epochs=None, within="", models=None)
    add_options(p)
    return a


def slides_of_run(parser):
    a = parser.add_argument
    a("run", help="a finished run, COHORT/runs/NAME")
    a("slide", nargs="+", help="slide files, names of the run's slides, or the word all for those")
    a(
        "--all-models",
        action="store_true",
        help="for a slide of the run's patients, also the models that learned from the patient",
    )


def gene_set_options(parser):
    a = parser.add_argument
    a("run", help="a finished run, COHORT/runs/NAME")
    a(
        "--gmt",
        nargs="+",
        required=True,
        metavar="FILE",
        help="gene sets (MSigDB's .gmt, plain or gzip)",
    )
    a(
        "--correction",
        choices=("hs", "bh"),
        default="hs",
        help="which genes count as significant: Holm–Šidák (default, "
        "the paper's) or Benjamini–Hochberg",
    )
    a(
        "--gene-table",
        metavar="FILE",
        help="csv or tsv with gene_id, symbol, biotype: maps Ensembl ids to the symbols "
        "of the sets, counts protein-coding genes",
    )
