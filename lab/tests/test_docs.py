"""What README.md and docs/ say exists: symbols, tests, files, commands, options, figures."""

import importlib
import re
import shlex

import pytest

from lab.audit.compare import AGAIN, UNTURNED, floor_of, said_change
from lab.bench.__main__ import BENCHES
from lab.commands import he2rna, histcode, tiling
from lab.commands.histcode.audit import UNSEEN
from lab.tests.helpers import ROOT, options_of, read_csv

DOCS = ("manual", "cluster", "results", "audit")
PAGES = ["README.md", *(f"docs/{name}.md" for name in (*DOCS, "lesson"))]
WHERE = "## Where to find what"
OTHER_PROGRAMS = {"--nproc-per-node", "--array"}  # options of torchrun and of Slurm
HE2RNA_SECTIONS = (
    "TCGA Pan-Cancer Dataset",
    "Cleaning",
    "Preprocessing",
    "Model architecture",
    "Training and evaluation",
    "GSEA signatures",
    "Visual spatialization",
    "MSI status",
    "Statistics",
)
HISTCODE_SECTIONS = (
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
)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def code_of(page):
    """What stands in code spans and blocks, each on one line; of a block each line apart."""
    text = text_of(page)
    blocks = re.findall(r"^\s*```\w*\n(.*?)^\s*```", text, re.M | re.S)
    pieces = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    rest = re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.M | re.S)
    for span in re.findall(r"`([^`]+)`", rest):
        pieces.append(" ".join(span.split()))
    return pieces


def rows_of(page, title):
    """The cells of each row of the tables below a title, up to the next title of its level."""
    level = title.split(" ")[0]
    below = text_of(page).split(f"\n{title}\n")[1]
    section = re.split(rf"^{level} ", below, flags=re.M)[0]
    rows = []
    for line in re.findall(r"^\| (.*) \|$", section, re.M):
        cells = re.split(r"(?<!\\) \| ", line)
        if not set("".join(cells)) <= set("- "):
            rows.append(cells)
    return rows


def exists(symbol):
    """Whether a dotted name is a module, or something in a module."""
    parts = symbol.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for name in parts[n:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def all_tests():
    names = set()
    for path in (*ROOT.glob("test_*.py"), *(ROOT / "lab" / "tests").glob("test_*.py")):
        names.update(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M))
    return names


# ----- What is named ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_tests_and_symbols_that_a_page_names_exist(page):
    there = all_tests()
    no_tests, no_symbols = [], []
    for piece in code_of(page):
        if re.fullmatch(r"test_\w+", piece) and piece not in there:
            no_tests.append(piece)
        symbol = re.fullmatch(r"(tiling|stats|he2rna|histcode|lab)(\.\w+)+", piece)
        if symbol and not piece.endswith((".py", ".md", ".csv")) and not exists(piece):
            no_symbols.append(piece)
    assert not no_tests, f"{page} names tests that are not there: {', '.join(no_tests)}"
    assert not no_symbols, f"{page} names symbols that are not there: {', '.join(no_symbols)}"


def test_each_row_of_where_to_find_what_names_a_symbol_and_a_test():
    rows = [row for row in rows_of("docs/audit.md", WHERE) if row[1] != "code"]
    assert len(rows) > 50
    for place, symbols, tests in rows:
        assert re.search(r"`\w+\.[\w.]+`", symbols), f"no symbol: {place}"
        assert re.search(r"`test_\w+`", tests), f"no test: {place}"


def test_each_promise_names_its_tests():
    promises = [row for row in rows_of("docs/manual.md", "## What it promises") if len(row) == 2]
    assert promises[0] == ["promise", "test"] and len(promises) > 12
    for promise, tests in promises[1:]:
        assert re.search(r"`test_\w+`", tests), f"no test: {promise}"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_that_a_page_names_exist(page):
    folder = (ROOT / page).parent
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        path = folder / target if target else ROOT / page
        there = path.exists() and (not anchor or anchor in anchors_of(path))
        if not there:
            missing.append(link)
    for piece in code_of(page):
        named = re.fullmatch(r"(lab|docs)/[\w/]+\.\w+|\w+\.(py|toml)", piece)
        if named and not (ROOT / piece).exists():
            missing.append(piece)
    assert not missing, f"{page} names files that are not there: {', '.join(missing)}"


def anchors_of(path):
    """The anchors that a renderer makes of a page's titles."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


# ----- Commands -----------------------------------------------------------------------------------


class ParsedError(Exception):
    """A command line was understood."""


def commands_of(page):
    """[(program, words)] of a page's command lines."""
    commands = []
    for piece in code_of(page):
        for part in re.split(r"&&|;", piece):
            found = re.search(r"(?:python|torchrun)\b.*?\b(he2rna|histcode|tiling)\.py\b(.*)", part)
            if found and found[2].strip():
                commands.append((found[1], shlex.split(found[2], comments=True)))
    return commands


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_of_a_page_are_understood_by_the_program(page, monkeypatch, capsys):
    def understood(o, shared):
        raise ParsedError

    monkeypatch.setattr("lab.processes.one_voice", understood)
    refused, commands = [], commands_of(page)
    assert len(commands) >= (25 if page == "docs/manual.md" else 1)
    for program, words in commands:
        main = importlib.import_module(f"lab.commands.{program}").main
        try:
            main(words)
        except ParsedError:
            continue
        except SystemExit as end:
            if end.code == 0:  # --help
                continue
            why = capsys.readouterr().err.strip().splitlines()[-1]
            refused.append(f"{program}.py {shlex.join(words)}: {why}")
    assert not refused, f"{page}:\n" + "\n".join(refused)


