"""
One measurement of ``throughput.py``, in a process of its own, which ends with a line of JSON.

Every peer runs this in its own virtual environment. So nothing is imported here that is not in the standard library.
"""

import itertools
import json
import platform
import resource
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

SEED = 0
FRAME_SKIP = 4
# PPO's settings for Atari, the same for everyone
LEARNING_RATE = 2.5e-4
CLIP_RANGE = 0.1
ENT_COEF = 0.01
ADAM_EPS = 1e-5
# Side of the matrices whose product gives the machine's rate
MATRIX_SIZE = 2048


@dataclass
class Settings:
    """
    :param contestant: who is measured, a key of ``CONTESTANTS``
    :param options: keyword arguments of the contestant's function
    :param env_id: a ``NoFrameskip-v4`` id, or that of a small task: a MinAtar game or an environment with an MLP
    :param n_envs: number of environments
    :param n_steps: steps of each environment per rollout
    :param n_epochs: passes over the data of an update
    :param batch_size: of a minibatch
    :param n_iterations: rollouts and updates that are measured
    :param n_warmup: rollouts and updates before them
    :param device: "cpu" or "cuda"
    :param threads: of PyTorch, JAX and the emulators
    """

    contestant: str
    options: dict[str, Any]
    env_id: str
    n_envs: int
    n_steps: int
    n_epochs: int
    batch_size: int
    n_iterations: int
    n_warmup: int
    device: str
    threads: int

    @property
    def is_atari(self) -> bool:
        """Whether it is an Atari game, which the peers play too."""
        return self.env_id.endswith("NoFrameskip-v4")

    @property
    def rollout(self) -> int:
        """Environment steps per rollout."""
        return self.n_envs * self.n_steps

    @property
    def total_iterations(self) -> int:
        """Rollouts and updates, warm-up included."""
        return self.n_warmup + self.n_iterations


@dataclass
class Clock:
    """Notes when rollouts and updates begin, and the peak memory of this process and its children."""

    marks: list[tuple[str, float]] = field(default_factory=list)
    peak_mb: float = 0.0

    def begin(self, phase: str) -> None:
        """:param phase: "collect", "update", "iteration" (both, where they cannot be told apart) or "end" """
        if phase != "update":
            self.peak_mb = max(self.peak_mb, peak_memory_mb())
        self.marks.append((phase, time.perf_counter()))

    def durations(self, phase: str, n_warmup: int) -> list[float]:
        """
        :param phase: as in :meth:`begin`
        :param n_warmup: how many to leave out
        :return: seconds that the phase took, each time
        """
        pairs = itertools.pairwise(self.marks)
        return [end - begin for (name, begin), (_, end) in pairs if name == phase][n_warmup:]

    def watch(self, step: Callable[..., Any], n_steps: int) -> Callable[..., Any]:
        """
        :param step: steps the environments
        :param n_steps: steps of a rollout
        :return: the same, noting when the first step of a rollout begins and the last one ends
        """
        counter = itertools.count()

        def watched(*args: Any, **kwargs: Any) -> Any:
            number = next(counter) % n_steps
            if number == 0:
                self.begin("collect")
            result = step(*args, **kwargs)
            if number == n_steps - 1:
                self.begin("update")
            return result

        return watched


