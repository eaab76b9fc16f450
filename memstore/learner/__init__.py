"""Online learning on top of the memory: examples, models, learner, and the training job."""

from memstore.learner.config import PRESETS, OnlineLearnerConfig
from memstore.learner.curriculum import CurriculumConfig, CurriculumState
from memstore.learner.data import Dataset, load_dataset
from memstore.learner.ewc import EWC, EWCStats
from memstore.learner.example import OnlineExample
from memstore.learner.learner import MemoryOnlineLearner
from memstore.learner.mlp import MLP
from memstore.learner.model import Model, Penalty
from memstore.learner.optimizer import Optimizer
from memstore.learner.protocol import OnlineLearner
from memstore.learner.scheduler import (
    BatchCount,
    BufferThreshold,
    ConsolidationScheduler,
    ConsolidationTrigger,
    ExampleCount,
    LossThreshold,
    Manual,
    SchedulerState,
)
from memstore.learner.state import Progress
from memstore.learner.stats import LearnResult, OnlineLearnerStats
from memstore.learner.torch_model import TorchModel
from memstore.learner.train import TrainProgress, TrainResult, run_baseline, run_training, training_config

__all__ = [
    "EWC",
    "MLP",
    "PRESETS",
    "BatchCount",
    "BufferThreshold",
    "ConsolidationScheduler",
    "ConsolidationTrigger",
    "CurriculumConfig",
    "CurriculumState",
    "Dataset",
    "EWCStats",
    "ExampleCount",
    "LearnResult",
    "LossThreshold",
    "Manual",
    "MemoryOnlineLearner",
    "Model",
    "OnlineExample",
    "OnlineLearner",
    "OnlineLearnerConfig",
    "OnlineLearnerStats",
    "Optimizer",
    "Penalty",
    "Progress",
    "SchedulerState",
    "TorchModel",
    "TrainProgress",
    "TrainResult",
    "load_dataset",
    "run_baseline",
    "run_training",
    "training_config",
]
