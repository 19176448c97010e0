"""Run the kernel's process: make channels, handle messages and process ends, carry out decisions."""
