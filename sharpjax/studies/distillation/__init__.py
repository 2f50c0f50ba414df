"""Paper 5: knowledge distillation and its controls, by function (OpenReview Cgo73ZnAQc)."""
