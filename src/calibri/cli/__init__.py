"""The command line: one file per command, torch imported only while a command runs."""
