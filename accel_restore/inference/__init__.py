"""Trained weights in use: restore images and files, score them, export them, describe them in a model card."""
