"""What needs an image and a text together: answers to questions, and classes of pairs.

The fusion reads the pair, a head of two layers reads its joint vector. Beside every result stand the same model with
the image of another patient, and heads of the same size on frozen features: of both sides, and of the text alone.
"""
