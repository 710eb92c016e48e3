"""Cards: a document on a model's evaluations that strangers can check, with its examples.

No torch is imported here: :mod:`equipoise.jobs.card` writes cards of run folders, and
:mod:`equipoise.jobs.verify_card` judges the examples of a card again.
"""
