"""From p-values and intervals to a verdict."""
