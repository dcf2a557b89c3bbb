# make train   install, train an agent on an Atari game, show what it has learned
# make test    run the tests (not those marked slow)
# make check   ruff, black, mypy and the documentation, which must build without a warning
# make docs    build the documentation in docs/_build/html
# make clean   remove what the above have made, except logs/
#
# Train PPO on as many steps too, and draw both: make train COMPARE=1
# Other games, budgets, algorithms and seeds: make train ENV=BoxingNoFrameskip-v4 STEPS=200000 ALGO=ppo SEED=1
# Millions of steps, for which settings for scarce data are not meant: make train STEPS=10000000 PRESET=
# With actors in processes of their own: make train ACTORS=2

ENV = CrazyClimberNoFrameskip-v4
STEPS = 100000
ALGO = dapo
PRESET = scarce
SEED = 0
ACTORS =
COMPARE =

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
LOGS = logs

.PHONY: train test check docs clean

TRAIN = --env $(ENV) -n $(STEPS) --seed $(SEED) $(if $(PRESET),--preset $(PRESET)) --verbose 0 --progress \
	-f $(LOGS) -tb $(LOGS)/tensorboard --eval-freq $(shell expr $(STEPS) / 8) --n-eval-envs 5

train: $(INSTALLED)
	$(BIN)/sb3-dapo train --algo $(ALGO) $(TRAIN) $(if $(ACTORS),--actors $(ACTORS))
	$(if $(COMPARE),$(BIN)/sb3-dapo train --algo ppo $(TRAIN))
	$(BIN)/sb3-dapo report --algo $(ALGO) --env $(ENV) -f $(LOGS) -n 10 --video
	$(if $(COMPARE),$(BIN)/sb3-dapo compare --env $(ENV) --algos $(ALGO) ppo -f $(LOGS))

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
	@echo "Installing into $(VENV): a minute or two, without output"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
