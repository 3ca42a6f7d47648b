"""lab.tests.test_docs"""

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import he2rna
import lab.commands.he2rna as commands_he2rna
import lab.commands.histcode as commands_histcode
import lab.commands.tiling as commands_tiling
import stats
import tiling
from lab.tests.helpers import painted, tiny_encoder, write_cohort, write_pyramid

HUNDREDS = """
import json, resource, sys
import tiling
usual, loops = tiling.progress, []
def progress(*what, **more):                         # MB of this process at every tick of every loop
    tick, held = usual(*what, **more), []
    loops.append(held)
    return lambda n=1: tick(n) or held.append(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6)
tiling.progress = progress
print(json.dumps([tiling.main(sys.argv[1:]), loops]))
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc"
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_memory_stays_flat_over_two_hundred_slides(tmp_path):
    """Tiles, features and super-tiles: from slide 50 of each loop on at most 12 MB more than up to there; the pixels of 200 slides are 230 MB."""
    tiny_encoder(tmp_path / "tiny.pt")
    (tmp_path / "c" / "slides").mkdir(parents=True)
    write_pyramid(
        tmp_path / "one.tif",
        np.array(Image.fromarray(painted()[0]).resize((700, 560), Image.Resampling.NEAREST)),
        levels=1,
    )
    for i in range(200):
        os.link(tmp_path / "one.tif", tmp_path / "c" / "slides" / f"s{i:03d}.tif")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            HUNDREDS,
            "supertiles",
            str(tmp_path / "c"),
            "--device",
            "cpu",
            "--encoder",
            str(tmp_path / "tiny.pt"),
            "--precision",
            "float32",
            "--workers",
            "2",
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    status, loops = json.loads(done.stdout.splitlines()[-1])
    assert status == 0 and len(loops) >= 4 and all(len(held) >= 200 for held in loops), done.stderr
    assert all(max(held[len(held) // 4 :]) < max(held[: len(held) // 4]) + 12 for held in loops), [
        held[::20] for held in loops
    ]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["tiles", "{}/nowhere"], "nowhere"),
        (["tiles", "{}", "--tile-um", "-3"], "--tile-um -3"),
        (["tiles", "{}", "--mpp", "90"], "--mpp 90"),
        (["features", "{}", "--weights", "{}/absent.pth"], "absent.pth"),
        (["features", "{}", "--device", "cuda:77"], "cuda:77"),
        (["supertiles", "{}", "--features", "{}/h5"], "no such folder"),
    ],
)
def test_tiling_commands_say_one_line(two_slides, argv, words):
    done = subprocess.run(
        [sys.executable, tiling.__file__, *(a.format(two_slides) for a in argv)],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and words in done.stderr
        and done.stderr.count("\n") == 1
        and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize(
    "program, argv, words",
    [
        (
            commands_tiling,
            ["features", "x", "--features", ""],
            "argument --features: an empty word was given",
        ),
        (commands_he2rna, ["predict", "x", "y", "--into="], "argument --into: an empty word"),
        (commands_tiling, ["tiles", ""], "argument cohort: an empty word"),
        (
            commands_histcode,
            ["diagnose", "x", "--external", ""],
            "argument --external: an empty word",
        ),
        (
            commands_tiling,
            ["tiles", "x", "--seed", str(2**63)],
            "'9223372036854775808' is not a whole number >= 0 and < 2..63",
        ),
    ],
)
def test_empty_words_and_seeds_that_no_generator_takes_are_refused(capsys, program, argv, words):
    with pytest.raises(SystemExit, match="2"):
        program.main(argv)
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["train", "nowhere"], "nowhere"),
        (["train", "{}", "--epochs", "0"], "--epochs 0"),
        (["train", "{}", "--folds", "99"], "--folds 12 would work"),
        (["train", "{}", "--name", "../x"], "--name ../x"),
        (["train", "{}", "--project", "Q"], "--project Q"),
        (["train", "{}", "--device", "cuda:9"], "cuda:9"),
        (["train", "{}", "--features", "none"], "none"),
        (["train", "{}", "--ks", "0"], "--ks"),
    ],
)
def test_train_says_one_line(tmp_path, argv, words):
    write_cohort(tmp_path, np.random.default_rng(0))
    done = subprocess.run(
        [sys.executable, he2rna.__file__, *(a.format(tmp_path) for a in argv)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (
        done.returncode == 2
        and words in done.stderr.splitlines()[-1]
        and "Traceback" not in done.stderr
        and not (tmp_path / "runs").exists()
    )


def test_pieces_in_both_files_are_the_same_text():
    for name in ("read_sets", "read_outlines"):
        (first, ours), (second, theirs) = (
            inspect.getsource(getattr(m, name)).split("\n", 1)
            for m in (commands_he2rna, commands_histcode)
        )
        assert ours == theirs and first.replace("histcode.py", "he2rna.py") == second
        assert "# same in histcode.py" in first and "# same in he2rna.py" in second


# README and --help
def test_readme_names_symbols_and_tests_that_exist():
    rows = re.findall(
        r"^\| (?!paper|---|file|step)(.*?) \| (.*?) \| (.*?) \|$",
        Path(__file__).with_name("README.md").read_text().split("## Where to find what")[1],
        re.M,
    )
    assert len(rows) >= 12
    for _, symbols, tests in rows:
        for module, name in re.findall(r"`(\w+)\.(\w+)`", symbols):
            assert hasattr(
                dict(
                    tiling=commands_tiling,
                    stats=stats,
                    he2rna=commands_he2rna,
                    histcode=commands_histcode,
                )[module],
                name,
            ), name
        assert (
            all(callable(globals().get(name)) for name in re.findall(r"`(\w+)`", tests))
            and "`" in symbols
            and "`" in tests
        )
    assert [
        n
        for n in re.findall(r"`(test_\w+)`", Path(__file__).with_name("README.md").read_text())
        if n not in globals()
    ] == []


def test_readme_has_a_row_for_every_section_equation_figure_and_table():
    text = Path(__file__).with_name("README.md").read_text().split("## Where to find what")[1]
    places = re.findall(r"^\| (.*?) \| .*? \| .*? \|$", text, re.M)
    cut = next(i for i, p in enumerate(places) if p.startswith("HistCode Methods"))
    found = [
        {
            (kind[0].lower(), n)
            for kind, ns in re.findall(
                r"(eqs?\.|Figs?\.|Tables?) ((?:S?\d+(?:[a-e]\b|[a-e]–[a-e]|)(?:, [a-e]\b)*(?:, | and |))+)",
                "\n".join(part),
            )
            for n in re.findall(r"S?\d+", ns)
        }
        for part in (places[:cut], places[cut:])
    ]
    figures = lambda *names: {("f", str(n)) for n in names}
    assert found[0] >= figures(*range(1, 6), "S1", "S2", "S3", "S4") | {
        ("t", n) for n in ("1", "2", "S4")
    }
    assert found[1] >= figures(*range(1, 12)) | {("t", "1")} | {("e", str(n)) for n in range(1, 9)}
    for part, sections in (
        (
            places[:cut],
            (
                "TCGA Pan-Cancer Dataset",
                "Cleaning",
                "Preprocessing",
                "Model architecture",
                "Training and evaluation",
                "GSEA signatures",
                "Visual spatialization",
                "MSI status",
                "Statistics",
            ),
        ),
        (
            places[cut:],
            (
                "Whole slide image",
                "Slide annotation",
                "RNA-seq dataset",
                "Cancer driver genes",
                "Image processing",
                "Differential expression analysis",
                "HistCode framework",
                "Contrastive learning",
                "Feature aggregation",
                "Tumor diagnosis",
                "Differential expression prediction",
                "Results, differential expression",
                "attentive pooling",
                "fold change",
                "well-predicted genes",
                "interpretability",
            ),
        ),
    ):
        assert [s for s in sections if not any(s in p for p in part)] == []


@pytest.mark.parametrize("program", [commands_tiling, commands_he2rna, commands_histcode])
def test_help_of_every_verb_fits_two_screens_and_states_every_default(program, monkeypatch):
    asked = []
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(
        argparse.ArgumentParser, "print_help", lambda parser, file=None: asked.append(parser)
    )

    def parser_of(*verb):
        with pytest.raises(SystemExit):
            program.main([*verb, "--help"])
        return asked.pop()

    verbs = list(next(x for x in parser_of()._actions if x.dest == "verb").choices)
    assert len(verbs) > 5
    for verb in verbs:
        parser = parser_of(verb)
        lines = parser.format_help().splitlines()
        assert (
            len(lines) <= 100
            and lines[0].startswith(f"usage: {program.__name__}.py {verb} [options]")
            and parser.description
        ), verb
        for x in parser._actions:
            silent = x.dest in ("mpp", "min_r", "at_least") or "made elsewhere" in (
                x.help or ""
            )  # numbers that nothing replaces
            free = (
                x.nargs == 0 or x.default in (None, []) and (silent or x.type not in (int, float))
            )
            assert x.help and (free or "default" in x.help), (verb, x.dest)
            assert not (x.required and x.option_strings) or f"{x.option_strings[0]} " in lines[0], (
                verb,
                x.dest,
            )
