"""Heads: from embeddings to the logits of one task; probes, prompts, linear and two-layer heads."""
