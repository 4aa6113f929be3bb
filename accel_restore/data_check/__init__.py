"""Checks of training data: measurements of each pair, the findings about a set, near duplicates, the contact sheet."""
