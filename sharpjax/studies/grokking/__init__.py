"""Paper 3: decomposed learning against grokking (OpenReview LVuzwpMovE)."""
