"""Tune 1/eta, K and the learning rate with Optuna.

This is the plain way, for environments and settings of one's own. `sb3-dapo train -optimize` does the same for
everything in RL Zoo, with a larger space, storage and parallel workers.
"""

import optuna
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dapo import DAPO

USES = 8  # of a transition, the same for all trials so that they take equally long


def describe(trial: optuna.trial.FrozenTrial) -> str:
    """
    :param trial: a trial
    :return: its settings
    """
    return ", ".join(f"{name} = {value:.3g}" for name, value in trial.params.items())


def main(steps: int = 12_288, n_trials: int = 12) -> None:
    """
    :param steps: environment steps of a trial
    :param n_trials: number of trials
    """

    def objective(trial: optuna.Trial) -> float:
        n_rollouts = trial.suggest_categorical("n_rollouts", [1, 2, 4])
        env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
        model = DAPO(
            "MlpPolicy",
            env,
            n_steps=64,
            batch_size=256,
            n_rollouts=n_rollouts,
            n_epochs=USES // n_rollouts,
            gamma=0.98,
            gae_lambda=0.8,
            learning_rate=trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
            divergence_coef=trial.suggest_float("divergence_coef", 0.01, 2.0, log=True),
            seed=0,
            device="cpu",
        )
        # Four parts, after each of which a trial that is worse than most is given up
        for part in range(4):
            model.learn(steps // 4, reset_num_timesteps=part == 0)
            score, _ = evaluate_policy(model, env, n_eval_episodes=10)
            trial.report(float(score), part)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(score)

    def report(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        outcome = f"score {trial.value:.0f}" if trial.state == optuna.trial.TrialState.COMPLETE else "given up"
        print(f"trial {trial.number:>2}: {describe(trial)}: {outcome}")

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )
    study.optimize(objective, n_trials=n_trials, callbacks=[report])
    print(f"The best of {len(study.trials)} trials scores {study.best_value:.0f}: {describe(study.best_trial)}")


if __name__ == "__main__":
    main()
