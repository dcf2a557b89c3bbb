"""DAPO with policies that remember: :class:`RecurrentDAPO` and its policies, which extend those of sb3-contrib."""

try:
    import sb3_contrib as _
except ModuleNotFoundError as error:
    if error.name != "sb3_contrib":
        raise
    message = "RecurrentDAPO needs the policies of sb3-contrib: pip install 'sb3-dapo[contrib]'"
    raise ModuleNotFoundError(message, name=error.name) from error

from sb3_dapo.recurrent.policies import CnnLstmPolicy, LstmPolicy, MlpLstmPolicy, MultiInputLstmPolicy
from sb3_dapo.recurrent.recurrent_dapo import RecurrentDAPO

__all__ = ["CnnLstmPolicy", "LstmPolicy", "MlpLstmPolicy", "MultiInputLstmPolicy", "RecurrentDAPO"]
