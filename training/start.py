"""Which training a recipe describes: in stages from labels, as the demo checkpoint's, or of a model on records."""

from pathlib import Path

from .recipe import Recipe


def start_training(recipe: Recipe) -> Path:
    """Train a recipe; the folder with the result.

    Interrupted, the same call goes on from the last checkpoint in `training.output_dir`.

    Raises:
        RecipeError: the recipe does not fit the data, or the folder holds another training.
        DataError: no such data.
        TrainingError: a step that could not be taken, with the ids of the records.
    """
    if recipe.stages is None:
        from .run import train

        return train(recipe)
    from .demo.train import train_demo

    return train_demo(recipe)
