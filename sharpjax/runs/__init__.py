"""What is done to a run, whatever its study."""
