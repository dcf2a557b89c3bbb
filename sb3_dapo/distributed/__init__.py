"""Actors on a Ray cluster, for one learner. Ray itself is imported when it is used."""

from sb3_dapo.distributed.actor_vec_env import ActorVecEnv

__all__ = ["ActorVecEnv"]
