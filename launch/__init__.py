"""Starts jobs on other machines, monitors them and deletes what they cost."""
