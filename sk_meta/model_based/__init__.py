"""Learners whose network itself turns a support set into predictions."""
