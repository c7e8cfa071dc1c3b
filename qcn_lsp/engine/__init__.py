"""The link to the engine: finding or starting it, and asking it, over HTTP only."""
