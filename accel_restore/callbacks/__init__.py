"""What observes the loop, one file per callback."""
