"""The models that are served. In: bundle folders. Out: open models by name, replaced whole by a reload."""
