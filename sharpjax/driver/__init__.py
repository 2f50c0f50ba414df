"""Long work that can be stopped and resumed at checkpoints, whatever one step of it is."""
