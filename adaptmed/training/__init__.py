"""How anything is trained: Lightning's Trainer, checkpoints, optimiser, batches."""
