"""Bidirectional GANs (Donahue, Krähenbühl, Darrell, arXiv:1605.09782): the representation AFV is compared with."""
