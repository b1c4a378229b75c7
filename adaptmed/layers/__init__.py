"""Building blocks of networks: attention, pooling, position embeddings. No policy, no paper."""
