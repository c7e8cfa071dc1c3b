"""The engine as a service: HTTP over a Unix socket or loopback TCP, in a process of its own.

No module here imports torch before the model's thread does.
"""
