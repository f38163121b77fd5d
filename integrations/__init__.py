"""Calibri in other tools; each folder is installed by copying it and needs nothing of Calibri."""
