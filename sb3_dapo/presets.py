"""Settings that go together, as one word: ``DAPO("MlpPolicy", env, **presets.scarce(env))``."""

from collections.abc import Callable
from math import gcd
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import LinearSchedule

from sb3_dapo.arguments import SCHEDULED, check
from sb3_dapo.controllers import AdaptiveController, Controller, DualController

Schedule = Callable[[float], float]

# The last two rollouts are kept, and the divergence holds the policy near those that acted
_REUSE: dict[str, Any] = {"n_rollouts": 2, "advantage": "vtrace_gae"}
_DISCRETE: dict[str, Any] = {**_REUSE, "n_envs": 8, "n_steps": 128, "n_epochs": 4}

# By kind of problem, written as an entry of a hyperparameter file. docs/settings.md says what each was measured on
SCARCE: dict[str, dict[str, Any]] = {
    "discrete": {
        **_DISCRETE,
        "policy_loss": "plain",
        "batch_size": 256,
        "learning_rate": "lin_0.005",
        "gae_lambda": 0.8,
        "ent_coef": 0.005,
        "divergence_coef": 1.0,
    },
    "atari": {
        **_DISCRETE,
        # A divergence as weak as this does not hold the policy in every game, and the clip around both does
        "policy_loss": "clip_augmented",
        "clip_range": 0.2,
        "batch_size": 64,
        "learning_rate": "lin_0.0005",
        "gae_lambda": 0.9,
        "ent_coef": 0.01,
        "divergence_coef": 0.3,
    },
    "continuous": {
        **_REUSE,
        # The divergence is a sum over action dimensions. The clip around it and the advantage bounds each step, however
        # many there are, and bears a higher learning rate
        "policy_loss": "clip_augmented",
        "clip_range": 0.3,
        "divergence_coef": "auto",
        "normalize": True,
        "n_envs": 4,
        "n_steps": 512,
        "batch_size": 64,
        "n_epochs": 5,
        "learning_rate": "lin_0.0016",
        "gae_lambda": 0.9,
    },
}
PRESETS = {"scarce": SCARCE}


def scarce(env: GymEnv | str) -> dict[str, Any]:
    """
    Arguments of DAPO for scarce data: old rollouts are used again, each transition 8 to 10 times.

    The kinds are ``"discrete"`` (discrete actions, small networks), ``"atari"`` (images and discrete actions) and
    ``"continuous"`` (continuous actions; wrap the environments in ``VecNormalize``).

    :param env: the environment or environments, which say what kind they are of and how many steps each makes in a
        rollout; or a kind, for as many environments as it was measured with: 8, 8 and 4
    :return: arguments by name, to which others can be added
    :raises ValueError: if `env` is text that names no kind
    """
    kind = env if isinstance(env, str) else kind_of(env)
    check("env", env, kind in SCARCE, f"an environment or one of {', '.join(SCARCE)}")
    settings = {name: value for name, value in SCARCE[kind].items() if name != "normalize"}
    n_transitions = settings["n_steps"] * settings.pop("n_envs")
    if not isinstance(env, str):
        n_envs = getattr(env, "num_envs", 1)
        # Rollouts consist of whole minibatches
        unit = settings["batch_size"] // gcd(settings["batch_size"], n_envs)
        settings["n_steps"] = max(n_transitions // n_envs // unit, 1) * unit
    schedules = {name: settings[name] for name in SCHEDULED if isinstance(settings.get(name), str)}
    return settings | {name: parse_schedule(name, text) for name, text in schedules.items()}


def kind_of(env: GymEnv) -> str:
    """
    :param env: an environment, or several
    :return: the kind of problem that it is: a key of :data:`SCARCE`
    """
    if isinstance(env.action_space, spaces.Box):
        return "continuous"
    return "atari" if is_image_space(env.observation_space, check_channels=False) else "discrete"


def parse_schedule(
    name: str, text: str, linear: Callable[[float], Schedule] = lambda start: LinearSchedule(start, 0.0, 1.0)
) -> Schedule | Controller | str:
    """
    :param name: of an argument that may be a schedule
    :param text: ``lin_x``: falls from x to 0; for ``divergence_coef`` also ``adaptive_x`` and ``dual_x``, with the
        target x, and ``auto``
    :param linear: makes the schedule that falls to 0
    :return: what the text stands for
    :raises ValueError: if it stands for nothing
    """
    kinds: dict[str, Callable[[float], Schedule | Controller]] = {"lin": linear}
    words = []
    if name == "divergence_coef":
        kinds |= {"adaptive": AdaptiveController, "dual": DualController}
        words = ["auto"]  # DAPO knows it
    if text in words:
        return text
    kind, _, number = text.partition("_")
    try:
        return kinds[kind](float(number))
    except (KeyError, ValueError) as error:
        allowed = ", ".join([*(f"{kind}_x" for kind in kinds), *words])
        hint = "YAML reads 1e-3 as text: write 0.001 or !!float 1e-3"
        raise ValueError(f"`{name}` must be a number or {allowed}, got {text!r} ({hint})") from error
