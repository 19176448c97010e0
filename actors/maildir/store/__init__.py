"""The maildir store: a user's mailbox over plain descriptors."""
