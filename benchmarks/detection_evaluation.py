"""How long mAP takes at the official size, beside the time of an epoch.

    python benchmarks/detection_evaluation.py [--ranks 8] [--repeats 5]

Detections are made up: 100 on each of the 2,920 validation samples, the most that count. A rank matches those of its
own shard; rank 0 then joins what all ranks send and computes the curves. Bar: at most 3 % of an epoch's time. An epoch
is 24,820 samples of 1,070 GFLOP; its time is given for ranks that train 20 samples a second each, as one A100 did at
this size of sample in MLPerf HPC (DeepCAM, round 2.0: 20.8 with 2,048 of them).
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import time

import numpy as np
from report import figure, machine, spread

from hpcai500.edition import load_edition
from hpcai500.workloads.detection_evaluation import Detail, ImageResult, count, match, pack, precision_curves

NUM_CLASSES, NUM_FOUND = 4, 100
SAMPLES_PER_S_OF_A_RANK = 20.0


def make_results(num_samples: int) -> list[ImageResult]:
    random = np.random.default_rng(0)
    results = []
    for sample in range(num_samples):
        num_boxes = random.integers(0, 16)
        corners = random.uniform(0, 700, (num_boxes, 2))
        boxes = np.concatenate([corners, corners + random.uniform(20, 200, (num_boxes, 2))], axis=1)
        shifts = random.normal(0, 10, (NUM_FOUND, 4))
        found = (boxes[random.integers(0, num_boxes, NUM_FOUND)] if num_boxes else np.zeros((NUM_FOUND, 4))) + shifts
        labels, found_labels = random.integers(1, 5, num_boxes), random.integers(1, 5, NUM_FOUND)
        scores = np.sort(random.random(NUM_FOUND))[::-1].astype(np.float32)
        results.append(
            ImageResult(sample, boxes.astype(np.float32), labels, found.astype(np.float32), scores, found_labels)
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(machine())
    size = load_edition().workload("fasterrcnn").size("official")
    results = make_results(size.num_validation_samples)
    shards = [results[rank :: args.ranks] for rank in range(args.ranks)]
    times: dict[str, list[float]] = {"a rank's matches": [], "rank 0's curves": []}
    for _ in range(args.repeats):
        begin_s = time.perf_counter()
        first = Detail(pack(shards[0]), match(shards[0], NUM_CLASSES))
        times["a rank's matches"].append(time.perf_counter() - begin_s)
        others = [Detail(pack(shard), match(shard, NUM_CLASSES)) for shard in shards[1:]]
        sent = pickle.dumps([first, *others])
        num_boxes = count(results, first.scored)["boxes"]
        begin_s = time.perf_counter()
        precision_curves([detail.scored for detail in pickle.loads(sent)], num_boxes)
        times["rank 0's curves"].append(time.perf_counter() - begin_s)
    for name, seconds in times.items():
        print(f"{name}, {args.ranks} ranks: {spread(seconds, 's')}")
        figure(f"{name}, {args.ranks} ranks", seconds, "s")
    epoch_s = size.num_train_samples / (args.ranks * SAMPLES_PER_S_OF_A_RANK)
    share = sum(statistics.median(seconds) for seconds in times.values()) / epoch_s
    print(f"an epoch: {epoch_s:.0f} s; mAP takes {100 * share:.2f} % of it; bar 3 %")
    print(f"sent to rank 0: {len(sent) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
