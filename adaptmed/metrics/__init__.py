"""How predictions and embeddings are judged: numpy in, numpy out; each metric has a weighted form for the bootstrap."""
