# make train   install, train an agent on an Atari game, compare it with the random policy
# make test    run the tests (not those marked slow)
# make check   ruff, black, mypy and the documentation, which must build without a warning
# make docs    build the documentation in docs/_build/html
# make clean   remove what the above have made, except logs/
#
# Other games, budgets and algorithms: make train ENV=PongNoFrameskip-v4 STEPS=2000000 ALGO=ppo SEED=1
# With actors in processes of their own: make train ACTORS=2

ENV = RoadRunnerNoFrameskip-v4
STEPS = 150000
ALGO = dapo
SEED = 0
ACTORS =

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
LOGS = logs

.PHONY: train test check docs clean

train: $(INSTALLED)
	$(BIN)/sb3-dapo train --algo $(ALGO) --env $(ENV) -n $(STEPS) --seed $(SEED) --verbose 0 --progress \
		-f $(LOGS) -tb $(LOGS)/tensorboard --eval-freq $$(($(STEPS) / 8)) --n-eval-envs 5 \
		$(if $(ACTORS),--actors $(ACTORS))
	$(BIN)/sb3-dapo report --algo $(ALGO) --env $(ENV) -f $(LOGS) --seed $(SEED)

# One thread for each of the two workers
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

check: $(INSTALLED) docs
	$(BIN)/ruff check .
	$(BIN)/black --check --quiet --diff .
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) build dist docs/_build sb3_dapo.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
