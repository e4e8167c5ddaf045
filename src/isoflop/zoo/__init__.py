"""Which models of the libraries can be transformed: a random sample, checked one by one."""

from isoflop.zoo.candidates import Sample
from isoflop.zoo.report import markdown_report, text_report
from isoflop.zoo.survey import survey

__all__ = ["Sample", "markdown_report", "survey", "text_report"]
