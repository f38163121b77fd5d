"""Calibri."""
