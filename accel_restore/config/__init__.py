"""The configuration: its keys, and how YAML and the command line set them; nothing heavy is imported."""
