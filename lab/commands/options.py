"""lab.commands.options"""

import argparse
import signal
import sys
import textwrap
import threading
from functools import partial

from lab.cohort.steps import RANGES
from lab.files import InputError, one_line, save_csv, say_error
from lab.locks import release
from lab.processes import one_voice


def natural(text):
    """A whole number >= 0 that every generator of random numbers takes, for argparse."""
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > RANGES["seed"][1]:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number >= 0 and < 2**63")
    return int(text)


class Help(argparse.HelpFormatter):
    """--help within two screens: usage names only what must be given; numbers are N or X, so that options fit a column;
    names of options and genes stay whole."""

    def add_usage(self, usage, actions, groups, prefix=None):
        named = [x for x in actions if x.required or not x.option_strings]
        rest = [argparse.Action(["[options]"], "", nargs=0, required=True)] * (
            len(named) < len(actions)
        )
        super().add_usage(usage, rest + named, groups, prefix)

    def _get_default_metavar_for_optional(self, action):
        return {int: "N", natural: "N", float: "X"}.get(
            action.type
        ) or super()._get_default_metavar_for_optional(action)

    def _split_lines(self, text, width):
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class RawHelp(Help, argparse.RawDescriptionHelpFormatter):
    """The same, the description as it is written."""


class Parser(argparse.ArgumentParser):
    """One to which an empty word, such as of an unset variable of the shell, is a mistake."""

    def _get_value(self, action, text):
        if text == "" and action.nargs != argparse.PARSER:  # a verb's words are its own parser's
            raise argparse.ArgumentError(
                action, "an empty word was given (an unset variable of the shell?)"
            )
        return super()._get_value(action, text)


def parsers(program, manual):
    """A program's parser, and where its verbs are added; `manual`: its description, lines as they are."""
    parser = Parser(prog=program, description=manual, formatter_class=RawHelp)
    return parser, parser.add_subparsers(
        dest="verb", required=True, parser_class=partial(Parser, formatter_class=Help)
    )


def report_failures(failed, total, folder=None, share=(0, 1)):
    """Say which slides failed and why, also in FOLDER/failed.csv, which is gone where none did; each of several processes
    has its own. Returns the exit status: 0 all done, 1 some failed."""
    if folder:
        path = folder / ("failed.csv" if share[1] == 1 else f"failed-{share[0]}-of-{share[1]}.csv")
        for old in [path, *(folder.glob("failed-*-of-*.csv") if share[1] == 1 else ())]:
            old.unlink(missing_ok=True)
        if failed:
            save_csv(
                path, ("slide", "reason"), ((name, one_line(why)) for name, why in failed.items())
            )
    for name, why in failed.items():
        print(one_line(f"failed: {name}: {why}"), file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {total} slides failed", file=sys.stderr)
    return 1 if failed else 0


def run(main):
    """Run a command: a user's mistake is one line and status 2, SIGINT and SIGTERM one line and status 130 and 143."""
    caught = []

    def stop(number, _):
        caught.append(number)
        raise KeyboardInterrupt

    def dropped(what):  # what is raised in a callback: again
        if caught and isinstance(what.exc_value, KeyboardInterrupt):
            threading.Timer(0.05, signal.raise_signal, caught[-1:]).start()
        else:
            sys.__unraisablehook__(what)

    sys.unraisablehook = dropped
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # µ and ± on any terminal
    try:
        sys.exit(main())
    except BaseException as e:
        if caught:  # in a lock it comes out as another error
            print(
                f"\n{'terminated' if caught[0] == signal.SIGTERM else 'interrupted'}; the same command goes on from here",
                file=sys.stderr,
            )
            sys.exit(128 + caught[0])
        if not isinstance(e, (InputError, OSError)):
            raise
        say_error(e)
        sys.exit(2)


def run_program(program, manual, verbs, shared, argv=None):
    """Parse a command line and run its verb -> exit status. verbs: {name: (module, one line)}."""
    parser, add = parsers(program, manual)
    for name, (module, line) in verbs.items():
        p = add.add_parser(name, help=line, description=module.run.__doc__ or line)
        p.set_defaults(function=module.run, parse=parser.parse_args)
        module.options(p)
    o = parser.parse_args(argv)
    o.seed = getattr(o, "seed", 0) or 0
    try:
        with one_voice(o, shared):
            return o.function(o)
    finally:
        release()
