"""Whether operations measured one by one predict the training step that they make up.

    python benchmarks/micro.py [--repeats 3] [--workload resnet50] [--precision fp32] [--size official] [--batch 16]
                               [--processor-time]

For each workload and precision the training step is recorded (hpcai500/micro/recorder.py); then whole steps and all of
its operations, each alone with operands of the same shapes, are measured in turns, as `hpcai500 micro` does. The
prediction is the sum over all operations of calls x mean time. Bar: within 15 % of the measured step. Each of the
repeats is such a measurement from the beginning, with another model.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from report import figure, machine, spread

from hpcai500.allocator import keep_freed_memory
from hpcai500.edition import load_edition
from hpcai500.micro.steps import LONG, StepChoice, measure_step
from hpcai500.micro.timing import Timer
from hpcai500.probes.compute import has_bf16
from hpcai500.roofline import kernel_seconds

BAR = 0.15
CPU = torch.device("cpu")
CASES = (("resnet50", "official", 16), ("fasterrcnn", "mini", 2))


def compare(choice: StepChoice, repeats: int, timer: Timer) -> None:
    measured, predicted, ratios = [], [], []
    for _ in range(repeats):
        step = measure_step(choice, load_edition(), CPU, LONG, timer)
        measured.append(step.seconds.mean)
        predicted.append(sum(map(kernel_seconds, step.kernels)))
        ratios.append(predicted[-1] / measured[-1])
    off = abs(statistics.median(ratios) - 1)
    print(f"{choice.text}, batch {choice.batch_size}: {len(step.kernels)} kernels")
    print(f"  step {spread(measured, 's')}, sum of its kernels {spread(predicted, 's')}")
    figure(
        f"{choice.text}, batch {choice.batch_size}: prediction from kernels is off by",
        [abs(r - 1) for r in ratios],
        bar=BAR,
    )
    print(f"  predicted / measured, repeat by repeat: {spread(ratios)}; bar {1 - BAR:.2f} .. {1 + BAR:.2f}", end="")
    print(" missed" if off > BAR else "", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workload", choices=("resnet50", "fasterrcnn"), help="only this one")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="only this one")
    parser.add_argument("--size", choices=("official", "mini", "smoke"), help="of the rules; see CASES")
    parser.add_argument("--batch", type=int, help="samples; see CASES")
    parser.add_argument("--processor-time", action="store_true", help="of the process, where other programs run too")
    args = parser.parse_args()
    keep_freed_memory()  # as hpcai500.train does
    print(machine(), f"{torch.get_num_threads()} threads", sep=", ", flush=True)
    timer = Timer(CPU, time.process_time if args.processor_time else time.perf_counter)
    precisions = ["fp32", *(["bf16"] if has_bf16(CPU) else [])]
    for workload, size, batch in CASES:
        for precision in precisions:
            if args.workload in (None, workload) and args.precision in (None, precision):
                choice = StepChoice(workload, args.size or size, precision, args.batch or batch)
                compare(choice, args.repeats, timer)


if __name__ == "__main__":
    main()
