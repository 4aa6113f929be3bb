"""From an option file of BasicSR, of a trainer made from it, or of traiNNer-redux to a configuration.

Every key of the file is carried over, or written into the result as a comment with the reason.
"""
