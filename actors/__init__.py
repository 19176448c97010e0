"""The actors. Each is a pure core with a thin shell; none imports another."""
