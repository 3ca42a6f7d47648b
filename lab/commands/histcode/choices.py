"""python histcode.py choices: where paper and authors' code differ or are silent; what is done."""

from lab.audit.choices import show_choices
from lab.histcode.choices import CHOICES


def options(parser):
    """None."""


def run(o):
    show_choices(CHOICES, "histcode.py")
    return 0
