"""What all recipes share, and their values for ResNets: 90 epochs, batch 256, steps by ten.

    python train.py --config configs/imagenet.py --config.model=resnet152_lpf4 \
        --config.data.path=ILSVRC2012 --workdir runs/resnet152_lpf4

trains any net of `aa_flax.list_models()`; the published recipes have files of their own.
"""

from ml_collections import ConfigDict

from aa_flax.config import Config
from aa_flax.errors import InputError


def get_config() -> Config:
    return ConfigDict(
        {
            "name": "imagenet",  # the run's folder is runs/<name>, unless --workdir is given
            "model": "resnet50_lpf4",
            "seed": 0,
            "dtype": "float32",  # of the computation; parameters and statistics are float32
            "num_epochs": 90,
            "batch_size": 256,  # over all devices of all hosts
            "max_steps_per_epoch": 0,  # 0: all
            # "": random; "pretrained"; "baseline": the published weights of the net without
            # antialiasing; a file (.safetensors, .pth, .pth.tar); or the folder of a run
            "init_from": "",
            "remat": False,  # True: less memory, more time
            "profile": False,
            "batch_stat_groups": 1,
            "optimizer": {
                "schedule": "step",  # or "cosine", "one_cycle"
                "learning_rate": 0.1,
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "step_epochs": 30,  # schedule "step": times step_factor every step_epochs
                "step_factor": 0.1,
                "per_step": False,  # True: the rate moves with each step, not with each epoch
                "warmup_epochs": 0,
                "decay_norm_and_bias": True,
                "scale_lr": False,  # True: learning_rate is for 256 images, and scales with them
                "label_smoothing": 0.0,
                "accumulation_steps": 1,
                "accumulate": "mean",  # or "sum", as the original does
            },
            "data": {
                "name": "folder",  # or "digits", "tfds:<dataset>[:<version>]"
                "path": "",  # the folder that holds train/ and val/; TFDS: its data_dir
                "resize_size": 256,  # pixels of the shorter side, before cropping; 0: no resizing
                "image_size": 256,  # the centre that shifted crops are cut from
                "crop_size": 224,  # what the net sees
                "augmentation": "random_resized_crop",  # or "center_crop", "random_shift"
                "flip": True,  # training images are mirrored half of the time
                "on_error": "stop",  # "skip": go on without images that cannot be read
                "class_order": "",  # or "imagenet", "sorted", a file: aa_flax/data/classes.py
                "num_workers": 0,  # threads or processes that read; 0: one a CPU core
                "worker_type": "thread",  # or "process"
            },
            "eval": {
                "batch_size": 256,
                "shift_range": 32,  # crops at offsets 0..31 on each axis
                "passes": 5,  # pairs of crops for each image
                "seed": 0,
            },
            "log": {"tensorboard": False, "wandb": False},
            "checkpoint": {"keep_every": 10},  # epochs
        }
    )


def recipe(model: str, variant: str = "") -> Config:
    """The base for a net; `variant` "baseline" takes the same net without antialiasing."""
    if variant not in ("", "baseline"):
        raise InputError(f"unknown variant {variant!r} of a recipe; known: baseline")
    config = get_config()
    config.model = model.partition("_lpf")[0] if variant else model
    config.name = config.model
    return config
