"""Estimates and measurements of what a training costs."""
