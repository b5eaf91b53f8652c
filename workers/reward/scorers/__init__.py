"""Score one finished trajectory: the rewards that ship."""
