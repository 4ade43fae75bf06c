"""Fronts, intervals, hypervolumes and connectivity, as pure functions of rewards."""
