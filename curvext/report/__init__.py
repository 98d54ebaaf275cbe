"""A page on the curvature of one risk: measured here, written as HTML or JSON."""

from curvext.report.json_text import as_json
from curvext.report.measurements import Report, measure
from curvext.report.page import as_html

__all__ = ["Report", "as_html", "as_json", "measure"]
