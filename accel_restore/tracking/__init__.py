"""Records of a run: files, console, W&B, TensorBoard, pictures, and the report page."""
