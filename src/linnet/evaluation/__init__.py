"""Measuring the graph that will serve: metrics, report, comparison with the champion, gate."""
