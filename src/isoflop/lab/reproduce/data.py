"""Which folder holds which data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from isoflop.errors import IsoflopError, UnknownNameError
from isoflop.lab.data.datasets import DATASETS
from isoflop.lab.data.detection.data import DETECTION_SETS
from isoflop.lab.data.segmentation.data import SEGMENTATION_SETS
from isoflop.lab.data.text.registry import TEXTS
from isoflop.registry import did_you_mean, find_name


@dataclass(frozen=True, kw_only=True)
class DataFolders:
    """Folders of data sets.

    Attributes:
        default: That of all data sets without one of their own.
        own: Folders by name of the data set.
    """

    default: str | None = None
    own: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "DataFolders":
        """Return the folders of texts such as ``DIR`` or ``imagenet=DIR``.

        Raises:
            UnknownNameError: There is no such data set.
            IsoflopError: Two folders are given for the same data set.
        """
        own: dict[str | None, str] = {}
        for text in texts:
            name, equals, folder = text.partition("=")
            key = _data_set(name) if equals else None
            if key in own:
                of = f"for {key}" if key else "for all data sets"
                raise IsoflopError(f"--data gives two folders {of}. Write DATASET=DIR for others.")
            own[key] = folder if equals else text
        default = own.pop(None, None)
        return cls(default=default, own={str(name): folder for name, folder in own.items()})

    def of(self, dataset: str) -> str | None:
        """Return the folder of a data set, or None if there is none."""
        return self.own.get(dataset, self.default)


def _data_set(name: str) -> str:
    registries = (DATASETS, TEXTS, DETECTION_SETS, SEGMENTATION_SETS)
    known = [other for registry in registries for other in registry.names()]
    found = find_name(name, known)
    if found is None:
        raise UnknownNameError(
            f"Unknown data set {name!r} in --data.{did_you_mean(name, known)} Known: {', '.join(known)}."
        )
    return found
