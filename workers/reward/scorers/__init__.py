"""Score one sample in a scoring process: the scorers that ship."""
