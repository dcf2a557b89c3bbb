"""contrib's policies for action masks, of which the one for images can compute in a faster form."""

from sb3_contrib.common.maskable.policies import MaskableActorCriticCnnPolicy

from sb3_dapo.policies import FastCnn


class MaskableCnnPolicy(FastCnn, MaskableActorCriticCnnPolicy):  # type: ignore[misc]
    """contrib's ``MaskableActorCriticCnnPolicy`` with the faster form of :class:`~sb3_dapo.policies.CnnPolicy`."""
