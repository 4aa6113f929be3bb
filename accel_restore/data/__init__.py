"""Images: how pairs are found, decoded, cropped, augmented, degraded and loaded."""
