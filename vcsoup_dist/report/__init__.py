"""Stage 6: the rewards of all soups compared, as plots, tables and one page.

`counts.py`, `pair_flow.py`, `answers.py`, `heldout.py`, `curves.py`, `costs.py`, `stage_times.py`
and `facts.py` gather what the stages left; `statistics/` turns rewards into a `records.summary`, as
pure functions; `answer_figures.py` and `lengths.py` say what these rewards hide; `plots/`,
`tables.py`, `answer_tables.py` and `page.py` show it, with the page's text in `templates/`.
"""
