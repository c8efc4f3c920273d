"""Chinese-CLIP: an official checkpoint (`clip_cn_*.pt`) turned into a model's folder, without torch.

containers.py → unpickling.py → checkpoint.py, tensors.py   the file → what it says → its tensors, read one by one
architectures.py  weights.py                                what the five names fix; tensors by name and shape
vision.py  text.py  layers.py → graph.py                    the two towers → ONNX files
configuration.py  vocabulary.txt                            the tokenizer and the other small files
conversion.py                                               all of it together
"""
