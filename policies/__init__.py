"""Policies: token ids in, token ids and log-probabilities out; knows no task."""
