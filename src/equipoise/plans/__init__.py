"""Plans of many trainings and evaluations, and their execution."""
