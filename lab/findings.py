"""Findings: what is wrong or doubtful about somebody's data, in one list, before hours of work.

Checks add to it and go on, so that a user mends all at once. What can't be meant ends the command;
what may be meant is said, and the command goes on. [ours]
"""

import sys

from lab.files import InputError, one_line

SHOWN = 20  # of what is refused: 100,000 rows may be wrong in one way       [ours]


class Findings:
    """What the checks of a cohort found: refused, which can't be meant, and warned of."""

    def __init__(self):
        self.refused = []
        self.warned = []

    def refuse(self, text):
        """Add what can't be meant: value, file and mend in one sentence."""
        self.refused.append(one_line(text))

    def warn(self, text):
        """Add what may be meant, and is often a mistake."""
        self.warned.append(one_line(text))

    def of(self, check, *args, **options):
        """What check(*args) returns; where it refuses, that is a finding, and None comes back."""
        try:
            return check(*args, **options)
        except InputError as e:
            self.refuse(e)
            return None

    def tell(self, where):
        """Print all that was found; InputError where something of it can't be meant."""
        for text in self.warned:
            print(f"warning: {text}")
        self.warned = []
        if len(self.refused) == 1:
            raise InputError(self.refused[0])
        if self.refused:
            for text in self.refused[:SHOWN]:
                print(f"- {text}", file=sys.stderr)
            more = len(self.refused) - SHOWN
            if more > 0:
                print(f"- ... and {more:,} more", file=sys.stderr)
            raise InputError(
                f"{where}: the {len(self.refused)} findings above must be mended first"
            )
