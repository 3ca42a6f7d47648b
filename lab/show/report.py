"""What all reports share: the five sentences that they open with, and the table of settings."""

from lab.progress import table


def opening(asked, patients, found, null, never):
    """Lines of the five sentences that a report opens with.

    What was asked, of how many patients, what was found, under which null, and what must not be
    concluded: a sentence each, or two where one would be long.
    """
    said = {
        "Asked": asked,
        "Patients": patients,
        "Found": found,
        "Null": null,
        "Not to be concluded": never,
    }
    return [*(f"- **{name}.** {text}" for name, text in said.items()), ""]


def settings_section(config, **more):
    """Lines of the section "Settings": all that a run is known by, a row each."""
    rows = [*settings_rows(config), *more.items()]
    return ["## Settings", "", table(("setting", "value"), rows), ""]


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
