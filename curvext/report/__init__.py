"""A report on the curvature of one risk: measurements, and their HTML and JSON forms."""

from curvext.report.json_text import as_json
from curvext.report.measurements import Report, measure
from curvext.report.page import as_html

__all__ = ["Report", "as_html", "as_json", "measure"]
