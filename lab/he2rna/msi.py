"""One division into hospitals: the arms of he2rna on all cores, and whom each step learned from."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

import he2rna
import stats
from lab.audit.ledger import saw, what_saw_whom
from lab.fast.networks import threads, train_networks
from lab.files import InputError
from lab.he2rna.report import MAY_SEE

EPOCHS_CODE = 100  # of the autoencoders [HE2RNA code]
STEPS = {
    "transcriptome": "networks of A",
    "autoencoder-a": "autoencoder A",
    "autoencoder-b": "autoencoder B",
}


def compare_arms(study, in_a, arms, o, key, device):
    """({arm: AUC (repeats, folds)}, what was learned from whom) of a study divided at in_a (S,).

    key: numbers that together with --seed decide every draw of this division.
    """
    seed = [o.seed, *key]
    patients, a, b = study.patients, np.flatnonzero(in_a), np.flatnonzero(~in_a)
    fold_a = stats.patient_folds(patients[a], study.projects[a], o.folds, seed)
    names, first, patient = np.unique(patients[b], return_index=True, return_inverse=True)
    high = study.high[b][first]
    tests = he2rna.folds_in_b(names, high, seed, o.folds, o.repeats)
    judged = study.has_y if "genes" in o.code else in_a
    expressed = he2rna.above_floor(study.y[judged])
    if "transcriptome" in arms and not expressed.any():
        raise InputError(f"no gene is expressed in half of the {len(a)} slides of hospital A")
    hospitals = he2rna.Hospitals(
        x=study.x,
        y=study.y[:, expressed],
        high=study.high,
        rows_a=[a[fold_a != f] for f in range(o.folds)],
        rows_b=[b[~test[patient]] for test in tests],
        seed=seed,
    )
    teachers = {arm: Teacher(arm, o.code, b, len(in_a)) for arm in arms}
    scores = score_arms(hospitals, teachers, device)
    aucs = {}
    for arm in arms:
        auc = he2rna.fold_aucs(scores[arm][:, :, b], patient, high, tests)
        aucs[arm] = auc.reshape(o.repeats, o.folds)

    note = {"patients_b": len(names), "msi_h_b": int(high.sum())}
    ledgers = [{} for _ in tests]
    if "transcriptome" in arms:
        for ledger in ledgers:
            saw(ledger, "gene filter", patients[judged])
        note["genes"] = int(expressed.sum())
    for teacher in teachers.values():
        teacher.write_ledgers(ledgers, patients, in_a)
    tested = [names[test] for test in tests]
    note["saw"], note["leaks"] = what_saw_whom(ledgers, tested, MAY_SEE)
    return aucs, note


def score_arms(hospitals, teachers, device):
    """The scores of each arm, {arm: (members, M, S)}, all arms side by side: no core waits."""
    begun = dict(teachers)
    if "ensemble" in begun:
        begun.pop("direct", None)  # it is the ensemble's first member
    with threads(device) as pool, ThreadPoolExecutor(len(begun)) as side_by_side:
        jobs = {}
        for arm, teacher in begun.items():
            train = partial(teacher.train, pool=pool, device=device)
            score = he2rna.MSI_ARMS[arm]
            jobs[arm] = side_by_side.submit(score, hospitals._replace(train=train))
        try:
            scores = {arm: job.result() for arm, job in jobs.items()}
        finally:
            pool.shutdown(cancel_futures=True)
    if "ensemble" in scores:
        scores["direct"] = scores["ensemble"][:1]
    return scores


class Teacher:
    """Trains an arm's networks, with what `code` turns, and keeps their lessons for the ledger."""

    def __init__(self, arm, code, b, n_slides):
        self.arm, self.code = arm, code
        self.b, self.every = b, np.arange(n_slides)
        self.taught = []  # (step, its lessons)

    def train(self, recipe, lessons, pool, device):
        """`train` of he2rna.Hospitals."""
        step = "classifiers" if recipe.kind == 2 else STEPS[self.arm]
        copies = 1
        if step == "autoencoder B" and "autoencoder" in self.code:  # one, of all of B
            copies = len(lessons)
            lessons = [lessons[0]._replace(rows=self.b, known=self.b)]
        if "scaling" in self.code:
            lessons = [lesson._replace(known=self.every) for lesson in lessons]
        if recipe.kind == 1 and "epochs" in self.code:
            recipe = recipe._replace(epochs=EPOCHS_CODE)
        recipe = recipe._replace(keras="start" in self.code)
        self.taught.append((step, lessons))
        return list(train_networks(recipe, lessons, pool, device)) * copies

    def write_ledgers(self, ledgers, patients, in_a):
        """Put into the ledger of each test fold whom its networks learned from."""
        for step, lessons in self.taught:
            for i, lesson in enumerate(lessons):
                for_all = in_a[lesson.rows[0]] or len(lessons) == 1
                for ledger in ledgers if for_all else [ledgers[i % len(ledgers)]]:
                    saw(ledger, step, patients[lesson.rows])
                    saw(ledger, f"scaling of {step}", patients[lesson.known])
