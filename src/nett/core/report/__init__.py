"""The report: one self-contained HTML page with pictures, for people; the receipt beside it is for programs."""

from __future__ import annotations

from nett.core.report.page import Page
from nett.core.report.provenance import add_edges
from nett.core.report.receipt import receipt_page
from nett.core.report.words import Code

__all__ = ["Code", "Page", "add_edges", "receipt_page"]
