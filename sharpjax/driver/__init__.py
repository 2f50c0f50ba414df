"""Long work that can be stopped and goes on: from checkpoint to checkpoint, whatever a step is."""
