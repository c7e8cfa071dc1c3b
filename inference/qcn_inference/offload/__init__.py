"""Experts that do not fit on the GPU: in host memory, brought to slots on the GPU as needed."""
