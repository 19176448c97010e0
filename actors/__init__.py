"""Hold the actors. Each has a pure core and a thin shell; none imports another."""
