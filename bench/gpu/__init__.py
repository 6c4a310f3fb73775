"""The fifteen-minute check of a GPU: is it right, is it fast, does it learn there. `python -m bench.gpu`.

docs/benchmarks.md has its table.
"""
