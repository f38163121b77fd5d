"""Tests that packages which extend Calibri can run on what they add."""
