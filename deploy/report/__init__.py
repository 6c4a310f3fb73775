"""The run report: what a run did, as one HTML page that opens offline, and as one picture for a README.

Consumes: a run folder, finished or not. Produces: report.html in it (`write_report`), or a PNG (`picture`), whole or
not at all. Waits for nothing.

    read.py    the run folder           images.py, curves.py, drift.py, account.py   the sections
    scale.py   numbers, axes            page.py, markup.py, style.py       the page, its pieces and CSS
    svg.py     pieces of a drawing      charts.py                          the curves and bars
    poster.py  the picture
"""

from deploy.report.page import write_report
from deploy.report.poster import picture

__all__ = ["picture", "write_report"]
