"""What stands between the gradient and the step: a teacher that follows, and gradients that wait for each other."""