def peak_memory_mb() -> float:
    """
    :return: the peak resident set of this process and what those hold that it has started, in MB; what several of
        these share is divided between them
    """

    def children(process: Path) -> list[Path]:
        return [Path("/proc") / child for task in process.glob("task/*/children") for child in task.read_text().split()]

    total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pending = children(Path("/proc/self"))
    while pending:
        process = pending.pop()
        try:
            pending += children(process)
            lines = (process / "smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def buffer_bytes(buffer: Any) -> int:
    """
    :param buffer: any object
    :return: bytes of the arrays and tensors in it, those that share memory counted once
    """
    import numpy as np
    import torch as th

    sizes: dict[int, int] = {}
    seen: set[int] = set()
    pending = [buffer]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            if item.base is None:
                sizes[item.ctypes.data] = item.nbytes
            pending.append(item.base)
        elif isinstance(item, th.Tensor):
            storage = item.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
        elif hasattr(item, "__dict__") and not isinstance(item, type | Callable):  # type: ignore[arg-type]
            pending += vars(item).values()
    return sum(sizes.values())


# --- what is measured: each function trains, tells the clock, and returns what else it knows ----------------------


def sb3(
    settings: Settings, clock: Clock, algo: str = "ppo", vec_env: str = "dummy", **kwargs: Any
) -> dict[str, float | str]:
    """
    Algorithms with SB3's interface.

    :param algo: "dapo", "ppo" or "sbx"
    :param vec_env: "native", "dummy" or "subproc"
    :param kwargs: of the algorithm
    """
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack

    class Phases(BaseCallback):
        def _on_rollout_start(self) -> None:
            clock.begin("collect")

        def _on_rollout_end(self) -> None:
            clock.begin("update")

        def _on_step(self) -> bool:
            return True

        def _on_training_end(self) -> None:
            clock.begin("end")

    package = "stable-baselines3"
    if algo == "dapo":
        from sb3_dapo import DAPO as Algorithm

        package = "sb3-dapo"
    elif algo == "sbx":
        from sbx import PPO as Algorithm  # type: ignore[import-not-found, assignment]

        package = "sbx-rl"
    else:
        from stable_baselines3 import PPO as Algorithm  # type: ignore[assignment]

    env: VecEnv
    policy = "CnnPolicy"
    if not settings.is_atari:
        env, policy, kwargs = small_task(settings, kwargs)
    elif vec_env == "native":
        from sb3_dapo.atari_vec_env import AtariVecEnv

        env = AtariVecEnv(settings.env_id, settings.n_envs, seed=SEED)
    else:
        vec_env_class = SubprocVecEnv if vec_env == "subproc" else DummyVecEnv
        env_id = f"ale_py:{settings.env_id}"  # imported in each process, ale_py registers its games there
        env = VecFrameStack(make_atari_env(env_id, settings.n_envs, SEED, vec_env_cls=vec_env_class), 4)

    if settings.is_atari:
        kwargs |= {"learning_rate": LEARNING_RATE, "clip_range": CLIP_RANGE, "ent_coef": ENT_COEF}
    model = Algorithm(
        policy,
        env,
        n_steps=settings.n_steps,
        n_epochs=settings.n_epochs,
        batch_size=settings.batch_size,
        seed=SEED,
        device=settings.device,
        **kwargs,
    )
    model.learn(settings.total_iterations * settings.rollout, callback=Phases())
    n_kept = settings.rollout * kwargs.get("n_rollouts", 1)
    kept_bytes = buffer_bytes(model.rollout_buffer)
    env.close()
    return {"version": f"{package} {version(package)}", "bytes_per_transition": kept_bytes / n_kept}


def small_task(settings: Settings, kwargs: dict[str, Any]) -> tuple[Any, str, dict[str, Any]]:
    """
    :param settings: of a MinAtar game, or of an environment for an MLP
    :param kwargs: of the algorithm
    :return: environments, name of the policy, and all arguments of the algorithm
    """
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    if settings.env_id.startswith("MinAtar/"):
        import minatar.gym

        from sb3_dapo.minatar import MinAtarCnn

        minatar.gym.register_envs()
        policy_kwargs = {"features_extractor_class": MinAtarCnn, "net_arch": []}
        return (
            make_vec_env(settings.env_id, settings.n_envs, SEED),
            "CnnPolicy",
            {**kwargs, "policy_kwargs": policy_kwargs},
        )
    return VecNormalize(make_vec_env(settings.env_id, settings.n_envs, SEED)), "MlpPolicy", kwargs


def small_machine(settings: Settings, gflop_per_s: float) -> dict[str, float | str]:
    """As :func:`machine`, for a small task: the environments alone, and the network's operations."""
    import numpy as np
    import torch as th
    from stable_baselines3 import PPO
    from torch.utils.flop_counter import FlopCounterMode

    env, policy_name, kwargs = small_task(settings, {})
    raw = env.unwrapped
    raw.reset()
    times = []
    for _ in range(settings.total_iterations):
        actions = np.array([[raw.action_space.sample() for _ in range(raw.num_envs)] for _ in range(settings.n_steps)])
        begin = time.perf_counter()
        for action in actions:
            raw.step(action)
        times.append(time.perf_counter() - begin)
    policy = PPO(policy_name, env, device="cpu", **kwargs).policy
    observations, _ = policy.obs_to_tensor(env.observation_space.sample()[None])
    with FlopCounterMode(display=False) as acting, th.no_grad():
        action = policy(observations)[0]
    with FlopCounterMode(display=False) as learning:
        values, log_prob, _ = policy.evaluate_actions(observations, action)
        (values.sum() + log_prob.sum()).backward()
    flop = acting.get_total_flops() + settings.n_epochs * learning.get_total_flops()
    return {
        "version": "",
        "emulator_s": float(np.median(times[settings.n_warmup :])),
        "network_gflop": settings.rollout * flop / 1e9,
        "gflop_per_s": gflop_per_s,
    }


def matrix_rate(device: str) -> float:
    """:return: Gflop per second at which the machine multiplies matrices"""
    import numpy as np
    import torch as th

    a, b = th.randn(2, MATRIX_SIZE, MATRIX_SIZE, device=device)
    rates = []
    for _ in range(20):
        begin = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        rates.append(2 * MATRIX_SIZE**3 / (time.perf_counter() - begin))
    return float(np.median(rates[5:])) / 1e9


def cleanrl(settings: Settings, clock: Clock, script: str) -> dict[str, float | str]:
    """
    CleanRL's ``ppo_atari_envpool.py``, as it is.

    :param script: its path
    """
    import envpool  # type: ignore[import-not-found]

    make = envpool.make

    def make_watched(*args: Any, **kwargs: Any) -> Any:
        envs = make(*args, **kwargs)
        envs.step = clock.watch(envs.step, settings.n_steps)
        return envs

    envpool.make = make_watched
    arguments = {
        "env-id": settings.env_id.replace("NoFrameskip-v4", "-v5"),
        "num-envs": settings.n_envs,
        "num-steps": settings.n_steps,
        "update-epochs": settings.n_epochs,
        "num-minibatches": settings.rollout // settings.batch_size,
        "total-timesteps": settings.total_iterations * settings.rollout,
        "learning-rate": LEARNING_RATE,
    }
    sys.argv = [script, "--cuda" if settings.device == "cuda" else "--no-cuda"]
    for name, value in arguments.items():
        sys.argv += [f"--{name}", str(value)]
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        names = runpy.run_path(script, run_name="__main__")
    clock.begin("end")
    kept = [names[name] for name in ("obs", "actions", "logprobs", "rewards", "dones", "values")]
    return {
        "version": f"CleanRL's script with envpool {version('envpool')}",
        "bytes_per_transition": buffer_bytes(kept) / settings.rollout,
    }


def tianshou(settings: Settings, clock: Clock) -> dict[str, float | str]:
    """Tianshou's PPO, put together from its parts as in its Atari example."""
    import ale_py  # noqa: F401  registers the games
    from tianshou.algorithm import PPO  # type: ignore[import-not-found]
    from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy  # type: ignore[import-not-found]
    from tianshou.algorithm.optim import AdamOptimizerFactory  # type: ignore[import-not-found]
    from tianshou.data import Collector, VectorReplayBuffer  # type: ignore[import-not-found]
    from tianshou.env.atari.atari_network import (  # type: ignore[import-not-found]
        DQNet,
        ScaledObsInputActionReprNet,
        layer_init,
    )
    from tianshou.env.atari.atari_wrapper import make_atari_env  # type: ignore[import-not-found]
    from tianshou.trainer import OnPolicyTrainerParams  # type: ignore[import-not-found]
    from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic  # type: ignore[import-not-found]

    env, envs, _ = make_atari_env(settings.env_id, SEED, settings.n_envs, 1, scale=False, frame_stack=4)
    net = DQNet(*env.observation_space.shape, env.action_space.n, True, 512, layer_init)
    net = ScaledObsInputActionReprNet(net)
    actor = DiscreteActor(preprocess_net=net, action_shape=env.action_space.n, softmax_output=False)
    algorithm = PPO(
        policy=DiscreteActorPolicy(actor=actor, action_space=env.action_space),
        critic=DiscreteCritic(preprocess_net=net),
        optim=AdamOptimizerFactory(lr=LEARNING_RATE, eps=ADAM_EPS),
        eps_clip=CLIP_RANGE,
        ent_coef=ENT_COEF,
        vf_coef=0.5,
        max_grad_norm=0.5,
        advantage_normalization=True,
    ).to(settings.device)
    buffer = VectorReplayBuffer(
        settings.rollout, settings.n_envs, stack_num=4, ignore_obs_next=True, save_only_last_obs=True
    )
    collector = Collector(algorithm, envs, buffer)
    collector.collect = clock.watch(collector.collect, n_steps=1)
    n_total = settings.total_iterations * settings.rollout
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=collector,
            test_collector=None,
            max_epochs=1,
            epoch_num_steps=n_total,
            collection_step_num_env_steps=settings.rollout,
            update_step_num_repetitions=settings.n_epochs,
            batch_size=settings.batch_size,
            show_progress=False,
            verbose=False,
        )
    )
    clock.begin("end")
    return {"version": f"tianshou {version('tianshou')}"}


