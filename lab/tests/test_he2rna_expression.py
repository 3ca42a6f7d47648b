"""lab.tests.test_he2rna_expression"""

import csv
import gzip
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import he2rna
from lab.cohort.expression import read_expression
from lab.cohort.samples import SAMPLE_TYPES
from lab.commands.he2rna import main
from lab.files import InputError, save_text, unpacked
from lab.tests.helpers import real, swap
from lab.tests.helpers_he2rna import NEW_GENES, gdc_file, gdc_folder


def test_a_gdc_file_that_is_none_or_cannot_be_opened_is_left_out_alone(
    tmp_path, capsys, monkeypatch
):
    gdc_folder(tmp_path)
    path = tmp_path / "f3" / "f3.FPKM-UQ.txt.gz"

    def go():
        return main(
            [
                "expression",
                str(tmp_path),
                "--partial",
                "--overwrite",
                "--out",
                str(tmp_path / "e.npz"),
            ]
        )

    data, usual = path.read_bytes(), unpacked
    for change in (Path.mkdir, lambda p: p.symlink_to("/nowhere"), lambda p: p.symlink_to(p)):
        path.rmdir() if path.is_dir() else path.unlink()
        change(path)
        assert (
            go() == 1
            and "1 files are missing or not whole: f3.FPKM-UQ.txt.gz: not there"
            in capsys.readouterr().out
        )
    path.unlink(), path.write_bytes(data)
    swap(monkeypatch, "lab.files", "unpacked", lambda p: usual(p if p != path else p / "x"))
    assert (
        go() == 1
        and "1 files are missing or not whole: f3.FPKM-UQ.txt.gz: Not a directory"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "change, options, words",
    [
        (
            lambda g, rows: shutil.rmtree(g / "f3"),
            ("--types", "11", "--sheet", "none.tsv"),
            "none.tsv: can't be read as a table",
        ),
        (
            lambda g, rows: (g / "gdc_sample_sheet.2.tsv").write_text("x"),
            (),
            "2 gdc_sample_sheet*.tsv there: name the one with --sheet",
        ),
        (
            lambda g, rows: [shutil.rmtree(p) for p in g.glob("f*")],
            ("--partial",),
            "4 files are missing or not whole",
        ),
        (
            lambda g, rows: rows.__setitem__(0, rows[0].replace("Sample ID", "Barcode")),
            (),
            "no column sample id; it has File ID, File Name",
        ),
        (
            lambda g, rows: rows.__setitem__(slice(None), ["<html>", "</html>"]),
            (),
            "no column file name, project id, case id, sample id; it has <html>",
        ),
        (lambda g, rows: rows.__setitem__(slice(1, None), []), (), "no rows"),
        (
            lambda g, rows: rows.__setitem__(3, "f4\tf4.FPKM-UQ.txt"),
            (),
            "row 4 has 2 fields, the header has 8",
        ),
        (
            lambda g, rows: rows.__setitem__(
                slice(None), [r.replace("FPKM-UQ", "FPKM").replace("star_gene", "x") for r in rows]
            ),
            (),
            "names no file of FPKM-UQ",
        ),
        (
            lambda g, rows: rows.__setitem__(1, rows[1].replace("TCGA-AA-0002-01A", "")),
            (),
            "file f3.FPKM-UQ.txt.gz has no case id, sample id or project id",
        ),
        (
            lambda g, rows: rows.__setitem__(1, rows[1].replace("TCGA-AA-0002\t", "\t")),
            (),
            "file f3.FPKM-UQ.txt.gz has no case id, sample id or project id",
        ),
        (
            lambda g, rows: rows.append(rows[1].replace("TCGA-AA-0002", "TCGA-AA-0009")),
            (),
            "1 of its files stand there for two samples",
        ),
        (
            lambda g, rows: rows.__setitem__(0, "id\tfilename\tmd5\tsize\tstate"),
            (),
            "no column file name.*wanted is the Sample Sheet of a cart",
        ),
        (
            lambda g, rows: shutil.copy(g / "f3" / "f3.FPKM-UQ.txt.gz", g),
            (),
            "f3.FPKM-UQ.txt.gz is there twice",
        ),
        (
            lambda g, rows: (g / "f7" / "f7.rna_seq.augmented_star_gene_counts.tsv").write_text(
                "gene_id\tfpkm_uq_unstranded\n" + "ENSG1.1\t1\n" * 2
            ),
            (),
            "1 of its 2 genes stand there twice",
        ),
        (
            lambda g, rows: gdc_file(
                shutil.rmtree(g / "f7") or g,
                "f7.rna_seq.augmented_star_gene_counts.tsv",
                [1.0] * 4,
                NEW_GENES[1:],
            ),
            (),
            "has 4 genes, .*5; 1 are not in both, though both are of GENCODE v36: one is not whole",
        ),
        (
            lambda g, rows: gdc_file(
                shutil.rmtree(g / "f4") or shutil.rmtree(g / "f3") or g,
                "f3.FPKM-UQ.txt.gz",
                [1.0] * 9,
                [f"ENSG0000000000{i}.1" for i in range(1, 10)],
            ),
            ("--partial",),
            "only 2 genes are in all files",
        ),
        (
            None,
            ("--types", "02"),
            "no file has sample_type recurrent tumor; .*has Metastatic, Primary Tumor, Solid",
        ),
        (None, ("--project", "STAD"), "--project STAD: .*tsv has TCGA-BRCA"),
        (None, ("--out", "x.txt"), "--out x.txt: wanted a .npz, .csv or .csv.gz"),
    ],
)
def test_what_a_gdc_folder_and_its_sheet_cannot_mean(tmp_path, change, options, words):
    gdc_folder(tmp_path / "gdc")
    sheet = tmp_path / "gdc" / "gdc_sample_sheet.2026-01-01.tsv"
    rows = sheet.read_text().splitlines()
    if change:
        change(tmp_path / "gdc", rows)
    save_text(sheet, rows)
    with pytest.raises(InputError, match=words.replace("*.tsv there", r"\*.tsv there")) as e:
        main(
            [
                "expression",
                str(tmp_path / "gdc"),
                "--out",
                str(tmp_path / "out" / "expression.npz"),
                *options,
            ]
        )
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_ten_real_expression_files(tmp_path, capsys):
    """TCGA-LUAD, two formats: 60,483 fragments.

    Of which 33,240 have a positive median over the ten; read line by line.
    """
    sheet = {
        row[1]: row[6]
        for row in csv.reader(real("gdc", "gdc_sample_sheet.tsv").open(), delimiter="\t")
    }
    tables = {}
    for path in sorted(real("gdc").glob("*/*")):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as f:
            rows = [line.rstrip().split("\t") for line in f if line.startswith("ENS")]
        tables[sheet[path.name]] = {row[0].split(".")[0]: row[-1] for row in rows}
    assert main(["expression", str(real("gdc")), "--out", str(tmp_path / "expression.npz")]) == 0
    key, ids, genes, a = read_expression(tmp_path)
    assert (key, ids) == ("sample", sorted(tables)) and a.shape == (10, 60483)
    plain = [re.sub(r"(ENSG)0(\d+)_PAR_Y", r"\1R\2", g) for g in genes]
    assert (
        a
        == np.array([[tables[i][g] for g in plain] for i in ids])
        .astype(np.float64)
        .astype(np.float32)
    ).all()
    assert (
        sum(g.endswith("_PAR_Y") for g in genes) == 50
        and he2rna.expressed(a).sum() == (np.median(a, 0) > 0).sum() == 33240
    )
    assert (
        "multiplied" not in capsys.readouterr().out
    )  # the three rewritten ones are of the older scale


