"""Weights as files: which quantization is good enough and quick enough here, and what a text says of them."""
