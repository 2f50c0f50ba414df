"""What a study may conclude from its rows: pure functions of dataclasses, without files."""
