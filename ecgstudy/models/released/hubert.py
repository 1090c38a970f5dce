"""HuBERT-ECG (Coppola et al. 2024) by the optional package `transformers`."""

from torch import Tensor, nn

from ecgstudy.errors import StudyError
from ecgstudy.models.released import Input, Released
from ecgstudy.models.released.net1d import LEADS

SIZES = {"small": (512, 8, 8, 2048), "base": (768, 12, 12, 3072)}
SIZES["large"] = (960, 16, 12, 3840)
"""Width of a token, layers, heads, width between the linear layers."""
FRONT = {
    "conv_dim": (512,) * 5,
    "conv_kernel": (10, 3, 3, 2, 2),
    "conv_stride": (4, 2, 2, 2, 2),
}
"""One token for 64 samples."""
STILL = {
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
}
"""Nothing random in training: masks and dropped layers draw from generators that no
checkpoint holds."""
ALIASES = (
    ("conv.weight_g", "conv.parametrizations.weight.original0"),
    ("conv.weight_v", "conv.parametrizations.weight.original1"),
)
"""Weight norm's lengths and directions, as older versions of torch call them."""


class Tokens(nn.Module):
    """All leads one after another as one signal → mean over tokens."""

    def __init__(self, hubert: nn.Module):
        super().__init__()
        self.hubert = hubert
        # Else it would mark our adapted ECGs, which are no leaves.
        hubert.feature_extractor._requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        return self.hubert(x.flatten(1)).last_hidden_state.mean(1)


def hubert_ecg(size: str = "base") -> Released:
    """HuBERT-ECG: masked prediction of clusters on 9.1 million 12-lead ECGs.

    Raises
    ------
    StudyError
        For an unknown size, or when `transformers` is not installed.
    """
    if size not in SIZES:
        raise StudyError(f"hubert_ecg has no size {size!r}; known: {', '.join(SIZES)}")
    try:
        import transformers  # optional, and slow to import
    except ImportError as error:
        raise StudyError(
            f"hubert_ecg needs the package transformers ({error}); "
            "`pip install -c requirements.lock -e '.[hubert]'` installs it"
        ) from error
    width, layers, heads, inner = SIZES[size]
    config = transformers.HubertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        **FRONT,
        **STILL,
    )
    hubert = transformers.HubertModel(config)
    unused = r"final_proj\..*|label_embedding\..*"
    takes = Input(LEADS, fs=100.0, samples=500, scale="range")
    net = Tokens(hubert)
    return Released(net, width, takes, hubert, aliases=ALIASES, unused=unused)
