"""What was registered, and what was changed afterwards."""
