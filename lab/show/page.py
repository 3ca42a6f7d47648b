"""report.html: a report of Markdown as one file to look at, pictures inside, all genes in a table.

It needs no network: style, program and pictures stand in it, and its Content-Security-Policy lets
the browser load nothing else and run no other program. Names that come from data are escaped.
"""

import base64
import hashlib
import html
import io
import re
from itertools import count
from pathlib import Path

from PIL import Image

from lab.files import save_text
from lab.show.packed import pack

HERE = Path(__file__).parent
PICTURE = re.compile(r"!\[([^\]]*)\]\(([\w.-]+\.png)\)")
PIXELS, COLOURS = 2e6, 64  # of a plot in the page; the file beside it has all [ours]
WIDE = 3  # times as wide as high: such a picture is not made smaller, it scrolls [ours]
NUMBER = re.compile(r"\s*([+−-]?\.?\d.*)?")  # what a cell of numbers begins with
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src {may_style}; script-src {may_run}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{heading}
{contents}
{body}
</main>
<script>{program}</script>
</body>
</html>
"""


def write_page(path, lines, columns=(), group=None):
    """A report's page beside its report.md.

    lines: those of report.md, whose pictures lie in the page's folder. columns: of lab.show.packed,
    a row each for all genes, the first their names; group: the name of the column of cancers, say.
    The table stands before the report's first section. To call it from a report, beside save_text:

        write_page(folder / "report.html", lines, [
            Column("gene", "word", np.arange(len(genes)), words=tuple(genes)),
            Column("R", "r", found["r"], "what the reader is told of it"),
            Column("p BH", "p", found["bh"]),
        ])
    """
    path = Path(path)
    text = re.sub(r"^(#+ .*)$", r"\n\1\n", "\n".join(lines), flags=re.M)  # a heading stands alone
    blocks = re.split(r"\n\s*\n", text.strip())
    if columns:
        before = next((i for i, b in enumerate(blocks) if b.startswith("## ")), len(blocks))
        blocks.insert(before, "## All genes")
    titles = [block[3:] for block in blocks if block.startswith("## ")]
    body = list(numbered_headings(block_of(block, path.parent) for block in blocks))
    if columns:
        body.insert(before + 1, browser(columns, group))
    program = (HERE / "page.js").read_text("utf-8") if columns else ""
    style = (HERE / "page.css").read_text("utf-8")
    text = PAGE.format(
        title=plain(blocks[0].removeprefix("# ")),
        style=style,
        may_style=hashed(style),
        program=program,
        may_run=hashed(program),
        heading=body[0],
        contents=contents(titles),
        body="\n".join(body[1:]),
    )
    save_text(path, [text])


def hashed(text):
    """How a Content-Security-Policy names what may stand in the page."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


# ----- Markdown, as our reports have it -----------------------------------------------------------


def plain(text):
    return html.escape(text.strip())


def inline(text):
    """A line with **strong** words and `code`; a sign after a backslash is itself."""
    text = re.sub(r"\\([`|\\])", lambda found: f"&#{ord(found[1])};", plain(text))
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def contents(titles):
    """Links to the sections."""
    links = []
    for i, title in enumerate(titles):
        links.append(f'<li><a href="#section-{i}">{plain(title)}</a></li>')
    return f'<nav aria-label="Sections"><ul>{"".join(links)}</ul></nav>'


def numbered_headings(body):
    """The blocks, each section's heading with the id that contents links to."""
    number = count()
    for block in body:
        if block.startswith("<h2>"):
            block = f'<h2 id="section-{next(number)}">{block[4:]}'
        yield block


def block_of(block, folder):
    """HTML of a heading, table, list, pictures or paragraph."""
    if block.startswith("# "):
        return f"<h1>{inline(block[2:])}</h1>"
    if block.startswith("## "):
        return f"<h2>{inline(block[3:])}</h2>"
    if re.match(r"\| .*\n\| ---", block):
        return table_of(block.splitlines())
    if block.startswith("- "):
        items = "".join(f"<li>{inline(line[2:])}</li>" for line in block.splitlines())
        kind = ' class="opening"' if block.startswith("- **Asked.**") else ""
        return f"<ul{kind}>{items}</ul>"
    if PICTURE.match(block):
        return "".join(figure_of(*found, folder) for found in PICTURE.findall(block))
    kind = ' class="warning"' if block.startswith("**") else ""
    return f"<p{kind}>{inline(block)}</p>"


def table_of(lines):
    """A table; columns of numbers stand at the right."""
    head, _, *rows = [re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in lines]
    kinds = []
    for column in zip(*rows):
        numbers = all(map(NUMBER.fullmatch, column))
        kinds.append(' class="number"' if numbers else "")
    kinds = kinds or [""] * len(head)
    said = [f'<th scope="col"{kind}>{inline(cell)}</th>' for kind, cell in zip(kinds, head)]
    body = []
    for row in rows:
        cells = [f"<td{kind}>{inline(cell)}</td>" for kind, cell in zip(kinds, row)]
        body.append(f"<tr>{''.join(cells)}</tr>")
    table = f"<thead><tr>{''.join(said)}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll" tabindex="0"><table>{table}</table></div>'


def figure_of(name, file, folder):
    """A picture inside the page; its words alone where it was not drawn."""
    path = folder / file
    if not path.is_file():
        return f"<p>{plain(name)}: not drawn.</p>"
    with Image.open(path) as picture:
        width, height = picture.size
        inches = width / picture.info.get("dpi", (96, 96))[0]
        picture = picture.convert("RGB")
    less = min(1, (PIXELS / (width * height)) ** 0.5)
    picture.thumbnail((int(width * less), int(height * less)), Image.Resampling.LANCZOS)
    png = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)
    data = base64.b64encode(png.getvalue()).decode()
    shown = f'width="{96 * inches:.0f}" alt="{plain(name)}"'
    image = f'<img {shown} src="data:image/png;base64,{data}">'
    if width > WIDE * height:
        image = f'<div class="wide scroll" tabindex="0">{image}</div>'
    return f"<figure>{image}<figcaption>{plain(name)}</figcaption></figure>"


# ----- The table of all genes ---------------------------------------------------------------------


def browser(columns, group):
    """The section that page.js fills; its ids are those that page.js knows."""
    return "\n".join(
        [
            '<section class="browse">',
            '<p class="controls">',
            f"<label>{plain(columns[0].name)} contains, such as CD3 or MKI67, TP53"
            '<input id="filter" type="search" autocomplete="off" spellcheck="false"></label>',
            f'<select id="group" aria-label="{plain(group or "group")}"></select>',
            '<select id="below" aria-label="significant"></select>',
            "</p>",
            '<p id="said" role="status">The table needs JavaScript; genes.csv holds it, too.</p>',
            '<div class="scroll" tabindex="0"><table>',
            '<thead><tr id="heads"></tr></thead><tbody id="rows"></tbody>',
            "</table></div>",
            '<p class="pager"><button id="before">previous</button>',
            '<button id="after">next</button></p>',
            "<p>The address keeps what is shown, to send to somebody. Numbers have three digits, "
            "genes.csv has all.</p>",
            f'<script id="packed" type="text/plain">{pack(columns, group)}</script>',
            "</section>",
        ]
    )
