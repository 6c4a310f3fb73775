"""The paper: the types on the edges, one denoising step as a Gaussian, the objective, the main loop, the config.

Imports torch where it computes and never ray. What reads and checks a run file needs neither, so that a client can
check a run without loading a gigabyte of libraries.
"""

__version__ = "0.1.0"
