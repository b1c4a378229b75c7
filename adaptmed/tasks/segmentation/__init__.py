"""Segmentation: a small decoder on frozen features, trained on masks and judged in the geometry of the images.

What a bank allows: its Tokens and taps are those of the image as it was, so that training from a bank changes no image.
Images and masks are changed together, at random, only where the encoder runs in the loop (`adaptmed finetune --lora`).
"""
