"""Learners of learners: joined, or repaired where they fall short."""
