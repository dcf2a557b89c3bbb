import pytest
import torch as th
from algos import ALL_ALGOS
from hypothesis import settings

# Small networks are fastest on one core, and results don't depend on the machine
th.set_num_threads(1)

# The same examples in every run; `pytest --hypothesis-profile=thorough` looks for new ones
settings.register_profile("default", deadline=None, max_examples=60, derandomize=True, database=None)
settings.register_profile("thorough", deadline=None, max_examples=1000, database=None)
settings.load_profile("default")


@pytest.fixture(params=ALL_ALGOS, ids=lambda algo: algo.__name__)
def algo(request: pytest.FixtureRequest) -> type:
    return request.param
