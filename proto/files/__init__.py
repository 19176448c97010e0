"""Formats of files: tables, popcache, maildir names, UIDL lists, certificates. Pure."""
