"""The seven papers: all 50 of their hypotheses, in order, each with its test and its certainty.

No hypothesis leaves out seeds that diverged. Divergence is an outcome of an arm, and the seeds that
are left are the lucky ones. A comparison with such an arm is inconclusive, and its estimate is
shown.
"""

from sharpjax.protocol.claims import Hypothesis
from sharpjax.studies.papers import paper1, paper2, paper3, paper4, paper5, paper6, paper7

PAPERS = (paper1, paper2, paper3, paper4, paper5, paper6, paper7)
HYPOTHESES: tuple[Hypothesis, ...] = tuple(h for paper in PAPERS for h in paper.HYPOTHESES)
