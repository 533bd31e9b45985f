"""Smaller learners: pruned, quantised, distilled, selected."""
