"""Who is drawn: the laws, the pools that episodes are drawn from, and the batch.

Read in this order. ``strategy``: what a strategy answers. ``strategies``: the five of them. ``pool``: what a strategy
may ask of the episodes that it draws from. ``pools``: how the whole buffer, chosen strata, and the episodes behind
another condition answer that. ``candidates``: what strata and ages propose. ``rejection``: how candidates become an
exact draw. ``population`` and ``knowledge``: lists of the episodes that pass a condition, and how they stay current.
"""
