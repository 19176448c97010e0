"""What the kernel decides, sans I/O: leases, deliveries, misbehaviour."""
