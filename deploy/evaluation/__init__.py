"""`ddpo eval`: base against tuned from the same noise, on prompts of the training and on prompts that are new.

Consumes: a checkpoint. Produces: eval.csv, summary.json, grids and eval.html in a folder of their own.

    suites.py   which prompts            models.py   base and tuned, drawn by plain diffusers
    trial.py    one suite, one sampler   paired.py   differences and their intervals
    files.py    what is written          page.py, forest.py, sentences.py, rounding.py   the page
    evaluate.py the whole
"""

from deploy.evaluation.evaluate import Request, evaluate

__all__ = ["Request", "evaluate"]
