"""Synthetic degradations that make the input from gt: the operations, and the pipeline that applies them."""
