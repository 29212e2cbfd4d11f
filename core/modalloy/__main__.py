"""``python -m modalloy``, and ``accelerate launch -m modalloy`` for several GPUs."""

from modalloy.cli.main import run

if __name__ == "__main__":
    run()
