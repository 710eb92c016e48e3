"""Plans of many trainings and evaluations, and what runs them."""
