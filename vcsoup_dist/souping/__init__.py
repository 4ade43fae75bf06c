"""Stage 4, souping: weight grids, the weighted sum, and the streaming merge of policies."""
