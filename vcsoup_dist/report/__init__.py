"""Stage 6: the rewards of all soups compared, as plots, tables and one page.

`counts.py`, `answers.py`, `heldout.py` and `facts.py` gather what the stages left; `statistics/`
turns rewards into a `records.summary`, as pure functions; `plots/`, `tables.py` and `page.py` show
it, with the page's text in `templates/`.
"""