def torchrl(settings: Settings, clock: Clock) -> dict[str, float | str]:
    """PPO from TorchRL's parts as in its Atari example, on Gymnasium's preprocessing, in processes of their own."""
    import ale_py
    import gymnasium as gym
    import torch as th
    from tensordict.nn import TensorDictModule, TensorDictSequential  # type: ignore[import-not-found]
    from torchrl.collectors import Collector  # type: ignore[import-not-found]
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer  # type: ignore[import-not-found]
    from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement  # type: ignore[import-not-found]
    from torchrl.envs import GymWrapper, ParallelEnv  # type: ignore[import-not-found]
    from torchrl.modules import ConvNet, ProbabilisticActor, ValueOperator  # type: ignore[import-not-found]
    from torchrl.objectives import ClipPPOLoss  # type: ignore[import-not-found]
    from torchrl.objectives.value import GAE  # type: ignore[import-not-found]

    def make_env() -> Any:
        gym.register_envs(ale_py)
        env = gym.make(settings.env_id)
        env = gym.wrappers.AtariPreprocessing(env, terminal_on_life_loss=True)
        env = gym.wrappers.TransformReward(env, lambda reward: (reward > 0) - (reward < 0))
        return GymWrapper(gym.wrappers.FrameStackObservation(env, 4), categorical_action_encoding=True)

    device = th.device(settings.device)
    envs = ParallelEnv(settings.n_envs, make_env, serial_for_single=True)
    n_actions = make_env().action_space.n

    class Scaled(th.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolutions = ConvNet(
                in_features=4,
                num_cells=[32, 64, 64],
                kernel_sizes=[8, 4, 3],
                strides=[4, 2, 1],
                activation_class=th.nn.ReLU,
            )
            self.linear = th.nn.Sequential(th.nn.Linear(3136, 512), th.nn.ReLU())

        def forward(self, images: th.Tensor) -> th.Tensor:
            return self.linear(self.convolutions(images.float() / 255))  # type: ignore[no-any-return]

    common = TensorDictModule(Scaled(), ["observation"], ["features"])
    head = TensorDictModule(th.nn.Linear(512, n_actions), ["features"], ["logits"])
    actor = ProbabilisticActor(
        TensorDictSequential(common, head),
        in_keys=["logits"],
        distribution_class=th.distributions.Categorical,
        return_log_prob=True,
    ).to(device)
    critic = TensorDictSequential(common, ValueOperator(th.nn.Linear(512, 1), in_keys=["features"])).to(device)
    n_total = settings.total_iterations * settings.rollout
    collector = Collector(envs, actor, frames_per_batch=settings.rollout, total_frames=n_total, device=device)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(settings.rollout, device=device),
        sampler=SamplerWithoutReplacement(),
        batch_size=settings.batch_size,
    )
    advantages = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss_module = ClipPPOLoss(
        actor, critic, clip_epsilon=CLIP_RANGE, entropy_coeff=ENT_COEF, critic_coeff=0.5, normalize_advantage=True
    )
    optimizer = th.optim.Adam(loss_module.parameters(), lr=LEARNING_RATE, eps=ADAM_EPS)

    batches = iter(collector)
    for _ in range(settings.total_iterations):
        clock.begin("collect")
        data = next(batches)
        clock.begin("update")
        with th.no_grad():
            data = advantages(data)
        buffer.empty()
        buffer.extend(data.reshape(-1))
        for _ in range(settings.n_epochs):
            for batch in buffer:
                losses = loss_module(batch)
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                optimizer.zero_grad()
                loss.backward()
                th.nn.utils.clip_grad_norm_(loss_module.parameters(), 0.5)
                optimizer.step()
        collector.update_policy_weights_()
    clock.begin("end")
    kept_bytes = sum(tensor.nbytes for tensor in buffer.storage[:].values(True, True))
    collector.shutdown()
    return {"version": f"torchrl {version('torchrl')}", "bytes_per_transition": kept_bytes / settings.rollout}


