"""lab.tests.test_he2rna_help"""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

import he2rna
from lab.commands.he2rna import main
from lab.files import InputError, save_text
from lab.tests.helpers import gdc_folder, read_csv, same_runs, write_cohort, write_pyramid


def test_killed_training_goes_on(tmp_path):
    """SIGTERM of the real command; SIGKILL is tested with every step."""
    write_cohort(tmp_path, np.random.default_rng(1), patients=30)
    command = [
        sys.executable,
        he2rna.__file__,
        "train",
        str(tmp_path),
        "--features",
        str(tmp_path / "h5"),
        "--hidden",
        "32",
        "--folds",
        "3",
        "--epochs",
        "20",
        "--device",
        "cpu",
        "--name",
        "cut",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "epoch   1/20" in line:  # all others a minute later, in a pipe
            process.terminate()
            break
    assert process.wait(60) == 143 and not (tmp_path / "runs" / "cut" / "lock").exists()
    assert main(command[2:]) == 0 and main([*command[2:-1], "whole"]) == 0
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")


def test_signatures_of_a_run(judged, capsys):
    folder, results = judged
    argv = ["signatures", str(folder), "--gmt", str(folder / "sets.gmt"), "--lists", "500"]
    assert (
        main(
            [
                *argv,
                "--signature",
                "IN",
                "--signature",
                "mine=IN,HALF",
                "--signature",
                "OUT",
                "--signature",
                "none=NOWHERE,EMPTY",
            ]
        )
        == 0
    )
    rows = {
        (r["signature"], r["cancer"]): r for r in read_csv(folder / "signatures" / "signatures.csv")
    }
    for c in "AB":
        assert float(rows["IN", c]["R_p"]) == pytest.approx(results[c]["r"][:25].mean(), abs=1e-3)
        assert float(rows["IN", c]["R_o"]) == pytest.approx(np.nanmean(results[c]["r"]), abs=0.02)
        assert (
            float(rows["IN", c]["p"]) == pytest.approx(1 / 501, rel=1e-3)
            and float(rows["OUT", c]["p"]) > 0.05
        )
        assert float(rows["IN", c]["f_p"]) == pytest.approx(
            (results[c]["hs"][:25] < 0.05).mean(), abs=1e-3
        )
        assert (
            rows["mine", c]["genes in it"] == "5"
            and rows["none", c]["R_p"] == ""
            and rows["IN", c]["p matched"] != ""
        )
    out = capsys.readouterr().out
    assert (
        "none: no gene of it was measured" in out
        and (folder / "signatures" / "r.png").stat().st_size > 5000
    )
    before = (folder / "signatures" / "signatures.csv").read_bytes()
    assert main(argv) == 0  # the paper's: none of their sets is here
    out = capsys.readouterr().out
    assert "hypoxia: without HALLMARK_HYPOXIA" in out and "HOUSEKEEPING" in out
    with pytest.raises(InputError, match="no set INN; nearest: IN"):
        main([*argv, "--signature", "INN"])
    assert (
        main(
            [
                *argv,
                "--signature",
                "IN",
                "--signature",
                "mine=IN,HALF",
                "--signature",
                "OUT",
                "--signature",
                "none=NOWHERE,EMPTY",
            ]
        )
        == 0
    )
    assert (
        folder / "signatures" / "signatures.csv"
    ).read_bytes() == before  # the same seed, the same lists


def test_a_manifest_checks_the_files_it_names(tmp_path, capsys):
    """Size and md5 (hashlib's): a .tsv cut at a line's end has the right columns, and one changed in place the right size."""
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
    save_text(
        tmp_path / "m.txt",
        [
            "id\tfilename\tmd5\tsize\tstate",
            *(
                f"{p.parent.name}\t{p.parent.name + '/' if i % 2 else ''}{n}\t{hashlib.md5(p.read_bytes()).hexdigest()}\t{p.stat().st_size}\treleased"
                for i, (n, p) in enumerate(files.items())
            ),
        ],
    )
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
    with pytest.raises(InputError, match="f4.FPKM-UQ.txt: its md5 is not the manifest's"):
        main([*command, "--overwrite"])
    one.write_text("".join(text.splitlines(True)[:-1]))
    with pytest.raises(InputError, match=rf"f4.FPKM-UQ.txt: \d+ bytes, not {len(text)}"):
        main([*command, "--overwrite"])
    one.unlink()
    (tmp_path / "gdc" / "f4" / "f4.FPKM-UQ.txt.partial").write_text(text)
    with pytest.raises(InputError, match="f4.FPKM-UQ.txt: not there"):
        main([*command, "--overwrite"])
    whole = (tmp_path / "m.txt").read_text()
    for text in (whole + "\nid", whole.replace(whole.splitlines()[1].split("\t")[2], "")):
        (tmp_path / "m.txt").write_text(text)
        with pytest.raises(InputError, match="row [29] has no md5, or is not whole"):
            main([*command, "--overwrite"])
    (tmp_path / "m.txt").write_text("a\tb\n")
    with pytest.raises(InputError, match="no column filename, md5 or size; it has a, b"):
        main([*command, "--overwrite"])


def test_heatmap_of_a_truncated_or_empty_slide_writes_nothing(mapped, tmp_path, capsys):
    source = sorted((mapped / "slides").iterdir())[2]
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "cut.tif").write_bytes(source.read_bytes()[: source.stat().st_size // 3])
    write_pyramid(tmp_path / "slides" / "empty.tif", np.full((1500, 1500, 3), 243, np.uint8))
    files = [str(tmp_path / "slides" / n) for n in ("cut.tif", "empty.tif")]
    for command in (
        ["heatmap", str(mapped / "runs" / "he2rna"), *files, "--genes", "CD3D", "--name", "bad"],
        ["predict", str(mapped / "runs" / "he2rna"), *files],
    ):
        assert main([*command, "--device", "cpu"]) == 1
        err = capsys.readouterr().err
        assert (
            "failed: cut" in err
            and "failed: empty: no 112 µm tile" in err
            and "2 of 2 slides failed" in err
        )
    assert [p.name for p in (mapped / "runs" / "he2rna" / "heatmaps" / "bad").iterdir()] == [
        "failed.csv"
    ] and not list(mapped.glob("runs/he2rna/predict/cut*"))