def test_patients_and_samples_of_tcga(capsys):
    """11,564 files, 36 projects: as a set counts them.

    The type's name is that of characters 14-15.
    """
    with gzip.open(real("tcga", "samples_description.tsv.gz"), "rt") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    for types, kinds in (
        ("all", None),
        ("01,11", ("Primary Tumor", "Solid Tissue Normal")),
        (None, ("Primary Tumor",)),
    ):
        assert (
            main(
                [
                    "expression",
                    str(real("gdc")),
                    "--sheet",
                    str(real("tcga", "samples_description.tsv.gz")),
                    "--dry-run",
                    *(("--types", types) if types else ()),
                ]
            )
            == 0
        )
        said = re.findall(r"^ +(\S+) +([\d,]+) +([\d,]+)$", capsys.readouterr().out, re.M)
        said = {
            name: (int(patients.replace(",", "")), int(n.replace(",", "")))
            for name, patients, n in said
        }
        groups = {
            p: (p,)
            for p in {r["Project.ID"] for r in rows if kinds is None or r["Sample.Type"] in kinds}
        }
        assert len(groups) == 36 or types != "all"
        groups.update(
            {name: [f"TCGA-{p}" for p in parts] for name, parts in he2rna.MERGED.items()},
            all=tuple(groups),
        )
        for name, of in groups.items():
            mine = [
                r
                for r in rows
                if r["Project.ID"] in of and (kinds is None or r["Sample.Type"] in kinds)
            ]
            assert said.pop(name.removeprefix("TCGA-")) == (
                len({r["Case.ID"] for r in mine}),
                len({r["Sample.ID"] for r in mine}),
            )
        assert not said
    codes = {
        (r["Sample.ID"][13:15], r["Sample.Type"]) for r in rows if r["Sample.ID"].startswith("TCGA")
    }
    assert codes == set(SAMPLE_TYPES.items())


