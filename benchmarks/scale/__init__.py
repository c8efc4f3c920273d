"""Many machines: how a Ray cluster of several nodes on one machine does, and what a larger one would do."""
