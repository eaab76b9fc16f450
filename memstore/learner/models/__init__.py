"""The models that a learner can train, and elastic weight consolidation."""
