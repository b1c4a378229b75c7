"""Tables as the user writes them: files of text cells, labels, and columns known by their names."""
