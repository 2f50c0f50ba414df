"""Whether a student copies its teacher's errors more than its right answers."""

from typing import Any, NamedTuple

import numpy as np

from sharpjax.metrics import inputs
from sharpjax.metrics.functional import outputs
from sharpjax.metrics.functional.outputs import Outputs


class TransferAsymmetry(NamedTuple):
    """How much more often a student predicts as its teacher does than a control model.

    Attributes:
        wrong: agreement with the teacher on examples it gets wrong, student minus control, in
            [-1, 1]; NaN if `num_wrong` is 0.
        right: the same on examples the teacher gets right; NaN if `num_right` is 0.
        asymmetry: wrong - right, in [-2, 2]; positive if errors are copied more.
        num_wrong, num_right: the numbers of these examples.
    """

    wrong: float
    right: float
    asymmetry: float
    num_wrong: int
    num_right: int


def transfer_asymmetry(student: Any, teacher: Any, control: Any, label: Any) -> TransferAsymmetry:
    """The excess agreement of a student with its teacher, by whether the teacher is right.

        wrong = P(s = t | t != y) - P(c = t | t != y),   right = P(s = t | t = y) - P(c = t | t = y)

    with s, t, c the predictions of student, teacher and control, and y the label. The control is
    trained like the student and from the same start, but without the teacher. Models trained on the
    same data agree far more where they are right than where they are wrong, and the control removes
    that effect. But it does not remove the ceiling of `right`: if the control agrees with 95 of 100
    right answers of the teacher, `right` is at most .05. There is one value for each student. Run
    statistical tests over students, each with its own control.

    Args:
        student, teacher, control: [N, K] logits of the same examples, or any values in the same
            order. If several are largest, the prediction is the first of them.
        label: [N].

    Raises:
        UserError: the shapes do not match; an output is not finite; a label is not a class; inside
            a trace.

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
