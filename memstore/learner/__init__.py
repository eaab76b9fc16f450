"""Online learning on top of the memory: examples, models, the learner, and the training job."""

from memstore.learner.config import PRESETS, OnlineLearnerConfig
from memstore.learner.curriculum import CurriculumConfig, CurriculumState
from memstore.learner.example import OnlineExample
from memstore.learner.job.data import Dataset, load_dataset
from memstore.learner.job.train import TrainProgress, TrainResult, run_baseline, run_training, training_config
from memstore.learner.learner import MemoryOnlineLearner
from memstore.learner.models.ewc import EWC, EWCStats
from memstore.learner.models.mlp import MLP
from memstore.learner.models.model import Model, Penalty
from memstore.learner.models.optimizer import Optimizer
from memstore.learner.models.torch_model import TorchModel
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
