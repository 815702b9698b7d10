"""Costs of a training: operations, communication, time and memory."""
