"""Who learns: the Learner, its place on Ray, LoRA on disk, checkpoints."""
