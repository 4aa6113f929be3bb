"""The commands of `accel-restore` other than training, one module each."""
