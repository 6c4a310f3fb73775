"""Who samples: the Sampler, the sources of prompts, the pools of samplers."""
