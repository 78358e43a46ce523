"""zkv-client."""
