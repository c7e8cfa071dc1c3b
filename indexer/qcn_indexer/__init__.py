"""The workspace as the model may see it: what is left out, what stands in front of a completion."""
