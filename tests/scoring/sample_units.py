"""Units of the shipped pipeline at two steps, a few images each."""

from calibri.config import RunConfig, validate_config
from calibri.prompts.files import make_prompts
from calibri.results import Fidelity
from calibri.sampling.sampler import Noise
from calibri.scoring.units import cut, make_unit

NOISES = [
    Noise(prompt, 5 + i)
    for i, prompt in enumerate(make_prompts(["a red circle", "a blue square", "a green cross"]))
]


CHEAPER = ("height", "width", "max_sequence_length", "cache_interval")


def configured(workers: int, **rewards) -> RunConfig:
    return validate_config(
        {
            "device": "cpu",
            "sampling": {"num_inference_steps": 2, "batch_size": 2, "workers": workers},
            "rewards": {"held_out": ["shapes-judge"]} | rewards,
        }
    )


def at(steps, **fidelity):
    return Fidelity(num_inference_steps=steps, **fidelity)


def units_of(candidates, steps=2):
    rows = [(c, noise) for c in range(len(candidates)) for noise in NOISES]
    names = ("shapes", "diversity", "features")
    return list(enumerate(make_unit(candidates, part, names, at(steps)) for part in cut(rows, 2)))
