"""Launches that begin while the one in front of them still runs. See `triton.py`."""
