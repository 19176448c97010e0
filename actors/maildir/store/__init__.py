"""Read and write a user's mailbox over directory descriptors."""
