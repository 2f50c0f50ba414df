"""The studies of `catalog.STUDIES`, one package each, and the hypotheses of the papers."""
