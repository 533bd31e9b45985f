"""Learners without an inner loop in training: joint training, and what it transfers."""
