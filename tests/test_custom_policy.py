"""Custom networks, feature extractors, optimizers and policies."""

from typing import Any

import pytest
import torch as th
from algos import make_model
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_dapo import DAPO, MlpPolicy


@pytest.mark.parametrize(
    "net_arch",
    [[], [4], [4, 4], {"vf": [16], "pi": [8]}, {"vf": [8, 4], "pi": [8]}, {"vf": [8], "pi": [8, 4]}, {"pi": [8]}],
    ids=str,
)
def test_net_arch(algo: type[DAPO], net_arch: Any) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": net_arch})
    model.learn(64)
    n_layers = len(net_arch.get("pi", []) if isinstance(net_arch, dict) else net_arch)
    assert len(list(model.policy.mlp_extractor.policy_net.children())) == 2 * n_layers


@pytest.mark.parametrize("optimizer_class", [th.optim.AdamW, th.optim.SGD, th.optim.RMSprop, RMSpropTFLike])
@pytest.mark.parametrize("optimizer_kwargs", [None, {"weight_decay": 0.01}], ids=str)
def test_optimizer(algo: type[DAPO], optimizer_class: type[th.optim.Optimizer], optimizer_kwargs: Any) -> None:
    settings = {"optimizer_class": optimizer_class, "optimizer_kwargs": optimizer_kwargs}
    model = make_model(algo, "MlpPolicy", "Pendulum-v1", learning_rate=lambda progress: 0.01, policy_kwargs=settings)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(128)
    assert type(model.policy.optimizer) is optimizer_class
    assert all(group["lr"] == 0.01 for group in model.policy.optimizer.param_groups)
    assert any(not th.equal(x, y) for x, y in zip(before, model.policy.parameters(), strict=True))


class Squares(BaseFeaturesExtractor):
    """The observations and their squares, weighed."""

    def __init__(self, observation_space, n_copies: int) -> None:
        super().__init__(observation_space, 2 * n_copies * observation_space.shape[0])
        self.n_copies = n_copies
        self.weight = th.nn.Parameter(th.ones(self.features_dim))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.cat([observations, observations**2] * self.n_copies, dim=1) * self.weight


@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_features_extractor(algo: type[DAPO], share_features_extractor: bool, tmp_path) -> None:
    settings = {
        "features_extractor_class": Squares,
        "features_extractor_kwargs": {"n_copies": 2},
        "share_features_extractor": share_features_extractor,
        "activation_fn": th.nn.ELU,
        "ortho_init": False,
    }
    model = make_model(algo, "MlpPolicy", "CartPole-v1", n_rollouts=2, policy_kwargs=settings)
    model.learn(192)
    extractors = [model.policy.pi_features_extractor, model.policy.vf_features_extractor]
    assert (extractors[0] is extractors[1]) == share_features_extractor
    assert all((extractor.weight != 1).any() for extractor in extractors)
    model.save(tmp_path / "model")
    loaded = algo.load(tmp_path / "model")
    assert th.equal(loaded.policy.pi_features_extractor.weight, extractors[0].weight)


class OwnNetwork(th.nn.Module):
    """In place of SB3's MlpExtractor."""

    latent_dim_pi, latent_dim_vf = 8, 4

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.actor = th.nn.Sequential(th.nn.Linear(n_features, 8), th.nn.LayerNorm(8))
        self.critic = th.nn.Sequential(th.nn.Linear(n_features, 4), th.nn.Tanh())

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return self.actor(features)

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return self.critic(features)


class OwnPolicy(MlpPolicy):
    """A policy with a network of its own, of which a part is frozen."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = OwnNetwork(self.features_dim)  # type: ignore[assignment]
        self.mlp_extractor.actor[0].bias.requires_grad_(False)


def test_policy_class(algo: type[DAPO], tmp_path) -> None:
    model = make_model(algo, OwnPolicy, "CartPole-v1", n_rollouts=2)
    frozen = model.policy.mlp_extractor.actor[0].bias
    before = frozen.clone()
    model.learn(192)
    assert th.equal(frozen, before)
    model.save(tmp_path / "model")
    assert isinstance(algo.load(tmp_path / "model").policy, OwnPolicy)


def test_separate_learning_rates(algo: type[DAPO]) -> None:
    """The gradient of every parameter is there for an optimizer set by hand."""
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    model.policy.optimizer = th.optim.SGD(model.policy.value_net.parameters(), lr=0.1)
    before = {name: x.clone() for name, x in model.policy.state_dict().items()}
    model.learn(64)
    changed = {name for name, x in model.policy.state_dict().items() if not th.equal(x, before[name])}
    assert changed == {"value_net.weight", "value_net.bias"}


class NoEntropyPolicy(MlpPolicy):
    """A distribution whose entropy has no closed form."""

    def evaluate_actions(self, obs, actions):
        values, log_prob, _ = super().evaluate_actions(obs, actions)
        return values, log_prob, None


def test_no_entropy(algo: type[DAPO]) -> None:
    model = make_model(algo, NoEntropyPolicy, "CartPole-v1", ent_coef=0.1)
    model.learn(64)
    assert model.logger.name_to_value["train/entropy_loss"] == pytest.approx(-0.69, abs=0.1)
    squashed = make_model(algo, "MlpPolicy", "Pendulum-v1", use_sde=True, policy_kwargs={"squash_output": True})
    squashed.learn(64)
    assert isinstance(squashed.policy.action_dist, StateDependentNoiseDistribution)
