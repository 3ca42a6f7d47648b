"""lab.audit.compare"""

import numpy as np
from scipy import special

from lab.files import InputError, number, read_rows, save_csv, save_text
from lab.progress import clock, table
from lab.runs import claim_folder

COUNTS = ("HS", "BH", "mistakes")  # measures of an audit that are counted


def run_audit(folder, jobs, texts, settings, what, after=0):
    """Run the default and each choice alone, and write what a choice changes after each. Returns the exit status.

    jobs: {(command, "default" or choice, seed): a function -> ({measure: value}, seconds or None, exit status)}, which goes
    on where it stopped; texts {command: {choice: what it is turned to}}; settings: those all have in common, of which the
    folder's must be; what: a line for the report; after: how many runs come after these, for the time left. audit.csv keeps
    the choices of earlier commands.
    """
    claim_folder(folder, dict(settings, command="audit"), "audit.csv")
    done, status, path = {}, 0, folder / "audit.csv"
    rows = read_rows(path)[1] if path.is_file() else []
    try:
        for command, name, seed, measure, value, _, seconds in rows:
            {"default": "", **texts[command]}[name]  # KeyError: none of ours
            done.setdefault((command, name, int(seed)), ({}, number(seconds)))[0][measure] = number(
                value
            )
        [
            done[c, "default", seed][0][m]
            for (c, _, seed), (values, _) in done.items()
            for m in values
        ]
    except (KeyError, ValueError):
        raise InputError(
            f"{path}: not whole, or not of this program: delete it to begin again"
        ) from None
    for i, ((command, name, seed), job) in enumerate(jobs.items()):
        print(f"\n--- {command}, {name}, seed {seed} ({i + 1} of {len(jobs)})", flush=True)
        *done[command, name, seed], failed = job()
        status |= failed
        write_audit(folder, done, texts, what)
        spent, left = (
            [s for _, s in done.values() if s is not None and not np.isnan(s)],
            len(jobs) - i - 1 + after,
        )
        if spent and left:
            print(
                f"{left} runs left, {clock(np.mean(spent) * left)} at the mean of the {len(spent)} done",
                flush=True,
            )
    return status


def write_audit(folder, done, texts, what):
    """audit.csv, a row per run and measure, and audit.md, a row per choice: the difference from the default run of the same
    seed, its mean and 95 % interval over seeds (Student's t). done: {(command, choice, seed): ({measure: value}, seconds)}."""
    order = {
        (c, name): i
        for i, (c, name) in enumerate((c, name) for c in texts for name in ("default", *texts[c]))
    }
    keys = sorted(done, key=lambda k: (order[k[:2]], k[2]))
    change = {
        k: {m: v - done[k[0], "default", k[2]][0][m] for m, v in done[k][0].items()} for k in keys
    }
    text = lambda v: "" if v is None or np.isnan(v) else f"{v:.6g}"
    save_csv(
        folder / "audit.csv",
        ("command", "choice", "seed", "measure", "value", "change", "seconds"),
        (
            (*k, m, text(v), text(change[k][m]), text(done[k][1]))
            for k in keys
            for m, v in done[k][0].items()
        ),
    )
    lines = ["# What each choice is worth", "", what, ""]
    for command in dict.fromkeys(k[0] for k in keys):
        measures, rows = list(next(done[k][0] for k in keys if k[0] == command)), []
        for name in dict.fromkeys(k[1] for k in keys if k[0] == command):
            own = [k for k in keys if k[:2] == (command, name)]
            of, sign = ({k: done[k][0] for k in own}, "") if name == "default" else (change, "+")
            seconds = [done[k][1] for k in own]
            rows.append(
                (
                    name,
                    texts[command].get(name, "as it is"),
                    *(
                        over_seeds([of[k][m] for k in own], 1 if m in COUNTS else 3, sign)
                        for m in measures
                    ),
                    ", ".join(str(k[2]) for k in own),
                    "" if None in seconds or np.isnan(seconds).any() else clock(np.mean(seconds)),
                )
            )
        lines += [
            f"## {command}",
            "",
            table(("choice", "turned to", *measures, "seeds", "time of one"), rows),
            "",
        ]
    save_text(folder / "audit.md", lines)


def over_seeds(values, digits, sign=""):
    """'mean (95 % interval over seeds)', by Student's t."""
    v, text = np.array(values, float), lambda number: f"{number:{sign}.{digits}f}"
    half = special.stdtrit(len(v) - 1, 0.975) * v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0
    return text(v.mean()) + (
        f" ({text(v.mean() - half)} to {text(v.mean() + half)})" if len(v) > 1 else ""
    )
