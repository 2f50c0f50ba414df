"""Paper 1: sharpness, safety and generalisation under three controls (OpenReview AiRU8ZxQii)."""
