"""Side by side with peers. Every benchmark ends with one line of JSON."""
