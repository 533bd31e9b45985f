"""Learners that compare embedded rows."""
