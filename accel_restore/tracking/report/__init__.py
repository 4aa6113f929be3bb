"""report.html: one page per run, built from the files in the run's folder."""
