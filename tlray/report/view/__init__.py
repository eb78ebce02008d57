"""What the report says: from the files of a run to headline, plots and tables, free of HTML."""

from tlray.report.view.data_section import data
from tlray.report.view.head import headline
from tlray.report.view.plots import curves
from tlray.report.view.run_facts import changed, facts, time
from tlray.report.view.search_sections import baseline, cost, evidence
from tlray.report.view.trial_table import freeze_order, trials

__all__ = [
    "baseline",
    "changed",
    "cost",
    "curves",
    "data",
    "evidence",
    "facts",
    "freeze_order",
    "headline",
    "time",
    "trials",
]
