"""Studies of answers to questions: arms × fractions of the pictures × seeds."""
