"""A run folder to one self-contained HTML page."""

from calibri.reporting.page import render_report, report

__all__ = ["render_report", "report"]
