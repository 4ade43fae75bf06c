"""`vcsoup compare`: finished runs on one scale.

`finished.py` reads them, `check.py` says whether and how they compare, `compare.py` computes
hypervolumes and `balanced.py` balanced soups, and `show.py` prints.
"""
