"""report.html: its parts by Python's own parser, its table as Chromium shows it."""

import base64
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import stats
from lab.files import save_text
from lab.show.packed import PER_DECADE, SMALLEST, Column, pack
from lab.show.page import hashed, write_page
from lab.tests.helpers import read_csv

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VOID = {"meta", "img", "input", "br"}
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><b>", "A|B & C")


class Parts(HTMLParser):
    """What a page is made of: (tag, attributes) in order, and the text inside each tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def unpack(packed):
    """{column: its values} of a page's table, by what lab.show.packed says of it."""
    raw = zlib.decompress(base64.b64decode(packed))
    start = 4 + int.from_bytes(raw[:4], "little")
    header = json.loads(raw[4:start])
    n, codes = header["rows"], []
    for i in range(len(header["columns"])):
        planes = np.frombuffer(raw, np.uint8, 4 * n, start + 4 * n * i).reshape(4, n)
        codes.append((planes.astype(np.int64) << np.array([[0], [8], [16], [24]])).sum(0))
    along = np.arange(n)
    for i in header["order"]:
        along = along[np.argsort(codes[i][along], kind="stable")]
    table = {}
    for i, (column, code) in enumerate(zip(header["columns"], codes)):
        if i >= header["plain"]:
            step = np.where(code % 2, -(code + 1) // 2, code // 2)
            code = np.empty(n, np.int64)
            code[along] = np.cumsum(step)
        table[column["name"]] = [value_of(column, c) for c in code.tolist()]
    return table


def value_of(column, code):
    if code == 0:
        return None
    number = code - 1 + column["least"]
    if column["kind"] == "word":
        return column["words"][number]
    if column["kind"] == "p" and number:
        power, rest = divmod(number - 1, PER_DECADE)
        return (rest + 100) * 10.0 ** (power - SMALLEST - 2)
    return number / 1000 if column["kind"] == "r" else number


def packed_in(text):
    return re.search(r'<script id="packed" type="text/plain">([^<]*)</script>', text)[1]


# ----- Packing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, "cancer"])
def test_a_packed_table_is_the_table_to_three_digits(group):
    rng = np.random.default_rng(0)
    n = 4000
    r = rng.normal(0, 0.4, n)
    p = 10 ** rng.uniform(-310, 0, n)
    p[:8] = 0, 1, 0.05, 0.04996, 0.0500001, 0.9996, 1e-300, 9.996e-7
    r[10:20], p[15:25] = np.nan, np.nan
    columns = [
        Column("gene", "word", np.arange(n), words=tuple(f"G{i}" for i in range(n))),
        Column("cancer", "word", rng.integers(0, 3, n), words=("Z", "A", "M")),
        Column("n", "whole", rng.integers(3, 10**6, n)),
        Column("R", "r", r),
        Column("p", "p", p),
    ]
    table = unpack(pack(columns, group))
    gene = np.array([int(name[1:]) for name in table["gene"]])
    assert sorted(gene) == list(range(n))
    assert table["cancer"] == [("Z", "A", "M")[i] for i in columns[1].values[gene]]
    assert table["n"] == columns[2].values[gene].tolist()
    ours = {name: np.array(table[name], float) for name in ("R", "p")}
    np.testing.assert_allclose(ours["R"], r[gene], atol=0.000501)
    np.testing.assert_allclose(ours["p"], p[gene], rtol=0.0051)
    assert ((ours["p"] < 0.05) == (p[gene] < 0.05)).all()  # significant or not, as in genes.csv


def test_a_column_without_any_value_is_empty():
    columns = [Column("gene", "word", np.arange(3), words=("a", "b", "c"))]
    columns += [Column(kind, kind, np.full(3, np.nan)) for kind in ("whole", "r", "p")]
    assert unpack(pack(columns)) == {
        "gene": ["a", "b", "c"],
        **dict.fromkeys(("whole", "r", "p"), [None] * 3),
    }


def test_all_genes_of_all_cancers_of_the_paper_fit_into_three_megabytes():
    """30,839 genes x 28 cancers, from one cancer and what each of three more adds to it."""
    rng = np.random.default_rng(0)
    genes = 30_839
    names = tuple(f"ENSG{i:011d}" for i in rng.choice(10**6, genes, replace=False))
    parts = []
    for patients in (44, 180, 400, 1046):
        r = np.tanh(rng.normal(0, 0.1, genes) + rng.normal(0, patients**-0.5, genes))
        p = stats.pearson_p(r, patients)
        parts.append((r, stats.holm_sidak(p), stats.benjamini_hochberg(p)))
    sizes = []
    for cancers in (1, 4):
        r, hs, bh = map(np.concatenate, zip(*parts[:cancers]))
        columns = [
            Column("gene", "word", np.tile(np.arange(genes), cancers), words=names),
            Column("cancer", "word", np.repeat(range(cancers), genes), words=tuple("ABCD")),
            Column("R", "r", r),
            Column("p HS", "p", hs),
            Column("p BH", "p", bh),
        ]
        sizes.append(len(pack(columns, "cancer")))
    one, four = sizes
    assert one + 27 * (four - one) / 3 < 2.5e6  # pictures want room, too


# ----- The page -----------------------------------------------------------------------------------


def test_the_page_of_a_run_is_its_report_and_its_genes(mapped):
    trained = mapped / "runs" / "he2rna"
    text = (trained / "report.html").read_text()
    parts = Parts(text)
    table = unpack(packed_in(text))
    rows = {pair: i for i, pair in enumerate(zip(table["gene"], table["cancer"]))}
    genes = read_csv(trained / "genes.csv")
    assert len(genes) == len(rows) == len(table["R"]) > 500
    names = {"patients": "n", "R": "R", "p HS": "p_holm_sidak", "p BH": "p_bh"}
    for gene in genes:
        i = rows[gene["gene"], gene["project"]]
        for ours, theirs in names.items():
            shown = "" if table[ours][i] is None else table[ours][i]
            exact = float(gene[theirs]) if gene[theirs] else ""
            assert shown == exact or abs(shown - exact) <= max(0.0051 * abs(exact), 0.000501)
    report = (trained / "report.md").read_text()
    assert parts.text["h2"] == ["All genes", *re.findall(r"^## (.*)$", report, re.M)]
    pictures = re.findall(r"!\[(.*?)\]\((.*?)\)", report)
    assert [image["alt"] for image in parts.all("img")] == [name for name, _ in pictures]
    cells = [line.count(" | ") + 1 for line in report.splitlines() if re.match(r"\| [^-]", line)]
    assert len(parts.all("td")) + len(parts.all("th")) == sum(cells)


def test_the_page_asks_for_nothing_outside_itself(mapped):
    text = (mapped / "runs" / "he2rna" / "report.html").read_text()
    parts = Parts(text)
    assert all(image["src"].startswith("data:image/png;base64,") for image in parts.all("img"))
    anchors = {attrs["id"] for _, attrs in parts.tags if "id" in attrs}
    assert {link["href"][1:] for link in parts.all("a")} <= anchors
    assert not any(
        {"src", "href", "style"} & set(attrs)
        for tag, attrs in parts.tags
        if tag not in ("a", "img")
    )
    assert not re.search(r"https?:|@import|url\(", text)
    policy = next(m["content"] for m in parts.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        assert hashed(parts.text[tag][-1]) in policy


def test_names_of_genes_and_classes_are_text_not_html(tmp_path):
    lines = [f"# {HOSTILE[0]}", "", f"**{HOSTILE[1]}** {HOSTILE[2]}", "", "| a |", "| --- |"]
    lines += [f"| {name} |".replace("A|B", "A\\|B") for name in HOSTILE]
    lines += ["", f"- {HOSTILE[0]}", "", f"## {HOSTILE[1]}", "text", "", "![gone](gone.png)"]
    columns = [Column("gene", "word", np.arange(4), words=HOSTILE)]
    columns += [Column("<b>class", "word", np.arange(4), "<i>", words=HOSTILE)]
    write_page(tmp_path / "report.html", lines, columns, "<b>class")
    parts = Parts((tmp_path / "report.html").read_text())
    kinds = {tag for tag, _ in parts.tags}
    assert not kinds & {"img", "b", "i"} and len(parts.all("script")) == 2
    assert not any(key.startswith("on") for _, attrs in parts.tags for key in attrs)
    assert parts.text["td"] == list(HOSTILE) and parts.text["h1"] == [HOSTILE[0]]
    assert "gone: not drawn." in parts.text["p"] and "text" in parts.text["p"]


def test_a_picture_is_small_and_keeps_its_colours(tmp_path):
    pixels = np.full((900, 6000, 3), 255, np.uint8)
    pixels[:, 3000:] = 0, 114, 178
    Image.fromarray(pixels).save(tmp_path / "a.png")
    write_page(tmp_path / "a.html", ["# A", "", "![wide](a.png)"])
    (image,) = Parts((tmp_path / "a.html").read_text()).all("img")
    (tmp_path / "b.png").write_bytes(base64.b64decode(image["src"].partition(",")[2]))
    with Image.open(tmp_path / "b.png") as small:
        assert small.width * small.height <= 2e6 and small.width > 3500
        colours = small.convert("RGB")
        assert colours.getpixel((9, 9)) == (255, 255, 255)
        assert colours.getpixel((small.width - 9, 9)) == (0, 114, 178)


# ----- In a browser -------------------------------------------------------------------------------


def in_chromium(page, *more):
    """The page as Chromium has made it, after its programs ran."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser to open it in: {', '.join(BROWSERS)}")
    folder = page.with_suffix(".profile")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder}", "--allow-file-access-from-files"]
    command += ["--virtual-time-budget=10000", *more, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def many_genes():
    """300 genes in three cancers; four have names that HTML would read."""
    rng = np.random.default_rng(0)
    names = [*HOSTILE, "CD3E", "CD3D", "CD33", *(f"GENE{i}" for i in range(293))]
    r, p = rng.uniform(-1, 1, 900), rng.uniform(0, 1, 900) ** 3
    r[50], p[50] = np.nan, np.nan
    return [
        Column("gene", "word", np.tile(np.arange(300), 3), words=tuple(names)),
        Column("cancer", "word", np.repeat(np.arange(3), 300), words=("LIHC", "BRCA", "<LUAD>")),
        Column("R", "r", r),
        Column("p BH", "p", p),
    ]


STEPS = (  # what a reader does, in the page's own window
    "",
    "location.hash = '#sort=R&filter=cd3'",
    "heads()[2].click()",
    "set('group', 'brca'.toUpperCase(), 'change')",
    "set('below', 'p BH', 'change'); set('filter', '', 'input')",
    "for (let i = 0; i < 4; i++) at('after').click()",
    "location.hash = '#sort=gene&order=up&page=36'",
    "location.hash = '#sort=R&order=up&page=99'",
    "location.hash = '#sort=nothing&filter=%3Cscript&group=none&below=R&page=x'",
)
DRIVER = """<iframe id="page" src="report.html"></iframe><pre id="seen"></pre><script>
const frame = document.getElementById("page"), seen = [];
const at = (id) => frame.contentDocument.getElementById(id);
const heads = () => at("heads").querySelectorAll("button");
const location_ = () => frame.contentWindow.location;
function set(id, value, event) {
  at(id).value = value;
  at(id).dispatchEvent(new Event(event));
}
function look() {
  const texts = (row) => Array.from(row.cells, (cell) => cell.textContent);
  const rows = Array.from(at("rows").children, texts);
  const sorted = Array.from(at("heads").children, (head) => head.ariaSort);
  const last = at("after").disabled, hash = location_().hash;
  seen.push({ rows, sorted, said: at("said").textContent, last, hash });
}
const steps = [STEPS];
async function go() {
  while (!at("rows")?.children.length) await new Promise((done) => setTimeout(done, 50));
  for (const step of steps) {
    step();
    await new Promise((done) => setTimeout(done, 100));
    look();
  }
  document.getElementById("seen").textContent = JSON.stringify(seen);
}
frame.onload = go;
</script>"""


def test_the_table_sorts_and_filters_in_a_browser(tmp_path):
    columns = many_genes()
    write_page(tmp_path / "report.html", ["# Page", "", "text"], columns, "cancer")
    steps = ", ".join(f"() => {{ {step.replace('location.', 'location_().')} }}" for step in STEPS)
    save_text(tmp_path / "driver.html", [DRIVER.replace("STEPS", steps)])
    shown = in_chromium(tmp_path / "driver.html", "--dump-dom")
    seen = json.loads(Parts(shown).text["pre"][0])
    names = columns[0].words
    rows = []
    for gene, cancer, r, p in zip(*(column.values for column in columns)):
        rows.append((names[gene], columns[1].words[cancer], r, p))
    by_r = sorted(rows, key=lambda row: np.nan_to_num(-row[2], nan=9))

    first, cd3, turned, brca, below, third, genes, end, odd = seen
    by_p = sorted(by_r, key=lambda row: np.nan_to_num(row[3].round(9), nan=9))
    assert first["said"] == "1 to 25 of 900 rows" and first["sorted"][3] == "ascending"
    assert [row[0] for row in first["rows"][:3]] == [row[0] for row in by_p[:3]]
    want = [row for row in by_r if row[0].startswith("CD3")]
    assert [row[:2] for row in cd3["rows"]] == [list(row[:2]) for row in want]
    assert [row[2].replace("−", "-") for row in cd3["rows"]] == [f"{row[2]:.3f}" for row in want]
    assert cd3["said"] == "1 to 9 of 9 rows, chosen from 900"
    assert turned["rows"] == cd3["rows"][::-1] and turned["sorted"][2] == "ascending"
    assert "order=up" in turned["hash"] and "filter=cd3" in turned["hash"]
    assert brca["rows"] == [row for row in turned["rows"] if row[1] == "BRCA"]
    significant = [row for row in rows if row[1] == "BRCA" and row[3] < 0.05]
    assert below["said"] == f"1 to 25 of {len(significant)} rows, chosen from 900"
    assert all(0 < float(row[3].replace("−", "-")) < 0.05 for row in below["rows"])
    assert third["last"] and len(third["rows"]) == len(significant) - 100
    assert genes["last"] and genes["rows"][-1][0] == max(names)
    assert end["last"] and end["rows"][-1][2:] == ["", ""]  # no R: last in either order
    assert {row[0] for row in odd["rows"]} == {HOSTILE[0]}  # what the address can't mean is nothing


def test_a_run_opens_in_a_browser_and_looks_like_something(mapped, tmp_path):
    page = tmp_path / "report.html"
    shutil.copy(mapped / "runs" / "he2rna" / "report.html", page)
    in_chromium(page, "--window-size=1000,3000", f"--screenshot={tmp_path / 'shot.png'}")
    with Image.open(tmp_path / "shot.png") as shot:
        pixels = np.asarray(shot.convert("RGB"))
    assert pixels.shape == (3000, 1000, 3)
    blue = (abs(pixels.astype(int) - (0, 114, 178)).sum(2) < 30).any(1)  # rule, links, pictures
    assert blue.mean() > 0.1 and (pixels[:, 500] == 255).all(1).mean() > 0.2
