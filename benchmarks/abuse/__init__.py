"""Faults and abuse: what the service does when it is asked too much, too slowly, wrongly, or when a part of it dies."""
