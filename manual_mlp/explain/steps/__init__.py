"""The steps of the explanation, each a function from a Story to a Step."""
