"""Fork maildir actors from a warm image: the spawner."""
