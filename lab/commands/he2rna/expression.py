"""python he2rna.py expression GDC_DIR --out FILE: a folder of GDC downloads becomes one table.

A row for each sample, one file a sample. The sample sheet says whose the files are. 10,000 files of
60,483 genes take minutes, and their table 2.4 GB of memory. Writes the table and, where files have
symbols, FILE_genes.csv beside it, for --gene-table; FILE_samples.csv says whose the rows are and of
which sample type.
"""

from collections import Counter
from pathlib import Path

from lab.cohort.expression import save_expression
from lab.cohort.samples import select
from lab.commands.he2rna.options import check_new
from lab.exchange.gdc import (
    FPKM_UQ,
    UQ_GENES,
    Gathered,
    gdc_files,
    print_counts,
    read_manifest,
    read_sheet,
    ungzipped,
)
from lab.files import InputError, few, save_csv
from lab.progress import progress, say_left_out

ENDINGS = (".npz", ".csv", ".csv.gz")


def options(parser):
    a = parser.add_argument
    a("folder", metavar="GDC_DIR", help="as gdc-client or the portal leaves it")
    a(
        "--sheet",
        metavar="FILE",
        help="the GDC sample sheet, which alone says whose the files are (default: the only "
        "gdc_sample_sheet*.tsv of GDC_DIR)",
    )
    a(
        "--manifest",
        metavar="FILE",
        help="the manifest of the download: all its files must be there, of their size, and those "
        "read of their md5, for a .tsv cut off at a line's end looks whole",
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
        help="make the table without files that are missing or not whole (exit status 1); by "
        "default there is none, for a table that lacks samples looks like any other",
    )
    a("--overwrite", action="store_true", help="replace what is there already")
    a("--dry-run", action="store_true", help="count patients and samples, write nothing")


def run(o):
    out = Path(o.out or "expression.npz")
    if not o.dry_run and not (o.out or "").endswith(ENDINGS):
        raise InputError(f"--out {o.out or 'is missing'}: wanted a .npz, .csv or .csv.gz")
    stem = out.name.partition(".")[0]
    gene_names, whose = (out.with_name(f"{stem}_{what}.csv") for what in ("genes", "samples"))
    for path in (out, gene_names, whose):
        check_new(path, o)
    found = gdc_files(o.folder)
    chosen = chosen_files(o, found)
    md5, bad = read_manifest(o.manifest, found) if o.manifest else ({}, {})
    bad.update(
        {name: f"{row['file']}: not there" for name, row in chosen.items() if name not in found}
    )
    print_counts(list(chosen.values()), patients="patient", samples="sample")
    types = Counter(row["sample_type"] for row in chosen.values())
    if len(types) > 1:
        print(f"sample types: {', '.join(f'{n:,} {kind}' for kind, n in sorted(types.items()))}")
    whole = without(o, chosen, bad)
    if o.dry_run:
        print("dry run: no file was read, none written")
        return 0
    table = read_files([(name, found[name], chosen[name]["sample"]) for name in whole], md5, bad)
    rows = [i for i, name in enumerate(whole) if name not in bad]
    without(o, whole, bad)
    genes = [g for g, shared in zip(table.genes, table.shared, strict=True) if shared]
    say_what_they_are(o, table, genes)
    tick = progress("writing", len(rows), "samples")
    samples = [chosen[whole[i]]["sample"] for i in rows]
    save_expression(out, "sample", samples, genes, (table.a[i, table.shared] for i in rows))
    tick(len(rows))
    print(f"{out}: {len(rows):,} samples x {len(genes):,} genes")
    columns = ("sample", "patient", "project", "sample_type")
    of_rows = (chosen[whole[i]] for i in rows)
    save_csv(whose, columns, ([row[column] for column in columns] for row in of_rows))
    print(f"{whose}: whose they are, and of which sample type")
    save_symbols(gene_names, table.symbols, genes)
    return 1 if bad else 0


