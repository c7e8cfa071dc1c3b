"""One process per runtime and precision: it loads a model once and measures when asked to.

A request is one line of JSON on stdin, an answer one on stdout; `loop.py` says what they hold, and
`llama.mjs` speaks the same.
"""
