"""Executing notebooks with parameters, one or a grid of them, strictly.

    parameters ranges in_notebook   what a notebook can be given: names, types, ranges
    notebook engine                 one notebook, executed through papermill
    file strict_yaml                study.yaml: which runs there are
    worker lock record              the process of a run: alone, and what it leaves for the next
    execute local progress          many of them, W at a time, watched
    plan results command            what they will take, what came out, and the command line

A study is a folder with a `study.yaml`. Its run directories and executed notebooks go to `runs/`, its numbers to
`results.csv`. Every notebook of the kit imports this package: it is to stay light.
"""

from kit.study.in_notebook import check_parameters
from kit.study.notebook import execute_notebook
from kit.study.parameters import ParameterError, checked_parameters, notebook_parameters, parse_value

__all__ = [
    "ParameterError", "check_parameters", "checked_parameters", "execute_notebook", "notebook_parameters",
    "parse_value",
]  # fmt: skip
