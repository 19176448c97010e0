"""The commands about sessions of a running server, and whether it can serve."""
