"""lab.commands.histcode.ablation"""

import argparse
import itertools
import math
from pathlib import Path

import numpy as np

import stats
from lab.audit.ledger import encoder_saw
from lab.cohort.features import features_of
from lab.commands.histcode.expression import POOLED
from lab.commands.histcode.expression import run as expression
from lab.encoders import ENCODERS, encoder_name, encoder_wants
from lab.files import InputError, load_arrays, number, read_rows, save_csv, save_text
from lab.histcode.options import check_ranges, pair_options
from lab.histcode.pairs import pairs_of
from lab.histcode.runs import VERSION
from lab.progress import table
from lab.runs import claim_folder
from lab.show.plots import figure


def run(o):
    """Encoders x poolings on the same pairs, folds and genes: expression --model attention for each, and one table. [Fig. 6]"""
    base, status, cells, seen = o.name or "ablation", 0, {}, {}
    twice = [encoder_name(e) for e in o.encoders]
    if len(set(twice)) < len(twice):
        raise InputError(
            f"--encoders {' '.join(o.encoders)}: two have the name {max(twice, key=twice.count)}, and so would "
            "their features"
        )
    check_ranges(o)
    made = {e: e not in ENCODERS and Path(e).is_dir() for e in o.encoders}  # a folder of features
    for encoder in (e for e in o.encoders if not made[e]):  # now, not after hours with the first
        encoder_wants(argparse.Namespace(**{**vars(o), "encoder": encoder}))
    pairs_of(
        o.cohort, argparse.Namespace(**{**vars(o), "slides": o.slides or "tumour"})
    )  # before a folder is made
    folder = Path(o.cohort) / "runs" / base  # the rest is in the config.json of each cell
    claim_folder(
        folder,
        dict(command="ablation", version=VERSION, encoders=twice, poolings=list(o.poolings)),
        "report.md",
        o.share,
    )
    for encoder in o.encoders:
        for pooling in o.poolings:
            own = argparse.Namespace(
                **{
                    **vars(o),
                    "encoder": encoder,
                    "pooling": pooling,
                    "model": "attention",
                    "ridge": 0,
                    "name": f"{base}-{encoder_name(encoder)}-{pooling}",
                    "gmt": None,
                    "verb": "expression",
                    "code": [],
                    "follow": None,
                }
            )
            own.weights = o.weights if encoder in ENCODERS else None
            if made[encoder]:
                own.encoder, own.features = o.encoder, encoder
            print(f"--- {encoder_name(encoder)}, {pooling} pooling", flush=True)
            status |= expression(own)
            if o.share[0]:
                continue
            header, rows = read_rows(Path(o.cohort) / "runs" / own.name / "genes.csv")
            r, rho = header.index("R"), header.index("spearman")
            cells[encoder_name(encoder), pooling] = {
                row[0]: (number(row[r]), number(row[rho])) for row in rows
            }
            saw_them, tested = (
                encoder_saw(o.cohort, features_of(own)),
                set(
                    load_arrays(Path(o.cohort) / "runs" / own.name / "predictions.npz")[
                        "patient"
                    ].tolist()
                ),
            )
            seen[encoder_name(encoder)] = (
                "not known"
                if saw_them is None
                else f"{len(tested & set(saw_them))} of {len(tested)}"
            )
    if o.share[0]:
        return 0
    genes = [
        g
        for g in next(iter(cells.values()))
        if all(not math.isnan(c.get(g, (math.nan,))[0]) for c in cells.values())
    ]
    if not genes:
        raise InputError(
            "no gene has an R in every cell of the table: is there any signal, or are predictions constant?"
        )
    values = {
        cell: np.array([of[g] for g in genes]) for cell, of in cells.items()
    }  # (G, 2) R, Spearman
    rows = [
        (
            *cell,
            len(genes),
            f"{v[:, 0].mean():.3f} ± {v[:, 0].std():.3f}",
            f"{np.median(v[:, 0]):.3f}",
            f"{v[:, 1].mean():.3f} ± {v[:, 1].std():.3f}",
        )
        for cell, v in values.items()
    ]
    header, tests = (
        ("encoder", "pooling", "genes", "mean R ± SD", "median R", "mean Spearman ± SD"),
        [],
    )
    for a, b in itertools.combinations(values, 2):
        if (a[0] == b[0]) != (a[1] == b[1]):  # they differ in one thing
            d = values[a] - values[b]
            tests.append(
                (
                    f"{a[0]}, {a[1]}",
                    f"{b[0]}, {b[1]}",
                    *(
                        x
                        for k in (0, 1)
                        for x in (
                            f"{d[:, k].mean():+.3f}",
                            f"{stats.wilcoxon_signed_rank(values[a][:, k], values[b][:, k])[1]:.2g}",
                        )
                    ),
                )
            )
    save_csv(folder / "table.csv", header, rows)
    save_csv(
        folder / "genes.csv",
        ("gene", *(f"{k} {e} {p}" for e, p in values for k in ("R", "spearman"))),
        ((g, *(f"{x:.5g}" for v in values.values() for x in v[i])) for i, g in enumerate(genes)),
    )
    with figure(
        folder / "ablation.png", 1, 2, figsize=(4 + 1.3 * len(values), 4), squeeze=False
    ) as axes:
        for k, what in enumerate(("Pearson R", "Spearman")):
            axes[0, k].boxplot(
                [v[:, k] for v in values.values()], tick_labels=[f"{e}\n{p}" for e, p in values]
            )
            axes[0, k].axhline(0, color="0.8", lw=1, zorder=0)
            axes[0, k].set_ylabel(f"{what} of a gene")
            axes[0, k].tick_params(axis="x", labelsize=8)
    paired = ("one", "other", "mean difference of R", "p", "of Spearman", "p ")
    note = (
        "p: two-sided signed-rank test over genes, paired. Genes vary together, so it says that the two differ on these "
        "patients, not that they would on others."
    )
    print(table(header, rows), table(paired, tests), note, sep="\n\n")
    save_text(
        folder / "report.md",
        [
            f"# Ablation: {base}",
            "",
            "The same pairs, folds, genes and seeds in every cell; "
            "networks of all genes at once, stopped on validation patients. [HistCode Fig. 6]",
            "",
            "Tested patients whose tiles the encoder learned from, without labels: "
            + "; ".join(f"{e} {n}" for e, n in seen.items())
            + ". What the other steps saw: reports of the runs.",
            "",
            table(header, rows),
            "",
            "![R and Spearman](ablation.png)",
            "",
            table(paired, tests),
            "",
            note,
            "",
        ],
    )
    print(f"report: {folder / 'report.md'}")
    return status


def options(parser):
    parser.set_defaults(within="")
    parser.add_argument("cohort", help="a cohort folder: slides/ and samples.csv")
    p, a = parser, parser.add_argument
    a(
        "--encoders",
        nargs="+",
        required=True,
        metavar="ENCODER",
        help="files of pretrain, resnet50-stage3 with --weights, "
        "TorchScript files: as tiling.py's --encoder; folders: as --features of the other commands",
    )
    a(
        "--poolings",
        nargs="+",
        choices=tuple(POOLED),
        default=("attention", "mean"),
        help="default: attention mean, the paper's",
    )
    a(
        "--weights",
        metavar="W|FILE",
        help="of resnet50-stage3 and the like: imagenet (default), a torchvision state_dict "
        "file, or random",
    )
    pair_options(p, a, None)