@pytest.mark.parametrize("page", PAGES)
def test_options_that_a_page_names_exist(page):
    there = set(OTHER_PROGRAMS)
    for program in (tiling, he2rna, histcode):
        for verb in program.VERBS:
            there |= options_of(program, verb)
    assert len(there) > 80
    named = set()
    for piece in code_of(page):
        if not re.search(r"\b(pip|pytest|gdc-client)\b|-m lab\b", piece):
            named.update(re.findall(r"(?<![\w-])--[a-z][\w-]*", piece))
    assert not named - there, f"{page}: no such option: {', '.join(sorted(named - there))}"


def test_benches_that_results_name_exist():
    benches = set(re.findall(r"lab\.bench ([\w-]+)", text_of("docs/results.md")))
    benches.update(row[0].strip("`") for row in rows_of("docs/results.md", "## Speed")[1:])
    missing = [name for name in benches - {"–"} if name not in BENCHES]
    assert not missing, f"docs/results.md names no bench: {', '.join(missing)}"


# ----- Form ---------------------------------------------------------------------------------------


def test_readme_is_of_one_sitting():
    text = text_of("README.md")
    assert len(text.encode()) <= 16_000
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", DOCS)
def test_lines_of_a_document_are_no_longer_than_a_reader_likes(name):
    lines = text_of(f"docs/{name}.md").splitlines()
    long = [n for n, line in enumerate(lines, 1) if len(line) > 120 and line[:1] != "|"]
    assert not long, f"docs/{name}.md: lines {long} are longer than 120 columns"


# ----- Completeness of the audit ------------------------------------------------------------------


@pytest.mark.parametrize(
    "title, sections, wanted",
    [
        (
            "### HE2RNA's paper",
            HE2RNA_SECTIONS,
            "Figs. 1, 2, 3, 4, 5, S1, S2, S3, S4; Tables 1, 2, S4",
        ),
        (
            "### HistCode's paper",
            HISTCODE_SECTIONS,
            "Figs. 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11; Table 1; eqs. 1, 2, 3, 4, 5, 6, 7, 8",
        ),
    ],
    ids=["HE2RNA", "HistCode"],
)
def test_every_section_equation_figure_and_table_has_a_row(title, sections, wanted):
    places = [row[0] for row in rows_of("docs/audit.md", title)]
    missing = [name for name in sections if not any(name in place for place in places)]
    assert not missing, f"no row of {title[4:]} names {', '.join(missing)}"
    missing = numbered(wanted) - numbered("\n".join(places))
    assert not missing, f"no row of {title[4:]} names {sorted(missing)}"


def numbered(text):
    """{("f", "2"), ("e", "1"), ("t", "S4")}: figures, equations and tables that a text names."""
    number = r"S?\d+(?:[a-e]\b|[a-e]–[a-e]|)(?:, [a-e]\b)*"
    found = re.findall(rf"(eqs?\.|Figs?\.|Tables?) ((?:{number}(?:, | and |))+)", text)
    return {(kind[0].lower(), n) for kind, names in found for n in re.findall(r"S?\d+", names)}


def choices_of(program):
    return importlib.import_module(f"lab.{program}.choices").CHOICES


def audit_of(program):
    return read_csv(ROOT / "docs" / f"audit_{program}.csv")


def disagreements(program):
    """Rows of the audit's table: a choice, what paper and code say, ours, what the audit found."""
    changes = {}
    for row in audit_of(program):
        measures = changes.setdefault((row["command"], row["choice"]), {})
        measures.setdefault(row["measure"], []).append(float(row["change"]))
    rows = []
    for command, name, paper, code, ours, *_ in choices_of(program):
        effects = []
        again = changes.get((command, AGAIN), {})
        for measure, values in changes.get((command, name), {}).items():
            floor = floor_of(again.get(measure, ()))
            effects.append(f"{measure} {said_change(values, measure, floor)}")
        effect = "; ".join(effects) or "not measured"
        rows.append(f"| `{command} {name}` | {paper} | {code} | {ours} | {effect} |")
    return rows


@pytest.mark.parametrize("program", ["he2rna", "histcode"])
def test_disagreements_are_the_choices_with_the_effects_of_the_committed_audit(program):
    lines = text_of("docs/audit.md").splitlines()
    missing = [row for row in disagreements(program) if row not in lines]
    assert not missing, "docs/audit.md lacks the rows\n" + "\n".join(missing)


@pytest.mark.parametrize("program", ["he2rna", "histcode"])
def test_what_the_committed_audit_left_out_is_what_its_cohort_cannot_show(program):
    unseen = {("train", "merged"), ("train", "subtypes"), ("msi", "few-tiles")}
    if program == "histcode":
        unseen = {(command, name) for command in UNSEEN for name in UNSEEN[command]}
    choices = [(choice[0], choice[1]) for choice in choices_of(program)]
    unseen |= {(command, name) for command, name in choices if name.startswith(("--", "("))}
    measured = {(row["command"], row["choice"]) for row in audit_of(program)}
    assert {choice for choice in choices if choice not in measured} == unseen
    strangers = {key for key in measured if key not in choices and key[1] not in UNTURNED}
    assert not strangers, f"docs/audit_{program}.csv measured {sorted(strangers)}"
    defaults = [row for row in audit_of(program) if row["choice"] == "default"]
    assert defaults and all(float(row["change"]) == 0 for row in defaults)
