"""Which models of the libraries can be transformed: a random sample, checked one by one."""

from tools.zoo.candidates import Sample
from tools.zoo.report import markdown_report, text_report
from tools.zoo.survey import survey

__all__ = ["Sample", "markdown_report", "survey", "text_report"]
