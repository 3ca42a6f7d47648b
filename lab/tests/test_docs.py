"""What README and docs name exists."""

import re

import pytest

import lab.commands.he2rna as commands_he2rna
import lab.commands.histcode as commands_histcode
import lab.commands.tiling as commands_tiling
import stats
from lab.audit.compare import COUNTS, over_seeds
from lab.commands.histcode.audit import UNSEEN
from lab.tests.helpers import ROOT, read_csv


def test_readme_names_symbols_and_tests_that_exist():
    rows = re.findall(
        r"^\| (?!paper|---|file|step)(.*?) \| (.*?) \| (.*?) \|$",
        (ROOT / "README.md").read_text().split("## Where to find what")[1],
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
        for n in re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text())
        if n not in globals()
    ] == []


def test_readme_has_a_row_for_every_section_equation_figure_and_table():
    text = (ROOT / "README.md").read_text().split("## Where to find what")[1]
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


def disagreements(program, folder=ROOT):
    """Rows of README's table of a program's choices: what paper and code say, what is done here, what the committed audit found."""
    values = {}
    for r in read_csv(folder / f"audit_{program.__name__.split('.')[-1]}.csv"):
        values.setdefault((r["command"], r["choice"]), {}).setdefault(r["measure"], []).append(
            float(r["change"])
        )
    effect = lambda key: "; ".join(
        f"{m} {over_seeds(v, 1 if m in COUNTS else 3, '+')}" for m, v in values[key].items()
    )
    return [
        f"| `{command} {name}` | {paper} | {code} | {ours} | {effect((command, name)) if (command, name) in values else 'not measured'} |"
        for command, name, paper, code, ours, _, _ in program.CHOICES
    ]


@pytest.mark.parametrize("program", [commands_he2rna, commands_histcode])
def test_readmes_disagreements_are_the_choices_with_the_effects_of_the_committed_audit(program):
    lines = (ROOT / "README.md").read_text().splitlines()
    rows = disagreements(program)
    assert [r for r in rows if r not in lines] == []
    unseen = (
        {("train", "merged")}
        if program is commands_he2rna
        else {(c, name) for c in UNSEEN for name in UNSEEN[c]}
    )  # says each audit
    assert {
        (c, name) for (c, name, *_), r in zip(program.CHOICES, rows) if "not measured" in r
    } == unseen | {(c, name) for c, name, *_ in program.CHOICES if name.startswith("--")}
    default = {
        r["measure"]: r
        for r in read_csv(ROOT.joinpath(f"audit_{program.__name__.split('.')[-1]}.csv"))
        if r["choice"] == "default"
    }
    assert default and all(float(r["change"]) == 0 for r in default.values())
