"""lab.commands.histcode.choices"""

from lab.audit.choices import show_choices
from lab.histcode.choices import CHOICES


def run(o):
    """Where paper and authors' code differ or are silent, and what is done here."""
    show_choices(CHOICES, "histcode.py")
    return 0


def options(parser):
    pass
