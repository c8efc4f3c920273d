"""Chinese-CLIP, from the official checkpoints."""
