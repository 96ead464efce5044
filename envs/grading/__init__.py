"""Grading of what an agent made by running code: in other boxes than the agent's, by data alone."""
