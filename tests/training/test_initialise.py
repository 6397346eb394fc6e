"""Runs that start from other weights, and runs of the original that go on here."""

import json

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from aa_flax import InputError, create_model, load_torch_state_dict, to_torch_state_dict
from aa_flax.models.registry import BASELINES
from aa_flax.models.resnet import BasicBlock, ResNet
from aa_flax.sharding import data_mesh, put_batch
from aa_flax.training import loop
from aa_flax.training.initialise import init_from, model_from_workdir
from aa_flax.training.optimizer import make_optimizer, make_schedule
from aa_flax.training.state import init_state, make_train_step, update_model
from aa_flax.training.torch_resume import read_torch_run
from aa_flax.weights.files import named_weights, save_weights
from aa_flax.weights.torch_files import write_torch_file
from configs import imagenet
from tests.photos import photo_crops
from tests.reference import randomised
from tests.training.tiny import tiny_config