def test_a_manifest_checks_the_files_it_names(tmp_path, capsys):
    """Size and md5 (hashlib's): a .tsv cut at a line's end has the right columns.

    And one changed in place the right size.
    """
    gdc_folder(tmp_path / "gdc")
    files = {p.name: p for p in (tmp_path / "gdc").glob("f*/f*[zvt]") if "htseq" not in p.name}
    command = [
        "expression",
        str(tmp_path / "gdc"),
        "--manifest",
        str(tmp_path / "m.txt"),
        "--out",
        str(tmp_path / "expression.npz"),
    ]
    manifest = ["id\tfilename\tmd5\tsize\tstate"]
    for i, (name, p) in enumerate(files.items()):
        listed = f"{p.parent.name}/{name}" if i % 2 else name
        md5 = hashlib.md5(p.read_bytes()).hexdigest()
        manifest.append(f"{p.parent.name}\t{listed}\t{md5}\t{p.stat().st_size}\treleased")
    save_text(tmp_path / "m.txt", manifest)
    assert len(files) == 7 and main(command) == 0
    one = files["f4.FPKM-UQ.txt"]
    text = one.read_text()
    one.write_text(
        text.replace("\t1", "\t2")
        .replace("\t9", "\t8")
        .replace("\t3", "\t4")
        .replace("\t5", "\t6")
        .replace("\t7", "\t0")
    )
    assert len(one.read_text()) == len(text) != one.read_text().count(text)
    with pytest.raises(InputError, match=r"f4.FPKM-UQ.txt: its md5 is not the manifest's"):
        main([*command, "--overwrite"])
    one.write_text("".join(text.splitlines(True)[:-1]))
    with pytest.raises(InputError, match=rf"f4.FPKM-UQ.txt: \d+ bytes there, not {len(text)}"):
        main([*command, "--overwrite"])
    one.unlink()
    (tmp_path / "gdc" / "f4" / "f4.FPKM-UQ.txt.partial").write_text(text)
    with pytest.raises(InputError, match=r"f4.FPKM-UQ.txt: not there"):
        main([*command, "--overwrite"])
    whole = (tmp_path / "m.txt").read_text()
    for text in (whole + "\nid", whole.replace(whole.splitlines()[1].split("\t")[2], "")):
        (tmp_path / "m.txt").write_text(text)
        with pytest.raises(InputError, match=r"row [29] has (no md5|1 fields)"):
            main([*command, "--overwrite"])
    (tmp_path / "m.txt").write_text("a\tb\n")
    with pytest.raises(InputError, match="no column filename, md5 or size; it has a, b"):
        main([*command, "--overwrite"])
