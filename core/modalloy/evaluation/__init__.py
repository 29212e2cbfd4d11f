"""Evaluation: what a composition answers, measured."""
