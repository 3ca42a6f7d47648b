"""Where paper and authors' code differ or are silent, and what is done here."""

from lab.audit.choices import show_choices
from lab.histcode.choices import CHOICES


def options(parser):
    pass


def run(o):
    show_choices(CHOICES, "histcode.py")
    return 0
