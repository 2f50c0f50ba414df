"""Training of populations of seeds: the loop, its state, its evaluators, its checkpoints."""