def make_atari_env_with_games(*args: Any, **kwargs: Any) -> Any:
    """Sample Factory's environments; its processes import this, so that ale_py registers its games there."""
    import ale_py  # noqa: F401
    from sf_examples.atari.atari_utils import make_atari_env  # type: ignore[import-not-found]

    return make_atari_env(*args, **kwargs)


def sample_factory(settings: Settings, clock: Clock) -> dict[str, float | str]:
    """Sample Factory's own Atari training, whose workers collect while the learner updates."""
    from sample_factory.algo.runners.runner import AlgoObserver  # type: ignore[import-not-found]
    from sample_factory.envs.env_utils import register_env  # type: ignore[import-not-found]
    from sample_factory.train import make_runner  # type: ignore[import-not-found]
    from sf_examples.atari.train_atari import parse_atari_args  # type: ignore[import-not-found]

    class Iterations(AlgoObserver):  # type: ignore[misc]
        def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
            clock.begin("iteration")

    game = "atari_" + settings.env_id.removesuffix("NoFrameskip-v4").lower()
    register_env(game, make_atari_env_with_games)
    arguments = {
        "env": game,
        "device": {"cuda": "gpu"}.get(settings.device, settings.device),
        "num_workers": settings.threads,
        "num_envs_per_worker": settings.n_envs // settings.threads,
        "rollout": settings.n_steps,
        "batch_size": settings.batch_size,
        "num_batches_per_epoch": settings.rollout // settings.batch_size,
        "num_epochs": settings.n_epochs,
        # The first iteration that can be told begins with the end of the one before
        "train_for_env_steps": (settings.total_iterations + 1) * settings.rollout * FRAME_SKIP,
    }
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--{name}={value}" for name, value in arguments.items()]
        _, runner = make_runner(parse_atari_args([*options, f"--train_dir={folder}", "--experiment=throughput"]))
        runner.register_observer(Iterations())
        runner.init()
        runner.run()
    return {"version": f"sample-factory {version('sample-factory')}"}


