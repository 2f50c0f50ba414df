"""Paper 6: explicit regularisation, sharpness and calibration (OpenReview ZQTiGcykl6)."""
