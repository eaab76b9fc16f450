"""Draws of episodes: the laws, the pools that episodes are drawn from, and the batch.

Read the modules in this order:

- ``strategy``: the answer that a strategy gives. ``strategies``: the five strategies.
- ``pool``: the questions that a strategy may ask about the episodes that it draws from. ``pools``: the answers of the
  whole buffer, of chosen strata, and of the episodes that pass another condition.
- ``candidates``: the proposals of strata and of ages. ``rejection``: the way from candidates to an exact draw.
- ``population`` and ``knowledge``: lists of the episodes that pass a condition, and the way that they stay current.
"""
