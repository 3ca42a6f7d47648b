"""python histcode.py choices: where paper and authors' code differ or are silent; what is done."""

from lab.audit.choices import read_choices, show_choices


def options(parser):
    """None."""


def run(o):
    show_choices(read_choices("histcode"), "histcode.py")
    return 0
