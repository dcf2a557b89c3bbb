"""What is run: the suites of environments, their regimes, the algorithms and their hyperparameters."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from itertools import chain, product
from pathlib import Path
from typing import Any

import yaml

from sb3_dapo.atari_scores import ATARI_SCORES

MINATAR_CNN = "sb3_dapo.minatar.MinAtarCnn"
TUNED = Path(__file__).parent / "hyperparams"


@dataclass(frozen=True)
class Regime:
    """
    :param timesteps: environment steps: a number, one per environment, or None for the Zoo's
    :param uses: how often each transition is used, None for the Zoo's
    :param tuned: whether the algorithms have the hyperparameters that they were tuned to
    """

    timesteps: int | Mapping[str, int] | None = None
    uses: int | None = None
    tuned: bool = True


@dataclass(frozen=True)
class Suite:
    """
    :param scores: per environment the scores that count as 0 and as 1
    :param normalization: what these scores are
    :param regimes: the regimes by name
    :param tuning_envs: the environments that hyperparameters are tuned on
    :param ablation_envs: the environments of the ablations
    :param learning_rates: the lowest and the highest learning rate that is tried
    :param last_trials: hyperparameters that every algorithm tries at the end of tuning, as far as it has them: what a
        first search found good, so that it matters less which algorithm was lucky to come near it
    :param base: hyperparameters where the Zoo has none, or one for each environment, by name of the class in the Zoo
    :param of_env: what belongs to an environment, by name, besides
    :param of_algorithm: what an algorithm has in this suite before tuning, by name
    :param lambdas: the values of lambda that are tried
    :param entropies: the lowest and the highest entropy bonus that is tried, None for none
    :param only_tuning: environments that nothing but tuning is run on
    :param final_games: whole games that are played after training, whose mean is the final score; 0 for none
    :param has_published: whether algorithms are run as published too
    :param ablations: by title the algorithms of each ablation
    """

    scores: Mapping[str, tuple[float, float]]
    normalization: str
    regimes: Mapping[str, Regime]
    tuning_envs: tuple[str, str]
    ablation_envs: tuple[str, ...]
    learning_rates: tuple[float, float] = (1e-4, 3e-3)
    last_trials: tuple[Mapping[str, Any], ...] = ()
    base: Mapping[str, Mapping[str, Any]] | None = None
    of_env: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    of_algorithm: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lambdas: tuple[float, ...] = (0.6, 0.8, 0.9, 0.95, 0.98)
    entropies: tuple[float, float] | None = (1e-3, 5e-2)
    only_tuning: tuple[str, ...] = ()
    final_games: int = 0
    has_published: bool = False
    ablations: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def envs(self) -> list[str]:
        """The environments that results are of."""
        return [env for env in self.scores if env not in self.only_tuning]


@dataclass(frozen=True)
class Algorithm:
    """
    :param zoo_name: name of the class in the Zoo
    :param settings: hyperparameters that make the algorithm what it is, the same in every suite
    :param label: name in tables and figures
    :param color: colour in figures
    :param family: "PPO" or "DAPO", of whose variants the best are compared, empty for what is neither
    :param tuned_as: the algorithm whose tuned values it has, as far as it has none and the settings leave them open
    :param published: whether it is run as published, in continuous control: with the Zoo's settings for each
        environment, or those of its authors. Neither the uses of a regime nor tuning apply
    """

    zoo_name: str
    settings: Mapping[str, Any]
    label: str
    color: str
    family: str = ""
    tuned_as: str = ""
    published: bool = False


def _regimes(plentiful: int | None, scarce: int | Mapping[str, int], uses: int = 8) -> dict[str, Regime]:
    return {
        "plentiful": Regime(plentiful),
        "scarce": Regime(scarce, uses=uses),
        "scarce16": Regime(scarce, uses=16),
        "scarce32": Regime(scarce, uses=32),
        "untuned": Regime(scarce, uses=uses, tuned=False),
    }


# Names of the regimes, the same in every suite
REGIMES = list(_regimes(None, 0))


# The games of every comparison at 100,000 steps, since Kaiser et al. 2019 (https://arxiv.org/abs/1903.00374)
ATARI_100K = (
    *("Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout", "ChopperCommand"),
    *("CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero", "Jamesbond", "Kangaroo", "Krull"),
    *("KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert", "RoadRunner", "Seaquest", "UpNDown"),
)


def _atari(*games: str) -> dict[str, tuple[float, float]]:
    return {f"{game}NoFrameskip-v4": ATARI_SCORES[game] for game in games}


MINATAR = {
    "policy": "CnnPolicy",
    "policy_kwargs": f"dict(features_extractor_class=get_class_by_name('{MINATAR_CNN}'), net_arch=[])",
    "n_envs": 8,
}
GOOD_IN_MINATAR = {
    "learning_rate": 0.005,
    "gae_lambda": 0.8,
    "uses": 8,
    "ent_coef": 0.005,
    "clip_range": 0.3,
    "n_rollouts": 2,
    "target_kl": 0.03,
    "n_steps": 16,
}
HUMAN = "0 is random play, 1 a professional player"

# SB3's PPO for continuous control, with its 2,048 steps per update from four environments and a learning rate that
# falls to 0. The Zoo's settings are one for each environment, found on it: algorithms that are tuned here begin alike
ON_POLICY = {"policy": "MlpPolicy", "normalize": True, "n_envs": 4, "gamma": 0.99, "gae_lambda": 0.95, "ent_coef": 0.0}
MUJOCO = {
    "ppo": {
        **ON_POLICY,
        "n_steps": 512,
        "n_epochs": 10,
        "batch_size": 64,
        "learning_rate": "lin_0.0003",
        "clip_range": 0.2,
    },
    # The Zoo's, with a learning rate that falls. TRPO and A2C have no such setting of SB3's for continuous control
    "trpo": {
        **{name: value for name, value in ON_POLICY.items() if name != "ent_coef"},
        "n_steps": 512,
        "batch_size": 128,
        "cg_max_steps": 25,
        "cg_damping": 0.1,
        "learning_rate": "lin_0.001",
        "target_kl": 0.04,
    },
    "a2c": {**ON_POLICY, "n_steps": 8, "learning_rate": "lin_0.0007"},
}

# What tuning led V-trace and the clip around both to
LEARNING_RATE_OF_VTRACE = "lin_0.000651"
LEARNING_RATE_OF_CLIP = "lin_0.00158"
TUNED_VTRACE_OF_MUJOCO = f"learning_rate={LEARNING_RATE_OF_VTRACE}+gae_lambda=0.9+uses=10+n_rollouts=2"

# The recipe, where there are no trials of it: the range of the clip around both that tuning on MuJoCo led to, and what
# divergence_coef="auto" is with discrete actions
CLIP_AROUND_BOTH = {"clip_range": 0.3, "divergence_coef": 1.0}

# The minibatches that PPO has on Atari
ATARI_LARGE = "dapo_clip+batch_size=256"

# How 1/eta is held, the same in every suite but MinAtar, where more is tried: a constant, or a KL target
CONTROL = {
    "A constant 1/eta or a KL target": [
        "dapo_gae",
        *(f"dapo_gae+divergence_coef={x}" for x in (0.1, 1.0)),
        *(f"dapo_kl{x}" for x in ("+divergence_coef=dual_0.02", "", "+divergence_coef=dual_0.04")),
        *(f"dapo_kl+divergence_coef=adaptive_{x}" for x in (0.02, 0.03, 0.04)),
    ],
    "The recipe, part by part": [
        "dapo_kl",
        "dapo_kl+n_rollouts=1",
        "dapo_kl+divergence_steps=0",
        "dapo_kl+advantage=vtrace",
    ],
    "Learning rate": [
        *(f"{algo}+learning_rate=lin_{x}" for algo in ("ppo", "dapo_kl") for x in (0.0003, 0.0006, 0.001)),
    ],
    "The other direction": ["dapo_kl", *(f"marwil+divergence_coef={x}" for x in (0.3, 1.0))],
}

SUITES = {
    "minatar": Suite(
        scores={
            "MinAtar/Asterix-v1": (0.5, 14.0),
            "MinAtar/Breakout-v1": (0.4, 12.3),
            "MinAtar/Freeway-v1": (0.4, 62.5),
            "MinAtar/Seaquest-v1": (0.1, 4.0),
            "MinAtar/SpaceInvaders-v1": (4.0, 166.0),
        },
        normalization="0 is random play, 1 what the first run of PPO with an entropy bonus reached in 2,000,000 steps: "
        "14.0 in Asterix, 12.3 in Breakout, 62.5 in Freeway, 4.0 in Seaquest and 166 in SpaceInvaders",
        regimes=_regimes(plentiful=2_000_000, scarce=300_000),
        # Of different kinds: high learning rates are best in the first and harm in the second
        tuning_envs=("MinAtar/Asterix-v1", "MinAtar/Seaquest-v1"),
        ablation_envs=("MinAtar/Asterix-v1", "MinAtar/Breakout-v1", "MinAtar/Seaquest-v1"),
        # In a first search up to 0.003 PPO and DAPO were best at its upper end
        learning_rates=(1e-3, 1e-2),
        last_trials=(
            {**GOOD_IN_MINATAR, "clip_range": 0.2, "target_kl": 0.01},
            {**GOOD_IN_MINATAR, "n_rollouts": 4},
            {**GOOD_IN_MINATAR, "learning_rate": 0.0025, "gae_lambda": 0.6},
            {**GOOD_IN_MINATAR, "learning_rate": 0.00289, "clip_range": 0.2, "ent_coef": 0.0212, "uses": 4},
            {**GOOD_IN_MINATAR, "learning_rate": 0.0025, "gae_lambda": 0.6, "ent_coef": 0.02},
        ),
        # The Zoo has none: its PPO for Atari with the learning rate, lambda and clip range of the paper
        base={
            "ppo": {
                **MINATAR,
                "n_steps": 128,
                "n_epochs": 4,
                "batch_size": 256,
                "learning_rate": "lin_0.001",
                "clip_range": 0.2,
                "gae_lambda": 0.9,
                "ent_coef": 0.01,
            },
            # Conjugate gradients on a quarter of a rollout: with the defaults a run takes ten times as long
            "trpo": {
                **MINATAR,
                "n_steps": 256,
                "batch_size": 256,
                "sub_sampling_factor": 4,
                "cg_max_steps": 10,
                "learning_rate": "lin_0.001",
                "gae_lambda": 0.95,
                "target_kl": 0.01,
            },
            "a2c": {**MINATAR, "n_steps": 5, "learning_rate": "lin_0.0007", "gae_lambda": 0.95, "ent_coef": 0.01},
        },
        of_algorithm={"dapo_clip": CLIP_AROUND_BOTH},
    ),
    "classic": Suite(
        scores={
            "CartPole-v1": (22.2, 475.0),
            "Acrobot-v1": (-497.0, -100.0),
            "LunarLander-v3": (-181.0, 200.0),
            "Pendulum-v1": (-1256.0, -150.0),
            "MountainCarContinuous-v0": (-33.2, 90.0),
        },
        normalization="0 is random play, 1 Gymnasium's reward threshold (Pendulum, which has none: -150)",
        regimes=_regimes(
            plentiful=None,
            scarce={
                "CartPole-v1": 20_000,
                "Acrobot-v1": 100_000,
                "LunarLander-v3": 200_000,
                "Pendulum-v1": 50_000,
                "MountainCarContinuous-v0": 20_000,
            },
        ),
        tuning_envs=("CartPole-v1", "LunarLander-v3"),
        ablation_envs=("CartPole-v1", "LunarLander-v3", "Pendulum-v1"),
    ),
    "mujoco": Suite(
        scores={
            "HalfCheetah-v5": (-234.0, 2440.0),
            "Hopper-v5": (18.0, 2540.0),
            "Walker2d-v5": (2.1, 2200.0),
            "Ant-v5": (-38.0, 762.0),
            "Swimmer-v5": (-2.3, 161.0),
        },
        normalization="0 is random play, 1 the mean score of GePPO over its first million steps, as published "
        "(Queeney et al. 2021, environments of version 3)",
        regimes=_regimes(plentiful=1_000_000, scarce=300_000, uses=10),
        tuning_envs=("HalfCheetah-v5", "Hopper-v5"),
        ablation_envs=("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"),
        lambdas=(0.9, 0.95, 0.98),
        entropies=None,
        base=MUJOCO,
        # As in the Zoo: with a discount factor of 0.99 it does not see its next stroke
        of_env={"Swimmer-v5": {"gamma": 0.9999}},
        of_algorithm={
            # Of 1, 0.3 and 0.1 the best in earlier trials of 200,000 steps on three of these environments
            "dapo_gae": {"n_rollouts": 2, "divergence_coef": 0.3},
            "dapo_gae_1step": {"n_rollouts": 2, "divergence_coef": 1.0},
            "vtrace_gae": {"n_rollouts": 2},
        },
        has_published=True,
        ablations={
            **CONTROL,
            "The divergence instead of the clip, beside it or inside it, in the setting that V-trace was tuned to": [
                "vtrace_gae",
                f"dapo_gae+{TUNED_VTRACE_OF_MUJOCO}+divergence_coef=0.3",
                f"dapo+advantage=vtrace_gae+{TUNED_VTRACE_OF_MUJOCO}+clip_range=0.3+divergence_coef=0.1",
                f"dapo_clip+learning_rate={LEARNING_RATE_OF_VTRACE}+divergence_coef=0.3",
            ],
            "Shorter rollouts, as tuned and more of them kept": [
                "dapo_kl",
                *(f"dapo_kl+n_steps={n_steps}+n_rollouts={k}+uses=8" for n_steps, k in ((256, 4), (128, 8))),
                "ppo",
                "ppo+n_steps=128",
            ],
            "The clip around both and no divergence, in the setting that it was tuned to": [
                "dapo_clip",
                f"vtrace_gae+learning_rate={LEARNING_RATE_OF_CLIP}",
            ],
            "1/eta inside the clip, as tuned or by the number of action dimensions": [
                "dapo_clip",
                "dapo_clip+divergence_coef=auto",
            ],
            "Larger minibatches, as tuned and with more uses": [
                "dapo_kl",
                "dapo_kl+batch_size=256",
                "dapo_kl+batch_size=256+uses=20",
            ],
            "GePPO as published, and with the divergence inside its clip": [
                "geppo_published",
                "geppo_published+policy_loss=clip_augmented+divergence_coef=0.1",
            ],
            "Minibatches, lambda and learning rate of the clip around both": [
                "dapo_clip",
                "dapo_clip+batch_size=256",
                "dapo_clip+batch_size=512+learning_rate=lin_0.003",
                "dapo_clip+gae_lambda=0.95",
                "dapo_clip+learning_rate=0.0008",
            ],
        },
    ),
    "atari100k": Suite(
        scores=_atari(*ATARI_100K, "NameThisGame", "Phoenix"),
        normalization=HUMAN,
        regimes=_regimes(plentiful=None, scarce=100_000),
        tuning_envs=("NameThisGameNoFrameskip-v4", "PhoenixNoFrameskip-v4"),
        only_tuning=("NameThisGameNoFrameskip-v4", "PhoenixNoFrameskip-v4"),
        ablation_envs=("BoxingNoFrameskip-v4", "CrazyClimberNoFrameskip-v4", "KrullNoFrameskip-v4"),
        learning_rates=(1e-4, 2e-3),
        lambdas=(0.8, 0.9, 0.95),
        final_games=100,
        of_algorithm={
            "dapo_gae": {"n_rollouts": 2, "divergence_coef": 0.3},
            "vtrace_gae": {"n_rollouts": 2},
            "dapo_clip": CLIP_AROUND_BOTH,
        },
        ablations={
            **CONTROL,
            "Clip range and 1/eta": [
                "ppo_fast",
                "ppo_fast+clip_range=lin_0.1",
                ATARI_LARGE,
                *(f"{ATARI_LARGE}+clip_range=0.3+divergence_coef=1.0{x}" for x in ("", "+learning_rate=lin_0.001")),
            ],
            "Minibatches, learning rate, uses and rollouts": [
                "ppo_fast",
                *(f"ppo_fast+{x}" for x in ("batch_size=64", "learning_rate=lin_0.001", "uses=16", "n_steps=32")),
                "dapo_clip",
                ATARI_LARGE,
                *(f"{ATARI_LARGE}+{x}" for x in ("learning_rate=lin_0.001", "uses=16", "n_steps=32+n_rollouts=4")),
            ],
        },
    ),
    "atari5": Suite(
        scores=_atari("BattleZone", "DoubleDunk", "NameThisGame", "Phoenix", "Qbert"),
        normalization=HUMAN,
        regimes=_regimes(plentiful=None, scarce=500_000),
        tuning_envs=("PhoenixNoFrameskip-v4", "QbertNoFrameskip-v4"),
        ablation_envs=("NameThisGameNoFrameskip-v4", "PhoenixNoFrameskip-v4", "QbertNoFrameskip-v4"),
    ),
    "paper": Suite(
        scores=_atari("Breakout", "Enduro", "Qbert", "Seaquest", "BeamRider", "SpaceInvaders", "Freeway", "Frostbite"),
        normalization=HUMAN,
        regimes=_regimes(plentiful=None, scarce=1_000_000),
        tuning_envs=("BreakoutNoFrameskip-v4", "QbertNoFrameskip-v4"),
        ablation_envs=("BreakoutNoFrameskip-v4", "EnduroNoFrameskip-v4", "QbertNoFrameskip-v4"),
    ),
}

# PPO's penalty of Schulman et al. 2017, section 4: the surrogate without clipping, KL(old || new) and a coefficient
# that is doubled or halved
ADAPTIVE_KL = {
    "advantage": "gae",
    "divergence": "reverse_kl",
    "divergence_coef": "adaptive_0.01",
    "divergence_steps": 0,
    "n_rollouts": 1,
    "policy_loss": "plain",
}
# The hyperparameters of DAPO before tuning, which also tries to keep more rollouts
REUSE = {"n_rollouts": 1}
# The same with advantages that are GAE's on new data. DAPO has the divergence in the place of the clip with them
REUSE_GAE = {**REUSE, "advantage": "vtrace_gae"}
# Where the clip lies makes no difference to a single rollout
GEPPO = {"n_rollouts": 4, "clip_center": "old"}

# GePPO as its authors run it, with their option of equal weights for the policies that acted (theirs by default: 0.4,
# 0.3, 0.2 and 0.1), twice the updates of half the size, and the learning rate that `geppo.py` adapts. Not as there: one
# optimizer for policy and value function, so that its learning rate falls for both
GEPPO_PUBLISHED = {
    **{"policy": "MlpPolicy", "normalize": True, "n_envs": 4, "n_steps": 256, "batch_size": 96, "n_epochs": 10},
    **{"gamma": 0.995, "gae_lambda": 0.97, "learning_rate": 3e-4, "clip_range": 0.1, "clip_center": "old"},
    **{"n_rollouts": 3, "advantage": "vtrace_gae", "divergence_coef": 0.0, "callback": "geppo.AdaptiveLearningRate"},
}

# PPO's family blue, other baselines grey, reuse without divergence green, DAPO red and violet
ALGORITHMS = {
    "ppo": Algorithm("ppo", {"ent_coef": 0.0}, "PPO", "#9ecae1", "PPO"),
    "ppo_ent": Algorithm("ppo", {"ent_coef": 0.01}, "PPO + entropy", "#3182bd", "PPO"),
    # In Atari games with the native environments and bfloat16, as DAPO
    "ppo_fast": Algorithm(
        "dapo",
        {"advantage": "gae", "divergence_coef": 0.0, "n_rollouts": 1, "ent_coef": 0.01, "fast": True},
        "PPO + entropy, fast",
        "#3182bd",
        "PPO",
    ),
    "ppo_target_kl": Algorithm("ppo", {"target_kl": 0.02}, "PPO, target KL", "#6baed6", "PPO"),
    "ppo_adaptive_kl": Algorithm("dapo", ADAPTIVE_KL, "PPO, adaptive KL", "#08306b", "PPO"),
    "trpo": Algorithm("trpo", {}, "TRPO", "#636363"),
    "a2c": Algorithm("a2c", {}, "A2C", "#bdbdbd"),
    "vtrace": Algorithm("dapo", {**REUSE, "divergence_coef": 0.0}, "V-trace, no divergence", "#31a354"),
    "dapo_1step": Algorithm(
        "dapo", {**REUSE, "divergence_coef": 0.1, "divergence_steps": 0}, "DAPO, 1-step", "#fd8d3c", "DAPO"
    ),
    "dapo": Algorithm("dapo", {**REUSE, "divergence_coef": 0.1}, "DAPO, multi-step", "#d62728", "DAPO"),
    # Without the clip the divergence alone keeps updates small: it needs to be ten times as strong
    "dapo_plain": Algorithm(
        "dapo", {**REUSE, "divergence_coef": 1.0, "policy_loss": "plain"}, "DAPO, eq. 7", "#756bb1", "DAPO"
    ),
    # The divergence aimed for instead of its coefficient, as PPO's adaptive penalty has it
    "dapo_adaptive": Algorithm(
        "dapo",
        {**REUSE, "divergence_coef": "adaptive_0.01", "policy_loss": "plain"},
        "DAPO, eq. 7, adaptive",
        "#3f007d",
        "DAPO",
    ),
    "vtrace_gae": Algorithm("dapo", {**REUSE_GAE, "divergence_coef": 0.0}, "V-trace + GAE, no divergence", "#74c476"),
    # A sum over steps is larger than its first term, which alone is tried stronger
    "dapo_gae_1step": Algorithm(
        "dapo",
        {**REUSE_GAE, "divergence_coef": 3.0, "divergence_steps": 0, "policy_loss": "plain"},
        "DAPO + GAE, 1-step",
        "#df65b0",
        "DAPO",
    ),
    "dapo_gae": Algorithm(
        "dapo",
        {**REUSE_GAE, "divergence_coef": 1.0, "policy_loss": "plain"},
        "DAPO + GAE",
        "#980043",
        "DAPO",
    ),
    # The recipe that is to be the same everywhere: the divergence held at a target, whatever 1/eta that takes
    "dapo_kl": Algorithm(
        "dapo",
        {**REUSE_GAE, "n_rollouts": 2, "divergence_coef": "dual_0.03", "policy_loss": "plain"},
        "DAPO + GAE, KL target",
        "#e7298a",
        "DAPO",
        tuned_as="dapo_gae",
    ),
    # The clip bounds how far an update goes, in every state, and the divergence says where to
    "dapo_clip": Algorithm(
        "dapo",
        {**REUSE_GAE, "divergence_coef": 0.3, "policy_loss": "clip_augmented"},
        "DAPO + GAE, clip around both",
        "#67001f",
        "DAPO",
        tuned_as="dapo_gae",
    ),
    "geppo": Algorithm("dapo", {**GEPPO, "divergence_coef": 0.0}, "V-trace, GePPO's clip", "#006d2c"),
    "dapo_geppo": Algorithm(
        "dapo", {**GEPPO, "divergence_coef": 0.1}, "DAPO, multi-step, GePPO's clip", "#a50f15", "DAPO"
    ),
    # The other direction of the divergence: the likelihood of what was done, weighted by exp(eta A)
    "marwil": Algorithm(
        "dapo",
        {**REUSE_GAE, "n_rollouts": 2, "divergence_coef": 1.0, "policy_loss": "marwil"},
        "MARWIL's loss, GAE",
        "#8c6d31",
        tuned_as="dapo_gae",
    ),
    "geppo_published": Algorithm("dapo", GEPPO_PUBLISHED, "GePPO, as published", "#00441b", published=True),
    "ppo_zoo": Algorithm("ppo", {}, "PPO, the Zoo's settings", "#084594", published=True),
    "sac": Algorithm("sac", {}, "SAC", "#fec44f", published=True),
    "crossq": Algorithm("crossq", {}, "CrossQ", "#d95f0e", published=True),
}

# DAPO + GAE as tuned: what the ablations of the divergence start from, as beside the clip it has little to do.
# `dapo+name=value` is `dapo`, tuned values included, with one hyperparameter changed
BEST = "dapo_gae"
# The setting that tuning chose for it, for other algorithms
BEST_SETTING = "learning_rate=lin_0.005+ent_coef=0.005+uses=8"
# The same with the paper's advantages
PAPER_BEST = f"dapo_plain+{BEST_SETTING}"

# What the paper leaves open
ABLATIONS = {
    # What tuning chose for PPO and for DAPO + GAE, and what lies between
    "PPO and DAPO + GAE in the same settings": [
        f"{algo}+learning_rate=lin_{learning_rate}+ent_coef={ent_coef}+uses={uses}"
        for learning_rate, ent_coef, uses in product((0.00289, 0.005), (0.0212, 0.005), (4, 8))
        for algo in ("ppo_ent", BEST)
    ],
    # Made for more uses than the tuned settings were found with
    "Half the learning rate": [
        "ppo_ent",
        "ppo_ent+learning_rate=lin_0.00145",
        BEST,
        f"{BEST}+learning_rate=lin_0.0025",
    ],
    # What tuning chose for PPO without an entropy bonus, tried with one
    "PPO's setting without and with an entropy bonus": [
        "ppo",
        "ppo_ent+learning_rate=lin_0.00261+gae_lambda=0.6+ent_coef=0.01+uses=8",
        "ppo_ent",
    ],
    "PPO, the clip and the divergence in one setting": [
        f"ppo_ent+{BEST_SETTING}",
        f"vtrace+{BEST_SETTING}+advantage=vtrace_gae",
        "dapo+advantage=vtrace_gae",
        BEST,
    ],
    "PPO, the clip and the divergence in one setting, with the paper's advantages": [
        f"{algo}+{BEST_SETTING}" for algo in ("ppo_ent", "vtrace", "dapo", "dapo_plain")
    ],
    "Policy loss": [
        BEST,
        *(f"{BEST}+policy_loss={x}" for x in ("clip", "clip_augmented")),
        "dapo+advantage=vtrace_gae",
    ],
    "The clip around both: its range and 1/eta, and no divergence": [
        "dapo_clip",
        f"{BEST}+policy_loss=clip_augmented",
        *(f"dapo_clip+divergence_coef={x}" for x in ("0.3", "0.3+clip_range=0.2", "0.1")),
        f"{BEST}+policy_loss=clip+divergence_coef=0.0+clip_range=0.3",
    ],
    "Coefficient of the divergence, 1/eta": [
        BEST,
        *(f"{BEST}+divergence_coef={x}" for x in (0.01, 0.1, 0.5, 2.0, 3.0, 10.0)),
    ],
    "Coefficient of the divergence, with the paper's advantages": [
        PAPER_BEST,
        *(f"{PAPER_BEST}+divergence_coef={x}" for x in (3.0, 10.0)),
        "dapo",
        "dapo+divergence_coef=3.0",
    ],
    "Control of 1/eta": [
        BEST,
        *(f"{BEST}+divergence_coef={x}" for x in ("lin_1.0", "lin_2.0", "adaptive_0.04", "dual_0.04")),
        "dapo_kl",
        "dapo_kl+divergence_coef=dual_0.02",
    ],
    # Of two only, so that its table is of all environments
    "Control of 1/eta, a constant or a KL target": [BEST, f"{BEST}+divergence_coef=dual_0.04"],
    "The other direction": [BEST, *(f"marwil+divergence_coef={x}" for x in (0.3, 1.0))],
    # A sum over steps is larger than its first term: the 1-step divergence is tried stronger too
    "Steps of the divergence": [
        BEST,
        *(f"{BEST}+divergence_steps={x}" for x in (3, 0)),
        f"{BEST}+divergence_steps=0+divergence_coef=3.0",
    ],
    # Of two only, as others, so that its table is of all environments
    "Steps of the divergence, all or one": [BEST, f"{BEST}+divergence_steps=0"],
    "Steps of the divergence, in the 1-step divergence's setting": [
        "dapo_gae_1step",
        f"{BEST}+learning_rate=lin_0.00289+ent_coef=0.0212+uses=4",
    ],
    "Steps of the divergence, with the paper's advantages": [
        "dapo_plain",
        *(f"dapo_plain+divergence_steps=0{x}" for x in ("", "+divergence_coef=3.0")),
        "dapo_plain+divergence_coef=0.0",
    ],
    # Tuning led the first two to one and the same setting
    "Steps of the divergence, beside the clip": [
        "vtrace",
        "dapo_1step",
        "dapo_1step+divergence_steps=null",
        "dapo",
        "dapo+divergence_steps=0",
    ],
    "Lambda of the divergence": [BEST, *(f"{BEST}+divergence_lambda={x}" for x in (0.1, 0.3, 0.5, 1.0))],
    "c_bar of the divergence": [BEST, *(f"{BEST}+divergence_c_bar={x}" for x in (0.1, 0.3, 0.5))],
    "Family of the divergence": [BEST, *(f"{BEST}+divergence={x}" for x in ("reverse_kl", "tsallis", "hellinger"))],
    "Family of the divergence, KL or Tsallis": [BEST, f"{BEST}+divergence=tsallis"],
    "Rollouts kept, K": [BEST, *(f"{BEST}+n_rollouts={x}" for x in (1, 4, 8))],
    "Rollouts kept, two or one": [BEST, f"{BEST}+n_rollouts=1"],
    "Rollouts kept, with the paper's advantages and fewer uses": [
        f"{algo}+n_rollouts={x}" for x in (1, 2, 4) for algo in ("dapo_plain", "vtrace")
    ],
    "Targets": [BEST, f"{BEST}+exact_targets=true"],
    # PAPER_BEST's are the paper's
    "Advantages": [BEST, PAPER_BEST, f"{BEST}+advantage=gae"],
    # A2C with rollouts of 8 steps, all of them one minibatch, does as well as PPO, whose sizes were never tuned
    "Shorter rollouts": [
        *(f"{algo}{x}" for x in ("+n_steps=32", "+n_steps=64", "") for algo in ("ppo_ent", BEST)),
        "a2c",
    ],
    # As many transitions kept as with 2 rollouts of 128 steps, or half as many
    "Shorter rollouts, more of them kept": [
        *(f"{BEST}+n_steps={n_steps}+n_rollouts={k}" for n_steps, k in ((64, 4), (32, 4))),
        *(f"{BEST}{x}" for x in ("+n_steps=64", "+n_steps=32", "")),
    ],
    "Smaller minibatches": [f"{algo}{x}" for algo in ("ppo_ent", BEST) for x in ("", "+batch_size=64")],
    "Center of the clip": [f"dapo+n_rollouts=4{x}" for x in ("", "+clip_center=old")],
}


def ablations(suite: str) -> Mapping[str, list[str]]:
    """
    :param suite: name of a suite
    :return: by title the algorithms of its ablations; MinAtar's where it has none of its own
    """
    return SUITES[suite].ablations or ABLATIONS


def algorithms(suite: str) -> list[str]:
    """
    :param suite: name of a suite
    :return: names of the algorithms that are run in it, without changes
    """
    return [name for name, x in ALGORITHMS.items() if SUITES[suite].has_published or not x.published]


def algorithm(name: str) -> Algorithm:
    """
    :param name: name of an algorithm, with or without changes (`dapo+divergence_coef=0.5`)
    :return: the algorithm
    :raises ValueError: if there is none of that name
    """
    base = name.split("+")[0]
    if base not in ALGORITHMS:
        raise ValueError(f"`algo` must be one of {sorted(ALGORITHMS)}, or one of them with +name=value, got {name!r}")
    return ALGORITHMS[base]


def timesteps(suite: str, regime: str, env: str, algo: str) -> int:
    """
    :param suite: name of a suite
    :param regime: name of one of its regimes
    :param env: one of its environments
    :param algo: name of an algorithm
    :return: environment steps of a run
    """
    steps = SUITES[suite].regimes[regime].timesteps
    if isinstance(steps, Mapping):
        return steps[env]
    # The Zoo trains some algorithms longer than others: all get PPO's steps here
    return int(steps or _zoo_entry("ppo", env)["n_timesteps"])


def hyperparameters(
    suite: str, regime: str, env: str, algo: str, tuned: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """
    The entry of a run in the Zoo's hyperparameter file: the suite's or the Zoo's setting, then what makes the
    algorithm, then the tuned values, then the changes in the algorithm's name.

    :param suite: name of a suite
    :param regime: name of one of its regimes
    :param env: one of its environments
    :param algo: name of an algorithm, with or without changes
    :param tuned: tuned values, None for those in the folder `hyperparams`
    :return: hyperparameters
    :raises ValueError: if there is no such suite, regime, environment, algorithm or change
    """
    if suite not in SUITES:
        raise ValueError(f"`suite` must be one of {sorted(SUITES)}, got {suite!r}")
    if regime not in SUITES[suite].regimes:
        raise ValueError(f"`regime` must be one of {sorted(SUITES[suite].regimes)}, got {regime!r}")
    if env not in SUITES[suite].scores:
        raise ValueError(f"`env` must be one of {sorted(SUITES[suite].scores)}, got {env!r}")
    chosen = algorithm(algo)
    name, *changes = algo.split("+")
    if name not in algorithms(suite):
        raise ValueError(f"`algo` must be one of {algorithms(suite)} in {suite}, got {name!r}")
    if tuned is None:
        tuned = tuned_for(read_tuned(suite, regime), name)

    settings = {
        **_base(suite, env, chosen),
        "n_timesteps": timesteps(suite, regime, env, algo),
        **chosen.settings,
        **SUITES[suite].of_algorithm.get(name, {}),
        **tuned,
        **dict(_parse_change(change) for change in changes),
    }
    if chosen.published:
        return settings
    uses = settings.pop("uses", SUITES[suite].regimes[regime].uses)
    if chosen.zoo_name in ("ppo", "dapo"):
        # A transition that stays for K updates is used K times as often
        settings["n_epochs"] = max(1, round((uses or settings.get("n_epochs", 10)) / settings.get("n_rollouts", 1)))
    elif chosen.zoo_name == "trpo" and uses is not None:
        settings["n_critic_updates"] = uses
    return settings


def tuned_for(tuned: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """
    :param tuned: tuned values by algorithm
    :param name: name of an algorithm, without changes
    :return: those that it has: its own, or those of the algorithm whose values it shares, but for 1/eta
    """
    if name in tuned:
        return tuned[name]
    shared = tuned.get(ALGORITHMS[name].tuned_as, {})
    return {key: value for key, value in shared.items() if key != "divergence_coef"}


def run_regime(regime: str, algo: str) -> str:
    """
    :param regime: name of a regime
    :param algo: name of an algorithm, with or without changes
    :return: the regime that its runs are kept in: what is run as published has no tuned values, and is run once
    """
    return "untuned" if algorithm(algo).published and regime.startswith("scarce") else regime


def run_names(suite: str, regime: str, algos: Collection[str]) -> dict[str, str]:
    """
    :param suite: name of a suite
    :param regime: name of one of its regimes
    :param algos: names of algorithms, with or without changes
    :return: by name the name that its runs have: that of the first algorithm or ablation with the same hyperparameters,
        so that no run is made twice under two names
    """
    env = SUITES[suite].tuning_envs[0]
    tuned = read_tuned(suite, regime)

    def key(name: str) -> tuple[str, dict[str, Any]]:
        settings = hyperparameters(suite, regime, env, name, tuned_for(tuned, name.split("+")[0]))
        return algorithm(name).zoo_name, settings

    keys = {name: key(name) for name in [*algorithms(suite), *chain(*ablations(suite).values()), *algos]}
    return {
        name: name if name in ALGORITHMS else next(other for other in keys if keys[other] == keys[name])
        for name in algos
    }


def uses_per_sample(zoo_name: str, settings: Mapping[str, Any]) -> int:
    """
    :param zoo_name: name of the class in the Zoo
    :param settings: hyperparameters
    :return: how often the optimizer sees each transition; of TRPO the value function's (the policy takes one step)
    """
    if zoo_name == "a2c":
        return 1
    if zoo_name == "trpo":
        return int(settings.get("n_critic_updates", 10))
    if zoo_name in ("sac", "crossq"):
        # Minibatches are drawn from all steps so far: so often on average, by the end of training
        return int(settings.get("batch_size", 256) * settings.get("gradient_steps", 1) / settings.get("train_freq", 1))
    return int(settings.get("n_epochs", 10) * settings.get("n_rollouts", 1))


def normalize(suite: str, env: str, score: float) -> float:
    """
    :param suite: name of a suite
    :param env: one of its environments
    :param score: score of the game
    :return: score on the suite's scale
    """
    low, high = SUITES[suite].scores[env]
    return (score - low) / (high - low)


def denormalize(suite: str, env: str, normalized: Any) -> Any:
    """
    The inverse of :func:`normalize`.

    :param suite: name of a suite
    :param env: one of its environments
    :param normalized: score on the suite's scale, or an array of them
    :return: score of the game
    """
    low, high = SUITES[suite].scores[env]
    return low + (high - low) * normalized


def read_tuned(suite: str, regime: str) -> dict[str, dict[str, Any]]:
    """
    :param suite: name of a suite
    :param regime: name of one of its regimes
    :return: the tuned hyperparameters of each algorithm. The regimes of more uses take those of `scarce` where they
        have none of their own
    """
    if not SUITES[suite].regimes[regime].tuned:
        return {}
    path = TUNED / f"{suite}.yml"
    regimes = (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}
    tuned: dict[str, dict[str, Any]] = regimes.get(regime, {})
    if regime.startswith("scarce") and regime != "scarce":
        scarce = {
            algo: {name: value for name, value in values.items() if name != "uses"}
            for algo, values in regimes.get("scarce", {}).items()
        }
        return {**scarce, **tuned}
    return tuned


def _base(suite: str, env: str, chosen: Algorithm) -> dict[str, Any]:
    """The Zoo's entry of an environment. What belongs to the environment is PPO's where the algorithm has no entry."""
    if chosen.published:  # all of GePPO's settings are its own
        return {} if chosen.zoo_name == "dapo" else _zoo_entry(chosen.zoo_name, env)
    zoo_name = "ppo" if chosen.zoo_name == "dapo" else chosen.zoo_name
    fast = {"autocast": True} if chosen.zoo_name == "dapo" and "NoFrameskip" in env else {}
    own = SUITES[suite].base
    if own is not None:
        return {**own[zoo_name], **SUITES[suite].of_env.get(env, {}), **fast}
    of_env = ("policy", "policy_kwargs", "n_envs", "env_wrapper", "frame_stack", "normalize")
    ppo = _zoo_entry("ppo", env)
    return {**(_zoo_entry(zoo_name, env) or {name: ppo[name] for name in of_env if name in ppo}), **fast}


def _zoo_entry(zoo_name: str, env: str) -> dict[str, Any]:
    """An environment's entry in a file of the Zoo, empty if it has none."""
    entries = _zoo_file(zoo_name)
    # The Zoo has no entries for version 5 of the MuJoCo environments
    for name in (env, env.replace("-v5", "-v4"), "atari" if "NoFrameskip" in env else ""):
        if name in entries:
            return dict(entries[name])
    return {}


@cache
def _zoo_file(zoo_name: str) -> dict[str, dict[str, Any]]:
    zoo = find_spec("rl_zoo3")  # to import it would take seconds
    if zoo is None or zoo.origin is None:
        raise ModuleNotFoundError("the benchmarks need RL Zoo: pip install 'sb3-dapo[zoo]'", name="rl_zoo3")
    path = Path(zoo.origin).parent / "hyperparams" / f"{zoo_name}.yml"
    entries: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())
    return entries


def _parse_change(change: str) -> tuple[str, Any]:
    name, equals, value = change.partition("=")
    if not equals or not name:
        raise ValueError(f"a change of an algorithm must have the form name=value, got {change!r}")
    return name, yaml.safe_load(value)
