"""The page: one HTML file that opens offline and shows what a run did, with every image inside it.

Consumes: a run folder, finished or not. Produces: report.html in it. Waits for nothing; called during a run it shows
the steps logged so far.
"""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template

from deploy.folder import write
from deploy.report import account, curves, drift, images
from deploy.report.markup import section
from deploy.report.read import Run, read_run
from deploy.report.style import page_style

SECTIONS: dict[str, Callable[[Run], str]] = {
    "Before and after": images.before_after,
    "Reward": curves.reward,
    "Over-optimisation": drift.section,
    "Images through training": images.film,
    "Policy updates": curves.updates,
    "Noise floor": curves.noise,
    "Time": account.time,
    "Masked images": account.masked,
    "Command and environment": account.reproduce,
    "Config": account.config,
}


def write_report(run: Path) -> Path:
    """Write report.html into a run folder and return its path; an older one stays until the new one is whole."""
    path = run / "report.html"
    write(path, page(read_run(run)))
    return path


def page(run: Run) -> str:
    """The whole page as HTML."""
    sections = [section(heading, draw(run)) for heading, draw in SECTIONS.items()]
    cut_short = f"<p>Cut short and left out: {', '.join(run.cut_short)}.</p>" if run.cut_short else ""
    return document("run report", run.config["name"], account.headline(run), sections, FOOTER + cut_short)


def document(kind: str, title: str, headline: str, sections: Sequence[str], footer: str) -> str:
    """A page of this look, which opens offline; the title is plain text, everything else ready HTML."""
    return PAGE.substitute(
        kind=kind, title=escape(title), style=page_style(), headline=headline, sections="\n".join(sections),
        footer=footer,
    )


FOOTER = """<p>The reward curve is drawn as in Black et al. 2023, “Training Diffusion Models with Reinforcement
Learning” (<a href="https://arxiv.org/abs/2305.13301">arXiv 2305.13301</a>): against reward queries,
the number of images scored, because that is what methods are compared by. All numbers come from
this run's own files.</p>
"""
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title · ddpo $kind</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<p class="kicker">ddpo $kind</p>
<h1>$title</h1>
$headline
</header>
$sections
<footer>
$footer
</footer>
</main>
</body>
</html>
""")
