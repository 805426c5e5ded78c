"""Training: one pure step, the loop around it, optimisers, sharding, checkpoints."""
