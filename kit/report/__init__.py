"""What came out of a study: its numbers with intervals over training seeds, differences, costs, figures; as a notebook.

`report.ipynb` here is the notebook that a study without a report of its own gets: it can be opened, read and changed.
"""

from kit.report.figures import curves_of, plot_arms, plot_last
from kit.report.make import make_report
from kit.report.scores import Results, at_best, at_end, read_results, study_folder
from kit.report.spent import read_costs, study_costs
from kit.report.tables import costs_table, differences_table, scores_table

__all__ = [
    "Results", "at_best", "at_end", "costs_table", "curves_of", "differences_table", "make_report", "plot_arms",
    "plot_last", "read_costs", "read_results", "scores_table", "study_costs", "study_folder",
]  # fmt: skip
