"""One file a server: the same encoder and the same picture behind each framework, written as its manual shows."""
