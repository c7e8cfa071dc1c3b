"""Security findings: what the scanners see in one text, without a model and without the network."""
