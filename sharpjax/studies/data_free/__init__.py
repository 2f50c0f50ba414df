"""Paper 2: data-free metrics of layers, and layers replaced (OpenReview J0iFy6BxlC)."""
