"""One model of a run to be used: which, in a folder of its own, with a card."""
