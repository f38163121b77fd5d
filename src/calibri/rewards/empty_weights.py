"""Models built without drawing weights, which a checkpoint replaces at once."""

try:
    from transformers.initialization import no_init_weights
except ImportError:  # transformers 4 keeps it elsewhere
    from transformers.modeling_utils import no_init_weights

__all__ = ["no_init_weights"]
