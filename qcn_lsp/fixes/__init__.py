"""Fixes of security findings, each with its evidence: what is tried, judged, and shown."""
