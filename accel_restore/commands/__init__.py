"""The commands of `accel-restore` beside training, one module each."""
