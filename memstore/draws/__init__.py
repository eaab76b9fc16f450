"""Draws of episodes: the laws, the pools that episodes are drawn from, and the batch.

Read the modules in this order:

- ``strategy``: the answer that a strategy gives. ``strategies``: the five strategies.
- ``pool``: the episodes that a strategy draws from. ``conditions``: who of them passes.
- ``weighted``, ``even`` and ``aged``: draws by weight, without weights, and by age, from the blocks.
- ``knowledge``: lists of ids that decide conditions on facts. ``groups``: draws of whole groups.
"""
