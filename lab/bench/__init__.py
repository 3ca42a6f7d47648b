"""This implementation and the direct way: `python -m lab.bench` (__main__.py)."""
