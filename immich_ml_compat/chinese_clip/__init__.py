"""Chinese-CLIP: an official checkpoint turned into the model's folder."""
