"""Who scores: one reward per file, the worker that guards it, the pools of workers."""
