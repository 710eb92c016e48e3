"""The front of models between two ends, and the choice of one of them.

Two models of one architecture, a clean and a robust one, are the ends of a line of models: those
with the weights between theirs; with a third end they are the mixes of all three. Measured on
held-out images they are a front of trade-offs, from
which a model is picked after the training. ``record`` and ``barrier`` import no torch.
"""
