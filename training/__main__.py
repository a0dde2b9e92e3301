"""`torchrun … -m radfm.training RECIPE key=value …`: `radfm train` on several processes, for a data set that is built."""

import sys

from radfm.medmd.schema import DataError

from .recipe import RecipeError, load_recipe, recipe_names


def main(arguments: list[str]) -> int:
    """Train; exit status 2 and one line on standard error for a fault of the recipe, the data or a step."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: torchrun --nproc-per-node N -m radfm.training RECIPE [key=value ...]")
        print(f"recipes: {', '.join(recipe_names())}")
        return 0 if arguments else 2
    try:
        recipe = load_recipe(arguments[0], arguments[1:])
        if recipe.stages is not None:
            raise RecipeError(f"{arguments[0]}: trains in one process; use radfm train {arguments[0]}.")
        from .faults import TrainingError
        from .start import start_training

        try:
            start_training(recipe)
        except TrainingError as error:
            print(error, file=sys.stderr)
            return 2
    except (RecipeError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
