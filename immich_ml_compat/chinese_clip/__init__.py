"""Chinese-CLIP: official checkpoints turned into model folders, and what every such folder holds.

`vocabulary.txt` is data that others made; NOTICE says whose.
"""
