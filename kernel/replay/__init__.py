"""Replay: play a recorded actor again, and compare what it says."""
