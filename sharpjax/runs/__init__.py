"""Commands on a run of any study."""