def chosen_files(o, found):
    """{name: row of the sheet} of a file for each sample asked for; says what is left out."""
    sheet, path = read_sheet(o.folder, o.sheet)
    rows = [row for row in sheet if FPKM_UQ.search(row["file"])]
    if not rows:
        raise InputError(
            f"{path} names no file of FPKM-UQ (*.FPKM-UQ.txt.gz, *_star_gene_counts.tsv); its "
            f"first is {sheet[0]['file']}"
        )
    for row in rows:
        if not (row["patient"] and row["sample"] and row["project"]):
            raise InputError(
                f"{path}: file {row['file']} has no case id, sample id or project id: download the "
                "sheet again"
            )
    pooled = {}
    for row in rows:
        pooled.setdefault(row["why"], []).append(row["file"])
    rows = [row for row in rows if not row["why"]]
    if not pooled.pop("", None):
        raise InputError(f"{path}: no file is of one sample: {'; '.join(pooled)}")
    rows, other_types = select(rows, o.types, o.project, "file", path)
    rows.sort(key=lambda row: (ungzipped(row["file"]) not in found, row["barcode"], row["file"]))
    first = {}
    for row in rows:
        first.setdefault(row["sample"], row)  # a file a sample, one that is there first [ours]
    chosen = {ungzipped(first[sample]["file"]): first[sample] for sample in sorted(first)}
    if len(chosen) < len(first):
        n = len(first) - len(chosen)
        raise InputError(f"{path}: {n} of its files stand there for two samples")
    unnamed = set(found) - {ungzipped(row["file"]) for row in sheet}
    more = [row["file"] for row in rows if first[row["sample"]] is not row]
    why = "more files of samples that have one (the first by barcode, then by name, is taken)"
    own = "files there that the sheet doesn't name"
    say_left_out({**pooled, **other_types, own: sorted(unnamed), why: more})
    return chosen


def without(o, files, bad):
    """The files that are not bad; InputError where some are and --partial was not said."""
    whole = [name for name in files if name not in bad]
    if bad:
        why = few(list(bad.values()), 5)
        said = f"{o.folder}: {len(bad)} files are missing or not whole: {why}"
        if not o.dry_run and not (o.partial and whole):
            raise InputError(
                f"{said}: download them again, or --partial makes a table without them"
            )
        print(said)
    return whole


def read_files(files, md5, bad):
    """The files (name, path, sample) as one table; puts into `bad` what is wrong with one."""
    table = Gathered(len(files))
    tick = progress("expression", len(files), "files")
    for i, (name, path, sample) in enumerate(files):
        tick()
        try:
            table.add(i, path, sample, md5.get(name))
        except (InputError, OSError) as e:
            bad[name] = f"{path.name}: {e.strerror}" if isinstance(e, OSError) else str(e)
    return table


def say_what_they_are(o, table, genes):
    """Gene models and scales; InputError where the models share too few genes."""
    for model, of in table.models.items():
        print(
            f"{of['files']:,} files of {model}: {len(of['genes']):,} genes, {len(genes):,} of them "
            "in all files"
        )
    if 2 * len(genes) < max(len(of["genes"]) for of in table.models.values()):
        raise InputError(
            f"{o.folder}: only {len(genes):,} genes are in all files: some are not whole, or of "
            "another kind"
        )
    scaled, newer = table.to_one_scale()
    if scaled:
        print(
            f"{scaled:,} files, of release 32 or later, were multiplied by {UQ_GENES:,}: the scale "
            "of the others"
        )
    if newer:
        print(
            f"FPKM-UQ of release 32 or later, {UQ_GENES:,} times below the paper's: log10(1 + a) "
            "flattens weak genes more"
        )


def save_symbols(path, symbols, genes):
    """The table for --gene-table, of newer files; without biotypes no gene would be coding."""
    if not symbols:
        return
    columns = 3 if any(biotype for *_, biotype in symbols) else 2
    kept = set(genes)
    rows = (row[:columns] for row in symbols if row[0] in kept)
    save_csv(path, ("gene_id", "symbol", "biotype")[:columns], rows)
    print(f"{path}: their symbols, for --gene-table")
