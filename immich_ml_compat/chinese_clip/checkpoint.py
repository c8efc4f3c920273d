"""Official checkpoints."""


class CheckpointError(Exception):
    """A file that is no usable checkpoint; one line with the file, the cause and the remedy."""
