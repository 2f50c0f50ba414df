"""What a study may conclude from its rows. Pure: dataclasses in, dataclasses out, no files."""
