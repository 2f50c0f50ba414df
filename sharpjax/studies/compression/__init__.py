"""Paper 7: neural network compression, by function (OpenReview Q7GXKjmCSB)."""
