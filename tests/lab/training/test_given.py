"""Every option that is given changes the configuration, or is refused by name."""

import dataclasses

import pytest

import isoflop
from isoflop.errors import IsoflopError
from isoflop.lab.cli import main
from isoflop.lab.recipes import RECIPES, get_recipe
from isoflop.lab.recipes.base import METHOD_OPTIONS
from isoflop.lab.training import build_method, train
from isoflop.lab.training.configs import method_options
from isoflop.methods.base import METHODS

VALUES = {"alpha": (0.3, 0.9), "update_every": (100, 7), "end_fraction": (0.75, 0.1)}


@pytest.mark.parametrize("method", METHODS.names())
@pytest.mark.parametrize("recipe", RECIPES.names())
def test_what_a_recipe_is_given_reaches_the_method_or_is_refused(recipe, method):
    taken = method_options(method)
    build_method(method, get_recipe(recipe))  # the recipe's own values harm nobody
    for option in METHOD_OPTIONS:
        for value in VALUES[option]:
            given = get_recipe(recipe).replace(**{option: value})
            if option in taken:
                assert getattr(build_method(method, given), option) == value
            else:
                with pytest.raises(IsoflopError, match=f"{method!r} takes no {option}; it takes"):
                    build_method(method, given)


@pytest.mark.parametrize("method", METHODS.names())
def test_one_recipe_for_several_methods(method):
    recipe = dataclasses.replace(get_recipe("digits"), update_every=7, alpha=0.9)
    built = build_method(method, recipe)
    for option, value in (("update_every", 7), ("alpha", 0.9)):
        if option in method_options(method):
            assert getattr(built, option) == value


def test_methods_keep_their_own_values_unless_others_are_given():
    recipe = get_recipe("cifar100")
    assert build_method("granet", recipe).update_every == 1000  # pyright: ignore[reportAttributeAccessIssue]
    assert build_method("granet", recipe.replace(update_every=100)).update_every == 100  # pyright: ignore[reportAttributeAccessIssue]
    assert build_method("granet", get_recipe("digits")).update_every == 20  # pyright: ignore[reportAttributeAccessIssue]
    assert dataclasses.replace(recipe, epochs=3).given == ()
    assert recipe.replace(lr=0.1, epochs=None).replace(alpha=0.3).given == ("lr", "alpha")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"betas": (0.9, 0.99)}, "betas .* no effect with the optimizer 'sgd'"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov .* optimizer 'adamw'"),
        ({"milestones": (1, 2)}, "milestones .* schedule 'cosine'.* 'multistep'"),
        ({"power": 0.5}, "power .* 'poly'"),
        ({"test_tokens": 5}, "test_tokens .* task 'classification'"),
        ({"alpha": 0.3}, "'dense' takes no alpha"),
    ],
)
def test_what_a_run_cannot_use_is_refused(tmp_path, changes, message):
    with pytest.raises(IsoflopError, match=message):
        train(get_recipe("digits").replace(**changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_method_and_a_recipe_that_contradict_each_other(tmp_path):
    recipe = get_recipe("digits").replace(alpha=0.9)
    with pytest.raises(IsoflopError, match=r"given alpha=0.9, the method 'rigl' has 0.3"):
        train(recipe, tmp_path / "run", method=isoflop.RigL(), sparsity=0.5, quiet=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--method gmp --alpha 0.9 --end-fraction 0.1 --sparsity 0.9", "'gmp' takes no alpha"),
        ("--method gmp --end-fraction 0.75 --sparsity 0.9", "'gmp' takes no end_fraction"),
        ("--method static --update-every 20 --sparsity 0.9", "takes no update_every"),
        ("--method snip --alpha 0.3 --transform wide --sparsity 0.9", "takes no alpha"),
        ("--alpha 0.3", "'dense' takes no alpha"),
        ("--sparsity 0.9 --alpha 0.9 --option alpha=0.5", "Give it once"),
        ("--pattern 2:4", "a pattern or an allocation has no effect"),
        ("--allocation erk", "a pattern or an allocation has no effect"),
        ("--scope layers", "leave it out"),
        ("--backbone-gap 0.1", "--backbone-gap"),
    ],
)
def test_options_without_effect_are_refused(capsys, tmp_path, options, message):
    with pytest.raises(SystemExit):
        main(["train", "digits", "--out", str(tmp_path / "run"), *options.split()])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
