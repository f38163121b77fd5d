"""The command line: one file per command. Torch is imported only while a command runs."""
