"""A controller for 1/eta: say how far the policy may be from its data, and let the weight follow.

`AdaptiveController` and `DualController` come with the package. This one is written here, to show what a controller is:
called before an update it gives 1/eta, and after the update it hears what the KL divergence was.
"""

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_dapo import DAPO, Controller


class ProportionalController(Controller):
    """
    Multiplies 1/eta by a power of (KL / target), the same share of the error at every update.

    :param target: KL divergence aimed for
    :param initial: first 1/eta
    :param gain: exponent; 0 never changes anything, 1 corrects at once and overshoots
    """

    def __init__(self, target: float, initial: float = 1.0, gain: float = 0.2) -> None:
        self.target, self.coefficient, self.gain = target, initial, gain

    def __call__(self, progress_remaining: float) -> float:
        return self.coefficient

    def update(self, divergence: float) -> None:
        error = min(max(divergence / self.target, 0.1), 10.0)
        self.coefficient = min(max(self.coefficient * error**self.gain, 1e-3), 1e3)


class Table(BaseCallback):
    """
    Prints a line at every tenth of the updates.

    :param every: updates between two lines
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every, self.rollouts = every, 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        values = self.logger.name_to_value
        if self.rollouts > 0 and self.rollouts % self.every == 0:
            kl, coefficient = values["train/behavior_kl"], values["train/divergence_coef"]
            print(f"{self.num_timesteps:>10,} {coefficient:>12.3f} {kl:>12.4f}")
        self.rollouts += 1


def main(steps: int = 40_000) -> None:
    """
    :param steps: environment steps
    """
    env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    model = DAPO(
        "MlpPolicy",
        env,
        n_steps=64,
        batch_size=256,
        n_rollouts=4,
        n_epochs=2,
        learning_rate=1e-3,
        divergence_coef=ProportionalController(target=0.002),
        seed=0,
        device="cpu",
    )
    print(f"{'steps':>10} {'1/eta':>12} {'KL':>12}   (KL aimed for: 0.002)")
    model.learn(steps, callback=Table(every=max(steps // (10 * 64 * 8), 1)))


if __name__ == "__main__":
    main()
