"""Statistics, distances and the composite score."""
