"""Whether a student takes over its teacher's errors more than its right answers."""

from typing import Any, NamedTuple

import numpy as np

from sharpjax.metrics import inputs
from sharpjax.metrics.functional import outputs
from sharpjax.metrics.functional.outputs import Outputs


class TransferAsymmetry(NamedTuple):
    """How often a student predicts as its teacher does, beyond a control model.

    Attributes:
        wrong: excess agreement where the teacher is wrong, student less control, in [-1, 1].
        right: the same where it is right.
        asymmetry: wrong - right, in [-2, 2]: positive where errors are taken over more.
        num_wrong, num_right: of how many examples these are; NaN where there are none.
    """

    wrong: float
    right: float
    asymmetry: float
    num_wrong: int
    num_right: int


def transfer_asymmetry(student: Any, teacher: Any, control: Any, label: Any) -> TransferAsymmetry:
    """The excess agreement of a student with its teacher, by whether the teacher is right.

        wrong = P(s = t | t != y) - P(c = t | t != y),   right = P(s = t | t = y) - P(c = t | t = y)

    with the predictions s, t, c of student, teacher and control, and y the label. A control is
    trained as the student was, from the same start, without the teacher. Models that learnt the
    same data agree where they are right far more than where they are wrong; the control takes that
    away. It does not take away that `right` has less room: where the control agrees with the
    teacher's right answers in 95 of 100, `right` is at most .05. One value for each student; test
    over students, with a control of their own each.

    Args:
        student, teacher, control: [N, K] logits, or anything of the same order, of the same
            examples; of equal largest ones the first is the prediction.
        label: [N].

    Raises:
        UserError: the arrays do not fit each other; an output is not finite; a label is no class.

    >>> teacher = np.eye(3)[[0, 0, 1, 1]]  # right, right, wrong, wrong
    >>> student, control = np.eye(3)[[0, 0, 1, 2]], np.eye(3)[[0, 2, 2, 2]]
    >>> found = transfer_asymmetry(student, teacher, control, np.array([0, 0, 0, 0]))
    >>> found.wrong, found.right, found.asymmetry
    (0.5, 0.5, 0.0)
    """
    caller = "transfer_asymmetry"
    inputs.refuse_traced(f"functional.{caller}", student, teacher, control, label)
    for other, name in ((student, "student"), (control, "control")):
        outputs.check_shapes(caller, other, teacher, label, names=(name, "teacher"))
    label = outputs.check_label(caller, label, np.shape(teacher)[1])
    values = [np.asarray(x, np.float64) for x in (student, teacher, control)]
    for name, x in zip(("student", "teacher", "control"), values, strict=True):
        inputs.refuse_not_finite(f"functional.{caller}", name, x)
    s, t, c = (Outputs(x, label) for x in values)
    num_right = int(np.sum(t.right))
    num_wrong = len(label) - num_right

    def excess(there: np.ndarray, count: int) -> float:
        more = np.sum(there & (s.prediction == t.prediction), dtype=int)
        less = np.sum(there & (c.prediction == t.prediction), dtype=int)
        return float(more - less) / count if count else float("nan")

    wrong, right = excess(~t.right, num_wrong), excess(t.right, num_right)
    return TransferAsymmetry(wrong, right, wrong - right, num_wrong, num_right)
