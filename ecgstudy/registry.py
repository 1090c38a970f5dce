"""What params files name: weightings, arms, encoders, data sets, attacks, corruptions.

Names are known without importing what stands behind them (torch, scikit-learn), so
that a params file is checked at once. A user's own are added by one decorator each.
"""

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Generic, TypeVar

from ecgstudy.errors import StudyError

T = TypeVar("T")


class Registry(dict[str, T], Generic[T]):
    """Things of one kind by name.

    Parameters
    ----------
    kind
        What error messages call one of them.
    modules
        Modules that register this package's own, separated by blanks; imported when
        one of these is first asked for.
    own
        Names of this package's own, separated by blanks.
    from_functions
        Whether one registers functions that make the things, as of arms.

    Attributes
    ----------
    derive
        Makes one that is not listed from its name (arms with suffixes).
    """

    def __init__(self, kind: str, modules: str, own: str, from_functions: bool = False):
        super().__init__()
        self.from_functions = from_functions
        self.kind, self.modules, self.own = kind, modules.split(), own.split()
        self.derive: Callable[[str], T] | None = None
        self.plugins: dict[str, str] = {}
        """Name → the plugin that registered it, as in `PLUGINS`."""

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that adds what it decorates, or what that makes, under `name`."""

        def add(thing: Any) -> Any:
            self[name] = thing() if self.from_functions else thing
            return thing

        return add

    def names(self) -> list[str]:
        """All names, this package's own first."""
        return list(dict.fromkeys([*self.own, *self]))

    def check(self, name: str) -> None:
        """Raise a `StudyError` that lists the known names unless `name` is one."""
        if name not in self.own and name not in self:
            known = ", ".join(self.names())
            raise StudyError(f"unknown {self.kind} {name!r}; known: {known}")

    def find(self, name: str) -> T:
        """What is registered as `name`; a `StudyError` if nothing is."""
        if name not in self:
            for module in self.modules:
                import_module(module)
        if name not in self and self.derive is not None:
            return self.derive(name)
        self.check(name)
        return self[name]


WEIGHTINGS: Registry = Registry(
    "weighting scheme",
    "ecgstudy.pretraining.weighting",
    "hard-negatives inferior-positives clinical-risk hard-positive-logits labels"
    " hard-positives leaked-local shuffled",
)
ARMS: Registry = Registry(
    "arm",
    "ecgstudy.pretraining.arms ecgstudy.pretraining.suffixes",
    "random supervised pgd-at trades mart features-lr features-tree features-forest"
    " simclr simclr-long supcon dclw clef clef-original rocl rocl-long acl advcl clae"
    " clae-supcon clae-hcl swaro claf dynacl deacl adv-supcon adv-supcon-labels"
    " adv-supcon-noise supcon-margin anchor ascl",
    from_functions=True,
)
ENCODERS: Registry = Registry(
    "encoder",
    "ecgstudy.models.backbones ecgstudy.models.released.adapter",
    "resnet1d xresnet1d cnn lstm vit1d pretrained",
)
DATASETS: Registry = Registry(
    "data set", "ecgstudy.datasets.prepare", "builtin mitdb ptbxl"
)
ATTACKS: Registry = Registry(
    "attack",
    "ecgstudy.attacks.named",
    "noise fgsm pgd-ce pgd-margin apgd-ce apgd-margin apgd-bce apgd-margin-even"
    " apgd-dlr apgd-dlr-targeted pgd-l2 apgd-l2 square sap band-low band-mid band-high"
    " universal label-free",
)
CORRUPTIONS: Registry = Registry(
    "corruption",
    "ecgstudy.attacks.corruptions",
    "baseline-wander muscle electrode-motion powerline lead-loss lead-swap",
)

REGISTRIES = (WEIGHTINGS, ARMS, ENCODERS, DATASETS, ATTACKS, CORRUPTIONS)

PLUGIN = "ecgstudy_plugin_"
"""What the names of plugins' modules begin with."""
PLUGINS: dict[str, str] = {}
"""Module of each plugin that was loaded → its file's name and a hash of its text."""


def load_plugins(files: str) -> None:
    """Run Python files that register your own parts, each once.

    Parameters
    ----------
    files
        Paths separated by the system's path separator (``:``). They come from the
        command line (``--plugin``, or `ECGSTUDY_PLUGINS` in the environment), or have
        the name of a params file beside them; a params file names none.

    Raises
    ------
    StudyError
        When a file is missing.
    """
    for file in filter(None, files.split(os.pathsep)):
        path = Path(file).resolve()
        if not path.is_file():
            raise StudyError(f"plugin {file}: no such file")
        _load_plugin(path)


def _load_plugin(path: Path) -> None:
    place = hashlib.sha256(bytes(path)).hexdigest()[:8]
    name = f"{PLUGIN}{path.stem}_{place}"
    if name in sys.modules:
        return
    if str(path.parent) not in sys.path:  # for helpers beside the plugin
        sys.path.append(str(path.parent))
    before = [dict(registry) for registry in REGISTRIES]
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader, origin=str(path))
    assert spec is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half of it must not pass for all of it
        raise
    text = b"".join(file.read_bytes() for file in plugin_files(path))
    PLUGINS[name] = f"{path.name} {hashlib.sha256(text).hexdigest()[:16]}"
    for registry, known in zip(REGISTRIES, before, strict=True):
        for added, thing in registry.items():
            if added not in registry.own and thing is not known.get(added):
                registry.plugins[added] = PLUGINS[name]


def plugin_files(path: Path) -> list[Path]:
    """A plugin and those files beside it that it imports, directly or not."""
    found = [path]
    for file in found:  # grows meanwhile
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            else:
                continue
            for name in imported:
                helper = path.with_name(f"{name.partition('.')[0]}.py")
                if helper.is_file() and helper not in found:
                    found.append(helper)
    return found
