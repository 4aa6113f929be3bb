"""Helpers without a subject of their own: files, globbing, imports, random numbers, memory, signals, redaction."""
