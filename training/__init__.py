"""Training: recipes and the demo checkpoint."""
