"""The seven papers: all 50 of their hypotheses, in order, each with its test and its certainty.

None leaves out seeds that diverged: to diverge is an outcome of an arm, and the seeds that are left
of it are the lucky ones. What compares such an arm is inconclusive, and its estimate is shown.
"""

from sharpjax.protocol.claims import Hypothesis
from sharpjax.studies.papers import paper1, paper2, paper3, paper4, paper5, paper6, paper7

PAPERS = (paper1, paper2, paper3, paper4, paper5, paper6, paper7)
HYPOTHESES: tuple[Hypothesis, ...] = tuple(h for paper in PAPERS for h in paper.HYPOTHESES)
