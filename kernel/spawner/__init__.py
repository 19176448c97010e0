"""The spawner, which forks maildir actors from a warm image."""
