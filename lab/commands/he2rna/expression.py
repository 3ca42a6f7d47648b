"""lab.commands.he2rna.expression"""

from pathlib import Path

from lab.cohort.expression import save_expression
from lab.cohort.samples import select
from lab.exchange.gdc import (
    FPKM_UQ,
    UQ_GENES,
    gather,
    gdc_files,
    print_counts,
    read_manifest,
    read_sheet,
    ungzipped,
)
from lab.files import InputError, few, save_csv
from lab.he2rna.options import check_new
from lab.progress import progress, say_left_out


def chosen_files(o):
    """The files of FPKM-UQ that expression reads: ({name: row of the sheet}, {name: path}, {name: md5}, {name: what is wrong});
    says what is left out, counts patients and samples."""
    found, (rows, sheet) = gdc_files(o.folder), read_sheet(o.folder, o.sheet)
    left_out = {
        "files there that the sheet doesn't name": sorted(
            set(found) - {ungzipped(r["file"]) for r in rows}
        )
    }
    files = [r for r in rows if FPKM_UQ.search(r["file"])]
    if not files:
        raise InputError(
            f"{sheet} names no file of FPKM-UQ (*.FPKM-UQ.txt.gz, *_star_gene_counts.tsv); its first is "
            f"{rows[0]['file']}"
        )
    whose = next(
        (r["file"] for r in files if not (r["patient"] and r["sample"] and r["project"])), None
    )
    if whose:
        raise InputError(
            f"{sheet}: file {whose} has no case id, sample id or project id: download the sheet again"
        )
    rows, other_types = select(files, o.types, o.project, "file", sheet)
    rows.sort(
        key=lambda r: (r["sample"], ungzipped(r["file"]) not in found, r["barcode"], r["file"])
    )
    first = {}
    for r in rows:  # a file a sample, there if possible [ours]
        first.setdefault(r["sample"], r)
    chosen = {ungzipped(r["file"]): r for r in first.values()}
    if len(chosen) < len(first):
        raise InputError(
            f"{sheet}: {len(first) - len(chosen)} of its files stand there for two samples"
        )
    md5, bad = read_manifest(o.manifest, found) if o.manifest else ({}, {})
    bad.update({n: f"{r['file']}: not there" for n, r in chosen.items() if n not in found})
    say_left_out(
        {
            **other_types,
            **left_out,
            "more files of samples that have one (the first by barcode, then by name, is taken)": [
                r["file"] for r in rows if first[r["sample"]] is not r
            ],
            "files that the manifest doesn't name": [
                n for n in chosen if o.manifest and n not in md5
            ],
        }
    )
    print_counts(first.values(), patients="patient", samples="sample")
    return chosen, found, md5, bad


def run(o):
    """A folder of GDC downloads and their sample sheet -> the expression table of a cohort, a row a sample."""
    out = Path(o.out or "expression.npz")
    names = out.with_name(out.name.partition(".")[0] + "_genes.csv")
    if not o.dry_run and not (o.out or "").endswith((".npz", ".csv", ".csv.gz")):
        raise InputError(
            f"--out {o.out or 'is missing'}: wanted a .npz, .csv or .csv.gz, such as COHORT/expression.npz"
        )
    for path in (out, names):
        check_new(path, o)
    chosen, found, md5, bad = chosen_files(o)

    def check(files):
        said = (
            f"{o.folder}: {len(bad)} files are missing or not whole: {few(list(bad.values()), 5)}"
        )
        if bad and not (o.dry_run or o.partial and files):
            raise InputError(
                f"{said}: download them again"
                + ", or --partial makes a table without them" * (not o.partial)
            )
        if bad:
            print(said)
        return files

    files = check([n for n in chosen if n not in bad])
    if o.dry_run:
        print("dry run: no file was read, none written")
        return 0
    t = gather(
        [(found[n], chosen[n]["sample"], md5.get(n)) for n in files],
        progress("expression", len(files), "files"),
    )
    if t["bad"]:
        bad.update({files[i]: why for i, why in t["bad"].items()})
        check([n for n in files if n not in bad])
    genes, models = {g: None for g, s in zip(t["genes"], t["shared"]) if s}, t["models"]
    for model, m in models.items():
        print(
            f"{m['files']:,} files of {model}: {len(m['genes']):,} genes, {len(genes):,} of them in all files"
        )
    if 2 * len(genes) < max(len(m["genes"]) for m in models.values()):
        raise InputError(
            f"{o.folder}: only {len(genes):,} genes are in all files: some are not whole, or of another kind"
        )
    if t["scaled"]:
        print(
            f"{t['scaled']:,} files, of release 32 or later, were multiplied by {UQ_GENES:,}: the scale of the others"
        )
    elif t["newer"]:
        print(
            f"FPKM-UQ of release 32 or later, {UQ_GENES:,} times below the paper's: log10(1 + a) flattens weak genes more"
        )
    rows = [i for i in range(len(files)) if i not in t["bad"]]
    tick = progress("writing", len(rows), "samples")
    save_expression(
        out,
        "sample",
        [chosen[files[i]]["sample"] for i in rows],
        list(genes),
        (tick() or t["a"][i, t["shared"]] for i in rows),
    )
    print(f"{out}: {len(rows):,} samples x {len(genes):,} genes")
    if t["symbols"]:
        columns = (
            3 if any(row[2] for row in t["symbols"]) else 2
        )  # of an empty biotype no gene would be coding
        save_csv(
            names,
            ("gene_id", "symbol", "biotype")[:columns],
            (row[:columns] for row in t["symbols"] if row[0] in genes),
        )
        print(f"{names}: their symbols, for --gene-table")
    return 1 if bad else 0


def options(parser):
    a = parser.add_argument
    a(
        "folder",
        metavar="GDC_DIR",
        help="folder of *.FPKM-UQ.txt.gz or *_star_gene_counts.tsv, as gdc-client or the portal "
        "leaves it",
    )
    a(
        "--sheet",
        metavar="FILE",
        help="the GDC sample sheet, which alone says whose the files are (default: the only "
        "gdc_sample_sheet*.tsv of GDC_DIR)",
    )
    a(
        "--manifest",
        metavar="FILE",
        help="the manifest of the download: all its files must be there, of their size, "
        "and those read of their md5, for a .tsv cut off at a line's end looks whole",
    )
    a(
        "--out",
        metavar="FILE",
        help="the table, .npz (smallest), .csv or .csv.gz; COHORT/expression.npz is found by train",
    )
    a(
        "--types",
        metavar="TYPE,..",
        help="sample types, by name or as characters 14-15 of the barcode, or all (default 01, "
        "primary tumours, as the paper; 01,11 for tumour against normal)",
    )
    a("--project", metavar="P,..", help="of these projects alone (LUNG is LUAD and LUSC)")
    a(
        "--partial",
        action="store_true",
        help="make the table without files that are missing or not whole (exit status 1); "
        "by default there is none, for a table that lacks samples looks like any other",
    )

    a("--overwrite", action="store_true", help="replace what is there already")
    a(
        "--dry-run",
        action="store_true",
        help="count patients and samples of each project, write nothing",
    )
