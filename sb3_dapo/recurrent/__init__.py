"""DAPO with policies that remember: :class:`RecurrentDAPO` and its policies, which extend those of sb3-contrib."""

from importlib.util import find_spec

if find_spec("sb3_contrib") is None:
    message = "RecurrentDAPO needs the policies of sb3-contrib: pip install 'sb3-dapo[contrib]'"
    raise ModuleNotFoundError(message, name="sb3_contrib")

from sb3_dapo.recurrent.policies import CnnLstmPolicy, LstmPolicy, MlpLstmPolicy, MultiInputLstmPolicy
from sb3_dapo.recurrent.recurrent_dapo import RecurrentDAPO

__all__ = ["CnnLstmPolicy", "LstmPolicy", "MlpLstmPolicy", "MultiInputLstmPolicy", "RecurrentDAPO"]
