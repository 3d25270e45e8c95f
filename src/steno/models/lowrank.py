"""Model folders whose linear layers are stored as factors (`weights.lowrank`), opened without running code from them.

Such a folder names itself in config.json: `model_type` is `steno_lowrank_<base>`, and `steno_lowrank` holds the base
model type, the rank of each factored layer and whether layers gained a bias. Other programs read it through its own
modeling file (`trust_remote_code=True`); steno knows the form and needs no trust.
"""

from typing import TYPE_CHECKING, cast

from steno.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

KEY = "steno_lowrank"


def is_low_rank(config: dict[str, object]) -> bool:
    """Whether config.json describes a folder of this form."""
    return KEY in config


def resolve(config: dict[str, object]) -> "tuple[PretrainedConfig, type[PreTrainedModel]]":
    """The configuration and the class whose `from_pretrained(folder, config=...)` loads the folder.

    Raises ModelError where the record is damaged or the base architecture is unknown.
    """
    from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from ._factors import install

    try:
        record = cast(dict[str, object], config[KEY])
        ranks, center = cast(dict[str, int], record["ranks"]), bool(record["center"])
        plain = {k: v for k, v in config.items() if k not in ("model_type", "auto_map", "architectures")}
        settings = cast(PretrainedConfig, AutoConfig.for_model(str(record["base"]), **plain))
        base = cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"config.json: its {KEY} record cannot be used ({error}). Compress the model again.") from None

    def build(self: PreTrainedModel, config: PretrainedConfig) -> None:
        base.__init__(self, config)
        install(self, ranks, center)

    return settings, type(f"LowRank{base.__name__}", (base,), {"__init__": build, "config_class": type(settings)})
