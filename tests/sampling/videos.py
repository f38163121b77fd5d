"""Tiny video pipelines of real classes, whose decoders double the frames as theirs do."""

import torch

from tests.sampling.pipelines import CASES, Decoder

_BY_NAME = {case.id: case for case in CASES}


class LatentDecoder(Decoder):
    """Stands for LTX's, which keeps its statistics beside the configuration."""

    shrink = 32
    spatial_compression_ratio = 32
    temporal_compression_ratio = 8
    latents_mean = torch.zeros(1)
    latents_std = torch.ones(1)

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), dict(scaling_factor=1.0, timestep_conditioning=False))()

    def decode(self, latents, timestep=None, return_dict=False):
        return super().decode(latents)


class WanDecoder(Decoder):
    """Stands for Wan's."""

    shrink = 8

    def __init__(self):
        super().__init__()
        known = dict(scale_factor_temporal=4, scale_factor_spatial=8, z_dim=1)
        self.config = type("Config", (), known | dict(latents_mean=[0.0], latents_std=[1.0]))()


VIDEOS = {"Wan": (WanDecoder, 17), "LTX": (LatentDecoder, 33)}


def video_pipeline(name):
    return _BY_NAME[name].build(vae=VIDEOS[name][0]())


def video_size(name):
    call = _BY_NAME[name].call
    return dict(height=call["height"], width=call["width"], num_frames=VIDEOS[name][1])