def machine(settings: Settings, clock: Clock) -> dict[str, float | str]:
    """
    What no implementation can do without: the emulator's time for a rollout, in as many threads as there are, and the
    network's operations, with the rate at which the machine multiplies matrices.
    """
    import numpy as np
    import torch as th
    from ale_py.vector_env import AtariVectorEnv
    from gymnasium.vector import AutoresetMode
    from stable_baselines3.common.policies import ActorCriticCnnPolicy
    from torch.utils.flop_counter import FlopCounterMode

    if not settings.is_atari:
        return small_machine(settings, matrix_rate(settings.device))
    rom = settings.env_id.removesuffix("NoFrameskip-v4").lower()
    envs = AtariVectorEnv(
        rom,
        num_envs=settings.n_envs,
        num_threads=settings.threads,
        autoreset_mode=AutoresetMode.SAME_STEP,
        frameskip=FRAME_SKIP,
        stack_num=4,
        noop_max=30,
        use_fire_reset=True,
        episodic_life=True,
        reward_clipping=True,
    )
    envs.reset(seed=SEED)
    n_actions = envs.single_action_space.n  # type: ignore[attr-defined]
    actions = np.random.default_rng(SEED).integers(n_actions, size=(settings.n_steps, settings.n_envs))
    emulator_times = []
    for _ in range(settings.total_iterations):
        begin = time.perf_counter()
        for action in actions:
            envs.step(action)
        emulator_times.append(time.perf_counter() - begin)

    policy = ActorCriticCnnPolicy(envs.single_observation_space, envs.single_action_space, lambda _: 0.0)  # type: ignore[arg-type]
    images = th.zeros(1, *envs.single_observation_space.shape, dtype=th.uint8)  # type: ignore[misc]
    with FlopCounterMode(display=False) as acting, th.no_grad():
        policy(images)
    with FlopCounterMode(display=False) as learning:
        values, log_prob, _ = policy.evaluate_actions(images, th.zeros(1))
        (values.sum() + log_prob.sum()).backward()  # type: ignore[no-untyped-call]
    flop = acting.get_total_flops() + settings.n_epochs * learning.get_total_flops()
    envs.close()
    return {
        "version": f"ale-py {version('ale-py')}",
        "emulator_s": float(np.median(emulator_times[settings.n_warmup :])),
        "network_gflop": settings.rollout * flop / 1e9,
        "gflop_per_s": matrix_rate(settings.device),
    }


FUNCTIONS = {function.__name__: function for function in (sb3, cleanrl, tianshou, torchrl, sample_factory, machine)}


def main() -> None:
    settings = Settings(**json.loads(sys.argv[1]))
    try:
        import torch as th

        th.set_num_threads(settings.threads)
        torch_version = th.__version__
    except ImportError:
        torch_version = ""
    clock = Clock()
    known = FUNCTIONS[settings.contestant](settings, clock, **settings.options)
    result = {
        **known,
        "collect_s": clock.durations("collect", settings.n_warmup),
        "update_s": clock.durations("update", settings.n_warmup),
        "iteration_s": clock.durations("iteration", settings.n_warmup),
        "peak_mb": clock.peak_mb,
        "torch": torch_version,
        "python": platform.python_version(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
