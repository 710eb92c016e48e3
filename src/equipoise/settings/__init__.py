"""What to train: objectives and methods by name, recipes, presets."""
