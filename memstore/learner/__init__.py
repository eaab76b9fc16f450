"""Online learning on top of the memory: examples, model, learner, and the training job."""

from memstore.learner.config import PRESETS, OnlineLearnerConfig
from memstore.learner.data import Dataset, load_dataset
from memstore.learner.example import OnlineExample
from memstore.learner.learner import MemoryOnlineLearner
from memstore.learner.model import MLP, Model
from memstore.learner.stats import LearnResult, OnlineLearnerStats
from memstore.learner.train import TrainProgress, TrainResult, run_baseline, run_training, training_config

__all__ = [
    "MLP",
    "PRESETS",
    "Dataset",
    "LearnResult",
    "MemoryOnlineLearner",
    "Model",
    "OnlineExample",
    "OnlineLearnerConfig",
    "OnlineLearnerStats",
    "TrainProgress",
    "TrainResult",
    "load_dataset",
    "run_baseline",
    "run_training",
    "training_config",
]
