"""What the machine and the control groups allow, and when they run short."""
