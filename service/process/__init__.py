"""The process. In: a command line and signals. Out: one or several workers that start, end and are replaced."""
