"""distributed_worker.py, which also prints, last of all, the images of every batch that its process was given.

python recording_worker.py --mode=train --config=JSON --stop_before=3 --output=FOLDER
    --devices=1 --processes=4 --process=0 --port=12345
"""

import json
from typing import Any

import distributed_worker

from r2d2_jax.train import loop


def main() -> None:
    """The flags are those of distributed_worker.py."""
    original, seen = loop.next_batch, list[list[int]]()

    def next_batch(batches: Any, progress: Any) -> Any:
        rows = original(batches, progress)
        seen.append(images_of(rows))
        return rows

    loop.next_batch = next_batch
    distributed_worker.main()
    print(json.dumps(seen))


def images_of(rows: Any) -> list[int]:
    """The identity of each row's image."""
    return [int(high) << 32 | int(low) for high, low in rows["image_id"]]


if __name__ == "__main__":
    main()
