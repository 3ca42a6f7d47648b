"""What all reports share: the five sentences that they open with, sections, the settings."""

from lab.progress import table
from lab.provenance import said


def opening(asked, patients, found, null, never):
    """Lines of the five sentences that a report opens with.

    What was asked, of how many patients, what was found, under which null, and what must not be
    concluded.
    """
    said = {
        "Asked": asked,
        "Patients": patients,
        "Found": found,
        "Null": null,
        "Not to be concluded": never,
    }
    return [*(f"- **{name}.** {text}" for name, text in said.items()), ""]


def clauses(words, *that):
    """A sentence of what must not be concluded, first of patients where words say why.

    words: of lab.provenance; that: clauses that begin with this word.
    """
    if words:
        that = (f"that this tells of patients ({said(words)})", *that)
    sentence = "; ".join(that)
    return f"{sentence[0].upper()}{sentence[1:]}."


def section(title, *parts):
    """Lines of a section: its title, and its parts with room between them."""
    lines = [f"## {title}", ""]
    for part in parts:
        lines += [part, ""]
    return lines


def settings_section(config, **more):
    """Lines of the section "Settings": all that a run is known by, a row each.

    How many processes shared the work changes nothing: that stands in config.json alone.
    """
    known = {name: value for name, value in config.items() if name != "processes"}
    rows = [*settings_rows(known), *more.items()]
    return section("Settings", table(("setting", "value"), rows))


def settings_rows(config, above=""):
    """(name, value in words) of a run's settings; those of a setting are rows of their own."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from settings_rows(value, f"{above}{name}: ")
        else:
            yield above + name, in_words(value)


def in_words(value):
    """A setting as words: a list as its parts, nothing as none."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "", {}) else str(value)
