"""Which part of a model lies where on this machine, and how fast that can be: see `plan.py`."""
